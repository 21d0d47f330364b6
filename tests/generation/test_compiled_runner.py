"""Generation by the compiled step: the same text as module by module, and when it steps aside."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from shoestring.compression.apply import compress
from shoestring.compression.group_quantize import RoundToNearest
from shoestring.generation.compiled_runner import CompiledRunner, compiled_runner
from shoestring.generation.decode import generate, stream
from shoestring.generation.decoder_runner import DecoderRunner, decoder_cache
from shoestring.generation.dense_cache import DenseCache
from shoestring.generation.runner import make_runner
from shoestring.kernels.grouped_linear import Activations
from shoestring.layers.low_rank_linear import LowRankLinear
from shoestring.models.decoder import Decoder
from shoestring.notices import record_fallbacks
from shoestring.numbers.cache_format import CacheFormat
from shoestring.numbers.grouped_affine import ZeroPoint

from ..models.families import MAKERS, VOCAB, ids_of, make
