"""A trained model as it would behave on hardware of few bits: post-training quantisation, emulated.

Weights are rounded once; activations wherever a layer takes or gives them. What a model computes between its
layers (a residual sum, an attention written as one function) is rounded when the next layer takes it.

Source: Carson and Chen 2025, "Pychop", section 5.
"""

import copy
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from shoestring.compression.activation_ranges import MagnitudeHistogram, MinMax, RangeChoice
from shoestring.compression.conv_bn_fusion import fuse_conv_bn
from shoestring.layers.emulated.straight_through import TensorRounder, round_tensor
from shoestring.numbers.integer import IntegerFormat, IntegerQuantizer, scaling_of_range

Model = TypeVar("Model", bound=nn.Module)
Quantiser = TensorRounder | IntegerFormat
"""A rounder of values as they are, or an integer format, whose scale then follows the values' range."""


def emulate(
    model: Model,
    *,
    weights: Quantiser | None = None,
    activations: Quantiser | None = None,
    biases: TensorRounder | None = None,
    ignore: Collection[str] = (),
) -> Model:
    """A deep copy of any model whose weights and activations are rounded; nothing is calibrated.

    `weights` rounds every parameter but biases (integers: one scale per row of a matrix); `activations` the
    floating-point inputs of every layer that has parameters and the outputs of every layer (integers: one
    scale per tensor and call, "dynamic"). Give both for WxAy. `ignore`: names of layers left alone, weights
    and activations. A layer is a module without children, or `nn.MultiheadAttention`.

    Raises: ValueError for a name in `ignore` that is no layer, or where nothing is to be rounded.
    """
    copied = copy.deepcopy(model)
    layers = _layers(copied, ignore)
    _check_work(model, layers, weights, activations, biases)
    _round_parameters(layers, weights, biases)
    if activations is not None:
        for name, layer in layers.items():
            rounder = _Dynamic(activations, name) if isinstance(activations, IntegerFormat) else activations
            for place in _places(layer):
                place.attach(layer, rounder)
    return copied


def emulate_static(
    model: Model,
    calibration: Iterable[Any],
    *,
    activations: Quantiser,
    weights: Quantiser | None = None,
    biases: TensorRounder | None = None,
    ranges: RangeChoice | None = None,
    ignore: Collection[str] = (),
) -> Model:
    """As `emulate`, with every activation clamped to a range found beforehand and, if integer, scaled by it.

    Batch norms are folded into convolutions, weights rounded, then the `calibration` batches (a tensor, a
    tuple of arguments or a mapping of named ones each) run in eval mode; `ranges` chooses from what was seen:
    `MinMax()` unless given, `Percentile()`, `MeanSquare()`, `KullbackLeibler()`. The copy is in eval mode.

    Raises: as `emulate`; ValueError for no batches, NaN in one (naming the layer), or a layer that none
    reached.
    """
    copied = copy.deepcopy(model).eval()
    fuse_conv_bn(copied)
    layers = _layers(copied, ignore)
    _check_work(model, layers, weights, activations, biases)
    _round_parameters(layers, weights, biases)
    choice = MinMax() if ranges is None else ranges
    for name, place, seen in _observe(copied, layers, calibration):
        place.attach(layers[name], _calibrated(seen, activations, choice))
    return copied


@dataclass(frozen=True)
class _Place:
    """The inputs or the outputs of a layer."""

    is_input: bool

    def attach(self, layer: nn.Module, rounder: TensorRounder) -> Any:
        hook = _Hook(rounder, self.is_input)
        if self.is_input:
            return layer.register_forward_pre_hook(hook)
        return layer.register_forward_hook(hook)


@dataclass(frozen=True)
class _Hook:
    """Replaces the floating-point tensors of a layer's arguments or result."""

    rounder: TensorRounder
    is_input: bool

    def __call__(self, layer: nn.Module, arguments: Any, result: Any = None) -> Any:
        return self._replace(arguments if self.is_input else result)

    def _replace(self, value: Any) -> Any:
        if type(value) in (tuple, list):
            return type(value)(self._replace(each) for each in value)
        if isinstance(value, Tensor) and value.is_floating_point():
            return round_tensor(value, self.rounder)
        return value


@dataclass(frozen=True)
class _Dynamic:
    """An integer format whose scale is that of the tensor at hand."""

    fmt: IntegerFormat
    name: str

    def __call__(self, x: Tensor) -> Tensor:
        return IntegerQuantizer(self.fmt, name=self.name)(x) if x.numel() else x


