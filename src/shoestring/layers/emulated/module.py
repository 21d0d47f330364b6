"""The one mechanism by which every native layer becomes an emulated one.

An emulated layer is the native layer with rounded operands: same parameters, same names in the state
dictionary, same arithmetic. Without rounders it computes the native layer's bits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from shoestring.layers.emulated.straight_through import TensorRounder, round_gradient, straight_through


@dataclass(frozen=True)
class Rounders:
    """What rounds each operand of a layer; None leaves it as it is.

    `weight`, `bias`: the parameters, each time they are used (the stored ones keep full precision, and get
    the gradient of the identity). `input`, `output`: floating-point inputs and outputs; layers of several
    operations (recurrent ones, attention) round every intermediate result by `output` too. `gradient`: what
    comes back to the output in the backward pass.
    """

    weight: TensorRounder | None = None
    input: TensorRounder | None = None
    output: TensorRounder | None = None
    bias: TensorRounder | None = None
    gradient: TensorRounder | None = None


NATIVE = Rounders()


class EmulatedModule(nn.Module):
    """Mixin before a native layer class: `class QuantLinear(EmulatedModule, nn.Linear)`.

    Takes the native layer's arguments and `rounders`.
    """

    rounders: Rounders

    def __init__(self, *args: Any, rounders: Rounders = NATIVE, **options: Any) -> None:
        super().__init__(*args, **options)
        self.adopt(rounders)

    def adopt(self, rounders: Rounders) -> None:
        """Take these rounders from now on."""
        self.rounders = rounders
        if _no_fused_path not in self._forward_pre_hooks.values():
            self.register_forward_pre_hook(_no_fused_path)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        inputs, named = self.round_inputs(inputs, named)
        with self.rounded_parameters():
            return self.round_output(super().forward(*inputs, **named))

    def round_inputs(
        self, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        rounder = self.rounders.input
        return (
            tuple(map_floating(x, rounder) for x in inputs),
            {key: map_floating(x, rounder) for key, x in named.items()},
        )

    def round_output(self, output: Any) -> Any:
        """Tensors, and tuples of them, rounded by `output`; their gradient is rounded by `gradient`."""
        if type(output) is tuple:
            return tuple(self.round_output(each) for each in output)
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        return round_gradient(straight_through(output, self.rounders.output), self.rounders.gradient)

    @contextmanager
    def rounded_parameters(self) -> Iterator[None]:
        """Let the layer see rounded parameters; the stored ones are not touched.

        An entry in an object's own dictionary is found before the module's registered parameter.
        """
        shadowed: list[tuple[nn.Module, str]] = []
        try:
            for name, parameter in self.named_parameters():
                owner_name, _, leaf = name.rpartition(".")
                rounder = self.rounders.bias if "bias" in leaf else self.rounders.weight
                if rounder is None:
                    continue
                owner = self.get_submodule(owner_name)
                owner.__dict__[leaf] = straight_through(parameter, rounder)
                shadowed.append((owner, leaf))
            yield
        finally:
            for owner, leaf in shadowed:
                owner.__dict__.pop(leaf, None)

    def extra_repr(self) -> str:
        used = [f"{name}={r}" for name, r in vars(self.rounders).items() if r is not None]
        return ", ".join([part for part in [super().extra_repr()] if part] + used)


def map_floating(x: Any, rounder: TensorRounder | None) -> Any:
    """Floating-point tensors, also inside tuples, rounded; anything else as it is."""
    if type(x) is tuple:
        return tuple(map_floating(each, rounder) for each in x)
    if isinstance(x, Tensor) and x.is_floating_point():
        return straight_through(x, rounder)
    return x


def _no_fused_path(module: nn.Module, inputs: Any) -> None:
    """Torch's fused transformer layer reads parameters past `forward`, except where hooks are registered."""
