"""Small programs and ways to run them, shared by the tests of the C back end."""

import functools

import numpy as np
import pytest

from shoestring.kernels.tile import interpreter
from shoestring.kernels.tile.builder import Builder
from shoestring.kernels.tile.c.choice import ISAS, features_here
from shoestring.kernels.tile.c.compiled import compile_program
from shoestring.kernels.tile.target import AVX2, AVX512

VARIANTS = [
    ("avx512vnni", AVX512),
    ("avx512", AVX512),
    ("avx512f", AVX512),
    ("avx2", AVX2),
    ("portable", AVX2),
]


def on_each_isa(*names):
    """Parametrise over instruction sets, those that this processor lacks being skipped."""
    chosen = [pair for pair in VARIANTS if not names or pair[0] in names]
    return pytest.mark.parametrize(
        ("isa", "target"),
        [
            pytest.param(
                isa, target, id=isa,
                marks=pytest.mark.skipif(not ISAS[isa].features <= features_here(), reason=f"no {isa} here"),
            )
            for isa, target in chosen
        ],
    )  # fmt: skip


compiled = functools.lru_cache(maxsize=None)(compile_program)


def both(program, target, isa, arguments):
    """The buffers after the compiled program and after the interpreter, by name."""
    kernel = compiled(program, target, isa)
    assert kernel.library is not None
    results = []
    for run in (kernel, lambda **given: interpreter.run(kernel.program, given, seed=1)):
        given = {name: fresh(x) if isinstance(x, np.ndarray) else x for name, x in arguments.items()}
        run(**given)
        results.append(given)
    return results


def fresh(array):
    """A copy that starts at a multiple of 16 bytes."""
    room = np.empty(array.nbytes + 16, np.uint8)
    start = -room.ctypes.data % 16
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def single_block(target, name="test"):
    b = Builder(name, threads=target.group)
    b.grid(1)
    b.block_indices()
    return b
