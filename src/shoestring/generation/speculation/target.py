"""The model whose text it is: verifies a tree of drafted tokens in one pass and keeps the accepted path."""

import torch
from jaxtyping import Float
from torch import Tensor

from shoestring.generation.compiled_runner import CompiledRunner
from shoestring.generation.decoder_runner import DecoderRunner
from shoestring.generation.hybrid_cache import HybridCache
from shoestring.generation.slot_cache import Mark, SlotCache
from shoestring.generation.speculation.draft_tree import DraftTree
from shoestring.generation.speculation.tree_attention import TreeAttention
from shoestring.kernels.decode_step import MOST_TOKENS
from shoestring.models.decoder_step import Want


class Target:
    """A runner that takes several tokens at once, of which some are taken back.

    Chains go through the compiled step where there is one; trees through the decoder with `TreeAttention`.

    Raises: TypeError for a runner that is no `DecoderRunner`, or a cache that cannot take tokens back.
    """

    def __init__(self, runner: object) -> None:
        if not isinstance(runner, DecoderRunner):
            raise TypeError(
                f"speculation verifies drafts with a Decoder, not by a {type(runner).__name__}; load the "
                "model as one: shoestring.models.load.load_decoder, or Decoder.from_transformers(model)."
            )
        if not isinstance(runner.cache, SlotCache):
            raise TypeError(
                f"speculation takes tokens back, which a {type(runner.cache).__name__} cannot; pass a "
                "DenseCache."
            )
        if isinstance(runner.cache, HybridCache):
            raise TypeError(
                "speculation takes tokens back, which the states of a hybrid cannot; generate without drafts."
            )
        self.runner, self._cache = runner, runner.cache
        self._mark: Mark | None = None
        self._nodes = 0

    @property
    def most_tokens(self) -> int | None:
        """The most tokens that one compiled call verifies; None where no call is compiled."""
        return MOST_TOKENS if isinstance(self.runner, CompiledRunner) else None

    def verify(self, tree: DraftTree) -> Float[Tensor, "nodes vocab"]:
        """Append all nodes; the logits of the token after each."""
        runner, self._nodes = self.runner, len(tree)
        self._mark = None
        ids = torch.tensor([tree.tokens], device=runner.device)
        if len(tree) == 1:
            return runner.feed(ids)
        short = tree.is_chain and len(tree) <= MOST_TOKENS
        if short and isinstance(runner, CompiledRunner) and runner.compiled_slots() is not None:
            return runner.feed_all(ids)
        self._mark = self._cache.mark()
        return self._by_module(ids, tree)

    def keep(self, path: list[int]) -> None:
        """Of the nodes just verified keep these, from the root on, as if only they had come.

        Raises: ValueError if nothing was verified since the last time.
        """
        if not self._nodes:
            raise ValueError("there is no verified tree to keep a path of; call verify first.")
        nodes, self._nodes = self._nodes, 0
        dropped = nodes - len(path)
        if self._mark is not None:
            self._cache.keep_path(self._mark, torch.tensor([path], device=self.runner.device))
            self._mark = None
        elif dropped:
            assert isinstance(self.runner, CompiledRunner)
            self.runner.cache.give_back(dropped)
        if nodes > 1:
            # A single node was fed, and `feed` does this itself.
            self.runner.after_step()

    def _by_module(self, ids: Tensor, tree: DraftTree) -> Tensor:
        runner = self.runner
        if tree.is_chain:
            out = runner.model(ids, None, runner.cache, runner.ctx, runner.hooks, Want("all"))
        else:
            depths = torch.tensor([tree.depths()], device=runner.device)
            hook = TreeAttention(tree.ancestors().to(runner.device))
            out = runner.model(
                ids, self._cache.next_pos[:, None] + depths, runner.cache, runner.ctx,
                (*runner.hooks, hook), Want("all"),
            )  # fmt: skip
        assert out.logits is not None
        return out.logits[0]
