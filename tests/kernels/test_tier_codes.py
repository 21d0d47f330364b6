"""Codes of tiers, compiled, are those of plain torch bit for bit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.kernels import tier_codes as module
from shoestring.kernels.tier_codes import encode_tiers, naive_encode_tiers
from shoestring.notices import record_fallbacks
from shoestring.yardstick.flops import CostCounter

LESSER = {"avx2": ("-mno-avx512f", "-O1"), "portable": ("-march=x86-64", "-O1")}


def drawn(seed, heads, tokens, dim):
    """Keys and values that lie in a longer table, some channels large in each."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.full((2, heads, tokens + 3, dim), torch.nan)
    table[:, :, :tokens] = torch.randn(2, heads, tokens, dim, generator=generator)
    table[..., ::7] += 5
    return table[0, :, :tokens], table[1, :, :tokens]


def grouped(seed, tokens, widths, share):
    """Tokens by index for each width, and perhaps some that are in none."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(tokens, generator=generator)[: max(len(widths), round(share * tokens))]
    parts = order.tensor_split(len(widths))
    return [(part.sort().values, bits) for part, bits in zip(parts, widths, strict=True)]


def flat(found):
    c, codes = found
    return [c, *(part for made in codes for part in (made.k_codes, made.k_grid, made.v_codes, made.v_grid))]


def check(k, v, groups):
    for mine, theirs in zip(
        flat(encode_tiers(k, v, groups)), flat(naive_encode_tiers(k, v, groups)), strict=True
    ):
        assert torch.equal(mine, theirs)


@given(
    heads=st.integers(1, 3),
    tokens=st.sampled_from([3, 5, 31, 70, 127, 129, 260]),
    dim=st.sampled_from([1, 3, 16, 17, 37, 64, 67, 128]),
    widths=st.lists(st.sampled_from([8, 4, 2]), min_size=1, max_size=3),
    share=st.floats(0.01, 1),
    size=st.sampled_from([1e-7, 1e-3, 1.0, 1e3]),
    seed=st.integers(0, 99),
)
def test_compiled_equals_plain_bit_for_bit(heads, tokens, dim, widths, share, size, seed):
    k, v = drawn(seed, heads, tokens, dim)
    check(size * k, size * v, grouped(seed, tokens, widths, share))


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_equal_values_and_zeros(bits):
    x = torch.full((2, 9, 5), 0.3)
    x[1] = 0
    check(x, x.clone(), [(torch.arange(9), bits)])


def test_other_types_are_widened():
    k, v = drawn(1, 2, 40, 16)
    for dtype in (torch.bfloat16, torch.float64):
        check(k.to(dtype), v.to(dtype), grouped(1, 40, [4, 2], 1))


def test_results_do_not_depend_on_the_number_of_threads():
    k, v = drawn(2, 3, 300, 24)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(flat(encode_tiers(k, v, grouped(2, 300, [4, 2], 0.9))))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("flags", LESSER.values(), ids=LESSER)
def test_every_instruction_set_gives_the_same_codes(flags, monkeypatch):
    library = module.load_library
    monkeypatch.setattr(
        module, "load_library", lambda path, extra_flags: library(path, extra_flags=extra_flags + flags)
    )
    monkeypatch.setattr(module, "_library", module._library.__wrapped__)
    for dim in (21, 64):
        check(*drawn(3, 2, 33, dim), grouped(3, 33, [8, 4, 2], 0.9))


def test_without_a_compiler_plain_torch_answers_and_says_so(monkeypatch):
    k, v = drawn(4, 2, 20, 8)
    groups = grouped(4, 20, [4], 0.6)
    expected = flat(encode_tiers(k, v, groups))
    monkeypatch.setenv("SHOESTRING_CC", "none")
    module._library.cache_clear()
    try:
        with record_fallbacks() as said:
            found = flat(encode_tiers(k, v, groups))
    finally:
        module._library.cache_clear()
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert any("plain torch instead of the compiled loop" in line for line in said)


@pytest.mark.parametrize("part", ["k", "v"])
@pytest.mark.parametrize(
    ("value", "message"), [(torch.nan, "NaN or infinite"), (torch.inf, "NaN or infinite"), (-3e38, "65504")]
)
def test_what_has_no_codes_is_refused(part, value, message):
    parts = dict(zip("kv", (x.clone() for x in drawn(5, 2, 20, 8)), strict=True))
    parts[part][1, 3, 2] = value
    with pytest.raises(ValueError, match=message):
        encode_tiers(**parts, groups=[(torch.arange(20), 4)])


@pytest.mark.parametrize("index", [torch.arange(21), torch.tensor([-1, 2]), torch.arange(0)])
def test_tokens_that_are_not_there_are_refused(index):
    with pytest.raises(IndexError, match="none of 20 tokens, or one that is not there"):
        encode_tiers(*drawn(6, 2, 20, 8), [(index, 4)])


def test_the_cost_is_stated():
    k, v = drawn(7, 2, 20, 8)
    with CostCounter() as cost:
        encode_tiers(k, v, [(torch.arange(6), 4), (torch.arange(6, 11), 2)])
    # A comparison for each value, then 3 operations for each code of a key and 4 for each of a value.
    assert cost.flops_by_operation["encode_tiers"] == 16 * 20 + 7 * 16 * 11
