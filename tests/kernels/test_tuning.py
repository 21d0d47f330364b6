"""Measured once, remembered, and never trusted blindly."""

import json
import os
import time

import pytest
import torch

from shoestring.kernels import packed_linear as module
from shoestring.kernels.packed_choice import DEFAULT_CHOICE, Choice, choices_for
from shoestring.kernels.packed_linear import (
    PackedWeights,
    naive_packed_linear,
    packed_linear,
    tune_packed_linear,
)
from shoestring.kernels.tile.c.emitter import Prefetch
from shoestring.kernels.tuning import (
    MOST_CACHE_BYTES,
    TuningTable,
    cache_share,
    last_level_cache_bytes,
    measure_fastest,
    size_class,
    tuning_table,
)
from shoestring.notices import record_fallbacks


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def weights():
    generator = torch.Generator().manual_seed(0)
    return PackedWeights.pack(torch.randint(0, 8, (48, 96), generator=generator), "u3", 32)


def test_the_shortest_of_works_that_take_turns():
    turns = []
    works = {
        "slow": lambda: (turns.append("slow"), time.sleep(0.02)),
        "fast": lambda: turns.append("fast"),
    }
    seconds = measure_fastest(works, 2)
    assert turns == ["slow", "fast"] * 3
    assert seconds["slow"] >= 0.02 > seconds["fast"]
    with pytest.raises(ValueError, match="repeats=0: nothing would be measured"):
        measure_fastest(works, 0)
    with pytest.raises(ValueError, match="no variants"):
        measure_fastest({}, 3)


def test_sizes_up_to_the_next_power_of_two_share_an_entry():
    assert [size_class(n) for n in (1, 2, 3, 4096, 4097)] == [1, 2, 4, 4096, 8192]


@pytest.mark.parametrize(
    ("sizes", "processors", "expected"),
    [
        (["48K", "2048K", "32M"], 2, 32 << 20),
        (["48K", "491520K"], 2, 128 << 20),
        (["48K", "491520K"], 1, 64 << 20),
        (["1G"], 32, 1 << 30),
        (["4096"], 1, 4096),
        ([], 1, 32 << 20),
    ],
)
def test_the_cache_of_a_host_counts_only_as_far_as_the_cores_here(tmp_path, sizes, processors, expected):
    for number, size in enumerate(sizes):
        (tmp_path / f"index{number}").mkdir()
        (tmp_path / f"index{number}/size").write_text(f"{size}\n")
    assert cache_share(tmp_path, processors) == expected


def test_the_cache_here_is_no_more_than_the_cores_here_can_have():
    assert 0 < last_level_cache_bytes() <= MOST_CACHE_BYTES * os.cpu_count()


def test_a_table_is_kept_with_what_others_add(tmp_path):
    path = tmp_path / "table.json"
    mine, other = TuningTable(path), TuningTable(path)
    mine.put("a", {"columns": 2})
    other.put("b", {"columns": 1})
    assert TuningTable(path).get("a") == {"columns": 2}
    assert TuningTable(path).get("b") == {"columns": 1}
    assert TuningTable(path).get("c") is None
    assert [p.name for p in tmp_path.iterdir()] == ["table.json"], "nothing is left beside it"


BROKEN = ["", "{", "[1]", '{"version": 1}', '{"version": 1, "entries": {"a": 3}}', "\0\1"]


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_table_is_announced_and_begun_anew(tmp_path, text):
    path = tmp_path / "table.json"
    path.write_text(text)
    with record_fallbacks() as said:
        table = TuningTable(path)
    assert "begun anew" in str(said)
    assert table.get("a") is None
    table.put("a", {"columns": 4})
    with record_fallbacks() as said:
        assert TuningTable(path).get("a") == {"columns": 4}
    assert not said
    assert json.loads(path.read_text())["version"] == 1


def test_the_table_of_another_version_is_left_out(tmp_path):
    path = tmp_path / "table.json"
    path.write_text('{"version": 0, "entries": {"a": {"columns": 2}}}')
    assert TuningTable(path).get("a") is None


@pytest.mark.parametrize(
    "numbers",
    [None, {}, {"columns": 0, "turns": 1, "locality": 2}, {"columns": 1, "turns": -1, "locality": 2}],
)
def test_an_entry_that_makes_no_sense_stands_for_the_default(numbers):
    assert Choice.of(numbers) == DEFAULT_CHOICE
    chosen = Choice(2, Prefetch(4, 3, 8))
    assert Choice.of(chosen.numbers()) == chosen
    assert Choice.of({"columns": 2, "turns": 4, "locality": 3}) == Choice(2, Prefetch(4, 3))


def test_packed_linear_uses_what_was_measured(own_cache, weights, monkeypatch):
    used = []
    plain = module._product
    monkeypatch.setattr(module, "_product", lambda *given: used.append(given[-1]) or plain(*given))
    monkeypatch.setattr(module, "last_level_cache_bytes", lambda: 10_000)
    x, scales = torch.randn(1, 96, generator=torch.Generator().manual_seed(1)), torch.ones(48, 3)
    for _ in range(2):
        packed_linear(x, weights, scales)
    assert used == [DEFAULT_CHOICE], "looked up once"
    seconds = tune_packed_linear(weights, 1, repeats=1)
    limbs = module.limbs_of(torch.float32, weights, 1)
    assert set(seconds) == set(choices_for(max(limbs, 1), weights.target))
    fastest = min(seconds, key=seconds.__getitem__)
    used.clear()
    packed_linear(x, weights, scales)
    assert used == [fastest]
    assert list(own_cache.glob("tuning/*.json")), "kept for other processes"
    with pytest.raises(ValueError, match="repeats=0"):
        tune_packed_linear(weights, 1, repeats=0)


def test_no_choice_changes_results_by_more_than_rounding(own_cache, weights):
    generator = torch.Generator().manual_seed(2)
    scales = torch.rand(48, 3, generator=generator) + 0.1
    for rows in (1, 3):
        x = torch.randn(rows, 96, generator=generator)
        expected = naive_packed_linear(x, weights, scales)
        limbs = module.limbs_of(x.dtype, weights, rows)
        for choice in module._choices(weights, rows, limbs):
            tuning_table().put(module._key(weights, rows, False, limbs), choice.numbers())
            got = packed_linear(x, weights, scales)
            assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
