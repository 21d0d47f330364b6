"""The experiment behind the card of ZipVL, on a model small enough to count by hand."""

import pytest
import torch
from torch.nn import functional as F

from shoestring.generation.important_tokens import FixedShare, TopMass
from shoestring.systems import zipvl
from shoestring.systems.zipvl.claims import BYTES, CLAIMS, FIXED, TIERS
from shoestring.systems.zipvl.quality import ZipVLRunner
from shoestring.systems.zipvl.speed import record
from shoestring.yardstick.comparison import Effort


def test_a_smoke_run_answers_every_claim():
    comparison = zipvl.measure(Effort.SMOKE, 0)
    assert {claim.metric for claim in CLAIMS} <= {row.metric for row in comparison.rows}
    assert comparison.holds is None


def test_recorded_attention_is_that_of_the_model():
    run, ids, _, _ = zipvl._tiny(0)
    (layer,) = record(run.model, ids[:50], (1,))
    k, v = (x.repeat_interleave(3, 1) for x in (layer.k, layer.v))
    expected = F.scaled_dot_product_attention(layer.q, k, v, is_causal=True, scale=layer.scale)
    torch.testing.assert_close(layer.dense(), expected)
    kept = layer.sparse(FixedShare(1.0))
    torch.testing.assert_close(kept, expected)
    assert layer.share(FixedShare(0.8)) == pytest.approx(0.8)


def test_bytes_and_perplexity_are_those_of_the_runs():
    run, _, _, _ = zipvl._tiny(0)
    rows = {row.metric: row for row in run.tier_rows()[0]}
    runner = ZipVLRunner(run.model, TopMass(), sparse=False)
    with torch.inference_mode():
        runner.feed(run.windows[:1, :96])
        runner.prompt_is_read()
        logits = run.model(run.windows).logits[:, 95:-1]
    dense = F.cross_entropy(logits.transpose(1, 2), run.windows[:, 96:]).exp().item()
    assert rows[BYTES.metric].baseline == 2 * 2 * 2 * 16 * 96  # both parts, layers, bytes, channels, tokens
    assert 0 < runner.prompt_bytes < 2 * rows[BYTES.metric].baseline
    assert rows[TIERS.metric].baseline == pytest.approx(dense, rel=1e-3)


def test_the_fixed_ratio_keeps_as_many_tokens_as_zipvl():
    run, _, _, _ = zipvl._tiny(0)
    shares, again = [], []
    run._recall(TopMass(), shares)
    run._recall(FixedShare(shares[0]), again, run.prompts[:1])
    assert again[0] == pytest.approx(shares[0], abs=1 / 160)
    rows, _ = run.needle_rows()
    assert {FIXED.metric, "answers that are right"} <= {row.metric for row in rows}


@pytest.mark.slow
def test_the_claims_hold():
    comparison = zipvl.measure(Effort.QUICK, 0)
    assert [row.metric for row in comparison.short if row.kind != "time"] == []
