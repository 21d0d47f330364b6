"""Decoding with SpAtten: what it reads and what that costs in perplexity, beside other rankings.

Every variant goes on from the same prompts, read once by the dense model while scores add up, and is judged
token by token against the others: paired differences tell apart what perplexities of few tokens cannot.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from shoestring.generation.decoded_planes import DecodedPlaneCache
from shoestring.generation.plane_cache import PlaneCache, PlaneFormat, PlaneTraffic
from shoestring.generation.spatten import (
    KeepSchedule,
    ProgressiveAttention,
    SpAtten,
    TokenScores,
    gpt2_medium_tokens,
    linear_schedule,
    share_schedule,
)
from shoestring.generation.spatten.policy import InvertedRank, RandomRank, Rank
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_step import Want
from shoestring.numbers.bit_planes import BitPlanes
from shoestring.systems.card import Claim
from shoestring.systems.spatten.claims import PERPLEXITY, RANDOM, TRAFFIC_16, TRAFFIC_32
from shoestring.yardstick.comparison import Row
from shoestring.yardstick.paired_difference import paired_difference

DENSE, OURS, CHANCE = "dense", "ours", "random ranking"
FULL = PlaneFormat(None, None)
GROUP, CONTROLLED = 44, 4
"""Windows that are decoded together, and windows that controls are judged on."""

SMALL, LARGE = PlaneFormat(), PlaneFormat(BitPlanes(8, 4), 8)
HARDWARE = ProgressiveAttention(theta=0.05, v_keep=0.3)
CORRECTED = ProgressiveAttention(theta=0.05, v_keep=0.3, renorm=True, mid=True)
"""Two losses of the hardware's arithmetic are made good, at no bit more: what pruned values weighed is given
to the others, and high bits stand for the middle of what the low bits can be. Steps are of one token here, so
that rounding down would shift the scores of a token by its own step; one step for all tokens would shift all
alike, but is coarser, which costs more."""


@dataclass
class Decoded:
    """What a variant did: nats of each token, bits read, queries, and those that asked for low bits."""

    nll: list[Float[Tensor, "windows tokens"]] = field(default_factory=list)
    bits: int = 0
    queries: int = 0
    asked: int = 0

    @property
    def by_window(self) -> Float[Tensor, " windows"]:
        """Nats a token, of each window."""
        return torch.cat(self.nll).double().mean(1)

    @property
    def tokens(self) -> int:
        """How many were decoded."""
        return sum(part.numel() for part in self.nll)

    def add(self, nll: Tensor, traffic: PlaneTraffic) -> None:
        """Another group of windows."""
        self.nll.append(nll)
        self.bits += traffic.k_bits + traffic.v_bits
        self.queries += traffic.queries
        self.asked += traffic.refetches


@dataclass(frozen=True)
class Variant:
    """A way to decode. control: judged on the first windows only, as many as `CONTROLLED`."""

    name: str
    tokens: KeepSchedule
    attention: ProgressiveAttention = CORRECTED
    form: PlaneFormat = SMALL
    rank: Callable[[int], Rank] | None = None
    normalised: bool = True
    control: bool = False

    def policy(self, seed: int) -> SpAtten:
        """The policy, whose ranking draws by the seed if it draws."""
        rank = None if self.rank is None else self.rank(seed)
        return SpAtten(self.tokens, attention=self.attention, normalised=self.normalised, rank=rank)


def variants(layers: int, length: int) -> list[Variant]:
    """All but the dense one; those of one format stand side by side."""
    half = linear_schedule(layers, length, 0.5, unpruned=round(0.2 * layers))
    published = gpt2_medium_tokens(1000).counts
    shares = [published[layer * len(published) // layers] / 1000 for layer in range(layers)]
    return [
        Variant(OURS, half),
        Variant(CHANCE, half, rank=RandomRank),
        Variant("raw sum", half, normalised=False, control=True),
        Variant("inverted ranking", half, rank=lambda seed: InvertedRank(), control=True),
        Variant("arithmetic of the hardware", half, HARDWARE, control=True),
        Variant(
            "raw sum, published schedule, arithmetic of the hardware", share_schedule(shares, length),
            HARDWARE, LARGE, normalised=False, control=True,
        ),
    ]  # fmt: skip


@torch.inference_mode()
def decode_variants(
    model: Decoder, windows: Int[Tensor, "windows length"], decoded: int, seed: int
) -> dict[str, Decoded]:
    """The last `decoded` tokens of the windows, predicted one by one by each variant."""
    found: dict[str, Decoded] = {}
    rest = windows[CONTROLLED:]
    groups = [windows[:CONTROLLED], *(rest.split(GROUP) if len(rest) else ())]
    for at, group in enumerate(groups):
        prompt, scores = read_prompts(model, group[:, : -decoded - 1])
        cache: PlaneCache | None = None
        held: tuple[PlaneFormat, bool] | None = None
        for variant in variants(model.cfg.num_hidden_layers, windows.shape[1]):
            if variant.control and at:
                continue
            wanted = variant.form, variant.attention.mid
            if cache is None or held != wanted:
                cache, held = in_format(prompt, *wanted, group.shape[1]), wanted
            policy = variant.policy(seed + at)
            nll = _decode(model, cache, policy, scores, group[:, -decoded - 1 :])
            found.setdefault(variant.name, Decoded()).add(nll, cache.traffic)
        found.setdefault(DENSE, Decoded()).add(*_dense(model, prompt, group[:, -decoded - 1 :]))
    return found


def read_prompts(model: Decoder, prompts: Int[Tensor, "windows n"]) -> tuple[PlaneCache, TokenScores]:
    """Their keys and values in full, and what each token was attended to."""
    reader = SpAtten(attention=ProgressiveAttention(theta=0.0, v_keep=1.0))
    cache = reader.cache(model, FULL, batch=len(prompts), capacity=prompts.shape[1])
    reader.start(cache)
    model(prompts, cache=cache, hooks=reader.hooks, want=Want(logits=None))
    return cache, reader.scores


def in_format(cache: PlaneCache, form: PlaneFormat, mid: bool, capacity: int) -> DecodedPlaneCache:
    """The same tokens in another format."""
    other = DecodedPlaneCache(
        cache.n_layers, cache.batch, cache.n_kv_heads, cache.head_dim, form, mid=mid, capacity=capacity,
        device=cache.next_pos.device,
    )  # fmt: skip
    for layer in range(cache.n_layers):
        view = cache.view(layer)
        other.append(layer, view.k, view.v, view.pos[:, 0].expand(cache.batch, -1).long())
    return other


def _decode(
    model: Decoder, cache: PlaneCache, policy: SpAtten, scores: TokenScores, tokens: Int[Tensor, "windows n"]
) -> Float[Tensor, "windows m"]:
    """Feed the tokens one by one, then forget them."""
    policy.start(cache)
    policy.scores = scores.clone()
    cache.traffic = PlaneTraffic()
    mark = cache.mark()
    nll = []
    for at in range(tokens.shape[1] - 1):
        out = model(tokens[:, at : at + 1], cache=cache, hooks=policy.hooks, want=Want(logits="last"))
        nll.append(F.cross_entropy(out.logits[:, -1].float(), tokens[:, at + 1], reduction="none"))
    cache.rollback(mark)
    return torch.stack(nll, 1)


def _dense(
    model: Decoder, prompt: PlaneCache, tokens: Int[Tensor, "windows n"]
) -> tuple[Float[Tensor, "windows m"], PlaneTraffic]:
    """The model itself, all tokens at once; bits: of all keys and values in float32, at each token."""
    windows, start, steps = len(tokens), int(prompt.next_pos[0]), tokens.shape[1] - 1
    logits = model(tokens[:, :-1], cache=prompt).logits.float()
    nll = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    keys = windows * sum(range(start + 1, start + 1 + steps))
    bits = keys * prompt.n_layers * prompt.n_kv_heads * prompt.head_dim * 32
    return nll.view(windows, -1), PlaneTraffic(bits, bits)


def decode_rows(found: dict[str, Decoded]) -> tuple[list[Row], list[str]]:
    """Rows and notes."""
    dense, ours = found[DENSE], found[OURS]
    bits, read = dense.bits / dense.tokens, ours.bits / ours.tokens
    rows = [
        TRAFFIC_32.row(baseline=bits, method=read),
        TRAFFIC_16.row(baseline=bits / 2, method=read, against="the cache in float16"),
        _perplexity(PERPLEXITY, ours, dense, ""),
        _perplexity(RANDOM, ours, found[CHANCE], CHANCE),
    ]
    others = [name for name in found if name not in (DENSE, OURS)]
    rows += [_perplexity(f"perplexity of decoded tokens, {name}", found[name], dense, "") for name in others]
    return rows, list(_notes(found))


def _perplexity(what: Claim | str, method: Decoded, baseline: Decoded, against: str) -> Row:
    """A row of perplexities on the windows that both have, with the interval of their ratio over windows."""
    ours = method.by_window
    theirs = baseline.by_window[: len(ours)]
    spread: tuple[float, float] | None = None
    if len(ours) > 1:
        low, high = paired_difference(ours, theirs)["spread"]
        spread = math.exp(low), math.exp(high)
    before, after = theirs.mean().exp().item(), ours.mean().exp().item()
    if isinstance(what, Claim):
        return what.row(baseline=before, method=after, spread=spread, against=against)
    return Row(
        metric=what, kind="quality", unit="", better="lower", baseline=before, method=after, spread=spread,
        against=against,
    )  # fmt: skip


def _notes(found: dict[str, Decoded]) -> Iterable[str]:
    each = found[DENSE].bits / found[DENSE].tokens
    for name, decoded in found.items():
        if name != DENSE:
            yield (
                f"{name}: {each * decoded.tokens / decoded.bits:.2f}x fewer bits than float32, "
                f"{decoded.asked / decoded.queries:.1%} of queries ask; {decoded.tokens} tokens in "
                f"{len(decoded.by_window)} windows"
            )
