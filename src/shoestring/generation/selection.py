"""Which of a row of scored things stay: the highest ones, or as few as hold a share of the sum.

Equal scores are told apart by place: the earlier one stays. Protected things always stay and count first.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def top_k(
    scores: Float[Tensor, "*rows n"],
    count: int | Int[Tensor, "*#rows"],
    *,
    protected: Bool[Tensor, "*#rows n"] | None = None,
    valid: Bool[Tensor, "*#rows n"] | None = None,
    what: str = "scores",
) -> Bool[Tensor, "*rows n"]:
    """Marks the `count` highest scores of each row, or all where there are fewer.

    count: one for all rows or one for each. protected: stay, even where they are more than `count`. valid:
    things that exist; the others never stay. what: the scores' name, for messages.

    Infinite scores count as the largest finite ones. Raises: ValueError for a negative count;
    FloatingPointError for NaN among the valid scores.
    """
    counts = torch.as_tensor(count, device=scores.device).expand(scores.shape[:-1])[..., None]
    if counts.numel() and int(counts.min()) < 0:
        raise ValueError(f"count={int(counts.min())} of {what} to keep must be 0 or more.")
    exists, safe = _masks(scores, protected, valid, what)
    most = min(int(counts.max()), scores.shape[-1]) if counts.numel() else 0
    if most == 0:
        return safe
    finite = torch.finfo(scores.dtype)
    rank = scores.clamp(finite.min, finite.max).masked_fill(~exists, -torch.inf)
    rank = rank.masked_fill(safe, torch.inf)
    # The hardware's way: what is above the last that stays, then the earliest of those equal to it.
    last = _last_kept(rank, counts, most)
    reached = rank >= last
    if bool((reached.sum(-1, keepdim=True) <= counts).all()):
        return (reached & exists) | safe
    above, equal = rank > last, rank == last
    kept = above | (equal & (equal.cumsum(-1) <= counts - above.sum(-1, keepdim=True)))
    return (kept & (counts > 0) & exists) | safe


def top_mass(
    masses: Float[Tensor, "*rows n"],
    share: float,
    *,
    protected: Bool[Tensor, "*#rows n"] | None = None,
    valid: Bool[Tensor, "*#rows n"] | None = None,
    what: str = "masses",
) -> Bool[Tensor, "*rows n"]:
    """Marks as few of the largest masses of each row as sum to at least `share` of the row's sum.

    A share of 1 marks all that exist. protected, valid, what: as in `top_k`; what is protected counts first.

    Raises: ValueError for a share outside 0 to 1 or a negative mass; FloatingPointError for NaN.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share} of {what} must be from 0 to 1.")
    exists, safe = _masks(masses, protected, valid, what)
    if share == 1:
        return exists
    order, held = _order(masses, exists, safe), torch.where(exists, masses, 0.0)
    if bool((held < 0).any()):
        raise ValueError(f"{what} hold {float(held.min())}; a mass is 0 or more.")
    # In float64: a running sum in float32 may stop growing on a long row.
    sorted_masses = held.gather(-1, order).double()
    before = sorted_masses.cumsum(-1) - sorted_masses
    chosen = before < share * sorted_masses.sum(-1, keepdim=True)
    kept = torch.zeros_like(exists).scatter(-1, order, chosen)
    return (kept | safe) & exists


def marked_slots(marked: Bool[Tensor, "*rows n"]) -> Int[Tensor, "*rows m"]:
    """The places of the marks of each row, ascending; −1 fills up rows that have fewer."""
    width = int(marked.sum(-1).max()) if marked.numel() else 0
    places = torch.arange(marked.shape[-1], device=marked.device).expand(marked.shape)
    places = places.masked_fill(~marked, marked.shape[-1]).sort(-1).values[..., :width]
    return places.masked_fill(places == marked.shape[-1], -1)


def naive_top_k(
    scores: list[float], count: int, protected: list[bool] | None = None, valid: list[bool] | None = None
) -> list[bool]:
    """One row, one choice at a time: the meaning of `top_k`."""
    exists = valid or [True] * len(scores)
    safe = [p and v for p, v in zip(protected or [False] * len(scores), exists, strict=True)]
    kept = list(safe)
    while sum(kept) < count:
        left = [i for i in range(len(scores)) if exists[i] and not kept[i]]
        if not left:
            break
        kept[max(left, key=lambda i: (scores[i], -i))] = True
    return kept


def naive_top_mass(masses: list[float], share: float) -> list[bool]:
    """One row, the largest first until there is enough: the meaning of `top_mass`."""
    kept = [share == 1] * len(masses)
    held = 0.0
    for i in sorted(range(len(masses)), key=lambda i: (-masses[i], i)):
        if held >= share * sum(masses):
            break
        kept[i] = True
        held += masses[i]
    return kept


def _last_kept(rank: Tensor, counts: Tensor, most: int) -> Tensor:
    """The `counts`-th highest of each row; where all rows keep as many, without sorting those above it."""
    if int(counts.min()) >= most:
        return rank.topk(most, -1, sorted=False).values.amin(-1, keepdim=True)
    return rank.topk(most, -1).values.gather(-1, counts.clamp(1, most) - 1)


def _masks(
    scores: Tensor, protected: Tensor | None, valid: Tensor | None, what: str
) -> tuple[Tensor, Tensor]:
    """What exists, and what of it is protected, both in full."""
    exists = torch.ones_like(scores, dtype=torch.bool) if valid is None else valid.expand(scores.shape)
    safe = torch.zeros_like(exists) if protected is None else protected.expand(scores.shape) & exists
    if bool((scores.isnan() & exists).any()):
        raise FloatingPointError(f"{what} hold NaN; check the model's weights and inputs.")
    return exists, safe


def _order(scores: Tensor, exists: Tensor, safe: Tensor) -> Tensor:
    """Places by falling score, the protected first and what does not exist last."""
    order = scores.masked_fill(~exists, -torch.inf).sort(stable=True, dim=-1, descending=True).indices
    group = torch.where(safe, 0, torch.where(exists, 1, 2)).gather(-1, order)
    return order.gather(-1, group.sort(stable=True, dim=-1).indices)
