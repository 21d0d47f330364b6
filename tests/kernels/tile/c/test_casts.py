"""All codes of all types, on every instruction set, bit for bit as the interpreter has them."""

import numpy as np
from tests.kernels.tile.c.programs import both, on_each_isa, single_block

from shoestring.kernels.tile.layout import local, spatial
from shoestring.kernels.tile.types import all_narrow_types, data_type
from shoestring.numbers.packing import pack_bits

TYPES = all_narrow_types()
RUN = 32


def tile_layout(target):
    return local(RUN) * spatial(target.group)


@on_each_isa()
def test_every_code_of_every_type_decodes_exactly(isa, target):
    size = RUN * target.group
    b = single_block(target, "decode_all")
    arguments = {}
    for dtype in TYPES:
        source = b.view_global(b.pointer(f"codes_{dtype}", dtype), [size])
        tile = b.load_global(source, [0], shape=[size], layout=tile_layout(target))
        y = b.view_global(b.pointer(f"y_{dtype}", "f32"), [size])
        b.store_global(y, b.cast(tile, "f32"), [0])
        codes = np.arange(size) % (1 << dtype.bits)
        arguments[f"codes_{dtype}"] = pack_bits(codes.astype(np.int32), dtype.bits)
        arguments[f"y_{dtype}"] = np.zeros(size, np.float32)
    got, expected = both(b.build(), target, isa, arguments)
    for dtype in TYPES:
        mine, theirs = got[f"y_{dtype}"], expected[f"y_{dtype}"]
        assert np.array_equal(mine, theirs, equal_nan=True), dtype
        numbers = ~np.isnan(mine)
        assert np.array_equal(np.signbit(mine[numbers]), np.signbit(theirs[numbers])), dtype
        values = dtype.values[np.arange(size) % (1 << dtype.bits)]
        assert np.array_equal(mine, values.astype(np.float32), equal_nan=True), dtype


def hard_values(dtype, size):
    """Codes' values, what lies half-way between them and beside that, and what has no code."""
    values = dtype.values.astype(np.float32)
    values = np.sort(values[np.isfinite(values)])
    half_way = (values[1:] + values[:-1]) / 2
    beside = [np.nextafter(half_way, np.float32(side)) for side in (-np.inf, np.inf)]
    special = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-30, -1e30, 3e38], np.float32)
    found = np.concatenate([special, half_way, *beside, values])
    return np.resize(found, size)


@on_each_isa("avx512", "portable")
def test_rounding_to_every_narrow_type(isa, target):
    size = 4 * RUN * target.group
    layout = local(4 * RUN) * spatial(target.group)
    b = single_block(target, "encode_all")
    arguments = {}
    for dtype in TYPES:
        source = b.view_global(b.pointer(f"x_{dtype}", "f32"), [size])
        tile = b.load_global(source, [0], shape=[size], layout=layout)
        y = b.view_global(b.pointer(f"codes_{dtype}", dtype), [size])
        b.store_global(y, b.cast(tile, dtype), [0])
        arguments[f"x_{dtype}"] = hard_values(dtype, size)
        arguments[f"codes_{dtype}"] = np.zeros(size * dtype.bits // 8, np.uint8)
    got, expected = both(b.build(), target, isa, arguments)
    for dtype in TYPES:
        assert np.array_equal(got[f"codes_{dtype}"], expected[f"codes_{dtype}"]), dtype


@on_each_isa()
def test_casts_between_wide_types(isa, target):
    """Through each of f16, bf16 and i32 and back, also of values that overflow, are subnormal or NaN."""
    rng = np.random.default_rng(1)
    size = RUN * target.group
    x = (rng.standard_normal(size) * 2.0 ** rng.integers(-30, 36, size)).astype(np.float32)
    x[:9] = [np.nan, np.inf, -np.inf, -0.0, 65520, 65519, 2.0**31, -(2.0**31), 0.5]
    x[9:12] = [1.5, 2.5, 2.0**-25]
    b = single_block(target, "wide")
    tile = b.load_global(
        b.view_global(b.pointer("x", "f32"), [size]), [0], shape=[size], layout=tile_layout(target)
    )
    arguments = {"x": x}
    for name in ("f16", "bf16", "i32"):
        between = b.cast(tile, name)
        codes = b.view_global(b.pointer(f"y_{name}", name), [size])
        b.store_global(codes, between, [0])
        b.store_global(b.view_global(b.pointer(f"back_{name}", "f32"), [size]), b.cast(between, "f32"), [0])
        arguments[f"y_{name}"] = np.zeros(size, np.int32 if name == "i32" else np.uint16)
        arguments[f"back_{name}"] = np.zeros(size, np.float32)
    got, expected = both(b.build(), target, isa, arguments)
    for name in ("f16", "bf16", "i32"):
        numbers = ~np.isnan(x)
        assert np.array_equal(got[f"y_{name}"][numbers], expected[f"y_{name}"][numbers]), name
        assert np.array_equal(got[f"back_{name}"], expected[f"back_{name}"], equal_nan=True), name


@on_each_isa("avx512", "avx2")
def test_views_and_codes_that_grow(isa, target):
    """restore_layout undoes change_layout: loads, View and stores keep every bit; u3 codes become bytes."""
    from shoestring.kernels.tile.packing import PackedTile

    tile = PackedTile(data_type("u3"), local(RUN, 1).spatial(1, target.group), target)
    codes = np.random.default_rng(2).integers(0, 8, (2 * tile.rows, 2 * tile.cols))
    stream = pack_bits(codes.reshape(-1).astype(np.int32), 3)
    shape = dict(rows=codes.shape[0], cols=codes.shape[1])
    packed = np.zeros((2, 2, tile.tile_bytes), np.uint8)
    got, expected = both(
        tile.change_layout_program(), target, isa, {**shape, "codes": stream, "packed": packed}
    )
    assert np.array_equal(got["packed"], expected["packed"])
    assert np.array_equal(got["packed"], tile.pack(codes.astype(np.uint8)))
    back = {**shape, "packed": got["packed"], "codes": np.zeros(codes.shape, np.uint8)}
    assert np.array_equal(both(tile.restore_layout_program(), target, isa, back)[0]["codes"], codes)
