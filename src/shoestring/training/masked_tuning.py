"""Short recovery of a pruned model: what was pruned stays zero, the rest learns from the model it came from.

Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network" (the loss); Loshchilov and Hutter
2019, "Decoupled Weight Decay Regularization" (AdamW).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.yardstick.language_quality import without_cache

Progress = Callable[[int, float], None]
"""Called with the number of the step and its loss."""


@dataclass(frozen=True)
class MaskedTuning:
    """How long and how fast.

    lr: highest, after a linear rise over a tenth of the steps; it falls along a cosine to 0. distillation:
    share of the teacher's distribution in the loss, the rest is the text's next token. temperature: of both
    distributions. seed: of the order of the windows.

    Raises: ValueError for numbers out of range.
    """

    steps: int = 200
    batch_size: int = 4
    lr: float = 1e-4
    weight_decay: float = 0.0
    distillation: float = 0.5
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError(f"steps={self.steps}, batch_size={self.batch_size}: both must be 1 or more")
        if not 0 <= self.distillation <= 1 or self.temperature <= 0:
            raise ValueError(
                f"distillation={self.distillation} must lie within 0 .. 1, temperature={self.temperature} "
                "above 0"
            )


def tune_masked(
    model: nn.Module,
    teacher: nn.Module,
    masks: Mapping[str, Bool[Tensor, "rows cols"]],
    windows: Int[Tensor, "windows window"],
    tuning: MaskedTuning = MaskedTuning(),
    progress: Progress | None = None,
) -> list[float]:
    """Tune the weights named by `masks`, in place, and return the loss of every step; left in eval mode.

    model, teacher: ids (batch, window) -> logits, or an object with `.logits`. masks: what may be other than
    zero, by the name of the module whose `weight` it is (as `prune_in_place` gives). windows: token ids.

    Raises: ValueError for a name the model has not, a weight that is stored sparsely or packed (it has no
    gradient), a mask of another shape, no windows, or a weight that is not zero where its mask says so.
    """
    weights = _masked_weights(model, masks)
    if len(windows) == 0:
        raise ValueError("there are no windows to tune on; give more text")
    wanted = {id(weight) for weight, _ in weights}
    frozen = {name: p.requires_grad for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in wanted)
    hooks = [weight.register_hook(lambda grad, kept=kept: grad * kept) for weight, kept in weights]
    optimizer = torch.optim.AdamW([w for w, _ in weights], lr=tuning.lr, weight_decay=tuning.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rise_and_fall(step, tuning.steps))
    generator = torch.Generator().manual_seed(tuning.seed)
    losses = []
    try:
        model.train()
        for step in range(tuning.steps):
            ids = windows[torch.randint(len(windows), (tuning.batch_size,), generator=generator)]
            optimizer.zero_grad()
            loss = recovery_loss(_logits(model, ids), _teach(teacher, ids), ids, tuning)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            if progress is not None:
                progress(step, losses[-1])
    finally:
        for hook in hooks:
            hook.remove()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(frozen[name])
            parameter.grad = None
        model.eval()
    return losses


def recovery_loss(
    logits: Float[Tensor, "batch window vocabulary"],
    taught: Float[Tensor, "batch window vocabulary"],
    ids: Int[Tensor, "batch window"],
    tuning: MaskedTuning,
) -> Float[Tensor, ""]:
    """(1 − d) · cross-entropy of the next token + d · T² · KL(teacher ‖ model) at temperature T, in nats."""
    student = logits[:, :-1].float().flatten(0, 1)
    teacher = taught[:, :-1].float().flatten(0, 1)
    text = F.cross_entropy(student, ids[:, 1:].flatten())
    warm = tuning.temperature
    divergence = F.kl_div(
        (student / warm).log_softmax(-1),
        (teacher / warm).log_softmax(-1),
        log_target=True,
        reduction="batchmean",
    )
    return (1 - tuning.distillation) * text + tuning.distillation * warm**2 * divergence


def _masked_weights(
    model: nn.Module, masks: Mapping[str, Tensor]
) -> list[tuple[nn.Parameter, Bool[Tensor, "rows cols"]]]:
    modules, found = dict(model.named_modules()), []
    for name, kept in masks.items():
        weight = getattr(modules.get(name), "weight", None)
        if name not in modules or weight is None:
            raise ValueError(f"the model has no module {name!r} with a weight")
        if not isinstance(weight, nn.Parameter):
            raise ValueError(
                f"the weight of {name!r} ({type(modules[name]).__name__}) is packed and has no gradient; "
                "tune the masked dense model, then store it"
            )
        if weight.shape != kept.shape:
            raise ValueError(f"the mask of {name!r} is {tuple(kept.shape)}, its weight {tuple(weight.shape)}")
        if bool((weight.detach() != 0)[~kept].any()):
            raise ValueError(f"{name!r} holds other than zero where its mask says so; prune it first")
        found.append((weight, kept))
    return found


def _rise_and_fall(step: int, steps: int) -> float:
    rise = max(1, steps // 10)
    if step < rise:
        return (step + 1) / rise
    return 0.5 + 0.5 * torch.cos(torch.tensor(torch.pi * (step - rise) / max(1, steps - rise))).item()


def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    output = model(ids, **without_cache(model))
    return getattr(output, "logits", output)


@torch.no_grad()
def _teach(teacher: nn.Module, ids: Tensor) -> Tensor:
    return _logits(teacher, ids)
