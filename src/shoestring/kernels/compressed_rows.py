"""Rows of sequences from which tokens were left out: moved there and back, weighed and added up.

`slot_of[t]` is the row that the token t has among those that stay, `token_of` the way back, -1 where there is
none. Both directions read whole rows: each is the gradient of the other, and neither adds anything up.

Source: Ren et al. 2023, "Sparse Modular Activation for Efficient Sequence Modeling", sections 3.1 and 3.2.
"""

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from shoestring.errors import NoCompiler
from shoestring.kernels.costs import count_cost
from shoestring.kernels.native import load_library
from shoestring.notices import notice_fallback

_NUMBERS_OF_A_THREAD = 1 << 18
"""Waking a thread that sleeps takes as long as this many."""


@dataclass(frozen=True, eq=False)
class Places:
    """Where tokens go: the k-th active one of sample s to slot s · slots + k, both counted over the batch.

    slots: of each sample, as many as the sample with most active tokens needs, at least 1.
    """

    counts: Int[Tensor, " batch"]
    slots: int
    fewest: int
    slot_of: Int[Tensor, " tokens"]
    token_of: Int[Tensor, " all_slots"]


def places_of(active: Bool[Tensor, "batch seq"]) -> Places:
    """The active tokens of each sequence, in order."""
    if (reason := _why_torch(active)) is None:
        return _compiled_places(active)
    if active.device.type == "cpu":
        notice_fallback("compressed rows", reason)
    counts = active.sum(1)
    most, fewest = torch.stack([counts.amax(), counts.amin()]).tolist() if counts.numel() else (0, 0)
    slots = max(most, 1)
    starts = torch.arange(len(active), device=active.device)[:, None] * slots
    slot_of = torch.where(active, active.cumsum(1) - 1 + starts, -1).flatten()
    rows = active.flatten().nonzero().squeeze(1)
    token_of = rows.new_full((len(active) * slots,), -1).index_copy_(0, slot_of[rows], rows)
    return Places(counts, slots, fewest, slot_of, token_of)


def move_rows(
    x: Shaped[Tensor, "rows_before dim"], index: Int[Tensor, " rows"], inverse: Int[Tensor, " rows_before"]
) -> Shaped[Tensor, "rows dim"]:
    """y[i] = x[index[i]], zero for -1. Of its inverse it needs the gradient, which moves rows back."""
    y: Tensor = _MoveRows.apply(x, index, inverse)
    return y


def compressed_sum(
    h: Float[Tensor, "..."],
    places: Places | None = None,
    weight: Float[Tensor, " tokens"] | None = None,
    *,
    to: tuple[Tensor, Tensor] | None = None,
) -> Float[Tensor, "tokens dim"]:
    """weight[t] · h[slot_of[t]], 0 for tokens without a slot; with `to`, silu(to[0] + to[1] + that).

    h (slots, dim), by default of all tokens. One compiled pass over float32 on the CPU, once differentiable;
    for other devices and types, or without a compiler, torch answers.
    Raises: ValueError for shapes that do not fit.
    """
    _check_sum(h, places, weight, to)
    others = [part for part in (weight, *(to or ())) if part is not None]
    if (reason := _why_torch(h, *others, floats=True)) is None:
        y: Tensor = _Sum.apply(h, weight, *(to or (None, None)), places)
        return y
    if h.device.type == "cpu":
        notice_fallback("compressed rows", reason)
    if places is not None:
        h = move_rows(h, places.slot_of, places.token_of)
    if weight is not None:
        h = h * weight.unsqueeze(1).to(h.dtype)
    return h if to is None else F.silu(to[0] + (to[1] + h))


def naive_compressed_sum(
    h: Float[Tensor, "slots dim"],
    places: Places | None = None,
    weight: Float[Tensor, " tokens"] | None = None,
    *,
    to: tuple[Tensor, Tensor] | None = None,
) -> Float[Tensor, "tokens dim"]:
    """`compressed_sum`, token by token."""
    slots = range(len(h)) if places is None else places.slot_of.tolist()
    rows = [h[slot] if slot >= 0 else torch.zeros_like(h[0]) for slot in slots]
    if weight is not None:
        rows = [row * one for row, one in zip(rows, weight, strict=True)]
    y = torch.stack(rows)
    return y if to is None else F.silu(to[0] + to[1] + y)


def _check_sum(
    h: Tensor, places: Places | None, weight: Tensor | None, to: tuple[Tensor, Tensor] | None
) -> None:
    slots, tokens = (len(h), len(h)) if places is None else (len(places.token_of), len(places.slot_of))
    if h.ndim != 2 or len(h) != slots:
        raise ValueError(f"h is {tuple(h.shape)}; these places need ({slots}, dim)")
    for name, part, shape in (
        ("weight", weight, (tokens,)),
        *(("to", part, (tokens, h.shape[1])) for part in to or ()),
    ):
        if part is not None and part.shape != shape:
            raise ValueError(f"{name} is {tuple(part.shape)}; these places need {shape}")


