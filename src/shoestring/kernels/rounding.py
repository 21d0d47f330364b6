"""Rounding of CPU tensors in compiled C: the bits of `numbers.round_to_format`, at the speed of a copy."""

import ctypes
import functools
import platform
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from shoestring.errors import NoCompiler
from shoestring.kernels.costs import count_cost
from shoestring.kernels.native import load_library
from shoestring.notices import notice_fallback
from shoestring.numbers.formats import FloatFormat
from shoestring.numbers.philox import check_range
from shoestring.numbers.rounding import round_to_format as round_plainly
from shoestring.numbers.rounding_bits import (
    CARRIERS,
    Carrier,
    Rounding,
    beyond_range,
    check_carrier,
    check_float_mode,
    format_grid,
)

_SOURCE = Path(__file__).with_name("rounding.c")
_FLAGS: tuple[str, ...] = ("-fno-trapping-math",)
if platform.machine().lower() in ("x86_64", "amd64"):
    _FLAGS += ("-mprefer-vector-width=512",)
_NATIVE = {torch.float32: CARRIERS["float32"], torch.float64: CARRIERS["float64"]}
_NEAREST_EVEN_FAST = 11
_NO_LIMIT = -(1 << 20)


class _Target(ctypes.Structure):
    """The C struct `target`."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("sig_bits", "lowest", "flush", "bias")),
        *((name, ctypes.c_uint64) for name in ("smallest", "largest", "above", "below", "infinite", "xmin")),
        ("magic", ctypes.c_double),
    )


def round_to_format(
    x: Shaped[Tensor, "*shape"],
    fmt: FloatFormat,
    mode: int = Rounding.NEAREST_EVEN,
    *,
    seed: int = 0,
    explim: bool = True,
    offset: int = 0,
    call: int = 0,
    out: Float[Tensor, "..."] | None = None,
) -> Shaped[Tensor, "*shape"]:
    """Round every element of a tensor to a number of `fmt`: `numbers.round_to_format`, compiled.

    Runs on as many threads as torch does; the draws of the stochastic modes do not depend on their number.
    `out`: a contiguous CPU tensor of the dtype and shape of `x` that takes the result (`x` itself: in place).
    What the C loop does not take (other devices and dtypes, strided tensors, E8M0) goes the plain way, with a
    notice on stderr.

    Raises: as `numbers.round_to_format`; ValueError for an `out` that does not match.
    """
    mode = check_float_mode(mode)
    if out is not None:
        _check_out(x, out)
    library, reason = _library_for(x, fmt)
    if library is None:
        notice_fallback("kernels.round_to_format", reason)
        with count_cost("round_to_format", **_cost(x)):
            rounded = round_plainly(x, fmt, mode, seed=seed, explim=explim, offset=offset, call=call)
        return rounded if out is None else out.copy_(rounded)
    check_range(x.numel(), seed, offset, call)
    carrier = _NATIVE[x.dtype]
    check_carrier(fmt, carrier, explim)
    target, fast = _target(fmt, mode, explim, carrier)
    result = torch.empty_like(x, requires_grad=False) if out is None else out
    with count_cost("round_to_format", **_cost(x)):
        library.round_array(
            ctypes.c_void_p(x.data_ptr()),
            ctypes.c_void_p(result.data_ptr()),
            ctypes.c_int64(x.numel()),
            ctypes.byref(target),
            ctypes.c_int(_NEAREST_EVEN_FAST if fast else mode),
            ctypes.c_uint64(seed),
            ctypes.c_uint64(offset),
            ctypes.c_uint32(call),
            ctypes.c_int(torch.get_num_threads()),
        )
    return result


def _cost(x: Any) -> dict[str, int]:
    """Rounding is one operation an element, as any element-wise function; each is read and written once."""
    if not isinstance(x, Tensor):
        return {"flops": 0, "bytes": 0}
    return {"flops": x.numel(), "bytes": 2 * x.nbytes}


def _library_for(x: Tensor, fmt: FloatFormat) -> tuple[ctypes.CDLL | None, str]:
    if not isinstance(x, Tensor):
        return None, f"the compiled loop takes torch tensors, not {type(x).__name__}"
    if x.device.type != "cpu":
        return None, f"the compiled loop is for the CPU and the tensor is on {x.device}"
    if x.dtype not in _NATIVE:
        return None, f"the compiled loop takes float32 and float64, not {x.dtype}"
    if not x.is_contiguous():
        return None, "the compiled loop takes contiguous tensors"
    if not fmt.signed:
        return None, "the compiled loop takes signed formats"
    try:
        return load_library(_SOURCE, extra_flags=(f"-DWIDTH={_NATIVE[x.dtype].width}", *_FLAGS)), ""
    except NoCompiler as error:
        return None, str(error)


@functools.lru_cache(maxsize=256)
def _target(fmt: FloatFormat, mode: Rounding, explim: bool, carrier: Carrier) -> tuple[_Target, bool]:
    """The C struct of a format, and whether the bit trick for rounding to nearest even applies to it.

    The trick adds and subtracts a constant below xmin, which is exact while the format's least number is
    normal in the carrier with room to spare.
    """
    grid = format_grid(fmt, explim)
    lowest = _NO_LIMIT if grid.lowest is None else grid.lowest
    least = lowest if grid.flush is None else grid.flush
    largest, above, below, infinite = carrier.infinity, 0, 0, carrier.infinity
    if explim:
        largest = carrier.bits_of(fmt.xmax)
        above, below, infinite = beyond_range(fmt, mode, carrier)
    same_xmin = fmt.emin == carrier.lowest + carrier.sig_bits
    fast = (
        mode == Rounding.NEAREST_EVEN
        and explim
        and fmt.subnormal
        and (fmt.sig_bits > 0 or fmt.bias % 2 == 1)
        and (same_xmin or lowest > carrier.lowest + carrier.sig_bits + 1)
    )
    by_constant = fast and not same_xmin
    return _Target(
        fmt.sig_bits,
        lowest,
        _NO_LIMIT if grid.flush is None else grid.flush,
        fmt.bias,
        0 if grid.lowest is None else carrier.power_bits(least),
        largest,
        above,
        below,
        infinite,
        carrier.power_bits(fmt.emin) if by_constant else 0,
        1.5 * 2.0 ** (carrier.sig_bits + lowest) if by_constant else 0.0,
    ), fast


def _check_out(x: Tensor, out: Tensor) -> None:
    if out.dtype != x.dtype or out.shape != x.shape or out.device != x.device or not out.is_contiguous():
        raise ValueError(
            f"out is a {tuple(out.shape)} tensor of {out.dtype} on {out.device}; it must be a contiguous one "
            f"like x, {tuple(x.shape)} of {x.dtype} on {x.device}"
        )
    if out.requires_grad:
        raise ValueError("out requires a gradient; rounding in place would hide the change from autograd")
