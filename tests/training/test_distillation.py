"""Distillation: with γ = 0 the plain loss, else harder positions count more; only latent layers move."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.models.families import ids_of, make
from tests.models.hybrids import tiny
from torch import nn
from torch.nn import functional as F

from shoestring.layers import LatentDualBinaryLinear
from shoestring.models.decoder import Decoder
from shoestring.numbers.dual_binary import DualBinary
from shoestring.training.distillation import DeviationAware, Distillation, Indicator, distil, entropy
from shoestring.training.model_text import GREEDY_TOKENS, model_text


def logits(seed, n=12, vocabulary=17):
    return 2 * torch.randn(n, vocabulary, generator=torch.Generator().manual_seed(seed))


@given(seed=st.integers(0, 50))
def test_without_gamma_the_gradient_is_that_of_the_divergence(seed):
    student, teacher = logits(seed).requires_grad_(), logits(seed + 1)
    DeviationAware(gamma=0)(student, teacher).backward()
    other = student.detach().clone().requires_grad_()
    F.kl_div(
        other.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="batchmean"
    ).backward()
    torch.testing.assert_close(student.grad, other.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("indicator", list(Indicator))
@given(seed=st.integers(0, 30), at=st.integers(0, 11))
def test_weights_average_one_and_grow_with_doubt(indicator, seed, at):
    loss = DeviationAware(gamma=0.7, indicator=indicator)
    student, teacher = logits(seed), logits(seed + 1)
    assert loss.weights(student, teacher).mean() == pytest.approx(1, rel=1e-5)
    found = []
    for scale in (2.0, 1.0, 0.5, 0.1, 0.0):
        s, t = student.clone(), teacher.clone()
        s[at] *= scale
        t[at] *= scale
        found.append(loss.weights(s, t)[at].item())
    assert found == sorted(found)
    assert found[-1] > found[0]


def test_entropy_and_weights_by_the_definition():
    student, teacher = logits(0), logits(1)
    p = teacher.double().softmax(-1)
    torch.testing.assert_close(entropy(teacher).double(), -(p * p.log()).sum(-1), rtol=1e-5, atol=1e-6)
    both = (entropy(teacher) + entropy(student)) / (2 * torch.log(torch.tensor(17.0)))
    expected = both.sqrt() / both.sqrt().mean()
    torch.testing.assert_close(DeviationAware(gamma=0.5).weights(student, teacher), expected)


def test_no_gradient_through_weights_or_teacher():
    student, teacher = logits(0).requires_grad_(), logits(1).requires_grad_()
    loss = DeviationAware(gamma=1.0)
    loss(student, teacher).backward()
    assert teacher.grad is None
    weights = loss.weights(student, teacher)
    expected = weights[:, None] * (student.softmax(-1) - teacher.softmax(-1)) / len(student)
    torch.testing.assert_close(student.grad, expected.detach(), rtol=1e-4, atol=1e-6)


def test_hard_labels_are_added():
    student, teacher = logits(0), logits(1)
    labels = torch.arange(12) % 17
    labels[-1] = -100
    both = DeviationAware(hard=0.1)(student, teacher, labels)
    alone = DeviationAware()(student, teacher)
    assert both.item() == pytest.approx((alone + 0.1 * F.cross_entropy(student, labels)).item(), rel=1e-5)


def test_bad_input():
    loss = DeviationAware()
    with pytest.raises(ValueError, match="share a vocabulary"):
        loss(logits(0), logits(0, vocabulary=16))
    with pytest.raises(ValueError, match="give both the same tokens"):
        loss(logits(0), logits(0, n=11))
    with pytest.raises(ValueError, match="gamma=-1"):
        DeviationAware(gamma=-1)
    with pytest.raises(ValueError, match="needs labels"):
        DeviationAware(hard=0.1)(logits(0), logits(1))


def student_of(teacher):
    student = copy.deepcopy(teacher)
    form = DualBinary(16)
    for layer in student.model.layers:
        for block in (layer.self_attn, layer.mlp):
            for name, module in list(block.named_children()):
                if isinstance(module, nn.Linear):
                    levels = form.fit(module.weight.detach())
                    setattr(block, name, LatentDualBinaryLinear(form, module.weight.detach(), levels))
    return student


def test_distilling_brings_the_student_nearer_on_text_it_did_not_see():
    teacher = make("llama", scale=2.0)
    student = student_of(teacher)
    held_out = ids_of(4, 32, seed=99)

    def distance(model):
        with torch.no_grad():
            p, q = teacher(held_out).logits.log_softmax(-1), model(held_out).logits.log_softmax(-1)
        return F.kl_div(q.flatten(0, 1), p.flatten(0, 1), log_target=True, reduction="batchmean").item()

    before = distance(student)
    embedding = student.model.embed_tokens.weight.clone()
    seen = []
    settings = Distillation(steps=40, latent_rate=1e-3)
    batches = [ids_of(4, 32, seed=i) for i in range(8)]
    distil(student, teacher, batches, settings, progress=lambda *a: seen.append(a))
    assert distance(student) < 0.7 * before
    assert torch.equal(student.model.embed_tokens.weight, embedding)
    assert [a[:2] for a in seen] == [(i + 1, 40) for i in range(40)]
    assert not any(p.requires_grad for p in student.parameters())


def test_packed_students_and_empty_text_are_refused():
    teacher = make("llama")
    student = student_of(teacher)
    with pytest.raises(ValueError, match="no batch"):
        distil(student, teacher, [], Distillation())
    with pytest.raises(ValueError, match="no latent layer"):
        distil(teacher, teacher, [ids_of(1, 8)], Distillation())
    for layer in student.model.layers:
        for block in (layer.self_attn, layer.mlp):
            for name, module in list(block.named_children()):
                if isinstance(module, LatentDualBinaryLinear):
                    setattr(block, name, module.pack())
    with pytest.raises(ValueError, match="packed for inference"):
        distil(student, teacher, [ids_of(1, 8)], Distillation())


def test_a_model_writes_its_own_text():
    model = Decoder.from_transformers(make("llama"))
    ids = model_text(model, 5, 20, generator=torch.Generator().manual_seed(0))
    assert ids.shape == (5, 20)
    first = model(torch.tensor([[1]])).logits[0, -1]
    assert torch.equal(ids[:, 0], first.topk(5).indices)
    for step in range(1, GREEDY_TOKENS + 1):  # the likeliest, and only these
        assert torch.equal(ids[:, step], model(ids[:, :step]).logits[:, -1].argmax(-1))
    again = model_text(model, 5, 20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ids, again)
    assert not torch.equal(ids, model_text(model, 5, 20, generator=torch.Generator().manual_seed(1)))
    with pytest.raises(ValueError, match="97 first tokens"):
        model_text(model, 98, 4, generator=torch.Generator())


def test_a_hybrid_writes_its_own_text():
    model = tiny("tmmt", dtype=torch.float64)
    ids = model_text(model, 3, 12, generator=torch.Generator().manual_seed(0))
    for step in range(1, GREEDY_TOKENS + 1):
        assert torch.equal(ids[:, step], model(ids[:, :step]).logits[:, -1].argmax(-1))
