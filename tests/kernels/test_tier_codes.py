"""Codes of tiers, compiled, are those of plain torch bit for bit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.kernels import tier_codes as module
from shoestring.kernels.tier_codes import (
    encode_by_channel,
    encode_by_token,
    naive_encode_by_channel,
    naive_encode_by_token,
    naive_scales_of_channels,
    scales_of_channels,
)
from shoestring.notices import record_fallbacks
from shoestring.yardstick.flops import CostCounter

LESSER = {"avx2": ("-mno-avx512f", "-O1"), "portable": ("-march=x86-64", "-O1")}


def drawn(seed, heads, tokens, dim, kept):
    """Tokens that lie in a longer table, some channels large in each, and some of them by index."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.full((heads, tokens + 3, dim), torch.nan)
    table[:, :tokens] = torch.randn(heads, tokens, dim, generator=generator)
    table[..., ::7] += 5
    return table[:, :tokens], torch.randperm(tokens, generator=generator)[:kept].sort().values


def check(x, index, bits):
    c = scales_of_channels(x)
    assert torch.equal(c, naive_scales_of_channels(x))
    found = [*encode_by_channel(x, index, bits), *encode_by_token(x, index, c, bits)]
    expected = [*naive_encode_by_channel(x, index, bits), *naive_encode_by_token(x, index, c, bits)]
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)


@given(
    heads=st.integers(1, 3),
    tokens=st.integers(1, 70),
    dim=st.sampled_from([1, 3, 16, 17, 37, 64]),
    share=st.floats(0.01, 1),
    bits=st.sampled_from([8, 4, 2]),
    size=st.sampled_from([1e-7, 1e-3, 1.0, 1e3]),
    seed=st.integers(0, 99),
)
def test_compiled_equals_plain_bit_for_bit(heads, tokens, dim, share, bits, size, seed):
    x, index = drawn(seed, heads, tokens, dim, max(1, round(share * tokens)))
    check(size * x, index, bits)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_equal_values_and_zeros(bits):
    x = torch.full((2, 9, 5), 0.3)
    x[1] = 0
    check(x, torch.arange(9), bits)


def test_other_types_are_widened():
    x, index = drawn(1, 2, 40, 16, 20)
    for dtype in (torch.bfloat16, torch.float64):
        check(x.to(dtype), index, 4)


def test_results_do_not_depend_on_the_number_of_threads():
    x, index = drawn(2, 3, 50, 24, 30)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(
                [*encode_by_channel(x, index, 4), *encode_by_token(x, index, scales_of_channels(x), 4)]
            )
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
    check(*drawn(3, 2, 33, 21, 20), 4)


def test_without_a_compiler_plain_torch_answers_and_says_so(monkeypatch):
    x, index = drawn(4, 2, 20, 8, 11)
    expected = encode_by_channel(x, index, 4)
    monkeypatch.setenv("SHOESTRING_CC", "none")
    module._library.cache_clear()
    try:
        with record_fallbacks() as said:
            found = encode_by_channel(x, index, 4)
    finally:
        module._library.cache_clear()
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert any("plain torch instead of the compiled loop" in line for line in said)


@pytest.mark.parametrize(
    ("value", "message"), [(torch.nan, "NaN or infinite"), (torch.inf, "NaN or infinite"), (-1e5, "65504")]
)
def test_what_has_no_codes_is_refused(value, message):
    x, index = drawn(5, 2, 20, 8, 20)
    x = x.clone()
    c = scales_of_channels(x)
    x[1, 3, 2] = value
    with pytest.raises(ValueError, match=message):
        encode_by_channel(x, index, 4)
    with pytest.raises(ValueError, match=message):
        encode_by_token(x, index, c * 0 + 1, 4)


def test_values_that_are_not_finite_have_no_scales():
    with pytest.raises(ValueError, match="NaN or infinite"):
        scales_of_channels(torch.tensor([[[1.0, torch.nan]]]))


def test_tokens_that_are_not_there_are_refused():
    x, _ = drawn(6, 2, 20, 8, 20)
    with pytest.raises(IndexError, match="0 to 20 of 20 tokens"):
        encode_by_channel(x, torch.arange(21), 4)


def test_the_cost_is_stated():
    x, index = drawn(7, 2, 20, 8, 6)
    with CostCounter() as cost:
        c = scales_of_channels(x)
        encode_by_channel(x, index, 4)
        encode_by_token(x, index, c, 4)
    flops = cost.flops_by_operation
    assert flops["scales_of_channels"] == 20 * 16
    assert flops["encode_by_channel"] == 3 * 6 * 16
    assert flops["encode_by_token"] == 4 * 6 * 16
