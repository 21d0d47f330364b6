"""The one entry point of attention: queries over a view of a KV cache, with a mask and statistics on demand.

p_ij = exp(scale · q_i·k_j) / Σ_j' exp(scale · q_i·k_j') over the keys that row i sees; out_i = Σ_j p_ij v_j.
Without statistics this is torch's fused kernel. Statistics are gathered a block of rows at a time.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from shoestring.layers.attention_masks import Causal, Explicit, Full, KVView, Mask, Tree

STATISTICS = frozenset({"lse", "colsum", "colcount", "rowmax", "absout"})
BLOCK_SCORES = 1 << 20
"""Scores of one head, or entries of a mask, that exist at once: rows are taken in blocks of so many."""


@dataclass(frozen=True)
class AttendOut:
    """What attention gives: `out`, and of the statistics those that were asked for.

    lse: log of the sum of exponentials of each row (−inf where a row sees nothing; out is 0 there).
    colsum: sum over rows, and over the query heads of each KV head, of the probability of each key.
    colcount: rows that see each key (of one query head). rowmax: the largest probability of each row.
    absout: sum of |out| over rows and channels of each query head. rows: where `out` holds some rows of a
    longer output only, in order, which they are; the others are 0.
    """

    out: Float[Tensor, "batch heads n dim"]
    lse: Float[Tensor, "batch heads n"] | None = None
    colsum: Float[Tensor, "batch kv_heads slots"] | None = None
    colcount: Int[Tensor, "batch kv_heads slots"] | None = None
    rowmax: Float[Tensor, "batch heads n"] | None = None
    absout: Float[Tensor, "batch heads"] | None = None
    rows: Int[Tensor, "batch n"] | None = None


def attend(
    q: Float[Tensor, "batch heads n dim"],
    view: KVView,
    mask: Mask,
    scale: float,
    window: int | None = None,
    policy: Float[Tensor, "batch slots"] | Bool[Tensor, "batch slots"] | None = None,
    need: Iterable[str] = (),
) -> AttendOut:
    """Attention of `q`, whose heads are a multiple of the KV heads, over the valid slots of `view`.

    window: a row sees its own position and the window − 1 before it (with `Causal` only). policy: how much of
    each key other rows see, 0 to 1; a row always sees its own position in full (with `Causal` only). It may
    take a gradient. need: statistics by name, of `STATISTICS`.

    Raises: ValueError for heads that do not group, an unknown statistic, a window below 1, or a window or
    policy with a mask that has no positions.
    """
    wanted = frozenset(need)
    _check(q, view, mask, window, policy, wanted)
    if view.k.shape[2] == 0:
        return _nothing(q, view, wanted)
    if wanted == {"lse"} and _fuses_lse(q, view, mask, policy):
        return _fused_lse(q, view, mask, scale)
    if wanted or (policy is not None and policy.dtype != torch.bool):
        return _by_rows(q, view, mask, scale, window, policy, wanted)
    return AttendOut(_fused(q, view, mask, scale, window, policy))


def merge(
    one: tuple[Float[Tensor, "batch heads n dim"], Float[Tensor, "batch heads n"]],
    other: tuple[Float[Tensor, "batch heads n dim"], Float[Tensor, "batch heads n"]],
) -> tuple[Float[Tensor, "batch heads n dim"], Float[Tensor, "batch heads n"]]:
    """(out, lse) over the union of two disjoint sets of keys, from those over each; at least float32 inside.

    An empty part has lse −inf; where both are empty, out is 0.
    """
    (out_1, lse_1), (out_2, lse_2) = one, other
    exact = torch.promote_types(out_1.dtype, torch.float32)
    share = torch.sigmoid(lse_1.to(exact) - lse_2.to(exact))
    both_empty = (lse_1 == -torch.inf) & (lse_2 == -torch.inf)
    share = share.masked_fill(both_empty, 0.5)[..., None]
    out = share * out_1.to(exact) + (1 - share) * out_2.to(exact)
    return out.to(out_1.dtype), torch.logaddexp(lse_1, lse_2)


def naive_attend(
    q: Float[Tensor, "batch heads n dim"],
    view: KVView,
    mask: Mask,
    scale: float,
    window: int | None = None,
    policy: Float[Tensor, "batch slots"] | Bool[Tensor, "batch slots"] | None = None,
    need: Iterable[str] = STATISTICS,
) -> AttendOut:
    """The definitions, with every probability at once: the meaning of `attend`."""
    batch, heads, n, _ = q.shape
    kv_heads, slots = view.k.shape[1], view.k.shape[2]
    k, v = (t.repeat_interleave(heads // kv_heads, 1) for t in (view.k, view.v))
    seen = torch.ones(batch, kv_heads, n, slots, dtype=torch.bool)
    shown = mask.seen(slice(0, n), slice(0, slots), window)
    seen = seen if shown is None else seen & shown
    seen = seen if view.valid is None else seen & view.valid[:, :, None]
    share = seen.to(q.dtype)
    if policy is not None:
        assert isinstance(mask, Causal)
        own = mask.own(slice(0, n), slice(0, slots))
        share = share * torch.where(own, 1.0, policy.to(q.dtype)[:, None, None])
    share = share.repeat_interleave(heads // kv_heads, 1)
    weight = (scale * q @ k.transpose(-1, -2)).exp() * share
    total = weight.sum(-1, keepdim=True)
    p = torch.where(total > 0, weight / total, 0.0)
    out = p @ v
    found = {
        "lse": total[..., 0].log(),
        "colsum": p.unflatten(1, (kv_heads, -1)).sum((2, 3)),
        "colcount": seen.sum(2),
        "rowmax": p.amax(-1) if slots else p.new_zeros(batch, heads, n),
        "absout": out.abs().sum((2, 3)),
    }
    return AttendOut(out, **{name: found[name] for name in need})


def _check(
    q: Tensor, view: KVView, mask: Mask, window: int | None, policy: Tensor | None, wanted: frozenset[str]
) -> None:
    if q.shape[1] % view.k.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads are no multiple of {view.k.shape[1]} KV heads.")
    if unknown := wanted - STATISTICS:
        raise ValueError(f"no statistic {min(unknown)!r}; there are {', '.join(sorted(STATISTICS))}.")
    if window is not None and window < 1:
        raise ValueError(f"window={window} must be 1 or more.")
    if (window is not None or policy is not None) and not isinstance(mask, Causal):
        what = "window" if window is not None else "policy"
        raise ValueError(f"a {what} needs positions: use the mask Causal, not {type(mask).__name__}.")


def _fused(
    q: Tensor, view: KVView, mask: Mask, scale: float, window: int | None, policy: Tensor | None
) -> Tensor:
    """torch's own kernel: without a mask where none is needed, else a block of rows at a time."""
    newest = isinstance(mask, Causal) and mask.newest
    lowest: int | None = None
    if window is not None and isinstance(mask, Causal) and newest and mask.consecutive():
        if q.shape[2] == 1:
            view, mask, policy = _last(view, mask, policy, window)
        if q.shape[2] == 1 or window >= view.k.shape[2]:
            window = None
        else:
            lowest = view.k.shape[2] - q.shape[2] + 1 - window
    k, v, n, slots = view.k, view.v, q.shape[2], view.k.shape[2]
    if policy is None and view.valid is None and window is None:
        if n == 1 and (newest or isinstance(mask, Full)):
            # The query heads of a KV head as so many rows of it.
            folded = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])
            return F.scaled_dot_product_attention(folded, k, v, scale=scale).reshape(q.shape)
        if isinstance(mask, Full) or (newest and n == slots):
            return F.scaled_dot_product_attention(
                q, k, v, is_causal=newest, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
            )
    parts = []
    for rows in _blocks(n, slots):
        keys = slice(0, slots)
        if newest:
            keys = slice(0 if lowest is None else max(0, lowest + rows.start), slots - n + rows.stop)
        seen = _seen(view, mask, window, policy, rows, keys)
        if seen is not None and seen.shape[1] > 1:
            seen = seen.repeat_interleave(q.shape[1] // seen.shape[1], 1)
        parts.append(
            F.scaled_dot_product_attention(
                q[:, :, rows], k[:, :, keys], v[:, :, keys], attn_mask=seen, scale=scale,
                enable_gqa=q.shape[1] != k.shape[1],
            )
        )  # fmt: skip
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def _fuses_lse(q: Tensor, view: KVView, mask: Mask, policy: Tensor | None) -> bool:
    """Whether torch's kernel for CPUs, which knows the log-sum-exp of its rows, can do this."""
    alike = isinstance(mask, Full | Tree) or (isinstance(mask, Explicit) and mask.marked.shape[1] == 1)
    plain = policy is None and view.valid is None and alike
    trained = torch.is_grad_enabled() and any(t.requires_grad for t in (q, view.k, view.v))
    same = q.dtype == view.k.dtype == view.v.dtype
    return (
        plain
        and not trained
        and same
        and q.device.type == "cpu"
        and q.dtype in (torch.float32, torch.float64)
    )


def _fused_lse(q: Tensor, view: KVView, mask: Mask, scale: float) -> AttendOut:
    """`attend` with "lse" for masks that treat all query heads of a KV head alike: they are so many rows."""
    batch, heads, n, dim = q.shape
    group = heads // view.k.shape[1]
    seen = mask.seen(slice(0, n), slice(0, view.k.shape[2]), None)
    hidden = None
    if seen is not None:
        hidden = torch.zeros_like(seen, dtype=q.dtype).masked_fill(~seen, -torch.inf).repeat(1, 1, group, 1)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q.reshape(batch, -1, group * n, dim), view.k, view.v, attn_mask=hidden, scale=scale
    )
    return AttendOut(out.reshape(q.shape), lse.reshape(batch, heads, n))


