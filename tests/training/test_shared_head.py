"""The divergence through a shared head: its value and gradient are those of the definition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.training import shared_head
from shoestring.training.reverse_kl import naive_forward_kl
from shoestring.training.shared_head import naive_shared_head_kl, shared_head_kl


@given(
    n=st.sampled_from([1, 2, 7, 15, 16, 17, 33]),
    hidden=st.sampled_from([1, 3, 8]),
    vocab=st.sampled_from([2, 5, 31]),
    seed=st.integers(0, 10**6),
)
def test_it_is_the_definition(n, hidden, vocab, seed):
    generator = torch.Generator().manual_seed(seed)
    x, y, head = (
        3 * torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((n, hidden), (n, hidden), (vocab, hidden))
    )
    x.requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_head, "CHUNK", 7)
        patch.setattr(shared_head, "ROWS", 3)
        found = shared_head_kl(x, y, head)
    expected = naive_shared_head_kl(x, y, head)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(expected, naive_forward_kl(x @ head.T, y @ head.T))
    (one,), (other,) = (torch.autograd.grad(2.5 * loss, x) for loss in (found, expected))
    torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_a_head_in_bfloat16_serves_states_in_float32():
    generator = torch.Generator().manual_seed(0)
    x, y, head = (torch.randn(shape, generator=generator) for shape in ((2, 20, 8), (2, 20, 8), (31, 8)))
    x.requires_grad_()
    found, expected = shared_head_kl(x, y, head.bfloat16()), shared_head_kl(x, y, head)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
    (one,), (other,) = (torch.autograd.grad(loss, x) for loss in (found, expected))
    assert one.dtype == torch.float32
    assert float((one - other).norm() / other.norm()) < 0.02


@pytest.mark.parametrize("shape", [(3, 8), (4, 7)])
def test_states_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match=r"the student has states \(4, 8\), the teacher"):
        shared_head_kl(torch.zeros(4, 8), torch.zeros(shape), torch.zeros(5, 8))
    with pytest.raises(ValueError, match="one or more"):
        shared_head_kl(torch.zeros(0, 8), torch.zeros(0, 8), torch.zeros(5, 8))
