"""Linear layers with codes of 1 to 8 bits and a scale per group of inputs, for a decode step.

y = x Wᵀ with w = s·(q − z) + o. The codes are packed once, in the order in which the kernel reads them, and
take as many bytes as before where a block of inputs (see `block_inputs`) fills whole runs of 16.

Source: the form is eq. 1 of Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", with inputs that are scaled block by block as they come.
"""

import ctypes
import enum
import functools
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from shoestring.kernels.dense_linear import FLAGS
from shoestring.kernels.large_pages import room_on_large_pages
from shoestring.kernels.linear_kernel import LinearKernel, ManyRows, aligned_room
from shoestring.kernels.native import load_library
from shoestring.numbers.grouped_affine import GroupedAffine, ZeroPoint
from shoestring.numbers.packing import pack_bits, packed_bytes, unpack_bits

_TILE, _RUN = 16, 16
"""Outputs of a tile, and inputs of a quartet."""
_USUAL_BLOCK = 32
_QUARTET_BYTES = 32
"""Of a quartet in a plane, per bit."""
_SCALES = (torch.float16, torch.uint8, torch.float32)
"""Types of scales by their number in `grouped_codes.h`."""
_AHEAD_BYTES = 2048
"""Behind every plane, so that what the kernel prefetches is its own."""


class Activations(enum.Enum):
    """In what x takes part: rounded to int8 with a scale per block of inputs, or as it is.

    Where 32 rows or more are multiplied at once, INT8 lets a processor with matrix tiles (`has_matrix_tiles`)
    round them and the weights to bfloat16 instead, which errs less and takes a fraction of the time.

    On WikiText-2 (validation, 2048 tokens in windows of 256, benchmarks/activation_bits.py) int8 inputs with
    a float16 cache cost SmolLM2-135M in Q4_1 0.8 % of perplexity (24.88 to 25.08) and 0.0035 nats of
    divergence, and a model fitted into 64 MiB (2 to 8 bits) 0.4 % (30.84 to 30.96) and 0.0036 nats.
    """

    INT8 = 8
    FLOAT32 = 32


