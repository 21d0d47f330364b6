"""Inputs that provoke every rule of rounding, shared by the tests of all its implementations."""

import numpy as np

from shoestring.numbers import FloatFormat, decode


def all_values(fmt: FloatFormat) -> np.ndarray:
    """Every finite value of a format of up to 16 bits, as float64."""
    values = decode(np.arange(1 << fmt.bits), fmt).astype(np.float64)
    return np.unique(values[np.isfinite(values)])


def edge_values(fmt: FloatFormat, dtype: type = np.float32) -> np.ndarray:
    """The values of a format, the midpoints between them and beyond the end, and the neighbours of all these."""
    values = all_values(fmt)
    middles = (values[1:] + values[:-1]) / 2
    step = values[-1] - values[-2]
    ends = values[-1] + step * np.array([0.25, 0.5, 0.75, 1, 1.5, 2, 4])
    points = np.concatenate([values, middles, ends, -ends]).astype(dtype)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan], dtype=dtype)
    with np.errstate(over="ignore"):
        return np.concatenate(
            [points, np.nextafter(points, dtype(np.inf)), np.nextafter(points, dtype(-np.inf)), special]
        )


def random_bits(count: int, dtype: type = np.float32, seed: int = 0) -> np.ndarray:
    """Uniformly random bit patterns: every exponent, subnormals, infinities and NaNs."""
    width = np.dtype(dtype).itemsize
    return np.frombuffer(np.random.default_rng(seed).bytes(count * width), dtype=dtype).copy()


def random_magnitudes(count: int, dtype: type = np.float32, seed: int = 0) -> np.ndarray:
    """Random significands at random exponents in and around the range of narrow formats."""
    generator = np.random.default_rng(seed)
    return (generator.standard_normal(count) * 2.0 ** generator.integers(-32, 22, count)).astype(dtype)


def same(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Elementwise: equal with the same sign of zero, or both NaN."""
    nan = np.isnan(a) & np.isnan(b)
    return nan | ((a == b) & (np.signbit(a) == np.signbit(b)))
