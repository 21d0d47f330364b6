import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.numbers.philox import MASK, naive_philox, philox_blocks, random_words, random_words_torch

# Known answers published with Random123 (its kat_vectors file, lines "philox4x32 10").
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((MASK,) * 4, (MASK,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_published_answers(counter, key, words):
    seed = key[0] | key[1] << 32
    assert naive_philox(counter, key) == words
    as_numpy = tuple(np.array([word], dtype=np.uint64) for word in counter)
    assert tuple(int(word[0]) for word in philox_blocks(as_numpy, seed)) == words
    as_torch = tuple(torch.tensor([word]) for word in counter)
    assert tuple(int(word[0]) for word in philox_blocks(as_torch, seed)) == words


@given(
    size=st.integers(0, 70),
    offset=st.integers(0, 2**40),
    seed=st.integers(0, 2**64 - 1),
    stream=st.integers(0, 3),
    call=st.integers(0, MASK),
)
def test_all_back_ends_draw_the_words_of_the_definition(size, offset, seed, stream, call):
    jax_rounding = pytest.importorskip("shoestring.numbers.jax_rounding")
    key = (seed & MASK, seed >> 32)
    expected = [
        naive_philox(((i // 4) & MASK, i // 4 >> 32, stream, call), key)[i % 4]
        for i in range(offset, offset + size)
    ]
    place = {"offset": offset, "stream": stream, "call": call}
    assert random_words(size, seed, **place).tolist() == expected
    assert [word & MASK for word in random_words_torch(size, seed, **place).tolist()] == expected
    assert np.asarray(jax_rounding.random_words_jax(size, seed, **place)).tolist() == expected


def test_the_block_index_carries_into_its_high_word():
    jax_rounding = pytest.importorskip("shoestring.numbers.jax_rounding")
    offset = 4 * 2**32 - 6
    words = random_words(12, 1, offset=offset)
    assert words[6] == naive_philox((0, 1, 0, 0), (1, 0))[0]
    assert np.array_equal(words, np.asarray(jax_rounding.random_words_jax(12, 1, offset=offset)))


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"seed=-1.*2\^64"):
        random_words(3, -1)
    with pytest.raises(ValueError, match="offset=-2"):
        random_words_torch(3, 0, offset=-2)
    with pytest.raises(ValueError, match=r"call=4294967296.*2\^32"):
        random_words(3, 0, call=1 << 32)