def _why_torch(*parts: Tensor, floats: bool = False) -> str | None:
    if any(part.device.type != "cpu" for part in parts):
        return "torch answers on other devices: the compiled passes are for CPUs"
    if floats and any(part.dtype != torch.float32 for part in parts):
        return "torch answers for other types: the compiled sums are for float32"
    if torch.compiler.is_compiling():
        return "torch answers inside of torch.compile"
    try:
        _library()
    except NoCompiler as error:
        return f"torch answers instead of the compiled passes ({error})"
    return None


def _compiled_places(active: Tensor) -> Places:
    active = active.contiguous()
    batch, seq = active.shape
    counts = torch.empty(batch, dtype=torch.int64)
    slot_of = torch.empty(batch * seq, dtype=torch.int64)
    _library().compressed_rows_places(active.data_ptr(), batch, seq, 0, counts.data_ptr(), None, None)
    each = counts.tolist()
    slots = max(1, *each) if each else 1
    token_of = torch.empty(batch * slots, dtype=torch.int64)
    _library().compressed_rows_places(
        active.data_ptr(), batch, seq, slots, None, slot_of.data_ptr(), token_of.data_ptr()
    )
    return Places(counts, slots, min(each, default=0), slot_of, token_of)


class _MoveRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.places = index, inverse  # type: ignore[attr-defined]
        if _why_torch(x) is not None:
            taken = x.index_select(0, index.clamp_min(0))
            return taken.masked_fill_(index.unsqueeze(1) < 0, 0.0)
        x = x.contiguous()
        y = x.new_empty(len(index), x.shape[1])
        with count_cost("move_rows", flops=0, bytes=2 * y.nbytes):
            _library().compressed_rows_move(
                x.data_ptr(), index.data_ptr(), y.data_ptr(), len(y), x.shape[1] * x.element_size(),
                _threads(y),
            )  # fmt: skip
        return y

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, None, None]:
        index, inverse = ctx.places  # type: ignore[attr-defined]
        return move_rows(grads[0], inverse, index), None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        h: Tensor,
        weight: Tensor | None,
        x: Tensor | None,
        g: Tensor | None,
        places: Places | None,
    ) -> Tensor:
        h = h.contiguous()
        weight, x, g = (part if part is None else part.contiguous() for part in (weight, x, g))
        y = h.new_empty(len(h) if places is None else len(places.slot_of), h.shape[1])
        total = None if x is None else torch.empty_like(y)
        with count_cost("compressed_sum", flops=(2 if x is None else 8) * y.numel(), bytes=4 * y.nbytes):
            _library().compressed_rows_sum(
                _arguments(y, places, h=h, weight=weight, x=x, g=g, sum=total, y=y)
            )
        ctx.save_for_backward(h, weight, total)  # type: ignore[arg-type]
        ctx.places = places  # type: ignore[attr-defined]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        h, weight, total = ctx.saved_tensors  # type: ignore[attr-defined]
        of_h, of_weight, of_x, of_g, _ = ctx.needs_input_grad  # type: ignore[attr-defined]
        grad = grad.contiguous()
        grad_h = torch.empty_like(h) if of_h or of_weight else None
        grad_weight = torch.empty_like(weight) if of_weight else None
        grad_sum = None if total is None else torch.empty_like(grad)
        with count_cost("compressed_sum_backward", flops=12 * grad.numel(), bytes=4 * grad.nbytes):
            _library().compressed_rows_sum_back(
                _arguments(
                    grad, ctx.places, h=h, weight=weight, sum=total, grad=grad,  # type: ignore[attr-defined]
                    grad_sum=grad_sum, grad_h=grad_h, grad_weight=grad_weight,
                )
            )  # fmt: skip
        return grad_h, grad_weight, grad_sum if of_x else None, grad_sum if of_g else None, None


class _Pointers(ctypes.Structure):
    """The C struct `compressed_sum`."""

    _fields_ = (
        *((n, ctypes.c_int64) for n in ("tokens", "slots", "width", "threads", "is_rectified")),
        *((n, ctypes.c_void_p) for n in ("slot_of", "token_of", "x", "g", "h", "weight", "sum", "y")),
        *((n, ctypes.c_void_p) for n in ("grad", "grad_sum", "grad_h", "grad_weight")),
    )


def _arguments(like: Tensor, places: Places | None, **parts: Tensor | None) -> object:
    if places is not None:
        parts |= {"slot_of": places.slot_of, "token_of": places.token_of}
    given = {name: part.data_ptr() for name, part in parts.items() if part is not None}
    slots = len(like) if places is None else len(places.token_of)
    is_rectified = parts.get("sum") is not None
    return ctypes.byref(_Pointers(len(like), slots, like.shape[1], _threads(like), is_rectified, **given))


def _threads(y: Tensor) -> int:
    return min(torch.get_num_threads(), 1 + y.numel() // _NUMBERS_OF_A_THREAD)


@functools.cache
def _library() -> ctypes.CDLL:
    library = load_library(Path(__file__).with_suffix(".c"), extra_flags=("-ffp-contract=fast",))
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    library.compressed_rows_places.argtypes = [pointer, size, size, size, pointer, pointer, pointer]
    library.compressed_rows_places.restype = None
    library.compressed_rows_move.argtypes = [pointer, pointer, pointer, size, size, size]
    library.compressed_rows_move.restype = None
    return library
