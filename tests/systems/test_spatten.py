"""The experiment behind the card of SpAtten: its variants, its articles, and its model of the machine."""

import math

import pytest
import torch

from shoestring.generation.plane_cache import PlaneCache, PlaneFormat
from shoestring.numbers.bit_planes import BitPlanes
from shoestring.systems import spatten_cycles
from shoestring.systems.language_task import tiny_task
from shoestring.systems.spatten_claims import CLAIMS
from shoestring.systems.spatten_cycles import cycle_rows, pruned_work
from shoestring.systems.spatten_decode import DENSE, OURS, decode_variants, in_format, variants
from shoestring.systems.spatten_encoder import ARTICLES, articles


def test_articles_are_cut_at_their_headings():
    text = "".join(f"\n = Name {i} = \n\n = = Part = = \n" + "word " * (i + 1) for i in range(30))
    parts, kind = articles(text)
    assert (len(parts), kind) == (30, "articles")
    assert parts[0].split("\n")[-1].count("word") == 30
    parts, kind = articles("plain " * 480)
    assert (len(parts), kind) == (ARTICLES, "equal parts")
    assert "".join(parts) == "plain " * 480


def test_a_cache_in_another_format_holds_the_same_tokens():
    cache = PlaneCache(2, 2, 1, 8, PlaneFormat(None, None))
    k, v = (torch.randn(2, 1, 5, 8, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    for layer in range(2):
        cache.append(layer, k, v, torch.arange(5).expand(2, -1))
    other = in_format(cache, PlaneFormat(BitPlanes(8, 4), 12), 9)
    assert other.next_pos.tolist() == [5, 5]
    for layer in range(2):
        torch.testing.assert_close(other.view(layer).k, k, rtol=0, atol=2e-3)
        torch.testing.assert_close(other.view(layer).v, v, rtol=0, atol=2e-3)


def test_the_dense_variant_is_the_model_and_reads_all():
    task = tiny_task(0, held_out=(2, 40))
    found = decode_variants(task.model, task.held_out, 4, 0)
    assert set(found) == set(variants(2, 40, 0))
    logits = task.model(task.held_out).logits[:, -5:-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), task.held_out[:, -4:].flatten())
    assert math.log(found[DENSE].perplexity) == pytest.approx(float(loss), rel=1e-4)
    cfg = task.model.cfg
    keys = sum(range(36, 40))
    assert found[DENSE].bits == 2 * 2 * 2 * cfg.num_key_value_heads * cfg.head_dim * 32 * keys
    assert found[OURS].bits < found[DENSE].bits / 3


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
