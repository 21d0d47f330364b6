"""TinyLM: its text, its loss, and what goes on from it."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from shoestring.errors import MissingData
from shoestring.models.hamburger_checkpoint import load_hamburger, load_small_decoder
from shoestring.models.load import load_decoder, load_tokenizer
from shoestring.training import hamburger_job as jobs
from shoestring.training.plan import TrainingPlan
from shoestring.training.tiny_lm import (
    TinyText,
    new_tiny_lm,
    save_tiny,
    tiny_config,
    tiny_loss,
    train_tokenizer,
)
from shoestring.training.trainer import Trainer

PROSE = "".join(f"Scene {i}. The king, the queen and {i * i} lords enter, and speak.\n" for i in range(200))


@pytest.fixture(scope="module")
def text():
    tokenizer = train_tokenizer(PROSE, 0, 320, samples=10)
    return TinyText.of(PROSE, 0, tokenizer, of_each=1)


def test_the_model_has_three_million_parameters():
    assert sum(p.numel() for p in new_tiny_lm(0).parameters()) == 3_049_920
    assert tiny_config().num_hidden_layers == 6


def test_the_tokenizer_is_lossless_and_ends_with_token_0(text):
    sample = 'Größe: {"a": 1}\n\n    def __init__(self):\n'
    assert text.tokenizer.decode(text.tokenizer.encode(sample)) == sample
    assert text.tokenizer.eos_token_id == 0
    again = train_tokenizer(PROSE, 0, 320, samples=10)
    assert again.get_vocab() == text.tokenizer.get_vocab()


def test_held_out_prose_is_not_trained_on(text):
    joined = text.tokenizer.decode(text.train.prose.tolist()) + text.tokenizer.decode(
        text.held_out.prose.tolist()
    )
    assert joined == PROSE


def test_the_loss_is_that_of_each_example_alone(text):
    model = new_tiny_lm(0, len(text.tokenizer), layers=2)
    examples = text.train(0)
    parts = [F.cross_entropy(model(e.ids[None]).logits[0, :-1], e.ids[1:], reduction="sum") for e in examples]
    expected = sum(parts) / sum(len(e) - 1 for e in examples)
    torch.testing.assert_close(tiny_loss(model, examples), expected, rtol=1e-5, atol=1e-5)


def test_without_a_base_going_on_says_what_to_train(monkeypatch, tmp_path):
    monkeypatch.setattr(jobs, "trained_folder", lambda *_: tmp_path)
    with pytest.raises(MissingData, match="shoestring train hamburger-base"):
        jobs.hamburger_job(0)


@pytest.mark.parametrize("make", [jobs.hamburger_job, jobs.baseline_job])
def test_what_is_trained_on_learns_and_is_kept(make, text, monkeypatch, tmp_path):
    base = new_tiny_lm(0, len(text.tokenizer), layers=3)
    (tmp_path / "model").mkdir()
    save_tiny(base, tmp_path / "model", text.tokenizer)
    monkeypatch.setattr(jobs, "trained_folder", lambda *_: tmp_path)
    monkeypatch.setattr(jobs, "prose_text", lambda: PROSE)
    few = SimpleNamespace(of=lambda *given: TinyText.of(*given, of_each=1))
    monkeypatch.setattr(jobs, "TinyText", few)
    job = make(0)
    record = Trainer(job.model, job.loss, TrainingPlan(3, 1e-3)).run(lambda step: job.batches(0))
    assert record.losses[-1] < record.losses[0]
    assert job.evaluate(job.model) > 0
    job.save(job.model, tmp_path)
    load = load_hamburger if make is jobs.hamburger_job else load_small_decoder
    kept = load(tmp_path / ("hamburger" if make is jobs.hamburger_job else "decoder"))
    assert kept.cfg.num_hidden_layers == 3


def test_the_saved_base_is_a_folder_like_others(text, tmp_path):
    model = new_tiny_lm(0, len(text.tokenizer), layers=1).eval()
    save_tiny(model, tmp_path, text.tokenizer)
    ids = torch.tensor([load_tokenizer(tmp_path / "decoder").encode("The king")])
    assert torch.equal(load_decoder(tmp_path / "decoder")(ids).logits, model(ids).logits)
