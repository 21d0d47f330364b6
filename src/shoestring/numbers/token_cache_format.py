"""How a KV cache stores every token by itself: the keys and the values of a head as codes on one grid each.

x ≈ scale · code + lowest, over the channels of one token and head. Keys and values have widths of their own;
16 bits are plain float16. No token waits for others, so nothing is kept in full, and slots may be evicted,
reordered and taken back without rounding anything again.

Source: TurboMind (InternLM/lmdeploy), KV cache quantisation; the directed rounding of the grid is our own:
the lowest value is rounded down to float16 first, the scale for it up, so that no value is off by more than
half a stored scale.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float16, UInt8
from torch import Tensor

from shoestring.numbers.packing import pack_bits, unpack_bits

TOKEN_BITS = (16, 8, 4, 2)
GRID_BYTES = 4
_RUN_BYTES = 16


@dataclass(frozen=True)
class TokenCacheFormat:
    """A storage format for keys and values, token by token.

    key_bits, value_bits: 16, 8, 4 or 2. Raises: ValueError for another width.
    """

    key_bits: int = 8
    value_bits: int = 8

    def __post_init__(self) -> None:
        for name in ("key_bits", "value_bits"):
            bits = getattr(self, name)
            if bits not in TOKEN_BITS:
                raise ValueError(
                    f"{name}={bits} is not a width of cached keys and values; use 16, 8, 4 or 2."
                )

    @property
    def widths(self) -> dict[str, int]:
        """The bits of "k" and of "v"."""
        return {"k": self.key_bits, "v": self.value_bits}

    def why_not(self, head_dim: int) -> str | None:
        """The reason why heads of `head_dim` channels cannot be stored so, or None.

        Codes are read in whole runs of 16 bytes."""
        for name, bits in (("key_bits", self.key_bits), ("value_bits", self.value_bits)):
            run = 1 if bits == 16 else 8 * _RUN_BYTES // bits
            if head_dim % run:
                fits = [str(b) for b in TOKEN_BITS if b == 16 or head_dim % (8 * _RUN_BYTES // b) == 0]
                return (
                    f"heads have {head_dim} channels, but codes of {name}={bits} come in runs of {run}; "
                    f"use {name}={' or '.join(fits)}."
                )
        return None

    def token_bytes(self, n_kv_heads: int, head_dim: int) -> int:
        """Bytes of the keys and values of one token of one sequence in one layer, grids included.

        Raises: ValueError where codes of these widths do not fit the channels.
        """
        if reason := self.why_not(head_dim):
            raise ValueError(reason)
        return n_kv_heads * sum(row_bytes(bits, head_dim) for bits in self.widths.values())


def row_bytes(bits: int, head_dim: int) -> int:
    """Bytes of `head_dim` channels of a token, its grid included."""
    return head_dim * bits // 8 + (GRID_BYTES if bits < 16 else 0)


def encode_rows(
    x: Float[Tensor, "*rows dim"], bits: int, name: str
) -> tuple[UInt8[Tensor, "*rows bytes"], Float16[Tensor, "*rows 2"]]:
    """Codes of every row, packed from the lowest bit on, and its grid: scale and lowest value.

    Ties go to the even code. name: of x, for messages.

    Raises: ValueError where a value is not finite or a grid is beyond float16.
    """
    x = x.float()
    if not bool(torch.isfinite(x).all()):
        raise ValueError(
            f"{name} hold NaN or infinite values, which have no codes; check the model's weights."
        )
    least, most = x.aminmax(dim=-1, keepdim=True)
    lowest = _half_below(least)
    scale = _half_above((most - lowest.float()) / ((1 << bits) - 1))
    grid = scale.new_empty(*scale.shape[:-1], 2)  # autocast joins no tensors of float16
    grid[..., :1], grid[..., 1:] = scale, lowest
    if bool((least.abs() > torch.finfo(torch.float16).max).any()) or bool(grid.isinf().any()):
        raise ValueError(
            f"{name} reach from {float(least.min()):g} to {float(most.max()):g}; float16 holds a grid for "
            "values up to 65504 only. Use 16 bits or a model whose keys and values are smaller."
        )
    steps = (x - lowest.float()) / torch.where(scale == 0, 1.0, scale.float())
    codes = steps.round().clamp(0, (1 << bits) - 1).to(torch.uint8)
    return pack_bits(codes, bits), grid


def check_float16(x: Float[Tensor, "*rows dim"], name: str) -> Float16[Tensor, "*rows dim"]:
    """x in float16. Raises: ValueError where a value is not finite or beyond it."""
    half = x.half()
    if not bool(torch.isfinite(half).all()):
        raise ValueError(
            f"{name} hold values that are not finite or beyond ±65504, the range of float16; check the "
            "model's weights."
        )
    return half


def decode_rows(
    codes: UInt8[Tensor, "*rows bytes"], grid: Float16[Tensor, "*rows 2"], bits: int, dim: int
) -> Float[Tensor, "*rows dim"]:
    """What the codes of rows of `dim` channels stand for, float32."""
    scale, lowest = grid.float().unbind(-1)
    return unpack_bits(codes, bits, dim) * scale[..., None] + lowest[..., None]


def naive_round_trip_row(row: list[float], bits: int) -> list[float]:
    """What one row is read back as: the meaning of the format."""
    lowest = _half_below(torch.tensor(min(row))).item()
    scale = _half_above((torch.tensor(max(row)) - lowest) / (2**bits - 1)).item()
    if scale == 0:
        return [lowest] * len(row)
    codes = [min(2**bits - 1, round((torch.tensor(x) - lowest).item() / scale)) for x in row]
    return [scale * code + lowest for code in codes]


def _half_below(value: Tensor) -> Tensor:
    """The largest float16 that is not above a value."""
    half = value.half()
    below = torch.nextafter(half, torch.full_like(half, -torch.inf))
    return torch.where(half.float() > value, below, half)


def _half_above(value: Tensor) -> Tensor:
    """The least float16 that is not below a value."""
    half = value.half()
    above = torch.nextafter(half, torch.full_like(half, torch.inf))
    return torch.where(half.float() < value, above, half)
