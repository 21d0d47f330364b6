"""y = W x that reads only the columns of W whose input counts; the others may go through low rank.

W is stored transposed, so that a column is one contiguous row. Which inputs count is decided for each token
by a constant threshold on |x_j|, or on |x_j| c_j where each input has a scale.

Source: Zhang et al. 2025, "R-Sparse: Rank-Aware Activation Sparsity for Efficient LLM Inference", section 3.
"""

import ctypes
import functools
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from shoestring.errors import NoCompiler
from shoestring.kernels.costs import Cost, states_cost
from shoestring.kernels.linear_kernel import LinearKernel
from shoestring.kernels.native import load_library
from shoestring.notices import notice_fallback

MOST_TOKENS = 8
"""Tokens at a time for which gathering rows is the fast way: with more, nearly every row is somebody's."""

FLAGS = ("-ffp-contract=fast",)
"""Products are fused with sums."""
_TYPES = {torch.float32: 0, torch.bfloat16: 1}


@dataclass(frozen=True, eq=False)
class RowWeights:
    """What the product reads.

    rows: Wᵀ. threshold: inputs with a score strictly above it are kept. scales: the score is |x| times these,
    by default |x|. down, up: z = x_rest · down, y += z · up, for the inputs that are not kept; without them
    those count as zero. bias: added to y. counts: rows kept and tokens so far, added to in place.

    Raises: ValueError for shapes or types that do not belong together.
    """

    rows: Float[Tensor, "inputs outputs"]
    threshold: float
    scales: Float[Tensor, " _inputs"] | None = None
    down: Float[Tensor, "_inputs _rank"] | None = None
    up: Float[Tensor, "_rank _outputs"] | None = None
    bias: Float[Tensor, " _outputs"] | None = None
    counts: Int64[Tensor, "2"] | None = None

    def __post_init__(self) -> None:
        inputs, outputs = self.rows.shape
        if (self.down is None) != (self.up is None):
            raise ValueError("down and up belong together: give both, or neither.")
        rank = self.rank
        wanted = {"scales": (inputs,), "down": (inputs, rank), "up": (rank, outputs), "bias": (outputs,)}
        for name, shape in wanted.items():
            tensor = getattr(self, name)
            if tensor is not None and tuple(tensor.shape) != shape:
                raise ValueError(f"{name} is {tuple(tensor.shape)}; rows of {inputs}×{outputs} take {shape}.")
        for name in ("down", "up"):
            tensor = getattr(self, name)
            if tensor is not None and tensor.dtype != self.rows.dtype:
                raise ValueError(f"{name} is {tensor.dtype}, the rows {self.rows.dtype}; store both alike.")

    @property
    def inputs(self) -> int:
        return self.rows.shape[0]

    @property
    def outputs(self) -> int:
        return self.rows.shape[1]

    @property
    def rank(self) -> int:
        return 0 if self.up is None else self.up.shape[0]

    def kept(self, x: Float[Tensor, "*batch inputs"]) -> Bool[Tensor, "*batch inputs"]:
        """Which inputs are read in full. A score that is no number counts as above the threshold."""
        score = x.float().abs()
        if self.scales is not None:
            score = score * self.scales.float()
        return ~(score <= self.threshold)

    def bytes_of(self, kept: int) -> int:
        """Bytes read for one token that keeps so many inputs."""
        out = kept * self.outputs
        if self.down is not None and self.up is not None:
            out += (self.inputs - kept + self.outputs) * self.rank
        extra = 0 if self.scales is None else 4 * self.inputs
        return out * self.rows.element_size() + extra + (0 if self.bias is None else 4 * self.outputs)

    @functools.cached_property
    def kernel(self) -> LinearKernel:
        """The compiled product, also for a decode step that calls it from its own threads.

        Raises: NoCompiler; TypeError for a type or device that it is not for.
        """
        if self.rows.device.type != "cpu" or self.rows.dtype not in _TYPES:
            raise TypeError(f"the kernel is for float32 and bfloat16 on the CPU, not {self._place}.")
        library = _library()
        parts = [self.rows, _float(self.scales), self.down, self.up]
        tensors = [None if part is None else part.detach().contiguous() for part in parts]
        bits = struct.unpack("<I", struct.pack("<f", self.threshold))[0]
        return LinearKernel(
            library.row_gather_run, library.row_gather_scratch_bytes, self.inputs, self.outputs,
            [*tensors, self.counts], [self.rank, _TYPES[self.rows.dtype], bits], self.bias,
        )  # fmt: skip

    @property
    def _place(self) -> str:
        return f"{self.rows.dtype} on {self.rows.device}"


def naive_row_gather(
    x: Float[Tensor, "*batch inputs"], weights: RowWeights, kept: Bool[Tensor, "*batch inputs"] | None = None
) -> Float[Tensor, "*batch outputs"]:
    """The equation: y = W (x · kept) + up (down (x · not kept)) + b, by masking, in the type of x.

    kept: by default what the threshold says.
    """
    kept = weights.kept(x) if kept is None else kept
    y = F.linear(x * kept, weights.rows.to(x.dtype).T)
    if weights.down is not None and weights.up is not None:
        y = y + (x * ~kept) @ weights.down.to(x.dtype) @ weights.up.to(x.dtype)
    return y if weights.bias is None else y + weights.bias.to(x.dtype)


