"""The experiments behind the card of SeqBoat: what is forced, what is timed, and what is judged."""

from dataclasses import replace

import pytest
import torch

from shoestring.data.seeded import IGNORED
from shoestring.layers.seqboat.attention_reach import Chunks, Window
from shoestring.layers.seqboat.seqboat import SeqBoat
from shoestring.systems import seqboat
from shoestring.systems.seqboat.claims import CLAIMS, LEAST_ACTIVITY, MEAN_ACTIVITY, QUADRATIC, UNIT_MEMORY
from shoestring.systems.seqboat.cost import CostSettings, cost_rows, layer_work, peak_bytes, routed_layer
from shoestring.systems.seqboat.recall import CHUNKS, EMA, SEQBOAT, judge, recall_rows, train_arm
from shoestring.systems.seqboat.text import TextSettings, text_rows
from shoestring.yardstick.comparison import Effort


def test_forced_tokens_attend_and_no_others():
    active = torch.rand(1, 40) < 0.3
    layer = routed_layer(CostSettings(d_model=8, window=4), active)
    seen = []
    layer.attention.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    layer_work(layer, torch.randn(1, 40, 8))()
    assert seen == [int(active.sum())]
    assert layer.activity == pytest.approx(active.double().mean().item())


def test_memory_is_that_of_the_work():
    def work():
        held = torch.empty(1000, dtype=torch.float32)
        return held + 1

    assert peak_bytes(work) == 8000


def test_rows_of_cost_compare_what_they_say():
    rows = {row.metric: row for row in cost_rows(CostSettings(length=512, d_model=8, window=16, rounds=3), 0)}
    memory = rows[UNIT_MEMORY.metric]
    assert 0.15 < memory.ratio < 0.6, "a quarter of the tokens, and what does not depend on them"
    assert rows[QUADRATIC.metric].against == "full attention"
    layer = rows["peak bytes of a layer, 25 % active"]
    assert memory.ratio < layer.ratio < 1


def test_arms_differ_in_attention_alone():
    settings = replace(seqboat.SMOKE_RECALL, steps=1, full_steps=1)
    models = {name: train_arm(settings, name, 0).model for name in (SEQBOAT, EMA, CHUNKS)}
    layers = {name: model.stack.layers[0] for name, model in models.items()}
    assert layers[SEQBOAT].attention.reach == Window(8)
    assert layers[CHUNKS].attention.reach == Chunks(8)
    assert layers[CHUNKS].router is None
    assert layers[EMA].attention is None
    for layer in layers.values():
        assert isinstance(layer, SeqBoat)
        assert layer.ema.n_states == 2


def test_the_judge_counts_answers_and_nothing_else():
    class Oracle(torch.nn.Module):
        def forward(self, tokens):
            logits = torch.zeros(*tokens.shape, 4)
            right = torch.where(self.targets == IGNORED, 0, self.targets)
            right[0] = (right[0] + 1) % 4  # one sample in four is wrong
            return logits.scatter(-1, right[..., None], 20.0)

    tokens, targets = seqboat.SMOKE_RECALL.task(0)
    oracle = Oracle()
    oracle.targets = targets
    found = judge(oracle, [(tokens, targets)])
    assert found.accuracy == 75.0
    assert found.loss == pytest.approx(5.0, rel=1e-3)


def test_rows_of_recall_agree_with_the_arms():
    settings = seqboat.SMOKE_RECALL
    rows, notes = recall_rows(settings, 1)
    by_metric = {row.metric: row for row in rows}
    again = train_arm(settings, SEQBOAT, 1)
    assert by_metric["recall accuracy"].method == again.accuracy
    shares = [by_metric[f"share of tokens that attend, layer {n}"].method for n in (1, 2)]
    assert shares == list(again.activity.values())
    assert by_metric[MEAN_ACTIVITY.metric].method == pytest.approx(sum(shares) / 2)
    assert by_metric[LEAST_ACTIVITY.metric].method == min(shares)
    assert (
        by_metric["recall loss, against the moving average alone"].baseline
        == train_arm(settings, EMA, 1).loss
    )
    assert notes[-1].startswith("recall: 3 steps each, 2 of full attention; in the first 400 of")


def test_a_text_is_judged_on_its_last_tenth():
    settings = TextSettings(length=16, window=4, d_model=8, layers=1, steps=2, batch_size=2, judged=2)
    rows = text_rows("abcdefgh " * 100, settings, 0)
    assert len(rows) == 4
    ours = {row.method for row in rows[:3]}
    assert len(ours) == 1
    assert 0 <= rows[3].method <= 1


def test_a_full_run_names_its_rows_apart(monkeypatch):
    monkeypatch.setattr(seqboat, "LONG_RECALL", seqboat.SMOKE_RECALL)
    monkeypatch.setattr(seqboat, "corpus_text", lambda name: ("some text. " * 200, name))
    tiny = TextSettings(length=16, window=4, d_model=8, layers=1, steps=1, batch_size=2, judged=1)
    monkeypatch.setattr(seqboat, "TextSettings", lambda: tiny)
    rows, notes = seqboat._full_rows(0)
    metrics = [row.metric for row in rows]
    assert len(set(metrics)) == len(metrics)
    assert not {claim.metric for claim in CLAIMS} & set(metrics)
    assert all(row.bar is None for row in rows)
    assert notes[-1] == "text: shakespeare"


@pytest.mark.slow
def test_the_claims_about_quality_hold():
    comparison = seqboat.measure(Effort.QUICK, 0)
    assert [row.metric for row in comparison.short if row.kind in ("quality", "compute", "memory")] == []
    assert {claim.metric for claim in CLAIMS if not claim.needs_gpu} <= {
        row.metric for row in comparison.rows
    }
