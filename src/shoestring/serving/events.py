"""What goes into the scheduler and what comes out: plain data, the same for a live engine and for a
simulator.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass


class Kind(enum.Enum):
    """What a slice of an iteration does."""

    PREFILL = "prefill"
    DECODE = "decode"


class Reason(enum.Enum):
    """Why a request ended."""

    LENGTH = "length"
    STOP = "stop"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(frozen=True)
class RequestArrived:
    """A request with a prompt of so many tokens for at most `max_new_tokens` new ones.

    token_ids: of the prompt, where they are known; then requests that begin alike share blocks. priority: for
    policies that look at it; the lower the earlier.
    """

    rid: str
    prompt_tokens: int
    max_new_tokens: int
    token_ids: tuple[int, ...] | None = None
    priority: int = 0


@dataclass(frozen=True)
class RequestCancelled:
    """Nobody waits for this request any more."""

    rid: str


@dataclass(frozen=True)
class SliceOutput:
    """What a slice that samples gave: so many new tokens, their ids where they are known, and whether the
    output ends with them.
    """

    rid: str
    new_tokens: int = 1
    new_token_ids: tuple[int, ...] | None = None
    finished: bool = False


@dataclass(frozen=True)
class IterationDone:
    """The iteration that was started took so long and gave this; one output for each slice that samples."""

    iteration: int
    measured_seconds: float
    outputs: tuple[SliceOutput, ...]
    instance: int = 0


Event = RequestArrived | RequestCancelled | IterationDone


@dataclass(frozen=True)
class Slice:
    """Tokens start … start + tokens − 1 of a request in one iteration, over its blocks.

    samples: the last of them is the last there is, so a new token comes out.
    """

    rid: str
    kind: Kind
    start: int
    tokens: int
    blocks: tuple[int, ...]
    samples: bool

    @property
    def kv_length(self) -> int:
        """Keys that the last token sees."""
        return self.start + self.tokens


@dataclass(frozen=True)
class StartIteration:
    """Run these slices together, then answer with `IterationDone`."""

    iteration: int
    plan: tuple[Slice, ...]
    instance: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of all slices."""
        return sum(piece.tokens for piece in self.plan)


@dataclass(frozen=True)
class Preempt:
    """The request lost its blocks; it is queued again, and its tokens so far are computed anew."""

    rid: str


@dataclass(frozen=True)
class Emit:
    """New tokens for the client."""

    rid: str
    new_tokens: int
    new_token_ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Finish:
    """The last that is heard of a request."""

    rid: str
    reason: Reason


@dataclass(frozen=True)
class Reject:
    """A request that can never be served, and why."""

    rid: str
    reason: str


Action = StartIteration | Preempt | Emit | Finish | Reject


def started(actions: Sequence[Action]) -> StartIteration | None:
    """The iteration among these actions; there is at most one."""
    return next((action for action in actions if isinstance(action, StartIteration)), None)