@dataclass(frozen=True)
class _Clamped:
    """Clamps to a range, then rounds."""

    low: float
    high: float
    rounder: TensorRounder

    def __call__(self, x: Tensor) -> Tensor:
        return round_tensor(x.clamp(self.low, self.high), self.rounder)


@dataclass(frozen=True)
class _Observer:
    """Counts what passes and leaves it as it is."""

    seen: MagnitudeHistogram

    def __call__(self, x: Tensor) -> Tensor:
        self.seen.observe(x)
        return x


def _layers(model: nn.Module, ignore: Collection[str]) -> dict[str, nn.Module]:
    """Modules without children, attention as one of them, but for those to be ignored."""
    found: dict[str, nn.Module] = {}
    inside: set[int] = set()
    for name, module in model.named_modules():
        if id(module) in inside:
            continue
        if isinstance(module, nn.MultiheadAttention):
            inside.update(map(id, module.modules()))
        elif any(True for _ in module.children()):
            continue
        found[name] = module
    if unknown := sorted(set(ignore) - set(found)):
        raise ValueError(
            f"ignore names {', '.join(map(repr, unknown))}, no layer of {type(model).__name__}; a layer is a "
            f"module without children, such as {', '.join(map(repr, list(found)[:3]))}"
        )
    return {name: layer for name, layer in found.items() if name not in ignore}


def _check_work(model: nn.Module, layers: dict[str, nn.Module], *quantisers: Quantiser | None) -> None:
    if all(each is None for each in quantisers):
        raise ValueError("nothing is to be rounded; give weights, activations or biases")
    if not layers:
        raise ValueError(f"{type(model).__name__} has no layer left to emulate")


def _places(layer: nn.Module) -> list[_Place]:
    has_parameters = any(True for _ in layer.parameters())
    return [_Place(True), _Place(False)] if has_parameters else [_Place(False)]


@torch.no_grad()
def _round_parameters(
    layers: dict[str, nn.Module], weights: Quantiser | None, biases: TensorRounder | None
) -> None:
    """Parameters that several layers share are rounded once."""
    done: set[int] = set()
    for layer_name, layer in layers.items():
        for name, parameter in layer.named_parameters():
            quantiser = biases if "bias" in name.rpartition(".")[2] else weights
            if quantiser is None or id(parameter) in done or not parameter.is_floating_point():
                continue
            done.add(id(parameter))
            if isinstance(quantiser, IntegerFormat):
                axis = 0 if parameter.dim() > 1 else None
                quantiser = IntegerQuantizer(quantiser, axis=axis, name=f"{layer_name}.{name}")
            parameter.copy_(round_tensor(parameter, quantiser))


@torch.no_grad()
def _observe(
    model: nn.Module, layers: dict[str, nn.Module], calibration: Iterable[Any]
) -> list[tuple[str, _Place, MagnitudeHistogram]]:
    """What passes each place of each layer over all calibration batches."""
    watched = [(name, p, MagnitudeHistogram(name)) for name, layer in layers.items() for p in _places(layer)]
    handles = [place.attach(layers[name], _Observer(seen)) for name, place, seen in watched]
    n_batches = 0
    try:
        for batch in calibration:
            n_batches += 1
            if isinstance(batch, Mapping):
                model(**batch)
            else:
                model(*batch if isinstance(batch, (tuple, list)) else (batch,))
    finally:
        for handle in handles:
            handle.remove()
    if n_batches == 0:
        raise ValueError("the calibration iterator is empty; give at least one batch")
    floating = [entry for entry in watched if entry[2].seen or not entry[1].is_input]
    if missed := sorted({name for name, _, seen in floating if not seen.seen}):
        raise ValueError(
            f"no calibration batch gave floating-point values at {', '.join(map(repr, missed))}; "
            f"calibrate with data that reaches them, or ignore them"
        )
    return floating


def _calibrated(seen: MagnitudeHistogram, quantiser: Quantiser, choice: RangeChoice) -> TensorRounder:
    """Clamp and quantise as the observed values ask for."""

    def within(threshold: float) -> TensorRounder:
        low, high = seen.range(threshold)
        if isinstance(quantiser, IntegerFormat):
            integers = IntegerQuantizer(quantiser, name=seen.name)
            integers.scaling = scaling_of_range(torch.tensor(low), torch.tensor(high), quantiser)
            return _Clamped(low, high, integers)
        return _Clamped(low, high, quantiser)

    def quantise(values: Tensor, threshold: float) -> Tensor:
        sign = 1.0 if seen.high >= -seen.low else -1.0  # magnitudes are tried on the larger side
        rounded = within(threshold)(sign * values.float())
        return (sign * rounded).double()

    return within(choice.threshold(seen, quantise))
