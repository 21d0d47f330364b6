"""The three sparse formats give back what they were given, and say how many bytes they take."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.notices import record_fallbacks
from shoestring.numbers.bitmap_matrix import BitmapMatrix, bitmap_bits_per_entry, bitmap_bytes
from shoestring.numbers.csr_matrix import CsrMatrix
from shoestring.numbers.sparse_values import ValueKind
from shoestring.numbers.tiled_csl import (
    LANES,
    MOST_ITEMS,
    TiledCslMatrix,
    bank_conflicts,
    bank_of,
    naive_bank_order,
    swizzle,
    tiled_csl_bytes,
    unswizzle,
)

FLOATS = {ValueKind.BFLOAT16: torch.bfloat16, ValueKind.FLOAT16: torch.float16}
SPARSITIES = [0.0, 0.3, 0.5, 0.8, 0.95, 1.0]


def sparse(rows: int, cols: int, sparsity: float, dtype: torch.dtype = torch.bfloat16, seed: int = 0):
    """Random normal values, a share of them zero."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, cols, generator=generator) + 0.1
    return (values * (torch.rand(rows, cols, generator=generator) >= sparsity)).to(dtype)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.view(torch.int16), b.view(torch.int16))


@given(
    rows=st.integers(1, 70),
    cols=st.integers(1, 140),
    sparsity=st.sampled_from(SPARSITIES),
    kind=st.sampled_from(list(FLOATS)),
    form=st.sampled_from([BitmapMatrix, CsrMatrix]),
    seed=st.integers(0, 5),
)
def test_what_is_stored_comes_back_bit_for_bit(rows, cols, sparsity, kind, form, seed):
    matrix = sparse(rows, cols, sparsity, FLOATS[kind], seed)
    stored = form.from_dense(matrix, kind)
    assert same_bits(stored.to_dense(matrix.dtype), matrix + 0)  # + 0: a product with zero may be −0.0
    assert stored.nonzeros == int((matrix != 0).sum())


