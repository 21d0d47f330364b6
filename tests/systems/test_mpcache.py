"""The experiment behind the card of MPCache, on a model small enough to count by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from shoestring.generation.clusters import ClusterOptions
from shoestring.generation.mpcache import KeepShare
from shoestring.generation.secret.cost import Cost
from shoestring.generation.secret.step_cost import StepShape
from shoestring.systems import mpcache
from shoestring.systems.mpcache.claims import BYTES, CLAIMS, ERROR, GROWTH, MODEL_ERROR, SMALL_LAN
from shoestring.systems.mpcache.network import Measured, network_rows
from shoestring.systems.mpcache.quality import DENSE, OURS, losses, needle_rows, text_rows
from shoestring.yardstick.comparison import Effort


@pytest.fixture(scope="module")
def work():
    return mpcache._tiny(0)


def test_layers_are_taken_as_the_decoder_has_them(work):
    """q · k of the captured layer against the decoder's own attention of the last token."""
    ids = work.network[256]
    first, second = mpcache._captured(work, ids)
    tokens = ids.shape[1] - 1
    assert first.k.shape == first.v.shape == (2, tokens, 32)
    assert first.q.shape == (2, 1, 32)
    assert int(first.kept.sum()) == math.ceil(3 / 8 * tokens)
    seen = []

    class Watch:
        def attn_plan(self, layer, q, pos, ctx):
            seen.append(q)

    with torch.inference_mode():
        work.model(ids, hooks=(Watch(),))
    torch.testing.assert_close(second.q[:, 0], seen[1][0, ::2, -1] * 32**-0.5, rtol=1e-4, atol=1e-5)


def test_rows_follow_from_what_was_counted():
    def one(full, ours, reused):
        return Measured(
            (Cost(10, full), Cost(10, full)), (Cost(9, ours), Cost(7, reused)), 0.5, 0.25, 1e-4, 0
        )

    measured = {256: one(1000, 300, 100), 512: one(4000, 900, 100), 1024: one(9000, 1000, 500)}
    rows = {row.metric: row for row in network_rows(measured, 512, StepShape(3, 1, 64), 2)}
    assert rows[BYTES[512].metric].ratio == pytest.approx(1000 / 8000)
    assert rows[GROWTH.metric].ratio == pytest.approx((18000 / 1500) / (2000 / 400))
    assert rows[ERROR.metric].method == 1e-4
    assert rows[MODEL_ERROR.metric].holds
    assert rows[SMALL_LAN.metric].method == pytest.approx(9 * 0.8e-3 + 8 * 900 / 3e9 + 0.25)
    assert rows[SMALL_LAN.metric].baseline == pytest.approx(10 * 0.8e-3 + 8 * 4000 / 3e9 + 0.5)


def test_losses_are_those_of_decoding(work):
    prompt, tokens = work.texts[0]
    found = losses(work.model, work.texts[:1], 0, clusters=work.clusters, static=KeepShare(), pairs=True)
    with torch.inference_mode():
        logits = work.model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
    assert found[DENSE].mean == pytest.approx(F.cross_entropy(logits, torch.tensor(tokens)).item(), rel=1e-3)
    whole = ClusterOptions(rho_coarse=1.0, rho_fine=1.0, coarse=8, fine=4)
    same = losses(work.model, work.texts[:1], 0, clusters=whole, static=KeepShare(1.0), pairs=False)
    assert same[OURS].mean == pytest.approx(found[DENSE].mean, rel=1e-4)
    assert same[OURS].read == [pytest.approx(len(prompt) + 1 + (len(tokens) - 2) / 2)]
    rows = {row.metric: row for row in text_rows(found, len(prompt))}
    assert rows["perplexity of the continuation"].baseline == pytest.approx(math.exp(found[DENSE].mean))
    needles = {row.metric: row for row in needle_rows(found)}
    assert needles["needles found, MPCache"].method in (0.0, 1.0)


@pytest.mark.slow
def test_the_claims_about_bytes_hold():
    comparison = mpcache.measure(Effort.QUICK, 0)
    judged = {BYTES[n].metric for n in BYTES} | {GROWTH.metric, ERROR.metric, MODEL_ERROR.metric}
    assert [row.metric for row in comparison.short if row.metric in judged] == []
    assert {claim.metric for claim in CLAIMS} <= {row.metric for row in comparison.rows}
