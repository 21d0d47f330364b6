"""The experiment behind the card of Apriel-H1: equal work on both sides, notes that say what they should."""

import dataclasses

import pytest
import torch

from shoestring.data.tokens import TextBatches
from shoestring.generation.compiled_batch_runner import CompiledBatchRunner
from shoestring.generation.decoder_runner import DecoderRunner
from shoestring.models.layer_layout import LayerKind
from shoestring.systems.apriel_h1 import TINY_FAMILY, TINY_LESSON, TINY_SERVING, _noise, _tiny_language
from shoestring.systems.apriel_h1 import family as family
from shoestring.systems.apriel_h1 import serving as serving
from shoestring.systems.apriel_h1.claims import CLAIMS, FAMILY, KEYS
from shoestring.systems.apriel_h1.learning import Lesson, equal_loss_note, learning_rows
from shoestring.training.model_text import model_text
from shoestring.yardstick.timing import InterleavedTimes


@pytest.mark.parametrize(("layers", "mamba"), [(30, 18), (30, 24), (5, 3), (5, 4), (4, 4), (7, 1)])
def test_mixers_are_spread_over_the_layers(layers, mamba):
    layout = serving.spread_layout(layers, mamba)
    assert len(layout) == layers
    assert layout.count(LayerKind.MAMBA) == mamba


def test_the_default_is_the_shape_of_smollm2():
    cfg = serving.Serving().config
    decoder = serving.Decoder(cfg, device="meta")
    assert sum(parameter.numel() for parameter in decoder.parameters()) == 134_515_008


def test_models_share_what_is_the_same_and_a_step_is_one_compiled_call():
    models = serving.build_models(TINY_SERVING, 0)
    assert sorted(models) == [0, 3, 4]
    for model in models.values():
        assert model.model.embed_tokens.weight.data_ptr() == models[0].model.embed_tokens.weight.data_ptr()
        runner = serving._runner(model, 2, 20, TINY_SERVING, 0)
        assert isinstance(runner, CompiledBatchRunner)
        cache, nbytes = runner.cache, runner.cache.nbytes()
        assert cache.next_pos.tolist() == [20, 20]
        step, expected = serving.decode(runner), serving.decode(DecoderRunner(model, cache.clone()))
        for _ in range(TINY_SERVING.rounds + 1):
            torch.testing.assert_close(step(), expected(), rtol=1e-4, atol=1e-4)
        # There is room for all rounds: nothing is allocated while time is taken.
        assert (cache.plain_slots(), cache.nbytes()) == (20 + TINY_SERVING.rounds + 1, nbytes)


def test_what_a_token_reads():
    models = serving.build_models(TINY_SERVING, 0)
    full, hybrid = (serving._runner(models[n], 2, 20, TINY_SERVING, 0) for n in (0, 3))
    cfg = TINY_SERVING.config
    keys = 2 * 2 * 4 * 20 * cfg.num_key_value_heads * cfg.head_dim
    weights = sum(parameter.nbytes for parameter in models[0].parameters())
    assert serving.read_bytes(full) == weights + 5 * keys
    states = sum(t.nbytes for t in hybrid.cache.state(0 if 0 in hybrid.cache.own_states() else 1).values())
    weights = sum(parameter.nbytes for parameter in models[3].parameters())
    assert serving.read_bytes(hybrid) == weights + 2 * keys + 3 * states
    assert "3 mixers: by the bytes" in serving.bytes_note(full, hybrid, 3)


def test_keys_are_those_of_attention_alone():
    models = serving.build_models(TINY_SERVING, 0)
    row = serving._keys_row(*(serving.filled_cache(models[n], 2, 20, 0) for n in (0, 3)))
    assert row.ratio == pytest.approx(0.4)
    assert row.holds
    assert KEYS.bar == pytest.approx(0.408)


