"""The requests of one instance and their blocks: what a policy may look at and do."""

from shoestring.serving.block_manager import BlockManager
from shoestring.serving.events import Action, Kind, Preempt, Slice
from shoestring.serving.request import Phase, Request


class Pool:
    """waiting, running: requests in the order in which they arrived (or a policy put them)."""

    def __init__(self, manager: BlockManager) -> None:
        self.manager = manager
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.actions: list[Action] = []
        """What was done to requests on the way, for whoever asked."""

    def admit(self, request: Request, *, spare: int = 0) -> bool:
        """Move a waiting request to the running ones with blocks for all its tokens so far; False, and
        nothing done, if that would leave fewer than `spare` blocks.
        """
        shared: list[int] = []
        computed = 0 if request.token_ids is None else self.manager.share_prefix(request.token_ids, shared)
        missing = self.manager.blocks_for(request.known) - len(shared)
        if self.manager.available - missing < spare or not self.manager.extend(shared, request.known):
            self.manager.release(shared)
            return False
        request.blocks, request.computed, request.phase = shared, computed, Phase.PREFILL
        self.waiting.remove(request)
        self.running.append(request)
        return True

    def reserve(self, request: Request, tokens: int) -> bool:
        """Blocks for the next so many tokens of a running request, if there are."""
        return self.manager.extend(request.blocks, request.computed + tokens)

    def preempt(self, request: Request) -> None:
        """Take a request's blocks away; it waits again, before all others, and is computed anew."""
        self.running.remove(request)
        self.manager.release(request.blocks)
        request.phase, request.computed, request.kept_blocks = Phase.QUEUED, 0, 0
        request.preemptions += 1
        self.waiting.insert(0, request)
        self.actions.append(Preempt(request.rid))

    def slice(self, request: Request, tokens: int) -> Slice:
        """The next tokens of a running request, whose blocks are reserved."""
        kind = Kind.DECODE if request.phase is Phase.DECODE else Kind.PREFILL
        return Slice(
            request.rid, kind, request.computed, tokens, tuple(request.blocks), tokens == request.pending
        )
