"""The linear recurrence h_t = a_t h_{t-1} + b_t over a sequence, in three forms with one signature.

`sequential_scan` takes a step for each position. `chunked_scan` is matrix products: a triangle of decay
products for each chunk, then a scan over the chunks; it pays where many channels share a decay.
`associative_scan` pairs neighbours, (a₁, b₁) then (a₂, b₂) being (a₁a₂, a₂b₁ + b₂), scans the pairs and fills
in: O(seq) work in O(log seq) steps. None divides by a decay or takes its logarithm, so decays may be 0,
negative or complex.

The gradient is a scan as well, backwards in time: G_t = g_t + conj(a_{t+1}) G_{t+1}, and then db_t = G_t,
da_t = G_t conj(h_{t-1}). Only a and h are kept for it.

Source: Blelloch 1990, "Prefix Sums and Their Applications", section 1.4; Martin and Cundy 2018,
"Parallelizing Linear Recurrent Neural Nets Over Sequence Length", section 2.
"""

from collections.abc import Callable

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

CHUNK = 32
"""Positions of a chunk in `chunked_scan`."""
_MOST_STEPS = 32
"""A sequence up to this long is scanned step by step: there is too little to save."""

Decay = Shaped[Tensor, "_batch _seq *decay_dims"]
Input = Shaped[Tensor, "batch seq *dims"]
ScanState = Shaped[Tensor, "_batch *_dims"]
Scanned = tuple[Input, ScanState]
_Form = Callable[[Tensor, Tensor], Tensor]


def naive_linear_scan(
    a: Decay, b: Input, initial: ScanState | None = None, *, reverse: bool = False
) -> Scanned:
    """The equation, step by step, its gradient left to autograd. Arguments as in `linear_scan`."""
    h = torch.zeros_like(b[:, 0]) if initial is None else initial
    decays, found = a.unbind(1), list(b.unbind(1))
    for t in reversed(range(b.shape[1])) if reverse else range(b.shape[1]):
        h = decays[t] * h + found[t]
        found[t] = h
    return torch.stack(found, 1), h


def linear_scan(a: Decay, b: Input, initial: ScanState | None = None, *, reverse: bool = False) -> Scanned:
    """Every h_t of h_t = a_t h_{t-1} + b_t, and the last one; by the form that suits the shape.

    a: broadcasts to b, one decay for several channels where a size is 1. initial: h before the first
    position, by default 0. reverse: from the last position to the first, h_t = a_t h_{t+1} + b_t, the last
    state being that of position 0. Real or complex, all of one type.

    Raises: ValueError for an empty sequence or shapes that do not belong together; TypeError for two types.
    """
    if b.dim() > 2 and b.shape[1] > _MOST_STEPS and a.shape[-1] == 1 and b.shape[-1] >= CHUNK:
        return chunked_scan(a, b, initial, reverse=reverse)
    form = sequential_scan if b.shape[1] <= _MOST_STEPS else associative_scan
    return form(a, b, initial, reverse=reverse)


def sequential_scan(
    a: Decay, b: Input, initial: ScanState | None = None, *, reverse: bool = False
) -> Scanned:
    """A step for each position. Arguments and errors as in `linear_scan`."""
    return _scan(_step_by_step, a, b, initial, reverse)


def associative_scan(
    a: Decay, b: Input, initial: ScanState | None = None, *, reverse: bool = False
) -> Scanned:
    """Pairs of pairs of positions. Arguments and errors as in `linear_scan`."""
    return _scan(_by_pairs, a, b, initial, reverse)


def chunked_scan(
    a: Decay,
    b: Input,
    initial: ScanState | None = None,
    *,
    reverse: bool = False,
    chunk: int = CHUNK,
) -> Scanned:
    """Matrix products over chunks of positions; chunk² decay products are held for each chunk and decay.

    Arguments and errors as in `linear_scan`; ValueError for chunk < 1.
    """
    if chunk < 1:
        raise ValueError(f"chunk={chunk} must be at least 1")
    return _scan(lambda a, b: _by_chunks(a, b, chunk), a, b, initial, reverse)


def _scan(form: _Form, a: Tensor, b: Tensor, initial: Tensor | None, reverse: bool) -> tuple[Tensor, Tensor]:
    _check(a, b, initial)
    if initial is None:
        initial = torch.zeros_like(b[:, 0])
    if reverse:
        a, b = a.flip(1), b.flip(1)
    h: Tensor = _LinearScan.apply(form, a, b, initial)
    last = h[:, -1]
    return (h.flip(1) if reverse else h), last


