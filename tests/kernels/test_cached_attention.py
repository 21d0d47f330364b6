"""Attention over a cache against its definition: all kinds of storage, few tokens and many, every ISA."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.kernels import cached_attention as module
from shoestring.kernels.cached_attention import (
    CachedAttention,
    StoredRows,
    cached_attention,
    empty_rows,
    naive_cached_attention,
    store_rows,
)
from shoestring.numbers.token_cache_format import encode_rows
from shoestring.yardstick.flops import CostCounter

WIDTHS = (16, 8, 4, 2)
PLAIN = (torch.float32, torch.bfloat16, torch.float16)
# Optimised less: these builds are for one test, which is not about time.
LESSER = {"avx2": ("-mno-avx512f", "-O1"), "portable": ("-march=x86-64", "-O1")}


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stored(kind, kv_heads, capacity, dim, seed):
    """Random rows: numbers of a type, or codes of a width."""
    x = noise(kv_heads, capacity, dim, seed=seed)
    if isinstance(kind, torch.dtype):
        return StoredRows(x.to(kind), dim)
    rows = empty_rows(kv_heads, capacity, dim, kind)
    # Like keys of a trained model: some channels are large in every token.
    x[..., ::7] = 4 + x[..., ::7]
    store_rows(rows, x, 0)
    return rows


def check(q, keys, values, start, window=None):
    scale = 1.5 * q.shape[2] ** -0.5
    expected = naive_cached_attention(q, keys, values, start, scale, window)
    found = cached_attention(q, keys, values, start, scale, window)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=3e-5)
    return found


tokens_and_starts = st.one_of(
    st.tuples(st.integers(1, 9), st.integers(0, 300)),
    st.tuples(st.integers(1, 2), st.integers(1000, 2600)),
    st.tuples(st.integers(9, 70), st.integers(0, 150)),
)


@given(
    kind=st.sampled_from(PLAIN),
    dim=st.integers(1, 70),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 9),
    span=tokens_and_starts,
    window=st.one_of(st.none(), st.integers(1, 200)),
    seed=st.integers(0, 99),
)
def test_numbers_of_every_type_in_heads_of_every_size(kind, dim, kv_heads, group, span, window, seed):
    tokens, start = span
    keys, values = (stored(kind, kv_heads, start + tokens + 3, dim, seed + i) for i in (1, 2))
    check(noise(tokens, kv_heads * group, dim, seed=seed), keys, values, start, window)


@given(
    kind=st.sampled_from([*PLAIN, 8, 4, 2]),
    dim=st.sampled_from([16, 48, 64, 128]),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 9),
    tokens=st.one_of(st.integers(9, 70), st.integers(200, 260)),
    start=st.integers(0, 150),
    window=st.one_of(st.none(), st.integers(1, 200)),
    seed=st.integers(0, 99),
)
def test_rounded_prompts_are_as_near_as_bfloat16_is(kind, dim, kv_heads, group, tokens, start, window, seed):
    if isinstance(kind, int):
        dim = 64 if dim < 64 else dim
    keys, values = (stored(kind, kv_heads, start + tokens + 3, dim, seed + i) for i in (1, 2))
    q = noise(tokens, kv_heads * group, dim, seed=seed)
    scale = dim**-0.5
    expected = naive_cached_attention(q, keys, values, start, scale, window)
    found = cached_attention(q, keys, values, start, scale, window, rounded=True)
    # Of q, k, the weights and v each to half a unit in the eighth bit; scores are sums of dim products.
    spread = values.numbers()[:, : start + tokens].abs().max()
    score = 2**-7 * scale * (q.abs().sum(-1).max() * keys.numbers()[:, : start + tokens].abs().max())
    assert (found - expected).abs().max() <= (2 * score + 2**-7) * spread
    together = (found - expected).norm() / expected.norm()
    assert together <= 0.02
    one = cached_attention(q, keys, values, start, scale, window, threads=1, rounded=True)
    assert torch.equal(found, one)


def test_a_rounded_prompt_does_not_look_behind_what_is_cached():
    keys, values = (stored(torch.float32, 2, 300, 64, seed) for seed in (1, 2))
    q = noise(203, 4, 64)
    expected = cached_attention(q, keys, values, 7, 0.125, rounded=True)
    for rows in (keys, values):
        rows.rows[:, 210:] = torch.nan
    assert torch.equal(cached_attention(q, keys, values, 7, 0.125, rounded=True), expected)


@given(
    widths=st.sampled_from(list(itertools.product(WIDTHS, WIDTHS))),
    dim=st.sampled_from([64, 128, 192]),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 5),
    span=tokens_and_starts,
    window=st.one_of(st.none(), st.integers(1, 200)),
    seed=st.integers(0, 99),
)
def test_codes_of_every_pair_of_widths(widths, dim, kv_heads, group, span, window, seed):
    tokens, start = span
    keys, values = (
        stored(bits, kv_heads, start + tokens + 3, dim, seed + i) for i, bits in enumerate(widths)
    )
    check(noise(tokens, kv_heads * group, dim, seed=seed), keys, values, start, window)


@pytest.mark.parametrize("dim", [16, 48, 80])
def test_codes_of_8_bits_in_heads_of_runs_of_16(dim):
    keys, values = (stored(8, 2, 200, dim, seed) for seed in (1, 2))
    check(noise(5, 6, dim), keys, values, 190)
    check(noise(40, 6, dim), keys, values, 150)


@pytest.mark.parametrize("widths", [(8, 8), (8, 4), (4, 2), (16, 16)])
def test_equal_to_torch_on_what_the_codes_stand_for(widths):
    keys, values = (stored(bits, 3, 150, 64, seed) for seed, bits in enumerate(widths))
    for tokens in (1, 7, 150):
        q, start = noise(tokens, 9, 64, seed=3), 150 - tokens
        seen = torch.ones(tokens, 150, dtype=torch.bool).tril(start)
        expected = torch.nn.functional.scaled_dot_product_attention(
            q.transpose(0, 1), keys.numbers(), values.numbers(), seen, enable_gqa=True
        )
        found = cached_attention(q, keys, values, start, 64**-0.5)
        torch.testing.assert_close(found, expected.transpose(0, 1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_scores_are_those_of_unordered_channels(bits):
    """With one slot far above the others, out is its value: which slot wins shows every score."""
    keys, values = stored(bits, 1, 64, 128, 1), stored(torch.float32, 1, 64, 128, 2)
    for slot in range(0, 64, 9):
        q = keys.numbers()[:, slot : slot + 1]
        q = q - keys.numbers().mean(1, keepdim=True)
        scores = (keys.numbers()[0] @ q[0, 0]) * 1e3
        found = cached_attention(q, keys, values, 63, 1e3)
        torch.testing.assert_close(found[0, 0], values.numbers()[0, int(scores.argmax())])


@pytest.mark.parametrize("kinds", [(8, 4), (2, 16), (torch.float32,) * 2], ids=str)
@pytest.mark.parametrize("tokens", [1, 8, 60])
def test_threads_change_no_bit(kinds, tokens):
    keys, values = (stored(kind, 3, 1500, 64, seed) for seed, kind in enumerate(kinds))
    q = noise(tokens, 9, 64, seed=3)
    found = [cached_attention(q, keys, values, 1500 - tokens, 0.125, threads=n) for n in (1, 2, 3)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("window", [None, 300])
def test_a_token_is_the_same_bit_for_bit_with_others_or_alone(window):
    keys, values = (stored(8, 3, 1030, 64, seed) for seed in (1, 2))
    q, start = noise(6, 9, 64, seed=3), 1021  # the last three begin a chunk
    together = cached_attention(q, keys, values, start, 0.125, window)
    alone = [cached_attention(q[i : i + 1], keys, values, start + i, 0.125, window) for i in range(6)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("tokens", [2, 30])
def test_layers_one_after_the_other(tokens):
    layers = [(stored(8, 2, 90, 64, 2 * i), stored(4, 2, 90, 64, 2 * i + 1)) for i in range(4)]
    q = noise(4, tokens, 6, 64, seed=9)
    attention = CachedAttention(layers, 6, 0.125, window=50)
    expected = torch.stack(
        [
            cached_attention(each, keys, values, 60, 0.125, 50)
            for each, (keys, values) in zip(q, layers, strict=True)
        ]
    )
    for threads in (1, 2):
        assert torch.equal(attention(q, 60, threads), expected)
    with CostCounter() as counter:
        attention(q, 60)
    assert attention.token_bytes == 4 * 2 * (68 + 36)
    cost = counter.bytes_by_operation["cached_attention"], counter.flops_by_operation["cached_attention"]
    assert cost == (
        (60 + tokens) * attention.token_bytes + 8 * q.numel(),
        4 * q.numel() * (60 + tokens),
    )


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_rows_are_stored_as_the_format_says(bits):
    x = 3 * noise(2, 40, 128) + 1
    x[0, 0], x[0, 1], x[1, 3], x[1, 4] = 1.5, 0.1, 0.0, -1e-9 * torch.arange(128)
    rows = empty_rows(2, 50, 128, bits)
    store_rows(rows, x, 7)
    codes, grids = encode_rows(x, bits, "x")
    assert torch.equal(rows.rows[:, 7:47], codes)
    assert torch.equal(rows.grids[:, 7:47], grids)
    assert not rows.rows[:, 47:].any()
    assert not rows.rows[:, :7].any()


@pytest.mark.parametrize("isa", LESSER)
@pytest.mark.parametrize("widths", [(8, 4), (2, 16)])
def test_lesser_processors(isa, widths, monkeypatch):
    keys, values = (stored(bits, 2, 180, 64, seed) for seed, bits in enumerate(widths))
    lesser = module._library(LESSER[isa])
    monkeypatch.setattr(module, "_library", lambda: lesser)
    check(noise(3, 6, 64), keys, values, 177)
    check(noise(50, 6, 64), keys, values, 130, window=70)
    for seed, (bits, expected) in enumerate(zip(widths, (keys, values), strict=True)):
        again = stored(bits, 2, 180, 64, seed)
        assert torch.equal(again.rows, expected.rows)
        assert again.grids is None or torch.equal(again.grids, expected.grids)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -1e6])
def test_values_without_a_grid_are_refused(value):
    x = noise(1, 4, 64)
    x[0, 2, 5] = value
    with pytest.raises(ValueError, match="not finite or beyond ±65504; 4 bits cannot store it"):
        store_rows(empty_rows(1, 4, 64, 4), x, 0)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="bits=3 is not a width"):
        empty_rows(1, 4, 64, 3)
    with pytest.raises(ValueError, match="48 channels in 4 bits fill no whole runs .* a multiple of 32"):
        empty_rows(1, 4, 48, 4)
    with pytest.raises(TypeError, match="hold no numbers"):
        StoredRows(torch.zeros(1, 4, 64, dtype=torch.int8), 64)
    with pytest.raises(ValueError, match=r"grids .* must be \(1, 4, 2\)"):
        StoredRows(torch.zeros(1, 4, 64, dtype=torch.uint8), 64, torch.zeros(1, 4, 2))
    with pytest.raises(ValueError, match="are not 64 channels of 8, 4 or 2 bits"):
        StoredRows(torch.zeros(1, 4, 48, dtype=torch.uint8), 64, torch.zeros(1, 4, 2).half())
    rows = empty_rows(2, 8, 64, 8)
    with pytest.raises(ValueError, match="do not go together"):
        cached_attention(noise(1, 3, 64), rows, rows, 0, 1.0)
    with pytest.raises(ValueError, match="2 tokens from slot 7: the cache has 8 slots"):
        cached_attention(noise(2, 4, 64), rows, rows, 7, 1.0)
    with pytest.raises(ValueError, match="1 layers, window=0: both must be 1 or more"):
        cached_attention(noise(1, 4, 64), rows, rows, 0, 1.0, window=0)
    with pytest.raises(ValueError, match="must be of 1 layers and 4 heads of 64 channels"):
        CachedAttention([(rows, rows)], 4, 1.0)(noise(1, 2, 4, 32), 0)
    with pytest.raises(ValueError, match="do not fit"):
        store_rows(rows, noise(2, 3, 64), 6)
