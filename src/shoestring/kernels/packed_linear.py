"""y = x·Wᵀ with weights of 1 to 8 bits that are never unpacked to memory, for a few rows of x.

The weights are s·q + c: codes q of any narrow element type, a scale s and, where there is one, an offset c
for each group of inputs of each output. A zero point z is the offset −s·z.
"""

import functools
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Integer, UInt8
from torch import Tensor

from shoestring.errors import NoCompiler
from shoestring.kernels.costs import Cost, states_cost
from shoestring.kernels.large_pages import on_large_pages
from shoestring.kernels.tile.c.choice import target_here
from shoestring.kernels.tile.c.compiled import CompiledProgram, compile_program
from shoestring.kernels.tile.programs.group_affine import GroupAffineConfig, group_affine, pack, packed_tile
from shoestring.kernels.tile.programs.matmul import LANE_RUN
from shoestring.kernels.tile.target import Target
from shoestring.kernels.tile.types import DataType, data_type
from shoestring.notices import notice_fallback

MOST_ROWS = 16
"""Rows of x for which streaming the codes is the fast way; more are done in blocks of as many."""
_ACCUMULATORS = {"avx512": 16, "avx2": 8}
"""Vectors of sums that fit the registers beside a weight and a table."""


@dataclass(frozen=True)
class PackedWeights:
    """Codes of a weight matrix (outputs, inputs) in the order in which the vectors of `target` read them.

    Every group of `group_size` inputs is padded to whole runs of 32 with codes 0, which meet zeros of x.
    """

    dtype: DataType
    outputs: int
    inputs: int
    group_size: int
    data: UInt8[Tensor, "across down bytes"] = field(repr=False)
    target: Target = field(default_factory=target_here)

    @classmethod
    def pack(
        cls,
        codes: Integer[Tensor, "outputs inputs"],
        dtype: DataType | str,
        group_size: int,
        target: Target | None = None,
    ) -> "PackedWeights":
        """Pack unsigned codes.

        Raises: ValueError for inputs that are not whole groups, or codes that `dtype` does not have.
        """
        kind = data_type(dtype) if isinstance(dtype, str) else dtype
        outputs, inputs = codes.shape
        if group_size < 1 or inputs % group_size:
            raise ValueError(f"{inputs} inputs are not whole groups of group_size={group_size}")
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < 1 << kind.bits:
            reach = f"{int(codes.min())} .. {int(codes.max())}"
            raise ValueError(f"codes reach {reach}; {kind} has 0 .. {(1 << kind.bits) - 1}")
        here = target or target_here()
        grouped = codes.reshape(outputs, inputs // group_size, group_size)
        padded = torch.nn.functional.pad(grouped, (0, -group_size % LANE_RUN)).reshape(outputs, -1)
        return cls(kind, outputs, inputs, group_size, on_large_pages(pack(padded.T, kind, here)), here)

    @property
    def groups(self) -> int:
        return self.inputs // self.group_size

    @property
    def padded_group(self) -> int:
        return -(-self.group_size // LANE_RUN) * LANE_RUN

    def codes(self) -> Integer[Tensor, "outputs inputs"]:
        """The codes as they were before packing."""
        matrix = packed_tile(self.dtype, self.target).unpack(self.data.transpose(0, 1))
        grouped = matrix.T[: self.outputs].reshape(self.outputs, self.groups, self.padded_group)
        return grouped[..., : self.group_size].reshape(self.outputs, self.inputs)


def naive_packed_linear(
    x: Float[Tensor, "*batch inputs"],
    weights: PackedWeights,
    scales: Float[Tensor, "outputs groups"],
    offsets: Float[Tensor, "_outputs _groups"] | None = None,
) -> Float[Tensor, "*batch outputs"]:
    """The same by unpacking the whole matrix."""
    values = torch.from_numpy(weights.dtype.decode(weights.codes().numpy())).float()
    grouped = values.reshape(weights.outputs, weights.groups, weights.group_size) * scales[..., None].float()
    if offsets is not None:
        grouped = grouped + offsets[..., None].float()
    return (x.float() @ grouped.reshape(weights.outputs, weights.inputs).T).to(x.dtype)


def _cost(x: Tensor, weights: PackedWeights, scales: Tensor, offsets: Tensor | None = None) -> Cost:
    """A multiply-add for each weight and row, one for each scale and offset; all operands move once."""
    rows = x.numel() // max(weights.inputs, 1)
    per_row = weights.inputs + weights.groups * (1 if offsets is None else 2)
    moved = weights.data.nbytes + scales.nbytes + (0 if offsets is None else offsets.nbytes)
    written = rows * weights.outputs * x.element_size()
    return Cost(2 * rows * weights.outputs * per_row, moved + x.nbytes + written)


@states_cost(_cost)
def packed_linear(
    x: Float[Tensor, "*batch inputs"],
    weights: PackedWeights,
    scales: Float[Tensor, "outputs groups"],
    offsets: Float[Tensor, "_outputs _groups"] | None = None,
) -> Float[Tensor, "*batch outputs"]:
    """x·Wᵀ with W = scales·q + offsets, in the type of x; sums are float32, in an order that the number of
    threads has no part in.

    Scales and offsets are best kept as the transpose of contiguous (groups, outputs) tensors: then nothing is
    copied. Without a compiler, or for another device, the matrix is unpacked in torch, with a notice. For
    inference: no gradient flows.

    Raises: ValueError for shapes that do not belong together.
    """
    _check(x, weights, scales, offsets)
    if x.device.type != "cpu":
        notice_fallback("packed_linear", f"unpacks in torch on {x.device}: the kernel is for processors")
        return naive_packed_linear(x, weights, scales, offsets)
    rows = x.reshape(-1, weights.inputs)
    try:
        y = _compiled(rows.detach(), weights, scales.detach(), None if offsets is None else offsets.detach())
    except NoCompiler as error:
        notice_fallback("packed_linear", f"unpacks in torch instead of the compiled kernel ({error})")
        return naive_packed_linear(x, weights, scales, offsets)
    return y.reshape(*x.shape[:-1], weights.outputs).to(x.dtype)


def _check(x: Tensor, weights: PackedWeights, scales: Tensor, offsets: Tensor | None) -> None:
    if x.shape[-1] != weights.inputs:
        raise ValueError(f"x has {x.shape[-1]} inputs, the weights {weights.inputs}")
    for name, tensor in (("scales", scales), ("offsets", offsets)):
        if tensor is not None and tuple(tensor.shape) != (weights.outputs, weights.groups):
            raise ValueError(
                f"{name} of shape {tuple(tensor.shape)}; {weights.outputs} outputs in groups of "
                f"{weights.group_size} take ({weights.outputs}, {weights.groups})"
            )


def _compiled(rows: Tensor, weights: PackedWeights, scales: Tensor, offsets: Tensor | None) -> Tensor:
    m = len(rows)
    kernel, block_rows = kernel_for(
        weights.dtype, weights.target, weights.padded_group, m, offsets is not None
    )
    grouped = rows.float().reshape(m, weights.groups, weights.group_size)
    arguments = {"sums": grouped.sum(-1), "offsets": _by_group(offsets)} if offsets is not None else {}
    # whole blocks of rows and whole runs: no access of the kernel to x lies at an edge
    padding = (0, weights.padded_group - weights.group_size, 0, 0, 0, -m % block_rows)
    if any(padding):
        grouped = torch.nn.functional.pad(grouped, padding)
        arguments = {
            name: torch.nn.functional.pad(t, (0, 0, 0, -m % block_rows)) if name == "sums" else t
            for name, t in arguments.items()
        }
    y = torch.empty(len(grouped), weights.outputs)
    kernel(
        m=len(grouped), n=weights.outputs, k=weights.groups * weights.padded_group,
        x=_aligned(grouped.reshape(len(grouped), -1)), packed=weights.data, scales=_by_group(scales), y=y,
        **{name: _aligned(t) for name, t in arguments.items()},
    )  # fmt: skip
    return y[:m]


def _by_group(tensor: Tensor) -> Tensor:
    return _aligned(tensor.T.float())


def _aligned(tensor: Tensor) -> Tensor:
    contiguous = tensor.contiguous()
    return contiguous if contiguous.data_ptr() % 16 == 0 else contiguous.clone()


def kernel_for(
    dtype: DataType, target: Target, group_size: int, rows: int, offsets: bool, isa: str | None = None
) -> tuple[CompiledProgram, int]:
    """The kernel for this many rows of x, and the rows of one block of it: 1, 2, 4, 8 or 16.

    Raises: NoCompiler.
    """
    most = min(MOST_ROWS, _ACCUMULATORS.get(target.name, 8))
    block_rows = min(1 << max(rows - 1, 0).bit_length(), most)
    kernel = _compile(GroupAffineConfig(dtype, target, group_size, block_rows, 1, offsets), isa)
    if kernel.library is None:
        raise NoCompiler("no compiled kernel")
    return kernel, block_rows


@functools.lru_cache(maxsize=256)
def _compile(config: GroupAffineConfig, isa: str | None) -> CompiledProgram:
    return compile_program(group_affine(config), config.target, isa)
