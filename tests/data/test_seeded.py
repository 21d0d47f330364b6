import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.data.seeded import check_seed, distinct, numpy_generator, torch_generator


@pytest.mark.parametrize("make", [torch_generator, numpy_generator])
def test_each_tuple_of_numbers_is_a_stream_of_its_own(make):
    def first(*numbers):
        generator = make(*numbers)
        if make is numpy_generator:
            return generator.random()
        return torch.rand(1, dtype=torch.float64, generator=generator).item()

    assert first(1, 2) == first(1, 2)
    streams = [(1, 2), (2, 1), (1,), (1, 0), (1, 2, 0), (0, 1, 2)]
    assert len({first(*numbers) for numbers in streams}) == len(streams)


@given(rows=st.integers(1, 5), below=st.integers(1, 20), data=st.data())
def test_distinct_numbers(rows, below, data):
    count = data.draw(st.integers(0, below))
    numbers = distinct(rows, count, below, torch_generator(0))
    assert numbers.shape == (rows, count)
    for row in numbers.tolist():
        assert len(set(row)) == count
        assert all(0 <= number < below for number in row)


def test_checks_name_the_argument():
    with pytest.raises(ValueError, match="seed=-1"):
        check_seed(-1, 1)
    with pytest.raises(ValueError, match="batch_size=0"):
        check_seed(0, 0)
