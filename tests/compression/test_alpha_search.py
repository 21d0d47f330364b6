"""Shares between columns and low rank: the rule against all choices, evolution against a known best."""

import pytest
import torch
from tests.compression.models import batches, llama
from torch import nn
from torch.nn import functional as F

from shoestring.compression import (
    AlphaSpace,
    Evolution,
    apply,
    block_linears,
    capture_scores,
    evolve,
    layer_by_layer,
    r_sparse_recipes,
)
from shoestring.compression.alpha_search import CHOICES
from shoestring.layers import RowSparseLinear


@pytest.fixture
def space(tmp_path, monkeypatch):
    monkeypatch.setattr("shoestring.compression.singular_factors.cache_folder", lambda *_: tmp_path)
    model = llama()
    with torch.no_grad():  # one map that low rank holds whole, so that the rule has something to find
        weight = model.model.layers[0].self_attn.q_proj.weight
        weight.copy_(torch.outer(torch.randn(32), torch.randn(32)) / 6)
    scores = capture_scores(model, batches(8), block_linears(model))
    apply(model, r_sparse_recipes(model, 0.5), calibration=scores)
    return AlphaSpace(model, 0.5, scores)


def test_the_rule_takes_the_share_that_changes_outputs_least(space):
    alphas = layer_by_layer(space)
    assert alphas.shape == (14,)
    assert alphas[0] < 1.0, "one thin matrix says all of the first map, columns do not"
    assert (alphas == 1.0).any()
    for name, chosen in zip(space.names, alphas.tolist(), strict=True):
        layer, x = space.layers[name], space.calibration.samples[name]
        changes = {}
        for alpha in CHOICES:
            space.split(name, alpha).put(layer)
            layer._tail = 1.0
            changes[alpha] = (layer(x[None])[0] - F.linear(x, layer.weight)).double().square().sum().item()
            layer._tail = None
        assert changes[chosen] == pytest.approx(min(changes.values()), rel=1e-4, abs=1e-9)


def test_put_sets_every_layer(space):
    space.put(torch.tensor([0.5, 1.0] * 7, dtype=torch.float64))
    ranks = [layer.rank for layer in space.layers.values()]
    assert all((rank > 0) == (i % 2 == 0) for i, rank in enumerate(ranks))
    space.put(torch.ones(14, dtype=torch.float64))
    assert {layer.rank for layer in space.layers.values()} == {0}
    again = AlphaSpace(nn.ModuleDict({"a": space.layers[space.names[0]]}), 0.5, space.calibration)
    assert again.names == ["a"]


def test_thresholds_follow_the_shares(space):
    """A change of the score is a change of the threshold: the same share of weighted scores is kept."""
    name = space.names[6]
    x = space.calibration.samples[name]
    norms = space.layers[name].weight.norm(dim=0)
    both, alone = space.split(name, 0.8), space.split(name, 1.0)
    assert both.threshold == space.calibration.threshold(name, 0.4, weighted=True)
    assert alone.threshold == space.calibration.threshold(name, 0.5, weighted=False)
    assert (x.abs() * norms > both.threshold).float().mean() == pytest.approx(0.4, abs=0.1)
    assert (x.abs() > alone.threshold).float().mean() == pytest.approx(0.5, abs=0.1)


def test_evolution_finds_a_known_best_and_never_gets_worse():
    best = torch.linspace(0.2, 1.0, 12, dtype=torch.float64)
    calls = []

    def loss(alphas):
        assert bool(((alphas >= 0) & (alphas <= 1)).all())
        calls.append(alphas)
        return (alphas - best).square().mean().item()

    settings = Evolution(population=16, generations=60, elite=4)
    ones = torch.ones(12, dtype=torch.float64)
    found = evolve(loss, [ones, 0.5 * ones], settings, seed=3)
    assert found.evaluations == len(calls) == 16 + 60 * 12
    assert list(found.history) == sorted(found.history, reverse=True)
    assert found.loss == loss(found.alphas) == found.history[-1]
    assert found.loss < 0.05 * min(loss(ones), loss(0.5 * ones))
    again = evolve(loss, [ones, 0.5 * ones], settings, seed=3)
    assert torch.equal(again.alphas, found.alphas)
    assert not torch.equal(evolve(loss, [ones, 0.5 * ones], settings, seed=4).alphas, found.alphas)


def test_no_generations_gives_the_best_start():
    starts = [torch.full((3,), a, dtype=torch.float64) for a in (1.0, 0.25)]
    found = evolve(lambda a: (a - 0.2).abs().sum().item(), starts, Evolution(2 + 1, 0, 2, changed=0.0))
    assert torch.equal(found.alphas, starts[1])


def test_settings_that_do_not_fit():
    with pytest.raises(ValueError, match="population=4, elite=4"):
        Evolution(population=4, elite=4)
    with pytest.raises(ValueError, match="0 starts"):
        evolve(lambda _: 0.0, [])
    with pytest.raises(ValueError, match="2 starts; give one or more, all with a share for each"):
        evolve(lambda _: 0.0, [torch.ones(2), torch.ones(3)])
    with pytest.raises(ValueError, match="no row-sparse layers; apply RSparse"):
        AlphaSpace(nn.Linear(2, 2), 0.5, capture_scores(llama(), batches(8), block_linears(llama())))
    with pytest.raises(ValueError, match="sparsity=1"):
        AlphaSpace(nn.Sequential(RowSparseLinear(2, 2)), 1.0, capture_scores(llama(), batches(8), []))
