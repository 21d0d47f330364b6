"""Two layers' attention of one decoded token between processes: bytes, rounds, errors, and what they
predict."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from shoestring.generation.clusters import ClusterOptions, cluster_bounds, mpcache_select
from shoestring.generation.secret.cost import Cost, cost_model
from shoestring.generation.secret.decode_step import attend_all, decode_attention
from shoestring.generation.secret.engine import Engine
from shoestring.generation.secret.parties import PartyGroup
from shoestring.generation.secret.secret_cache import SecretCache
from shoestring.generation.secret.shares import Secret, combine, share
from shoestring.generation.secret.step_cost import (
    StepShape,
    attend_all_cost,
    attend_cache_cost,
    attend_scores_cost,
    bounds_cost,
    choose_cost,
)
from shoestring.systems.mpcache.claims import (
    BYTES,
    ERROR,
    GROWTH,
    LAN,
    LARGE,
    LATENCY_LAN,
    LATENCY_WAN,
    MODEL_ERROR,
    ROUNDS,
    SMALL_LAN,
    SMALL_WAN,
    WAN,
)
from shoestring.yardstick.comparison import Number, Row

KEPT = 3 / 8
"""Of the prompt, after static eviction."""


@dataclass(frozen=True)
class Layer:
    """One layer at one decoded token: its query, scaled, and the keys and values of the prompt; `kept` marks
    the tokens that static eviction leaves."""

    q: Float[Tensor, "heads 1 dim"]
    k: Float[Tensor, "heads tokens dim"]
    v: Float[Tensor, "heads tokens dim"]
    kept: Tensor

    @property
    def survivors(self) -> tuple[Tensor, Tensor]:
        """Keys and values after static eviction."""
        return self.k[:, self.kept], self.v[:, self.kept]


@dataclass(frozen=True)
class Spent:
    """What a stretch of a program took of one party: payload sent, the dependent rounds before and after it,
    processor time."""

    sent_bytes: int
    began: int
    ended: int
    seconds: float


class Meter:
    """Reads a party's counters from one stretch to the next."""

    def __init__(self, engine: Engine) -> None:
        self.counters = engine.channel.counters
        self._last = self._now()

    def lap(self) -> Spent:
        """Since the last lap."""
        now, last = self._now(), self._last
        self._last = now
        return Spent(now[0] - last[0], last[1], now[1], now[2] - last[2])

    def _now(self) -> tuple[int, int, float]:
        return self.counters.sent_bytes, self.counters.rounds, time.process_time()


def full_step(engine: Engine, *inputs: Secret) -> list[Any]:
    """Two layers over everything: q, k, v of each."""
    cache = SecretCache(engine, 2, None)
    for layer in range(2):
        cache.append(layer, *inputs[3 * layer + 1 : 3 * layer + 3])
    meter = Meter(engine)
    return [(attend_all(engine, cache, layer, inputs[3 * layer]), meter.lap()) for layer in range(2)]


def chosen_step(engine: Engine, *inputs: Secret, options: ClusterOptions) -> list[Any]:
    """Two layers over clusters that the first one chooses: q, k, v, fine, coarse of each."""
    cache = SecretCache(engine, 2, options)
    for layer in range(2):
        cache.preset(layer, *inputs[5 * layer + 1 : 5 * layer + 5])
    meter = Meter(engine)
    first = decode_attention(engine, cache, 0, inputs[0])
    spent = meter.lap()
    second = decode_attention(engine, cache, 1, inputs[5], chosen=first.chosen)
    return [(first.out, spent), (second.out, meter.lap())]


@dataclass(frozen=True)
class Measured:
    """One length: bytes and rounds of both layers, by method; the worst error; bytes off the cost model."""

    full: tuple[Cost, Cost]
    ours: tuple[Cost, Cost]
    full_seconds: float
    seconds: float
    error: float
    off: int


def measure_step(group: PartyGroup, layers: tuple[Layer, Layer], options: ClusterOptions) -> Measured:
    """Run both methods on the same two layers."""
    full_inputs = [part for layer in layers for part in (layer.q, layer.k, layer.v)]
    our_inputs: list[Tensor] = []
    for layer in layers:
        k, v = layer.survivors
        our_inputs += [
            layer.q,
            k,
            v,
            _representatives(k, options.fine, options),
            _representatives(k, options.coarse, options),
        ]
    full = group.run(full_step, _shared(group, full_inputs))
    ours = group.run(chosen_step, _shared(group, our_inputs), options=options)
    chosen = _chosen(layers[0], options)
    error = max(
        max(
            _error(group, full.results, i, layers[i], None), _error(group, ours.results, i, layers[i], chosen)
        )
        for i in range(2)
    )
    spent = [[_cost(run.results, i) for i in range(2)] for run in (full, ours)]
    expected = _expected(group.setting.parties, layers[0], options)
    off = sum(abs(a.nbytes - b.nbytes) for a, b in zip(chain(*spent), expected, strict=True))
    seconds = [max(result[0][1].seconds for result in run.results) for run in (full, ours)]
    return Measured(
        (spent[0][0], spent[0][1]), (spent[1][0], spent[1][1]), seconds[0], seconds[1], error, off
    )


