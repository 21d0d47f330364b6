import pytest

from shoestring.errors import LayoutError
from shoestring.kernels.tile.fragments import (
    MMA_M16N8K16_A,
    MMA_M16N8K16_B,
    MMA_M16N8K16_C,
    can_ldmatrix,
    ldmatrix_part,
)
from shoestring.kernels.tile.layout import local, spatial


def test_fragments_equal_the_formulas_of_the_instruction_set():
    """PTX ISA: groupID = lane >> 2, threadID_in_group = lane % 4."""
    for lane in range(32):
        group, place = lane >> 2, lane % 4
        for i in range(8):
            row = group if i in (0, 1, 4, 5) else group + 8
            assert MMA_M16N8K16_A.index_of(lane, i) == (row, place * 2 + (i & 1) + (8 if i >= 4 else 0))
        for i in range(4):
            assert MMA_M16N8K16_B.index_of(lane, i) == (place * 2 + (i & 1) + (8 if i >= 2 else 0), group)
            assert MMA_M16N8K16_C.index_of(lane, i) == (group + (8 if i >= 2 else 0), place * 2 + (i & 1))


def test_ldmatrix_loads_what_its_tile_divides():
    assert ldmatrix_part(MMA_M16N8K16_A, 16).local_size == 4
    assert can_ldmatrix(MMA_M16N8K16_B.permute([1, 0]), 16)
    assert not can_ldmatrix(MMA_M16N8K16_B, 16)
    assert can_ldmatrix(spatial(8, 4).local(1, 4), 8)
    assert not can_ldmatrix(spatial(8, 4).local(1, 2), 8)
    assert not can_ldmatrix(MMA_M16N8K16_A, 4)
    with pytest.raises(LayoutError, match="not divisible"):
        ldmatrix_part(local(8, 8), 16)
    with pytest.raises(ValueError, match="not 4"):
        ldmatrix_part(MMA_M16N8K16_A, 4)
