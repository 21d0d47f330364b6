import math

import pytest

from shoestring.numbers import FORMATS, FloatFormat, named_format


@pytest.mark.parametrize(
    ("name", "bits", "xmax", "xmin", "xmins"),
    [
        ("e4m3_ieee", 8, 240.0, 2.0**-6, 2.0**-9),
        ("q43", 8, 240.0, 2.0**-6, 2.0**-9),
        ("e4m3fn", 8, 448.0, 2.0**-6, 2.0**-9),
        ("e5m2", 8, 57344.0, 2.0**-14, 2.0**-16),
        ("q52", 8, 57344.0, 2.0**-14, 2.0**-16),
        ("e3m2", 6, 28.0, 0.25, 0.0625),
        ("e2m3", 6, 7.5, 1.0, 0.125),
        ("e2m1", 4, 6.0, 1.0, 0.5),
        ("e8m0", 8, 2.0**127, 2.0**-127, 2.0**-127),
        ("fp16", 16, 65504.0, 2.0**-14, 2.0**-24),
        ("bfloat16", 16, float.fromhex("0x1.fep127"), 2.0**-126, 2.0**-133),
        ("tf32", 19, float.fromhex("0x1.ffcp127"), 2.0**-126, 2.0**-136),
        ("single", 32, float.fromhex("0x1.fffffep127"), 2.0**-126, 2.0**-149),
        ("double", 64, float.fromhex("0x1.fffffffffffffp1023"), 2.0**-1022, 2.0**-1074),
    ],
)
def test_presets_end_where_their_standards_say(name, bits, xmax, xmin, xmins):
    fmt = named_format(name)
    assert (fmt.bits, fmt.xmax, fmt.xmin, fmt.xmins) == (bits, xmax, xmin, xmins)


def test_properties_follow_the_definition():
    half = FORMATS["half"]
    assert (half.precision, half.unit_roundoff, half.emax, half.emin) == (11, 2.0**-11, 15, -14)
    assert half.has_infinity
    assert half.has_nan
    assert not half.saturates
    assert FORMATS["e2m1"].saturates
    assert not FORMATS["e2m1"].has_nan
    assert FORMATS["e4m3fn"].has_nan
    assert not FORMATS["e4m3fn"].has_infinity
    assert not FORMATS["e4m3fn"].saturates


def test_a_format_of_one_exponent_bit_has_only_subnormals_below_infinity():
    assert FloatFormat(1, 3).xmax == 2 - 2.0**-2
    assert FloatFormat(1, 3, finite_only=True).xmax == 3.75


def test_from_precision():
    assert FloatFormat.from_precision(11, 15) == FORMATS["half"]
    assert FloatFormat.from_precision(53, 1023) == FORMATS["double"]
    with pytest.raises(ValueError, match=r"emax=12 .*1, 3, 7, 15"):
        FloatFormat.from_precision(8, 12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"exp_bits": 0, "sig_bits": 3}, "exp_bits=0.*1 to 11"),
        ({"exp_bits": 12, "sig_bits": 3}, "exp_bits=12.*1 to 11"),
        ({"exp_bits": 5, "sig_bits": -1}, "sig_bits=-1"),
        ({"exp_bits": 5, "sig_bits": 53}, "t = 53 bits"),
        ({"exp_bits": 4, "sig_bits": 3, "nan_code": 0x80, "finite_only": True}, "all-ones code, 0x7f"),
        ({"exp_bits": 4, "sig_bits": 3, "nan_code": 0x7F, "finite_only": False}, "needs finite_only=True"),
        ({"exp_bits": 11, "sig_bits": 3, "finite_only": True}, r"2\^1024"),
        ({"exp_bits": 4, "sig_bits": 3, "signed": False}, "sig_bits=0 and a nan_code"),
        ({"exp_bits": 1, "sig_bits": 0}, "no finite value but zero"),
        ({"exp_bits": 1, "sig_bits": 2, "subnormal": False}, "no finite value but zero"),
    ],
)
def test_impossible_formats_name_their_limit(arguments, message):
    with pytest.raises(ValueError, match=message):
        FloatFormat(**arguments)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="'fp7'.*e4m3fn.*bfloat16"):
        named_format("fp7")


def test_every_value_of_a_format_is_finite_in_float64():
    assert all(math.isfinite(fmt.xmax) and fmt.xmins > 0 for fmt in FORMATS.values())