@given(
    rows=st.integers(1, 300),
    cols=st.integers(1, 140),
    sparsity=st.sampled_from([0.6, 0.8, 0.95, 1.0]),
    kind=st.sampled_from(list(FLOATS)),
    seed=st.integers(0, 5),
)
def test_tiled_csl_gives_back_what_it_was_given_and_is_well_formed(rows, cols, sparsity, kind, seed):
    matrix = sparse(rows, cols, sparsity, FLOATS[kind], seed)
    stored = TiledCslMatrix.from_dense(matrix, kind)
    assert same_bits(stored.to_dense(matrix.dtype), matrix + 0)
    offsets = stored.tile_offsets.long()
    tiles = -(-rows // 128) * -(-cols // 64)
    assert len(offsets) == tiles + 2
    assert offsets[0] == 0
    assert (offsets.diff() >= 0).all()
    assert offsets[-1] == offsets[-2]
    padded = torch.nn.functional.pad(matrix, (0, -cols % 64, 0, -rows % 128))
    counts = (padded.unfold(0, 128, 128).unfold(1, 64, 64) != 0).sum((2, 3)).reshape(-1)
    assert torch.equal(4 * offsets.diff()[:-1], -(-counts // 4) * 4)  # nonzeros and padding to whole vectors
    assert len(stored.items) == 4 * offsets[-1]
    positions = stored.items & 0xFFFF
    for t in range(tiles):
        own = positions[4 * offsets[t] : 4 * offsets[t + 1]]
        assert len(own.unique()) == len(own)
    stored.check()
    assert stored.nbytes == tiled_csl_bytes(len(stored.items), rows, cols)


@pytest.mark.parametrize("form", [BitmapMatrix, CsrMatrix, TiledCslMatrix])
def test_empty_rows_empty_tiles_and_minus_zero(form):
    matrix = torch.zeros(260, 130)
    matrix[3, 5], matrix[259, 129], matrix[140, 70], matrix[140, 71] = 1.5, -2.0, -0.0, 0.25
    stored = form.from_dense(matrix)
    assert torch.equal(stored.to_dense(), matrix)
    assert not torch.signbit(stored.to_dense()[140, 70]), "−0.0 becomes 0"
    if form is not TiledCslMatrix:
        assert stored.nonzeros == 3


@pytest.mark.parametrize("form", [BitmapMatrix, CsrMatrix])
def test_matrices_without_rows_or_columns(form):
    for shape in ((0, 5), (5, 0)):
        assert form.from_dense(torch.zeros(shape)).to_dense().shape == shape


def test_the_swizzle_is_its_own_inverse_and_stays_in_its_row():
    positions = torch.arange(128 * 64)
    there = swizzle(positions)
    assert torch.equal(unswizzle(there), positions)
    assert torch.equal(there // 64, positions // 64)
    assert len(there.unique()) == len(positions)
    assert int(swizzle(torch.tensor(3 * 64 + 1))) == 3 * 64 + 25  # 1 XOR 3 · 8


@pytest.mark.parametrize("sparsity", [0.55, 0.7, 0.9, 0.99])
def test_reordering_permutes_each_tile_and_lets_fewer_writes_wait(sparsity):
    matrix = sparse(128, 128, sparsity)
    plain = TiledCslMatrix.from_dense(matrix)
    ordered = TiledCslMatrix.from_dense(matrix, order=naive_bank_order)
    ordered.check()
    assert torch.equal(ordered.tile_offsets, plain.tile_offsets)
    assert same_bits(ordered.to_dense(matrix.dtype), plain.to_dense(matrix.dtype))
    waiting = {}
    for name, stored in (("plain", plain), ("ordered", ordered)):
        end = 4 * int(stored.tile_offsets[1])
        waiting[name] = bank_conflicts((stored.items[:end] & 0xFFFF).numpy())
    assert torch.equal(plain.items.sort().values, ordered.items.sort().values)
    assert waiting["ordered"] < 0.5 * waiting["plain"]


def test_banks_that_are_equally_full_never_collide():
    """32 lanes, 4 steps, four items for each bank: every step can take one of each."""
    position = np.arange(0, 128 * 64, 64)[:4].repeat(32) + 2 * np.tile(np.arange(32), 4)
    banks = bank_of(position)
    assert np.array_equal(np.bincount(banks, minlength=LANES), np.full(LANES, 4))
    assert bank_conflicts(position[naive_bank_order(banks)]) == 0


@pytest.mark.parametrize("kind", list(ValueKind))
@pytest.mark.parametrize("cols", [64, 100])
def test_the_size_of_a_bitmap_follows_from_its_shape_and_count(kind, cols):
    stored = BitmapMatrix.from_dense(sparse(37, cols, 0.7, torch.float32), kind)
    parts = [stored.masks, stored.values, stored.row_starts]
    parts += [] if stored.scales is None else [stored.scales]
    assert stored.nbytes == sum(p.nbytes for p in parts) == bitmap_bytes(37, cols, stored.nonzeros, kind)


@pytest.mark.parametrize(
    ("sparsity", "bits", "smaller"), [(0.5, 9, 1.78), (0.7, 5.8, 2.76), (0.8, 4.2, 3.8), (0.9, 2.6, 6.2)]
)
def test_bits_per_entry(sparsity, bits, smaller):
    assert bitmap_bits_per_entry(sparsity) == pytest.approx(bits)
    assert 16 / bitmap_bits_per_entry(sparsity) == pytest.approx(smaller, rel=0.01)
    nonzeros = round(1024 * 4096 * (1 - sparsity))
    assert 8 * bitmap_bytes(1024, 4096, nonzeros) / (1024 * 4096) == pytest.approx(bits, rel=0.005)


def test_int8_values_are_rounded_to_a_scale_of_their_row():
    matrix = sparse(9, 70, 0.5, torch.float32)
    stored = BitmapMatrix.from_dense(matrix, ValueKind.INT8)
    scale = matrix.abs().amax(1, keepdim=True) / 127
    assert ((stored.to_dense() - matrix).abs() <= scale / 2 * 1.001).all()
    assert not BitmapMatrix.from_dense(torch.zeros(2, 3), ValueKind.INT8).to_dense().any()


def test_a_mask_decides_what_is_stored_zeros_too():
    matrix, kept = torch.tensor([[1.0, 0.0, -0.0, 2.0]]), torch.tensor([[False, True, True, True]])
    stored = BitmapMatrix.from_dense(matrix, kept=kept)
    assert stored.nonzeros == 3
    assert stored.to_dense().tolist() == [[0.0, 0.0, 0.0, 2.0]]
    assert torch.equal(stored.kept(), kept)


@pytest.mark.parametrize("form", [BitmapMatrix, CsrMatrix, TiledCslMatrix])
@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        (torch.zeros(3), ValueError, r"shape \(3,\); give one of two dimensions"),
        (torch.zeros(2, 2, dtype=torch.int32), TypeError, "is torch.int32; give float32"),
        (torch.tensor([[float("nan")]]), ValueError, "holds NaN or infinite"),
        (torch.tensor([[float("inf")]]), ValueError, "holds NaN or infinite"),
    ],
)
def test_matrices_that_are_refused(form, matrix, error, message):
    with pytest.raises(error, match=message):
        form.from_dense(matrix)


def test_values_and_masks_that_are_refused():
    with pytest.raises(ValueError, match="exceeds what float16 can hold; use bfloat16"):
        BitmapMatrix.from_dense(torch.tensor([[1e6]]), ValueKind.FLOAT16)
    with pytest.raises(ValueError, match="give a bool for each entry"):
        BitmapMatrix.from_dense(torch.ones(2, 2), kept=torch.ones(2, 3, dtype=torch.bool))
    for form in (CsrMatrix, TiledCslMatrix):
        with pytest.raises(ValueError, match="stores 16-bit floats"):
            form.from_dense(torch.ones(2, 2), ValueKind.INT8)


def test_shapes_that_are_not_whole_tiles_where_padding_is_not_allowed():
    with pytest.raises(ValueError, match=r"130 x 64 is not whole tiles of 128 x 64; allow padding"):
        TiledCslMatrix.from_dense(torch.zeros(130, 64), pad=False)
    with pytest.raises(ValueError, match="128 x 65 is not whole tiles"):
        TiledCslMatrix.from_dense(torch.zeros(128, 65), pad=False)
    TiledCslMatrix.from_dense(torch.zeros(128, 64), pad=False)


def test_a_tile_denser_than_a_half_is_refused_and_none_is_cut_short():
    matrix = torch.zeros(256, 64)
    matrix[128:].view(-1)[:MOST_ITEMS] = 1
    assert TiledCslMatrix.from_dense(matrix).to_dense().sum() == MOST_ITEMS
    matrix[128:].view(-1)[MOST_ITEMS] = 1
    with pytest.raises(ValueError, match="tile 1 has 4097 stored entries, over 4096"):
        TiledCslMatrix.from_dense(matrix)


def test_tiled_csl_larger_than_dense_says_so():
    with record_fallbacks() as said:
        TiledCslMatrix.from_dense(torch.ones(60, 64))
    assert any("larger than a dense matrix" in line for line in said)
    with record_fallbacks() as said:
        TiledCslMatrix.from_dense(sparse(128, 64, 0.8))
    assert not said


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda o, i: o.__setitem__(1, o[2] + 5), "must start at 0, not fall"),
        (lambda o, i: o.__setitem__(-1, o[-1] + 1), "repeat the last"),
        (lambda o, i: i.__setitem__(1, i[0]), "tile 0 names a position twice"),
        (lambda o, i: i.__setitem__(0, i[0] | 0x2000), "lies outside a tile"),
    ],
)
def test_damaged_tiles_are_found(damage, message):
    stored = TiledCslMatrix.from_dense(sparse(200, 100, 0.8))
    damage(stored.tile_offsets, stored.items)
    with pytest.raises(ValueError, match=message):
        stored.check()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: m.row_starts.__setitem__(2, m.row_starts[2] + 1), "not those that its masks count"),
        (lambda m: m.row_starts.__setitem__(0, 1), "not those that its masks count"),
        (lambda m: m.masks.__setitem__((0, 0), m.masks[0, 0] ^ 1), "not those that its masks count"),
    ],
)
def test_damaged_bitmaps_are_found(damage, message):
    stored = BitmapMatrix.from_dense(sparse(5, 40, 0.5))
    stored.check()
    damage(stored)
    with pytest.raises(ValueError, match=message):
        stored.check()


