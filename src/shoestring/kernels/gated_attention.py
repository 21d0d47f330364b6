"""A gated attention unit between its two linear maps, over blocks of a sequence, compiled for the CPU.

    z, r, v = split(silu(x)),  q, k = turn(z · gain + offset),  out = (softmax(scale · q kᵀ) v) · silu(x_r)

The unit is a score of small operations on everything it holds, and they, not the products, take most of its
time. Here the products are torch's, a batch of blocks at a time, and what stands around them is one pass
each: `gated_attention.c`.

Source: Hua et al. 2022, "Transformer Quality in Linear Time", section 3; the blocks are those of Ren et al.
2023, "Sparse Modular Activation for Efficient Sequence Modeling".
"""

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from shoestring.errors import NoCompiler
from shoestring.kernels.costs import count_cost
from shoestring.kernels.native import load_library

TILE = 64
"""Rows whose share of the gradients of gain and offset is summed at a time; as in `gated_attention.c`."""
_NUMBERS_OF_A_THREAD = 1 << 17
"""Waking a thread that sleeps takes as long as this many."""


@dataclass(frozen=True)
class BlockPattern:
    """Which tokens meet: those of one block, of `before` blocks before it and `after` behind, if |i − j| ≤
    reach and, with `causal`, j ≤ i.

    Raises: ValueError for a block below 1, negative counts, or a causal pattern that looks ahead.
    """

    block: int
    before: int = 0
    after: int = 0
    causal: bool = True
    reach: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("block", 1), ("before", 0), ("after", 0), ("reach", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value} must be {least} or more.")
        if self.causal and self.after:
            raise ValueError(f"after={self.after} looks ahead; use after=0 or causal=False.")


@dataclass(frozen=True)
class Turns:
    """Rotary positions: coordinates i and i + half of the token t turn by an angle of row `places[t]`."""

    cosines: Float[Tensor, "rows half"]
    sines: Float[Tensor, "rows half"]
    places: Int[Tensor, "batch n"]


def why_not(x: Tensor, *others: Tensor) -> str | None:
    """Why the compiled passes cannot do it; None where they can."""
    if x.device.type != "cpu":
        return f"torch's operations answer on {x.device}: the compiled passes are for CPUs"
    if wrong := next((part.dtype for part in (x, *others) if part.dtype != torch.float32), None):
        return f"torch's operations answer for {wrong}: the compiled passes are for float32"
    try:
        _library()
    except NoCompiler as error:
        return f"torch's operations answer instead of the compiled passes ({error})"
    return None


def gated_attention(
    x: Float[Tensor, "..."],
    gain: Float[Tensor, "..."],
    offset: Float[Tensor, "..."],
    pattern: BlockPattern,
    *,
    scale: float,
    turns: Turns | None = None,
    filled: Bool[Tensor, "batch n"] | None = None,
) -> Float[Tensor, "batch n d_hidden"]:
    """The equation above. x (batch, n, d_qk + 2 d_hidden): z, r and v beside each other.

    gain, offset (2, d_qk): of queries and of keys. filled: False for keys that nobody sees; a token that sees
    none gets 0. For float32 on the CPU (`why_not`), once differentiable; weights of all pairs of a block are
    kept for the gradient. A sample with numbers that are not finite spoils its neighbours in the batch.

    Raises: NoCompiler; ValueError for shapes that do not fit.
    """
    _check(x, gain, offset, turns)
    out: Tensor = _GatedAttention.apply(x, gain, offset, pattern, scale, turns, filled)
    return out


def naive_gated_attention(
    x: Float[Tensor, "batch n parts"],
    gain: Float[Tensor, "2 d_qk"],
    offset: Float[Tensor, "2 d_qk"],
    pattern: BlockPattern,
    *,
    scale: float,
    turns: Turns | None = None,
    filled: Bool[Tensor, "batch n"] | None = None,
) -> Float[Tensor, "batch n d_hidden"]:
    """The equation, every pair of tokens with a mask."""
    n, d_qk = x.shape[1], gain.shape[1]
    d_hidden = (x.shape[2] - d_qk) // 2
    z, r, v = F.silu(x).split([d_qk, d_hidden, d_hidden], -1)
    q, k = (_turned(z * gain[which] + offset[which], turns) for which in (0, 1))
    seen = _seen(pattern, n)
    if filled is not None:
        seen = seen & filled[:, None, :]
    weights = torch.where(seen, (scale * q @ k.mT).exp(), 0.0)
    weights = weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    return (weights @ v) * r


