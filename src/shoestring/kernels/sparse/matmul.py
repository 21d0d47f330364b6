"""y = x·Wᵀ with sparse W for a few tokens: weights are loaded compressed and multiplied as if dense.

Source: Xia et al. 2023, "Flash-LLM: Enabling Cost-Effective and Highly-Efficient Large Generative Model
Inference with Unstructured Sparsity" ("load as sparse, compute as dense").
"""

import torch
from jaxtyping import Float
from torch import Tensor

from shoestring.errors import NoCompiler
from shoestring.kernels.costs import Cost, states_cost
from shoestring.kernels.linear_kernel import ALIGNMENT_BYTES, LinearKernel, aligned_copy, aligned_room
from shoestring.kernels.sparse.linear import (
    CsrMatrix,
    DenseMatrix,
    TiledCslMatrix,
    Weights,
    library,
    sparse_linear,
)
from shoestring.notices import notice_fallback


def naive_sparse_matmul(
    x: Float[Tensor, "*batch inputs"], weights: Weights, bias: Float[Tensor, " outputs"] | None = None
) -> Float[Tensor, "*batch outputs"]:
    """The same with W expanded to a dense float32 matrix."""
    y = x.float() @ weights.to_dense().T
    return (y if bias is None else y + bias.float()).to(x.dtype)


def cost_of_product(x: Tensor, weights: Weights, bias: Tensor | None = None, *, split: int = 1) -> Cost:
    """A multiply-add for every entry that is multiplied (zeros too, except in CSR); operands move once."""
    tokens = x.numel() // max(weights.cols, 1)
    entries = weights.nonzeros if isinstance(weights, CsrMatrix) else weights.rows * weights.cols
    moved = weights.nbytes + x.nbytes + tokens * weights.rows * x.element_size()
    return Cost(2 * tokens * entries, moved)


@states_cost(cost_of_product)
def sparse_matmul(
    x: Float[Tensor, "*batch inputs"],
    weights: Weights,
    bias: Float[Tensor, " outputs"] | None = None,
    *,
    split: int = 1,
) -> Float[Tensor, "*batch outputs"]:
    """x·Wᵀ (+ b) in the type of x; sums are float32, in an order that the number of threads has no part in.

    x in bfloat16 is multiplied with bfloat16 weights in pairs, where the processor can; any other type is
    taken as float32. split: parts into which the inputs are cut so that more threads find work (not for CSR);
    each value of it has its own order of sums. Without a compiler, or for another device, W is expanded in
    torch, with a notice.

    Raises: ValueError for inputs that W has not, a split below 1 or of CSR, or where a gradient would flow.
    """
    _check(x, weights, split)
    if x.device.type != "cpu":
        notice_fallback("sparse_matmul", f"expands in torch on {x.device}: the kernel is for processors")
        return naive_sparse_matmul(x, weights, bias)
    try:
        kernel = sparse_linear(weights, bias, round_inputs=x.dtype == torch.bfloat16)
    except NoCompiler as error:
        notice_fallback("sparse_matmul", f"expands in torch instead of the compiled kernel ({error})")
        return naive_sparse_matmul(x, weights, bias)
    rows = x.detach().reshape(-1, weights.cols).float()
    tiles = isinstance(weights, TiledCslMatrix)
    y = kernel(rows) if split == 1 else run_split(kernel, rows, split, tiles)
    return y.reshape(*x.shape[:-1], weights.rows).to(x.dtype)


def run_split(
    kernel: LinearKernel,
    x: Float[Tensor, "tokens inputs"],
    split: int,
    tiles: bool,
    isa: str | None = None,
) -> Float[Tensor, "tokens outputs"]:
    """A kernel of `sparse_linear` with its inputs in `split` parts; tiles: its weights are Tiled-CSL."""
    code, threads, tokens = library(isa), torch.get_num_threads(), len(x)
    wanted = (code.tiles_scratch_bytes if tiles else code.rows_scratch_bytes)(kernel.address, tokens)
    stride = -(-wanted // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    scratch, sums = aligned_room(stride * threads), torch.empty(split, tokens, kernel.outputs)
    x, y = aligned_copy(x), torch.empty(tokens, kernel.outputs)
    code.run_split(
        kernel.address, int(tiles), x.data_ptr(), y.data_ptr(), tokens, threads, split, sums.data_ptr(),
        scratch.data_ptr(), stride,
    )  # fmt: skip
    return y


def _check(x: Tensor, weights: Weights, split: int) -> None:
    if x.shape[-1] != weights.cols:
        raise ValueError(f"x has {x.shape[-1]} inputs, the weights {weights.cols}")
    if torch.is_grad_enabled() and x.requires_grad:
        raise ValueError("sparse_matmul passes no gradient on; call it under torch.no_grad(), or detach x")
    if split < 1:
        raise ValueError(f"split={split} must be 1 or more")
    if split > 1 and isinstance(weights, CsrMatrix):
        raise ValueError(f"split={split}: the rows of a CSR matrix are not split; use 1")


__all__ = ["DenseMatrix", "naive_sparse_matmul", "run_split", "sparse_matmul"]
