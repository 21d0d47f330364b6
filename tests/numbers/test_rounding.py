"""Oracles: ml_dtypes, NumPy's half, torch.bfloat16, gfloat, and the definition in exact rationals."""

import random
from dataclasses import replace
from fractions import Fraction

import gfloat
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.numbers import (
    FORMATS,
    FloatFormat,
    Rounder,
    Rounding,
    decode,
    naive_round_to_format,
    random_words,
    round_to_format,
)

DETERMINISTIC = [
    Rounding.NEAREST_EVEN,
    Rounding.UP,
    Rounding.DOWN,
    Rounding.TOWARD_ZERO,
    Rounding.NEAREST_TO_ZERO,
    Rounding.NEAREST_AWAY,
    Rounding.ODD,
]
FLOAT_MODES = [mode for mode in Rounding if mode != Rounding.NEAREST_ODD]
NARROW = ["e4m3fn", "e4m3_ieee", "e5m2", "e3m2", "e2m3", "e2m1"]


def all_values(fmt: FloatFormat) -> np.ndarray:
    """Every finite value of a format of up to 16 bits, as float64."""
    values = decode(np.arange(1 << fmt.bits), fmt).astype(np.float64)
    return np.unique(values[np.isfinite(values)])


def edge_values(fmt: FloatFormat, dtype: type = np.float32) -> np.ndarray:
    """The values of a format, the midpoints, points beyond the end, and the neighbours of all these."""
    values = all_values(fmt)
    middles = (values[1:] + values[:-1]) / 2
    step = values[-1] - values[-2]
    ends = values[-1] + step * np.array([0.25, 0.5, 0.75, 1, 1.5, 2, 4])
    points = np.concatenate([values, middles, ends, -ends])
    points = points[np.abs(points) <= np.finfo(dtype).max].astype(dtype)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan], dtype=dtype)
    with np.errstate(over="ignore"):
        return np.concatenate(
            [points, np.nextafter(points, dtype(np.inf)), np.nextafter(points, dtype(-np.inf)), special]
        )


def random_bits(count: int, dtype: type = np.float32, seed: int = 0) -> np.ndarray:
    """Uniformly random bit patterns: every exponent, subnormals, infinities and NaNs."""
    width = np.dtype(dtype).itemsize
    return np.frombuffer(np.random.default_rng(seed).bytes(count * width), dtype=dtype).copy()


def random_magnitudes(count: int, dtype: type = np.float32, seed: int = 0) -> np.ndarray:
    """Random significands at random exponents in and around the range of narrow formats."""
    generator = np.random.default_rng(seed)
    return (generator.standard_normal(count) * 2.0 ** generator.integers(-32, 22, count)).astype(dtype)


