"""A linear layer that, for a token of decoding, reads only the columns of W whose input is large.

y = W[:, J] x_J + up (down x_rest) + b with J = {j : score_j > threshold}; score_j = |x_j|, or |x_j| c_j with
c_j = ‖W[:, j]‖ where there is a low-rank path. Prompts go through the whole W.

Source: Zhang et al. 2025, "R-Sparse: Rank-Aware Activation Sparsity for Efficient LLM Inference", section 3.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.kernels.linear_kernel import LinearKernel
from shoestring.kernels.row_gather import (
    MOST_TOKENS,
    RowGroup,
    RowWeights,
    counts_of,
    naive_row_gather,
    row_gather,
)
from shoestring.notices import notice_fallback

EVERY_INPUT, NO_INPUT = -1.0, math.inf
"""Thresholds at which the layer is dense, and at which all goes through low rank."""

_FLOAT32 = ("threshold", "scales")


class RowSparseLinear(nn.Module):
    """x (…, tokens, in_features) -> y (…, tokens, out_features); a call with one token a sequence is sparse.

    rank: of the low-rank path; 0 for none, then there are no scales either. A new layer is dense: `split`
    says what it leaves out. Decoding more than `MOST_TOKENS` sequences at once is dense too, with a notice.
    Inside `sparse_tail` the last tokens of a prompt are treated as if they were decoded one by one.

    The weight is held once, transposed. counts: rows kept by sparse calls so far, and their tokens.
    """

    rows: Tensor
    threshold: Tensor
    scales: Tensor | None
    down: Tensor | None
    up: Tensor | None
    counts: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int = 0,
        *,
        bias: bool = False,
        store: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """store: of the matrices; dtype: of the bias. Both by default torch's own."""
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        made: dict[str, Any] = {"dtype": store, "device": device}
        self.register_buffer("rows", torch.zeros(in_features, out_features, **made))
        self.register_buffer("threshold", torch.full((), EVERY_INPUT, dtype=torch.float32, device=device))
        thin: dict[str, Tensor | None] = {"scales": None, "down": None, "up": None}
        if rank:
            thin["scales"] = torch.ones(in_features, dtype=torch.float32, device=device)
            thin["down"] = torch.zeros(in_features, rank, **made)
            thin["up"] = torch.zeros(rank, out_features, **made)
        for name, tensor in thin.items():
            self.register_buffer(name, tensor)
        self.register_buffer("counts", torch.zeros(2, dtype=torch.int64, device=device), persistent=False)
        new = torch.zeros(out_features, dtype=dtype, device=device)
        self.bias = nn.Parameter(new, requires_grad=False) if bias else None
        self._tail: float | None = None
        self._known: tuple[Tensor, RowGroup] | None = None
        self.register_load_state_dict_post_hook(lambda module, _: module._forget())

    @classmethod
    def of(
        cls,
        weight: Float[Tensor, "out_features in_features"],
        bias: Float[Tensor, " out_features"] | None = None,
        store: torch.dtype | None = None,
    ) -> "RowSparseLinear":
        """A dense layer with this weight, kept in `store` (default: its own type)."""
        outputs, inputs = weight.shape
        layer = cls(inputs, outputs, device="meta")
        layer.rows = weight.detach().T.to(store or weight.dtype).contiguous()
        layer.threshold = torch.full((), EVERY_INPUT, device=weight.device)
        layer.counts = torch.zeros(2, dtype=torch.int64, device=weight.device)
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
        return layer

    def split(
        self,
        threshold: float,
        scales: Float[Tensor, " in_features"] | None = None,
        down: Float[Tensor, "in_features rank"] | None = None,
        up: Float[Tensor, "rank out_features"] | None = None,
    ) -> None:
        """Say which inputs are read in full, and what becomes of the others (by default nothing).

        Raises: ValueError for a threshold that is no number, or shapes that do not fit.
        """
        if math.isnan(threshold):
            raise ValueError("threshold is not a number; calibrate it on finite activations.")
        self.threshold = torch.full_like(self.threshold, threshold)
        self.scales = None if scales is None else scales.float()
        self.down = None if down is None else down.to(self.rows.dtype).contiguous()
        self.up = None if up is None else up.to(self.rows.dtype).contiguous()
        self._forget()
        _ = self.group  # shapes are checked now, not at the first token

    @property
    def rank(self) -> int:
        return 0 if self.up is None else self.up.shape[0]

    @property
    def weight(self) -> Float[Tensor, "out_features in_features"]:
        """The whole matrix; a view."""
        return self.rows.T

    @property
    def weights(self) -> RowWeights:
        """What the kernel reads, and its struct for a decode step that runs it in threads of its own."""
        return self.group.layers[0]

    @property
    def group(self) -> RowGroup:
        """This layer as a group of one."""
        if self._known is None or self._known[0] is not self.rows:
            parts = self.scales, self.down, self.up, self.bias, self.counts
            self._known = self.rows, RowGroup((RowWeights(self.rows, self.threshold.item(), *parts),))
        return self._known[1]

    @property
    def nbytes(self) -> int:
        """Bytes that are stored."""
        tensors = (self.rows, self.threshold, self.scales, self.down, self.up, self.bias)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def is_sparse_call(self, x: Float[Tensor, "*batch in_features"]) -> bool:
        """Whether `forward` reads only some rows for this x: it decodes, and not too many sequences."""
        tokens = x.shape[-2] if x.dim() > 1 else 1
        if tokens != 1 or self._tail is not None:
            return False
        sequences = x.numel() // max(self.in_features, 1)
        if sequences <= MOST_TOKENS:
            return True
        notice_fallback(
            "RowSparseLinear",
            f"dense for more than {MOST_TOKENS} sequences at once: together they need nearly all rows",
        )
        return False

    def forward(self, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out_features"]:
        """Raises: RuntimeError in training mode."""
        self.check_inference()
        if self.is_sparse_call(x):
            return row_gather([x], self.group)[0]
        tail = 0 if self._tail is None else round(self._tail * x.shape[-2])
        if tail == 0:
            return self._dense(x)
        first, last = x[..., : x.shape[-2] - tail, :], x[..., x.shape[-2] - tail :, :]
        sparse = self._masked(last)
        return sparse if first.shape[-2] == 0 else torch.cat([self._dense(first), sparse], -2)

    def check_inference(self) -> None:
        """Raises: RuntimeError in training mode."""
        if self.training:
            raise RuntimeError("R-Sparse is inference only; call eval() on the model before running it.")

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, rank={self.rank}, {self.rows.dtype}"

    def _dense(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.rows.to(x.dtype).T, bias)

    def _masked(self, x: Tensor) -> Tensor:
        kept = self.weights.kept(x)
        self.counts += counts_of(kept)
        return naive_row_gather(x, self.weights, kept)

    def _forget(self) -> None:
        self._known = None

    def _apply(self, fn: Any, recurse: bool = True) -> "RowSparseLinear":
        # Thresholds would move if `.to(dtype)` rounded them: they pass as bit patterns.
        held = {name: tensor for name in _FLOAT32 if (tensor := self._buffers[name]) is not None}
        for name, tensor in held.items():
            self._buffers[name] = tensor.view(torch.int32)
        super()._apply(fn, recurse)
        for name in held:
            bits = self._buffers[name]
            assert bits is not None
            self._buffers[name] = bits.view(torch.float32)
        self._forget()
        return self


def row_sparse_layers(model: nn.Module) -> dict[str, RowSparseLinear]:
    """The layers of this kind in a model, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, RowSparseLinear)}


@contextmanager
def sparse_tail(model: nn.Module, share: float) -> Iterator[None]:
    """Treat the last `share` of the tokens of every call as decoded ones, by masking: for perplexities.

    Raises: ValueError for a share outside [0, 1], or a model without such layers.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share} must lie between 0 (prompt) and 1 (all decoded).")
    layers = row_sparse_layers(model).values()
    if not layers:
        raise ValueError("the model has no RowSparseLinear; apply RSparse to it first.")
    before = [layer._tail for layer in layers]
    for layer in layers:
        layer._tail = share
    try:
        yield
    finally:
        for layer, tail in zip(layers, before, strict=True):
            layer._tail = tail


