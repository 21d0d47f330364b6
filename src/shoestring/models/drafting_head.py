"""The head of a target as a draft asks it.

A draft of one layer reads four million weights of its own and, for SmolLM2-135M, twenty-eight million of the
head, which decide what a drafted token costs. A proposal need not be exact, as every token is verified: the
head is copied to bfloat16, half of the bytes, and packed heads take inputs rounded to int8.
"""

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
from shoestring.notices import notice_fallback

_HEADS: WeakKeyDictionary[Decoder, "DraftingHead"] = WeakKeyDictionary()


class DraftingHead:
    """The head by a kernel that reads few bytes, where there is one: float32 and packed heads on the CPU.

    Heads of other types, elsewhere, or without a compiler are asked as they are.
    """

    def __init__(self, head: nn.Module) -> None:
        self.head, self._kernel = head, _kernel(head)

    def __call__(self, x: Float[Tensor, "batch n hidden"]) -> Float[Tensor, "batch n vocab"]:
        """Logits; float32 from the kernel."""
        if self._kernel is None:
            return self.head(x)
        return self._kernel(x.flatten(0, 1).float()).unflatten(0, x.shape[:2])

    @property
    def nbytes(self) -> int | None:
        """Bytes that a token reads; None where there is no kernel."""
        return None if self._kernel is None else self._kernel.nbytes


def drafting_head(target: Decoder) -> DraftingHead:
    """The head of this target, made when it is first asked for; a head that was replaced is made anew."""
    known = _HEADS.get(target)
    if known is None or known.head is not target.lm_head:
        known = _HEADS[target] = DraftingHead(target.lm_head)
    return known


def _kernel(head: nn.Module) -> LinearKernel | None:
    try:
        if type(head) is PackedLinear:
            return packed_kernel(head, Activations.INT8)
        if type(head) is not nn.Linear or head.weight.device.type != "cpu":
            return None
        return dense_linear(head.weight.bfloat16(), head.bias) if head.weight.dtype == torch.float32 else None
    except NoCompiler as error:
        notice_fallback("head of a draft", f"as it is instead of in bfloat16 ({error})")
        return None