def _check(a: Tensor, b: Tensor, initial: Tensor | None) -> None:
    if b.dim() < 2 or b.shape[1] == 0:
        raise ValueError(f"b is {tuple(b.shape)}; a scan needs (batch, seq, ...) with seq of at least 1")
    fits = a.dim() == b.dim() and a.shape[1] == b.shape[1]
    if not fits or any(n not in (1, m) for n, m in zip(a.shape, b.shape, strict=True)):
        raise ValueError(
            f"a is {tuple(a.shape)}, which does not broadcast to b, {tuple(b.shape)}, along all but seq; "
            "give a one of b's sizes or 1 on every axis"
        )
    if initial is not None and initial.shape != b[:, 0].shape:
        raise ValueError(f"initial is {tuple(initial.shape)}; a state here is {tuple(b[:, 0].shape)}")
    for name, other in (("a", a), ("initial", initial)):
        if other is not None and other.dtype != b.dtype:
            raise TypeError(f"{name} is {other.dtype}, b is {b.dtype}; convert them to one type")


class _LinearScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, form: _Form, a: Tensor, b: Tensor, initial: Tensor) -> Tensor:
        h = form(a, torch.cat([b[:, :1] + a[:, :1] * initial[:, None], b[:, 1:]], 1))
        ctx.save_for_backward(a, h, initial)
        ctx.form = form  # type: ignore[attr-defined]
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[None, Tensor, Tensor, Tensor]:
        a, h, initial = ctx.saved_tensors  # type: ignore[attr-defined]
        conj = a.conj().resolve_conj()
        # The decay that carries from t + 1 to t; the last position takes from nothing.
        carried = torch.cat([conj[:, 1:], torch.zeros_like(conj[:, :1])], 1)
        grad_b = ctx.form(carried.flip(1), grad.flip(1)).flip(1)  # type: ignore[attr-defined]
        before = torch.cat([initial[:, None], h[:, :-1]], 1)
        grad_a = (grad_b * before.conj()).sum_to_size(a.shape)
        return None, grad_a, grad_b, conj[:, 0] * grad_b[:, 0]


def _step_by_step(a: Tensor, b: Tensor) -> Tensor:
    h = torch.empty_like(b)
    h[:, 0] = b[:, 0]
    for t in range(1, b.shape[1]):
        torch.addcmul(b[:, t], a[:, t], h[:, t - 1], out=h[:, t])
    return h


def _by_pairs(a: Tensor, b: Tensor) -> Tensor:
    seq = b.shape[1]
    if seq == 1:
        return b
    pairs = seq // 2 * 2
    first, second = slice(0, pairs, 2), slice(1, pairs, 2)
    h = torch.empty_like(b)
    h[:, second] = _by_pairs(
        a[:, first] * a[:, second], torch.addcmul(b[:, second], a[:, second], b[:, first])
    )
    h[:, 0] = b[:, 0]
    h[:, 2::2] = torch.addcmul(b[:, 2::2], a[:, 2::2], h[:, 1 : seq - 1 : 2])
    return h


def _by_chunks(a: Tensor, b: Tensor, chunk: int) -> Tensor:
    batch, seq = b.shape[:2]
    missing = -seq % chunk
    if missing:
        a = torch.cat([a, a.new_ones(a.shape[0], missing, *a.shape[2:])], 1)
        b = torch.cat([b, b.new_zeros(batch, missing, *b.shape[2:])], 1)
    a, b = a.unflatten(1, (-1, chunk)), b.unflatten(1, (-1, chunk))
    products = _decay_products(a)
    local = _times(products, b)
    from_start = a.cumprod(2)
    if local.shape[1] > 1:
        ends = _by_pairs(from_start[:, :, -1], local[:, :, -1])
        local[:, 1:] += from_start[:, 1:] * ends[:, :-1, None]
    return local.flatten(1, 2)[:, :seq]


def _decay_products(a: Tensor) -> Tensor:
    """(batch, chunks, i, j, *decay_dims): the product of a over j < k <= i where i >= j, else 0."""
    position = torch.arange(a.shape[2], device=a.device)
    later = (position[:, None] > position).reshape(*2 * a.shape[2:3], *[1] * (a.dim() - 3))
    factors = torch.where(later, a.unsqueeze(3), torch.ones((), dtype=a.dtype, device=a.device))
    kept = (position[:, None] >= position).reshape(later.shape)
    return factors.cumprod(2) * kept


def _times(products: Tensor, b: Tensor) -> Tensor:
    """Σ_j products[..., i, j, *decay_dims] b[..., j, *dims]; channels of one decay are its columns."""
    shared = products.dim() > 4 and products.shape[-1] == 1
    matrices = (products[..., 0] if shared else products).movedim((2, 3), (-2, -1))
    columns = b.movedim(2, -2 if shared else -1)
    if not shared:
        columns = columns.unsqueeze(-1)
    found = matrices @ columns
    return found.movedim(-2, 2) if shared else found.squeeze(-1).movedim(-1, 2)
