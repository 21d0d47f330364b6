"""Teacher forcing of a HAMburger: packed rows against one group after another."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.tiny_hamburger import random_ids, tiny_base, tiny_hamburger

from shoestring.data.mixed_examples import TokenExample
from shoestring.training.hamburger_batch import GroupBatch, group_positions
from shoestring.training.hamburger_training import (
    HamburgerLoss,
    group_loss,
    naive_teacher_forced,
    response_logits,
    teacher_forced,
)
from shoestring.training.segmentation import Decreasing


def example(prompt, sizes, seed=0):
    return TokenExample(torch.tensor(random_ids(prompt + sum(sizes), seed)), prompt)


@settings(max_examples=8)
@given(
    texts=st.lists(
        st.tuples(st.integers(1, 5), st.lists(st.integers(1, 3), min_size=1, max_size=5)),
        min_size=1, max_size=4,
    ),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_packed_rows_equal_group_after_group(texts, seed):
    model = tiny_hamburger(seed, torch.float64, max_steps=3).requires_grad_(True)
    examples = [example(prompt, sizes, seed + i) for i, (prompt, sizes) in enumerate(texts)]
    groups = [sizes for _, sizes in texts]
    fast = teacher_forced(model, GroupBatch.of(examples, groups, 3, row_length=12))
    slow = [naive_teacher_forced(model, e, g) for e, g in zip(examples, groups, strict=True)]
    wanted = [p for p in model.parameters() if p.dim() > 1]
    grads = []
    for logits, stop in (
        (fast.logits, fast.stop),
        (torch.cat([s.logits for s in slow]), torch.cat([s.stop for s in slow])),
    ):
        torch.manual_seed(seed)
        total = (logits * torch.randn_like(logits)).sum() + (stop * torch.randn_like(stop)).sum()
        grads.append(torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True))
    torch.testing.assert_close(fast.logits, torch.cat([s.logits for s in slow]), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(fast.stop, torch.cat([s.stop for s in slow]), rtol=1e-8, atol=1e-8)
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6 * (1 + float(other.abs().max())))


def test_groups_of_one_are_the_base():
    model = tiny_hamburger()
    examples = [example(3, [1] * 6), example(2, [1] * 4, 1)]
    batch = GroupBatch.of(examples, [[1] * 6, [1] * 4], 4)
    torch.testing.assert_close(
        teacher_forced(model, batch).logits, response_logits(model.base, examples), rtol=1e-5, atol=1e-5
    )


def test_padding_contributes_no_gradient():
    model = tiny_hamburger(max_steps=4).requires_grad_(True)
    batch = GroupBatch.of([example(3, [2, 1, 3])], [[2, 1, 3]], 4)
    seen = []
    model.micro.register_forward_hook(lambda module, given, out: seen.append(out.retain_grad() or out))
    group_loss(teacher_forced(model, batch), batch).backward()
    gradient = seen[0].grad[:, len(model.want) :]
    # Groups of 2 and 3 tokens go through the micro decoder; their places behind that are padding.
    assert gradient.shape[:2] == (2, 3)
    assert gradient[0, :1].abs().sum() > 0
    assert gradient[1, :2].abs().sum() > 0
    assert gradient[0, 1:].abs().sum() == 0
    assert gradient[1, 2:].abs().sum() == 0


def test_other_tokens_behind_a_group_change_no_loss():
    model, batch = tiny_hamburger(), GroupBatch.of([example(3, [2, 1, 3])], [[2, 1, 3]], 4)
    spoiled = GroupBatch(
        batch.ids,
        batch.rows,
        torch.where(batch.tokens < 0, 7, batch.tokens),
        batch.sizes,
        batch.state,
        batch.fed,
    )
    assert torch.equal(
        group_loss(teacher_forced(model, batch), batch), group_loss(teacher_forced(model, spoiled), spoiled)
    )


def test_examples_of_a_row_do_not_see_each_other():
    model = tiny_hamburger()
    one, other = example(3, [2, 2]), example(4, [3, 1], 1)
    changed = TokenExample((one.ids + 1) % 50, one.prompt_length)
    outs = [
        teacher_forced(model, GroupBatch.of([first, other], [[2, 2], [3, 1]], 4)).logits[-4:]
        for first in (one, changed)
    ]
    assert torch.equal(*outs)


def test_a_group_stands_where_its_last_token_would():
    assert group_positions(5, [2, 1, 4]).tolist() == [6, 7, 11]
    batch = GroupBatch.of([example(5, [2, 1, 4, 1])], [[2, 1, 4, 1]], 4, row_length=10)
    assert batch.rows.pos[0].tolist() == [0, 1, 2, 3, 4, 6, 7, 11, -1, -1]
    assert batch.state.tolist() == [[0, 4], [0, 5], [0, 6], [0, 7]]
    assert batch.fed.tolist() == [[0, 5], [0, 6], [0, 7], [-1, -1]]


def test_the_loss_trains_every_part():
    model = tiny_hamburger().requires_grad_(True)
    loss = HamburgerLoss(tiny_base(3), Decreasing(99.0), teacher_weight=0.5)
    examples = [example(3, [4] * 5), example(2, [4] * 3, 1)]
    value = loss(model, examples)
    value.backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not [n for n in silent if "k_proj.bias" not in n], silent
    without = HamburgerLoss(tiny_base(3), Decreasing(99.0))(
        model, [example(3, [4] * 5), example(2, [4] * 3, 1)]
    )
    assert value > without


def test_the_distance_to_the_base_itself_is_zero_for_single_tokens():
    model = tiny_hamburger(max_steps=1)
    examples = [example(3, [1] * 6)]
    plain = HamburgerLoss(model.base)(model, examples)
    torch.testing.assert_close(HamburgerLoss(model.base, teacher_weight=9.0)(model, examples), plain)


def test_bad_batches_are_refused():
    good = example(3, [2, 2])
    with pytest.raises(ValueError, match="example 1: groups .* sum to 3"):
        GroupBatch.of([good, good], [[2, 2], [3]], 4)
    with pytest.raises(ValueError, match="example 0 has an empty prompt"):
        GroupBatch.of([TokenExample(good.ids, 0)], [[4, 3]], 4)
    with pytest.raises(ValueError, match="teacher_weight"):
        HamburgerLoss(tiny_base(), teacher_weight=-1.0)
    empty = TokenExample(good.ids[:3], 3)
    with pytest.raises(ValueError, match="none of 1 examples has a response"):
        GroupBatch.of([empty], [[]], 4)
    assert GroupBatch.of([empty, good], [[], [2, 2]], 4).skipped == 1
