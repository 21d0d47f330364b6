"""What is known about the inputs of each linear layer: second moments and mean magnitudes."""

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor


@dataclass
class Moments:
    """Statistics of the inputs x of a linear layer over `count` tokens."""

    second_moment: Float[Tensor, "cols cols"]
    mean_magnitude: Float[Tensor, " cols"]
    count: int


@dataclass
class Calibration:
    """Input statistics by module name. Layers that see the same input share one `Moments`."""

    moments: dict[str, Moments] = field(default_factory=dict)
    token_counts: dict[str, Float[Tensor, " rows"]] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self.moments or name in self.token_counts

    def second_moment(self, name: str) -> Float[Tensor, "cols cols"]:
        """E[x xᵀ] of the inputs of a linear layer. Raises: ValueError if it was not captured."""
        return self._of(name).second_moment

    def mean_magnitude(self, name: str) -> Float[Tensor, " cols"]:
        """E|x| of the inputs of a linear layer. Raises: ValueError if it was not captured."""
        return self._of(name).mean_magnitude

    def _of(self, name: str) -> Moments:
        if name not in self.moments:
            raise ValueError(f"no inputs of {name!r} were captured; capture a calibration that includes it.")
        return self.moments[name]
