"""A HAMburger by compiled steps: one call for the base, one for each micro step.

The first map of the stop head is stacked under the output head: one product gives the logits and what the
rest of the stop head goes on from.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shoestring.errors import NoCompiler
from shoestring.generation.compiled_runner import layer_cache, unfit_cache
from shoestring.generation.evicting_cache import CachePolicy
from shoestring.generation.hamburger.group_runner import GroupRunner
from shoestring.generation.hamburger.small_arrays import ArrayMerge, ArrayStop
from shoestring.generation.step_cache import StepCache, StorageWatch
from shoestring.kernels.decode_group import DecodeGroup, GroupMerge, GroupStop
from shoestring.kernels.decode_step import MOST_TOKENS
from shoestring.kernels.dense_linear import STORAGE_KINDS, dense_linear
from shoestring.kernels.linear_kernel import LinearKernel
from shoestring.models.compiled_decoder import CannotCompile, CompiledDecoder
from shoestring.models.decoder import Decoder
from shoestring.models.hamburger import Hamburger
from shoestring.models.protocols import CacheCannot
from shoestring.notices import notice_fallback


class CompiledGroupRunner(GroupRunner):
    """The same, many times faster on a CPU. For plain weights in one type and a base without windows.

    cache: an empty `DenseCache` for one sequence; by default a new one. Raises: CannotCompile, NoCompiler;
    TypeError for another cache.
    """

    cache: StepCache

    def __init__(self, model: Hamburger, cache: Any = None, capacity: int = 0) -> None:
        _require_plain(model)
        super().__init__(model, cache, capacity)
        if reason := unfit_cache(self.cache):
            raise TypeError(f"the compiled step cannot use this cache: {reason}.")
        head = _stacked_head(model)
        self._vocab = model.cfg.vocab_size
        self._merge, self._stop_rest = ArrayMerge(model.embedder), ArrayStop(self._stop)
        self._base = CompiledDecoder(model.base, head=head)
        self._micro = CompiledDecoder(_micro_as_decoder(model), head=head)
        features = (*model.options.features[:-1], model.cfg.num_hidden_layers)
        self._taps = self._base.step.set_taps(features)
        self._micro.use([layer_cache(columns) for columns in self._micro_cache.storage()])
        self._micro.reach(len(self._taps) + model.options.max_steps)
        embedding = model.base.model.embed_tokens.weight
        assert isinstance(embedding, Tensor)
        self._group = DecodeGroup(
            self._base.step, self._micro.step, len(self._taps), embedding,
            _merge_weights(model), _stop_weights(model),
        )  # fmt: skip
        self._storage = StorageWatch(self.cache)
        self._rows: Tensor | None = None
        self._places = 0

    def feed(self, ids: Int[Tensor, "1 n"]) -> Float[Tensor, "1 vocab"]:
        """Append tokens, a slot each; the logits of the token that follows."""
        with torch.inference_mode():
            if ids.shape[1] > MOST_TOKENS:
                return self._feed_many(ids)
            return self._call(self.model.model.embed_tokens(ids[0]), 0)

    def feed_group(self, tokens: Sequence[int]) -> Float[Tensor, "1 vocab"]:
        """Append a group in one slot, at the position of its last token; the logits of the token that
        follows.

        Raises: ValueError for more tokens than a group has, or none."""
        with torch.inference_mode():
            logits = self._call(self._merged(tokens), len(tokens) - 1)
        if len(tokens) > 1:
            self.cache.note_tokens(len(tokens))
        return logits

    def greedy_group(self, fed: Sequence[int], most: int, ends: Collection[int]) -> list[int]:
        """Append a group in one slot; the next one, of at most `most` tokens, each the likeliest, until one
        of `ends` or the stop head ends it. Raises: as `feed_group`; ValueError for logits with NaN."""
        self._check_group(fed)
        start, shift = self._claim(1, len(fed) - 1)
        if len(fed) > 1:
            self.cache.note_tokens(len(fed))
        group = self._group(fed, start, shift, most, ends, self.hamburger.confidence)
        several, step = len(group) > 1, (self._micro if len(group) > 1 else self._base).step
        self._rows = step.logits[: step.shape.vocab_size][None]
        self._features, self._unread = self._taps, None if several else self._taps
        self._places = len(self._taps) + len(group) - 1 if several else 0
        return group

    def micro(self, token: int) -> Float[Tensor, "1 vocab"]:
        """Go on with the group by this token; the logits of the next one."""
        with torch.inference_mode():
            before = self._before(token)
            self._rows = self._micro(before, self._places)
        self._places += len(before)
        return self._rows[:, : self._vocab]

    @property
    def stop_logit(self) -> float:
        """Above 0 where the group's end is likelier than not."""
        if self._rows is None:
            raise ValueError("nothing was fed yet; a group begins with feed or feed_group.")
        return self._stop_rest(self._rows[0, self._vocab :].numpy())

    def _merged(self, tokens: Sequence[int]) -> Float[Tensor, "1 hidden"]:
        self._check_group(tokens)
        x = self._embed(tokens)
        return x if len(tokens) == 1 else torch.from_numpy(self._merge(x.float().numpy()))[None]

    def _feed_many(self, ids: Int[Tensor, "1 n"]) -> Float[Tensor, "1 vocab"]:
        """Of plain weights a long run of tokens is a product of matrices, which torch does best."""
        logits = super().feed(ids).float()
        assert self._hidden is not None
        self._rows = torch.cat([logits, self._stop[0](self._hidden.float())], 1)
        self._places = 0
        return logits

    def _call(self, x: Float[Tensor, "n hidden"], skipped: int) -> Float[Tensor, "1 vocab"]:
        """x goes to the next slots, and to positions `skipped` behind the next one."""
        start, shift = self._claim(len(x), skipped)
        self._rows = self._base(x, start, 1, shift)
        self._features = self._unread = self._taps
        self._places = 0
        return self._rows[:, : self._vocab]

    def _claim(self, slots: int, skipped: int) -> tuple[int, int]:
        """Make the next slots, at positions `skipped` behind the next one, ready to be written; the first of
        them, and how far positions run ahead."""
        cache, start = self.cache, self.cache.alike_slots()
        if start is None:
            raise CacheCannot(
                "be read by the compiled step", "layers or heads hold different slots; use a GroupRunner"
            )
        shift = int(cache.next_pos) - start + skipped
        cache.claim(slots, skipped)
        self._follow_storage()
        cache.count_reads()
        self._base.reach(start + slots + shift)
        return start, shift

    def _follow_storage(self) -> None:
        if self._storage.moved():
            self._base.use([layer_cache(columns) for columns in self.cache.storage()])


