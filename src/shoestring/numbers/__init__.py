"""How a value is stored: formats, rounding, scaling, grouping, bit packing."""

from shoestring.numbers.formats import FORMATS, FloatFormat, named_format
from shoestring.numbers.naive_rounding import naive_round_to_format
from shoestring.numbers.rounder import Rounder
from shoestring.numbers.rounding import round_to_format
from shoestring.numbers.rounding_bits import Rounding

__all__ = [
    "FORMATS",
    "FloatFormat",
    "Rounder",
    "Rounding",
    "naive_round_to_format",
    "named_format",
    "round_to_format",
]
