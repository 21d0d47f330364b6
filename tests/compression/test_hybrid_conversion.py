"""From attention to Mamba: the warm start, what it refuses, rankings with controls, stages, their resume."""

import math
from dataclasses import replace

import pytest
import torch

from shoestring.compression.hybrid_conversion import ConversionPlan, convert_in_stages
from shoestring.compression.layer_importance import (
    attention_layers,
    layer_removed,
    leave_one_out,
    negative_loss,
    probe_replacements,
    random_order,
    removal_controls,
)
from shoestring.compression.mamba_in_llama import (
    Unmapped,
    at_random,
    convert,
    from_attention,
    restore_attention,
    unmapped,
    with_mamba,
)
from shoestring.errors import TrainingDiverged
from shoestring.layers.mamba.grouped_mamba import MambaShape, ScanKind, grouped_mixer
from shoestring.models.decoder import Decoder
from shoestring.models.load import load_decoder
from shoestring.models.save_decoder import save_decoder

from ..models.families import ids_of as family_ids
from ..models.families import make
from ..models.hybrids import ids_of, tiny

SHAPE = MambaShape(d_state=4, dt_rank=3)


def layout(letters):
    return tiny(letters).cfg.layout


def test_the_warm_start_copies_the_rows_of_attention():
    teacher = tiny("ttt")
    student = convert(teacher, layout("tmt"), SHAPE)
    attention, mixer = teacher.model.layers[1].self_attn, student.model.layers[1].mixer
    for name, projection in {"x": "v_proj", "B": "k_proj", "C": "q_proj"}.items():
        assert torch.equal(mixer.in_proj.weight[mixer.rows[name]], getattr(attention, projection).weight)
    assert torch.equal(mixer.out_proj.weight, attention.o_proj.weight)
    others = convert(teacher, layout("tmt"), SHAPE, initial=at_random).model.layers[1].mixer
    assert not torch.equal(others.out_proj.weight, mixer.out_proj.weight)
    assert torch.equal(others.in_proj.weight[mixer.rows["z"]], mixer.in_proj.weight[mixer.rows["z"]])
    assert torch.equal(others.A_log, mixer.A_log)
    for name, tensor in student.state_dict().items():
        if "mixer" not in name:
            assert torch.equal(tensor, teacher.state_dict()[name])
            assert tensor.data_ptr() != teacher.state_dict()[name].data_ptr()


@pytest.mark.parametrize("scan", list(ScanKind))
def test_the_warm_start_is_linear_attention_of_the_teacher(scan):
    """Decay, step size, skip, convolution and gate out of the way, the state as wide as a head."""
    teacher, n = tiny("t", dtype=torch.float64), 16
    student = convert(teacher, layout("m"), MambaShape(d_state=n, dt_rank=3, scan=scan))
    attention, mixer = teacher.model.layers[0].self_attn, student.model.layers[0].mixer
    mixer.A_log.fill_(-math.inf)
    mixer.D.zero_()
    mixer.dt_proj.weight.zero_()
    mixer.dt_proj.bias.fill_(math.log(math.e - 1))
    hidden = torch.randn(2, 11, 24, dtype=torch.float64)
    _, x, B, C, dt = mixer.project(hidden)
    found = mixer.out_proj(mixer.scan(x, dt, B, C, None, None)[0])
    q, k, v = (
        getattr(attention, name)(hidden).unflatten(-1, (-1, n)).transpose(1, 2)
        for name in ("q_proj", "k_proj", "v_proj")
    )
    k, v = (part.repeat_interleave(2, 1) for part in (k, v))
    wanted = attention.o_proj(((q @ k.mT).tril() @ v).transpose(1, 2).flatten(2))
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-5


def test_back_and_forth_restores_the_checkpoint(tmp_path):
    teacher, ids = tiny("tttt"), ids_of(2, 15)
    student = convert(teacher, layout("tmmt"), SHAPE)
    assert not torch.equal(student(ids).logits, teacher(ids).logits)
    again = restore_attention(student, [1, 2], teacher)
    assert torch.equal(again(ids).logits, teacher(ids).logits)
    assert again.state_dict().keys() == teacher.state_dict().keys()
    same = convert(teacher, teacher.cfg.layout)
    assert torch.equal(same(ids).logits, teacher(ids).logits)
    save_decoder(same, tmp_path / "model")
    assert torch.equal(load_decoder(tmp_path / "model")(ids).logits, teacher(ids).logits)
    with pytest.raises(ValueError, match=r"cannot give back the attention of layers \[1\]"):
        restore_attention(student, [1], student)


