"""A Fourier transform as products with small dense matrices, which is how matrix units compute fastest.

x of N = m·l numbers is read as X (m, l), row by row. With F_m[a, b] = exp(−2πi a b / m) and
T[k₁, j₂] = exp(−2πi k₁ j₂ / N), Z = ((F_m X) ∘ T) F_l is the spectrum: x̂[k₂ m + k₁] = Z[k₁, k₂]. The product
with F_l is again such a transform, down to matrices of 2, 4, 8 or 16 rows.

Source: Fu et al. 2023, "Simple Hardware-Efficient Long Convolutions for Sequence Modeling", section 3.2;
Cooley and Tukey 1965, "An Algorithm for the Machine Calculation of Complex Fourier Series".
"""

import functools
import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Complex, Shaped
from torch import Tensor

BASE_SIZES = (2, 4, 8, 16)
"""Rows of the matrices; the largest is a tile of a tensor core."""

Matrices = Mapping[int, Tensor]
"""A complex matrix of each size: (size, size), or (channels, size, size), one for each channel."""


def block_dft(
    x: Shaped[Tensor, "*batch n"],
    *,
    radices: Sequence[int] | None = None,
    matrices: Matrices | None = None,
) -> Complex[Tensor, "*batch n"]:
    """The discrete Fourier transform of the last axis, in natural order.

    radices: the sizes m of the splits, outermost first, whose product is n; as many 16s as go by default.
    matrices: what stands in for F_m, by size; the exact ones by default. Each acts as F x on the axis that it
    transforms. Those with one matrix a channel take x of shape (…, channels, n).

    Raises: ValueError for an n that is no power of two (naming the next one), or radices that do not fit.
    """
    n = x.shape[-1]
    if radices is None:
        radices = block_radices(n)
    elif math.prod(radices) != n or any(radix not in BASE_SIZES for radix in radices):
        raise ValueError(f"radices={tuple(radices)} must be of {BASE_SIZES} and multiply to n={n}")
    x = x.to(torch.promote_types(x.dtype, torch.complex64))
    if matrices is None:
        matrices = {radix: dft_matrix(radix, x.dtype, x.device) for radix in set(radices)}
    return _transform(x, radices, matrices, 0)


def block_inverse_dft(
    x: Shaped[Tensor, "*batch n"], *, radices: Sequence[int] | None = None
) -> Complex[Tensor, "*batch n"]:
    """The inverse of `block_dft` with the exact matrices."""
    return block_dft(x.conj(), radices=radices).conj() / x.shape[-1]


def naive_dft(x: Shaped[Tensor, "*batch n"]) -> Complex[Tensor, "*batch n"]:
    """x̂[k] = Σ_j x[j] exp(−2πi j k / n), as one dense product."""
    x = x.to(torch.promote_types(x.dtype, torch.complex64))
    return x @ dft_matrix(x.shape[-1], x.dtype, x.device)


def block_radices(n: int) -> tuple[int, ...]:
    """The splits of a transform of n points: 16 as often as it goes, and what is left.

    Raises: ValueError for an n that is no power of two above 1, naming the length to pad to.
    """
    if n < 2 or n & (n - 1):
        raise ValueError(f"n={n} is no power of two above 1; pad to {block_length(n)} with zeros")
    sixteens, rest = divmod(n.bit_length() - 1, 4)
    return (16,) * sixteens + ((2**rest,) if rest else ())


def block_length(n: int) -> int:
    """The least length of a block transform that is not below n."""
    return max(2, 1 << max(n - 1, 0).bit_length())


def dft_matrix(
    n: int, dtype: torch.dtype = torch.complex64, device: torch.device | str = "cpu"
) -> Complex[Tensor, "{n} {n}"]:
    """F_n[a, b] = exp(−2πi a b / n)."""
    return twiddles(n, n, dtype, device, points=n)


def twiddles(
    rows: int,
    columns: int,
    dtype: torch.dtype = torch.complex64,
    device: torch.device | str = "cpu",
    *,
    points: int | None = None,
) -> Complex[Tensor, "{rows} {columns}"]:
    """T[k, j] = exp(−2πi k j / points), where the points are rows · columns if nothing else is said."""
    points = rows * columns if points is None else points
    make = _roots if rows * columns <= _LARGEST_KEPT else _roots.__wrapped__
    return make(rows, columns, points, dtype, torch.device(device))


_LARGEST_KEPT = 1 << 17


@functools.lru_cache(maxsize=32)
def _roots(rows: int, columns: int, points: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    # Kept between calls: made in inference mode they would be of no use in training.
    with torch.inference_mode(False), torch.no_grad():
        turns = torch.arange(rows)[:, None] * torch.arange(columns) % points
        angles = turns.double() * (-2 * math.pi / points)
        return torch.polar(torch.ones_like(angles), angles).to(device, dtype)


def _transform(x: Tensor, radices: Sequence[int], matrices: Matrices, depth: int) -> Tensor:
    """The transform of the last axis; `depth` axes lie between it and that of the channels."""
    m, rest = radices[0], radices[1:]
    if not rest:
        return (x.unsqueeze(-2) @ _at_depth(matrices[m].mT, depth)).squeeze(-2)
    x = x.unflatten(-1, (m, x.shape[-1] // m))
    # (F X)ᵀ = Xᵀ Fᵀ: as a right factor a shared matrix makes one product of the whole batch.
    u = (x.mT @ _at_depth(matrices[m].mT, depth)).mT * twiddles(m, x.shape[-1], x.dtype, x.device)
    return _transform(u, rest, matrices, depth + 1).mT.flatten(-2)


def _at_depth(matrix: Tensor, depth: int) -> Tensor:
    """A matrix for all channels, or one for each, to multiply (…, channels, *depth, a, b)."""
    if matrix.ndim == 2:
        return matrix
    if matrix.shape[0] == 1:
        return matrix[0]
    return matrix.unflatten(0, (-1, *(1,) * depth))
