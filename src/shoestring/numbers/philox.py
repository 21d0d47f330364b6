"""Philox4x32-10, a counter-based random generator: word i is a pure function of (seed, i), on any back end.

Nothing is carried from one draw to the next, so results do not depend on threads, chunks or devices, and no
global generator is touched. The 128-bit counter is laid out as (block low, block high, stream, call), where
element n takes word n mod 4 of block n div 4; the 64-bit key is the seed.

Source: Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3", section 3.3 and table 2.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Int32, UInt32
from torch import Tensor

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
MASK = 0xFFFFFFFF

ROUNDING_STREAM, ROUNDING_LOW_STREAM, FAULT_STREAM, FAULT_BIT_STREAM = range(4)


def check_seed(seed: int) -> None:
    """Raises: ValueError unless 0 ≤ seed < 2^64."""
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed={seed}: a Philox key is an integer from 0 to 2^64 - 1")


def naive_philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """One block in plain integers, as in the paper: four 32-bit words for one counter and key."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        product0, product1 = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (product1 >> 32) ^ c1 ^ k0,
            product1 & MASK,
            (product0 >> 32) ^ c3 ^ k1,
            product0 & MASK,
        )
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3


def philox_blocks(counter: tuple[Any, Any, Any, Any], seed: int) -> tuple[Any, Any, Any, Any]:
    """Ten rounds on 64-bit integer arrays whose entries are 32-bit words; NumPy uint64 or torch int64.

    A signed product wraps to the same 64 bits, and the masks remove what the signed shift copies in.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = seed & MASK, seed >> 32
    for _ in range(ROUNDS):
        product0, product1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1 = ((product1 >> 32) & MASK) ^ c1 ^ k0, product1 & MASK
        c2, c3 = ((product0 >> 32) & MASK) ^ c3 ^ k1, product0 & MASK
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3


def random_words(
    size: int, seed: int, *, offset: int = 0, stream: int = 0, call: int = 0
) -> UInt32[np.ndarray, " size"]:
    """The 32-bit words of elements offset .. offset+size−1 of one stream and call, as NumPy uint32.

    Raises: ValueError for a seed outside 0 .. 2^64−1 or a negative size or offset.
    """
    check_range(size, seed, offset, call)
    first, last = offset // 4, (offset + size + 3) // 4
    block = np.arange(first, last, dtype=np.uint64)
    zero = np.zeros_like(block)
    counter = (
        block & np.uint64(MASK),
        block >> np.uint64(32),
        zero + np.uint64(stream),
        zero + np.uint64(call),
    )
    words = np.stack(philox_blocks(counter, seed), axis=-1).astype(np.uint32).reshape(-1)
    return words[offset - 4 * first :][:size]


def random_words_torch(
    size: int,
    seed: int,
    *,
    offset: int = 0,
    stream: int = 0,
    call: int = 0,
    device: torch.device | str = "cpu",
) -> Int32[Tensor, " size"]:
    """The same words as `random_words`, as torch int32 (the bits of the uint32) on `device`.

    Raises: ValueError for a seed outside 0 .. 2^64−1 or a negative size or offset.
    """
    check_range(size, seed, offset, call)
    first, last = offset // 4, (offset + size + 3) // 4
    block = torch.arange(first, last, dtype=torch.int64, device=device)
    counter = (block & MASK, block >> 32, torch.full_like(block, stream), torch.full_like(block, call))
    words = torch.stack(philox_blocks(counter, seed), dim=-1).to(torch.int32).reshape(-1)
    return words[offset - 4 * first :][:size]


def check_range(size: int, seed: int, offset: int, call: int) -> None:
    """Raises: ValueError for a negative size or offset, or a seed or call number out of range."""
    check_seed(seed)
    if size < 0 or offset < 0:
        raise ValueError(f"size={size}, offset={offset}: element indices start at 0")
    if not 0 <= call <= MASK:
        raise ValueError(f"call={call}: a call number is an integer from 0 to 2^32 - 1")
