"""Dense packing of k-bit codes: code i of a row fills bits i·k .. i·k + k − 1 of a little-endian bit stream.

Every row of the last axis starts on a byte; flatten first to share bytes between rows. Eight codes make k
whole bytes; up to 7 bits they are moved together inside 64-bit words, three shifts for eight codes.
"""

from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from shoestring.numbers.arrays import module_of

Array = TypeVar("Array")

MAX_BITS = 16


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that a row of `count` codes of `bits` bits takes.

    Raises: ValueError for a width outside 1..16 or a negative count.
    """
    _check_bits(bits)
    if count < 0:
        raise ValueError(f"count={count}: a row has zero or more codes")
    return (count * bits + 7) // 8


def pack_bits(codes: Array, bits: int) -> Array:
    """Pack unsigned codes (..., n) of `bits` bits into bytes (..., packed_bytes(n, bits)), uint8.

    Unused bits of the last byte are 0.

    Raises: ValueError for a width outside 1..16, a scalar, or a code that does not fit (with its value);
    TypeError for codes that are not integers.
    """
    _check_bits(bits)
    _check_codes(codes, bits)
    any_codes: Any = codes
    count = any_codes.shape[-1]
    xp: Any = torch if isinstance(any_codes, Tensor) else np
    narrow: Any
    if xp is torch:
        narrow = any_codes.to(torch.uint8 if bits <= 8 else torch.int32)
        padded: Any = torch.nn.functional.pad(narrow, (0, -count % 8)).contiguous()
    else:
        narrow = any_codes.astype(np.uint8 if bits <= 8 else np.int32)
        padded = np.pad(narrow, [(0, 0)] * (narrow.ndim - 1) + [(0, -count % 8)])
    shape: tuple[int, ...] = tuple(any_codes.shape[:-1])
    if 0 in any_codes.shape:
        return xp.zeros((*shape, packed_bytes(count, bits)), dtype=xp.uint8, **_device(any_codes))
    packed = _join_codes(padded, bits, xp)
    return _dense(packed.reshape(*shape, -(-count // 8) * bits)[..., : packed_bytes(count, bits)])


def unpack_bits(packed: Array, bits: int, count: int) -> Array:
    """The `count` codes (..., count) of each packed row: uint8 up to 8 bits, else int32.

    Raises: ValueError when the rows are not packed_bytes(count, bits) long; TypeError unless uint8.
    """
    expected = packed_bytes(count, bits)
    any_packed: Any = packed
    module_of(any_packed, "unpack_bits")
    if str(any_packed.dtype).removeprefix("torch.") != "uint8":
        raise TypeError(f"packed codes are uint8, not {any_packed.dtype}")
    if any_packed.ndim == 0 or any_packed.shape[-1] != expected:
        raise ValueError(
            f"packed rows of shape {tuple(any_packed.shape)}: {count} codes of {bits} bits take "
            f"{expected} bytes a row"
        )
    group_count = -(-count // 8)
    missing = group_count * bits - expected
    shape: tuple[int, ...] = tuple(any_packed.shape[:-1])
    xp: Any = torch if isinstance(any_packed, Tensor) else np
    if 0 in any_packed.shape:
        dtype = xp.uint8 if bits <= 8 else xp.int32
        return xp.zeros((*shape, count), dtype=dtype, **_device(any_packed))
    if xp is torch:
        padded: Any = torch.nn.functional.pad(any_packed, (0, missing))
    else:
        padded = np.pad(any_packed, [(0, 0)] * (any_packed.ndim - 1) + [(0, missing)])
    codes = _split_codes(padded.reshape(*shape, group_count, bits), bits, xp)
    return _dense(codes.reshape(*shape, group_count * 8)[..., :count])


def naive_pack_bits(codes: list[int], bits: int) -> bytes:
    """One row packed by the definition: the codes are the digits of one large integer."""
    stream = sum(code << (bits * index) for index, code in enumerate(codes))
    return stream.to_bytes(packed_bytes(len(codes), bits), "little")


def _join_codes(codes: Any, bits: int, xp: Any) -> Any:
    """Bytes (..., groups, bits) of codes (..., 8·groups)."""
    groups = (*codes.shape[:-1], codes.shape[-1] // 8)
    if bits == 8:
        return codes
    if bits < 8:
        words = codes.view(xp.int64)  # of a copy that is worked on in place
        for lane in (8, 16, 32):  # two lanes of `filled` bits become one of twice as many
            filled = lane // 8 * bits
            low = _in_every_lane((1 << filled) - 1, 2 * lane)
            upper = words & (low << lane)
            upper >>= lane - filled
            words &= low
            words |= upper
        return words.reshape(*groups, 1).view(codes.dtype)[..., :bits]
    eights = codes.reshape(*groups, 8)
    parts = [_one_byte(eights, byte, bits) for byte in range(bits)]
    joined = xp.stack(parts, -1)
    return joined.to(xp.uint8) if xp is torch else joined.astype(xp.uint8)


def _one_byte(eights: Any, byte: int, bits: int) -> Any:
    value = 0
    for index in range(8 * byte // bits, (8 * byte + 7) // bits + 1):
        start, code = index * bits - 8 * byte, eights[..., index]
        value = value | (code << start if start >= 0 else code >> -start)
    return value & 0xFF


def _split_codes(groups: Any, bits: int, xp: Any) -> Any:
    """Codes (..., groups, 8) of bytes (..., groups, bits)."""
    if bits == 8:
        return groups
    if bits < 8:
        wide = xp.zeros((*groups.shape[:-1], 8), dtype=xp.uint8, **_device(groups))
        wide[..., :bits] = groups
        words = wide.view(xp.int64)
        for lane in (32, 16, 8):
            filled = lane // 8 * bits
            low = _in_every_lane((1 << filled) - 1, 2 * lane)
            upper = words & (low << filled)
            upper <<= lane - filled
            words &= low
            words |= upper
        return words.view(xp.uint8)
    integers = groups.to(xp.int32) if xp is torch else groups.astype(xp.int32)
    return xp.stack([_one_code(integers, index, bits) for index in range(8)], -1)


def _one_code(groups: Any, index: int, bits: int) -> Any:
    value = 0
    for byte in range(index * bits // 8, (index * bits + bits - 1) // 8 + 1):
        start, part = 8 * byte - index * bits, groups[..., byte]
        value = value | (part << start if start >= 0 else part >> -start)
    return value & ((1 << bits) - 1)


def _in_every_lane(mask: int, lane: int) -> int:
    return sum(mask << start for start in range(0, 64, lane))


def _dense(array: Any) -> Any:
    return array.contiguous() if isinstance(array, Tensor) else np.ascontiguousarray(array)


def _device(array: Any) -> dict[str, Any]:
    return {"device": array.device} if isinstance(array, Tensor) else {}


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= MAX_BITS:
        raise ValueError(f"bits={bits}: codes of 1 to {MAX_BITS} bits can be packed")


def _check_codes(codes: Any, bits: int) -> None:
    module_of(codes, "pack_bits")
    name = str(codes.dtype).removeprefix("torch.")
    if not name.startswith(("int", "uint")):
        raise TypeError(f"codes are integers, not {name}; encode values first")
    if codes.ndim == 0:
        raise ValueError("codes need at least one axis; use codes.reshape(1)")
    if 0 in codes.shape:
        return
    if isinstance(codes, Tensor) and name in ("uint16", "uint32", "uint64"):
        codes = codes.to(torch.int64)
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >> bits:
        wrong = low if low < 0 else high
        raise ValueError(f"code {wrong} does not fit bits={bits}; codes run from 0 to {(1 << bits) - 1}")
