"""How a value is stored: formats, rounding, scaling, grouping, bit packing."""

from shoestring.numbers.affine_fit import fit_least_squares, fit_min_max
from shoestring.numbers.cache_format import CacheFormat
from shoestring.numbers.grouped_affine import AffineGrid, GroupedAffine, ZeroPoint

__all__ = ["AffineGrid", "CacheFormat", "GroupedAffine", "ZeroPoint", "fit_least_squares", "fit_min_max"]
