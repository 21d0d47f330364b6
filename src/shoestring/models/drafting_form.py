"""A draft, and the head of its target, in the form in which they draft.

A draft of one layer reads four million weights of its own and, for SmolLM2-135M, twenty-eight million of the
head, which decide what a drafted token costs. A proposal need not be exact, as every token is verified: the
matrices are copied to bfloat16, half of the bytes, and packed heads take inputs rounded to int8.
"""

import copy
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shoestring.errors import NoCompiler
from shoestring.kernels.dense_linear import dense_linear
from shoestring.kernels.grouped_linear import Activations
from shoestring.kernels.linear_kernel import LinearKernel
from shoestring.layers.packed_kernel import packed_kernel
from shoestring.layers.packed_linear import PackedLinear
from shoestring.models.decoder import Decoder
from shoestring.models.glide_draft import GlideDraft
from shoestring.notices import notice_fallback

_HEADS: WeakKeyDictionary[Decoder, "DraftingLinear"] = WeakKeyDictionary()
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


def drafting_head(target: Decoder) -> DraftingLinear:
    """The head of this target, made when it is first asked for; a head that was replaced is made anew."""
    known = _HEADS.get(target)
    if known is None or known.linear is not target.lm_head:
        known = _HEADS[target] = DraftingLinear(target.lm_head)
    return known


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


def _kernel(linear: nn.Module) -> LinearKernel | None:
    try:
        if type(linear) is PackedLinear:
            return packed_kernel(linear, Activations.INT8)
        if type(linear) is not nn.Linear or linear.weight.device.type != "cpu":
            return None
        weight = linear.weight
        return dense_linear(weight.bfloat16(), linear.bias) if weight.dtype == torch.float32 else None
    except NoCompiler as error:
        notice_fallback("drafts", f"matrices as they are instead of in bfloat16 ({error})")
        return None