def _last(
    view: KVView, mask: Causal, policy: Tensor | None, count: int
) -> tuple[KVView, Causal, Tensor | None]:
    """The last slots only."""
    pos = view.pos[:, :, -count:]
    valid = None if view.valid is None else view.valid[:, :, -count:]
    policy = None if policy is None else policy[:, -count:]
    view = KVView(view.k[:, :, -count:], view.v[:, :, -count:], pos, valid)
    return view, Causal(mask.pos_q, mask.pos_k[:, :, -count:], mask.newest), policy


def _by_rows(
    q: Tensor,
    view: KVView,
    mask: Mask,
    scale: float,
    window: int | None,
    policy: Tensor | None,
    wanted: frozenset[str],
) -> AttendOut:
    """Every row against all keys, a block of rows at a time: nothing is ever rows × keys as a whole."""
    exact = torch.promote_types(q.dtype, torch.float32)
    k, v = view.k.to(exact), view.v.to(exact)
    kv_heads, slots = k.shape[1], k.shape[2]
    outs, lses, tops = [], [], []
    colsum = k.new_zeros(q.shape[0], kv_heads, slots)
    colcount = torch.zeros(q.shape[0], kv_heads, slots, dtype=torch.long, device=q.device)
    for rows in _blocks(q.shape[2], slots):
        part = q[:, :, rows].to(exact).reshape(q.shape[0], kv_heads, -1, q.shape[3])
        scores = (part @ k.transpose(-1, -2) * scale).unflatten(2, (-1, rows.stop - rows.start))
        seen = _seen(view, mask, window, policy if _is_bool(policy) else None, rows, slice(0, slots))
        share: Tensor | None = None
        if policy is not None and not _is_bool(policy):
            own = mask.own(rows, slice(0, slots))  # type: ignore[union-attr]
            share = torch.where(own, 1.0, policy.to(exact)[:, None, None])[:, :, None]
            visible: Tensor | None = share > 0 if seen is None else (share > 0) & seen[:, :, None]
        else:
            visible = None if seen is None else seen[:, :, None]
        # The largest score of what counts only: a hidden one must not push the others under.
        counted = scores if visible is None else scores.masked_fill(~visible, -torch.inf)
        top = counted.detach().amax(-1, keepdim=True)
        top = top.masked_fill(top == -torch.inf, 0.0)
        if share is None:
            weight = (counted - top).exp()
        else:
            allowed = scores if seen is None else scores.masked_fill(~seen[:, :, None], -torch.inf)
            weight = (allowed - top).clamp(max=80.0).exp() * share
        total = weight.sum(-1, keepdim=True)
        p = weight / total.masked_fill(total == 0, 1.0)
        outs.append((p.flatten(2, 3) @ v).unflatten(2, p.shape[2:4]).flatten(1, 2))
        lses.append((total.log() + top)[..., 0].flatten(1, 2))
        tops.append(p.amax(-1).flatten(1, 2))
        if "colsum" in wanted:
            colsum = colsum + p.sum((2, 3))
        if "colcount" in wanted:
            colcount += (rows.stop - rows.start) if seen is None else seen.sum(2)
    out = torch.cat(outs, 2)
    found = {
        "lse": torch.cat(lses, 2),
        "colsum": colsum,
        "colcount": colcount,
        "rowmax": torch.cat(tops, 2),
        "absout": out.abs().sum((2, 3)),
    }
    return AttendOut(out.to(q.dtype), **{name: found[name] for name in wanted})