def test_mixers_that_are_there_keep_their_weights_and_order_does_not_matter():
    teacher = tiny("ttt")
    both = convert(teacher, layout("mtm"), SHAPE, seed=5)
    stepwise = convert(convert(teacher, layout("mtt"), SHAPE, seed=5), layout("mtm"), SHAPE, seed=5)
    assert all(torch.equal(t, both.state_dict()[n]) for n, t in stepwise.state_dict().items())
    first = convert(teacher, layout("mtt"), SHAPE, seed=5)
    first.model.layers[0].mixer.D.fill_(7.0)
    assert float(convert(first, layout("mtm"), SHAPE).model.layers[0].mixer.D[0]) == 7.0


def test_what_has_no_converter():
    teacher = tiny("ttt")
    student = convert(teacher, layout("tmt"), SHAPE)
    with pytest.raises(ValueError, match="layer 1: there is no converter from mamba to attention"):
        convert(student, layout("ttt"), SHAPE)
    with pytest.raises(ValueError, match=r"layer 0 has no attention \(identity\)"):
        convert(tiny("itt"), layout("mtt"), SHAPE)
    with pytest.raises(ValueError, match="'tm' is not of 3 layers"):
        convert(teacher, layout("tm"), SHAPE)
    with pytest.raises(ValueError, match="mixers of .* are there already"):
        convert(student, layout("tmm"), MambaShape(d_state=8, dt_rank=3))
    with pytest.raises(ValueError, match="d_state=5 does not divide"):
        convert(teacher, layout("tmt"), MambaShape(d_state=5))
    other = grouped_mixer(24, 2, 2, 16, SHAPE)
    with pytest.raises(ValueError, match="make the mixer with the heads"):
        from_attention(other, teacher.model.layers[0].self_attn)


@pytest.mark.parametrize(
    ("family", "reasons"),
    [
        ("llama", set()),
        ("llama, biases", {Unmapped.BIAS}),
        ("qwen 2", {Unmapped.BIAS}),
        ("mistral, window of 7", {Unmapped.WINDOW}),
        ("qwen 3", {Unmapped.QK_NORM, Unmapped.BIAS}),
        ("gemma 3", {Unmapped.QK_NORM, Unmapped.QUERY_SCALE, Unmapped.POST_NORM, Unmapped.WINDOW}),
    ],
)
def test_teachers_with_more_than_a_mixer_has(family, reasons):
    teacher = Decoder.from_transformers(make(family))
    goal = with_mamba(teacher.cfg.layout, [0])
    assert set(unmapped(teacher, [0])) == reasons
    if reasons:
        with pytest.raises(ValueError, match=r"layers \[0\].*Pass accept="):
            convert(teacher, goal, SHAPE)
    if Unmapped.BIAS in reasons:
        goal = teacher.cfg.layout
    student = convert(teacher, goal, SHAPE, accept=reasons)
    assert student(family_ids(1, 9)).logits.isfinite().all()


def test_shared_attention_is_seen():
    teacher = tiny("ttt")
    teacher.model.layers[2].self_attn = teacher.model.layers[0].self_attn
    assert unmapped(teacher, [0, 1, 2]) == {Unmapped.SHARED: [0, 2]}


def silent(model, layer):
    with torch.no_grad():
        model.model.layers[layer].self_attn.o_proj.weight.zero_()


