"""The experiment behind the card of SpAtten: its variants, its articles, and its model of the machine."""

import pytest
import torch

from shoestring.generation.plane_cache import PlaneCache, PlaneFormat
from shoestring.generation.spatten import linear_schedule
from shoestring.numbers.bit_planes import BitPlanes
from shoestring.systems import spatten
from shoestring.systems.card import Effort
from shoestring.systems.language_task import tiny_task
from shoestring.systems.spatten import cycles as spatten_cycles
from shoestring.systems.spatten import decode as spatten_decode
from shoestring.systems.spatten.claims import CLAIMS
from shoestring.systems.spatten.cycles import cycle_rows, pruned_work
from shoestring.systems.spatten.decode import (
    CORRECTED,
    DENSE,
    HARDWARE,
    OURS,
    SMALL,
    Variant,
    decode_rows,
    decode_variants,
    in_format,
    read_prompts,
    variants,
)
from shoestring.systems.spatten.encoder import ARTICLES, articles


def test_articles_are_cut_at_their_headings():
    text = "".join(f"\n = Name {i} = \n\n = = Part = = \n" + "word " * (i + 1) for i in range(30))
    parts, kind = articles(text)
    assert (len(parts), kind) == (30, "articles")
    assert parts[0].split("\n")[-1].count("word") == 30
    parts, kind = articles("plain " * 480)
    assert (len(parts), kind) == (ARTICLES, "equal parts")
    assert "".join(parts) == "plain " * 480


@pytest.mark.parametrize("mid", [False, True])
def test_a_cache_in_another_format_holds_the_same_tokens(mid):
    cache = PlaneCache(2, 2, 1, 8, PlaneFormat(None, None))
    k, v = (torch.randn(2, 1, 5, 8, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    form = PlaneFormat(BitPlanes(8, 4), 12)
    packed = PlaneCache(2, 2, 1, 8, form)
    for each in (cache, packed):
        for layer in range(2):
            each.append(layer, k, v, torch.arange(5).expand(2, -1))
    other = in_format(cache, form, mid, 9)
    assert other.next_pos.tolist() == [5, 5]
    for layer in range(2):
        torch.testing.assert_close(other.view(layer).k, k, rtol=0, atol=2e-3)
        mine, theirs = other.planes(layer), packed.planes(layer)
        assert torch.equal(mine.coarse_keys(mid=mid), theirs.coarse_keys(mid=mid))
        assert torch.equal(mine.keys(), theirs.keys())
        assert torch.equal(mine.values(), theirs.values())
    with pytest.raises(ValueError, match=f"make the cache with mid={not mid}"):
        other.planes(0).coarse_keys(mid=not mid)


@pytest.mark.parametrize("attention", [CORRECTED, HARDWARE])
def test_what_is_decoded_at_once_reads_and_gives_what_planes_do(attention):
    """The experiment's cache against the real one, from a prompt that is read in it."""
    task = tiny_task(0, held_out=(2, 40))
    policy = Variant("", linear_schedule(2, 40, 0.4, unpruned=1), attention).policy(0)
    dense, scores = read_prompts(task.model, task.held_out[:, :30])
    results = []
    for real in (False, True):
        cache = in_format(dense, SMALL, attention.mid, 40)
        if real:
            cache = policy.cache(task.model, SMALL, batch=2)
            for layer in range(2):
                view = dense.view(layer)
                cache.append(layer, view.k, view.v, torch.arange(30).expand(2, -1))
        policy.start(cache)
        policy.scores = scores.clone()
        steps = [
            task.model(task.held_out[:, i : i + 1], cache=cache, hooks=policy.hooks).logits
            for i in range(30, 40)
        ]
        results.append((torch.cat(steps, 1), cache.traffic))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-5)
    assert results[0][1] == results[1][1]


def test_the_dense_variant_is_the_model_and_reads_all():
    task = tiny_task(0, held_out=(2, 40))
    found = decode_variants(task.model, task.held_out, 4, 0)
    assert set(found) == {DENSE, *(variant.name for variant in variants(2, 40))}
    logits = task.model(task.held_out).logits[:, -5:-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), task.held_out[:, -4:].flatten())
    assert float(found[DENSE].by_window.mean()) == pytest.approx(float(loss), rel=1e-4)
    cfg = task.model.cfg
    keys = sum(range(36, 40))
    assert found[DENSE].bits == 2 * 2 * 2 * cfg.num_key_value_heads * cfg.head_dim * 32 * keys
    assert found[OURS].bits < found[DENSE].bits / 3


def test_controls_are_judged_on_the_first_windows_and_beside_them_alone(monkeypatch):
    monkeypatch.setattr(spatten_decode, "CONTROLLED", 2)
    monkeypatch.setattr(spatten_decode, "GROUP", 2)
    task = tiny_task(0, held_out=(5, 24))
    found = decode_variants(task.model, task.held_out, 3, 0)
    assert found[OURS].tokens == found[DENSE].tokens == 15
    assert found["raw sum"].tokens == 6
    rows, notes = decode_rows(found)
    raw = next(row for row in rows if row.metric.endswith("raw sum"))
    assert raw.baseline == pytest.approx(float(found[DENSE].by_window[:2].mean().exp()))
    assert raw.spread[0] <= raw.method / raw.baseline <= raw.spread[1]
    assert any(note.startswith("raw sum: ") and "6 tokens in 2 windows" in note for note in notes)


def test_a_smoke_run_answers_every_claim_that_it_can():
    comparison = spatten.measure(Effort.SMOKE, 0)
    assert {claim.metric for claim in CLAIMS} <= {row.metric for row in comparison.rows}


@pytest.mark.slow
def test_the_bars_of_decoding_hold():
    comparison = spatten.measure(Effort.QUICK, 0)
    missed = [
        row.metric for row in comparison.rows if row.kind in ("compute", "quality") and row.holds is False
    ]
    assert not missed


def test_the_model_of_the_machine_answers_its_claims():
    rows, notes = cycle_rows(trials=40)
    by_metric = {row.metric: row for row in rows}
    assert {c.metric for c in CLAIMS if "cycles" in c.unit} <= set(by_metric)
    assert all(row.ratio > 0 for row in rows)
    assert "modelled" in notes[0]


def test_without_pruning_nothing_is_saved_but_bits(monkeypatch):
    plain = [spatten_cycles.LayerWork((spatten_cycles.HeadWork(1024, 1024),) * 16)] * 24
    monkeypatch.setattr(spatten_cycles, "pruned_work", lambda: plain)
    rows, _ = cycle_rows(trials=3)
    assert rows[0].ratio == pytest.approx((8 + 8) / (12 + 8))


def test_the_schedule_is_the_published_one():
    work = pruned_work()
    assert [len(layer.heads) for layer in work] == [16] * 16 + [13] * 6 + [10] * 2
    assert [layer.heads[0].keys for layer in work][:3] == [1024, 1024, 921]
    assert sum(layer.next_keys < layer.heads[0].keys for layer in work) == 4