def test_where_a_hybrid_begins_to_be_faster():
    def times(full, hybrid):
        return InterleavedTimes({"0": (full,) * 3, "18": (hybrid,) * 3}, {"0": 1, "18": 1}, 1, 0)

    shape = serving.Serving(context=8000, short_context=2000)
    note = serving.break_even_note(times(1.0, 1.5), times(3.0, 2.5), "18", shape)
    assert "from a context of about 5000 on" in note
    assert "at any context" in serving.break_even_note(times(1.0, 0.5), times(3.0, 1.0), "18", shape)
    assert "does not grow" in serving.break_even_note(times(1.0, 0.5), times(1.0, 0.6), "18", shape)


def test_steps_to_equal_loss():
    cold = [2.0 - 0.1 * i for i in range(11)]
    assert "is reached after 6 from" in equal_loss_note([1.25] * 5 + [0.9] + [0.2] * 5, cold)
    assert "does not reach" in equal_loss_note([1.5] * 11, cold)


def test_every_arm_learns_equally_long(monkeypatch):
    from shoestring.systems.apriel_h1 import learning as learning

    runs, read = [], {}

    def distil(student, teacher, batches, plan, *, divergence):
        read[plan.schedule, plan.steps] = batches(0)[0]
        runs.append((len(student.cfg.layers_of(LayerKind.MAMBA)), plan.steps, plan.learning_rate))
        return type("Record", (), {"losses": (1.0,) * plan.steps})

    monkeypatch.setattr(learning, "distil_logits", distil)
    lesson = dataclasses.replace(TINY_LESSON, steps=5, stage_steps=(3, 4))
    rows, notes = learning_rows(_noise(lesson, 0)[0], lesson, 0)
    assert len({rate for _, _, rate in runs}) == 1
    one, many = (sorted(steps for count, steps, _ in runs if count == n) for n in (1, 2))
    assert one == [3] + [5] * 5  # a stage, three orders, random mixers, the other divergence
    assert many == [1, 1, 4, 7]  # two probes, a stage, all at once
    assert len(rows) == 6
    # A stage reads on where the one before stopped; its rate falls only in the last.
    whole = TextBatches(_noise(lesson, 0)[0].train, lesson.length, lesson.batch_size, 1)
    assert read["constant", 3].equal(whole(0)[0])
    assert read["cosine", 4].equal(whole(3)[0])
    assert any("at random" in note for note in notes)


def test_the_full_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    task, said = _tiny_language(0), []
    rows, _ = family.family_rows(task, TINY_FAMILY, tmp_path, 0, say=said.append)
    assert "steps of distillation" in said[0]
    assert len(said) == 4
    assert {row.metric for row in rows} >= {claim.metric for claim in FAMILY.values()}

    def never(*arguments, **options):
        raise AssertionError("everything was there already")

    monkeypatch.setattr(family, "model_text", never)
    monkeypatch.setattr(family, "distil_logits", never)
    again, _ = family.family_rows(task, TINY_FAMILY, tmp_path, 0, say=said.append)
    assert again == rows


def test_recall_counts_what_comes_a_second_time():
    class Copies(serving.Decoder):
        def __init__(self):
            torch.nn.Module.__init__(self)
            self.cfg = dataclasses.replace(TINY_SERVING, vocabulary=50).config

        def forward(self, ids):
            seen = torch.roll(ids, ids.shape[1] // 2 - 1, 1)
            return type("Output", (), {"logits": torch.nn.functional.one_hot(seen, 50).float()})

    assert family.recall(Copies(), 8, seed=0) == 100.0


def test_counts_and_traces(tmp_path):
    assert family.FamilyRun().counts(30) == {25: 8, 50: 15, 75: 22}
    task = _tiny_language(0)
    texts = family.traces(task.model, TINY_FAMILY, tmp_path, 0)
    written = model_text(task.model, 4, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(texts, written)


def test_bars_are_the_goals():
    bars = {claim.metric: claim.bar for claim in CLAIMS if claim.bar is not None}
    assert len(bars) == 7
    assert Lesson().layers == 2 * Lesson().converted
