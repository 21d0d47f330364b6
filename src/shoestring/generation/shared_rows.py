"""Layers of a decoder that share an input choose its rows once: (q, k, v), and (gate, up)."""

from torch import Tensor

from shoestring.kernels.row_gather import RowGroup, row_gather
from shoestring.layers.row_sparse_linear import RowSparseLinear
from shoestring.models.decoder import Decoder
from shoestring.models.hooks import Phase, Project

PARTS = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}


def layer_name(layer: int, name: str) -> str:
    """The name in a `Decoder` of a linear layer that hooks know by its last part."""
    part = next(part for part, names in PARTS.items() if name in names)
    return f"model.layers.{layer}.{part}.{name}"


class SharedRows:
    """A `linear` hook: one call of the kernel for all row-sparse layers of one input.

    Results are those of the layers called one by one, bit for bit.
    """

    def __init__(self, model: Decoder) -> None:
        self._model = model
        self._modules: dict[tuple[int, tuple[str, ...]], list[RowSparseLinear]] = {}
        self._groups: dict[tuple[int, tuple[str, ...]], RowGroup] = {}

    def linear(
        self, layer: int, names: tuple[str, ...], x: Tensor, phase: Phase, proceed: Project
    ) -> tuple[Tensor, ...]:
        """As `LinearHook`."""
        if phase is not Phase.DECODE or len(names) == 1:
            return proceed(x)
        modules = self._row_sparse(layer, names)
        if len(modules) < len(names) or not all(module.is_sparse_call(x) for module in modules):
            return proceed(x)
        for module in modules:
            module.check_inference()
        return row_gather([x] * len(modules), self._group((layer, names), modules))

    def _row_sparse(self, layer: int, names: tuple[str, ...]) -> list[RowSparseLinear]:
        key = layer, names
        if key not in self._modules:
            found = [self._model.get_submodule(layer_name(layer, name)) for name in names]
            self._modules[key] = [module for module in found if isinstance(module, RowSparseLinear)]
        return self._modules[key]

    def _group(self, key: tuple[int, tuple[str, ...]], modules: list[RowSparseLinear]) -> RowGroup:
        """Made anew where a layer was split anew."""
        weights = [module.weights for module in modules]
        group = self._groups.get(key)
        if group is None or any(a is not b for a, b in zip(group.layers, weights, strict=True)):
            group = self._groups[key] = RowGroup(weights)
        return group
