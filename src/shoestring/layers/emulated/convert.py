"""Native layers of a whole model turned into emulated ones, in a copy."""

import copy
from collections.abc import Collection
from typing import TypeVar

from torch import nn

from shoestring.layers.emulated.attention import QuantMultiheadAttention
from shoestring.layers.emulated.module import EmulatedModule, Rounders
from shoestring.layers.emulated.plain import PLAIN_LAYERS
from shoestring.layers.emulated.recurrent import QuantGRU, QuantLSTM, QuantRNN

Model = TypeVar("Model", bound=nn.Module)

EMULATED: dict[type[nn.Module], type[EmulatedModule]] = {
    kind.__bases__[1]: kind
    for kind in (*PLAIN_LAYERS, QuantRNN, QuantGRU, QuantLSTM, QuantMultiheadAttention)
}
"""The emulated layer of each native layer."""


def emulate_layers(model: Model, rounders: Rounders, *, ignore: Collection[str] = ()) -> Model:
    """A deep copy whose native layers round their operands, for quantisation-aware training.

    Layers keep their names, parameters, buffers and hooks; those named in `ignore` stay native, and so do
    subclasses of native layers and whatever a model computes between layers.

    Raises: ValueError where `ignore` names no layer, or nothing is left to emulate.
    """
    copied = copy.deepcopy(model)
    layers = {name: each for name, each in copied.named_modules() if type(each) in EMULATED}
    if unknown := sorted(set(ignore) - set(layers)):
        raise ValueError(
            f"ignore names {', '.join(map(repr, unknown))}, no layer that could be emulated; "
            f"there are {', '.join(map(repr, layers))}"
        )
    chosen = [layer for name, layer in layers.items() if name not in ignore]
    if not chosen:
        raise ValueError(
            f"{type(model).__name__} has no layer to emulate; the kinds that can be are "
            f"{', '.join(kind.__name__ for kind in EMULATED)}"
        )
    inner = {id(each) for layer in chosen for each in layer.modules() if each is not layer}
    for layer in chosen:
        if id(layer) not in inner:  # attention rounds its output projection itself
            layer.__class__ = EMULATED[type(layer)]
            assert isinstance(layer, EmulatedModule)
            layer.adopt(rounders)
    return copied
