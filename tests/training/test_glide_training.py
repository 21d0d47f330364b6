"""Training a Glide draft: positions, text that is made once, and a loss that falls and resumes exactly."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.models.families import VOCAB, make
from torch.nn import functional as F

from shoestring.generation.decode import generate
from shoestring.models.decoder import Decoder
from shoestring.models.glide_checkpoint import load_glide
from shoestring.models.glide_draft import GlideDraft, GlideOptions
from shoestring.training.glide_text import GlideText, Writing, anchor_offset_positions, write
from shoestring.training.glide_training import (
    GlideBatches,
    GlideLoss,
    draft_states,
    passes_per_token,
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


@pytest.fixture(scope="module")
def prompts():
    return torch.randint(VOCAB, (200,), generator=torch.Generator().manual_seed(0))


KINDS = (Writing(8, 4, 20), Writing(8, 7, 9, temperature=1.0), Writing(8, 12, 6, offset=False))


@pytest.fixture(scope="module")
def text(target, prompts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    return GlideText(target, prompts, KINDS, 3, folder, steps_per_shard=2, seed=3)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_stored_is_what_the_target_says_of_the_text(target, prompts, kind):
    found = write(target, prompts, kind, torch.Generator().manual_seed(1))
    pos = found.pos.expand(found.ids.shape)
    cache = target_cache(target, found.ids, pos)
    view = cache.view(target.cfg.num_hidden_layers - 1)
    torch.testing.assert_close(found.keys, view.k, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.values, view.v, rtol=1e-4, atol=1e-5)
    logits = target(found.ids, pos).logits
    torch.testing.assert_close(target.lm_head(found.states), logits, rtol=1e-4, atol=1e-4)
    rows = {tuple(row) for row in prompts.unfold(0, kind.prompt, 1).tolist()}
    assert all(tuple(row) in rows for row in found.ids[:, : kind.prompt].tolist())


def target_cache(target, ids, pos):
    from shoestring.generation.decoder_runner import decoder_cache

    cache = decoder_cache(target, batch=len(ids))
    target(ids, pos, cache)
    return cache


def test_greedy_text_is_what_decoding_gives(target, prompts):
    found = write(target, prompts, replace(KINDS[0], offset=False), torch.Generator().manual_seed(1))
    for row in found.ids.tolist():
        assert generate(target, row[:4], max_new_tokens=20, stop_tokens=()).tokens == row[4:]


def test_text_that_is_too_short_is_refused(target):
    with pytest.raises(ValueError, match="4 tokens of prompts; a sample takes 4 and more"):
        write(target, torch.zeros(4, dtype=torch.long), KINDS[0], torch.Generator())


def test_text_comes_from_the_step_alone_and_is_made_once(target, text, tmp_path):
    ids = [text(step).ids for step in range(6)]
    assert [tuple(one.shape) for one in ids] == [(4, 24)] * 2 + [(4, 16)] * 2 + [(4, 18)] * 2
    assert torch.equal(text(6).ids, ids[0])
    elsewhere = replace(text, folder=tmp_path)
    assert torch.equal(elsewhere(3).ids, ids[3])
    assert elsewhere.seconds_to_write() > 0
    assert text.seconds_to_write() == 0
    (made,) = tmp_path.iterdir()
    stamp = made.stat().st_mtime_ns
    assert torch.equal(elsewhere(2).states, text(2).states)
    assert made.stat().st_mtime_ns == stamp
    assert not torch.equal(replace(text, seed=4, folder=tmp_path / "other")(0).ids, ids[0])
    assert text.name() != replace(text, seed=4).name()


def test_the_loss_is_the_divergence_from_the_target(target, text):
    draft = GlideDraft(target.cfg, GlideOptions(8)).copy_last_layer(target)
    batch, lag = GlideBatches(text)(3)
    assert 1 <= lag <= 4
    q = target.lm_head(draft_states(draft, target, batch, lag)).log_softmax(-1)
    p = target(batch.ids, batch.pos.expand(batch.ids.shape)).logits.log_softmax(-1)
    expected = F.kl_div(q.flatten(0, 1), p.flatten(0, 1), log_target=True, reduction="batchmean")
    torch.testing.assert_close(GlideLoss(target)(draft, (batch, lag)), expected, rtol=1e-4, atol=1e-5)


def test_with_few_words_it_is_the_divergence_among_them(target, text):
    """Two drafts by one loss: each is judged among its own words."""
    loss, (batch, lag) = GlideLoss(target), GlideBatches(text)(3)
    found = []
    for seed in (1, 2):
        counts = torch.randint(9, (VOCAB,), generator=torch.Generator().manual_seed(seed))
        draft = GlideDraft(target.cfg, GlideOptions(8, words=30)).copy_last_layer(target).choose_words(counts)
        q = target.lm_head(draft_states(draft, target, batch, lag))[..., draft.words].log_softmax(-1)
        logits = target(batch.ids, batch.pos.expand(batch.ids.shape)).logits
        p = logits[..., draft.words].log_softmax(-1)
        expected = F.kl_div(q.flatten(0, 1), p.flatten(0, 1), log_target=True, reduction="batchmean")
        found.append(loss(draft, (batch, lag)))
        torch.testing.assert_close(found[-1], expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(*found)


def test_passes_with_few_words_count_those_alone(target, prompts):
    """A draft that can say everything and one that can say all but one common token."""
    found = write(target, prompts, replace(KINDS[0], offset=False), torch.Generator().manual_seed(1))
    whole = GlideDraft(target.cfg, GlideOptions(8)).copy_last_layer(target)
    every = GlideDraft(target.cfg, GlideOptions(8, words=VOCAB)).copy_last_layer(target)
    none = GlideDraft(target.cfg, GlideOptions(8, words=3)).copy_last_layer(target)
    absent = (found.ids[:, 4:].flatten().bincount(minlength=VOCAB) == 0).long()
    assert absent.sum() >= 3
    none.choose_words(absent)
    passes = [passes_per_token(one, target, found, 4) for one in (whole, every, none)]
    assert passes[0] == passes[1] < 1
    assert passes[2] == 1


def test_passes_are_those_of_decoding(target, prompts):
    """At every root of the text: drafts go on while they are right."""
    draft = GlideDraft(target.cfg, GlideOptions(8)).copy_last_layer(target)
    found = write(target, prompts, replace(KINDS[0], offset=False), torch.Generator().manual_seed(1))
    said = [target.lm_head(draft_states(draft, target, found, lag)).argmax(-1) for lag in (1, 2, 3)]
    emitted = []
    for row, ids in enumerate(found.ids.tolist()):
        for root in range(4, 24 - 3):
            right = 0
            while right < 3 and said[right][row, root + right] == ids[root + right + 1]:
                right += 1
            emitted.append(right + 1)
    expected = len(emitted) / sum(emitted)
    assert passes_per_token(draft, target, found, 4) == pytest.approx(expected)
    assert 0.25 <= expected < 1


def train(target, text, folder, steps, stop_at=None):
    draft = GlideDraft(target.cfg, GlideOptions(8)).copy_last_layer(target)

    def on_step(trainer, step, loss):
        if step == stop_at:
            raise KeyboardInterrupt

    plan = TrainingPlan(steps, 5e-3, weight_decay=0.1, betas=(0.9, 0.95), warmup_steps=2)
    trainer = Trainer(draft, GlideLoss(target), plan, folder=folder, on_step=on_step)
    return draft, trainer.run(GlideBatches(text)).losses


def test_a_draft_learns_what_the_target_says(target, text):
    draft, losses = train(target, text, None, 120)
    assert sum(losses[-18:]) / 18 < 0.6 * sum(losses[:18]) / 18
    greedy = text.shard(0)
    before = passes_per_token(
        GlideDraft(target.cfg, GlideOptions(8)).copy_last_layer(target), target, greedy, 4
    )
    assert passes_per_token(draft, target, greedy, 4) < before - 0.05


def test_a_stopped_run_ends_the_same(target, text, tmp_path):
    draft, losses = train(target, text, tmp_path / "whole", 12)
    assert not any(parameter.grad is not None for parameter in target.parameters())
    with pytest.raises(KeyboardInterrupt):
        train(target, text, tmp_path / "cut", 12, stop_at=6)
    again, resumed = train(target, text, tmp_path / "cut", 12)
    assert resumed == losses
    assert all(torch.equal(a, b) for a, b in zip(draft.parameters(), again.parameters(), strict=True))
    save_trained(again, tmp_path)
    assert load_glide(tmp_path / "draft", target).options.window == 8
