"""A small model learns the predictions of its original; uncertain positions may count more.

Deviation-aware distillation weighs every position by how hard it is, told by the entropies of both models.
Source: Chen et al. 2024, "DB-LLM", section 3.3. The formula is not published in full; ours: difficulty is
the mean of both entropies in units of the uniform distribution's, to the power γ, and weights average 1.
Hinton et al. 2015, "Distilling the Knowledge in a Neural Network" (γ = 0).
"""

import enum
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.layers.dual_binary_linear import DualBinaryLinear, LatentDualBinaryLinear
from shoestring.training.latent_steps import latent_steps
from shoestring.yardstick.language_quality import without_cache

Logits = Float[Tensor, "*batch vocabulary"]


class Indicator(enum.Enum):
    """Whose entropies tell how hard a position is."""

    TEACHER = "teacher"
    STUDENT = "student"
    PAIR_MEAN = "pair_mean"
    PAIR_PRODUCT = "pair_product"


@dataclass(frozen=True)
class DeviationAware:
    """L = soft·mean(w · CE(teacher, student)) + hard·CE(next token, student).

    gamma: how much harder positions count more; 0 is plain distillation. soft, hard: weights of the two
    losses; keep hard at 0 where the text was written by the teacher.

    Raises: ValueError for numbers below 0.
    """

    gamma: float | int = 0.5
    indicator: Indicator = Indicator.PAIR_MEAN
    soft: float | int = 1.0
    hard: float | int = 0.0

    def __post_init__(self) -> None:
        for name in ("gamma", "soft", "hard"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be 0 or more.")

    def __call__(
        self, student: Logits, teacher: Float[Tensor, "..."], labels: Int[Tensor, "*batch"] | None = None
    ) -> Float[Tensor, ""]:
        """The loss over all positions; no gradient flows to the teacher.

        labels: the token that follows each position, −100 where there is none; needed if `hard` is not 0.
        Raises: ValueError for logits of different shapes (another vocabulary, or other positions).
        """
        check_pair(student, teacher)
        student, teacher = (z.reshape(-1, z.shape[-1]).float() for z in (student, teacher.detach()))
        log_student = student.log_softmax(-1)
        cross = -(teacher.softmax(-1) * log_student).sum(-1)
        loss = self.soft * (self.weights(student, teacher) * cross).mean()
        if not self.hard:
            return loss
        if labels is None:
            raise ValueError(f"hard={self.hard} needs labels: the token that follows each position.")
        return loss + self.hard * F.nll_loss(log_student, labels.reshape(-1))

    @torch.no_grad()
    def weights(
        self, student: Float[Tensor, "n vocabulary"], teacher: Float[Tensor, "n vocabulary"]
    ) -> Float[Tensor, " n"]:
        """How much each position counts; 1 on average."""
        if self.gamma == 0:
            return torch.ones(len(student))
        uniform = math.log(student.shape[-1])
        of_teacher, of_student = (entropy(z) / uniform for z in (teacher, student))
        difficulty = {
            Indicator.TEACHER: lambda: of_teacher,
            Indicator.STUDENT: lambda: of_student,
            Indicator.PAIR_MEAN: lambda: (of_teacher + of_student) / 2,
            Indicator.PAIR_PRODUCT: lambda: of_teacher * of_student,
        }[self.indicator]()
        powers = difficulty.clamp(min=0) ** self.gamma
        mean = powers.mean()
        return powers / mean if mean > 0 else torch.ones_like(powers)


def entropy(logits: Float[Tensor, "n vocabulary"]) -> Float[Tensor, " n"]:
    """Of the predicted distribution, in nats."""
    log_p = logits.float().log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


@dataclass(frozen=True)
class Distillation:
    """AdamW over `steps` batches, a cosine to zero, gradients clipped to norm 1.

    level_rate: of the factors of the levels. latent_rate: of the latent weights.
    """

    steps: int = 200
    level_rate: float = 1e-2
    latent_rate: float = 1e-5
    loss: DeviationAware = field(default_factory=DeviationAware)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.level_rate < 0 or self.latent_rate < 0:
            raise ValueError(f"{self} cannot be: steps must be 1 or more, rates 0 or more.")


def distil(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterable[Int[Tensor, "sequences tokens"]],
    settings: Distillation,
    *,
    within: Iterable[nn.Module] | None = None,
    autocast: torch.dtype | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> None:
    """Train the latent layers of `student` in place; everything else of it stays as it is.

    batches: token ids; gone through again when used up. within: modules of the student, such as a few of its
    blocks, outside which latent layers stay as they are. progress: called with steps done, all steps, and the
    loss. Raises: ValueError if the student has no latent layer, or there is no batch.
    """
    places = [student] if within is None else list(within)
    layers = [m for place in places for m in place.modules() if isinstance(m, LatentDualBinaryLinear)]
    if not layers:
        packed = any(isinstance(module, DualBinaryLinear) for module in student.modules())
        reason = "its layers are packed for inference" if packed else "it has no latent layer"
        raise ValueError(f"the student cannot be trained: {reason}; make some with DualBinarize.latent.")
    batches = list(batches)
    if not batches:
        raise ValueError("there is no batch to distil on; give token ids.")
    rates = {"level_rate": settings.level_rate, "latent_rate": settings.latent_rate}
    with latent_steps(student, layers, steps=settings.steps, **rates) as make_step:
        for step in range(settings.steps):
            ids = batches[step % len(batches)]
            with torch.autocast(ids.device.type, autocast, enabled=autocast is not None):
                with torch.no_grad():
                    target = _logits(teacher, ids)
                predicted = _logits(student, ids)
            loss = settings.loss(predicted, target, F.pad(ids[:, 1:], (0, 1), value=-100))
            make_step(loss)
            if progress is not None:
                progress(step + 1, settings.steps, float(loss.detach()))
    student.requires_grad_(False)


def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    output = model(ids, **without_cache(model))
    return output if isinstance(output, Tensor) else output.logits


def check_pair(student: Tensor, teacher: Tensor) -> None:
    """Raises: ValueError for logits of different shapes (another vocabulary, or other positions)."""
    if student.shape[-1] != teacher.shape[-1]:
        raise ValueError(
            f"the student predicts {student.shape[-1]} tokens, the teacher {teacher.shape[-1]}: "
            "they must share a vocabulary."
        )
    if student.shape != teacher.shape:
        raise ValueError(
            f"the student gave logits of {tuple(student.shape)}, the teacher of {tuple(teacher.shape)}; "
            "give both the same tokens."
        )
