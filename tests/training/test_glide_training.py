"""Training a Glide draft: positions, text from the step alone, and a loss that falls and resumes exactly."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.models.families import VOCAB, make

from shoestring.models.decoder import Decoder
from shoestring.models.glide_checkpoint import load_glide
from shoestring.models.glide_draft import GlideDraft, GlideOptions
from shoestring.training.glide_training import (
    GlideLoss,
    GlideText,
    anchor_offset_positions,
    save_trained,
)
from shoestring.training.plan import TrainingPlan
from shoestring.training.trainer import Trainer


@given(length=st.integers(1, 300), limit=st.integers(300, 40_000), seed=st.integers(0, 10**6))
def test_anchors_stay_and_the_rest_moves(length, limit, seed):
    pos = anchor_offset_positions(length, limit, torch.Generator().manual_seed(seed))
    sink = int(torch.randint(5, (), generator=torch.Generator().manual_seed(seed)))
    assert bool((pos.diff() > 0).all())
    assert pos[:sink].tolist() == list(range(min(sink, length)))
    assert int(pos[-1]) < min(limit, max(30_000, length))
    if length > sink:
        assert bool((pos[sink:] - torch.arange(sink, length) == pos[sink] - sink).all())


def test_more_tokens_than_positions_are_refused():
    with pytest.raises(ValueError, match="length=9 must be 1 to max_positions=8"):
        anchor_offset_positions(9, 8, torch.Generator())


@pytest.fixture(scope="module")
def target():
    return Decoder.from_transformers(make(scale=6.0)).requires_grad_(False)


def text_of(target):
    prompts = torch.randint(VOCAB, (200,), generator=torch.Generator().manual_seed(0))
    return GlideText(target, prompts, batch=4, prompt_tokens=4, length=24, seed=3)


def test_text_comes_from_the_step_alone(target):
    ids, pos, lag = text_of(target)(5)
    again = text_of(target)(5)
    assert all(torch.equal(a, b) for a, b in zip((ids, pos, lag), again, strict=True))
    assert not torch.equal(ids, text_of(target)(6)[0])
    assert (ids.shape, pos.shape) == ((4, 24), (4, 24))
    assert 1 <= int(lag[0]) <= 4


def train(target, folder, steps, stop_at=None):
    draft = GlideDraft(target.cfg, GlideOptions(8)).copy_last_layer(target)

    def on_step(trainer, step, loss):
        if step == stop_at:
            raise KeyboardInterrupt

    plan = TrainingPlan(steps, 5e-3, weight_decay=0.1, betas=(0.9, 0.95), warmup_steps=2)
    trainer = Trainer(draft, GlideLoss(target), plan, folder=folder, on_step=on_step)
    return draft, trainer.run(text_of(target)).losses


def test_a_draft_learns_what_the_target_says(target):
    _, losses = train(target, None, 120)
    by_chance = math.log(VOCAB)
    assert sum(losses[-20:]) / 20 < by_chance - 0.1 < by_chance < sum(losses[:3]) / 3


def test_a_stopped_run_ends_the_same(target, tmp_path):
    draft, losses = train(target, tmp_path / "whole", 12)
    assert not any(parameter.grad is not None for parameter in target.parameters())
    with pytest.raises(KeyboardInterrupt):
        train(target, tmp_path / "cut", 12, stop_at=6)
    again, resumed = train(target, tmp_path / "cut", 12)
    assert resumed == losses
    assert all(torch.equal(a, b) for a, b in zip(draft.parameters(), again.parameters(), strict=True))
    save_trained(again, tmp_path)
    assert load_glide(tmp_path / "draft", target).options.window == 8
