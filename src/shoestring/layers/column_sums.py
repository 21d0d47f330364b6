"""How much attention each key gets from some of the rows, without their output.

a_j = Σ over rows i and the query heads of a KV head of p_ij, c_j = rows that may see j. What `attend` gives
with need={"colsum", "colcount"}, less the product with the values and in blocks made for few rows: compiled
for float32 on the CPU, in torch where a gradient is wanted and for all else.

Source: He et al. 2024, "ZipVL", section 4.1 (probe rows); Zhang et al. 2023, "H2O", section 3 (the sums).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shoestring.errors import NoCompiler
from shoestring.kernels.column_sums import compiled_column_sums, rows_that_see
from shoestring.layers.attention import attend
from shoestring.layers.attention_masks import Causal, KVView
from shoestring.notices import notice_fallback

BLOCK_SCORES = 1 << 19
"""Scores of all heads that exist at once: few enough to stay in a cache of the processor."""


def column_sums(
    q: Float[Tensor, "batch heads m dim"],
    k: Float[Tensor, "batch kv_heads n dim"],
    pos_q: Int[Tensor, "batch m"],
    pos_k: Int[Tensor, "batch n"],
    scale: float,
    window: int | None = None,
) -> tuple[Float[Tensor, "batch kv_heads n"], Int[Tensor, "batch n"]]:
    """(a, c) of rows at positions `pos_q` over keys at positions `pos_k`; window: as in `attend`.

    At least float32 inside. Raises: ValueError for heads that do not group, a window below 1, or a row that
    sees no key.
    """
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads are no multiple of {k.shape[1]} KV heads.")
    if window is not None and window < 1:
        raise ValueError(f"window={window} must be 1 or more.")
    if _compiles(q, k):
        try:
            found = [
                compiled_column_sums(*parts, scale, window) for parts in zip(q, k, pos_q, pos_k, strict=True)
            ]
            if len(found) == 1:
                return found[0][0][None], found[0][1][None]
            sums, counts = (torch.stack(part) for part in zip(*found, strict=True))
            return sums, counts
        except NoCompiler as error:
            notice_fallback("column_sums", f"blocks of rows in torch instead of the compiled loop ({error})")
    return _by_blocks(q, k, pos_q, pos_k, scale, window)


def naive_column_sums(
    q: Float[Tensor, "batch heads m dim"],
    k: Float[Tensor, "batch kv_heads n dim"],
    pos_q: Int[Tensor, "batch m"],
    pos_k: Int[Tensor, "batch n"],
    scale: float,
    window: int | None = None,
) -> tuple[Float[Tensor, "batch kv_heads n"], Int[Tensor, "batch n"]]:
    """The statistics of `attend`: the meaning of `column_sums`."""
    found = attend(
        q, KVView(k, k, pos_k[:, None]), Causal(pos_q, pos_k[:, None]), scale, window,
        need=("colsum", "colcount"),
    )  # fmt: skip
    assert found.colsum is not None
    assert found.colcount is not None
    return found.colsum, found.colcount[:, 0]


def _compiles(q: Tensor, k: Tensor) -> bool:
    """Whether the compiled loop is for these."""
    plain = q.dtype == k.dtype == torch.float32 and q.device.type == k.device.type == "cpu"
    return plain and not (torch.is_grad_enabled() and (q.requires_grad or k.requires_grad))


def _by_blocks(
    q: Tensor, k: Tensor, pos_q: Tensor, pos_k: Tensor, scale: float, window: int | None
) -> tuple[Tensor, Tensor]:
    exact = torch.promote_types(q.dtype, torch.float32)
    q, keys = q.to(exact) * scale, k.to(exact).transpose(-1, -2)
    sums = keys.new_zeros(k.shape[0], k.shape[1], k.shape[2])
    step = max(1, BLOCK_SCORES // max(1, q.shape[1] * k.shape[2]))
    for start in range(0, q.shape[2], step):
        part, at = q[:, :, start : start + step], pos_q[:, start : start + step]
        # Keys behind the last that any of these rows sees cost nothing.
        near = (pos_k <= at.amax(1, keepdim=True)).any(0).nonzero()
        stop = int(near.max()) + 1 if len(near) else 0
        scores = part.unflatten(1, (k.shape[1], -1)).flatten(2, 3) @ keys[..., :stop]
        # What all of these rows see needs no mask: most of it, where rows and keys are in order.
        whole = 0 if window is not None else _leading((pos_k[:, :stop] <= at.amin(1, keepdim=True)).all(0))
        behind = at[:, :, None] - pos_k[:, None, whole:stop]
        seen = behind >= 0 if window is None else (behind >= 0) & (behind < window)
        if not whole and not bool(seen.any(-1).all()):
            raise ValueError("a row sees no key; its own must be among them.")
        rest = scores[..., whole:].unflatten(2, (-1, part.shape[2]))
        rest.masked_fill_(~seen[:, None, None], -torch.inf)
        p = scores.softmax(-1)
        # A product with ones: sums over the outer axis are slow.
        sums[..., :stop] += p.new_ones(p.shape[2]) @ p
    rows = pos_q.sort(1).values
    return sums, rows_that_see(rows, pos_k.contiguous(), window)


def _leading(marks: Bool[Tensor, " n"]) -> int:
    """How many marks stand before the first gap."""
    gaps = (~marks).nonzero()
    return int(gaps[0]) if len(gaps) else len(marks)
