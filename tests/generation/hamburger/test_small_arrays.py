"""Merging and stopping in numpy against the modules."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.generation.hamburger.small_arrays import ArrayMerge, ArrayStop
from shoestring.models.hamburger import MergeEmbedder, naive_merge, stop_head


@given(size=st.integers(2, 5), hidden=st.sampled_from([2, 6, 16, 38]), seed=st.integers(0, 99))
def test_a_group_is_merged_as_by_the_module(size, hidden, seed):
    torch.manual_seed(seed)
    module, x = MergeEmbedder(hidden, 5, hidden // 2), torch.randn(size, hidden)
    found = torch.from_numpy(ArrayMerge(module)(x.numpy()))
    torch.testing.assert_close(found, naive_merge(module, x), rtol=1e-4, atol=1e-5)


@given(hidden=st.integers(1, 17), seed=st.integers(0, 99), scale=st.sampled_from([1.0, 100.0]))
def test_the_stop_head_is_the_module_behind_its_first_map(hidden, seed, scale):
    torch.manual_seed(seed)
    module, x = stop_head(hidden), scale * torch.randn(hidden)
    expected = float(module[1:](x))
    assert ArrayStop(module)(x.detach().numpy()) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_not_a_number_is_refused():
    with pytest.raises(ValueError, match="gives NaN"):
        ArrayStop(stop_head(3))(torch.full((3,), torch.nan).numpy())
