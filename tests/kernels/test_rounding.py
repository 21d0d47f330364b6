from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.kernels import native
from shoestring.kernels.rounding import round_to_format
from shoestring.notices import record_fallbacks
from shoestring.numbers import FORMATS, FloatFormat, Rounding, decode, random_words
from shoestring.numbers import round_to_format as round_plainly

MODES = [mode for mode in Rounding if mode != Rounding.NEAREST_ODD]
TYPES = {torch.float32: torch.int32, torch.float64: torch.int64}


def inputs(dtype: torch.dtype) -> torch.Tensor:
    generator = np.random.default_rng(1)
    native_type = np.float32 if dtype == torch.float32 else np.float64
    patterns = np.frombuffer(generator.bytes(3000 * native_type().itemsize), dtype=native_type).copy()
    moderate = (generator.standard_normal(3001) * 2.0 ** generator.integers(-32, 22, 3001)).astype(
        native_type
    )
    halves = torch.from_numpy(decode(np.arange(0, 1 << 16, 7), FORMATS["half"])).to(dtype)
    return torch.cat([torch.from_numpy(patterns), torch.from_numpy(moderate), halves])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    "fmt",
    [
        FORMATS["e4m3fn"],
        FORMATS["e5m2"],
        FORMATS["e2m1"],
        FORMATS["half"],
        FORMATS["bfloat16"],
        FORMATS["single"],
        FloatFormat(1, 3),
        FloatFormat(1, 0, finite_only=True),
        FloatFormat(5, 0),
        FloatFormat(8, 0),
    ],
    ids=str,
)
def test_every_bit_equals_the_plain_path(fmt, dtype):
    x = inputs(dtype)
    for subnormal in (True, False) if fmt.exp_bits > 1 else (True,):
        for saturate, explim in ((False, True), (True, True), (False, False)):
            variant = replace(fmt, subnormal=subnormal, saturate=saturate)
            for mode in MODES:
                arguments = {"seed": 2**50 + 3, "offset": 5, "call": 2, "explim": explim}
                expected = round_plainly(x, variant, mode, **arguments)
                rounded = round_to_format(x, variant, mode, **arguments)
                assert torch.equal(rounded.view(TYPES[dtype]), expected.view(TYPES[dtype])), (variant, mode)


@given(
    rows=st.integers(0, 5),
    columns=st.integers(0, 1500),
    offset=st.integers(0, 2**36),
    mode=st.sampled_from(MODES),
    dtype=st.sampled_from(list(TYPES)),
)
def test_odd_shapes_and_offsets(rows, columns, offset, mode, dtype):
    x = torch.randn(rows, columns, dtype=dtype)
    expected = round_plainly(x, FORMATS["e4m3fn"], mode, seed=1, offset=offset)
    assert torch.equal(round_to_format(x, FORMATS["e4m3fn"], mode, seed=1, offset=offset), expected)


def test_threads_and_chunks_do_not_change_the_draws():
    x = torch.randn(100_003)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(round_to_format(x, FORMATS["e4m3fn"], Rounding.STOCHASTIC, seed=6))
    assert torch.equal(*results)
    chunks = [
        round_to_format(part.contiguous(), FORMATS["e4m3fn"], Rounding.STOCHASTIC, seed=6, offset=start)
        for part, start in ((x[:4097], 0), (x[4097:], 4097))
    ]
    assert torch.equal(torch.cat(chunks), results[0])


def test_every_bit_of_a_float64_draw_counts():
    """Values whose fraction is their own draw stay, and go when it is one unit larger."""
    high, low = (torch.from_numpy(random_words(1000, 5, stream=s).astype(np.int64)) for s in (0, 1))
    fraction = (((high << 31) | (low >> 1)) >> 13).double()
    for added, expected in ((0, 1.0), (1, 1.25)):
        x = 1 + (fraction + added) * 2.0**-52
        assert (round_to_format(x, FORMATS["e5m2"], Rounding.STOCHASTIC, seed=5) == expected).all()


def test_into_a_given_tensor_and_in_place():
    x = torch.randn(4, 300)
    expected = round_plainly(x, FORMATS["e5m2"])
    out = torch.empty_like(x)
    assert round_to_format(x, FORMATS["e5m2"], out=out) is out
    assert torch.equal(out, expected)
    round_to_format(x, FORMATS["e5m2"], out=x)
    assert torch.equal(x, expected)


def test_no_gradient_is_claimed():
    x = torch.randn(5, requires_grad=True)
    assert not round_to_format(x, FORMATS["e5m2"]).requires_grad


@pytest.mark.parametrize(
    ("x", "fmt", "reason"),
    [
        (torch.randn(6, 4).T, FORMATS["e4m3fn"], "contiguous"),
        (torch.randn(6).bfloat16(), FORMATS["e4m3fn"], "not torch.bfloat16"),
        (torch.rand(6), FORMATS["e8m0"], "signed formats"),
    ],
)
def test_what_the_loop_does_not_take_goes_the_plain_way_and_says_so(x, fmt, reason):
    with record_fallbacks() as fallbacks:
        rounded = round_to_format(x, fmt)
    assert torch.equal(rounded, round_plainly(x, fmt))
    assert len(fallbacks) == 1
    assert reason in fallbacks[0]


def test_without_a_compiler_the_plain_path_answers(monkeypatch):
    monkeypatch.setenv("SHOESTRING_CC", "none")
    native._load.cache_clear()
    x = torch.randn(50)
    with record_fallbacks() as fallbacks:
        out = torch.empty_like(x)
        assert round_to_format(x, FORMATS["e4m3fn"], Rounding.STOCHASTIC, out=out) is out
    assert torch.equal(out, round_plainly(x, FORMATS["e4m3fn"], Rounding.STOCHASTIC))
    assert "no C compiler" in fallbacks[0]


def test_bad_input():
    x = torch.randn(5)
    with pytest.raises(ValueError, match=r"out is a \(4,\) tensor.*like x, \(5,\)"):
        round_to_format(x, FORMATS["half"], out=torch.empty(4))
    with pytest.raises(ValueError, match="hide the change from autograd"):
        round_to_format(x, FORMATS["half"], out=torch.empty(5, requires_grad=True))
    with pytest.raises(ValueError, match="unknown rounding mode"):
        round_to_format(x, FORMATS["half"], 77)
    with pytest.raises(ValueError, match="limit is t=24"):
        round_to_format(x, FORMATS["double"])
    with pytest.raises(ValueError, match="seed=-3"):
        round_to_format(x, FORMATS["half"], 5, seed=-3)
    with pytest.raises(TypeError, match="cast explicitly"):
        round_to_format(torch.arange(3), FORMATS["half"])
