"""ZipVL: the important tokens of a prompt attend among themselves and are cached in more bits than the rest.

How many are important is found anew in every layer and for every prompt, from the attention of a few probe
rows. While decoding, every 100 tokens are sorted and compressed by the attention of the newest one.

Source: He et al. 2024, "ZipVL: Efficient Large Vision-Language Models with Dynamic Token Sparsification and
KV Cache Compression", v1, section 4 and Algorithm 1; v2 drops what v1 keeps in 2 bits.
"""

import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from shoestring.generation.important_tokens import Attended
from shoestring.generation.selection import marked_slots
from shoestring.generation.slot_cache import SlotCache
from shoestring.generation.tier_cache import TierCache, tiered_attention
from shoestring.generation.zipvl_options import ZipVLOptions, probe
from shoestring.layers.attention import AttendOut, attend
from shoestring.layers.attention_masks import Causal, KVView
from shoestring.layers.gathered_attention import attention_of_rows, gathered_attention
from shoestring.models.hooks import AttendCall, AttnPlan, Context
from shoestring.models.protocols import HookConflict
from shoestring.numbers.tier_format import FEW_TOKENS, TierFormat


class ZipVL:
    """The policy for `generate(…, cache=tier_cache(model), selection=ZipVL())`, and its hook.

    A prompt is read in one pass, on an empty cache. Afterwards `kept` holds, for each layer, the share of the
    prompt's tokens that were important, mean over samples and KV heads. Rows of the prompt that were not
    important have approximate logits: asking for them gives a warning.

    Sliding-window layers count, for each key, the probe rows that have it in their window; the window of
    every layer of a `Decoder` is known, other models do not take a policy.
    """

    whole_prompt = True
    takes_drafts = True

    def __init__(self, options: ZipVLOptions = ZipVLOptions()) -> None:  # noqa: B008  (frozen)
        self.options = options
        self.kept: dict[int, float] = {}
        self._read: set[int] = set()
        self._prompt_read = self._approximate = False
        self._tails: dict[int, list[Tensor]] = {}

    @property
    def hooks(self) -> Sequence[object]:
        return (self,)

    @property
    def cache_form(self) -> TierFormat:
        """Tiers of these widths."""
        return self.options.tiers

    def start(self, cache: SlotCache) -> None:
        """Raises: TypeError for another cache; ValueError for one that is not empty."""
        if not isinstance(cache, TierCache):
            raise TypeError(
                f"ZipVL stores tokens in tiers, which a {type(cache).__name__} has not; pass "
                "cache=tier_cache(model)."
            )
        if any(int(cache.length(layer).max()) for layer in range(cache.n_layers)):
            raise ValueError("the cache holds tokens already; ZipVL starts with an empty one.")
        self.kept, self._tails = {}, {}
        self._read, self._prompt_read, self._approximate = set(), False, False

    def after_prefill(self, cache: SlotCache) -> None:
        """What is fed from now on is decoded."""
        self._prompt_read = True

    def after_step(self, cache: SlotCache) -> None:
        """Compress the oldest decoded tokens of every layer that has enough of them."""
        assert isinstance(cache, TierCache)
        size = self.options.block_tokens
        for layer, tails in self._tails.items():
            if int(cache.store(layer).tail.counts.min()) >= size:
                self._compress_block(cache, layer, tails)

    def attn_plan(self, layer: int, q: Tensor, pos: Tensor, ctx: Context) -> AttnPlan:
        """Takes the place of the attention of a prompt, and of decoding."""
        if not isinstance(ctx.cache, TierCache):
            raise HookConflict(f"layer {layer}: ZipVL stores tokens in tiers; pass cache=tier_cache(model).")
        if layer in self._read:
            if q.shape[2] > 1 and not self._prompt_read:
                raise ValueError(
                    f"layer {layer} has read a prompt already; ZipVL reads it in one pass: feed it whole, "
                    "and call after_prefill before decoding several tokens at once."
                )
            return AttnPlan(attend=self._decode)
        asked = ctx.logits is not None and not (isinstance(ctx.logits, str) and ctx.logits == "last")
        return AttnPlan(attend=self._prompt_with_warning if asked else self._prompt)

    def _decode(self, call: AttendCall) -> AttendOut:
        cache = call.cache
        assert isinstance(cache, TierCache)
        self._check_need(call)
        out, tails = tiered_attention(call.q, cache, call.layer, call.pos, call.scale, call.window)
        self._tails[call.layer] = tails
        return AttendOut(out)

    def _prompt_with_warning(self, call: AttendCall) -> AttendOut:
        found = self._prompt(call)
        if self.options.sparse and self.kept[call.layer] < 1 and not self._approximate:
            self._approximate = True
            warnings.warn(
                "logits of the whole prompt are asked for, but ZipVL computes only those of important tokens "
                "exactly; ask for the last one, or use sparse=False.",
                stacklevel=2,
            )
        return found

    def _prompt(self, call: AttendCall) -> AttendOut:
        cache = call.cache
        assert isinstance(cache, TierCache)
        self._check_need(call)
        view, mask = call.read()
        if not isinstance(mask, Causal) or call.policy is not None:
            raise ValueError(
                f"layer {call.layer}: ZipVL needs causal attention: counts c_j assume it; the mask is "
                f"{type(mask).__name__}{' with a policy' if call.policy is not None else ''}."
            )
        lengths = _lengths(call)
        if lengths != cache.length(call.layer).tolist():
            raise ValueError(
                f"layer {call.layer}: the cache held tokens before the prompt; ZipVL starts with an "
                "empty one."
            )
        marks = [
            self._marked(call, call.q[i : i + 1, :, :n], view.k[i : i + 1, :, :n], call.pos[i : i + 1, :n])
            for i, n in enumerate(lengths)
        ]
        self._read.add(call.layer)
        shares = [int(marked.sum()) / marked.numel() for marked in marks if marked.shape[1]]
        self.kept[call.layer] = sum(shares) / len(shares)
        out = self._attend(call, view, marks)
        # A short prompt stays in full.
        bits = [
            torch.full_like(m, 16, dtype=torch.long) if self._is_short(m.shape[1]) else self._bits(m)
            for m in marks
        ]
        self._store(cache, call.layer, marks, bits)
        return out

    def _attend(self, call: AttendCall, view: KVView, marks: list[Tensor]) -> AttendOut:
        """Attention of a prompt, among the marked tokens or dense."""
        everywhere = len(marks) == 1 and marks[0].shape[1] == call.q.shape[2]
        if self.options.sparse and everywhere and len(marks[0]) == 1 and self.kept[call.layer] < 1:
            index = marks[0][0].nonzero()[:, 0]
            out = attention_of_rows(call.q, view.k, view.v, index, call.pos, call.scale, call.window)
            return AttendOut(out, rows=index[None])
        outs = []
        for sample, marked in enumerate(marks):
            at, n = slice(sample, sample + 1), marked.shape[1]
            q, k, v, pos = call.q[at, :, :n], view.k[at, :, :n], view.v[at, :, :n], call.pos[at, :n]
            if self.options.sparse:
                outs.append(gathered_attention(q, k, v, marked, pos, call.scale, call.window))
            else:
                mask = Causal(pos, pos[:, None], newest=True)
                outs.append(attend(q, KVView(k, v, pos[:, None]), mask, call.scale, call.window).out)
        return AttendOut(_padded(outs, call.q.shape[2]))

    def _marked(self, call: AttendCall, q: Tensor, k: Tensor, pos: Tensor) -> Bool[Tensor, "rows n"]:
        """The important tokens of one sample, in one row for all heads or one per KV head."""
        if self._is_short(q.shape[2]):
            rows = 1 if self.options.per == "layer" else k.shape[1]
            return torch.ones(rows, q.shape[2], dtype=torch.bool, device=q.device)
        attended = probe(q, k, pos, call.layer, call.scale, call.window, self.options)
        return self.options.choice.mark(attended)

    def _is_short(self, n: int) -> bool:
        return n < 2 * self.options.least

    def _compress_block(self, cache: TierCache, layer: int, tails: list[Tensor]) -> None:
        """The newest token has seen all of a block, so that its attention needs no normalisation."""
        marks = []
        for tail in tails:
            mass = tail[:, : self.options.block_tokens]
            mass = mass if self.options.per == "kv_head" else mass.mean(0, keepdim=True)
            n = mass.shape[1]
            unforced = torch.zeros(n, dtype=torch.bool, device=mass.device)
            attended = Attended(layer, mass, torch.ones(n, dtype=torch.long, device=mass.device), unforced)
            marks.append(self.options.choice.mark(attended))
        self._store(cache, layer, marks, [self._bits(marked) for marked in marks])

    def _bits(self, marked: Bool[Tensor, "rows n"]) -> Int[Tensor, "rows n"]:
        """Of each token. Too few tokens for channels in 2 bits are stored like the important ones."""
        form = self.options.tiers
        if form.low_bits == 2:
            marked = marked | (marked.sum(-1, keepdim=True) > marked.shape[1] - FEW_TOKENS)
        return marked * (form.high_bits - form.low_bits) + form.low_bits

    def _store(self, cache: TierCache, layer: int, marks: list[Tensor], bits: list[Tensor]) -> None:
        """Compress the oldest tokens in full, as many of each sample as it has marks; or drop some."""
        start = cache.store(layer).grouped[:, 0]
        if self.options.low == "drop":
            kept = torch.zeros(cache.batch, cache.store(layer).table.longest, dtype=torch.bool)
            for sample, marked in enumerate(marks):
                kept[sample, : int(cache.length(layer)[sample])] = True
                kept[sample, int(start[sample]) :][: marked.shape[1]] = marked[0]
            cache.evict(layer, marked_slots(kept.to(start.device)))
            bits = [part[:, marked[0]] for part, marked in zip(bits, marks, strict=True)]
        width = max(part.shape[1] for part in bits)
        tiers = torch.full((cache.batch, bits[0].shape[0], width), 16, device=start.device)
        slots = torch.full((cache.batch, width), -1, device=start.device)
        for sample, part in enumerate(bits):
            tiers[sample, :, : part.shape[1]] = part
            slots[sample, : part.shape[1]] = start[sample] + torch.arange(part.shape[1], device=start.device)
        cache.recompress(layer, slots, tiers)

    def _check_need(self, call: AttendCall) -> None:
        if call.need:
            raise HookConflict(
                f"layer {call.layer}: another hook needs {', '.join(sorted(call.need))} of an attention that "
                "ZipVL computes among some tokens only."
            )


def _padded(outs: list[Tensor], n: int) -> Float[Tensor, "batch heads n dim"]:
    """Samples in one tensor, 0 behind the end of each; one that fills it is not copied."""
    if len(outs) == 1 and outs[0].shape[2] == n:
        return outs[0]
    return torch.cat([F.pad(out, (0, 0, 0, n - out.shape[2])) for out in outs])


def _lengths(call: AttendCall) -> list[int]:
    """Tokens of each sample. Raises: ValueError for padding in front of a token."""
    present = call.pos >= 0
    if bool(present.all()):
        return [present.shape[1]] * len(present)
    if bool((present[:, 1:] & ~present[:, :-1]).any()):
        raise ValueError(
            "the batch is padded on the left, and padding would be probed; put it at the end of the rows, "
            "with position -1."
        )
    return present.sum(1).tolist()