def group_runner(
    model: Hamburger, cache: Any = None, capacity: int = 0, *, selection: CachePolicy | None = None
) -> GroupRunner:
    """A `CompiledGroupRunner` where it can do what is asked, else a `GroupRunner`; what keeps a model slow
    that could be fast is announced."""
    parameter = next(model.parameters())
    elsewhere = parameter.device.type != "cpu" or parameter.dtype not in STORAGE_KINDS
    other = cache is not None and unfit_cache(cache) is not None
    if elsewhere or other or selection is not None or model.base.kv_cache_format is not None:
        return GroupRunner(model, cache, capacity, selection=selection)
    try:
        return CompiledGroupRunner(model, cache, capacity)
    except (CannotCompile, NoCompiler) as error:
        notice_fallback("group step", f"module by module instead of compiled calls ({error})")
        return GroupRunner(model, cache, capacity)


def _require_plain(model: Hamburger) -> None:
    if any(window is not None for window in model.cfg.windows):
        raise CannotCompile(
            "the base has windows, which count positions, and the compiled step counts slots."
        )
    for name, module in (("lm_head", model.base.lm_head), ("embed_tokens", model.base.model.embed_tokens)):
        if type(module) not in (nn.Linear, nn.Embedding):
            raise CannotCompile(
                f"{name} is a {type(module).__name__}; stacking the stop head takes plain weights."
            )


def _stacked_head(model: Hamburger) -> LinearKernel:
    """Output head and first map of the stop head."""
    head, first = model.base.lm_head, model.stop[0]
    assert isinstance(head, nn.Linear)
    assert isinstance(first, nn.Linear)
    weight = torch.cat([head.weight, first.weight.to(head.weight.dtype)]).detach()
    bias = torch.cat([weight.new_zeros(head.out_features), first.bias.detach()]).float()
    return dense_linear(weight, bias)


def _merge_weights(model: Hamburger) -> GroupMerge:
    m = model.embedder
    key_value = torch.cat([m.k_proj.weight, m.v_proj.weight]).detach()
    key_value_bias = torch.cat([m.k_proj.bias, m.v_proj.bias]).detach()
    return GroupMerge(
        m.q_proj.weight, m.q_proj.bias, key_value, key_value_bias, m.o_proj.weight, m.o_proj.bias,
        m.places.detach(), m.heads,
    )  # fmt: skip


def _stop_weights(model: Hamburger) -> GroupStop:
    second, last = model.stop[2], model.stop[4]
    assert isinstance(second, nn.Linear)
    assert isinstance(last, nn.Linear)
    return GroupStop(second.weight, second.bias, last.weight, last.bias)


def _micro_as_decoder(model: Hamburger) -> Decoder:
    """The micro decoder's layers in the shape that is compiled; embedding and head are not used."""
    decoder = Decoder(model.micro.cfg, device="meta")
    decoder.model.layers = model.micro.layers
    decoder.model.register_module("norm", model.micro.norm)  # perhaps an identity
    return decoder
