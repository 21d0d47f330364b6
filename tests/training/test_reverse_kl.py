"""Divergences of a student from its teacher: values, closed-form gradients, chunks, whole runs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from shoestring.training.logit_distillation import distil_logits
from shoestring.training.plan import TrainingPlan
from shoestring.training.reverse_kl import (
    forward_kl,
    head_divergence,
    naive_forward_kl,
    naive_reverse_kl,
    reverse_kl,
)

from ..models.hybrids import ids_of, tiny

PAIRS = [(reverse_kl, naive_reverse_kl), (forward_kl, naive_forward_kl)]


def logits(seed, n=7, vocabulary=13, dtype=torch.float64):
    return 3 * torch.randn(n, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("pair", PAIRS)
@given(n=st.integers(1, 20), vocabulary=st.integers(1, 40), chunk=st.integers(1, 25))
def test_value_and_gradient_are_those_of_the_definition(pair, n, vocabulary, chunk):
    fast, naive = pair
    student, teacher = logits(n, n, vocabulary).requires_grad_(), logits(n + 1, n, vocabulary)
    found, wanted = fast(student, teacher, chunk=chunk), naive(student, teacher)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    mine, theirs = (torch.autograd.grad(2.5 * value, student)[0] for value in (found, wanted))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


def test_the_value_is_that_of_torch():
    student, teacher = logits(0), logits(1)
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    summed = F.kl_div(log_p, log_q, log_target=True, reduction="sum")
    torch.testing.assert_close(len(student) * reverse_kl(student, teacher), summed)
    summed = F.kl_div(log_q, log_p, log_target=True, reduction="sum")
    torch.testing.assert_close(len(student) * forward_kl(student, teacher), summed)


@pytest.mark.parametrize("divergence", [reverse_kl, forward_kl])
def test_nothing_to_learn_from_oneself(divergence):
    student = logits(3).requires_grad_()
    loss = divergence(student, student.detach().clone())
    assert float(loss.detach()) == pytest.approx(0, abs=1e-12)
    assert float(torch.autograd.grad(loss, student)[0].abs().max()) < 1e-12


def test_the_directions_differ_on_two_modes():
    """A student of one mode: forward wants both covered, reverse wants it within one."""
    place = torch.arange(41.0, dtype=torch.float64)
    teacher = torch.logaddexp(-((place - 10) ** 2) / 8, -((place - 30) ** 2) / 8)[None]

    def one_mode(centre, width):
        return (-((place - centre) ** 2) / (2 * width**2))[None]

    within, across = one_mode(10, 2), one_mode(20, 10)
    assert reverse_kl(within, teacher) < reverse_kl(across, teacher)
    assert forward_kl(within, teacher) > forward_kl(across, teacher)


def test_only_present_tokens_count_and_impossible_ones_add_nothing():
    student, teacher = logits(0).unflatten(0, (1, 7)).requires_grad_(), logits(1).unflatten(0, (1, 7))
    present = torch.tensor([[True, False, True, True, False, False, True]])
    loss = reverse_kl(student, teacher, present)
    torch.testing.assert_close(loss, reverse_kl(student[present], teacher[present]))
    assert not torch.autograd.grad(loss, student)[0][~present].any()
    masked = [part.detach().clone() for part in (student, teacher)]
    for part in masked:
        part[..., 3:] = -torch.inf
    expected = reverse_kl(student[..., :3].detach(), teacher[..., :3])
    torch.testing.assert_close(reverse_kl(*masked), expected)


def test_half_precision_is_computed_in_float32():
    student, teacher = (logits(i, dtype=torch.bfloat16).requires_grad_() for i in (0, 1))
    loss = reverse_kl(student, teacher)
    assert loss.dtype == torch.float32
    grad = torch.autograd.grad(loss, student)[0]
    assert grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss, reverse_kl(student.float(), teacher.float()))


@pytest.mark.parametrize("divergence", [reverse_kl, forward_kl])
@settings(max_examples=6)
@given(n=st.integers(1, 9), chunk=st.integers(1, 12))
def test_heads_in_chunks(divergence, n, chunk):
    torch.manual_seed(n)
    heads = [nn.Linear(5, 11).double() for _ in range(2)]
    states = [torch.randn(2, n, 5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    whole = divergence(heads[0](states[0]), heads[1](states[1]))
    found = head_divergence(divergence, (states[0], heads[0]), (states[1], heads[1]), chunk=chunk)
    torch.testing.assert_close(found, whole)
    trained = [states[0], *heads[0].parameters()]
    for mine, theirs in zip(
        torch.autograd.grad(found, trained), torch.autograd.grad(whole, trained), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_bad_input():
    with pytest.raises(ValueError, match="the student predicts 13 tokens, the teacher 12"):
        reverse_kl(logits(0), logits(1)[:, :12])
    with pytest.raises(ValueError, match="give both the same tokens"):
        reverse_kl(logits(0), logits(1)[:5])
    with pytest.raises(ValueError, match="no token to compare"):
        reverse_kl(logits(0), logits(1), torch.zeros(7, dtype=torch.bool))
    with pytest.raises(ValueError, match="chunk=0"):
        forward_kl(logits(0), logits(1), chunk=0)
    head = nn.Linear(5, 11)
    with pytest.raises(ValueError, match="has 3 tokens, the teacher 2"):
        head_divergence(reverse_kl, (torch.ones(3, 5), head), (torch.ones(2, 5), head))


def test_a_run_trains_all_of_the_student_and_nothing_of_the_teacher(tmp_path):
    teacher, student = tiny("tt"), tiny("tm", seed=1)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    kept = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    plan = TrainingPlan(12, 3e-3, schedule="constant")
    record = distil_logits(student, teacher, lambda step: ids_of(4, 12, seed=step % 2), plan, folder=tmp_path)
    assert record.losses[-1] < 0.8 * record.losses[0]
    assert all(torch.equal(tensor, kept[name]) for name, tensor in teacher.state_dict().items())
    moved = {name for name, tensor in student.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == before.keys()
    assert not any(parameter.requires_grad for parameter in student.parameters())
    with pytest.raises(ValueError, match="the student predicts 61 tokens, the teacher 70"):
        distil_logits(student, tiny("tt", vocab_size=70), lambda step: ids_of(1, 3), plan)