@dataclass(frozen=True)
class GroupedWeights:
    """A matrix packed for `grouped_linear.c`.

    planes: of 8 or 4 bits, of 2, of 1; None where the width has none. scales: (tiles, groups, 16) float16 or
    float32, or uint8 that mean (code + 1) · multiplier. shifts: zero points as uint8 or offsets as the format
    stores them, in the same order. multipliers: (tiles, 16).
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
        three = _packed_planes(stored["codes"].contiguous(), form.bits, form.group_size, cols)
        if form.scale_type is not None:
            scales, multipliers = _tiled(stored["scales"]), None
        else:
            scales = _tiled(unpack_bits(stored["scales"], form.scale_bits, groups))
            multipliers = _tiled(stored["scale_multiplier"].float()[:, None] / (1 << form.scale_bits))
        shifts = None
        if form.zero_point is ZeroPoint.INTEGER:
            shifts = _tiled(unpack_bits(stored["zeros"], form.bits, groups))
        elif form.zero_point is ZeroPoint.REAL:
            shifts = _tiled(stored["offsets"])
        return cls(
            form.bits, form.group_size, rows, cols, form.zero_point, three, scales, shifts, multipliers
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all that a product reads."""
        return sum(part.nbytes for part in self.parts if part is not None)

    def rows(self, ids: Int[Tensor, " n"]) -> Float[Tensor, "n inputs"]:
        """Some rows of the matrix, float32, the same bits as the stored form decodes to.

        Raises: IndexError for a row that is not there; NoCompiler.
        """
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.outputs:
            raise IndexError(f"rows {ids.tolist()} are not in a matrix of {self.outputs} rows.")
        ids, out = ids.long().contiguous(), torch.empty(len(ids), self.inputs)
        _packer().grouped_rows(
            ctypes.byref(self._matrix), self.bits, ids.data_ptr(), len(ids), out.data_ptr()
        )
        return out

    def unpack(self, form: GroupedAffine, rows: slice | Tensor = slice(None)) -> dict[str, Tensor]:
        """The stored tensors of some rows, bit for bit those that were packed in this form.

        Raises: NoCompiler.
        """
        ids = torch.arange(self.outputs)[rows].contiguous()
        codes = torch.empty(len(ids), packed_bytes(self.inputs, self.bits), dtype=torch.uint8)
        _packer().unpack_codes(
            ctypes.byref(self._matrix), self.bits, ids.data_ptr(), len(ids), codes.shape[1],
            codes.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        stored, scales = {"codes": codes}, _untiled(self.scales)[ids]
        stored["scales"] = scales if form.scale_type is not None else pack_bits(scales, form.scale_bits)
        if self.multipliers is not None:
            multipliers = _untiled(self.multipliers)[ids, 0] * (1 << form.scale_bits)
            stored["scale_multiplier"] = multipliers.half()
        if self.shifts is not None:
            shifts = _untiled(self.shifts)[ids]
            if self.zero_point is ZeroPoint.INTEGER:
                stored["zeros"] = pack_bits(shifts, self.bits)
            else:
                stored["offsets"] = shifts
        return stored

    @property
    def _matrix(self) -> "_Matrix":
        return _Matrix(*(None if part is None else part.data_ptr() for part in self.parts), *_sizes(self))

    @property
    def parts(self) -> tuple[Tensor | None, ...]:
        """All that a product reads: the three planes, scales, shifts, multipliers."""
        return (*self.planes, self.scales, self.shifts, self.multipliers)

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
    many = ManyRows.in_dll(library, f"grouped_{kind}_many_{weights.bits}")
    return LinearKernel(
        getattr(library, f"grouped_{kind}_{weights.bits}"),
        getattr(library, f"grouped_{kind}_scratch"),
        weights.inputs,
        weights.outputs,
        weights.parts,
        _sizes(weights),
        bias,
        many,
    )


class _Matrix(ctypes.Structure):
    """`grouped_matrix` of grouped_pack.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("wide", "pair", "single", "scales", "shifts", "multipliers")),
        *((name, ctypes.c_int64) for name in ("block", "quartets", "blocks_per_group", "blocks", "shift")),
        ("scale", ctypes.c_int64),
    )


def _sizes(weights: GroupedWeights) -> tuple[int, ...]:
    """What `grouped_linear.c` calls `sizes`."""
    block = block_inputs(weights.group_size)
    return (
        block,
        _quartets(weights.group_size),
        weights.group_size // block,
        weights.inputs // block,
        list(ZeroPoint).index(weights.zero_point),
        _SCALES.index(weights.scales.dtype),
    )


@functools.lru_cache(maxsize=1024)
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
    """The product by its definition, in float64; x is rounded block by block where it is int8."""
    if activations is Activations.INT8:
        blocks = x.unflatten(1, (-1, block_inputs(group_size)))
        largest = blocks.abs().amax(-1, keepdim=True)
        inverse = torch.where(largest > 1e-30, 127.0 / largest, 0.0)
        # The product of two float32 is exact in float64: one rounding, ties to even.
        codes = (blocks.double() * inverse.double()).round()
        x = (codes * (largest / 127.0).double()).flatten(1)
    return x.double() @ weight.double().T


def naive_rounded_linear(
    x: Float[Tensor, "tokens inputs"], weight: Float[Tensor, "outputs inputs"]
) -> Float[Tensor, "tokens outputs"]:
    """What INT8 means for many rows on a processor with matrix tiles, in float64."""
    return x.bfloat16().double() @ weight.bfloat16().double().T


def has_matrix_tiles() -> bool:
    """Whether this processor multiplies tiles of bfloat16 (AMX), and lets this process do so.

    Raises: NoCompiler.
    """
    return bool(_library().grouped_has_tiles())


def _quartets(group_size: int) -> int:
    return -(-block_inputs(group_size) // _RUN)


def _packed_planes(
    codes: UInt8[Tensor, "rows bytes"], bits: int, group_size: int, cols: int
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The codes in the planes of 8 or 4 bits, of 2 and of 1."""
    rows, block, quartets = codes.shape[0], block_inputs(group_size), _quartets(group_size)
    widths = (8, 0, 0) if bits == 8 else (bits & 4, bits & 2, bits & 1)
    n_quartets = -(-rows // _TILE) * (cols // block) * quartets
    wide, pair, single = (
        _long_room(_QUARTET_BYTES * width * n_quartets) if width else None for width in widths
    )
    failed = _packer().pack_codes(
        codes.data_ptr(), codes.shape[1], bits, rows, cols, block, quartets,
        *(None if plane is None else plane.data_ptr() for plane in (wide, pair, single)),
        torch.get_num_threads(),
    )  # fmt: skip
    if failed:
        raise MemoryError(f"no memory to pack rows of {cols} codes")
    return wide, pair, single


def _long_room(n_bytes: int) -> Tensor:
    n_bytes += _AHEAD_BYTES
    room = room_on_large_pages(n_bytes)
    return (aligned_room(n_bytes) if room is None else room)[: n_bytes - _AHEAD_BYTES]


def _tiled(values: Tensor) -> Tensor:
    """(rows, groups) -> (tiles, groups, 16), with zeros for rows that are not there."""
    padded = torch.nn.functional.pad(values, (0, 0, 0, -values.shape[0] % _TILE))
    tiled = padded.view(-1, _TILE, values.shape[1]).transpose(1, 2)
    return _long_room(tiled.numel() * tiled.element_size()).view(tiled.dtype).view(tiled.shape).copy_(tiled)


def _untiled(tiled: Tensor) -> Tensor:
    """(tiles, groups, 16) -> (16 tiles, groups), the rows that are padding among them."""
    return tiled.transpose(1, 2).reshape(-1, tiled.shape[1])


@functools.cache
def _library(flags: tuple[str, ...] = ()) -> ctypes.CDLL:
    return load_library(Path(__file__).with_suffix(".c"), extra_flags=FLAGS + flags)


@functools.cache
def _packer() -> ctypes.CDLL:
    library = load_library(Path(__file__).with_name("grouped_pack.c"))
    pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    library.pack_codes.argtypes = [
        pointer, size, number, size, size, size, size, pointer, pointer, pointer, number,
    ]  # fmt: skip
    library.pack_codes.restype = number
    library.unpack_codes.argtypes = [pointer, size, pointer, size, size, pointer, number]
    library.unpack_codes.restype = None
    library.grouped_rows.argtypes = [pointer, size, pointer, size, pointer]
    library.grouped_rows.restype = None
    return library
