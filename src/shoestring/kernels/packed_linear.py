"""y = x·Wᵀ with weights of 1 to 8 bits that are never unpacked to memory, for a few rows of x.

The weights are s·q + c: codes q of any narrow element type, a scale s and, where there is one, an offset c
for each group of inputs of each output. A zero point z is the offset −s·z.
"""

import functools
import itertools
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Integer, UInt8
from torch import Tensor

from shoestring.errors import NoCompiler
from shoestring.kernels.costs import Cost, states_cost
from shoestring.kernels.large_pages import on_large_pages
from shoestring.kernels.packed_choice import DEFAULT_CHOICE, Choice, choices_for, most_sums
from shoestring.kernels.packed_product import PackedProduct
from shoestring.kernels.tile.c.byte_parts import byte_parts
from shoestring.kernels.tile.c.choice import choose_isa, target_here
from shoestring.kernels.tile.c.compiled import CompiledProgram, compile_program
from shoestring.kernels.tile.c.emitter import Prefetch
from shoestring.kernels.tile.programs.group_affine import (
    GroupAffineConfig,
    group_affine,
    group_limbs,
    pack,
    packed_tile,
)
from shoestring.kernels.tile.programs.matmul import LANE_RUN
from shoestring.kernels.tile.target import Target
from shoestring.kernels.tile.types import DataType, data_type
from shoestring.kernels.tuning import (
    last_level_cache_bytes,
    measure_fastest,
    size_class,
    tuning_changes,
    tuning_table,
)
from shoestring.notices import notice_fallback

MOST_ROWS = 16
"""Rows of x for which streaming the codes is the fast way; more are done in blocks of as many."""
MOST_ROWS_OF_LIMBS = 3
"""Rows of x that are multiplied as bytes; from 4 on, floats of the codes serve enough rows to be faster."""


Products = dict[tuple[int, torch.dtype, bool, int], tuple[int, PackedProduct]]
"""(rows, type of x, whether there are offsets, threads) -> (tuning changes when looked up, product)."""


