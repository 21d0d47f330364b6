"""The experiments behind the card of Pychop."""

import numpy as np
import pytest
import torch
from torch import nn

from shoestring.systems import pychop
from shoestring.systems.pychop import network as pychop_network
from shoestring.systems.pychop.claims import COPY, GFLOAT, PYCHOP
from shoestring.systems.pychop.network import Task, sensitivity_rows
from shoestring.training.classifier import hits
from shoestring.yardstick.comparison import Effort


class Threshold(nn.Module):
    """Says class 1 where weight · x exceeds 1: what rounding does to it can be counted by hand."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 2, bias=True)
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([[0.0], [1.0]]))
            self.linear.bias.copy_(torch.tensor([1.0, 0.0]))

    def forward(self, x):
        return self.linear(x.flatten(1))


def test_accuracies_and_their_paired_spread_are_those_counted_by_hand():
    inputs = torch.tensor([0.5, 0.99, 1.01, 1.5] * 25).view(100, 1, 1, 1)
    labels = torch.tensor([0, 0, 1, 1] * 25)
    model = Threshold()
    task = Task("x", model, (inputs, labels), inputs, labels, hits(model, inputs, labels))
    assert task.reference.all()
    rows = {row.metric: row for row in sensitivity_rows(task, ("half", "e5m2"), ("nearest", "up"), seed=0)}
    assert rows["accuracy, half, nearest"].method == 100.0
    nearest = rows["accuracy, e5m2, nearest"]  # 1.01 becomes 1, which is not above 1; 0.99 becomes 1 too
    assert nearest.method == 75.0
    margin = 1.959964 * (0.25 * 0.75 * 100 / 99) ** 0.5 * 100 / 10
    assert nearest.spread == pytest.approx((-25 - margin, -25 + margin))
    assert rows["accuracy, e5m2, up"].method == 100.0  # 1.01 becomes 1.25, 0.99 becomes 1
    assert rows["points lost, e5m2, up"].method == 0.0
    assert rows["points lost, e5m2, up against nearest"].baseline == 25.0


def test_a_peer_that_is_not_installed_is_noted_and_not_judged(monkeypatch):
    monkeypatch.setattr(pychop, "_installed", lambda peer: False)
    rows, notes = pychop.speed_rows(32, 0)
    assert [row.metric for row in rows][:1] == [COPY.metric]
    assert {GFLOAT.metric, PYCHOP.metric}.isdisjoint(row.metric for row in rows)
    assert notes[0].startswith(f"{GFLOAT.metric}: not measured, gfloat is not installed")
    assert len(notes) == 2


def test_peers_round_what_we_round():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 8
    fmt = pychop_network.FORMATS["e4m3"]
    ours = pychop.round_to_format(x, fmt)
    for peer, build in (("gfloat", pychop._gfloat_work), ("pychop", pychop._pychop_work)):
        if pychop._installed(peer):
            np.testing.assert_array_equal(np.asarray(build(x, fmt)()), ours.numpy())


def test_systems_have_the_condition_asked_for():
    a, b = pychop.random_system(30, 1e4, np.random.default_rng(0))
    assert np.linalg.cond(a) == pytest.approx(1e4, rel=1e-6)
    assert b.shape == (30,)


@pytest.mark.slow
def test_every_bar_holds():
    assert pychop.measure(Effort.QUICK, 0).short == ()
