"""Linear layers with codes of 1 to 8 bits and a scale per group of inputs, for a decode step.

y = x Wᵀ with w = s·(q − z) + o. The codes are packed once, in the order in which the kernel reads them, and take
as many bytes as before where a block of inputs (see `block_inputs`) fills whole runs of 16.

Source: the form is eq. 1 of Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", with inputs that are scaled block by block as they come.
"""

import ctypes
import enum
import functools
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from shoestring.kernels.dense_linear import FLAGS
from shoestring.kernels.linear_kernel import LinearKernel, aligned_room
from shoestring.kernels.native import load_library
from shoestring.numbers.grouped_affine import GroupedAffine, ZeroPoint
from shoestring.numbers.packing import unpack_bits

_TILE, _RUN = 16, 16
"""Outputs of a tile, and inputs of a quartet."""
_USUAL_BLOCK = 32
_CHUNK_CODES = 1 << 22
_AHEAD_BYTES = 2048
"""Behind every plane, so that what the kernel prefetches is its own."""


class Activations(enum.Enum):
    """In what x takes part: rounded to int8 with a scale per block of inputs, or as it is."""

    INT8 = 8
    FLOAT32 = 32


@dataclass(frozen=True)
class GroupedWeights:
    """A matrix packed for `grouped_linear.c`. planes: of 8 or 4 bits, of 2, of 1; None where the width has none.

    scales: (tiles, groups, 16) float16, or uint8 that mean (code + 1) · multiplier. shifts: zero points as uint8
    or offsets as float16, in the same order. multipliers: (tiles, 16).
    """

    bits: int
    group_size: int
    outputs: int
    inputs: int
    zero_point: ZeroPoint
    planes: tuple[Tensor | None, Tensor | None, Tensor | None] = field(repr=False)
    scales: Tensor = field(repr=False)
    shifts: Tensor | None = field(repr=False)
    multipliers: Tensor | None = field(repr=False)

    @classmethod
    def pack(cls, form: GroupedAffine, stored: dict[str, Tensor], cols: int) -> "GroupedWeights":
        """Pack the stored tensors of a format; they are only read, a few rows at a time.

        Raises: ValueError for columns that are not whole groups.
        """
        rows, groups = stored["codes"].shape[0], form.groups(cols)
        tiles = -(-rows // _TILE)
        n_quartets = tiles * (cols // block_inputs(form.group_size)) * _quartets(form.group_size)
        planes = _empty_planes(form.bits, n_quartets)
        step = max(1, _CHUNK_CODES // (cols * _TILE)) * _TILE
        for start in range(0, rows, step):
            codes = unpack_bits(stored["codes"][start : start + step], form.bits, cols)
            _fill_planes(planes, codes, form, start // _TILE)
        if form.scale_bits == 16:
            scales, multipliers = _tiled(stored["scales"]), None
        else:
            scales = _tiled(unpack_bits(stored["scales"], form.scale_bits, groups))
            multipliers = _tiled(stored["scale_multiplier"].float()[:, None] / (1 << form.scale_bits))
        shifts = None
        if form.zero_point is ZeroPoint.INTEGER:
            shifts = _tiled(unpack_bits(stored["zeros"], form.bits, groups))
        elif form.zero_point is ZeroPoint.REAL:
            shifts = _tiled(stored["offsets"])
        three = planes.get(8, planes.get(4)), planes.get(2), planes.get(1)
        return cls(
            form.bits, form.group_size, rows, cols, form.zero_point, three, scales, shifts, multipliers
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all that a product reads."""
        parts = (*self.planes, self.scales, self.shifts, self.multipliers)
        return sum(part.nbytes for part in parts if part is not None)

    def kernel(self, activations: Activations, bias: Tensor | None = None) -> LinearKernel:
        """The product with this matrix as a kernel for a team of threads.

        Raises: NoCompiler.
        """
        return grouped_kernel(self, activations, bias, _library())


def grouped_kernel(
    weights: GroupedWeights, activations: Activations, bias: Tensor | None, library: ctypes.CDLL
) -> LinearKernel:
    """`GroupedWeights.kernel` with a library of choice: the source built for this or a lesser processor."""
    kind = "int8" if activations is Activations.INT8 else "float"
    block = block_inputs(weights.group_size)
    sizes = (
        block,
        _quartets(weights.group_size),
        weights.group_size // block,
        weights.inputs // block,
        list(ZeroPoint).index(weights.zero_point),
        int(weights.multipliers is not None),
    )
    tensors = (*weights.planes, weights.scales, weights.shifts, weights.multipliers)
    return LinearKernel(
        getattr(library, f"grouped_{kind}_{weights.bits}"),
        getattr(library, f"grouped_{kind}_scratch"),
        weights.inputs,
        weights.outputs,
        tensors,
        sizes,
        bias,
    )


def block_inputs(group_size: int) -> int:
    """How many inputs are scaled together: the part of a group that wastes least as whole runs of 16, and of
    those that waste the same, the largest up to 32, else the smallest."""

    def cost(block: int) -> tuple[float, bool, int]:
        waste = -(-block // _RUN) * _RUN / block
        return waste, block > _USUAL_BLOCK, block if block > _USUAL_BLOCK else -block

    return min((b for b in range(1, group_size + 1) if group_size % b == 0), key=cost)


def naive_grouped_linear(
    x: Float[Tensor, "tokens inputs"],
    weight: Float[Tensor, "outputs inputs"],
    group_size: int,
    activations: Activations,
) -> Float[Tensor, "tokens outputs"]:
    """The product by its definition, in float64: x rounded block by block where it is int8, times the matrix."""
    if activations is Activations.INT8:
        blocks = x.unflatten(1, (-1, block_inputs(group_size)))
        largest = blocks.abs().amax(-1, keepdim=True)
        inverse = torch.where(largest > 1e-30, 127.0 / largest, 0.0)
        # The product of two float32 is exact in float64: one rounding, ties to even.
        codes = (blocks.double() * inverse.double()).round()
        x = (codes * (largest / 127.0).double()).flatten(1)
    return x.double() @ weight.double().T


def _quartets(group_size: int) -> int:
    return -(-block_inputs(group_size) // _RUN)


def _empty_planes(bits: int, n_quartets: int) -> dict[int, Tensor]:
    """Room of each plane, by its width; what is never written stays code 0."""
    widths = [8] if bits == 8 else [width for width in (4, 2, 1) if bits & width]
    return {width: _long_room(32 * width * n_quartets) for width in widths}


def _long_room(n_bytes: int) -> Tensor:
    return aligned_room(n_bytes + _AHEAD_BYTES)[:n_bytes].zero_()


def _fill_planes(
    planes: dict[int, Tensor], codes: UInt8[Tensor, "rows cols"], form: GroupedAffine, tile: int
) -> None:
    """Put the codes of some rows where they belong; the first row is that of a tile."""
    rows, cols = codes.shape
    block, quartets = block_inputs(form.group_size), _quartets(form.group_size)
    codes = torch.nn.functional.pad(codes.view(rows, cols // block, block), (0, quartets * _RUN - block))
    codes = torch.nn.functional.pad(codes.flatten(1), (0, 0, 0, -rows % _TILE))
    # (tile, quartet, quad, output, input of a quad)
    quads = codes.view(-1, _TILE, codes.shape[1] // _RUN, 4, 4).permute(0, 2, 3, 1, 4).reshape(-1, 4, 64)
    first = tile * (codes.shape[1] // _RUN)
    below = form.bits
    for width, plane in planes.items():
        below -= width
        part = (quads >> below) & ((1 << width) - 1)
        plane.view(-1, 32 * width)[first : first + len(part)] = _fold(part, width)


def _fold(part: UInt8[Tensor, "quartets 4 64"], width: int) -> UInt8[Tensor, "quartets bytes"]:
    """Four quads of `width`-bit numbers in the bytes of a plane; see `grouped_codes.h`."""
    if width == 8:
        return part.flatten(1)
    if width == 4:
        return (part[:, 0::2] | part[:, 1::2] << 4).flatten(1)
    if width == 2:
        return part[:, 0] | part[:, 1] << 2 | part[:, 2] << 4 | part[:, 3] << 6
    halves = part.view(-1, 8, 32)[:, [0, 2, 4, 6, 1, 3, 5, 7]]
    folded = halves[:, 0]
    for bit in range(1, 8):
        folded = folded | halves[:, bit] << bit
    return folded


def _tiled(values: Tensor) -> Tensor:
    """(rows, groups) -> (tiles, groups, 16), with zeros for rows that are not there."""
    padded = torch.nn.functional.pad(values, (0, 0, 0, -values.shape[0] % _TILE))
    tiled = padded.view(-1, _TILE, values.shape[1]).transpose(1, 2)
    return _long_room(tiled.numel() * tiled.element_size()).view(tiled.dtype).view(tiled.shape).copy_(tiled)


@functools.cache
def _library(flags: tuple[str, ...] = ()) -> ctypes.CDLL:
    return load_library(Path(__file__).with_suffix(".c"), extra_flags=FLAGS + flags)
