"""A recipe: what is done to a module to make it smaller, as data.

Recipes are frozen dataclasses whose fields are the method's hyper-parameters. Every subclass is found again
by its class name, so that a recipe can be written to JSON and read back.
"""

import dataclasses
import enum
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, get_type_hints

from torch import nn

from shoestring.compression.weight_matrix import matrix_shape, weight_matrix, why_no_matrix

if TYPE_CHECKING:
    from shoestring.compression.calibration import Calibration


class Needs(enum.Enum):
    """What a recipe must know beside the weights."""

    NOTHING = "nothing"
    CALIBRATION = "calibration"
    BLOCKS = "blocks"
    """Whole blocks and what they are called with: only `apply_in_sequence` has both."""


class Recipe:
    """Base of all recipes: a registry by class name and JSON. Subclasses are frozen dataclasses."""

    needs: ClassVar[Needs] = Needs.NOTHING
    _registry: ClassVar[dict[str, type["Recipe"]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Recipe._registry[cls.__name__] = cls

    def to_json(self) -> dict[str, Any]:
        """{"recipe": class name, field: value, …}; enum members become their values."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        plain = {k: v.value if isinstance(v, enum.Enum) else v for k, v in fields.items()}
        return {"recipe": type(self).__name__, **plain}

    @staticmethod
    def from_json(document: dict[str, Any]) -> "Recipe":
        """The recipe that `to_json` wrote. Raises: ValueError for an unknown recipe or a field it has not."""
        fields = dict(document)
        name = fields.pop("recipe", None)
        kind = Recipe._registry.get(str(name))
        if kind is None or not dataclasses.is_dataclass(kind):
            known = sorted(k for k, v in Recipe._registry.items() if dataclasses.is_dataclass(v))
            raise ValueError(f"{name!r} is not a known recipe; use one of {', '.join(known)}.")
        hints = get_type_hints(kind)
        allowed = [f.name for f in dataclasses.fields(kind)]
        if unknown := sorted(set(fields) - set(allowed)):
            raise ValueError(
                f"{name} has no field {', '.join(map(repr, unknown))}; its fields are {', '.join(allowed)}."
            )
        for key, value in fields.items():
            if isinstance(hints[key], type) and issubclass(hints[key], enum.Enum):
                fields[key] = hints[key](value)
        return kind(**fields)


class ModuleRecipe(Recipe, ABC):
    """A recipe that replaces one linear map or embedding by a cheaper module."""

    def why_not(self, name: str, module: nn.Module) -> str | None:
        """The reason, naming the module, why this recipe cannot rewrite it; None if it can."""
        return why_no_matrix(name, module)

    def why_not_alone(self, name: str, module: nn.Module) -> str | None:
        """Why `module` cannot be rewritten unless it is tied to another that can; None if it can."""
        return None

    @abstractmethod
    def matrix_bytes(self, rows: int, cols: int, itemsize: int) -> int:
        """Bytes stored for a (rows = outputs, cols = inputs) matrix whose plain weights take `itemsize`."""

    def bytes_after(self, module: nn.Module) -> int:
        """Exact bytes of the stored tensors of the module that `rewrite` will give, bias included."""
        bias = getattr(module, "bias", None)
        itemsize = weight_matrix(module).element_size()
        return self.matrix_bytes(*matrix_shape(module), itemsize) + (0 if bias is None else bias.nbytes)

    @abstractmethod
    def rewrite(self, name: str, module: nn.Module, calibration: "Calibration | None") -> nn.Module:
        """The module that takes the place of `module`, which is left as it is.

        Raises: ValueError where `why_not` gives a reason, or if a needed calibration lacks `name`.
        """

    def timing_twin(self) -> "ModuleRecipe":
        """A recipe that needs no calibration and whose modules take as long: itself, if it needs none."""
        return self

    def why_not_tied(self, name: str, others: list[str]) -> str | None:
        """Why a module that shares its weight with `others` cannot be rewritten; None if it can."""
        tied = ", ".join(map(repr, others))
        return f"{name!r} shares its weight with {tied}, which {type(self).__name__} would part."

    def rewrite_tied(self, module: nn.Module, rewritten: nn.Module) -> nn.Module:
        """A replacement of `module` that shares the stored tensors of `rewritten`, to which it was tied."""
        raise NotImplementedError(f"{type(self).__name__} does not keep ties; see why_not_tied")

    def tie(self, owner: nn.Module, others: list[nn.Module]) -> None:
        """Leave the stored tensors that rewritten modules share to `owner`, the first one in the model."""


class ModelRecipe(Recipe, ABC):
    """A recipe that concerns the model as a whole, such as its cache."""

    @abstractmethod
    def rewrite_model(self, model: nn.Module) -> None:
        """Change the model in place."""

    def why_not_model(self, model: nn.Module) -> str | None:
        """The reason why this model cannot be changed so; None if it can."""
        return None
