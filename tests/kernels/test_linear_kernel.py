"""Kernels in a row, copies of them, and the one that does nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.kernels.dense_linear import dense_linear
from shoestring.kernels.linear_kernel import run_in_turn, zero_kernel
from shoestring.kernels.row_gather import RowWeights


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 3), st.booleans())
def test_a_copy_gives_the_same_from_other_memory(inputs, outputs, tokens, with_bias):
    generator = torch.Generator().manual_seed(inputs * 41 + outputs)
    weight = torch.randn(outputs, inputs, generator=generator)
    bias = torch.randn(outputs, generator=generator) if with_bias else None
    kernel = dense_linear(weight, bias)
    copied, x = kernel.copy(), torch.randn(tokens, inputs, generator=generator)
    before = kernel(x)
    assert copied.nbytes == kernel.nbytes
    weight.zero_()
    assert torch.equal(copied(x), before)
    torch.testing.assert_close(kernel(x), torch.zeros(tokens, outputs) + (0 if bias is None else bias))


@given(st.integers(1, 40), st.integers(1, 70), st.integers(1, 9))
def test_the_zero_kernel_gives_zeros(inputs, outputs, tokens):
    kernel = zero_kernel(inputs, outputs)
    assert torch.equal(kernel(torch.randn(tokens, inputs)), torch.zeros(tokens, outputs))
    assert kernel.nbytes == 0


def test_kernels_in_turn_all_run():
    """Row-sparse kernels count what they read: every one of them was called."""
    counts = [torch.zeros(2, dtype=torch.int64) for _ in range(3)]
    kernels = [RowWeights(torch.randn(8, 5), -1.0, counts=c).kernel for c in counts]
    call = run_in_turn(kernels, torch.randn(1, 8))
    call()
    call()
    assert [c.tolist() for c in counts] == [[16, 2]] * 3


def test_kernels_in_turn_have_one_shape():
    kernels = [zero_kernel(4, 5), zero_kernel(4, 6)]
    with pytest.raises(ValueError, match=r"layers of \[\(4, 5\), \(4, 6\)\] on 4 inputs; give layers of one"):
        run_in_turn(kernels, torch.zeros(1, 4))
    with pytest.raises(ValueError, match="give layers of one shape"):
        run_in_turn([], torch.zeros(1, 4))
    with pytest.raises(ValueError, match="on 3 inputs"):
        run_in_turn(kernels[:1], torch.zeros(1, 3))
