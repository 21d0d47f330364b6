"""Attention with column sums: compiled, in torch, and by its equations."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.kernels.attention_columns import attention_columns, by_samples, naive_attention_columns
from shoestring.notices import record_fallbacks
from shoestring.yardstick.flops import CostCounter


def drawn(seed, *shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, *shape, generator=generator, dtype=dtype)
    present = torch.rand(shape[:2], generator=generator) < 0.7
    present[:, seed % shape[1]] = True
    return q, k, v, present


shapes = {
    "batch": st.integers(1, 3), "n": st.sampled_from([1, 2, 7, 47, 48, 49, 101]), "heads": st.integers(1, 3),
    "dim": st.sampled_from([1, 3, 8, 17, 32]), "masked": st.booleans(), "seed": st.integers(0, 99),
}  # fmt: skip


@given(**shapes, inner=st.booleans())
def test_the_compiled_loop_is_the_equation(batch, n, heads, dim, masked, seed, inner):
    q, k, v, present = drawn(seed, batch, n, heads, dim)
    if inner:  # columns of a wider row, as a joint projection gives them
        q = torch.cat([q, k], 2)[:, :, :heads]
    shown = present if masked else None
    found = attention_columns(3 * q, k, v, 0.4, shown)
    expected = naive_attention_columns(3 * q.double(), k.double(), v.double(), 0.4, shown)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-5)


@given(**shapes)
def test_in_torch_values_and_gradients_are_those_of_the_equation(batch, n, heads, dim, masked, seed):
    q, k, v, present = drawn(seed, batch, min(n, 13), heads, dim, dtype=torch.float64)
    shown = present if masked else None
    inputs = [t.requires_grad_() for t in (q.clone(), k.clone(), v.clone())]
    grads = []
    for way in (by_samples, naive_attention_columns):
        out, sums = way(*inputs, 0.4, shown)
        weight = torch.arange(out.numel(), dtype=torch.float64).reshape(out.shape).cos()
        grads.append((out, sums, *torch.autograd.grad((out * weight).sum() + (sums**2).sum(), inputs)))
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)


def test_results_do_not_depend_on_threads():
    q, k, v, present = drawn(1, 3, 101, 3, 17)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(attention_columns(q, k, v, 0.3, present))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_every_row_gives_one():
    q, k, v, _ = drawn(0, 2, 60, 3, 8)
    _, sums = attention_columns(q, k, v, 0.3)
    torch.testing.assert_close(sums.sum(1), torch.full((2,), 180.0))


@pytest.mark.parametrize("why", ["float64", "gradient"])
def test_torch_answers_where_the_loop_cannot_and_says_so(why):
    q, k, v, present = drawn(2, 2, 9, 2, 4)
    if why == "float64":
        q, k, v = q.double(), k.double(), v.double()
    else:
        q = q.requires_grad_()
    with record_fallbacks() as said:
        found = attention_columns(q, k, v, 0.3, present)
    assert why in said[0]
    assert all(torch.equal(a, b) for a, b in zip(found, by_samples(q, k, v, 0.3, present), strict=True))


def test_it_states_its_cost():
    q, k, v, _ = drawn(2, 2, 9, 3, 4)
    with CostCounter() as cost:
        attention_columns(q, k, v, 0.3)
    assert cost.flops == 2 * 2 * (2 * 3 * 9 * 9 * 4)
    assert cost.bytes == 4 * (4 * 2 * 9 * 3 * 4 + 2 * 9)


def test_shapes_that_differ_are_refused():
    q, k, v, _ = drawn(0, 1, 4, 1, 2)
    with pytest.raises(ValueError, match="q, k and v are"):
        attention_columns(q, k[:, :3], v, 1.0)


@pytest.mark.parametrize(
    ("present", "message"),
    [
        (torch.zeros(1, 4, dtype=torch.bool), "no token at all"),
        (torch.ones(1, 5, dtype=torch.bool), "present"),
    ],
)
def test_bad_masks_are_refused(present, message):
    q, k, v, _ = drawn(0, 1, 4, 1, 2)
    with pytest.raises(ValueError, match=message):
        attention_columns(q, k, v, 1.0, present)
