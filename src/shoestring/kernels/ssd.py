"""The scan of Mamba-2 (state space duality): one decay for a whole head, so that chunks are matrix products.

For head h with state (head_dim, states):  S_t = exp(d_t A) S_{t-1} + d_t x_t ⊗ B_t,  y_t = S_t C_t + D x_t.
B and C are shared by groups of heads. Inside a chunk y = ((C Bᵀ) ∘ M ∘ d) x with M_ij = exp(Σ_{j<k≤i} d_k A)
for i ≥ j, else 0; chunks hand their last states on through a linear scan. Sums of d A are taken in at least
float32 and subtracted before the exponential, so that no exponent is above 0.

Source: Dao and Gu 2024, "Transformers are SSMs", section 6, listing 1.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from shoestring.kernels.linear_scan import linear_scan

CHUNK = 64

Heads = Float[Tensor, "batch seq heads head_dim"]
Steps = Float[Tensor, "_batch _seq _heads"]
PerHead = Float[Tensor, "_heads"]
Grouped = Float[Tensor, "_batch _seq _groups _states"]
SsdState = Float[Tensor, "_batch _heads _head_dim _states"]


def naive_ssd(
    x: Heads,
    dt: Steps,
    A: PerHead,
    B: Grouped,
    C: Grouped,
    D: PerHead | None = None,
    initial: SsdState | None = None,
) -> tuple[Heads, SsdState]:
    """The recurrence, position after position. Arguments as in `ssd`."""
    heads = x.shape[2]
    B, C = (part.repeat_interleave(heads // part.shape[2], 2) for part in (B, C))
    state = x.new_zeros(*x.shape[:1], *x.shape[2:], B.shape[3]) if initial is None else initial
    ys = []
    for x_t, d, B_t, C_t in zip(x.unbind(1), dt.unbind(1), B.unbind(1), C.unbind(1), strict=True):
        added = (d[..., None] * x_t)[..., None] * B_t[:, :, None]
        state = (d * A).exp()[..., None, None] * state + added
        y = (state * C_t[:, :, None]).sum(-1)
        ys.append(y if D is None else y + D[:, None] * x_t)
    return torch.stack(ys, 1), state


def ssd(
    x: Heads,
    dt: Steps,
    A: PerHead,
    B: Grouped,
    C: Grouped,
    D: PerHead | None = None,
    initial: SsdState | None = None,
    *,
    chunk: int = CHUNK,
) -> tuple[Heads, SsdState]:
    """y (in the type of x) and the last state (batch, heads, head_dim, states), in at least float32.

    dt: the step sizes, after softplus, not below 0. A: not above 0. B, C: with numbers of groups that divide
    the heads. initial: the state before the first position, by default 0. Any length; `chunk` positions are
    one matrix product. Differentiable in all tensors.

    Raises: ValueError for shapes that do not belong together, an empty sequence, or chunk < 1; TypeError for
    an initial state in half precision.
    """
    if chunk < 1:
        raise ValueError(f"chunk={chunk} must be at least 1")
    _check(x, dt, A, B, C, D, initial)
    exact = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        skip, start = (None if part is None else part.to(exact) for part in (D, initial))
        wide, steps, rates, inputs, outputs = (part.to(exact) for part in (x, dt, A, B, C))
        y, last = _chunked(wide, steps, rates, inputs, outputs, skip, start, chunk)
    return y.to(x.dtype), last


def ssd_step(
    x: Float[Tensor, "batch heads head_dim"],
    dt: Float[Tensor, "batch heads"],
    A: PerHead,
    B: Float[Tensor, "batch _groups states"],
    C: Float[Tensor, "batch _groups states"],
    state: SsdState,
    D: PerHead | None = None,
) -> tuple[Float[Tensor, "batch heads head_dim"], SsdState]:
    """One position of `ssd` after `state`; arguments without the axis of positions."""
    _check(x[:, None], dt[:, None], A, B[:, None], C[:, None], D, state)
    exact = state.dtype
    sequences = (x, dt, B, C)
    wide, steps, inputs, outputs = (part.to(exact)[:, None] for part in sequences)
    skip = None if D is None else D.to(exact)
    y, state = naive_ssd(wide, steps, A.to(exact), inputs, outputs, skip, state)
    return y[:, 0].to(x.dtype), state


def _chunked(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    initial: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    seq, heads = x.shape[1:3]
    chunk = min(chunk, seq)
    # Positions of no length at the end: they decay nothing and add nothing.
    xs, ds, Bs, Cs = (_into_chunks(part, chunk) for part in (x, dt, B, C))
    sums = (ds * A).cumsum(2).transpose(2, 3)
    Bs, Cs = (part.repeat_interleave(heads // part.shape[3], 3).transpose(2, 3) for part in (Bs, Cs))
    added = (ds[..., None] * xs).transpose(2, 3)
    later = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).triu(1)
    decays = (sums[..., :, None] - sums[..., None, :]).masked_fill(later, -torch.inf).exp()
    within = ((Cs @ Bs.mT) * decays) @ added
    to_end = (sums[..., -1:] - sums).exp()
    states = (added * to_end[..., None]).mT @ Bs
    after, last = linear_scan(sums[..., -1].exp()[..., None, None], states, initial)
    start = torch.zeros_like(last) if initial is None else initial
    before = torch.cat([start[:, None], after[:, :-1]], 1)
    carried = (Cs * sums.exp()[..., None]) @ before.mT
    y = (within + carried).transpose(2, 3).flatten(1, 2)[:, :seq]
    return (y if D is None else y + D[:, None] * x), last


def _into_chunks(part: Tensor, chunk: int) -> Tensor:
    """(batch, chunks, chunk, ...), zeros at the end."""
    missing = -part.shape[1] % chunk
    if missing:
        part = torch.cat([part, part.new_zeros(part.shape[0], missing, *part.shape[2:])], 1)
    return part.unflatten(1, (-1, chunk))


def _check(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, initial: Tensor | None
) -> None:
    batch, seq, heads, head_dim = x.shape
    if seq == 0:
        raise ValueError(f"x is {tuple(x.shape)}; a scan needs a seq of at least 1")
    states = B.shape[-1]
    wanted = (
        ("dt", dt, (batch, seq, heads)), ("A", A, (heads,)), ("D", D, (heads,)),
        ("initial", initial, (batch, heads, head_dim, states)),
    )  # fmt: skip
    for name, part, shape in wanted:
        if part is not None and tuple(part.shape) != shape:
            raise ValueError(f"{name} is {tuple(part.shape)}; x of {tuple(x.shape)} takes {shape}")
    for name, part in (("B", B), ("C", C)):
        groups = part.shape[2]
        if tuple(part.shape) != (batch, seq, groups, states) or heads % groups:
            raise ValueError(
                f"{name} is {tuple(part.shape)}; x of {tuple(x.shape)} takes "
                f"({batch}, {seq}, groups, {states}) with groups that divide {heads} heads"
            )
    if initial is not None and initial.dtype in (torch.float16, torch.bfloat16):
        raise TypeError(f"initial is {initial.dtype}; a state drifts in it: keep it in float32")