def reset_counters(model: nn.Module) -> None:
    """Begin counting the rows that are read anew."""
    for layer in row_sparse_layers(model).values():
        layer.counts.zero_()


def rows_read(model: nn.Module) -> dict[str, float]:
    """The share of rows read by each layer, over the sparse tokens since the last reset; NaN if there were
    none.
    """
    found = {}
    for name, layer in row_sparse_layers(model).items():
        kept, tokens = layer.counts.tolist()
        found[name] = kept / (tokens * layer.in_features) if tokens else math.nan
    return found


def bytes_read(model: nn.Module) -> int:
    """Bytes of weights read for the sparse tokens since the last reset."""
    total = 0
    for layer in row_sparse_layers(model).values():
        kept, tokens = layer.counts.tolist()
        fixed = layer.weights.bytes_of(0)
        total += tokens * fixed + kept * (layer.weights.bytes_of(1) - fixed)
    return total


def row_sparse_kernel(module: nn.Module) -> LinearKernel | None:
    """For `CompiledDecoder(decoder, kernel_of=…)`: the kernel of a row-sparse layer; None for another module,
    and inside `sparse_tail`.

    Every token that it is given is treated as one of decoding, so prompts are to be run elsewhere. What the
    decoder says of its bytes and costs counts all rows: `bytes_read` tells those that were read.
    Raises: NoCompiler; TypeError for matrices of a type that the kernel is not for; RuntimeError in training
    mode.
    """
    if not isinstance(module, RowSparseLinear) or module._tail is not None:
        return None
    module.check_inference()
    return module.weights.kernel
