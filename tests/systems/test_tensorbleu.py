"""The experiment behind the card of TensorBLEU: its data, and what it says of a wrong score."""

import pytest
import torch

from shoestring.systems import tensorbleu
from shoestring.systems.tensorbleu import PAD, sample, word_stream


def test_candidates_are_references_with_noise_and_cut():
    tokens = torch.arange(5000)
    candidates, references = sample(tokens, 200, 64, torch.Generator().manual_seed(0))
    assert references.shape == (200, 1, 64)
    assert torch.equal(references[:, 0].diff(dim=1), torch.ones(200, 63, dtype=torch.int64))
    kept = candidates != PAD
    lengths = kept.sum(1)
    assert torch.equal(kept, torch.arange(64) < lengths[:, None]), "pads trail"
    assert int(lengths.min()) >= 32
    assert int(lengths.max()) <= 64
    assert abs(lengths.double().mean().item() - 48) < 4 * 9.4 / 200**0.5
    replaced = (candidates != references[:, 0])[kept].double()
    assert abs(replaced.mean().item() - 0.3) < 4 * (0.21 / len(replaced)) ** 0.5


def test_words_have_one_id_each(monkeypatch, tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("a bb a\nccc bb")
    monkeypatch.setenv("SHOESTRING_TEXT", str(path))
    ids, origin = word_stream()
    assert ids.tolist() == [0, 1, 0, 2, 1]
    assert origin == "words.txt, one id a word"


def test_a_wrong_score_shows_in_the_row_of_exactness(monkeypatch):
    batch = sample(torch.arange(500), 6, 20, torch.Generator().manual_seed(1))
    exact, mean = tensorbleu._exactness(batch)
    assert exact.method < 1e-6
    assert mean.ratio == pytest.approx(1, abs=1e-6)
    right = tensorbleu._scores
    monkeypatch.setattr(tensorbleu, "_scores", lambda b, counting: right(b, counting) + 1e-3)
    exact, mean = tensorbleu._exactness(batch)
    assert exact.method == pytest.approx(1e-3, rel=1e-3)
    assert not exact.holds
    assert mean.ratio > 1


def test_the_published_form_takes_more_memory():
    batch = sample(torch.arange(500), 16, 64, torch.Generator().manual_seed(2))
    row = tensorbleu._memory(batch)
    assert row.against == "dense table"
    assert 0 < row.method < row.baseline


@pytest.mark.slow
def test_the_resident_set_says_the_same():
    batch = sample(torch.arange(50_000), 64, 512, torch.Generator().manual_seed(2))
    row = tensorbleu._resident(batch)
    assert row.unit == "B"
    assert 0 < row.method < row.baseline
