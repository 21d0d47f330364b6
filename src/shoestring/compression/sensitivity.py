"""How much a model's output distribution moves when a weight matrix changes, to second order.

The Kullback-Leibler divergence between the model and a copy whose matrix W moved by D is, near D = 0,
half the Fisher information in the direction of D. With the Kronecker approximation of that information,
and its first factor reduced to its diagonal, a linear layer y = W x costs

    KL ≈ ½ Σ_r a_r · D_r M D_rᵀ,   a_r = E[(∂ log p / ∂ y_r)²],   M = E[x xᵀ]

per token, and a look-up table e = W_v the same with a_v = frequency of v and M = E[∂ log p/∂e · ∂ log p/∂eᵀ].
Gradients are those of tokens drawn from the model itself, as the Fisher information wants, not of the text.

Source: Martens & Grosse 2015, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature",
section 3; Kim et al. 2024, "SqueezeLLM", section 4.1, for the use of the diagonal in quantisation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.compression.apply import Slot, slots
from shoestring.compression.calibration import Calibration, InputRecorder
from shoestring.compression.weight_matrix import is_table, row_scale
from shoestring.yardstick.language_quality import without_cache


@dataclass(frozen=True)
class Sensitivity:
    """What the divergence depends on, for every weight matrix of a model, by module name.

    calibration: the inputs of linear layers (M) and the token counts of embeddings (a), from which
    error-compensating recipes live too. output_gradients: of each linear layer, a = E[g²] (rows,).
    table_gradients: of each embedding, M = E[g gᵀ] (columns, columns).
    """

    calibration: Calibration
    output_gradients: dict[str, Float[Tensor, " rows"]]
    table_gradients: dict[str, Float[Tensor, "cols cols"]]

    def loss(self, slot: Slot, difference: Float[Tensor, "rows cols"]) -> float:
        """The predicted divergence, nats a token, if a matrix moves by `difference` wherever it is used."""
        return sum(curvature_loss(difference, *self._curvature(name)) for name in slot.names)

    def _curvature(self, name: str) -> tuple[Tensor, Tensor]:
        if name in self.table_gradients:
            counts = self.calibration.token_counts[name]
            return counts / counts.sum().clamp(min=1), self.table_gradients[name]
        if name in self.output_gradients:
            return self.output_gradients[name], self.calibration.second_moment(name)
        raise ValueError(f"no gradient reached {name!r} while the model was profiled; it cannot be judged.")


def curvature_loss(
    difference: Float[Tensor, "rows cols"],
    row_weight: Float[Tensor, " rows"],
    metric: Float[Tensor, "cols cols"],
) -> float:
    """½ Σ_r a_r · D_r M D_rᵀ, the equation above."""
    per_row = ((difference @ metric) * difference).sum(1)
    return 0.5 * (per_row * row_weight).sum(dtype=torch.float64).item()


def naive_curvature_loss(
    difference: Float[Tensor, "rows cols"],
    row_weight: Float[Tensor, " rows"],
    metric: Float[Tensor, "cols cols"],
) -> float:
    """The same as half the quadratic form of the Kronecker product diag(a) ⊗ M in vec(D), in float64."""
    fisher = torch.kron(row_weight.double().diag(), metric.double())
    flat = difference.double().reshape(-1)
    return 0.5 * (flat @ fisher @ flat).item()


def measure_sensitivity(
    model: nn.Module,
    windows: Int[Tensor, "windows tokens"],
    *,
    gradient_windows: int,
    generator: torch.Generator,
    autocast: torch.dtype | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Sensitivity:
    """Input moments from all windows, Fisher information from the first `gradient_windows` of them.

    model: maps ids (batch, tokens) to logits, or to an object with `.logits`; it is left unchanged.
    autocast: run matrix products in this type (statistics stay float32).

    Raises: ValueError if there are fewer windows than `gradient_windows`, or none.
    """
    if not 0 < gradient_windows <= len(windows):
        raise ValueError(
            f"gradient_windows={gradient_windows} must be between 1 and the {len(windows)} windows given."
        )
    found = slots(model)
    members = {n: m for slot in found for n, m in zip(slot.names, slot.modules, strict=True)}
    gradients = _GradientMoments({n: m for n, m in members.items()})
    with _frozen(model), InputRecorder(members) as inputs:
        for index, window in enumerate(windows):
            backward = index < gradient_windows
            with torch.autocast(window.device.type, autocast, enabled=autocast is not None):
                _pass(model, window[None], gradients if backward else None, generator)
            if progress is not None:
                progress(index + 1, len(windows))
    means = {name: gradients.mean(name) for name in gradients.sums}
    return Sensitivity(
        inputs.calibration,
        {name: mean for name, mean in means.items() if mean.dim() == 1},
        {name: mean for name, mean in means.items() if mean.dim() == 2},
    )


def _pass(
    model: nn.Module,
    ids: Int[Tensor, "1 tokens"],
    gradients: "_GradientMoments | None",
    generator: torch.Generator,
) -> None:
    if gradients is None:
        with torch.no_grad():
            model(ids, **without_cache(model))
        return
    with gradients.listening(), torch.enable_grad():
        logits = logits_of(model(ids, **without_cache(model)))
        flat = logits.float().reshape(-1, logits.shape[-1])
        drawn = torch.multinomial(flat.detach().softmax(-1), 1, generator=generator)[:, 0]
        F.cross_entropy(flat, drawn, reduction="sum").backward()


def logits_of(output: Any) -> Float[Tensor, "*batch vocabulary"]:
    """The logits in what a causal language model returns."""
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"the model returned {type(output).__name__}; a tensor of logits or .logits is needed."
        )
    return logits


class _GradientMoments:
    """Second moments of the gradients at the outputs of modules, summed over tokens."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self.modules = modules
        self.sums: dict[str, Tensor] = {}
        self.tokens: dict[str, int] = {}

    def listening(self) -> "_Hooks":
        return _Hooks([m.register_forward_hook(self._watch(n, m)) for n, m in self.modules.items()])

    def _watch(self, name: str, module: nn.Module) -> Callable[..., Tensor]:
        def after_forward(_: nn.Module, args: Any, out: Tensor) -> Tensor:
            if not out.requires_grad:
                out = out.detach().requires_grad_()  # the first trainable point: an embedding's output
            out.register_hook(lambda grad: self._add(name, module, grad))
            return out

        return after_forward

    def _add(self, name: str, module: nn.Module, grad: Tensor) -> None:
        flat = grad.detach().reshape(-1, grad.shape[-1]).float()
        with torch.autocast(flat.device.type, enabled=False):
            # A row that moves by d moves the output of its table by scale · d.
            moment = row_scale(module) ** 2 * flat.T @ flat if is_table(module) else flat.square().sum(0)
        self.sums[name] = self.sums.get(name, 0) + moment.cpu()
        self.tokens[name] = self.tokens.get(name, 0) + flat.shape[0]

    def mean(self, name: str) -> Tensor:
        """E[g gᵀ] at an embedding's rows, E[g²] at a linear layer's output."""
        return self.sums[name] / self.tokens[name]


class _Hooks:
    def __init__(self, handles: Sequence[Any]) -> None:
        self._handles = handles

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


class _frozen:
    """No parameter takes a gradient inside the block, and the model is in evaluation mode."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __enter__(self) -> None:
        self.training = self.model.training
        self.trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.model.eval().requires_grad_(False)

    def __exit__(self, *_: object) -> None:
        for parameter in self.trainable:
            parameter.requires_grad_(True)
        self.model.train(self.training)