@dataclass(frozen=True)
class PackedWeights:
    """Codes of a weight matrix (outputs, inputs) in the order in which the vectors of `target` read them.

    Every group of `group_size` inputs is padded to whole runs of 32 with codes 0, which meet zeros of x.

    Raises: ValueError for data of another shape, such as that of another target.
    """

    dtype: DataType
    outputs: int
    inputs: int
    group_size: int
    data: UInt8[Tensor, "across down bytes"] = field(repr=False)
    target: Target = field(default_factory=target_here)
    _products: "Products" = field(repr=False, compare=False, init=False)

    def __post_init__(self) -> None:
        shape = self.outputs, self.inputs, self.group_size
        object.__setattr__(self, "_products", _products_of(self.dtype, self.target, *shape))
        tile = packed_tile(self.dtype, self.target)
        down = self.groups * self.padded_group // LANE_RUN
        expected = (-(-self.outputs // tile.cols), down, tile.tile_bytes)
        if tuple(self.data.shape) != expected:
            raise ValueError(
                f"packed data of shape {tuple(self.data.shape)}; {self.outputs} outputs and {self.inputs} "
                f"inputs of {self.dtype} take {expected} on {self.target.name}: packed for another target "
                "or shape"
            )

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


@functools.cache
def _products_of(dtype: DataType, target: Target, outputs: int, inputs: int, group_size: int) -> Products:
    """What is known of products with weights of one type and shape, which the layers of a model share."""
    return {}


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

    Where the processor multiplies bytes (`limbs_of`), x is first rounded to whole numbers of 2 bytes, or 3 if
    it is float32, with a unit for each group of inputs: within 2^-15 or 2^-23 of the group's largest
    magnitude, finer than halves and about as fine as float32 themselves. An infinity in x then makes NaNs.

    Scales and offsets are best kept as the transpose of contiguous (groups, outputs) tensors: then nothing is
    copied. The variant of the kernel is the one that `tune_packed_linear` found, else one that does well in
    general. Without a compiler, or for another device, the matrix is unpacked in torch, with a notice. For
    inference: no gradient flows.

    Raises: ValueError for shapes that do not belong together.
    """
    _check(x, weights, scales, offsets)
    if x.device.type != "cpu":
        notice_fallback("packed_linear", f"unpacks in torch on {x.device}: the kernel is for processors")
        return naive_packed_linear(x, weights, scales, offsets)
    try:
        product = _product_for(x, weights, offsets is not None)
    except NoCompiler as error:
        notice_fallback("packed_linear", f"unpacks in torch instead of the compiled kernel ({error})")
        return naive_packed_linear(x, weights, scales, offsets)
    return product(x, weights.data, scales, offsets)


def _check(x: Tensor, weights: PackedWeights, scales: Tensor, offsets: Tensor | None) -> None:
    if x.shape[-1] != weights.inputs:
        raise ValueError(f"x has {x.shape[-1]} inputs, the weights {weights.inputs}")
    expected = weights.outputs, weights.groups
    for name, tensor in (("scales", scales), ("offsets", offsets)):
        if tensor is not None and tensor.shape != expected:
            raise ValueError(
                f"{name} of shape {tuple(tensor.shape)}; {weights.outputs} outputs in groups of "
                f"{weights.group_size} take {expected}"
            )


def limbs_of(x_type: torch.dtype, weights: PackedWeights, rows: int) -> int:
    """Bytes of the whole numbers that x of this type becomes: 2 for halves, else 3; 0: x stays float32.

    It does where the processor multiplies no bytes, the values of the weights' codes are none, or each is two
    and x would be three: then as many products are more work than those of floats. So they are for several
    rows, which share the work of making floats of the codes.
    """
    if rows > MOST_ROWS_OF_LIMBS:
        return 0
    return _limbs(x_type in (torch.bfloat16, torch.float16), weights.dtype, weights.target)


@functools.cache
def _limbs(halves: bool, dtype: DataType, target: Target) -> int:
    parts = byte_parts(dtype) if choose_isa(target).multiplies_bytes(dtype) else None
    if parts is None or (not halves and len(parts.parts) > 1):
        return 0
    return 2 if halves else 3


def _product_for(x: Tensor, weights: PackedWeights, offsets: bool) -> PackedProduct:
    """The product with the variant that the tuning table names, looked up once until the table changes:
    looking takes longer than a small product."""
    rows, changes = x.numel() // weights.inputs, tuning_changes()
    key = (rows, x.dtype, offsets, torch.get_num_threads())
    known = weights._products.get(key)
    if known is None or known[0] != changes:
        limbs = limbs_of(x.dtype, weights, rows)
        choice = Choice.of(tuning_table().get(_key(weights, rows, offsets, limbs)))
        known = weights._products[key] = changes, _product(weights, rows, offsets, limbs, choice)
    return known[1]


def _product(weights: PackedWeights, rows: int, offsets: bool, limbs: int, choice: Choice) -> PackedProduct:
    kernel, block = kernel_for(
        weights.dtype, weights.target, weights.padded_group, rows, offsets, limbs=limbs, choice=choice
    )
    return PackedProduct(
        kernel, weights.outputs, weights.groups, weights.group_size, block=block, limbs=limbs, offsets=offsets
    )


def kernel_for(
    dtype: DataType,
    target: Target,
    group_size: int,
    rows: int,
    offsets: bool,
    isa: str | None = None,
    limbs: int = 0,
    choice: Choice = DEFAULT_CHOICE,
) -> tuple[CompiledProgram, int]:
    """The kernel for this many rows of x, and the rows of one block of it: 1, 2, 4, 8 or 16.

    limbs: x is whole numbers of so many bytes; 0: float32.

    Raises: NoCompiler.
    """
    block_rows = _block_rows(rows, target)
    columns = max(min(choice.columns, most_sums(target) // (block_rows * max(limbs, 1))), 1)
    config = GroupAffineConfig(dtype, target, group_size, block_rows, columns, offsets)
    kernel = _compile(config, isa, limbs, choice.prefetch)
    if kernel.library is None:
        raise NoCompiler("no compiled kernel")
    return kernel, block_rows


def _block_rows(rows: int, target: Target) -> int:
    return min(1 << max(rows - 1, 0).bit_length(), MOST_ROWS, most_sums(target))


@functools.lru_cache(maxsize=256)
def _compile(config: GroupAffineConfig, isa: str | None, limbs: int, prefetch: Prefetch) -> CompiledProgram:
    program = group_limbs(config, limbs) if limbs else group_affine(config)
    return compile_program(program, config.target, isa, prefetch=prefetch)


def _key(weights: PackedWeights, rows: int, offsets: bool, limbs: int) -> str:
    """What shares a measurement: template, type, target, rows of a block, shape class, groups, threads."""
    block = f"{_block_rows(rows, weights.target)} rows" + (f" of {limbs} limbs" if limbs else "")
    shape = f"{size_class(weights.outputs)} x {size_class(weights.inputs)} by {weights.padded_group}"
    shift = " with offsets" if offsets else ""
    where = f"{weights.target.name}, {torch.get_num_threads()} threads"
    return f"group_affine{shift} {weights.dtype}, {block}, {shape}, {where}"


def _choices(weights: PackedWeights, rows: int, limbs: int) -> list[Choice]:
    return choices_for(_block_rows(rows, weights.target) * max(limbs, 1), weights.target)


def tune_packed_linear(
    weights: PackedWeights,
    rows: int,
    *,
    offsets: bool = False,
    x_type: torch.dtype = torch.float32,
    repeats: int = 5,
) -> dict[Choice, float]:
    """Measure the variants of the kernel on such weights and this many rows, and remember the fastest.

    Returns the seconds of each. Calls rotate over copies that together exceed twice the last-level cache, as
    the layers of a model do. From then on, in any process on such a processor, `packed_linear` uses the
    fastest for weights of this type and shape class (sizes up to the next power of two). Variants add up in
    different orders, so that results differ in their last bits.

    Raises: ValueError for repeats below 1. NoCompiler.
    """
    generator = torch.Generator().manual_seed(0)
    copies = [weights.data]
    while sum(c.nbytes for c in copies) <= 2 * last_level_cache_bytes():
        copies.append(on_large_pages(weights.data.clone()))
    x = torch.randn(rows, weights.inputs, generator=generator).to(x_type)
    limbs = limbs_of(x_type, weights, rows)
    shape = (weights.groups, weights.outputs)
    scales = torch.rand(shape, generator=generator).T
    shift = torch.rand(shape, generator=generator).T if offsets else None
    turn = itertools.cycle(copies)
    products = {
        choice: _product(weights, rows, offsets, limbs, choice) for choice in _choices(weights, rows, limbs)
    }
    works = {
        choice: lambda product=product: product(x, next(turn), scales, shift)
        for choice, product in products.items()
    }
    seconds = measure_fastest(works, repeats)
    best = min(seconds, key=seconds.__getitem__)
    tuning_table().put(_key(weights, rows, offsets, limbs), best.numbers())
    return seconds
