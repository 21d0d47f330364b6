"""Compiled loops: C built once with the system compiler, each beside its naive reference."""

from shoestring.kernels.rounding import round_to_format

__all__ = ["round_to_format"]