def same(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Elementwise: equal with the same sign of zero, or both NaN."""
    nan = np.isnan(a) & np.isnan(b)
    return nan | ((a == b) & (np.signbit(a) == np.signbit(b)))


ML_DTYPES = {
    "e4m3fn": ml_dtypes.float8_e4m3fn,
    "e4m3_ieee": ml_dtypes.float8_e4m3,
    "e5m2": ml_dtypes.float8_e5m2,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e8m0": ml_dtypes.float8_e8m0fnu,
    "bfloat16": ml_dtypes.bfloat16,
}


@pytest.mark.parametrize("name", ML_DTYPES)
def test_nearest_even_equals_ml_dtypes(name):
    fmt = FORMATS[name]
    x = np.concatenate([edge_values(FORMATS["e5m2"]), random_bits(300_000), random_magnitudes(300_000)])
    if fmt.bits <= 8:
        x = np.concatenate([x, edge_values(fmt)])
    if not fmt.has_nan:
        x = x[~np.isnan(x)]  # ml_dtypes gives ±0 there
    mode = Rounding.NEAREST_EVEN
    if not fmt.signed:  # ml_dtypes rounds float32 subnormals to E8M0 upwards, and ties away
        x, mode = x[np.abs(x) >= np.finfo(np.float32).tiny], Rounding.NEAREST_AWAY
    with np.errstate(all="ignore"):
        expected = x.astype(ML_DTYPES[name]).astype(np.float32)
    assert same(round_to_format(x, fmt, mode), expected).all()


def test_every_half_and_its_neighbours():
    half = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    with np.errstate(all="ignore"):
        above, below = np.nextafter(half, np.float32(np.inf)), np.nextafter(half, np.float32(-np.inf))
        middle = (
            half + (np.nextafter(half.astype(np.float16), np.float16(np.inf)).astype(np.float32) - half) / 2
        )
        edges = np.float32([65504, 65519.996, 65520, 65536, 131071, -65520, 1e38])
        x = np.concatenate(
            [half, above, below, middle, edges, random_bits(1_000_000), random_magnitudes(1_000_000)]
        )
        expected = x.astype(np.float16).astype(np.float32)
    assert same(round_to_format(x, FORMATS["half"]), expected).all()
    assert same(half, round_to_format(half, FORMATS["half"])).all()


def test_bfloat16_equals_torch():
    x = torch.from_numpy(np.concatenate([random_bits(1_000_000), edge_values(FORMATS["e5m2"])]))
    expected = x.to(torch.bfloat16).float()
    assert same(round_to_format(x, FORMATS["bfloat16"]).numpy(), expected.numpy()).all()


def test_single_from_float64_equals_the_cast():
    x = random_bits(300_000, np.float64)
    x = np.concatenate(
        [x, random_magnitudes(100_000).astype(np.float64) * (1 + 2.0**-24), np.float64([1e-46, 7e-46])]
    )
    with np.errstate(all="ignore"):
        expected = x.astype(np.float32).astype(np.float64)
    assert same(round_to_format(x, FORMATS["single"]), expected).all()


GFLOAT_MODES = {
    Rounding.NEAREST_EVEN: gfloat.RoundMode.TiesToEven,
    Rounding.TOWARD_ZERO: gfloat.RoundMode.TowardZero,
    Rounding.UP: gfloat.RoundMode.TowardPositive,
    Rounding.DOWN: gfloat.RoundMode.TowardNegative,
    Rounding.NEAREST_AWAY: gfloat.RoundMode.TiesToAway,
}


@pytest.mark.parametrize("sizes", [(4, 3), (5, 2), (5, 10), (3, 4), (6, 9), (8, 7), (2, 5), (5, 0)])
@pytest.mark.parametrize("mode", GFLOAT_MODES)
def test_deterministic_modes_equal_gfloat(sizes, mode):
    fmt = FloatFormat(*sizes)
    info = gfloat.FormatInfo(
        name="test",
        k=fmt.bits,
        precision=fmt.precision,
        bias=fmt.bias,
        has_nz=True,
        domain=gfloat.Domain.Extended,
        num_high_nans=2**fmt.sig_bits - 1,
        has_subnormals=True,
        is_signed=True,
        is_twos_complement=False,
    )
    x = np.concatenate([random_bits(4_000, np.float64), random_magnitudes(8_000, np.float64)])
    x = np.concatenate([x, edge_values(fmt, np.float64)[:: 1 if fmt.bits <= 10 else 41]])
    with np.errstate(all="ignore"):
        expected = gfloat.round_ndarray(info, x, rnd=GFLOAT_MODES[mode])
    assert same(round_to_format(x, fmt, mode), expected).all()


ODD_FORMATS = {
    "e5m0": FloatFormat(5, 0),
    "e2m0 finite": FloatFormat(2, 0, finite_only=True),
    "e1m0 finite": FloatFormat(1, 0, finite_only=True),
    "e1m3": FloatFormat(1, 3),
    "e1m2 finite": FloatFormat(1, 2, finite_only=True),
    "e8m4": FloatFormat(8, 4),
    "e3m0 with NaN": FloatFormat(3, 0, nan_code=7),
}
DEFINED = {name: FORMATS[name] for name in (*NARROW, "half", "bfloat16", "single", "e8m0")} | ODD_FORMATS


@pytest.mark.parametrize("explim", [True, False])
@pytest.mark.parametrize("saturate", [False, True])
@pytest.mark.parametrize("subnormal", [False, True])
@pytest.mark.parametrize("name", DEFINED)
def test_every_mode_equals_the_definition(name, subnormal, saturate, explim):
    if name == "e1m3" and not subnormal:
        return  # nothing but zero would be left
    fmt = replace(DEFINED[name], subnormal=subnormal, saturate=saturate)
    x = np.concatenate([random_bits(90), random_magnitudes(90)])
    if fmt.bits <= 8:
        edges = edge_values(fmt)
        x = np.concatenate([x, edges[:: max(1, len(edges) // 110)], edges[-20:]])
    if not fmt.signed:
        x = np.abs(x[x != 0])
        explim = True
    draws = random_words(len(x), 9) >> 1
    for mode in FLOAT_MODES:
        with np.errstate(over="ignore"):
            expected = np.array(
                [
                    naive_round_to_format(
                        float(value), fmt, mode, explim=explim, draw=Fraction(int(draw), 1 << 31)
                    )
                    for value, draw in zip(x, draws, strict=True)
                ]
            ).astype(np.float32)
        rounded = round_to_format(x, fmt, mode, explim=explim, seed=9)
        wrong = ~same(rounded, expected)
        assert not wrong.any(), (mode, x[wrong][:3], rounded[wrong][:3], expected[wrong][:3])


@given(
    x=st.floats(width=64),
    exp_bits=st.integers(2, 10),
    sig_bits=st.integers(0, 40),
    mode=st.sampled_from(DETERMINISTIC),
    explim=st.booleans(),
    subnormal=st.booleans(),
)
def test_any_format_in_float64_equals_the_definition(x, exp_bits, sig_bits, mode, explim, subnormal):
    fmt = FloatFormat(exp_bits, sig_bits, subnormal=subnormal)
    points = np.array([x, x * 2.0**-500, fmt.xmax, fmt.xmin / 2, fmt.xmins * 1.5])
    try:
        expected = np.array(
            [naive_round_to_format(float(point), fmt, mode, explim=explim) for point in points]
        )
    except OverflowError:  # beyond the carrier's own range, where only explim=False can lead
        return
    assert same(round_to_format(points, fmt, mode, explim=explim), expected).all()


def test_numpy_torch_and_jax_agree_bit_for_bit():
    jax = pytest.importorskip("jax")
    x = np.concatenate([random_bits(3_001), random_magnitudes(3_000)])
    for name in (*NARROW, "half", "bfloat16", "single", "e8m0"):
        for mode in FLOAT_MODES:
            for explim in (True, False):
                arguments = {"mode": mode, "seed": 2**40 + 7, "offset": 7, "call": 3, "explim": explim}
                bits = round_to_format(x, FORMATS[name], **arguments).view(np.int32)
                on_torch = round_to_format(torch.from_numpy(x), FORMATS[name], **arguments)
                assert np.array_equal(bits, on_torch.numpy().view(np.int32))
                on_jax = round_to_format(jax.numpy.asarray(x), FORMATS[name], **arguments)
                assert np.array_equal(bits, np.asarray(on_jax).view(np.int32))


def test_jax_in_64_bits_agrees_bit_for_bit():
    jax = pytest.importorskip("jax")
    x = np.concatenate([random_bits(2_001, np.float64), random_magnitudes(2_000, np.float64)])
    with jax.enable_x64(True):
        on_jax = jax.numpy.asarray(x)
        assert on_jax.dtype == np.float64
        for name in ("half", "double"):
            for mode in FLOAT_MODES:
                arguments = {"mode": mode, "seed": 2**40 + 7, "offset": 5, "call": 2}
                expected = round_to_format(x, FORMATS[name], **arguments).view(np.int64)
                rounded = np.asarray(round_to_format(on_jax, FORMATS[name], **arguments))
                assert np.array_equal(rounded.view(np.int64), expected), (name, mode)


def test_under_jit_the_call_number_may_be_traced():
    jax = pytest.importorskip("jax")
    x = random_magnitudes(999)
    rounded = jax.jit(lambda x, call: Rounder(FORMATS["e4m3fn"], Rounding.STOCHASTIC)(x, call=call))
    for call in (0, 5):
        expected = round_to_format(x, FORMATS["e4m3fn"], Rounding.STOCHASTIC, call=call)
        assert np.array_equal(np.asarray(rounded(x, call)), expected)


def test_jax_half_types_equal_their_casts():
    jnp = pytest.importorskip("jax.numpy")
    bits = np.arange(1 << 16, dtype=np.uint16)
    for dtype, name in ((jnp.float16, "e5m2"), (jnp.bfloat16, "bfloat16"), (jnp.bfloat16, "e4m3fn")):
        x = jnp.asarray(bits.view(np.float16 if dtype == jnp.float16 else ml_dtypes.bfloat16))
        rounded = round_to_format(x, FORMATS[name])
        assert rounded.dtype == dtype
        wide = np.asarray(x).astype(np.float32)
        assert same(np.asarray(rounded).astype(np.float32), round_to_format(wide, FORMATS[name])).all()


@pytest.mark.parametrize("mode", FLOAT_MODES)
@pytest.mark.parametrize("name", [*NARROW, "half", "e8m0"])
def test_rounding_again_changes_nothing(name, mode):
    x = np.concatenate([random_bits(20_000), random_magnitudes(20_000)])
    once = round_to_format(x, FORMATS[name], mode, seed=1)
    assert same(round_to_format(once, FORMATS[name], mode, seed=2), once).all()


@pytest.mark.parametrize("mode", DETERMINISTIC)
def test_monotone_and_within_the_error_bound(mode):
    x = np.sort(random_magnitudes(100_000, np.float64))
    for name in NARROW:
        fmt = replace(FORMATS[name], saturate=True)
        y = round_to_format(x, fmt, mode)
        assert (np.diff(y) >= 0).all()
        normal = (np.abs(x) >= fmt.xmin) & (np.abs(x) <= fmt.xmax)
        nearest = mode in (Rounding.NEAREST_EVEN, Rounding.NEAREST_TO_ZERO, Rounding.NEAREST_AWAY)
        bound = fmt.unit_roundoff * (1 if nearest else 2) * np.abs(x[normal])
        assert (np.abs(x - y)[normal] <= bound).all()


def test_up_mirrors_down():
    x = np.concatenate([random_bits(50_000), random_magnitudes(50_000)])
    for name in (*NARROW, "half", "bfloat16"):
        up = round_to_format(x, FORMATS[name], Rounding.UP)
        assert same(up, -round_to_format(-x, FORMATS[name], Rounding.DOWN)).all()


def test_overflow_follows_the_table():
    fmt, beyond = FORMATS["half"], np.float32([65519.996, 65520, 1e6, -1e6])
    inf, top = np.inf, 65504.0
    expected = {
        Rounding.NEAREST_EVEN: [top, inf, inf, -inf],
        Rounding.NEAREST_AWAY: [top, inf, inf, -inf],
        Rounding.NEAREST_TO_ZERO: [top, top, inf, -inf],
        Rounding.UP: [inf, inf, inf, -top],
        Rounding.DOWN: [top, top, top, -inf],
        Rounding.TOWARD_ZERO: [top, top, top, -top],
        Rounding.ODD: [top, top, top, -top],
        Rounding.STOCHASTIC: [top, top, top, -top],
        Rounding.STOCHASTIC_EQUAL: [top, top, top, -top],
        Rounding.RANDOM_DIRECTED: [top, top, top, -top],
    }
    for mode, values in expected.items():
        assert round_to_format(beyond, fmt, mode).tolist() == values
        assert np.abs(round_to_format(beyond, replace(fmt, saturate=True), mode)).tolist() == [top] * 4
    ends = np.float32([464, 464.1, np.inf, -np.inf])
    assert np.array_equal(
        round_to_format(ends, FORMATS["e4m3fn"]), [448, np.nan, np.nan, np.nan], equal_nan=True
    )
    assert round_to_format(ends, replace(FORMATS["e4m3fn"], saturate=True)).tolist() == [448, 448, 448, -448]
    assert round_to_format(ends, FORMATS["e2m1"], Rounding.DOWN).tolist() == [6, 6, 6, -6]


def test_without_subnormals_small_values_are_flushed():
    fmt = replace(FORMATS["half"], subnormal=False)
    tiny = fmt.xmin
    x = np.float32([tiny / 4, tiny / 2, tiny * 0.75, -tiny / 2, -tiny / 4])
    expected = {
        Rounding.NEAREST_EVEN: [0, tiny, tiny, -tiny, 0],
        Rounding.NEAREST_AWAY: [0, tiny, tiny, -tiny, 0],
        Rounding.NEAREST_TO_ZERO: [0, 0, tiny, 0, 0],
        Rounding.UP: [tiny, tiny, tiny, 0, 0],
        Rounding.DOWN: [0, 0, 0, -tiny, -tiny],
        Rounding.TOWARD_ZERO: [0] * 5,
        Rounding.ODD: [0] * 5,
    }
    for mode, values in expected.items():
        assert round_to_format(x, fmt, mode).tolist() == values
    quarter = round_to_format(np.full(40_000, tiny / 4, np.float32), fmt, Rounding.STOCHASTIC)
    assert set(quarter.tolist()) == {0.0, tiny}
    assert abs((quarter > 0).mean() - 0.25) < 4 * (0.25 * 0.75 / 40_000) ** 0.5


@pytest.mark.parametrize("value", [1.1, -1.1, 3.3e-3, 2.0**-9 * 0.3, 1.0625, 100.9])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_stochastic_rounding_is_unbiased_and_equal_rounding_is_a_fair_coin(value, dtype):
    count = 100_000
    x = np.full(count, value, dtype=dtype)
    low, high = (
        float(round_to_format(x[:1], FORMATS["e4m3fn"], mode)[0]) for mode in (Rounding.DOWN, Rounding.UP)
    )
    y = round_to_format(x, FORMATS["e4m3fn"], Rounding.STOCHASTIC, seed=11).astype(np.float64)
    assert set(y.tolist()) == {low, high}
    share = (float(x[0]) - low) / (high - low)
    sigma = (high - low) * (share * (1 - share) / count) ** 0.5
    assert abs(y.mean() - float(x[0])) < 4 * sigma
    for mode in (Rounding.STOCHASTIC_EQUAL, Rounding.RANDOM_DIRECTED):
        y = round_to_format(x, FORMATS["e4m3fn"], mode, seed=12)
        assert set(y.tolist()) == {low, high}
        assert abs((y == high).mean() - 0.5) < 4 * (0.25 / count) ** 0.5


def test_a_draw_equal_to_the_fraction_does_not_go_away():
    """P(away) is the fraction exactly: of the 2^31 draws those below it. Here draws hit it."""
    draws = random_words(1 << 16, 21) >> 1
    hit = draws % (1 << 10) == 0  # float32 leaves e5m2 a fraction of 21 bits
    x = np.where(hit, 1 + (draws >> 10) * 2.0**-23, 1.0).astype(np.float32)
    assert hit.sum() > 30
    for sign in (1, -1):
        assert (round_to_format(sign * x, FORMATS["e5m2"], Rounding.STOCHASTIC, seed=21) == sign).all()
        above = np.where(hit, np.nextafter(x, np.float32(2)), x) * np.float32(sign)
        away = round_to_format(above, FORMATS["e5m2"], Rounding.STOCHASTIC, seed=21)
        assert (away[hit] == sign * 1.25).all()


def at_their_draws(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """float64 values that e5m2 rounds down by a hair, and up: all 63 bits of an element's draw decide."""
    high, low = (random_words(count, seed, stream=stream).astype(np.uint64) for stream in (0, 1))
    fraction = (((high << np.uint64(31)) | (low >> np.uint64(1))) >> np.uint64(13)).astype(np.float64)
    return 1 + fraction * 2.0**-52, 1 + (fraction + 1) * 2.0**-52


def test_every_bit_of_a_float64_draw_counts_on_every_back_end():
    jax = pytest.importorskip("jax")
    down, up = at_their_draws(1000, 21)
    with jax.enable_x64(True):
        for convert in (np.asarray, torch.from_numpy, jax.numpy.asarray):
            for x, expected in ((down, 1.0), (up, 1.25)):
                rounded = round_to_format(convert(x), FORMATS["e5m2"], Rounding.STOCHASTIC, seed=21)
                assert (np.asarray(rounded) == expected).all()


def test_exact_values_never_move():
    values = all_values(FORMATS["e4m3fn"]).astype(np.float32)
    x = np.tile(values, 200)
    for mode in FLOAT_MODES:
        assert np.array_equal(round_to_format(x, FORMATS["e4m3fn"], mode, seed=3), x)


@given(cut=st.integers(0, 500), seed=st.integers(0, 2**64 - 1))
def test_chunks_draw_what_the_whole_draws(cut, seed):
    x = random_magnitudes(500)
    for carrier in (np.float32, np.float64):
        whole = round_to_format(x.astype(carrier), FORMATS["e5m2"], Rounding.STOCHASTIC, seed=seed)
        parts = [
            round_to_format(
                part.astype(carrier), FORMATS["e5m2"], Rounding.STOCHASTIC, seed=seed, offset=start
            )
            for part, start in ((x[:cut], 0), (x[cut:], cut))
        ]
        assert np.array_equal(whole, np.concatenate(parts))


def test_long_arrays_are_worked_on_in_spans_unseen():
    x = random_magnitudes(70_001)
    for mode in (Rounding.NEAREST_EVEN, Rounding.STOCHASTIC):
        whole = round_to_format(x, FORMATS["e5m2"], mode, seed=1, offset=3)
        parts = [
            round_to_format(x[start : start + 999], FORMATS["e5m2"], mode, seed=1, offset=3 + start)
            for start in range(0, len(x), 999)
        ]
        assert np.array_equal(whole, np.concatenate(parts))
        assert np.array_equal(
            whole, round_to_format(torch.from_numpy(x), FORMATS["e5m2"], mode, seed=1, offset=3)
        )


def test_float32_and_float64_arrays_draw_alike():
    x = random_magnitudes(50_000)
    for mode in (Rounding.STOCHASTIC, Rounding.STOCHASTIC_EQUAL, Rounding.RANDOM_DIRECTED):
        for name in NARROW:
            narrow = round_to_format(x, FORMATS[name], mode, seed=4)
            assert same(narrow, round_to_format(x.astype(np.float64), FORMATS[name], mode, seed=4)).all()


def test_shape_dtype_order_and_gradient():
    x = torch.randn(3, 5, 7, dtype=torch.float64, requires_grad=True)
    y = round_to_format(x.transpose(0, 2), FORMATS["e5m2"], Rounding.STOCHASTIC)
    assert (y.shape, y.dtype, y.requires_grad) == ((7, 5, 3), torch.float64, False)
    again = round_to_format(x.detach().transpose(0, 2).contiguous(), FORMATS["e5m2"], Rounding.STOCHASTIC)
    assert torch.equal(y, again)
    assert round_to_format(np.float32(1.1), FORMATS["e5m2"]) == np.float32(1.0)
    assert round_to_format(torch.tensor(1.1), FORMATS["e5m2"]).shape == ()
    assert round_to_format(np.zeros((0, 3), np.float32), FORMATS["e5m2"], 5).shape == (0, 3)
    strided = random_magnitudes(40).reshape(4, 10)[:, ::3]
    assert np.array_equal(
        round_to_format(strided, FORMATS["e5m2"]), round_to_format(strided.copy(), FORMATS["e5m2"])
    )


def test_half_carriers_round_or_are_refused():
    x = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    y = round_to_format(x, FORMATS["e4m3fn"])
    assert y.dtype == torch.bfloat16
    assert same(y.float().numpy(), round_to_format(x.float(), FORMATS["e4m3fn"]).numpy()).all()
    with pytest.raises(ValueError, match=r"t=11 .*bfloat16 array.*limit is t=8"):
        round_to_format(x, FORMATS["half"])
    with pytest.raises(ValueError, match=r"2\^-133 to 2\^127 does not fit a float16 array"):
        round_to_format(np.ones(3, np.float16), FORMATS["bfloat16"])


def test_rounders_count_their_calls_and_leave_global_generators_alone():
    x = torch.from_numpy(random_magnitudes(1_000))
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    rounder = Rounder(FORMATS["e4m3fn"], Rounding.STOCHASTIC, seed=8)
    first, second = rounder(x), rounder(x)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]
    assert not torch.equal(first, second)
    twin = Rounder(FORMATS["e4m3fn"], 5, seed=8)
    assert twin == rounder
    assert torch.equal(twin(x), first)
    assert torch.equal(twin(x), second)
    assert torch.equal(rounder(x, call=0), first)
    assert torch.equal(rounder(x), round_to_format(x, FORMATS["e4m3fn"], 5, seed=8, call=2))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(3),
        np.array([True]),
        np.ones(2, complex),
        torch.arange(3),
        torch.ones(2, dtype=torch.complex64),
    ],
)
def test_arrays_that_hold_no_real_values_are_refused(array):
    with pytest.raises(TypeError, match="cast explicitly"):
        round_to_format(array, FORMATS["half"])


def test_bad_arguments_name_what_would_be_right():
    x = np.ones(3, np.float32)
    with pytest.raises(TypeError, match="NumPy array or a torch tensor, not list"):
        round_to_format([1.0], FORMATS["half"])
    with pytest.raises(ValueError, match=r"unknown rounding mode 11; .*NEAREST_EVEN=1.*STOCHASTIC=5"):
        round_to_format(x, FORMATS["half"], 11)
    with pytest.raises(ValueError, match="fixed point only"):
        round_to_format(x, FORMATS["half"], 0)
    with pytest.raises(ValueError, match=r"t=53 .*float32 array.*limit is t=24"):
        round_to_format(x, FORMATS["double"])
    with pytest.raises(ValueError, match=r"float32 array, whose limits are 2\^-149 and 2\^127"):
        round_to_format(x, FloatFormat(9, 5))
    with pytest.raises(ValueError, match="seed=-1"):
        Rounder(FORMATS["half"], seed=-1)
    with pytest.raises(ValueError, match="unknown rounding mode"):
        Rounder(FORMATS["half"], 12)
    with pytest.raises(ValueError, match="needs a draw"):
        naive_round_to_format(1.1, FORMATS["half"], Rounding.STOCHASTIC)
