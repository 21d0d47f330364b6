"""How a value is stored: formats, rounding, scaling, grouping, bit packing."""

from shoestring.numbers.accumulation import EveryChunk, EveryFusedStep, EveryStep, InCarrier
from shoestring.numbers.affine_fit import fit_least_squares, fit_min_max
from shoestring.numbers.arithmetic import Arithmetic
from shoestring.numbers.block_float import E4M3_BLOCKS, MXFP4, BlockFloat
from shoestring.numbers.block_floating_point import (
    BLOCK_FLOAT_FORMATS,
    BlockFloatFormat,
    dequantize_blocks,
    quantize_blocks,
    round_to_blocks,
)
from shoestring.numbers.cache_format import CacheFormat
from shoestring.numbers.codes import decode, encode
from shoestring.numbers.emulated_types import CPArray, CPFloat, CPJaxArray, CPTensor, promote
from shoestring.numbers.fixed_point import FixedPointFormat, round_to_fixed_point
from shoestring.numbers.formats import FORMATS, FloatFormat, named_format
from shoestring.numbers.grouped_affine import AffineGrid, GroupedAffine, ZeroPoint
from shoestring.numbers.integer import IntegerFormat, IntegerQuantizer, IntegerScaling, scaling_of_range
from shoestring.numbers.krylov import gmres
from shoestring.numbers.linear_algebra import backward_error, cholesky, lu_factor
from shoestring.numbers.microscaling import (
    MX_FORMATS,
    MicroscalingFormat,
    dequantize_mx,
    quantize_mx,
    round_to_mx,
)
from shoestring.numbers.naive_rounding import naive_round_to_format
from shoestring.numbers.packing import pack_bits, packed_bytes, unpack_bits
from shoestring.numbers.philox import random_words, random_words_torch
from shoestring.numbers.refinement import gmres_refinement, iterative_refinement
from shoestring.numbers.ring import RingFormat, ring_matmul
from shoestring.numbers.rounder import Rounder
from shoestring.numbers.rounding import round_to_format
from shoestring.numbers.rounding_bits import Rounding
from shoestring.numbers.soft_errors import FaultyRounder, flip_significand_bits
from shoestring.numbers.tier_format import TierFormat
from shoestring.numbers.token_cache_format import TokenCacheFormat

__all__ = [
    "BLOCK_FLOAT_FORMATS",
    "E4M3_BLOCKS",
    "FORMATS",
    "MXFP4",
    "MX_FORMATS",
    "AffineGrid",
    "Arithmetic",
    "BlockFloat",
    "BlockFloatFormat",
    "CPArray",
    "CPFloat",
    "CPJaxArray",
    "CPTensor",
    "CacheFormat",
    "EveryChunk",
    "EveryFusedStep",
    "EveryStep",
    "FaultyRounder",
    "FixedPointFormat",
    "FloatFormat",
    "GroupedAffine",
    "InCarrier",
    "IntegerFormat",
    "IntegerQuantizer",
    "IntegerScaling",
    "MicroscalingFormat",
    "RingFormat",
    "Rounder",
    "Rounding",
    "TierFormat",
    "TokenCacheFormat",
    "ZeroPoint",
    "backward_error",
    "cholesky",
    "decode",
    "dequantize_blocks",
    "dequantize_mx",
    "encode",
    "fit_least_squares",
    "fit_min_max",
    "flip_significand_bits",
    "gmres",
    "gmres_refinement",
    "iterative_refinement",
    "lu_factor",
    "naive_round_to_format",
    "named_format",
    "pack_bits",
    "packed_bytes",
    "promote",
    "quantize_blocks",
    "quantize_mx",
    "random_words",
    "random_words_torch",
    "ring_matmul",
    "round_to_blocks",
    "round_to_fixed_point",
    "round_to_format",
    "round_to_mx",
    "scaling_of_range",
    "unpack_bits",
]
