"""Three forms of a linear recurrence against its equation: values, gradients, states, directions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.kernels.linear_scan import (
    associative_scan,
    chunked_scan,
    linear_scan,
    naive_linear_scan,
    sequential_scan,
)

FORMS = {
    "chosen": linear_scan,
    "sequential": sequential_scan,
    "associative": associative_scan,
    "chunked": chunked_scan,
}


def problem(batch, seq, dims, decay_dims, dtype, seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    a = draw(batch, seq, *decay_dims)
    a = a / (a.abs().amax() + 0.2)
    return a.requires_grad_(), draw(batch, seq, *dims).requires_grad_(), draw(batch, *dims).requires_grad_()


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@given(
    batch=st.integers(1, 3),
    seq=st.sampled_from([1, 2, 3, 7, 31, 32, 33, 64, 97]),
    dims=st.sampled_from([((), ()), ((3,), (3,)), ((5,), (1,)), ((2, 33), (2, 1)), ((2, 3), (1, 3))]),
    dtype=st.sampled_from([torch.float64, torch.complex128]),
    reverse=st.booleans(),
    start=st.booleans(),
    seed=st.integers(0, 99),
)
def test_forms_follow_the_equation_with_their_gradients(form, batch, seq, dims, dtype, reverse, start, seed):
    a, b, initial = problem(batch, seq, *dims, dtype, seed)
    inputs = (a, b, initial) if start else (a, b)
    found = form(*inputs, reverse=reverse)
    right = naive_linear_scan(*inputs, reverse=reverse)
    for mine, theirs in zip(found, right, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    weights = [torch.randn_like(h) for h in right]
    grads = [
        torch.autograd.grad(sum((w * h).real.sum() for w, h in zip(weights, out, strict=True)), inputs)
        for out in (found, right)
    ]
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("chunk", [1, 2, 5, 16, 64])
def test_the_chunk_changes_nothing(chunk):
    a, b, initial = problem(2, 50, (4, 3), (4, 1), torch.float64, 0)
    h, last = chunked_scan(a, b, initial, chunk=chunk)
    right, right_last = naive_linear_scan(a, b, initial)
    torch.testing.assert_close(h, right)
    torch.testing.assert_close(last, right_last)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_gradcheck(form):
    torch.manual_seed(0)
    a, b, initial = problem(1, 9, (2,), (2,), torch.complex128, 1)
    assert torch.autograd.gradcheck(form, (a, b, initial))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_decays_of_zero_and_long_decay(form):
    """A division by products of decays, or their logarithm, would give what is not a number here."""
    a = torch.full((1, 3000, 1), 1e-3)
    a[:, 100] = 0
    h, _ = form(a, torch.ones(1, 3000, 1))
    assert h.isfinite().all()
    assert h[0, 100].item() == 1
    torch.testing.assert_close(h[0, -1], torch.tensor([1 / (1 - 1e-3)]))


def test_pieces_make_the_whole():
    a, b, initial = problem(2, 40, (3,), (3,), torch.float64, 2)
    whole, last = linear_scan(a, b, initial)
    first, state = linear_scan(a[:, :17], b[:, :17], initial)
    second, end = linear_scan(a[:, 17:], b[:, 17:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(end, last)


def test_bad_input():
    b = torch.zeros(2, 5, 3)
    with pytest.raises(ValueError, match="seq of at least 1"):
        linear_scan(b[:, :0], b[:, :0])
    with pytest.raises(ValueError, match=r"a is \(2, 5, 2\), which does not broadcast"):
        linear_scan(b[..., :2], b)
    with pytest.raises(ValueError, match=r"initial is \(2, 2\); a state here is \(2, 3\)"):
        linear_scan(b, b, b[:, 0, :2])
    with pytest.raises(TypeError, match="a is torch.float64, b is torch.float32"):
        linear_scan(b.double(), b)
    with pytest.raises(ValueError, match="chunk=0 must be at least 1"):
        chunked_scan(b, b, chunk=0)
