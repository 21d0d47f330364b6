"""Some tokens of a cache into the codes of a tier, compiled: keys by channel, values by token.

Codes and grids are, bit for bit, those of `numbers.tier_format`, without a copy of the tokens in between.
"""

import ctypes
import functools
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


class _Tokens(ctypes.Structure):
    """`tier_tokens` of tier_codes.c. kept: the tensors that it points to."""

    kept: tuple[Tensor, Tensor]
    _fields_ = (
        ("x", ctypes.c_void_p),
        ("index", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("heads", "head_dim", "head", "row", "count", "bits")),
    )


def scales_of_channels(v: Float[Tensor, "heads tokens dim"]) -> Float16[Tensor, " channels"]:
    """`tier_format.channel_scales`, c, of all tokens. Raises: ValueError where a value is not finite."""
    library = _library_for(v)
    if library is None or not v.shape[1]:
        return naive_scales_of_channels(v)
    x, tokens = _tokens(v, torch.arange(v.shape[1]), 16)
    largest = torch.empty(v.shape[0] * v.shape[2])
    with count_cost("scales_of_channels", flops=x.numel(), bytes=x.nbytes):
        fits = library.largest_by_channel(ctypes.byref(tokens), largest.data_ptr(), torch.get_num_threads())
    if not fits:
        return naive_scales_of_channels(v)
    c = largest.sqrt().half()
    return torch.where(c == 0, torch.ones_like(c), c)


def encode_by_channel(
    k: Float[Tensor, "heads tokens dim"], index: Int[Tensor, " kept"], bits: int
) -> tuple[UInt8[Tensor, "channels bytes"], Float16[Tensor, "channels 2"]]:
    """`tier_format.encode_keys` of the tokens that `index` names, in its order; channels are those of all
    heads. bits: 8, 4 or 2.

    On the CPU compiled; without a compiler in torch, with a notice. Raises: as `encode_keys`.
    """
    library = _library_for(k)
    if library is None or not len(index):
        return naive_encode_by_channel(k, index, bits)
    x, tokens = _tokens(k, index, bits)
    channels = k.shape[0] * k.shape[2]
    codes = torch.empty(channels, packed_bytes(len(index), bits), dtype=torch.uint8)
    grids = torch.empty(channels, 2, dtype=torch.float16)
    read = 2 * 4 * len(index) * channels
    with count_cost("encode_by_channel", flops=3 * len(index) * channels, bytes=read + codes.nbytes):
        fits = library.encode_by_channel(
            ctypes.byref(tokens), codes.data_ptr(), grids.data_ptr(), torch.get_num_threads()
        )
    # Where a value or grid is beyond float16 the error is that of the plain way.
    return (codes, grids) if fits else naive_encode_by_channel(x, index, bits)


def encode_by_token(
    v: Float[Tensor, "heads tokens dim"],
    index: Int[Tensor, " kept"],
    c: Float16[Tensor, " channels"],
    bits: int,
) -> tuple[UInt8[Tensor, "kept bytes"], Float16[Tensor, "kept 2"]]:
    """`tier_format.encode_values` of the tokens that `index` names. As `encode_by_channel` otherwise."""
    library = _library_for(v)
    if library is None or not len(index):
        return naive_encode_by_token(v, index, c, bits)
    x, tokens = _tokens(v, index, bits)
    channels, threads = v.shape[0] * v.shape[2], torch.get_num_threads()
    codes = torch.empty(len(index), packed_bytes(channels, bits), dtype=torch.uint8)
    grids = torch.empty(len(index), 2, dtype=torch.float16)
    by = c.float().contiguous()
    room = aligned_room(threads * library.tier_codes_room(ctypes.byref(tokens)))
    read = 4 * len(index) * channels
    with count_cost("encode_by_token", flops=4 * len(index) * channels, bytes=read + codes.nbytes):
        fits = library.encode_by_token(
            ctypes.byref(tokens), by.data_ptr(), room.data_ptr(), codes.data_ptr(), grids.data_ptr(), threads
        )
    return (codes, grids) if fits else naive_encode_by_token(x, index, c, bits)


def naive_scales_of_channels(v: Float[Tensor, "heads tokens dim"]) -> Float16[Tensor, " channels"]:
    """The meaning of `scales_of_channels`."""
    return channel_scales(v.transpose(0, 1).flatten(1))


def naive_encode_by_channel(
    k: Float[Tensor, "heads tokens dim"], index: Int[Tensor, " kept"], bits: int
) -> tuple[UInt8[Tensor, "channels bytes"], Float16[Tensor, "channels 2"]]:
    """The meaning of `encode_by_channel`."""
    return encode_keys(k[:, index].transpose(0, 1).flatten(1), bits)


def naive_encode_by_token(
    v: Float[Tensor, "heads tokens dim"],
    index: Int[Tensor, " kept"],
    c: Float16[Tensor, " channels"],
    bits: int,
) -> tuple[UInt8[Tensor, "kept bytes"], Float16[Tensor, "kept 2"]]:
    """The meaning of `encode_by_token`."""
    return encode_values(v[:, index].transpose(0, 1).flatten(1), c, bits)


def _tokens(x: Tensor, index: Tensor, bits: int) -> tuple[Tensor, _Tokens]:
    """x in float32, and what C reads."""
    check_bits(bits, "bits")
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < x.shape[1]:
        raise IndexError(
            f"index reaches from {int(index.min())} to {int(index.max())} of {x.shape[1]} tokens."
        )
    x = x.detach().float()
    x = x if x.stride(2) == 1 else x.contiguous()
    index = index.long().contiguous()
    shape = (x.shape[0], x.shape[2], x.stride(0), x.stride(1), len(index), bits)
    tokens = _Tokens(x.data_ptr(), index.data_ptr(), *shape)
    tokens.kept = (x, index)
    return x, tokens


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
    pointer, number = ctypes.c_void_p, ctypes.c_int
    library.tier_codes_room.argtypes = [pointer]
    library.tier_codes_room.restype = ctypes.c_int64
    library.largest_by_channel.argtypes = [pointer, pointer, number]
    library.encode_by_channel.argtypes = [pointer, pointer, pointer, number]
    library.encode_by_token.argtypes = [pointer, pointer, pointer, pointer, pointer, number]
    return library
