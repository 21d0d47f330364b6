"""Bits per dimension against the definition."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.yardstick.bits_per_dimension import bits_per_dimension, mean_bits


@given(
    batch=st.integers(1, 3),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    n_values=st.sampled_from([1, 2, 7]),
    seed=st.integers(0, 9),
)
def test_bits_equal_the_definition(batch, sizes, n_values, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, *sizes, n_values, generator=generator, dtype=torch.float64)
    values = torch.randint(n_values, (batch, *sizes), generator=generator)
    shares = logits.softmax(-1).gather(-1, values[..., None])
    expected = [-math.log2(sample.prod().item()) / math.prod(sizes) for sample in shares]
    torch.testing.assert_close(bits_per_dimension(logits, values), torch.tensor(expected).double())


def test_low_precision_is_summed_in_float32():
    logits = torch.zeros(1, 1000, 256, dtype=torch.bfloat16)
    bits = bits_per_dimension(logits, torch.zeros(1, 1000, dtype=torch.uint8))
    assert bits.dtype == torch.float32
    assert bits.item() == pytest.approx(8, abs=1e-4)


def test_the_interval_covers_the_mean():
    generator = torch.Generator().manual_seed(0)
    inside = 0
    for _ in range(200):
        found = mean_bits(3 + torch.randn(50, generator=generator))
        low, high = found.spread
        assert low < found.mean < high
        inside += low < 3 < high
    assert 180 <= inside <= 199


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: bits_per_dimension(torch.zeros(1, 2, 3), torch.tensor([[0, 3]])),
            "from 0 to 3.*allow 0 … 2",
        ),
        (lambda: bits_per_dimension(torch.zeros(1, 2, 3), torch.tensor([[-1, 0]])), "from -1 to 0"),
        (lambda: bits_per_dimension(torch.zeros(0, 2, 3), torch.zeros(0, 2).long()), "nothing to count"),
        (lambda: mean_bits(torch.zeros(1)), "two samples or more, not 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
