import numpy as np
import pytest
import torch

from shoestring.errors import LayoutError
from shoestring.kernels.tile.fragments import MMA_M16N8K16_B
from shoestring.kernels.tile.interpreter import run
from shoestring.kernels.tile.layout import local, replicate, spatial
from shoestring.kernels.tile.packing import PackedTile
from shoestring.kernels.tile.target import AVX2, AVX512, CUDA
from shoestring.kernels.tile.types import all_narrow_types, data_type
from shoestring.kernels.tile.verify import verify
from shoestring.numbers.packing import pack_bits

TILES = {
    "fragment pair": (local(1, 2) * MMA_M16N8K16_B, CUDA),
    "four fragments": (local(2, 2) * MMA_M16N8K16_B, CUDA),
    "two warps": (spatial(1, 2) * local(2, 1) * MMA_M16N8K16_B * local(1, 2), CUDA),
    "columns of 16 lanes": (local(32, 1).spatial(1, 16), AVX512),
    "columns of 8 lanes": (local(32, 1).spatial(1, 8), AVX2),
    "rows of 16 lanes": (local(2, 1).spatial(1, 16).local(1, 16), AVX512),
}


def compact(codes, bits):
    return pack_bits(codes.reshape(1, -1), bits).reshape(-1)


@pytest.mark.parametrize("name", TILES)
@pytest.mark.parametrize("bits", range(1, 9))
def test_change_then_restore_is_the_identity_and_equals_the_fast_packer(bits, name):
    layout, target = TILES[name]
    tile = PackedTile(data_type(f"u{bits}"), layout, target)
    rows, cols = tile.rows, 2 * tile.cols
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (rows, cols)).astype(np.uint8)
    change, restore = tile.change_layout_program(), tile.restore_layout_program()
    verify(change, target)
    verify(restore, target)
    packed = np.full((1, 2, tile.tile_bytes), 0xEE, np.uint8)
    run(change, {"rows": rows, "cols": cols, "codes": compact(codes, bits), "packed": packed})
    assert packed.size * 8 == codes.size * bits
    back = np.zeros((rows, cols), np.uint8)
    run(restore, {"rows": rows, "cols": cols, "packed": packed, "codes": back})
    assert np.array_equal(back, codes)
    assert np.array_equal(tile.pack(codes), packed)
    assert np.array_equal(tile.unpack(packed), codes)
    on_torch = tile.pack(torch.from_numpy(codes))
    assert np.array_equal(on_torch.numpy(), packed)
    assert np.array_equal(tile.unpack(on_torch).numpy(), codes)


def bit_sources(program, tile, target_bits):
    """Which packed bit every bit of the restored codes comes from, by running the unpacker on bit numbers.

    Run j sees, in place of every packed bit, bit j of that bit's number.
    """
    total = tile.tile_bytes * 8
    numbers = np.arange(total)
    found = np.zeros((tile.rows * tile.cols, target_bits), np.int64)
    for j in range(total.bit_length()):
        stream = np.packbits((numbers >> j & 1).astype(np.uint8), bitorder="little")
        codes = np.zeros((tile.rows, tile.cols), np.uint8)
        run(program, {"rows": tile.rows, "cols": tile.cols, "packed": stream, "codes": codes})
        bits = np.unpackbits(codes.reshape(-1, 1), axis=1, bitorder="little")[:, :target_bits]
        found += bits.astype(np.int64) << j
    return found


@pytest.mark.parametrize("name", TILES)
@pytest.mark.parametrize("bits", [3, 8])
def test_the_packer_scatters_by_the_symbolic_unpacker(bits, name):
    layout, target = TILES[name]
    tile = PackedTile(data_type(f"u{bits}"), layout, target)
    source = bit_sources(tile.restore_layout_program(), tile, bits)
    assert sorted(source.reshape(-1).tolist()) == list(range(tile.tile_bytes * 8))
    codes = np.random.default_rng(0).integers(0, 1 << bits, tile.rows * tile.cols)
    stream = np.zeros(tile.tile_bytes * 8, np.uint8)
    stream[source] = codes[:, None] >> np.arange(bits) & 1
    packed = np.packbits(stream, bitorder="little")
    assert np.array_equal(tile.pack(codes.reshape(tile.rows, tile.cols))[0, 0], packed)


def test_matrices_of_many_tiles():
    layout, target = TILES["four fragments"]
    tile = PackedTile(data_type("u5"), layout, target)
    codes = np.random.default_rng(0).integers(0, 32, (3 * tile.rows, 2 * tile.cols)).astype(np.uint8)
    packed = np.zeros((3, 2, tile.tile_bytes), np.uint8)
    run(
        tile.change_layout_program(),
        {"rows": codes.shape[0], "cols": codes.shape[1], "codes": compact(codes, 5), "packed": packed},
        seed=1,
    )
    assert np.array_equal(tile.pack(codes), packed)
    last = codes[2 * tile.rows :, tile.cols :]
    assert np.array_equal(tile.pack(np.ascontiguousarray(last))[0, 0], packed[2, 1])


def test_sizes_of_known_tiles():
    int6 = PackedTile(data_type("i6"), MMA_M16N8K16_B, CUDA)
    assert int6.bytes_per_thread == 3
    assert int6.flat == local(3).spatial(32)
    int4 = PackedTile(data_type("i4"), local(4, 2) * MMA_M16N8K16_B, CUDA)
    assert int4.flat == spatial(32).local(16)
    lanes = PackedTile(data_type("u5"), local(32, 1).spatial(1, 16), AVX512)
    assert lanes.flat == local(5).spatial(16).local(4)
    for dword in range(5):  # dword d of lane t at byte (d·T + t)·4
        for lane in range(16):
            assert lanes.flat.index_of(lane, 4 * dword) == ((dword * 16 + lane) * 4,)


def test_every_narrow_type_has_whole_words_in_the_standard_tiles():
    for dtype in all_narrow_types():
        for layout, target in TILES.values():
            assert PackedTile(dtype, layout, target).tile_bytes * 8 == layout.size * dtype.bits


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: PackedTile(data_type("u3"), local(2, 1).spatial(1, 32), CUDA),
            LayoutError,
            r"local\(2, 1\).*2 elements of u3, 6 bits: not whole words of 8 bits on cuda",
        ),
        (
            lambda: PackedTile(data_type("u3"), local(8, 1).spatial(1, 16), AVX512),
            LayoutError,
            "24 bits: not whole words of 32 bits on avx512",
        ),
        (lambda: PackedTile(data_type("u4"), spatial(32), CUDA), LayoutError, "has rank 1"),
        (
            lambda: PackedTile(data_type("u4"), replicate(2) * local(8, 1).spatial(1, 16), CUDA),
            LayoutError,
            "holds copies",
        ),
        (
            lambda: PackedTile(data_type("u4"), TILES["fragment pair"][0], CUDA).pack(
                np.zeros((16, 17), np.uint8)
            ),
            ValueError,
            "16 × 17 is not whole tiles of 16 × 16; pad it to 16 × 32",
        ),
        (
            lambda: PackedTile(data_type("u4"), TILES["columns of 8 lanes"][0], AVX2).unpack(
                np.zeros((1, 1, 256), np.uint8)
            ),
            ValueError,
            "tiles of 256 bytes.*takes 128: packed for another target",
        ),
        (
            lambda: PackedTile(data_type("u4"), TILES["fragment pair"][0], CUDA).pack(
                np.full((16, 16), 16, np.uint8)
            ),
            ValueError,
            "code 16 does not fit",
        ),
    ],
)
def test_bad_tiles(call, error, message):
    with pytest.raises(error, match=message):
        call()
