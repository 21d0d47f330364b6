"""Decoding with SpAtten: what it reads and what that costs in perplexity, beside other rankings.

Every variant goes on from the same prompt, read once by the dense model while scores add up; then each has
the cache of that prompt in its own format.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from shoestring.generation.plane_cache import PlaneCache, PlaneFormat
from shoestring.generation.spatten import (
    KeepSchedule,
    ProgressiveAttention,
    SpAtten,
    gpt2_medium_tokens,
    linear_schedule,
    share_schedule,
)
from shoestring.generation.spatten.policy import InvertedRank, RandomRank
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_step import Want
from shoestring.numbers.bit_planes import BitPlanes
from shoestring.systems.spatten_claims import PERPLEXITY, RANDOM, TRAFFIC_16, TRAFFIC_32
from shoestring.yardstick.comparison import Row

OURS, DENSE, CHANCE, RAW, INVERTED, TRACE = (
    "ours", "dense", "random ranking", "raw sum", "inverted ranking", "published schedule",
)  # fmt: skip
FULL = PlaneFormat(None, None)


@dataclass(frozen=True)
class Decoded:
    """bits: read by all decoded tokens. refetch: share of queries that read low bits."""

    perplexity: float
    bits: int
    refetch: float


@torch.inference_mode()
def decode_variants(
    model: Decoder, windows: Int[Tensor, "windows length"], decoded: int, seed: int
) -> dict[str, Decoded]:
    """The last `decoded` tokens of the windows, predicted one by one by each variant."""
    start = windows.shape[1] - decoded - 1
    base = SpAtten(attention=ProgressiveAttention(theta=0.0, v_keep=1.0))
    prompt = base.cache(model, FULL, batch=len(windows), capacity=windows.shape[1])
    base.start(prompt)
    model(windows[:, :start], cache=prompt, hooks=base.hooks, want=Want(logits=None))
    found = {}
    for name, (form, policy) in variants(model.cfg.num_hidden_layers, windows.shape[1], seed).items():
        cache = in_format(prompt, form, windows.shape[1])
        policy.start(cache)
        policy.scores = base.scores.clone()
        losses = []
        for at in range(start, windows.shape[1] - 1):
            out = model(windows[:, at : at + 1], cache=cache, hooks=policy.hooks, want=Want(logits="last"))
            losses.append(F.cross_entropy(out.logits[:, -1].float(), windows[:, at + 1]).item())
        traffic = cache.traffic
        found[name] = Decoded(
            math.exp(sum(losses) / len(losses)),
            traffic.k_bits + traffic.v_bits,
            traffic.refetches / traffic.queries,
        )
    return found


def variants(layers: int, length: int, seed: int) -> dict[str, tuple[PlaneFormat, SpAtten]]:
    """By name; all but the dense one prune, those with the same cache differ in their ranking only."""
    half = linear_schedule(layers, length, 0.5, unpruned=round(0.2 * layers))
    published = gpt2_medium_tokens(1000).counts
    shares = [published[layer * len(published) // layers] / 1000 for layer in range(layers)]
    how, small, large = ProgressiveAttention(0.05, 0.3), PlaneFormat(), PlaneFormat(BitPlanes(8, 4), 8)

    def ranked(tokens: KeepSchedule, **options: object) -> SpAtten:
        return SpAtten(tokens, attention=how, **options)  # type: ignore[arg-type]

    return {
        DENSE: (FULL, SpAtten(attention=ProgressiveAttention(theta=0.0, v_keep=1.0))),
        OURS: (small, ranked(half, normalised=True)),
        CHANCE: (small, ranked(half, rank=RandomRank(seed))),
        RAW: (small, ranked(half)),
        INVERTED: (small, ranked(half, normalised=True, rank=InvertedRank())),
        TRACE: (large, ranked(share_schedule(shares, length))),
    }


def in_format(cache: PlaneCache, form: PlaneFormat, capacity: int) -> PlaneCache:
    """The same tokens in another format."""
    other = PlaneCache(
        cache.n_layers, cache.batch, cache.n_kv_heads, cache.head_dim, form, capacity=capacity,
        device=cache.next_pos.device,
    )  # fmt: skip
    for layer in range(cache.n_layers):
        view = cache.view(layer)
        other.append(layer, view.k, view.v, view.pos[:, 0].expand(cache.batch, -1).long())
    return other


def decode_rows(found: dict[str, Decoded], tokens: int) -> tuple[list[Row], list[str]]:
    """Rows and notes; tokens: decoded by each variant."""
    dense, ours = found[DENSE], found[OURS]
    bits, read = dense.bits / tokens, ours.bits / tokens
    rows = [
        TRAFFIC_32.row(baseline=bits, method=read),
        TRAFFIC_16.row(baseline=bits / 2, method=read, against="the cache in float16"),
        PERPLEXITY.row(baseline=dense.perplexity, method=ours.perplexity),
        RANDOM.row(baseline=found[CHANCE].perplexity, method=ours.perplexity, against=CHANCE),
    ]
    for name in (RAW, INVERTED, TRACE):
        rows.append(
            Row(
                metric=f"perplexity of decoded tokens, {name}", kind="quality", unit="", better="lower",
                baseline=dense.perplexity, method=found[name].perplexity,
            )
        )  # fmt: skip
    notes = [
        f"{name}: {dense.bits / d.bits:.2f}x fewer bits than float32, {d.refetch:.1%} of queries ask"
        for name, d in found.items()
        if name != DENSE
    ]
    return rows, notes
