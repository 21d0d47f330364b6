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

    Results are those of the layers called one by one, bit for bit. Layers split anew after their first call
    need a new hook.
    """

    def __init__(self, model: Decoder) -> None:
        self._model = model
        self._groups: dict[tuple[int, tuple[str, ...]], tuple[list[RowSparseLinear], RowGroup] | None] = {}

    def linear(
        self, layer: int, names: tuple[str, ...], x: Tensor, phase: Phase, proceed: Project
    ) -> tuple[Tensor, ...]:
        """As `LinearHook`."""
        if phase is Phase.DECODE and len(names) > 1:
            found = self._group(layer, names)
            if found is not None and all(module.is_sparse_call(x) for module in found[0]):
                modules, group = found
                for module in modules:
                    module.check_inference()
                    module.sparse_tokens += x.numel() // module.in_features
                return row_gather([x] * len(modules), group)
        return proceed(x)

    def _group(self, layer: int, names: tuple[str, ...]) -> tuple[list[RowSparseLinear], RowGroup] | None:
        key = layer, names
        if key not in self._groups:
            modules = [self._model.get_submodule(layer_name(layer, name)) for name in names]
            own = [module for module in modules if isinstance(module, RowSparseLinear)]
            whole = len(own) == len(modules)
            self._groups[key] = (own, RowGroup(tuple(m.weights for m in own))) if whole else None
        return self._groups[key]
