import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.kernels.tile.types import (
    all_narrow_types,
    cast_table,
    data_type,
    gather_codes,
    naive_read_code,
    naive_write_code,
    scatter_codes,
)
from shoestring.numbers.packing import naive_pack_bits

ML_DTYPES = {
    "f4e2m1": ml_dtypes.float4_e2m1fn,
    "f6e3m2": ml_dtypes.float6_e3m2fn,
    "f6e2m3": ml_dtypes.float6_e2m3fn,
    "e4m3fn": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "i2": ml_dtypes.int2,
    "i4": ml_dtypes.int4,
    "u2": ml_dtypes.uint2,
    "u4": ml_dtypes.uint4,
    "i8": np.int8,
    "u8": np.uint8,
}


def closed_form(name, code):
    """Value of a code from the definition: sign, exponent field with bias 2^(e−1) − 1, subnormals."""
    kind, bits = name[0], int(name[1])
    if kind == "u":
        return code
    sign = code >> (bits - 1)
    if kind == "i":
        return code - (sign << bits)
    e, m = int(name[3]), int(name[5])
    field, fraction = (code >> m) & ((1 << e) - 1), code & ((1 << m) - 1)
    bias = 2 ** (e - 1) - 1
    magnitude = (
        2.0 ** (1 - bias) * fraction / 2**m if field == 0 else 2.0 ** (field - bias) * (1 + fraction / 2**m)
    )
    return -magnitude if sign else magnitude


@pytest.mark.parametrize("dtype", all_narrow_types(), ids=str)
def test_every_code_of_every_narrow_type(dtype):
    table = cast_table(dtype)
    assert table.dtype == np.float32
    codes = np.arange(1 << dtype.bits)
    if dtype.name in ML_DTYPES:
        expected = codes.astype(np.uint8).view(ML_DTYPES[dtype.name]).astype(np.float32)
        assert np.array_equal(table, expected, equal_nan=True)
    if dtype.name[0] != "e":
        assert np.array_equal(table, np.float32([closed_form(dtype.name, code) for code in codes]))
    finite = np.isfinite(table)
    assert dtype.max_value == table[finite].max()
    assert dtype.min_value == table[finite].min()
    back = dtype.encode(table)[finite]
    assert np.array_equal(table[back], table[finite])
    assert np.array_equal(back[table[finite] != 0], codes[finite][table[finite] != 0])


@pytest.mark.parametrize("dtype", all_narrow_types(), ids=str)
def test_encoding_rounds_to_nearest_even_and_saturates(dtype):
    table = cast_table(dtype)
    values = np.unique(table[np.isfinite(table)])
    middles = (values[1:] + values[:-1]) / 2
    assert np.array_equal(table[dtype.encode(np.nextafter(middles, np.float32(-np.inf)))], values[:-1])
    assert np.array_equal(table[dtype.encode(np.nextafter(middles, np.float32(np.inf)))], values[1:])
    below, above = dtype.encode(values[:-1]), dtype.encode(middles)
    even = np.where(below % 2 == 0, values[:-1], values[1:])
    crossing = values[:-1] * values[1:] < 0  # e.g. u1's neighbours never straddle 0 with both odd codes
    assert np.array_equal(table[above][~crossing], even[~crossing])
    far = np.float32([-1e30, 1e30])
    assert table[dtype.encode(far)].tolist() == [values[0], values[-1]]
    if dtype.name not in ("e4m3fn", "e5m2"):
        assert table[dtype.encode(np.float32([np.nan]))] == 0


def test_wide_types():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((7, 3)).astype(np.float32) * 1e3
    for name, native in (("f16", np.float16), ("bf16", ml_dtypes.bfloat16), ("f32", np.float32)):
        dtype = data_type(name)
        x[0] = 1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-11  # ties of bf16 and f16 go to even
        expected = x.astype(native)
        assert np.array_equal(dtype.encode(x), expected.view(f"u{dtype.bits // 8}"))
        assert np.array_equal(dtype.decode(dtype.encode(x)), expected.astype(np.float32))
    assert data_type("i32").decode(data_type("i32").encode(np.array([-3, 2**31 - 1]))).tolist() == [
        -3,
        2**31 - 1,
    ]
    assert np.isinf(data_type("f16").decode(data_type("f16").encode(np.float32([1e6]))))


@given(st.integers(1, 8), st.integers(1, 30), st.integers(0, 99))
def test_element_access_equals_the_scalar_rule(bits, count, seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 1 << bits, count)
    stream = naive_pack_bits(codes.tolist(), bits)
    assert [naive_read_code(stream, n, bits) for n in range(count)] == codes.tolist()
    array = np.frombuffer(stream, np.uint8).copy()
    order = rng.permutation(count)
    assert np.array_equal(gather_codes(array, order, bits), codes[order])
    chosen = order[: count // 2]
    new = rng.integers(0, 1 << bits, len(chosen))
    one_by_one = bytearray(stream)
    for n, code in zip(chosen.tolist(), new.tolist(), strict=True):
        naive_write_code(one_by_one, n, bits, code)
    scatter_codes(array, chosen, bits, new)
    assert array.tobytes() == bytes(one_by_one)
    codes[chosen] = new
    assert bytes(one_by_one) == naive_pack_bits(codes.tolist(), bits)


@pytest.mark.parametrize("name", ["i1", "u9", "f6e3m3", "f9e4m4", "f3e0m2", "int4", ""])
def test_unknown_names(name):
    with pytest.raises(ValueError, match="there are i2..i8, u1..u8"):
        data_type(name)


def test_wide_types_have_no_table():
    with pytest.raises(ValueError, match="too many codes"):
        cast_table(data_type("bf16"))
