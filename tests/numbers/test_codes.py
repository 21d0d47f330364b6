from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch

from shoestring.numbers import (
    FORMATS,
    FixedPointFormat,
    FloatFormat,
    IntegerFormat,
    decode,
    encode,
    pack_bits,
    round_to_fixed_point,
    round_to_format,
    unpack_bits,
)

ML_DTYPES = {
    "e4m3fn": ml_dtypes.float8_e4m3fn,
    "e4m3_ieee": ml_dtypes.float8_e4m3,
    "e5m2": ml_dtypes.float8_e5m2,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e8m0": ml_dtypes.float8_e8m0fnu,
    "bfloat16": ml_dtypes.bfloat16,
    "half": np.float16,
}
WIDTHS = {  # a float format of every total width from 2 to 16
    2: FloatFormat(1, 0, finite_only=True),
    3: FloatFormat(1, 1, finite_only=True),
    4: FORMATS["e2m1"],
    5: FloatFormat(2, 2),
    6: FORMATS["e3m2"],
    7: FloatFormat(3, 3),
    8: FORMATS["e4m3fn"],
    9: FloatFormat(4, 4),
    10: FloatFormat(5, 4),
    11: FloatFormat(10, 0),
    12: FloatFormat(5, 6, subnormal=False),
    13: FloatFormat(8, 4),
    14: FloatFormat(6, 7),
    15: FloatFormat(11, 3),
    16: FORMATS["half"],
}


@pytest.mark.parametrize("name", ML_DTYPES)
def test_codes_mean_what_ml_dtypes_says(name):
    fmt = FORMATS[name]
    codes = np.arange(1 << fmt.bits)
    native = codes.astype(np.uint16 if fmt.bits > 8 else np.uint8).view(ML_DTYPES[name])
    with np.errstate(invalid="ignore"):
        expected = native.astype(np.float32)
    values = decode(codes, fmt)
    assert np.array_equal(values, expected, equal_nan=True)
    assert np.array_equal(np.signbit(values[~np.isnan(values)]), np.signbit(expected[~np.isnan(values)]))
    numbers = ~np.isnan(values)
    assert np.array_equal(encode(values, fmt)[numbers], codes[numbers])
    assert np.isnan(decode(encode(values, fmt), fmt)[~numbers]).all()


