"""A draft, and the head of its target, in the form in which they draft.

A draft of one layer reads four million weights of its own and, for SmolLM2-135M, twenty-eight million of the
head, which decide what a drafted token costs. A proposal need not be exact, as every token is verified: the
matrices are copied to bfloat16, half of the bytes, and packed heads take inputs rounded to int8. A draft of
few words has a head of their rows alone.
"""

import copy
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shoestring.errors import NoCompiler
from shoestring.kernels.dense_linear import dense_linear
from shoestring.kernels.grouped_linear import Activations
from shoestring.kernels.large_pages import on_large_pages
from shoestring.kernels.linear_kernel import LinearKernel
from shoestring.layers.packed_kernel import packed_kernel
from shoestring.layers.packed_linear import PackedLinear
from shoestring.models.decoder import Decoder
from shoestring.models.glide_draft import GlideDraft
from shoestring.notices import notice_fallback

_HEADS: WeakKeyDictionary[Decoder, "DraftingLinear"] = WeakKeyDictionary()
_SHORT_HEADS: WeakKeyDictionary[GlideDraft, tuple[nn.Module, nn.Module]] = WeakKeyDictionary()
_FORMS: WeakKeyDictionary[GlideDraft, tuple[tuple[object, ...], GlideDraft]] = WeakKeyDictionary()


class DraftingLinear(nn.Module):
    """A linear layer by a kernel that reads few bytes, where there is one: float32 and packed ones on a CPU.

    Layers of other types, elsewhere, or without a compiler are asked as they are.
    """

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear, self._kernel = linear, _kernel(linear)

    def forward(self, x: Float[Tensor, "batch n inputs"]) -> Float[Tensor, "batch n outputs"]:
        """y; float32 from the kernel."""
        if self._kernel is None:
            return self.linear(x)
        return self._kernel(x.flatten(0, 1).float()).unflatten(0, x.shape[:2])

    @property
    def nbytes(self) -> int | None:
        """Bytes that a token reads; None where there is no kernel."""
        return None if self._kernel is None else self._kernel.nbytes


class ChosenOutputs(nn.Module):
    """Some outputs of a layer that has no rows to take."""

    def __init__(self, linear: nn.Module, outputs: Int[Tensor, " chosen"]) -> None:
        super().__init__()
        self.linear, self.outputs = linear, outputs

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch chosen"]:
        """Those outputs, in their order."""
        return self.linear(x)[..., self.outputs]


def drafting_head(target: Decoder, draft: GlideDraft) -> nn.Module:
    """The target's head on what this draft can draft, made when it is first asked for; a head that was
    replaced is made anew."""
    if draft.words is None:
        known = _HEADS.get(target)
        if known is None or known.linear is not target.lm_head:
            known = _HEADS[target] = DraftingLinear(target.lm_head)
        return known
    short = _SHORT_HEADS.get(draft)
    if short is None or short[0] is not target.lm_head:
        rows = _rows(target.lm_head, draft.words)
        made = ChosenOutputs(target.lm_head, draft.words) if rows is None else DraftingLinear(rows)
        short = _SHORT_HEADS[draft] = target.lm_head, made
    return short[1]


def drafting_form(draft: GlideDraft) -> GlideDraft:
    """The draft with its linear layers by kernels; made anew where weights have changed since."""
    state = tuple((one.data_ptr(), 0 if one.is_inference() else one._version) for one in draft.parameters())
    known = _FORMS.get(draft)
    if known is None or known[0] != state:
        form = copy.copy(draft)
        form._modules = {
            name: DraftingLinear(module) if isinstance(module, nn.Linear) else module
            for name, module in draft.named_children()
        }
        known = _FORMS[draft] = state, form
    return known[1]


@torch.no_grad()
def _rows(linear: nn.Module, rows: Int[Tensor, " chosen"]) -> nn.Linear | None:
    """A layer of some rows of a matrix, a packed one dequantised; None for other layers."""
    if type(linear) is PackedLinear:
        weight = linear.packed.dequantise(rows)
    elif type(linear) is nn.Linear and linear.weight.is_floating_point():
        weight = linear.weight[rows]
    else:
        return None
    chosen = nn.Linear(weight.shape[1], len(rows), linear.bias is not None, device="meta")
    chosen.weight = nn.Parameter(weight, requires_grad=False)
    if linear.bias is not None:
        chosen.bias = nn.Parameter(linear.bias[rows].to(weight.dtype), requires_grad=False)
    return chosen


def _kernel(linear: nn.Module) -> LinearKernel | None:
    try:
        if type(linear) is PackedLinear:
            return packed_kernel(linear, Activations.INT8)
        if type(linear) is not nn.Linear or linear.weight.device.type != "cpu":
            return None
        weight = linear.weight
        if weight.dtype != torch.float32:
            return None
        return dense_linear(on_large_pages(weight.bfloat16()), linear.bias)
    except NoCompiler as error:
        notice_fallback("drafts", f"matrices as they are instead of in bfloat16 ({error})")
        return None
