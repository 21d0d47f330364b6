"""Tokens of a cache into the codes of tiers, compiled: keys by channel, values by token.

Codes and grids are, bit for bit, those of `numbers.tier_format`, without a copy of the tokens in between.
"""

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Float16, Int, UInt8
from torch import Tensor

from shoestring.errors import NoCompiler
from shoestring.kernels.costs import count_cost
from shoestring.kernels.linear_kernel import aligned_room
from shoestring.kernels.native import load_library
from shoestring.notices import notice_fallback
from shoestring.numbers.packing import packed_bytes
from shoestring.numbers.tier_format import channel_scales, check_bits, encode_keys, encode_values

FLAGS = ("-ffp-contract=off",)
"""Nothing is fused, so that codes are those of plain torch."""


@dataclass(frozen=True)
class TierCodes:
    """The codes of some tokens: keys as of `tier_format.encode_keys`, values as of `encode_values`."""

    k_codes: UInt8[Tensor, "channels k_bytes"]
    k_grid: Float16[Tensor, "channels 2"]
    v_codes: UInt8[Tensor, "tokens v_bytes"]
    v_grid: Float16[Tensor, "tokens 2"]

    @classmethod
    def empty(cls, tokens: int, channels: int, bits: int) -> "TierCodes":
        """Room for them."""
        return cls(
            torch.empty(channels, packed_bytes(tokens, bits), dtype=torch.uint8),
            torch.empty(channels, 2, dtype=torch.float16),
            torch.empty(tokens, packed_bytes(channels, bits), dtype=torch.uint8),
            torch.empty(tokens, 2, dtype=torch.float16),
        )


class _Tokens(ctypes.Structure):
    """`tier_tokens` of tier_codes.c."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("heads", "head_dim", "head", "row")),
    )


class _Group(ctypes.Structure):
    """`tier_group` of tier_codes.c."""

    _fields_ = (
        ("index", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("count", "bits")),
        *((name, ctypes.c_void_p) for name in ("k_codes", "v_codes", "k_grids", "v_grids")),
    )


def encode_tiers(
    k: Float[Tensor, "heads tokens dim"],
    v: Float[Tensor, "heads tokens dim"],
    groups: Sequence[tuple[Int[Tensor, " _"], int]],
) -> tuple[Float16[Tensor, " channels"], list[TierCodes]]:
    """c, the scales of the channels of all values, and the codes of each group: tokens by index, and their
    bits, 8, 4 or 2. Channels are those of all heads.

    On the CPU compiled; without a compiler in torch, with a notice. Raises: ValueError where a value is not
    finite or a grid is beyond float16; IndexError for a token that is not there.
    """
    for index, bits in groups:
        check_bits(bits, "bits")
        if not len(index) or not 0 <= int(index.min()) <= int(index.max()) < k.shape[1]:
            raise IndexError(f"a group names none of {k.shape[1]} tokens, or one that is not there.")
    library = _library_for(k)
    if library is None or not groups:
        return naive_encode_tiers(k, v, groups)
    heads, tokens, dim = k.shape
    channels, threads = heads * dim, torch.get_num_threads()
    keys, values = _plain(k), _plain(v)
    indices = [index.long().contiguous() for index, _ in groups]
    codes = [TierCodes.empty(len(index), channels, bits) for index, bits in groups]
    c = torch.empty(channels, dtype=torch.float16)
    table = (_Group * len(groups))(
        *(
            _Group(index.data_ptr(), len(index), bits, *_pointers(made))
            for index, (_, bits), made in zip(indices, groups, codes, strict=True)
        )
    )
    of_keys, of_values = _tokens(keys), _tokens(values)
    room = aligned_room(library.tier_codes_room(ctypes.byref(of_keys), table, len(groups), tokens, threads))
    coded = channels * sum(map(len, indices))
    with count_cost(
        "encode_tiers", flops=channels * tokens + 7 * coded, bytes=4 * (channels * tokens + 3 * coded)
    ):
        fits = library.encode_tiers(
            ctypes.byref(of_keys), ctypes.byref(of_values), table, len(groups), tokens, c.data_ptr(),
            room.data_ptr(), threads,
        )  # fmt: skip
    # Where a value or grid is beyond float16 the error is that of the plain way.
    return (c, codes) if fits else naive_encode_tiers(k, v, groups)


def naive_encode_tiers(
    k: Float[Tensor, "heads tokens dim"],
    v: Float[Tensor, "heads tokens dim"],
    groups: Sequence[tuple[Int[Tensor, " _"], int]],
) -> tuple[Float16[Tensor, " channels"], list[TierCodes]]:
    """The meaning of `encode_tiers`."""
    keys, values = (x.transpose(0, 1).flatten(1) for x in (k, v))
    c = channel_scales(values)
    return c, [
        TierCodes(*encode_keys(keys[index], bits), *encode_values(values[index], c, bits))
        for index, bits in groups
    ]


def _plain(x: Tensor) -> Tensor:
    """In float32, with neighbouring channels side by side."""
    x = x.detach().float()
    return x if x.stride(2) == 1 else x.contiguous()


def _tokens(x: Tensor) -> _Tokens:
    return _Tokens(x.data_ptr(), x.shape[0], x.shape[2], x.stride(0), x.stride(1))


def _pointers(codes: TierCodes) -> tuple[int, int, int, int]:
    parts = codes.k_codes, codes.v_codes, codes.k_grid, codes.v_grid
    one, two, three, four = (part.data_ptr() for part in parts)
    return one, two, three, four


def _library_for(x: Tensor) -> ctypes.CDLL | None:
    """None for another device, where torch is the way; without a compiler too, with a notice."""
    if x.device.type != "cpu":
        return None
    try:
        return _library()
    except NoCompiler as error:
        notice_fallback("tier_codes", f"plain torch instead of the compiled loop ({error})")
        return None


@functools.cache
def _library() -> ctypes.CDLL:
    library = load_library(Path(__file__).with_suffix(".c"), extra_flags=FLAGS)
    pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    library.tier_codes_room.argtypes = [pointer, pointer, size, size, number]
    library.tier_codes_room.restype = size
    library.encode_tiers.argtypes = [pointer, pointer, pointer, size, size, pointer, pointer, number]
    return library