@pytest.mark.parametrize("bits", WIDTHS)
def test_floats_of_every_width_survive_packing(bits):
    fmt = WIDTHS[bits]
    assert fmt.bits == bits
    dtype = torch.float32 if fmt.exp_bits <= 8 else torch.float64
    x = torch.randn(7, 53, dtype=dtype) * 2.0 ** torch.randint(-12, 12, (7, 53))
    rounded = round_to_format(x, replace(fmt, saturate=True))
    rounded[0, 0] = -0.0
    packed = pack_bits(encode(rounded, fmt), bits)
    assert packed.shape == (7, -(-53 * bits // 8))
    back = decode(unpack_bits(packed, bits, 53), fmt)
    assert torch.equal(back.to(dtype), rounded)
    assert torch.equal(torch.signbit(back), torch.signbit(rounded))
    assert np.array_equal(encode(rounded.numpy(), fmt), encode(rounded, fmt).numpy())


@pytest.mark.parametrize("bits", range(2, 17))
def test_fixed_point_and_integers_of_every_width_survive_packing(bits):
    fmt = FixedPointFormat(1 + bits // 3, bits - 1 - bits // 3)
    rounded = round_to_fixed_point(torch.randn(5, 19) * 2.0 ** (bits // 3), fmt)
    assert torch.equal(decode(unpack_bits(pack_bits(encode(rounded, fmt), bits), bits, 19), fmt), rounded)
    for symmetric in (True, False):
        integers = IntegerFormat(bits, symmetric)
        q = torch.randint(integers.qmin, integers.qmax + 1, (5, 19))
        q[0, :2] = torch.tensor([integers.qmin, integers.qmax])
        packed = pack_bits(encode(q, integers), bits)
        assert torch.equal(decode(unpack_bits(packed, bits, 19), integers).long(), q)


def test_every_code_of_every_float_format_of_up_to_16_bits_comes_back():
    for exp_bits in range(1, 12):
        for sig_bits in range(16 - exp_bits):
            for finite_only in (False, True) if exp_bits < 11 else (False,):
                for subnormal in (True, False):
                    try:
                        fmt = FloatFormat(exp_bits, sig_bits, subnormal=subnormal, finite_only=finite_only)
                    except ValueError:
                        continue  # no number but zero
                    codes = np.arange(1 << fmt.bits)
                    values = decode(codes, fmt)
                    magnitude = codes & ((1 << (fmt.bits - 1)) - 1)
                    plain = ~np.isnan(values) & (subnormal | (magnitude >> sig_bits > 0) | (magnitude == 0))
                    assert np.array_equal(encode(values, fmt)[plain], codes[plain]), fmt
                    assert np.isfinite(values).any()


def test_one_bit_is_a_width_too():
    fixed = FixedPointFormat(1, 0)
    rounded = round_to_fixed_point(torch.tensor([0.3, -0.8, 2.0, -3.0, -0.2]), fixed)
    assert rounded.tolist() == [0, -1, 0, -1, 0]
    assert decode(unpack_bits(pack_bits(encode(rounded, fixed), 1), 1, 5), fixed).tolist() == [
        0,
        -1,
        0,
        -1,
        0,
    ]
    integers = IntegerFormat(1, symmetric=False)
    q = torch.tensor([0, 1, 1, 0, 1, 1, 1, 0, 1])
    packed = pack_bits(encode(q, integers), 1)
    assert packed.tolist() == [0b01110110, 1]
    assert decode(unpack_bits(packed, 1, 9), integers).tolist() == q.tolist()


def test_narrow_carriers_are_encoded_too():
    x = torch.tensor([1.0, -1.5, 448.0], dtype=torch.bfloat16)
    assert encode(x, FORMATS["e4m3fn"]).tolist() == [0x38, 0xBC, 0x7E]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: encode(np.float32([1.1]), FORMATS["e4m3fn"]),
            ValueError,
            "1.10.* is not a number of.*round",
        ),
        (lambda: encode(torch.tensor([7.0]), FORMATS["e2m1"]), ValueError, "7.0 is not a number"),
        (lambda: encode(torch.tensor([500.0]), FORMATS["e4m3fn"]), ValueError, "500.0 is not a number"),
        (lambda: encode(torch.tensor([1e-9]), FORMATS["e4m3fn"]), ValueError, "is not a number"),
        (lambda: encode(torch.tensor([torch.inf]), FORMATS["e4m3fn"]), ValueError, "inf is not a number"),
        (lambda: encode(torch.tensor([torch.nan]), FORMATS["e2m1"]), ValueError, "NaN has no code"),
        (lambda: encode(torch.tensor([0.0]), FORMATS["e8m0"]), ValueError, "0.0 is not a number"),
        (lambda: encode(torch.tensor([-2.0]), FORMATS["e8m0"]), ValueError, "-2.0 is not a number"),
        (lambda: encode(torch.tensor([torch.nan]), FixedPointFormat(4, 4)), ValueError, "NaN has no code"),
        (lambda: encode(torch.tensor([8.0]), FixedPointFormat(4, 4)), ValueError, "8.0 is not a number"),
        (lambda: encode(torch.tensor([1.0]), FORMATS["tf32"]), ValueError, "19 bits; codes of up to 16"),
        (lambda: encode(torch.tensor([1]), FORMATS["half"]), TypeError, "cast explicitly"),
        (lambda: encode(torch.tensor([1.0]), IntegerFormat(4)), TypeError, "quantize first"),
        (lambda: encode(torch.tensor([8]), IntegerFormat(4)), ValueError, "from 8 to 8 exceed"),
        (lambda: encode([1.0], FORMATS["half"]), TypeError, "not list"),
        (lambda: decode(torch.tensor([16]), FORMATS["e2m1"]), ValueError, "run from 0 to 15"),
        (lambda: decode(torch.tensor([1.0]), FORMATS["e2m1"]), TypeError, "integers, not torch.float32"),
    ],
)
def test_what_has_no_code_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
