"""Which requests work in the next iteration, and who yields when memory runs out."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from shoestring.serving.events import Slice
from shoestring.serving.pool import Pool
from shoestring.serving.request import Phase, Request


@runtime_checkable
class Policy(Protocol):
    """What a scheduler asks; answers must depend on nothing but the pool."""

    def form_batch(self, pool: Pool) -> list[Slice]:
        """The slices of the next iteration; every one's blocks are reserved. None: nothing to do."""
        ...

    def on_memory_pressure(self, pool: Pool) -> Request:
        """The running request that is to give up its blocks."""
        ...


@dataclass(frozen=True)
class ChunkedPrefill:
    """First come, first served: decoding requests first, then prompts, in pieces that fill up the iteration.

    token_budget: tokens of an iteration at most. max_sequences: requests that run at the same time.
    watermark: share of all blocks that admitting a request must leave free, unless nothing else runs. When
    blocks run out, the request that arrived last is preempted, so the first always finishes.

    Raises: ValueError for numbers below 1, or a watermark outside 0 .. 1.

    Source: Agrawal et al. 2024, "Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve",
    section 4; Kwon et al. 2023, "PagedAttention", section 4.5 (preemption).
    """

    token_budget: int = 128
    max_sequences: int = 64
    watermark: int | float = 0.01

    def __post_init__(self) -> None:
        if self.token_budget < 1 or self.max_sequences < 1:
            raise ValueError(
                f"token_budget={self.token_budget} and max_sequences={self.max_sequences} must be 1 or more."
            )
        if not 0 <= self.watermark < 1:
            raise ValueError(f"watermark={self.watermark} is a share of the blocks: 0 or more, below 1.")

    def rank(self, request: Request) -> Any:
        """What requests are ordered by."""
        return request.number

    def form_batch(self, pool: Pool) -> list[Slice]:
        """As `Policy`."""
        pool.running.sort(key=self.rank)
        pool.waiting.sort(key=self.rank)
        slices: list[Slice] = []
        for phase in (Phase.DECODE, Phase.PREFILL):
            for request in [r for r in pool.running if r.phase is phase]:
                self._add(pool, request, slices)
        self._admit(pool, slices)
        # A request may have been preempted after its slice was made.
        running = {request.rid for request in pool.running}
        return [piece for piece in slices if piece.rid in running]

    def on_memory_pressure(self, pool: Pool) -> Request:
        """As `Policy`: the last to arrive."""
        return max(pool.running, key=self.rank)

    def _add(self, pool: Pool, request: Request, slices: list[Slice]) -> None:
        left = self.token_budget - sum(piece.tokens for piece in slices)
        tokens = min(request.pending, left)
        if tokens < 1 or request not in pool.running:
            return
        while not pool.reserve(request, tokens):
            victim = self.on_memory_pressure(pool)
            pool.preempt(victim)
            slices[:] = [piece for piece in slices if piece.rid != victim.rid]
            if victim is request:
                return
        slices.append(pool.slice(request, tokens))

    def _admit(self, pool: Pool, slices: list[Slice]) -> None:
        # Who was preempted just now would take back what was taken for others.
        if pool.actions:
            return
        spare = round(self.watermark * pool.manager.n_blocks)
        for request in list(pool.waiting):
            full = sum(piece.tokens for piece in slices) >= self.token_budget
            if full or len(pool.running) >= self.max_sequences:
                return
            if not pool.admit(request, spare=spare if pool.running else 0):
                return
            self._add(pool, request, slices)
