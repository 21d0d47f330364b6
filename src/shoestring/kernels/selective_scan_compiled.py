"""The selective scan as a compiled loop (`selective_scan.c`), with its gradient."""

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from shoestring.kernels.causal_conv1d import rows_of
from shoestring.kernels.native import load_library
from shoestring.kernels.selective_scan_inputs import ScanInputs, ScanOptions

CHUNK = 64
"""Positions between states that are kept for the gradient; as in `selective_scan.c`."""
LANES = 16
MOST_STATES = 256

_SIZES = (
    *("batch", "seq", "channels", "states", "b_groups", "c_groups", "blocks"),
    *("x_row", "dt_row", "z_row", "b_row", "c_row", "reverse", "softplus", "threads"),
)
_POINTERS = (
    *("x", "dt", "a", "b", "c", "skip", "z", "bias", "initial", "y", "last", "checkpoints"),
    *("grad_y", "grad_last", "grad_x", "grad_dt", "grad_z", "grad_a", "grad_b", "grad_c"),
    *("grad_skip", "grad_bias", "grad_initial"),
)
_NAMES = {"A": "a", "B": "b", "C": "c", "D": "skip", "dt_bias": "bias"}


class _Arguments(ctypes.Structure):
    """The C struct `selective_scan`."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_void_p) for name in _POINTERS),
    )


class CompiledScan(torch.autograd.Function):
    """`apply(options, differentiable, *inputs)`, all in float32 on the CPU, gives y and the last state.

    differentiable: whether a gradient may be asked for, which inside a Function cannot be told.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, options: ScanOptions, differentiable: bool, *tensors: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        inputs = _regular(ScanInputs(*tensors))  # type: ignore[arg-type]
        x = inputs.x
        out = {"y": x.new_empty(x.shape), "last": x.new_empty(x.shape[0], *inputs.A.shape)}
        if differentiable:
            chunks = -(-x.shape[1] // CHUNK)
            shape = x.shape[0], _blocks(inputs), chunks, inputs.A.shape[1], LANES
            out["checkpoints"] = x.new_empty(shape)
            ctx.save_for_backward(out["checkpoints"], *inputs)  # type: ignore[arg-type]
        library().selective_scan_forward(ctypes.byref(_arguments(inputs, options, out)))
        ctx.options = options  # type: ignore[attr-defined]
        return out["y"], out["last"]

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_y: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
        checkpoints, *tensors = ctx.saved_tensors  # type: ignore[attr-defined]
        inputs = ScanInputs(*tensors)
        x, (channels, states), blocks = inputs.x, inputs.A.shape, _blocks(inputs)
        batch, seq = x.shape[:2]
        out = {
            "checkpoints": checkpoints, "grad_y": grad_y.contiguous(), "grad_last": grad_last.contiguous(),
            "grad_x": x.new_empty(x.shape), "grad_dt": x.new_empty(x.shape),
            "grad_a": x.new_empty(batch, channels, states), "grad_skip": x.new_empty(batch, channels),
            "grad_bias": x.new_empty(batch, channels), "grad_initial": x.new_empty(batch, channels, states),
            "grad_b": x.new_empty(batch, blocks, seq, states),
            "grad_c": x.new_empty(batch, blocks, seq, states),
        }  # fmt: skip
        if inputs.z is not None:
            out["grad_z"] = x.new_empty(x.shape)
        options = ctx.options  # type: ignore[attr-defined]
        if library().selective_scan_backward(ctypes.byref(_arguments(inputs, options, out))):
            raise MemoryError("no memory for the states of a chunk")
        grads = {
            "x": out["grad_x"], "dt": out["grad_dt"], "A": out["grad_a"].sum(0),
            "B": _sum_blocks(out["grad_b"], inputs.B), "C": _sum_blocks(out["grad_c"], inputs.C),
            "D": out["grad_skip"].sum(0), "z": out.get("grad_z"), "dt_bias": out["grad_bias"].sum(0),
            "initial": out["grad_initial"],
        }  # fmt: skip
        return None, None, *(grads[n] if getattr(inputs, n) is not None else None for n in inputs._fields)


def _sum_blocks(each: Tensor, like: Tensor) -> Tensor:
    """(batch, blocks, seq, states) added up within the groups of B or C: (batch, seq, groups, states)."""
    return each.unflatten(1, (like.shape[2], -1)).sum(2).transpose(1, 2)


def _regular(inputs: ScanInputs) -> ScanInputs:
    """Sequences with positions at one distance, everything else dense; copied only where they are not."""
    rows = {name: rows_of(getattr(inputs, name).flatten(2)) for name in ("x", "dt", "B", "C")}
    for name in ("B", "C"):
        rows[name] = rows[name].unflatten(2, getattr(inputs, name).shape[2:])
    z = None if inputs.z is None else rows_of(inputs.z)
    dense = {n: None if (part := getattr(inputs, n)) is None else part.contiguous()
             for n in ("A", "D", "dt_bias", "initial")}  # fmt: skip
    return ScanInputs(**rows, **dense, z=z)  # type: ignore[arg-type]


def _blocks(inputs: ScanInputs) -> int:
    """Blocks of up to sixteen channels of one group of both B and C."""
    groups = max(inputs.B.shape[2], inputs.C.shape[2])
    return groups * -(-inputs.x.shape[2] // groups // LANES)


def _arguments(inputs: ScanInputs, options: ScanOptions, out: dict[str, Tensor]) -> Any:
    (batch, seq, channels), states = inputs.x.shape, inputs.A.shape[1]
    given = {_NAMES.get(name, name): part for name, part in inputs._asdict().items() if part is not None}
    return _Arguments(
        batch=batch, seq=seq, channels=channels, states=states, b_groups=inputs.B.shape[2],
        c_groups=inputs.C.shape[2], blocks=_blocks(inputs), x_row=inputs.x.stride(1),
        dt_row=inputs.dt.stride(1), z_row=0 if inputs.z is None else inputs.z.stride(1),
        b_row=inputs.B.stride(1), c_row=inputs.C.stride(1), reverse=options.reverse,
        softplus=options.softplus, threads=torch.get_num_threads(),
        **{name: part.data_ptr() for name, part in (given | out).items()},
    )  # fmt: skip


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled loop. Raises: NoCompiler."""
    source = Path(__file__).with_name("selective_scan.c")
    return load_library(source, extra_flags=("-ffp-contract=fast",))
