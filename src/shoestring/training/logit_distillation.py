"""A whole student learns the predictions of its teacher, every parameter of it, through the Trainer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.models.decoder import Decoder
from shoestring.models.decoder_step import Want
from shoestring.training.plan import TrainingPlan
from shoestring.training.record import TrainingRecord
from shoestring.training.reverse_kl import CHUNK, Divergence, head_divergence, reverse_kl
from shoestring.training.trainer import Trainer

NORMALISED = Want(logits=None, hidden=("norm",))


def distil_logits(
    student: Decoder,
    teacher: Decoder,
    batches: Callable[[int], Any],
    plan: TrainingPlan,
    *,
    divergence: Divergence = reverse_kl,
    chunk: int = CHUNK,
    folder: Path | str | None = None,
    **options: Any,
) -> TrainingRecord:
    """Train `student` in place on `divergence` from `teacher`, on every token of the sequences.

    batches: step -> token ids (batch, n), or (ids, …) of which the rest is not looked at. folder, options: of
    the Trainer; a run that stopped goes on from its folder. The student ends without gradients, in evaluation
    mode. Raises: ValueError for different vocabularies; else as `Trainer` and `Trainer.run`.
    """
    check_vocabularies(student, teacher)
    teacher.eval()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        ids = batch if isinstance(batch, Tensor) else batch[0]
        assert isinstance(model, Decoder)
        with torch.no_grad():
            target = teacher(ids, want=NORMALISED).hidden["norm"]
        states = model(ids, want=NORMALISED).hidden["norm"]
        return head_divergence(divergence, (states, model.lm_head), (target, teacher.lm_head), chunk=chunk)

    student.requires_grad_(True)
    try:
        return Trainer(student, loss, plan, folder=folder, **options).run(batches)
    finally:
        student.requires_grad_(False)


def check_vocabularies(student: Decoder, teacher: Decoder) -> None:
    """Raises: ValueError where the two predict different tokens."""
    mine, theirs = student.cfg.vocab_size, teacher.cfg.vocab_size
    if mine != theirs:
        raise ValueError(
            f"the student predicts {mine} tokens, the teacher {theirs}: they must share a vocabulary."
        )
