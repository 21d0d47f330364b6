"""What a minute of training makes of a copy of the target's last layer, on text that repeats itself."""

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from shoestring.generation.speculation.draft_length import FixedLength
from shoestring.generation.speculation.glide import Glide
from shoestring.models.decoder import Decoder
from shoestring.models.glide_draft import GlideDraft, GlideOptions
from shoestring.systems.longspec.claims import REPETITIVE
from shoestring.systems.longspec.decoding import race
from shoestring.training.glide_text import GlideText, Writing
from shoestring.training.glide_training import GlideBatches, GlideLoss
from shoestring.training.job import Job
from shoestring.training.plan import TrainingPlan
from shoestring.training.small_models import seconds_of_a_step
from shoestring.training.trainer import Trainer
from shoestring.yardstick.comparison import Row

REPEATS = 3


def trained_for(
    seconds: float, target: Decoder, prompts: Int[Tensor, " tokens"], writing: Writing, window: int, seed: int
) -> GlideDraft:
    """A copy of the last layer after as many steps as take so long, on text that is written beforehand."""
    draft = GlideDraft(target.cfg, GlideOptions(window)).copy_last_layer(target)
    half = next(target.parameters()).dtype == torch.bfloat16
    plan = TrainingPlan(
        1, 1e-3, weight_decay=0.1, betas=(0.9, 0.95), precision="bfloat16" if half else "float32"
    )
    with tempfile.TemporaryDirectory() as folder:
        text = GlideText(target, prompts, (writing,), 2, Path(folder), seed=seed)
        loss, batches = GlideLoss(target), GlideBatches(text)
        for shard in range(text.shards):
            text.shard(shard)
        job = Job(draft, loss, batches, "", lambda model: 0.0, lambda model, place: None)
        steps = max(1, round(seconds / seconds_of_a_step(job, plan)))
        Trainer(draft, loss, replace(plan, steps=steps, warmup_steps=steps // 10, seed=seed)).run(batches)
    return draft.requires_grad_(False)


def repetitive_row(
    model: Decoder,
    draft: GlideDraft,
    text: Int[Tensor, " tokens"],
    passage: int,
    prompts: int,
    new_tokens: int,
) -> Row:
    """Tokens per pass behind passages that are said three times."""
    said = [text[at : at + passage].repeat(REPEATS) for at in range(0, prompts * passage, passage)]
    found = race(model, said, {"glide": Glide(draft, length=FixedLength())}, new_tokens, rounds=1)
    return REPETITIVE.row(baseline=1, method=found.tokens_per_pass("glide"))
