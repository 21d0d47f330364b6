"""The ways to multiply by a packed matrix on a processor, each with what it needs and what it costs.

Source: Efficient Mixed-Precision Large Language Model Inference with TurboMind (2025), section 4 (dispatch);
split sums and swizzled blocks, which its GPU kernels choose among too, have no counterpart here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from shoestring.errors import NoCompiler
from shoestring.kernels.costs import Cost
from shoestring.kernels.dequantise import dequantise_rows
from shoestring.kernels.grouped_linear import Activations, GroupedWeights
from shoestring.kernels.native import compiler_path
from shoestring.kernels.packed_linear import MOST_ROWS, PackedWeights, packed_linear
from shoestring.numbers.grouped_affine import GroupedAffine, ZeroPoint
from shoestring.numbers.packing import unpack_bits

Product = Callable[[Float[Tensor, "tokens inputs"]], Float[Tensor, "tokens outputs"]]
Prepare = Callable[[GroupedAffine, Mapping[str, Tensor], int], Product]
CHUNK_WEIGHTS = 1 << 18
"""Weights that are unpacked at once before a dense product: a panel that stays in the second-level cache."""
_CODE_OPERATIONS = 4
"""To make a float of a code: shift, mask, convert, and a share of scale and zero."""
_ROWS_TOGETHER = 4
"""Rows of x that share an unpacked code in the kernels of planes."""


@dataclass(frozen=True)
class LinearProblem:
    """x Wᵀ for `tokens` rows of x. activations: INT8 allows that x is rounded, FLOAT32 does not."""

    form: GroupedAffine
    outputs: int
    inputs: int
    tokens: int
    activations: Activations = Activations.FLOAT32

    @property
    def weights(self) -> int:
        return self.outputs * self.inputs

    @property
    def moved_bytes(self) -> int:
        """Bytes that no way of doing it can leave out."""
        return self.form.nbytes(self.outputs, self.inputs) + 4 * self.tokens * (self.inputs + self.outputs)


@dataclass(frozen=True)
class LinearOption:
    """One way. number: what tables of measurements call it; never given to another.

    why_not: the reason why a problem cannot be solved so, or None. cost: operations of 32-bit lanes and bytes
    moved. prepare: the product with a stored matrix, packed as this way wants it.
    """

    name: str
    number: int
    why_not: Callable[[LinearProblem], str | None]
    cost: Callable[[LinearProblem], Cost]
    prepare: Prepare


def _needs_compiler(problem: LinearProblem) -> str | None:
    try:
        compiler_path()
    except NoCompiler as error:
        return str(error)
    return None


def _int8_why_not(problem: LinearProblem) -> str | None:
    if problem.activations is not Activations.INT8:
        return "the inputs may not be rounded to int8"
    return _needs_compiler(problem)


def _stream_why_not(problem: LinearProblem) -> str | None:
    if problem.tokens > MOST_ROWS:
        return f"{problem.tokens} rows of x, more than the {MOST_ROWS} of a block"
    return _needs_compiler(problem)


def _planes_cost(problem: LinearProblem, per_product: int) -> Cost:
    unpacked = -(-problem.tokens // _ROWS_TOGETHER) * problem.weights * _CODE_OPERATIONS
    return Cost(unpacked + 2 * problem.tokens * problem.weights // per_product, problem.moved_bytes)


def _stream_cost(problem: LinearProblem) -> Cost:
    operations = (_CODE_OPERATIONS + 2 * problem.tokens) * problem.weights
    # Scales and offsets are float32 there.
    return Cost(operations, problem.moved_bytes + 8 * problem.weights // problem.form.group_size)


def _panel_cost(problem: LinearProblem) -> Cost:
    operations = (_CODE_OPERATIONS + 2 * problem.tokens) * problem.weights
    return Cost(operations, problem.moved_bytes + 8 * problem.weights)


def _prepare_planes(
    activations: Activations,
) -> Callable[[GroupedAffine, Mapping[str, Tensor], int], Product]:
    def prepare(form: GroupedAffine, stored: Mapping[str, Tensor], cols: int) -> Product:
        return GroupedWeights.pack(form, dict(stored), cols).kernel(activations)

    return prepare


def _prepare_stream(form: GroupedAffine, stored: Mapping[str, Tensor], cols: int) -> Product:
    grid = form.grid(dict(stored), cols)
    codes = unpack_bits(stored["codes"], form.bits, cols)
    weights = PackedWeights.pack(codes, f"u{form.bits}", form.group_size)
    shift = grid.offset if form.zero_point is ZeroPoint.REAL else -grid.scale * grid.zero
    scales, offsets = (part.T.contiguous().T for part in (grid.scale, shift))
    return lambda x: packed_linear(x, weights, scales, offsets)


def _prepare_panel(form: GroupedAffine, stored: Mapping[str, Tensor], cols: int) -> Product:
    rows, step = len(stored["codes"]), max(1, CHUNK_WEIGHTS // cols)

    def product(x: Tensor) -> Tensor:
        y = x.new_empty(len(x), rows)
        for start in range(0, rows, step):
            part = {name: tensor[start : start + step] for name, tensor in stored.items()}
            y[:, start : start + step] = F.linear(x, dequantise_rows(form, part, cols, x.dtype))
        return y

    return product


OPTIONS: tuple[LinearOption, ...] = (
    LinearOption(
        "planes", 1, _needs_compiler, lambda p: _planes_cost(p, 1), _prepare_planes(Activations.FLOAT32)
    ),
    LinearOption(
        "planes, int8 inputs", 2, _int8_why_not, lambda p: _planes_cost(p, 4),
        _prepare_planes(Activations.INT8),
    ),
    LinearOption("stream", 3, _stream_why_not, _stream_cost, _prepare_stream),
    LinearOption("panel", 4, lambda _: None, _panel_cost, _prepare_panel),
)  # fmt: skip
"""The kernels of `grouped_linear`, that of `packed_linear`, and unpacking panel by panel for torch."""


def naive_product(
    form: GroupedAffine, stored: Mapping[str, Tensor], cols: int, x: Float[Tensor, "tokens inputs"]
) -> Float[Tensor, "tokens outputs"]:
    """What all of them compute, in float64; rounding of inputs aside."""
    return (x.double() @ form.dequantise(dict(stored), cols).double().T).to(torch.float32)
