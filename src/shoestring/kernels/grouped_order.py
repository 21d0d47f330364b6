"""Where each bit of a code lies in the planes of `grouped_codes.h`, found by running the unpacker on places.

A kernel's loads, shifts and masks move bits about without looking at them. Run on the numbers of bits
instead of bits, they say which stored bit arrives where in a code; packing is the same map the other way
round. So the order needs no derivation by hand, and what follows the unpacker is right by construction.

Source: Efficient Mixed-Precision Large Language Model Inference with TurboMind (2025), section 4: weights are
packed offline by the load path that reads them.
"""

import functools

import numpy as np
from jaxtyping import Int, UInt8

OUTPUTS, QUADS, RUN = 16, 4, 16
"""Outputs of a tile, quads of a quartet, inputs of a quartet."""
_VECTOR_BYTES = 64
_PLANE_BYTES = 32  # of a quartet, per bit
_NOTHING = -1

Places = Int[np.ndarray, "bytes 8"]
"""For every bit of some bytes the number of the stored bit that is there; _NOTHING for a constant 0."""


@functools.cache
def quartet_order(bits: int) -> Int[np.ndarray, "quads vector bits"]:
    """The stored bit that each bit of each code of a quartet comes from, among those of all its planes.

    The planes follow one another, that of 8 or 4 bits first, then of 2, then of 1. Byte 4·o + i of quad j is
    the code of output o and input 4·j + i. Raises: ValueError for a width outside 1 to 8.
    """
    if bits not in range(1, 9):
        raise ValueError(f"bits={bits} is not a width of a code; use 1 to 8.")
    quads = _unpack(bits, np.arange(bits * _PLANE_BYTES * 8).reshape(-1, 8))
    return quads[..., :bits]


def pack_by_order(
    codes: UInt8[np.ndarray, "rows cols"], bits: int, block: int
) -> list[UInt8[np.ndarray, " bytes"]]:
    """The planes of a matrix of codes, from the widest, by scattering bits to where the unpacker takes them.

    block: inputs that are scaled together; a block is filled up with codes 0 to whole quartets, the rows to
    whole tiles. Raises: ValueError for columns that are not whole blocks.
    """
    rows, cols = codes.shape
    if block < 1 or cols % block:
        raise ValueError(f"{cols} columns are not whole blocks of {block} inputs.")
    tiles, blocks, quartets = -(-rows // OUTPUTS), cols // block, -(-block // RUN)
    padded = np.zeros((tiles * OUTPUTS, blocks, quartets * RUN), dtype=np.uint8)
    padded[:rows, :, :block] = codes.reshape(rows, blocks, block)
    by_byte = padded.reshape(tiles, OUTPUTS, blocks, quartets, QUADS, 4).transpose(0, 2, 3, 4, 1, 5)
    by_byte = by_byte.reshape(-1, QUADS, _VECTOR_BYTES, 1)
    stored = np.zeros((len(by_byte), bits * _PLANE_BYTES * 8), dtype=np.uint8)
    stored[:, quartet_order(bits).reshape(-1)] = (by_byte >> np.arange(bits) & 1).reshape(len(by_byte), -1)
    packed = np.packbits(stored, axis=1, bitorder="little")
    ends = np.cumsum([width * _PLANE_BYTES for width in _widths(bits)])
    return [plane.reshape(-1) for plane in np.split(packed, ends[:-1], axis=1)]


def _widths(bits: int) -> list[int]:
    """Bits of each plane that a width has."""
    return [8] if bits == 8 else [width for width in (4, 2, 1) if bits & width]


def _unpack(bits: int, planes: Places) -> Int[np.ndarray, "quads vector 8"]:
    """`unpack_quartet` of grouped_codes.h, statement by statement, on places."""
    if bits == 8:
        return planes.reshape(QUADS, _VECTOR_BYTES, 8)
    parts = iter(np.split(planes, np.cumsum([w * _PLANE_BYTES for w in _widths(bits)])[:-1]))
    quads = [np.full((_VECTOR_BYTES, 8), _NOTHING) for _ in range(QUADS)]
    if bits & 4:
        wide = next(parts)
        for half in range(2):
            vector = wide[_VECTOR_BYTES * half : _VECTOR_BYTES * (half + 1)]
            quads[2 * half] = _moved(vector, 0, bits & 3, 4)
            quads[2 * half + 1] = _moved(vector, 4, bits & 3, 4)
    if bits & 2:
        pair = next(parts)
        quads = [_either(quad, _moved(pair, 2 * j, bits & 1, 2)) for j, quad in enumerate(quads)]
    if bits & 1:
        single = next(parts)
        twice = np.concatenate([single, _shifted(single, 4)])
        quads = [_either(quad, _moved(twice, j, 0, 1)) for j, quad in enumerate(quads)]
    return np.stack(quads)


def _shifted(value: Places, right: int) -> Places:
    """Words of 64 bits moved to the right, or to the left where it is negative."""
    words = value.reshape(-1, 64)
    moved = np.full_like(words, _NOTHING)
    if right >= 0:
        moved[:, : 64 - right] = words[:, right:]
    else:
        moved[:, -right:] = words[:, :right]
    return moved.reshape(value.shape)


def _moved(value: Places, shift: int, low: int, count: int) -> Places:
    """Bits that belong at `low` and up, `count` of them, from `shift` in every byte: moved and masked."""
    there = _shifted(value, shift - low).copy()
    there[:, :low] = _NOTHING
    there[:, low + count :] = _NOTHING
    return there


def _either(one: Places, other: Places) -> Places:
    """The bits of two values that share none."""
    if bool(((one != _NOTHING) & (other != _NOTHING)).any()):
        raise AssertionError("two stored bits arrive at one place: the unpacker is no map")
    return np.where(one == _NOTHING, other, one)
