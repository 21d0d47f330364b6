"""The experiment behind the card of R-Sparse, on a model small enough to count by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from shoestring.compression import Evolution, apply, block_linears, capture_scores, r_sparse_recipes
from shoestring.errors import NoCompiler
from shoestring.layers.row_sparse_linear import row_sparse_layers
from shoestring.models.hooks import Context, Phase
from shoestring.systems import r_sparse
from shoestring.systems.r_sparse import speed as r_sparse_speed
from shoestring.systems.r_sparse.claims import CLAIMS, END_TO_END, LINEARS, READ
from shoestring.systems.r_sparse.quality import KeptShare, QualityRun, _ratio
from shoestring.systems.r_sparse.speed import PROMPT, SpeedSettings, speed_rows
from shoestring.yardstick.comparison import Effort


def sparse_model(sparsity=0.5):
    model, texts, _ = r_sparse._tiny(0)
    scores = capture_scores(model, [texts.calibration], block_linears(model))
    apply(model, r_sparse_recipes(model, sparsity), calibration=scores)
    return model, texts


def test_what_thresholds_keep_is_counted():
    model, texts, _ = r_sparse._tiny(0)
    names = block_linears(model)
    kept = KeptShare(dict.fromkeys(names, 0.4))
    seen = {name: [] for name in names}
    handles = [
        model.get_submodule(n).register_forward_pre_hook(lambda _, a, n=n: seen[n].append(a[0]))
        for n in names
    ]
    ids = texts.held_out[:2]
    with torch.inference_mode():
        plain = model(ids).logits
        for values in seen.values():
            values.clear()
        assert torch.equal(model(ids, hooks=(kept,), ctx=Context(phase=Phase.DECODE)).logits, plain)
    for handle in handles:
        handle.remove()
    for name, share in kept.shares.items():
        assert share == pytest.approx((torch.cat(seen[name]).abs() > 0.4).float().mean().item())


def test_ratios_are_paired_by_window():
    ours, theirs = torch.tensor([2.0, 3.0, 4.0]).double(), torch.tensor([1.0, 2.5, 3.0]).double()
    found = _ratio(ours, theirs)
    mean, margin = 2.5 / 3, 1.959964 * (1 / 12) ** 0.5 / 3**0.5
    assert found["baseline"] == pytest.approx(math.exp(6.5 / 3))
    assert found["method"] == pytest.approx(math.exp(3))
    assert found["ratio"] == pytest.approx(math.exp(mean))
    assert found["spread"] == pytest.approx((math.exp(mean - margin), math.exp(mean + margin)))


def test_quality_rows_say_what_the_model_does():
    model, texts, _ = r_sparse._tiny(0)
    run = QualityRun(model, texts, Evolution(population=3, generations=1, elite=2), seed=0)
    rows = {row.metric: row for row in run.rows()}
    searched = rows["perplexity, 50 % of reads saved, searched shares"]
    # the model is left with the shares that the row speaks of
    assert math.log(searched.method) == pytest.approx(run.loss(), rel=1e-9)
    exact, again, _ = r_sparse._tiny(0)
    assert torch.equal(again.held_out, texts.held_out)
    with torch.inference_mode():
        logits = exact(texts.held_out).logits[:, -texts.tail : -1]
    dense = F.cross_entropy(logits.transpose(1, 2), texts.held_out[:, -texts.tail + 1 :]).item()
    assert math.log(searched.baseline) == pytest.approx(dense, rel=1e-4)
    whole = rows["perplexity, 0 % of reads saved, columns alone"]
    assert whole.ratio == pytest.approx(1.0, abs=0.02)  # but for bfloat16
    assert rows["perplexity, 65 % of reads saved, columns alone"].ratio != whole.ratio
    chance = rows["ln perplexity ratio, 50 %, against inputs kept by chance"]
    assert chance.method == pytest.approx(math.log(searched.ratio))
    other = rows["perplexity, 50 %, inputs kept by chance"]
    assert chance.baseline == pytest.approx(math.log(other.ratio))


def test_bytes_are_those_of_the_rows_that_were_read():
    model, texts = sparse_model()
    ids = texts.held_out.flatten()[: PROMPT + 4]
    rows, _ = speed_rows(model, ids, SpeedSettings(tokens=4, rounds=3, linear_rounds=3))
    layers = row_sparse_layers(model)
    kept = sum(int(layer.counts[0]) * layer.out_features for layer in layers.values())
    whole = sum(layer.in_features * layer.out_features for layer in layers.values())
    found = {row.metric: row for row in rows}
    assert found[READ.metric].method == 4 * kept / 4  # float32, mean over 4 tokens
    assert found[READ.metric].baseline == 4 * whole
    assert 0.3 < found[READ.metric].ratio < 0.7
    head = 4 * 64 * 48
    assert found["bytes of all weights read a token"].baseline == 4 * whole + head


def test_without_a_compiler_time_is_not_measured(monkeypatch):
    def none(*_):
        raise NoCompiler("no C compiler found")

    model, texts = sparse_model()
    monkeypatch.setattr(r_sparse_speed, "_linear_rows", none)
    rows, notes = speed_rows(model, texts.held_out.flatten()[: PROMPT + 1], SpeedSettings())
    assert rows == []
    assert {note.split(": not measured")[0] for note in notes} == {
        claim.metric for claim in (END_TO_END, LINEARS, READ)
    }


def test_the_text_of_the_user_is_used(monkeypatch, tmp_path):
    class Words:
        def encode(self, text):
            return list(range(len(text.split())))

    tiny, _, _ = r_sparse._tiny(0)
    words = " ".join("w" for _ in range(12_000))
    path = tmp_path / "own.txt"
    path.write_text(words + "\n\n" + words)
    monkeypatch.setenv("SHOESTRING_TEXT", str(path))
    monkeypatch.setattr(r_sparse, "load_model", lambda _: (tiny, Words()))
    model, texts, origin = r_sparse._smollm2(Effort.QUICK)
    assert model is tiny
    assert origin.startswith("own.txt: 8 x 512 tokens to calibrate")
    assert texts.calibration.shape == (8, 512)
    assert texts.held_out.shape == (8, 512)
    # searched on what thresholds were not set on, both spread over the half
    assert texts.search.shape == (4, 256)
    assert not set(texts.search.flatten().tolist()) & set(texts.calibration.flatten().tolist())
    assert int(texts.calibration.min()) == 0
    assert int(texts.search.max()) > 9_000


@pytest.mark.slow
def test_the_claims_about_quality_hold():
    comparison = r_sparse.measure(Effort.QUICK, 0)
    timed = {END_TO_END.metric, LINEARS.metric}
    assert [row.metric for row in comparison.short if row.metric not in timed] == []
    assert {claim.metric for claim in CLAIMS} <= {row.metric for row in comparison.rows}
