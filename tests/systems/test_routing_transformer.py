import pytest
import torch

from shoestring.layers.routing.routing_options import RoutingOptions
from shoestring.systems.routing_transformer import card, measure
from shoestring.systems.routing_transformer.claims import CLAIMS, MODES
from shoestring.systems.routing_transformer.quality import (
    QualitySettings,
    arm_heads,
    recall_accuracy,
    text_loss,
)
from shoestring.systems.routing_transformer.speed import routing_heads, speed_rows
from shoestring.yardstick import Effort

TINY = QualitySettings(
    recall_steps=3, recall_length=32, recall_pairs=4, text_steps=20, text_length=32, text_batch=4,
    text_windows=4, text_dim=16,
)  # fmt: skip


def test_parts_exist_and_published_bars_stand():
    assert len(card.resolve_parts()) == len(card.parts)
    bars = {claim.metric: claim.bar for claim in CLAIMS}
    assert bars["time, top-w, n=4096"] == 1 / 2
    assert bars["time, top-w, n=8192"] == 1 / 4
    assert bars["time, strict, n=4096"] == pytest.approx(1 / 1.4)
    assert bars["time, strict, n=8192"] == pytest.approx(1 / 2.2)
    assert bars["exponent of time, strict"] == 1.7
    assert bars["peak extra memory, top-w"] == 0.15
    assert bars["recall gap closed"] == 0.3


def test_arms_differ_only_in_their_heads():
    routing = RoutingOptions(4, 4)
    heads = {arm: arm_heads(arm, 64, 8, routing) for arm in ("local", "strict", "full")}
    assert {split.n_heads for split in heads.values()} == {4}
    assert heads["strict"].n_routing_heads == 2
    assert heads["local"].block == heads["strict"].block == 8
    assert heads["full"].block == 64


def test_training_lowers_the_text_loss():
    ids = torch.arange(400) % 7
    losses = [
        text_loss("strict", QualitySettings(**vars(TINY) | {"text_steps": steps}), ids, ids, 0)
        for steps in (1, 20)
    ]
    assert losses[1] < losses[0]


def test_an_experiment_repeats():
    assert recall_accuracy("strict", TINY, 3) == recall_accuracy("strict", TINY, 3)


def test_speed_rows_answer_the_claims_and_take_the_paper_s_sizes():
    assert routing_heads(4096, "strict").options.n_clusters == 64
    lengths = {1024: 16, 2048: 32, 4096: 32, 8192: 64, 16384: 64}
    rows = {row.metric: row for row in speed_rows(lengths, 3, 0)}
    assert {f"time, {mode}, n={n}" for mode in MODES for n in lengths} <= rows.keys()
    assert all(rows[f"peak extra memory, {mode}"].method > 0 for mode in MODES)


def test_a_smoke_run_measures_every_claim():
    comparison = measure(Effort.SMOKE, 0)
    rows = {row.metric for row in comparison.rows}
    assert {claim.metric for claim in CLAIMS if not claim.needs_gpu} <= rows
    assert any("reads the future" in note for note in comparison.notes)
