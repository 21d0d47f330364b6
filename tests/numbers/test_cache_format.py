import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.numbers.cache_format import CacheFormat


@given(tokens=st.integers(0, 500), tail=st.integers(0, 100), group=st.sampled_from([8, 16, 32, 64]))
def test_the_tail_is_never_short_and_never_a_group_too_long(tokens, tail, group):
    form = CacheFormat(bits=4, group_size=group, tail_tokens=tail)
    quantised = form.quantised_tokens(tokens)
    assert quantised % group == 0
    assert min(tokens, tail) <= tokens - quantised <= form.tail_capacity


def test_a_block_costs_its_codes_and_two_half_floats_per_group():
    form = CacheFormat(bits=2, group_size=32)
    keys = 3 * 64 * (32 * 2 // 8 + 4)
    values = 3 * 32 * (64 * 2 // 8 + 2 * 4)
    assert form.block_bytes(n_kv_heads=3, head_dim=64) == keys + values


@pytest.mark.parametrize(
    ("fields", "fix"),
    [
        ({"bits": 3}, "use 8, 4 or 2"),
        ({"group_size": 12}, "multiple of 8"),
        ({"group_size": 0}, "multiple of 8"),
        ({"tail_tokens": -1}, "0 or more"),
    ],
)
def test_formats_that_do_not_exist_are_refused(fields, fix):
    with pytest.raises(ValueError, match=fix):
        CacheFormat(**fields)


def test_head_sizes_that_do_not_fit_are_named_with_what_fits():
    with pytest.raises(
        ValueError, match="80 channels, which group_size=32 does not divide; use 8 or 16 or 40 or 80"
    ):
        CacheFormat(group_size=32).block_bytes(2, 80)
    assert "no group size" in CacheFormat().why_not(20)
