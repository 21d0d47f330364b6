"""Blocks of cached tokens: their bytes, and what is refused."""

import pytest
import torch

from shoestring.numbers.block_format import BlockFormat
from shoestring.numbers.token_cache_format import TokenCacheFormat


@pytest.mark.parametrize("slots", [0, -16])
def test_blocks_without_slots_are_refused(slots):
    with pytest.raises(ValueError, match=f"slots={slots}"):
        BlockFormat(slots)


@pytest.mark.parametrize(("bits", "codes"), [(8, 64), (4, 32), (2, 16)])
def test_bytes_are_those_of_the_sheet(bits, codes):
    half = BlockFormat(64).token_bytes(3, 64, torch.float16)
    form = BlockFormat(64, TokenCacheFormat(bits, bits))
    assert form.token_bytes(3, 64, torch.float16) / half == (codes + 4) / 128
    assert form.block_bytes(3, 64, torch.float16, n_layers=2) == 2 * 64 * form.token_bytes(
        3, 64, torch.float16
    )


def test_what_is_in_no_codes_has_the_type_of_the_cache():
    assert BlockFormat().exact
    assert BlockFormat().token_bytes(3, 80, torch.float32) == 3 * 2 * 80 * 4
    mixed = BlockFormat(16, TokenCacheFormat(16, 8))
    assert not mixed.exact
    assert mixed.token_bytes(1, 80, torch.bfloat16) == 2 * 80 + 80 + 4


def test_channels_that_codes_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="15 channels, but codes of key_bits=4 come in runs of 32"):
        BlockFormat(16, TokenCacheFormat(4, 16)).token_bytes(1, 15, torch.float16)


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (5, 1), (6, 2), (11, 3)])
def test_the_last_block_may_be_partly_full(tokens, blocks):
    assert BlockFormat(5).blocks_for(tokens) == blocks