def _nothing(q: Tensor, view: KVView, wanted: frozenset[str]) -> AttendOut:
    """Attention over no keys."""
    exact = torch.promote_types(q.dtype, torch.float32)
    rows = q.new_zeros(q.shape[:3], dtype=exact)
    columns = q.new_zeros(q.shape[0], view.k.shape[1], 0, dtype=exact)
    found = {
        "lse": rows - torch.inf,
        "colsum": columns,
        "colcount": columns.long(),
        "rowmax": rows,
        "absout": rows.sum(2),
    }
    return AttendOut(torch.zeros_like(q), **{name: found[name] for name in wanted})


def _blocks(n: int, slots: int) -> list[slice]:
    step = max(1, BLOCK_SCORES // slots)
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


def _is_bool(policy: Tensor | None) -> bool:
    return policy is not None and policy.dtype == torch.bool


def _seen(
    view: KVView, mask: Mask, window: int | None, policy: Tensor | None, rows: slice, keys: slice
) -> Bool[Tensor, "#batch #kv_heads rows keys"] | None:
    """Which keys each row sees; None: all of them."""
    seen = mask.seen(rows, keys, window)
    if view.valid is not None:
        valid = view.valid[:, :, None, keys]
        seen = valid.expand(-1, -1, rows.stop - rows.start, -1) if seen is None else seen & valid
    if policy is not None:
        shown = policy[:, None, None, keys] | mask.own(rows, keys)  # type: ignore[union-attr]
        seen = shown if seen is None else seen & shown
    return seen
