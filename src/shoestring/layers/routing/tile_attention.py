"""Dense attention inside many small tiles of queries and keys, with or without relative positions."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from shoestring.layers.local_attention import softmax_weights
from shoestring.layers.routing.relative_tables import RelativeTables


def attend_tiles(
    queries: Float[Tensor, "*batch tiles rows dim"],
    keys: Float[Tensor, "*batch tiles columns dim"],
    values: Float[Tensor, "*batch tiles columns dim_v"],
    seen: Bool[Tensor, "*#all rows columns"] | None,
    *,
    scale: float,
    causal: bool = False,
    relative: RelativeTables | None = None,
    shift: int = 0,
) -> Float[Tensor, "*batch tiles rows dim_v"]:
    """Attention of each tile by itself. seen: which keys a row sees, at least one; None: all of them, or with
    causal those up to its own place. relative: column c stands c − row − shift places behind the row."""
    if relative is None:
        q, k, v = (t.flatten(0, -4) if t.dim() > 3 else t[None] for t in (queries, keys, values))
        if seen is not None and seen.dim() > 3:
            seen = seen.expand(*queries.shape[:-2], *seen.shape[-2:]).flatten(0, -4)
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, is_causal=causal and seen is None, scale=scale
        )
        return out.reshape(*queries.shape[:-1], values.shape[-1])
    rows, columns = queries.shape[-2], keys.shape[-2]
    row = torch.arange(rows, device=queries.device)
    distance = torch.arange(columns, device=queries.device) - row[:, None] - shift
    if seen is None:
        seen = distance <= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    reach = max(rows + shift, columns)
    exact = torch.promote_types(queries.dtype, torch.float32)
    scores = (queries @ keys.transpose(-1, -2)).to(exact)
    scores = (scores + relative.scores(queries, distance, reach)) * scale
    weights = softmax_weights(scores, seen).to(values.dtype)
    return weights @ values + relative.outputs(weights, distance, reach)


def naive_row(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seen: list[tuple[int, int]],
    scale: float,
    relative: RelativeTables | None,
) -> Tensor:
    """One query over the keys (position, distance) that it sees."""
    positions, distances = [j for j, _ in seen], torch.tensor([apart for _, apart in seen])
    keys, values = k[positions], v[positions]
    if relative is not None:
        largest = relative.max_relative_position
        rows = distances.clamp(-largest, largest) + largest
        keys, values = keys + relative.keys[rows], values + relative.values[rows]
    return (keys @ q * scale).softmax(0) @ values