def _turned(x: Tensor, turns: Turns | None) -> Tensor:
    if turns is None:
        return x
    first, second = x.chunk(2, -1)
    angle = torch.complex(turns.cosines[turns.places], turns.sines[turns.places]).to(torch.complex128)
    turned = torch.complex(first, second) * angle
    return torch.cat([turned.real, turned.imag], -1).to(x.dtype)


def _seen(pattern: BlockPattern, n: int) -> Bool[Tensor, "n n"]:
    step = torch.arange(n)
    apart = step - step[:, None]
    blocks = step // pattern.block - step[:, None] // pattern.block
    seen = (blocks >= -pattern.before) & (blocks <= pattern.after)
    if pattern.causal:
        seen = seen & (apart <= 0)
    return seen if pattern.reach is None else seen & (apart.abs() <= pattern.reach)


def _check(x: Tensor, gain: Tensor, offset: Tensor, turns: Turns | None) -> None:
    d_qk = gain.shape[-1]
    if gain.shape != (2, d_qk) or offset.shape != gain.shape:
        raise ValueError(
            f"gain is {tuple(gain.shape)} and offset {tuple(offset.shape)}; give (2, {d_qk}) both"
        )
    if x.ndim != 3 or x.shape[2] <= d_qk or (x.shape[2] - d_qk) % 2 or not x.shape[1]:
        raise ValueError(
            f"x is {tuple(x.shape)}; with d_qk={d_qk} give (batch, n, {d_qk} + 2 d_hidden), n > 0"
        )
    if turns is not None and (d_qk % 2 or turns.places.shape != x.shape[:2]):
        raise ValueError(
            f"places is {tuple(turns.places.shape)} and d_qk {d_qk}; "
            f"give {tuple(x.shape[:2])} and an even d_qk"
        )


class _Pointers(ctypes.Structure):
    """The C struct `gated_attention`."""

    _fields_ = (
        *((n, ctypes.c_int64) for n in ("batch", "length", "d_qk", "d_hidden")),
        *(
            (n, ctypes.c_int64)
            for n in ("block", "count", "before", "after", "reach", "is_causal", "threads")
        ),
        ("scale", ctypes.c_double),
        *((n, ctypes.c_void_p) for n in ("x", "gain", "offset", "cosines", "sines", "places", "filled")),
        *((n, ctypes.c_void_p) for n in ("q", "k", "v", "weights", "h", "out", "grad_out", "grad_h")),
        *(
            (n, ctypes.c_void_p)
            for n in ("grad_weights", "grad_q", "grad_k", "grad_v", "grad_x", "grad_maps")
        ),
    )


