"""A HAMburger as a runner, module by module: prompt tokens and groups in, the first token's logits out, and
micro steps for the others.
"""

import copy
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoestring.generation.decoder_runner import DecoderRunner
from shoestring.generation.dense_cache import DenseCache
from shoestring.generation.evicting_cache import CachePolicy
from shoestring.generation.sampling import Sampling
from shoestring.generation.slot_cache import SlotCache
from shoestring.models.decoder_step import Want
from shoestring.models.hamburger import Hamburger
from shoestring.models.hamburger_options import stops
from shoestring.models.hooks import Context


class GroupRunner(DecoderRunner):
    """One sequence. `stop_logit` is that of the last token whose logits were given.

    cache, hooks, ctx, selection: as of `DecoderRunner`. Raises: as it; NotImplementedError for a cache of
    several sequences, whose groups would end at different places.
    """

    cache: SlotCache

    def __init__(
        self,
        model: Hamburger,
        cache: Any = None,
        capacity: int = 0,
        *,
        hooks: Sequence[object] = (),
        ctx: Context | None = None,
        selection: CachePolicy | None = None,
    ) -> None:
        super().__init__(model.base, cache, capacity, hooks=hooks, ctx=ctx, selection=selection)
        if not isinstance(self.cache, SlotCache):
            raise TypeError(f"groups are noted in a SlotCache, not in a {type(self.cache).__name__}.")
        if self.cache.batch != 1:
            raise NotImplementedError(
                f"the cache holds {self.cache.batch} sequences; a HAMburger generates one at a time."
            )
        self.hamburger = model
        # Near the threshold, half precision would flip decisions.
        half = next(model.parameters()).dtype in (torch.bfloat16, torch.float16)
        self._stop = copy.deepcopy(model.stop).float() if half else model.stop
        self._micro_cache = micro_cache(model)
        self._micro_start = self._micro_cache.mark()
        self._hidden: Tensor | None = None
        self._features: Tensor | None = None
        self._unread: Tensor | None = None

    def feed(self, ids: Int[Tensor, "1 n"]) -> Float[Tensor, "1 vocab"]:
        """Append tokens, a slot each; the logits of the token that follows."""
        return self._read(ids, None)

    def feed_group(self, tokens: Sequence[int]) -> Float[Tensor, "1 vocab"]:
        """Append a group in one slot, at the position of its last token; the logits of the token that
        follows.

        Raises: ValueError for more tokens than a group has, or none."""
        x = self._merged(tokens)
        return self._read(x[None], self.cache.next_pos[:, None] + len(tokens) - 1, len(tokens))

    def micro(self, token: int) -> Float[Tensor, "1 vocab"]:
        """Go on with the group by this token; the logits of the next one.

        Raises: ValueError before anything was fed."""
        before = self._before(token)
        self._hidden = self.hamburger.micro(before[None], self._micro_cache)[:, -1]
        return self.hamburger.base.lm_head(self._hidden)

    def greedy_group(self, fed: Sequence[int], most: int, ends: Collection[int]) -> list[int]:
        """Append a group in one slot; the next one, of at most `most` tokens, each the likeliest, until one
        of `ends` or the stop head ends it. Raises: as `feed_group`; ValueError for logits with NaN."""
        sampling = Sampling()
        return self.group_from(self.feed_group(fed), most, ends, lambda logits: int(sampling.choose(logits)))

    def group_from(
        self, logits: Tensor, most: int, ends: Collection[int], choose: Callable[[Tensor], int]
    ) -> list[int]:
        """The same, from the logits of its first token, with tokens that `choose` takes from logits."""
        group = [choose(logits)]
        confidence = self.hamburger.confidence
        while len(group) < most and group[-1] not in ends and not stops(self.stop_logit, confidence):
            group.append(choose(self.micro(group[-1])))
        return group

    @property
    def stop_logit(self) -> float:
        """Above 0 where the group's end is likelier than not; float32 at least."""
        if self._hidden is None:
            raise ValueError("nothing was fed yet; a group begins with feed or feed_group.")
        return float(self._stop(self._hidden.to(next(self._stop.parameters()).dtype)))

    def _read(self, x: Tensor, pos: Tensor | None, group: int = 1) -> Float[Tensor, "1 vocab"]:
        """group: tokens that the last slot stands for."""
        want = Want(logits="last", hidden=self.hamburger.want)
        out = self.model(x, pos, self.cache, self.ctx, self.hooks, want)
        assert out.logits is not None
        if group > 1:
            # Before the selection, which may free slots.
            self.cache.note_tokens(group)
        if self._prompt_read and self.selection is not None:
            self.selection.after_step(self.cache)
        self._begin(torch.stack([out.hidden[name][0, -1] for name in self.hamburger.want]))
        return out.logits[:, -1]

    def _begin(self, features: Float[Tensor, "features hidden"]) -> None:
        """A new group: nothing of it is in the micro cache yet."""
        self._features, self._unread, self._hidden = features, features, features[-1:]
        self._micro_cache.rollback(self._micro_start)

    def _before(self, token: int) -> Float[Tensor, "n hidden"]:
        """What the micro decoder has not read yet, this token last."""
        if self._features is None:
            raise ValueError("nothing was fed yet; a group begins with feed or feed_group.")
        x = self._embed([token])
        unread, self._unread = self._unread, None
        return x if unread is None else torch.cat([unread, x])

    def _embed(self, tokens: Sequence[int]) -> Float[Tensor, "n hidden"]:
        return self.model.model.embed_tokens(torch.tensor(tokens, device=self.device))

    def _check_group(self, tokens: Sequence[int]) -> None:
        most = self.hamburger.options.max_steps
        if not 1 <= len(tokens) <= most:
            raise ValueError(f"a group of {len(tokens)} tokens; groups have 1 to max_steps={most}.")

    def _merged(self, tokens: Sequence[int]) -> Float[Tensor, "1 hidden"]:
        self._check_group(tokens)
        x = self._embed(tokens)
        if len(tokens) == 1:
            return x
        return self.hamburger.embedder(x[None], torch.tensor([len(tokens)], device=self.device))


def micro_cache(model: Hamburger) -> DenseCache:
    """What the micro decoder keeps of one group: all features, and all tokens but the last."""
    cfg, parameter = model.micro.cfg, next(model.parameters())
    places = len(model.options.features) + model.options.max_steps
    return DenseCache(
        cfg.num_hidden_layers, 1, cfg.num_key_value_heads, cfg.head_dim,
        dtype=parameter.dtype, device=parameter.device, capacity=places,
    )  # fmt: skip
