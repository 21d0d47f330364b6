"""The experiment behind the card of LongSpec, on a model small enough to check by hand."""

import pytest
import torch

from shoestring.generation.decode import generate
from shoestring.generation.speculation.draft_length import FixedLength
from shoestring.generation.speculation.glide import Glide
from shoestring.generation.speculation.tree_attention import naive_tree_attend, tree_attend
from shoestring.systems import longspec
from shoestring.systems.longspec.claims import ACCEPTED, CLAIMS, DRAFT_BYTES, LONG, SHORT
from shoestring.systems.longspec.decoding import Decoded, Prompt, Race
from shoestring.systems.longspec.operator import (
    SHAPE,
    explicit_softmax,
    fused_masked,
    tree_inputs,
    wide_tree,
)
from shoestring.yardstick.comparison import Effort


def test_a_smoke_run_answers_every_claim_that_a_processor_can():
    comparison = longspec.measure(Effort.SMOKE, 0)
    rows = {row.metric for row in comparison.rows}
    assert {claim.metric for claim in CLAIMS if not claim.needs_gpu and "packed" not in claim.metric} <= rows
    assert comparison.holds is None
    assert sum("texts are those of plain decoding" in note for note in comparison.notes) == 2


def test_outputs_behind_one_reading_are_those_of_whole_runs():
    work = longspec._tiny(0)
    prompt = Prompt(work.model, work.prompts[0], 12)
    plain = generate(work.model, prompt.ids, max_new_tokens=12, stop_tokens=())
    found = [prompt.decode(way) for way in (None, Glide(work.draft, length=FixedLength()), None)]
    assert [one.tokens for one in found] == [plain.tokens] * 3
    assert found[0].passes == found[2].passes == 11
    assert 11 / 4 <= found[1].passes <= 11
    assert prompt.cache.next_pos.tolist() == [len(prompt.ids)]


def test_figures_of_a_race():
    race = Race()
    race.outputs = {
        "a": [Decoded([1, 2, 3, 4, 5], 2.0, 2), Decoded([1, 2, 3], 1.0, 1)],
        "b": [Decoded([1, 2, 3, 4, 5], 4.0, 4), Decoded([1, 2, 4], 4.0, 2)],
    }
    assert race.speeds("a", "b") == [2.0, 4.0]
    assert race.tokens_per_pass("a") == 2.0
    assert race.tokens_per_second("b") == 0.75
    assert race.same_text("a", "b") == (1, 2)


def test_a_tree_of_seventeen_nodes():
    tree = wide_tree(SHAPE)
    assert len(tree) == 17
    assert tree.depths() == [0] + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    assert wide_tree((2, 4)).parents == (-1, 0, 0, 1, 1, 2, 2)


@pytest.mark.parametrize("context", [1, 50])
def test_what_is_timed_is_one_attention(context):
    cfg = longspec._tiny(0).model.cfg
    q, view, pos, among, mask = tree_inputs(cfg, context, SHAPE, 0)
    expected = naive_tree_attend(q, view, pos, among, cfg.scale)
    for found in (
        tree_attend(q, view, pos, among, cfg.scale),
        explicit_softmax(q, view, mask, cfg.scale),
        fused_masked(q, view, mask, cfg.scale),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_paper_is_answered_at_both_lengths():
    assert set(ACCEPTED) == {SHORT, LONG} == {1024, 4096}
    assert all(claim.bar == 2.3 for claim in ACCEPTED.values())
    assert DRAFT_BYTES.bar == 0.16


@pytest.mark.slow
def test_the_claims_hold():
    comparison = longspec.measure(Effort.QUICK, 0)
    assert [row.metric for row in comparison.short if row.kind != "time"] == []