class _Call:
    """Sizes and inputs that the passes of one call share, and the tensors that they have been told of."""

    def __init__(
        self,
        inputs: dict[str, Tensor | None],
        sizes: tuple[int, int, int, int],
        pattern: BlockPattern,
        scale: float,
    ) -> None:
        self.batch, length, self.d_qk, self.d_hidden = sizes
        self.count = -(-length // pattern.block)
        # A short sequence has no more neighbours than blocks.
        self.before, after = (min(side, self.count - 1) for side in (pattern.before, pattern.after))
        self.block, self.span = pattern.block, (self.before + 1 + after) * pattern.block
        self.rows = self.batch * self.count * self.block
        self.padded = self.rows + (self.before + after) * self.block
        self._alive = [part for part in inputs.values() if part is not None]
        self._pointers = _Pointers(
            *sizes, self.block, self.count, self.before, after,
            length if pattern.reach is None else pattern.reach, pattern.causal,
            min(torch.get_num_threads(), 1 + self.rows * self.d_hidden // _NUMBERS_OF_A_THREAD), scale,
            **{name: part.data_ptr() for name, part in inputs.items() if part is not None},
        )  # fmt: skip

    def run(self, name: str, **tensors: Tensor) -> None:
        """One pass."""
        for key, part in tensors.items():
            setattr(self._pointers, key, part.data_ptr())
        getattr(_library(), f"gated_attention_{name}")(ctypes.byref(self._pointers))

    def beside(self, padded: Float[Tensor, "padded d"]) -> Float[Tensor, "blocks span d"]:
        """What stands beside each block: stretches that overlap."""
        d = padded.shape[1]
        return padded.as_strided((self.batch * self.count, self.span, d), (self.block * d, d, 1))

    def blocks(self, rows: Float[Tensor, "rows d"]) -> Float[Tensor, "blocks block d"]:
        """Queries, cut."""
        return rows.view(self.batch * self.count, self.block, -1)


class _GatedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Tensor,
        gain: Tensor,
        offset: Tensor,
        pattern: BlockPattern,
        scale: float,
        turns: Turns | None,
        filled: Tensor | None,
    ) -> Tensor:
        (batch, length, _), d_qk = x.shape, gain.shape[1]
        d_hidden = (x.shape[2] - d_qk) // 2
        inputs = {"x": x.contiguous(), "gain": gain.contiguous(), "offset": offset.contiguous()}
        more = {} if turns is None else {
            "cosines": turns.cosines, "sines": turns.sines, "places": turns.places.contiguous(),
        }  # fmt: skip
        if filled is not None:
            more["filled"] = filled.contiguous()
        call = _Call({**inputs, **more}, (batch, length, d_qk, d_hidden), pattern, scale)
        q, k = x.new_empty(call.rows, d_qk), x.new_empty(call.padded, d_qk)
        v, out = x.new_empty(call.padded, d_hidden), x.new_empty(batch, length, d_hidden)
        with count_cost("gated_attention", **_cost(call, products=1)):
            call.run("prepare", q=q, k=k, v=v)
            weights = torch.bmm(call.blocks(q), call.beside(k).mT)
            call.run("weigh", weights=weights)
            h = torch.bmm(weights, call.beside(v))
            call.run("gate", h=h, out=out)
        ctx.save_for_backward(*inputs.values(), q, k, v, weights, h)
        ctx.rest = more, (batch, length, d_qk, d_hidden), pattern, scale  # type: ignore[attr-defined]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, offset, q, k, v, weights, h = ctx.saved_tensors  # type: ignore[attr-defined]
        more, sizes, pattern, scale = ctx.rest  # type: ignore[attr-defined]
        call = _Call({"x": x, "gain": gain, "offset": offset, **more}, sizes, pattern, scale)
        grad, grad_h, grad_x = grad.contiguous(), torch.empty_like(h), torch.empty_like(x)
        maps = x.new_empty(-(-call.rows // TILE), 2, 2, call.d_qk)
        with count_cost("gated_attention_backward", **_cost(call, products=2)):
            call.run("ungate", grad_out=grad, h=h, grad_h=grad_h, grad_x=grad_x)
            grad_v = torch.bmm(weights.mT, grad_h)
            grad_weights = torch.bmm(grad_h, call.beside(v).mT)
            call.run("unweigh", weights=weights, grad_weights=grad_weights)
            grad_q = torch.bmm(grad_weights, call.beside(k))
            grad_k = torch.bmm(grad_weights.mT, call.blocks(q))
            # The scale is in q, as the gradient of k wants it; that of q gets it in the last pass.
            call.run("unprepare", grad_q=grad_q, grad_k=grad_k, grad_v=grad_v, grad_x=grad_x, grad_maps=maps)
        of_gain, of_offset = maps.sum(0)
        return grad_x, of_gain, of_offset, None, None, None, None


def _cost(call: _Call, products: int) -> dict[str, int]:
    """Of both products, once forward and twice backward, and of what they read and write."""
    pairs, dim = call.rows * call.span, call.d_qk + call.d_hidden
    return {
        "flops": 2 * products * pairs * dim,
        "bytes": 4 * products * (2 * pairs + call.rows * (3 * dim + call.d_hidden)),
    }


@functools.cache
def _library() -> ctypes.CDLL:
    return load_library(Path(__file__).with_suffix(".c"), extra_flags=("-ffp-contract=fast",))
