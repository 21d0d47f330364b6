"""What a layer asks of the optimizer for its own parameters, e.g. a smaller step for a state matrix.

A module states it as an attribute `parameter_hints`: a table from the names of its own parameters to hints.
The trainer collects them; whoever trains in another way reads them with `hinted_parameters`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, kw_only=True)
class ParameterHint:
    """The learning rate and weight decay that a parameter wants; None leaves the trainer's own.

    `largest_learning_rate` bounds the trainer's rate from above instead of replacing it. `adam_eps` is the ε
    that Adam and its kin add to the root of the second moment: gradients well below it move a parameter in
    proportion to them, not by a full step. Other optimizers have nothing of the kind and leave it.
    Raises: ValueError for a rate or ε that is not above 0, a decay below 0, or both kinds of rate.
    """

    learning_rate: float | None = None
    largest_learning_rate: float | None = None
    weight_decay: float | None = None
    adam_eps: float | None = None

    def __post_init__(self) -> None:
        if self.learning_rate is not None and self.largest_learning_rate is not None:
            raise ValueError("give learning_rate or largest_learning_rate, not both")
        for name in ("learning_rate", "largest_learning_rate", "adam_eps"):
            rate = getattr(self, name)
            if rate is not None and not rate > 0:
                raise ValueError(f"{name}={rate} must be above 0")
        if self.weight_decay is not None and not self.weight_decay >= 0:
            raise ValueError(f"weight_decay={self.weight_decay} must not be below 0")

    def rate(self, default: float) -> float:
        """The learning rate, where everything else has `default`."""
        if self.learning_rate is not None:
            return self.learning_rate
        if self.largest_learning_rate is not None:
            return min(default, self.largest_learning_rate)
        return default

    def decay(self, default: float) -> float:
        """The weight decay, where everything else has `default`."""
        return default if self.weight_decay is None else self.weight_decay


NO_HINT = ParameterHint()


def hinted_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, ParameterHint]]:
    """Every parameter once, with its name in `model` and its hint; `NO_HINT` where its module gives none.

    Raises: ValueError for a hint on a parameter that its module does not have.
    """
    seen: set[int] = set()
    for path, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False, remove_duplicate=False))
        hints: Mapping[str, ParameterHint] = getattr(module, "parameter_hints", {})
        if strange := sorted(hints.keys() - own.keys()):
            where = path or type(module).__name__
            raise ValueError(f"{where} has a hint for {strange[0]!r}, which is none of its parameters")
        for name, parameter in own.items():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{path}.{name}" if path else name, parameter, hints.get(name, NO_HINT)
