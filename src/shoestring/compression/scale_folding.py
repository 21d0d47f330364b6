"""Scales per input channel of linear layers, folded into what comes before: the function stays the same.

W x = (W·s)(x / s): the columns of W are multiplied by s, and the norm or linear layer that puts x out is
divided by it. Within a block of the Llama family that is possible at four places.

Source: Lin et al. 2024, "AWQ: Activation-aware Weight Quantization", section 3.2.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shoestring.compression.weight_matrix import is_linear


@dataclass(frozen=True)
class FoldPlace:
    """Where scales can be folded, as names within a block.

    source: the norm or linear layer that puts the input out. readers: all that read it. judge: the module
    whose output tells how good the rounded readers are. heads: query heads that share one head of the
    source, 1 elsewhere; head_dim: channels of such a head.
    """

    source: str
    readers: tuple[str, ...]
    judge: str
    heads: int = 1
    head_dim: int = 0

    def tied(self, magnitude: Float[Tensor, " inputs"]) -> Float[Tensor, " inputs"]:
        """The same with one value, the mean, for all inputs that one channel of the source feeds."""
        if self.heads == 1:
            return magnitude
        by_head = magnitude.view(-1, self.heads, self.head_dim)
        return by_head.mean(1, keepdim=True).expand_as(by_head).reshape(-1)

    def of_source(self, scales: Float[Tensor, " inputs"]) -> Float[Tensor, " channels"]:
        """The scale of each channel of the source, from tied scales of the inputs."""
        return scales if self.heads == 1 else scales.view(-1, self.heads, self.head_dim)[:, 0].reshape(-1)


def fold_places(block: nn.Module) -> list[FoldPlace]:
    """The places of a block, in the order of the computation; those that it has not are left out.

    A norm or layer that recipes do not know is no place: what follows it has none.
    """
    before_mlp = "pre_feedforward_layernorm" if _has(block, "pre_feedforward_layernorm") else _AFTER
    places = [FoldPlace("input_layernorm", tuple(f"self_attn.{n}_proj" for n in "qkv"), "self_attn")]
    places += _attention_output(block)
    places.append(FoldPlace(before_mlp, ("mlp.gate_proj", "mlp.up_proj"), "mlp"))
    places.append(FoldPlace("mlp.up_proj", ("mlp.down_proj",), "mlp.down_proj"))
    return [place for place in places if _is_possible(block, place)]


def fold_scales(block: nn.Module, place: FoldPlace, scales: Float[Tensor, " inputs"]) -> None:
    """Multiply the columns of the readers by `scales` (tied as the place asks) and divide the source by them.

    Weights are replaced, not written to: who shares them keeps the old ones. Computed in float32.
    """
    for name in place.readers:
        reader: Any = block.get_submodule(name)
        _replace(reader, "weight", reader.weight.float() * scales)
    source: Any = block.get_submodule(place.source)
    inverse = 1.0 / place.of_source(scales)
    if is_linear(source):
        _replace(source, "weight", source.weight.float() * inverse[:, None])
        if source.bias is not None:
            _replace(source, "bias", source.bias.float() * inverse)
    else:
        offset = _gain_offset(source)
        _replace(source, "weight", (source.weight.float() + offset) * inverse - offset)


_AFTER = "post_attention_layernorm"


def _attention_output(block: nn.Module) -> list[FoldPlace]:
    """Values to the output map; heads that share a value head share its scales."""
    names = "self_attn.v_proj", "self_attn.o_proj"
    if not all(_has(block, name) and is_linear(block.get_submodule(name)) for name in names):
        return []
    values, output = (cast(nn.Linear, block.get_submodule(name)) for name in names)
    head_dim = getattr(block.get_submodule("self_attn"), "head_dim", None)
    wide, narrow = output.in_features, values.out_features
    if wide == narrow:
        return [FoldPlace(names[0], (names[1],), names[1])]
    if not isinstance(head_dim, int) or wide % narrow or narrow % head_dim:
        return []
    return [FoldPlace(names[0], (names[1],), names[1], wide // narrow, head_dim)]


def _is_possible(block: nn.Module, place: FoldPlace) -> bool:
    if not all(_has(block, name) for name in (place.source, *place.readers, place.judge)):
        return False
    # Conv1D keeps its matrix the other way round, and no block of this structure has it.
    if not all(type(block.get_submodule(name)) is nn.Linear for name in place.readers):
        return False
    source = block.get_submodule(place.source)
    return type(source) is nn.Linear or "RMSNorm" in type(source).__name__


def _has(block: nn.Module, name: str) -> bool:
    try:
        block.get_submodule(name)
    except AttributeError:
        return False
    return True


def _gain_offset(norm: Any) -> float:
    """What a norm adds to its weight, 0 or 1: asked of the norm itself, whose class may belong to others."""
    with torch.no_grad():
        # Of ones, whose root mean square is 1, a norm makes its gain.
        gain = norm(torch.ones_like(norm.weight)).float()
        return float((gain - norm.weight.float()).mean().round())


def _replace(module: Any, name: str, value: Tensor) -> None:
    old = getattr(module, name)
    setattr(module, name, nn.Parameter(value.to(old.dtype), requires_grad=old.requires_grad))