class RowGroup:
    """Layers that run in one call.

    Neighbours that share an input, a threshold and scales share the list of kept inputs.
    Raises: ValueError for an empty group.
    """

    def __init__(self, layers: Sequence[RowWeights]) -> None:
        if not layers:
            raise ValueError("a group of no layers; give one or more.")
        self.layers = tuple(layers)

    @functools.cached_property
    def fallback(self) -> str | None:
        """Why the compiled loop is not for these layers; None where it is."""
        if other := [w for w in self.layers if w.rows.device.type != "cpu" or w.rows.dtype not in _TYPES]:
            return f"the compiled loop, which is for float32 and bfloat16 on the CPU, not {other[0]._place}"
        try:
            _library()
        except NoCompiler as error:
            return f"the compiled loop ({error})"
        return None

    @functools.cached_property
    def structs(self) -> Any:
        """What the compiled loop takes: an array of pointers."""
        return (ctypes.c_void_p * len(self.layers))(*(w.kernel.address for w in self.layers))

    @functools.cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of each layer."""
        return [(weights.inputs, weights.outputs) for weights in self.layers]


def _cost(xs: Sequence[Tensor], group: RowGroup) -> Cost:
    """A multiply-add for each weight that is read; rows that several tokens keep are read for each."""
    flops = moved = 0
    for x, weights in zip(xs, group.layers, strict=True):
        for kept in weights.kept(x.reshape(-1, x.shape[-1])).sum(-1).tolist():
            rest = (weights.inputs - kept + weights.outputs) * weights.rank
            flops += 2 * (kept * weights.outputs + rest)
            moved += weights.bytes_of(kept) + weights.outputs * x.element_size()
    return Cost(flops, moved + sum({id(x): x.nbytes for x in xs}.values()))


@states_cost(_cost)
def row_gather(xs: Sequence[Tensor], group: RowGroup) -> tuple[Tensor, ...]:
    """The product of each layer with its x: (*batch, inputs) -> (*batch, outputs), in the type of x.

    xs: one for each layer, of as many tokens; layers that share an input are given the same tensor. Sums are
    float32. For inference: no gradient flows. Meant for up to `MOST_TOKENS` tokens. On the CPU a compiled
    loop does it, token by token; without a compiler, or for another device or type, the inputs are masked in
    torch, with a notice. Results do not depend on the number of threads.

    Raises: ValueError for another number of xs, or ones that do not fit.
    """
    tokens = _check(xs, group)
    other = [x.device for x in xs if x.device.type != "cpu"]
    if group.fallback is not None or other:
        reason = group.fallback or f"the compiled loop, which is not for {other[0]}"
        notice_fallback("row_gather", f"masks in torch, which reads all rows, instead of {reason}")
        return tuple(_naive_counted(x, weights) for x, weights in zip(xs, group.layers, strict=True))
    plain = {id(x): x.detach().float().contiguous() for x in xs}
    out = [torch.empty(tokens, outputs) for _, outputs in group.sizes]
    inputs = (ctypes.c_void_p * len(out))(*[plain[id(x)].data_ptr() for x in xs])
    outputs = (ctypes.c_void_p * len(out))(*[y.data_ptr() for y in out])
    if _library().row_gather(group.structs, len(out), inputs, outputs, tokens, torch.get_num_threads()):
        raise MemoryError("no memory for lists of kept inputs")
    return tuple([y.reshape(*x.shape[:-1], -1).to(x.dtype) for x, y in zip(xs, out, strict=True)])


def _check(xs: Sequence[Tensor], group: RowGroup) -> int:
    """The number of tokens."""
    if len(xs) != len(group.sizes):
        raise ValueError(f"{len(xs)} inputs for {len(group.sizes)} layers; give one for each.")
    for x, (inputs, _) in zip(xs, group.sizes, strict=True):
        if x.shape[-1] != inputs:
            raise ValueError(f"x has {x.shape[-1]} inputs, the weights {inputs}.")
    counts = {x.numel() // x.shape[-1] for x in xs}
    if len(counts) != 1:
        raise ValueError(f"inputs of {sorted(counts)} tokens in one call; give each layer as many.")
    return counts.pop()


def counts_of(kept: Bool[Tensor, "*batch inputs"]) -> Int64[Tensor, "2"]:
    """Rows kept, and tokens."""
    return torch.stack([kept.sum(), kept.new_tensor(kept.numel() // kept.shape[-1], dtype=torch.int64)])


def _naive_counted(x: Tensor, weights: RowWeights) -> Tensor:
    kept = weights.kept(x)
    if weights.counts is not None:
        weights.counts.add_(counts_of(kept).to(weights.counts.device))
    return naive_row_gather(x, weights, kept)


def _float(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().float().contiguous()


@functools.cache
def _library() -> ctypes.CDLL:
    library = load_library(Path(__file__).with_suffix(".c"), extra_flags=FLAGS)
    pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    library.row_gather.argtypes = [pointer, number, pointer, pointer, size, number]
    library.row_gather.restype = number
    return library
