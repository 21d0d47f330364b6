"""Attention of a few new tokens in two passes over the keys, with the values of the likeliest slots only.

Pass 1 uses the high bits of the keys. A row whose largest probability p0 is below theta asks for the low bits
and is computed once more: an error ds of its score moves the row by 2 p0 (1 − p0) |ds|, little where one
probability dominates. Of the values, each row reads those of its largest probabilities.

Source: Wang et al. 2021, "SpAtten", sections III-C and III-D. Kept probabilities are not scaled up again
(unconfirmed in the paper; the published hardware does not): `renorm` does.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shoestring.generation.selection import top_k
from shoestring.numbers.bit_planes import encode_symmetric


@runtime_checkable
class KeySource(Protocol):
    """Keys and values that are read in parts; see `PlaneView`."""

    def coarse_keys(self, *, mid: bool = False) -> Tensor: ...

    def keys(self) -> Tensor: ...

    def values(self) -> Tensor: ...


@dataclass(frozen=True)
class ProgressiveAttention:
    """theta: 0 never asks for low bits, 1 always. v_keep: share of the slots whose values a row reads.

    renorm: scale the kept probabilities up to a sum of 1. query_bits: None leaves queries in full. mid: see
    `BitPlanes.coarse`. Raises: ValueError for theta outside [0, 1] or v_keep outside (0, 1].
    """

    theta: float = 0.05
    v_keep: float = 0.3
    renorm: bool = False
    query_bits: int | None = None
    mid: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.theta <= 1:
            raise ValueError(f"theta={self.theta} is a probability; it must be from 0 to 1.")
        if not 0 < self.v_keep <= 1:
            raise ValueError(f"v_keep={self.v_keep} must be above 0 and at most 1.")
        if self.query_bits is not None and not 2 <= self.query_bits <= 16:
            raise ValueError(f"query_bits={self.query_bits} must be from 2 to 16, or None.")


@dataclass(frozen=True)
class ProgressiveOut:
    """By KV head and group: out, probabilities, which rows asked for low bits, which values each read."""

    out: Float[Tensor, "batch kv_heads group n dim"]
    p: Float[Tensor, "batch kv_heads group n slots"]
    refetch: Bool[Tensor, "batch kv_heads group n"]
    read: Bool[Tensor, "batch kv_heads group n slots"]


def progressive_attention(
    q: Float[Tensor, "batch heads n dim"],
    source: KeySource,
    seen: Bool[Tensor, "batch rows n slots"],
    scale: float,
    how: ProgressiveAttention,
    layer: int,
) -> ProgressiveOut:
    """Both passes, for all heads at once. seen: which slots a row sees.

    Raises: FloatingPointError for scores that are NaN, naming layer and head.
    """
    if how.query_bits is not None:
        codes, step = encode_symmetric(q, how.query_bits, f"queries of layer {layer}")
        q = codes.to(q.dtype) * step.to(q.dtype)[..., None]
    values = source.values()
    q = q.unflatten(1, (values.shape[1], -1)).to(torch.promote_types(q.dtype, torch.float32))
    seen = seen[:, :, None]
    p = _softmax(q, source.coarse_keys(mid=how.mid), seen, scale, layer)
    refetch = (p.amax(-1) < how.theta) & seen.any(-1)
    seen = seen.expand(p.shape)
    if bool(refetch.any()):
        # Only of KV heads of which a query asks.
        asked = refetch.any((2, 3)).nonzero(as_tuple=True)
        again = _softmax(q[asked][None], source.keys()[asked][None], seen[asked][None], scale, layer)[0]
        p = p.index_put(asked, torch.where(refetch[asked][..., None], again, p[asked]))
    if how.v_keep == 1:
        return ProgressiveOut(_by_group(p, values), p, refetch, seen)
    # At least one value: a row of few slots would else give nothing at all.
    counts = (how.v_keep * seen.sum(-1)).floor().long().clamp(min=1)
    read = _likeliest(p, counts, seen)
    kept = p * read
    if how.renorm:
        kept = kept / kept.sum(-1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny)
    return ProgressiveOut(_by_group(kept, values), p, refetch, read)


def naive_progressive_attention(
    q: Float[Tensor, " dim"],
    coarse: Float[Tensor, "slots dim"],
    fine: Float[Tensor, "slots dim"],
    values: Float[Tensor, "slots dim"],
    scale: float,
    how: ProgressiveAttention,
) -> tuple[Float[Tensor, " dim"], bool]:
    """One query of one head that sees all slots, and whether it asked: what `progressive_attention` means."""
    p = (coarse @ q * scale).softmax(0)
    asked = bool(p.max() < how.theta)
    if asked:
        p = (fine @ q * scale).softmax(0)
    count = max(1, math.floor(how.v_keep * len(p)))
    kept = sorted(range(len(p)), key=lambda j: (-float(p[j]), j))[:count]
    total = sum(p[j] for j in kept) if how.renorm else 1.0
    out = torch.zeros_like(values[0])
    for j in kept:
        out = out + p[j] / total * values[j]
    return out, asked


def _likeliest(
    p: Float[Tensor, "*rows slots"], counts: Int[Tensor, "*rows"], seen: Bool[Tensor, "*rows slots"]
) -> Bool[Tensor, "*rows slots"]:
    """`top_k` of probabilities, which are numbers and 0 where nothing is seen."""
    count = int(counts.max())
    if count == int(counts.min()):
        likely = p >= p.topk(count, sorted=False).values.amin(-1, keepdim=True)
        if count and int(likely.sum()) == count * counts.numel():
            return likely & seen
    return top_k(p, counts, valid=seen, what="probabilities")


def _by_group(
    rows: Float[Tensor, "batch kv_heads group n inner"], matrix: Float[Tensor, "batch kv_heads inner outer"]
) -> Float[Tensor, "batch kv_heads group n outer"]:
    """The product of all rows of a KV head with its matrix, which is read once."""
    return (rows.flatten(2, 3) @ matrix.to(rows.dtype)).unflatten(2, rows.shape[2:4])


def _softmax(q: Tensor, k: Tensor, seen: Tensor, scale: float, layer: int) -> Tensor:
    scores = _by_group(q, k.mT) * scale
    if bool(scores.isnan().any()):
        head = int(scores.isnan().flatten(1, 2).any(-1).any(-1).any(0).nonzero()[0])
        raise FloatingPointError(
            f"scores of layer {layer}, head {head}, are NaN; check the model's weights and inputs."
        )
    # A row that sees nothing is padding.
    return scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num()
