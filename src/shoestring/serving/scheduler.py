"""The scheduler: events and the time in, actions out. It reads no clock, sleeps never and touches no tensor,
so the same object drives a live engine and a simulated one.
"""

from shoestring.serving.block_manager import BlockManager
from shoestring.serving.events import (
    Action,
    Emit,
    Event,
    Finish,
    IterationDone,
    Reason,
    Reject,
    RequestArrived,
    RequestCancelled,
    SliceOutput,
    StartIteration,
)
from shoestring.serving.policy import ChunkedPrefill, Policy
from shoestring.serving.pool import Pool
from shoestring.serving.request import Phase, Request


class Scheduler:
    """Continuous batching over blocks of memory on one instance, one iteration at a time.

    n_blocks, block_slots: the memory for keys and values, and tokens of a block. policy: who works when.
    max_context: the most tokens of a request, prompt and output together; None: as many as blocks hold.
    max_waiting: requests that may wait; more are rejected.

    Raises: ValueError for sizes below 1.
    """

    def __init__(
        self,
        n_blocks: int,
        block_slots: int = 16,
        policy: Policy = ChunkedPrefill(),  # noqa: B008  (frozen)
        *,
        max_context: int | None = None,
        max_waiting: int | None = None,
    ) -> None:
        self.pool = Pool(BlockManager(n_blocks, block_slots))
        self.policy, self.max_context, self.max_waiting = policy, max_context, max_waiting
        self.requests: dict[str, Request] = {}
        """Those that are not done."""
        self._arrived, self._iterations, self._now = 0, 0, float("-inf")
        self._under_way: StartIteration | None = None

    def on_event(self, event: Event, now: float) -> list[Action]:
        """What follows from an event at a time.

        Raises: ValueError for a time before the last one, a name that is taken, or an iteration that was not
        started, or whose outputs are not those of its slices.
        """
        if now < self._now:
            raise ValueError(f"now={now} lies before the last event at {self._now}; time does not go back.")
        match event:
            case RequestArrived():
                actions = self._arrive(event, now)
            case RequestCancelled():
                actions = self._cancel(event)
            case IterationDone():
                actions = self._finish_iteration(event)
        self._now = now
        return actions + self._start()

    def _arrive(self, event: RequestArrived, now: float) -> list[Action]:
        if event.rid in self.requests:
            raise ValueError(f"request {event.rid!r} is there already; give every request its own name.")
        request = Request(event, self._arrived, now)
        if event.token_ids is not None:
            request.token_ids = list(event.token_ids)
        if reason := self._why_not(event, request):
            return [Reject(event.rid, reason)]
        self._arrived += 1
        self.requests[event.rid] = request
        self.pool.waiting.append(request)
        return []

    def _why_not(self, event: RequestArrived, request: Request) -> str | None:
        if event.prompt_tokens < 1 or event.max_new_tokens < 1:
            return (
                f"prompt_tokens={event.prompt_tokens} and max_new_tokens={event.max_new_tokens}: both must "
                "be at least 1."
            )
        if event.token_ids is not None and len(event.token_ids) != event.prompt_tokens:
            return f"prompt_tokens={event.prompt_tokens}, but there are {len(event.token_ids)} token ids."
        wanted = event.prompt_tokens + event.max_new_tokens
        if self.max_context is not None and wanted > self.max_context:
            return (
                f"{event.prompt_tokens} tokens and {event.max_new_tokens} new ones are more than the context "
                f"of {self.max_context}."
            )
        manager = self.pool.manager
        needed = manager.blocks_for(request.most_tokens)
        if needed > manager.n_blocks:
            return (
                f"{wanted} tokens need {needed} blocks of {manager.slots} tokens; "
                f"there are {manager.n_blocks}. Ask for fewer tokens, or give the server more memory."
            )
        if self.max_waiting is not None and len(self.pool.waiting) >= self.max_waiting:
            return f"{len(self.pool.waiting)} requests wait already; try again later."
        return None

    def _cancel(self, event: RequestCancelled) -> list[Action]:
        request = self.requests.get(event.rid)
        if request is None or request.cancelled:
            return []  # it ended while the message was on its way
        if self._under_way and any(piece.rid == event.rid for piece in self._under_way.plan):
            request.cancelled = True  # its blocks are being written to
            return []
        return [self._end(request, Reason.CANCELLED)]

    def _finish_iteration(self, event: IterationDone) -> list[Action]:
        plan = self._under_way
        if plan is None or event.iteration != plan.iteration:
            raise ValueError(
                f"iteration {event.iteration} is not under way; {plan.iteration if plan else 'none'} is."
            )
        expected = [piece.rid for piece in plan.plan if piece.samples]
        found = [output.rid for output in event.outputs]
        if found != expected:
            raise ValueError(f"outputs of {found} are not those of the slices that sample, {expected}.")
        self._under_way = None
        outputs = {output.rid: output for output in event.outputs}
        actions: list[Action] = []
        for piece in plan.plan:
            request = self.requests[piece.rid]
            request.computed += piece.tokens
            if request.cancelled:
                actions.append(self._end(request, Reason.CANCELLED))
                continue
            self._keep_prefix(request)
            if piece.samples:
                actions += self._take_output(request, outputs[piece.rid])
        return actions

    def _take_output(self, request: Request, output: SliceOutput) -> list[Action]:
        request.phase = Phase.DECODE
        request.generated += output.new_tokens
        if request.token_ids is not None:
            request.token_ids += output.new_token_ids or ()
        actions: list[Action] = [Emit(request.rid, output.new_tokens, output.new_token_ids)]
        if output.finished:
            actions.append(self._end(request, Reason.STOP))
        elif request.generated >= request.arrival.max_new_tokens:
            actions.append(self._end(request, Reason.LENGTH))
        return actions

    def _keep_prefix(self, request: Request) -> None:
        full = request.computed // self.pool.manager.slots
        if request.token_ids is not None and full > request.kept_blocks:
            self.pool.manager.keep_prefix(request.token_ids[: request.computed], request.blocks)
            request.kept_blocks = full

    def _end(self, request: Request, reason: Reason) -> Action:
        queue = self.pool.waiting if request.phase is Phase.QUEUED else self.pool.running
        queue.remove(request)
        self.pool.manager.release(request.blocks)
        request.phase = Phase.DONE
        del self.requests[request.rid]
        return Finish(request.rid, reason)

    def _start(self) -> list[Action]:
        if self._under_way is not None:
            return []
        slices = self.policy.form_batch(self.pool)
        actions, self.pool.actions = self.pool.actions, []
        if not slices:
            return actions
        self._under_way = StartIteration(self._iterations, tuple(slices))
        self._iterations += 1
        return [*actions, self._under_way]
