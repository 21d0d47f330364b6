"""Long convolutions as a compiled loop (`fft_convolution.c`), each row from start to end in the cache."""

import ctypes
import functools
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from shoestring.errors import NoCompiler
from shoestring.kernels.costs import count_cost
from shoestring.kernels.native import load_library

LANES = 16
"""Rows that are turned at a time where features lie beside each other; as in `row_transform.h`."""
LEAF = 256
SHORT_TOPS, TOPS = (1, 2, 3), (4, 5, 6, 7, 8, 10, 12, 14)
"""Factors of the first pass, of one leaf each, and of any number of later passes by four."""
MOST_STEPS = 1 << 18
"""The longest period: beyond it the spectra of a row leave the cache, and torch is as fast."""
_LEAF_TABLE = 6 * 5 + 2 + 5 * 6 * LANES

_NUMBERS = {torch.float32: "float", torch.float64: "double"}


@dataclass(frozen=True)
class Transform:
    """Tables of a transform of rows of up to `2 points` numbers; `points` = top · height."""

    top: int
    height: int
    weights: Tensor
    turns: Tensor
    leaves: Tensor

    @property
    def points(self) -> int:
        return self.top * self.height

    @staticmethod
    def of(points: int, dtype: torch.dtype) -> "Transform":
        """The shortest of at least `points`. Raises: NoCompiler."""
        return _transform(*_shape(points), dtype)