def test_a_layer_that_adds_nothing_ranks_first_with_a_drop_of_0():
    windows = ids_of(4, 20)
    model = tiny("ttttt")
    silent(model, 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = leave_one_out(model, lambda m: abs(negative_loss(windows)(m)))
    assert found.drops[3] == 0.0
    assert all(drop != 0 for layer, drop in found.drops.items() if layer != 3)
    importance = leave_one_out(model, _agreement(model, windows))
    assert importance.order[0] == 3
    assert importance.drops[3] == 0.0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def _agreement(model, windows):
    """Minus how far logits are from those of the whole model: every layer that adds something is worth it."""
    wanted = model(windows).logits
    return lambda m: -float((getattr(m(windows), "logits", None) - wanted).square().mean())


def test_models_of_transformers_are_ranked_alike():
    theirs = make("llama")
    silent(theirs, 2)
    ours = Decoder.from_transformers(theirs)
    windows = family_ids(3, 16)
    assert attention_layers(theirs) == (0, 1, 2, 3)
    for removal in (None, layer_removed):
        mine, other = (
            leave_one_out(model, negative_loss(windows), removal=removal) for model in (ours, theirs)
        )
        assert mine.drops == pytest.approx(other.drops, abs=1e-4)
    assert leave_one_out(theirs, _agreement(theirs, windows)).order[0] == 2
    with pytest.raises(TypeError, match="Linear has no list of blocks"):
        leave_one_out(torch.nn.Linear(2, 2), lambda model: 0.0)


def test_rankings_are_judged_beside_chance_and_their_inverse():
    model, windows = tiny("tttttt"), ids_of(4, 20)
    for layer in (1, 4):
        silent(model, layer)
    score = _agreement(model, windows)
    importance = leave_one_out(model, score)
    controls = removal_controls(model, importance, score, 2, seed=1)
    assert controls.by_importance == 0.0
    assert controls.holds
    assert not replace(controls, inverted=controls.by_importance).holds
    assert sorted(random_order(importance.order, 3)) == sorted(importance.order)
    assert random_order(importance.order, 3) == random_order(importance.order, 3)
    with pytest.raises(ValueError, match="count=6 must be 1 to 5"):
        removal_controls(model, importance, score, 6)


def test_bad_scores():
    with pytest.raises(ValueError, match="the evaluation set is empty"):
        negative_loss(ids_of(1, 5)[:0])
    with pytest.raises(ValueError, match="score of the whole model is not a number"):
        leave_one_out(tiny("tt"), lambda model: math.nan)
    with pytest.raises(ValueError, match="layers is empty"):
        leave_one_out(tiny("mm"), lambda model: 0.0)
    with pytest.raises(TrainingDiverged, match="the probe of layer 1"):
        probe_replacements(
            tiny("tt"),
            [0, 1],
            replace=lambda student, layer: layer,
            distil=lambda layer: math.nan if layer else 1.0,
        )


class Recorder:
    """A distillation that marks what it trained; a probe is the easier the higher its layer."""

    def __init__(self, stop_at=None):
        self.calls, self.stop_at = [], stop_at

    def __call__(self, student, teacher, *, steps, name):
        if name == self.stop_at:
            raise KeyboardInterrupt
        self.calls.append((name, steps, "".join(student.cfg.layout)))
        if "probe" in name:
            return 1.0 / (1 + int(name.rsplit("-", 1)[1]))
        student.model.norm.weight += 1.0
        return float(len(self.calls))


PLAN = ConversionPlan(counts=(2, 3, 4), steps=(7, 8, 9), probe_steps=3, shape=SHAPE)


def converted(folder=None, stop_at=None, plan=PLAN, teacher=None):
    model = teacher or tiny("ttttt")
    for layer in (1, 3):
        silent(model, layer)
    recorder = Recorder(stop_at)
    score = _agreement(model, ids_of(2, 12))
    return *convert_in_stages(model, plan, score=score, distil=recorder, folder=folder), recorder


def test_stages():
    student, stages, recorder = converted()
    assert [stage.layout for stage in stages] == ["tmtmt", "tmtmm", "tmmmm"]
    assert set(stages[0].scores) == set(range(5))
    assert set(stages[1].scores) == {0, 2, 4}
    names = [name for name, _, _ in recorder.calls]
    probes = [f"stage-2-probe-{layer}" for layer in (0, 2, 4)]
    assert names == ["stage-1", *probes, "stage-2", "stage-3-probe-0", "stage-3-probe-2", "stage-3"]
    assert [steps for name, steps, _ in recorder.calls if "probe" not in name] == [7, 8, 9]
    assert {steps for name, steps, _ in recorder.calls if "probe" in name} == {3}
    # Each stage goes on from the one before: the gain moved three times.
    torch.testing.assert_close(student.model.norm.weight, torch.full((24,), 4.0))


def test_a_conversion_goes_on_after_its_last_whole_stage(tmp_path):
    whole = converted()
    with pytest.raises(KeyboardInterrupt):
        converted(tmp_path, stop_at="stage-3-probe-2")
    student, stages, recorder = converted(tmp_path)
    assert recorder.calls[0][0] == "stage-3-probe-0"
    assert [stage.layout for stage in stages] == [stage.layout for stage in whole[1]]
    ids = ids_of(2, 9)
    assert torch.equal(student(ids).logits, whole[0](ids).logits)
    with pytest.raises(ValueError, match="by another plan or of another teacher"):
        converted(tmp_path, plan=replace(PLAN, seed=1))
    with pytest.raises(ValueError, match="by another plan or of another teacher"):
        converted(tmp_path, teacher=tiny("ttttt", seed=4))
    save_decoder(convert(tiny("ttttt"), layout("mmmmt"), SHAPE), tmp_path / "stage-3")
    with pytest.raises(ValueError, match="stage 3 has the layout mmmmt, its record says tmmmm"):
        converted(tmp_path)


def test_bad_plans():
    with pytest.raises(ValueError, match="the teacher has 5 layers with attention, no more"):
        converted(plan=ConversionPlan(counts=(2, 6), steps=1, shape=SHAPE))
    with pytest.raises(ValueError, match=r"counts=\(3, 2\)"):
        ConversionPlan(counts=(3, 2), steps=1)
    with pytest.raises(ValueError, match="one number for each of counts"):
        ConversionPlan(counts=(2, 3), steps=(1,))
    with pytest.raises(ValueError, match="probe_steps=0"):
        ConversionPlan(counts=(2,), steps=1, probe_steps=0)
    assert ConversionPlan(steps=1).counts == (25, 27, 30, 34, 37, 40)