def test_a_bitmap_with_bits_beyond_its_columns_or_a_short_stream_is_found():
    stored = BitmapMatrix.from_dense(torch.ones(2, 33))
    narrow = BitmapMatrix(2, 32 + 0, stored.kind, stored.masks, stored.values, stored.row_starts)
    with pytest.raises(ValueError, match="do not belong to a 2 x 32 bitmap"):
        narrow.check()
    stored.masks[0, 1] = 2  # one bit as before, but in column 33 of 0 … 32
    with pytest.raises(ValueError, match="a bit beyond its 33 columns"):
        stored.check()
    short = BitmapMatrix.from_dense(torch.ones(2, 3))
    cut = BitmapMatrix(2, 3, short.kind, short.masks, short.values[:-1], short.row_starts)
    with pytest.raises(ValueError, match="37 values; 6 stored entries and the padding take 38"):
        cut.check()


def test_wide_matrices_have_wide_column_numbers():
    matrix = torch.zeros(2, 70_000)
    matrix[0, 69_999], matrix[1, 40_000] = 1, 2
    stored = CsrMatrix.from_dense(matrix)
    assert stored.columns.dtype == torch.int32
    assert stored.column_numbers().tolist() == [69_999, 40_000]
    narrow = CsrMatrix.from_dense(matrix[:, :65_536])
    assert narrow.columns.dtype == torch.int16
    assert narrow.column_numbers().tolist() == [40_000]