def network_rows(measured: Mapping[int, Measured], middle: int, shape: StepShape, parties: int) -> list[Row]:
    """All rows of the network. middle: the length that rounds and latency are given for."""
    rows, savings = [], {}
    for tokens, found in measured.items():
        full = sum(cost.nbytes for cost in found.full)
        ours = sum(cost.nbytes for cost in found.ours)
        savings[tokens] = full / ours
        rows.append(BYTES[tokens].row(baseline=full / 2, method=ours / 2))
        rows.append(
            _row(f"bytes on the wire, {tokens} tokens, every layer chooses", "other", "B",
                 found.full[0].nbytes, found.ours[0].nbytes)
        )  # fmt: skip
    shortest, longest = min(savings), max(savings)
    here = measured[middle]
    rows += [
        GROWTH.row(baseline=savings[shortest], method=savings[longest]),
        ROUNDS.row(baseline=here.full[0].rounds, method=here.ours[0].rounds),
        ERROR.row(baseline=None, method=max(found.error for found in measured.values())),
        MODEL_ERROR.row(baseline=None, method=sum(found.off for found in measured.values())),
    ]
    for claim, network in ((SMALL_LAN, LAN), (SMALL_WAN, WAN)):
        rows.append(
            claim.row(
                baseline=here.full[0].seconds(*network, here.full_seconds),
                method=here.ours[0].seconds(*network, here.seconds),
            )
        )
    return [*rows, *_predicted(middle, shape, parties)]


def _predicted(middle: int, shape: StepShape, parties: int) -> list[Row]:
    """From the closed form: the large shape, the paper's gathering, and a cluster's bounds."""
    model, large, options = cost_model(parties), StepShape(32, 1, 128), ClusterOptions()
    plan, here = options.plan(int(KEPT * 2048)), options.plan(int(KEPT * middle))
    assert plan is not None
    full = attend_all_cost(model, large, 2048)
    alone = choose_cost(model, large, plan) + attend_scores_cost(model, large, plan)
    reused = attend_scores_cost(model, large, plan)
    rows = [
        claim.row(baseline=full.seconds(*network), method=alone.seconds(*network))
        for claim, network in ((LATENCY_LAN, LAN), (LATENCY_WAN, WAN))
    ]
    rows.append(
        _row(f"the same, LAN, choice shared by two layers, {LARGE}", "time", "s", full.seconds(*LAN),
             (alone.seconds(*LAN) + reused.seconds(*LAN)) / 2)
    )  # fmt: skip
    if here is None:
        return rows
    full = attend_all_cost(model, shape, middle)
    chosen = choose_cost(model, shape, here)
    scores = chosen + attend_scores_cost(model, shape, here)
    gathered = choose_cost(model, shape, here, one_hot=True) + attend_cache_cost(model, shape, here)
    bounds = math.ceil(bounds_cost(model, shape, options.fine).nbytes / options.fine)
    return [
        *rows,
        _row(f"bytes from the cost model, keys and values gathered by one-hot ranks, {middle} tokens",
        "other",
             "B", full.nbytes, gathered.nbytes),
        _row(f"bytes from the cost model, bounds of new clusters included, {middle} tokens", "other", "B",
             full.nbytes, scores.nbytes + bounds),
    ]  # fmt: skip


def _row(metric: str, kind: str, unit: str, baseline: Number, method: Number) -> Row:
    return Row(metric=metric, kind=kind, unit=unit, better="lower", baseline=baseline, method=method)


def _representatives(k: Tensor, size: int, options: ClusterOptions) -> Tensor:
    """α rmax + (1 − α) rmin of the clusters that are full."""
    low, high = cluster_bounds(k[:, : k.shape[1] // size * size], size)
    return options.alpha * high + (1 - options.alpha) * low


def _shared(group: PartyGroup, tensors: list[Tensor]) -> list[list[Secret]]:
    form, parties = group.setting.form, group.setting.parties
    generator = np.random.default_rng()
    return [
        share(form.encode(t.double().numpy(), inner=t.shape[-1]), parties, generator.bytes(16))
        for t in tensors
    ]


def _chosen(layer: Layer, options: ClusterOptions) -> Tensor:
    """Which survivors are read, by the plain rules."""
    return mpcache_select(layer.q.double().sum(1), layer.survivors[0].double(), options)


def _error(group: PartyGroup, results: list[Any], index: int, layer: Layer, chosen: Tensor | None) -> float:
    found = group.setting.form.decode(combine([result[index][0] for result in results]))
    k, v = (layer.k, layer.v) if chosen is None else layer.survivors
    scores = layer.q.double() @ k.double().mT
    if chosen is not None:
        scores = scores.masked_fill(~chosen[:, None], -torch.inf)
    return float(np.abs(found - (scores.softmax(-1) @ v.double()).numpy()).max())


def _cost(results: list[Any], index: int) -> Cost:
    """A layer's rounds, and bytes of all parties."""
    laps = [result[index][1] for result in results]
    # One party may be a message ahead: the chain of all of them counts.
    rounds = max(lap.ended for lap in laps) - max(lap.began for lap in laps)
    return Cost(rounds, sum(lap.sent_bytes for lap in laps))


def _expected(parties: int, layer: Layer, options: ClusterOptions) -> list[Cost]:
    model, shape = cost_model(parties), StepShape(layer.q.shape[0], layer.q.shape[1], layer.q.shape[2])
    plan = options.plan(int(layer.kept.sum()))
    full = attend_all_cost(model, shape, layer.k.shape[1])
    if plan is None:
        few = attend_all_cost(model, shape, int(layer.kept.sum()))
        return [full, full, few, few]
    attended = attend_scores_cost(model, shape, plan)
    return [full, full, choose_cost(model, shape, plan) + attended, attended]
