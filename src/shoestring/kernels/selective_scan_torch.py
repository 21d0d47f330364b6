"""The selective scan in plain torch: chunk after chunk of positions, each scanned at once.

A chunk is a linear scan with a decay for every channel and state. The backward pass takes the chunks from the
last to the first, runs each again from the state before it and lets autograd differentiate that one.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from shoestring.kernels.linear_scan import associative_scan
from shoestring.kernels.selective_scan_inputs import ScanInputs, ScanOptions

CHUNK = 32
"""Positions whose states are held at a time."""
_SEQUENCES = ("x", "dt", "B", "C", "z")


class ChunkedScan(torch.autograd.Function):
    """`apply(options, *inputs)` gives y and the last state."""

    @staticmethod
    def forward(ctx: FunctionCtx, options: ScanOptions, *tensors: Tensor | None) -> tuple[Tensor, Tensor]:
        inputs = ScanInputs(*tensors)  # type: ignore[arg-type]
        state = _initial(inputs)
        ys, states = {}, []
        for start in _starts(inputs, options):
            states.append(state)
            ys[start], state = scan_chunk(_piece(inputs, start, state), options)
        ctx.save_for_backward(torch.stack(states), *tensors)  # type: ignore[arg-type]
        ctx.options = options  # type: ignore[attr-defined]
        return torch.cat([ys[start] for start in sorted(ys)], 1), state

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_y: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
        states, *tensors = ctx.saved_tensors  # type: ignore[attr-defined]
        options: ScanOptions = ctx.options  # type: ignore[attr-defined]
        inputs = ScanInputs(*tensors)
        grads = {n: torch.zeros_like(p) for n, p in inputs._asdict().items() if p is not None}
        for number, start in reversed(list(enumerate(_starts(inputs, options)))):
            piece = _piece(inputs, start, states[number])
            found = _chunk_gradient(piece, options, grad_y[:, start : start + CHUNK], grad_last)
            grad_last = found.pop("initial")
            for name, grad in found.items():
                if name in _SEQUENCES:
                    grads[name][:, start : start + CHUNK] = grad
                else:
                    grads[name] += grad
        if "initial" in grads:
            grads["initial"] = grad_last
        return None, *(grads.get(name) for name in ScanInputs._fields)


def _chunk_gradient(
    piece: ScanInputs, options: ScanOptions, grad_y: Tensor, grad_last: Tensor
) -> dict[str, Tensor]:
    """By name, of what is given; on return nothing of the chunk's graph is left."""
    leaves = {n: p.detach().requires_grad_() for n, p in piece._asdict().items() if p is not None}
    with torch.enable_grad():
        out = scan_chunk(ScanInputs(**leaves), options)
    found = torch.autograd.grad(out, list(leaves.values()), (grad_y, grad_last))
    return dict(zip(leaves, found, strict=True))


def scan_chunk(inputs: ScanInputs, options: ScanOptions) -> tuple[Tensor, Tensor]:
    """y and the last state of a few positions, with the states of all of them at once."""
    x, dt, A, B, C, D, z, dt_bias, initial = inputs
    channels = x.shape[2]
    d = dt if dt_bias is None else dt + dt_bias
    d = F.softplus(d, threshold=float("inf")) if options.softplus else d
    decay = (d[..., None] * A).exp()
    added = (d * x).unflatten(2, (B.shape[2], -1))[..., None] * B[:, :, :, None]
    h, last = associative_scan(decay, added.flatten(2, 3), initial, reverse=options.reverse)
    y = torch.einsum("bsgcn,bsgn->bsgc", h.unflatten(2, (C.shape[2], channels // C.shape[2])), C).flatten(2)
    y = y if D is None else y + D * x
    return (y if z is None else y * F.silu(z)), last


def _initial(inputs: ScanInputs) -> Tensor:
    if inputs.initial is not None:
        return inputs.initial
    return inputs.x.new_zeros(inputs.x.shape[0], *inputs.A.shape)


def _starts(inputs: ScanInputs, options: ScanOptions) -> list[int]:
    """Where the chunks begin, in the order in which they are scanned."""
    starts = list(range(0, inputs.x.shape[1], CHUNK))
    return starts[::-1] if options.reverse else starts


def _piece(inputs: ScanInputs, start: int, state: Tensor) -> ScanInputs:
    cut = {
        name: part[:, start : start + CHUNK]
        for name in _SEQUENCES
        if (part := getattr(inputs, name)) is not None
    }
    return inputs._replace(**cut, initial=state)
