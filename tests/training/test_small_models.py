import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from shoestring.models.conv_nets import PlainConvNet
from shoestring.training.byte_language_model import ByteText, build_byte_model, save_byte_model
from shoestring.training.small_models import find_small_model, seconds_of_a_step, train_small_model

pytest.importorskip("sklearn")


def short(name, steps):
    model = find_small_model(name)
    plan = dataclasses.replace(model.plan, steps=steps, warmup_steps=0, evaluate_every=steps)
    return dataclasses.replace(model, plan=plan)


def test_the_digits_are_learned_and_kept(tmp_path):
    chosen = short("digits-classifier", 60)
    record = train_small_model(chosen, chosen.prepare(3), tmp_path, seed=3)
    assert record.evaluations[-1].value < 0.3
    job = chosen.prepare(3)
    fresh = PlainConvNet(8)
    fresh.load_state_dict(load_file(tmp_path / "model" / "model.safetensors"))
    assert job.evaluate(fresh.eval()) == record.evaluations[-1].value
    again = train_small_model(chosen, job, tmp_path, seed=3)
    assert again.resumed_from == 60
    assert again.losses == record.losses


def test_the_seed_decides_the_first_weights():
    one, same, other = (find_small_model("digits-classifier").prepare(seed).model for seed in (1, 1, 2))
    assert torch.equal(one.head[0].weight, same.head[0].weight)
    assert not torch.equal(one.head[0].weight, other.head[0].weight)


def test_a_step_is_timed_without_touching_the_model():
    chosen = find_small_model("digits-classifier")
    job = chosen.prepare(0)
    before = torch.get_rng_state()
    assert seconds_of_a_step(job, chosen.plan) > 0
    assert all(parameter.grad is None for parameter in job.model.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_the_byte_model_learns_and_its_folder_is_readable(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, text = build_byte_model(0), ByteText.of("pydoc", 0)
    first = text.loss(model, text.batches(0))
    assert first.item() == pytest.approx(torch.log(torch.tensor(257.0)).item(), abs=0.2)
    save_byte_model(model, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    sample = "Größe: 3 × 4\n"
    assert tokenizer.encode(sample) == list(sample.encode("utf-8"))
    assert tokenizer.decode(list(sample.encode("utf-8"))) == sample
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.tensor([list(b"The import statement")])
    assert torch.equal(loaded(ids).logits, model.eval()(ids).logits)


def test_held_out_bytes_are_none_of_those_trained_on():
    text = ByteText.of("pydoc", 0)
    train = bytes(text.batches.ids.tolist())
    assert bytes(text.held_out[1000:1400].tolist()) not in train


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="'gpt' is not known; use digits-classifier, fashion-classifier"):
        find_small_model("gpt")
