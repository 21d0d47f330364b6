"""Tuning a pruned model: zeros stay, the loss falls, and what cannot be tuned is refused."""

import copy

import pytest
import torch
from torch import nn

from shoestring.training.masked_tuning import MaskedTuning, recovery_loss, tune_masked


class Bigrams(nn.Module):
    """A language model in two matrices: logits of the next token from the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 16)
        self.head = nn.Linear(16, 12, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(ids))


def pair() -> tuple[Bigrams, Bigrams, dict[str, torch.Tensor], torch.Tensor]:
    """A teacher, the same with half of its head gone, the mask, and text that it would write."""
    torch.manual_seed(0)
    teacher = Bigrams()
    with torch.no_grad():
        teacher.head.weight.mul_(6)
    student = copy.deepcopy(teacher)
    kept = student.head.weight.detach().abs() > student.head.weight.detach().abs().median()
    with torch.no_grad():
        student.head.weight.mul_(kept)
    ids = torch.randint(12, (64, 1))
    while ids.shape[1] < 20:
        chances = teacher(ids[:, -1]).softmax(-1)
        ids = torch.cat([ids, torch.multinomial(chances, 1)], 1)
    return student, teacher, {"head": kept}, ids


@pytest.mark.parametrize("distillation", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_the_loss_falls_zeros_stay_and_nothing_else_moves(distillation, weight_decay):
    student, teacher, masks, ids = pair()
    tuning = MaskedTuning(100, 16, 0.02, weight_decay=weight_decay, distillation=distillation)
    embedding, head = student.embed.weight.detach().clone(), student.head.weight.detach().clone()
    taught = copy.deepcopy(teacher.state_dict())
    with torch.no_grad():
        before = recovery_loss(student(ids), teacher(ids), ids, tuning)
    losses = tune_masked(student, teacher, masks, ids, tuning)
    with torch.no_grad():
        after = recovery_loss(student(ids), teacher(ids), ids, tuning)
    assert len(losses) == 100
    assert after < 0.9 * before
    assert not student.head.weight[~masks["head"]].any()
    assert (student.head.weight != head)[masks["head"]].all()
    assert torch.equal(student.embed.weight, embedding)
    assert all(torch.equal(taught[name], part) for name, part in teacher.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in student.parameters())
    assert not student.training


def test_the_same_seed_gives_the_same_weights():
    found = []
    for _ in range(2):
        student, teacher, masks, ids = pair()
        tune_masked(student, teacher, masks, ids, MaskedTuning(5, 4, 0.01, seed=3))
        found.append(student.head.weight.detach())
    assert torch.equal(*found)


def test_the_loss_is_that_of_its_definition():
    generator = torch.Generator().manual_seed(0)
    logits, taught = (torch.randn(2, 4, 5, generator=generator) for _ in range(2))
    ids = torch.randint(5, (2, 4), generator=generator)
    tuning = MaskedTuning(distillation=0.25, temperature=2.0)
    text, divergence = 0.0, 0.0
    for b in range(2):
        for t in range(3):
            text -= logits[b, t].log_softmax(-1)[ids[b, t + 1]].item() / 6
            p, q = (taught[b, t] / 2).softmax(-1), (logits[b, t] / 2).softmax(-1)
            divergence += (p * (p / q).log()).sum().item() / 6
    expected = 0.75 * text + 0.25 * 4 * divergence
    assert recovery_loss(logits, taught, ids, tuning).item() == pytest.approx(expected, rel=1e-5)


def test_bad_input():
    student, teacher, masks, ids = pair()
    with pytest.raises(ValueError, match="no module 'heads' with a weight"):
        tune_masked(student, teacher, {"heads": masks["head"]}, ids)
    with pytest.raises(ValueError, match=r"mask of 'head' is \(2, 16\), its weight \(12, 16\)"):
        tune_masked(student, teacher, {"head": masks["head"][:2]}, ids)
    with pytest.raises(ValueError, match="other than zero where its mask says so"):
        tune_masked(teacher, teacher, masks, ids)
    with pytest.raises(ValueError, match="no windows"):
        tune_masked(student, teacher, masks, ids[:0])
    with pytest.raises(ValueError, match="steps=0"):
        MaskedTuning(steps=0)
    with pytest.raises(ValueError, match=r"distillation=1.5 must lie within 0 .. 1"):
        MaskedTuning(distillation=1.5)


def test_a_stored_weight_has_no_gradient_to_tune_by():
    from shoestring.layers.sparse_linear import SparseLinear
    from shoestring.numbers.bitmap_matrix import BitmapMatrix

    student, teacher, masks, ids = pair()
    student.head = SparseLinear.of(BitmapMatrix.from_dense(student.head.weight))
    with pytest.raises(ValueError, match=r"'head' \(SparseLinear\) is packed and has no gradient"):
        tune_masked(student, teacher, masks, ids)