def period(steps: int) -> int:
    """The shortest n of a compiled transform that is not below `steps`: of a product of rows."""
    return 2 * math.prod(_shape(-(-steps // 2)))


def why_not(u: Tensor, steps: int) -> str | None:
    """Why the compiled loop cannot convolve u with a period of `steps`; None where it can."""
    if u.device.type != "cpu":
        return f"torch's transforms answer on {u.device}: the compiled loop is for CPUs"
    if steps > MOST_STEPS:
        return f"torch's transforms answer for {steps} steps: the compiled loop is for up to {MOST_STEPS}"
    try:
        library(torch.promote_types(u.dtype, torch.float32))
    except NoCompiler as error:
        return f"torch's transforms answer instead of the compiled loop ({error})"
    return None


def compiled_convolve(
    u: Float[Tensor, "*batch channels seq"],
    kernel: Float[Tensor, "copies channels lags"] | None,
    spectrum: Float[Tensor, "copies channels numbers"] | None,
    skip: Float[Tensor, "copies channels"] | None,
    n: int,
) -> Float[Tensor, "*batch copies channels seq"]:
    """The convolution of period n, negated where it comes round, cropped to u. One of the two is given.

    It may lie in memory as u does, with channels beside each other. Raises: NoCompiler; ValueError for u
    that is not finite.
    """
    given = [part for part in (u, kernel, spectrum, skip) if part is not None]
    dtype = functools.reduce(torch.promote_types, (part.dtype for part in given))
    kernel, spectrum, skip = (part if part is None else part.to(dtype) for part in (kernel, spectrum, skip))
    samples = u.to(dtype).reshape(-1, *u.shape[-2:])
    y: Tensor = _Convolution.apply(samples, kernel, spectrum, skip, n)
    return y.view(*u.shape[:-2], *y.shape[1:])


def compiled_spectrum(kernel: Float[Tensor, "copies channels lags"], n: int) -> Tensor:
    """A kernel for `compiled_convolve`, transformed: (copies, channels, n) numbers in an order of its own."""
    copies, channels, lags = kernel.shape
    kernel, transform = kernel.contiguous(), Transform.of(n // 2, kernel.dtype)
    values = kernel.new_empty(copies, channels, n)
    arguments = _Arguments(
        copies=copies, channels=channels, lags=lags, threads=torch.get_num_threads(),
        transform=_tables(transform), kernel=kernel.data_ptr(),
    )  # fmt: skip
    flops = transform_flops(copies * channels, n)
    with count_cost("fft_convolution_spectrum", flops=flops, bytes=kernel.nbytes + values.nbytes):
        library(kernel.dtype).fft_convolution_spectrum(
            ctypes.byref(arguments), ctypes.c_void_p(values.data_ptr())
        )
    return values


def transform_flops(rows: int, n: int) -> int:
    """Of so many transforms of n real numbers, as those of torch are counted."""
    return round(rows * 2.5 * n * math.log2(n))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        u: Tensor,
        kernel: Tensor | None,
        spectrum: Tensor | None,
        skip: Tensor | None,
        n: int,
    ) -> Tensor:
        u = u if _is_by_step(u) or _is_by_channel(u) else u.contiguous()
        kernel, spectrum, skip = (
            part if part is None else part.contiguous() for part in (kernel, spectrum, skip)
        )
        ctx.save_for_backward(u, kernel, spectrum, skip)  # type: ignore[arg-type]
        ctx.n = n  # type: ignore[attr-defined]
        call = _Call(u, kernel, spectrum, skip, n)
        y = _like(u, call.copies)
        if call.run("forward", u=u, y=y):
            raise ValueError(
                "u holds NaN or infinity, or overflows; the transform would spread it to every step"
            )
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, kernel, spectrum, skip = ctx.saved_tensors  # type: ignore[attr-defined]
        call = _Call(u, kernel, spectrum, skip, ctx.n)  # type: ignore[attr-defined]
        of_u, of_kernel, _, of_skip, _ = ctx.needs_input_grad  # type: ignore[attr-defined]
        if _is_by_step(u):
            grad = grad if _is_by_step(grad) else grad.contiguous()
        elif not _is_by_channel(grad):
            grad = grad.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
        to_u = _like(u) if of_u else None
        # The spectrum of what goes straight through is that of a tap at lag 0, and so is its gradient.
        lags = call.lags if of_kernel else 1
        to_kernel = u.new_empty(call.copies, u.shape[1], lags) if of_kernel or of_skip else None
        call.run("backward", u=u, grad=grad, to_u=to_u, to_kernel=to_kernel)
        to_skip = None if to_kernel is None or not of_skip else to_kernel[..., 0]
        return to_u, to_kernel if of_kernel else None, None, to_skip, None


class _Rows(ctypes.Structure):
    _fields_ = (
        ("base", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch", "copy", "channel", "step")),
    )

    @staticmethod
    def of(x: Tensor) -> "_Rows":
        batch, *copy, channel, step = x.stride()
        return _Rows(x.data_ptr(), batch, copy[0] if copy else 0, channel, step)


class _Tables(ctypes.Structure):
    """The C struct `row_transform`."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("top", "height", "points")),
        *((name, ctypes.c_void_p) for name in ("weights", "turns", "leaves")),
    )


class _Arguments(ctypes.Structure):
    """The C struct `fft_convolution`."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "copies", "channels", "length", "lags")),
        *((name, ctypes.c_int64) for name in ("to_lags", "is_by_step", "threads", "room_numbers")),
        ("transform", _Tables),
        *((name, _Rows) for name in ("u", "y", "grad", "to_u")),
        *((name, ctypes.c_void_p) for name in ("kernel", "skip", "spectrum", "to_kernel", "room")),
        ("is_bad", ctypes.c_int64),
    )


class _Call:
    """What the forward and the backward loop are told alike."""

    def __init__(
        self, u: Tensor, kernel: Tensor | None, spectrum: Tensor | None, skip: Tensor | None, n: int
    ) -> None:
        made_of = kernel if spectrum is None else spectrum
        assert made_of is not None
        self._alive = (u, kernel, spectrum, skip, Transform.of(n // 2, u.dtype))
        self.copies, channels, self.lags = made_of.shape
        self._is_by_step = _is_by_step(u)
        group = 1 if self._is_by_step else LANES
        self._group = min(group, channels)
        self._arguments = _Arguments(
            batch=u.shape[0], copies=self.copies, channels=channels, length=u.shape[-1], lags=self.lags,
            is_by_step=self._is_by_step, threads=min(torch.get_num_threads(), -(-channels // group)),
            transform=_tables(self._alive[-1]),
            **{
                name: part.data_ptr()
                for name, part in (("kernel", kernel), ("spectrum", spectrum), ("skip", skip))
                if part is not None
            },
        )  # fmt: skip

    def run(self, direction: str, **tensors: Tensor | None) -> bool:
        """Call the loop; whether it met what is not finite."""
        arguments, u = self._arguments, self._alive[0]
        for name, part in tensors.items():
            if part is not None:
                setattr(arguments, name, part.data_ptr() if name == "to_kernel" else _Rows.of(part))
        if (to_kernel := tensors.get("to_kernel")) is not None:
            arguments.to_lags = to_kernel.shape[-1]
        slots = self.copies * (self._group if u.shape[0] > 1 else 1)
        spectra = slots + 2 if direction == "forward" else 2 * slots + 3
        numbers = spectra * 2 * self._alive[-1].points
        if not self._is_by_step:
            numbers += (self.copies + 1) * LANES * (-(-u.shape[-1] // LANES) + 1) * LANES
        room = u.new_empty(arguments.threads, numbers)
        arguments.room_numbers, arguments.room = numbers, room.data_ptr()
        read = sum(part.nbytes for part in self._alive[:-1] if part is not None and part is not u)
        moved = read + sum(part.nbytes for part in tensors.values() if part is not None)
        with count_cost(f"fft_convolution_{direction}", flops=self._flops(tensors), bytes=moved):
            getattr(library(u.dtype), f"fft_convolution_{direction}")(ctypes.byref(arguments))
        return bool(arguments.is_bad)

    def _flops(self, tensors: dict[str, Tensor | None]) -> int:
        """Transforms there and back, and a complex product for every two numbers of a spectrum."""
        (batch, channels, _), n = self._alive[0].shape, 2 * self._alive[-1].points
        rows, kernels = batch * channels, self.copies * channels
        of_kernel = 0 if self._alive[2] is not None else kernels
        if "y" in tensors:
            return transform_flops(rows * (1 + self.copies) + of_kernel, n) + 3 * n * rows * self.copies
        to_u, to_kernel = (tensors[name] is not None for name in ("to_u", "to_kernel"))
        transforms = rows * self.copies + to_u * (of_kernel + rows) + to_kernel * (rows + kernels)
        return transform_flops(transforms, n) + (to_u + to_kernel) * 4 * n * rows * self.copies


def _is_by_step(x: Tensor) -> bool:
    return x.shape[-1] == 1 or x.stride(-1) == 1


def _is_by_channel(x: Tensor) -> bool:
    return x.shape[-2] > 1 and x.stride(-2) == 1


def _like(u: Tensor, copies: int | None = None) -> Tensor:
    """Room for what lies in memory as u, (batch, channels, seq), does; with copies (batch, copies, …)."""
    batch, channels, seq = u.shape
    more = () if copies is None else (copies,)
    if _is_by_step(u):
        return u.new_empty(batch, *more, channels, seq)
    return u.new_empty(batch, seq, *more, channels).movedim(1, -1)


def _tables(transform: Transform) -> _Tables:
    return _Tables(
        top=transform.top, height=transform.height, points=transform.points,
        **{name: getattr(transform, name).data_ptr() for name in ("weights", "turns", "leaves")},
    )  # fmt: skip


def _shape(points: int) -> tuple[int, int]:
    """Top and height of the shortest transform of at least `points`."""
    for top in SHORT_TOPS:
        if top * LEAF >= points:
            return top, LEAF
    height = LEAF
    while TOPS[-1] * height < points:
        height *= 4
    return next(top for top in TOPS if top * height >= points), height


@functools.lru_cache(maxsize=16)
def _transform(top: int, height: int, dtype: torch.dtype) -> Transform:
    leaves, passes = top * height // LEAF, round(math.log(height // LEAF, 4))
    weights = torch.empty(top, 2 * top, 2, dtype=dtype)
    turns = torch.empty(sum(top * 4**level for level in range(passes)), 6, dtype=dtype)
    made = Transform(top, height, weights, turns, torch.empty(leaves, _LEAF_TABLE, dtype=dtype))
    addresses = [ctypes.c_void_p(part.data_ptr()) for part in (made.weights, made.turns, made.leaves)]
    library(dtype).fft_convolution_tables(ctypes.c_int64(top), ctypes.c_int64(height), *addresses)
    return made


@functools.cache
def library(dtype: torch.dtype) -> ctypes.CDLL:
    """The compiled loop for numbers of a type. Raises: NoCompiler."""
    flags = "-ffp-contract=fast", f"-DNUMBER={_NUMBERS[dtype]}"
    return load_library(Path(__file__).with_name("fft_convolution.c"), extra_flags=flags)
