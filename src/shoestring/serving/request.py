"""A request as the scheduler knows it."""

import enum
from dataclasses import dataclass, field

from shoestring.serving.events import RequestArrived


class Phase(enum.Enum):
    """Where a request is. A preempted one is queued again; left out of an iteration it stays where it is."""

    QUEUED = "queued"
    PREFILL = "prefill"
    DECODE = "decode"
    DONE = "done"


@dataclass
class Request:
    """computed: tokens whose keys and values are in the blocks; kept_blocks: of these, full ones that others
    may share. token_ids: prompt and output so far, if known.

    number: in order of arrival.
    """

    arrival: RequestArrived
    number: int
    arrived_at: float
    phase: Phase = Phase.QUEUED
    generated: int = 0
    computed: int = 0
    kept_blocks: int = 0
    preemptions: int = 0
    cancelled: bool = False
    blocks: list[int] = field(default_factory=list)
    token_ids: list[int] | None = None

    @property
    def rid(self) -> str:
        """Its name."""
        return self.arrival.rid

    @property
    def known(self) -> int:
        """Tokens of prompt and output so far."""
        return self.arrival.prompt_tokens + self.generated

    @property
    def pending(self) -> int:
        """Tokens that must be computed before the next one comes out: 1 while it decodes."""
        return self.known - self.computed

    @property
    def most_tokens(self) -> int:
        """Tokens whose keys and values it will need at most: the last output is never fed."""
        return self.arrival.prompt_tokens + self.arrival.max_new_tokens - 1
