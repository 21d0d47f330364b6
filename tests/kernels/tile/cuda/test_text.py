"""The CUDA text of fixed programs, word for word, and what NVIDIA's compiler says to it.

After a change that is meant: run this file with SHOESTRING_WRITE_SNAPSHOTS=1, and read the diff.
"""

import os
import re
import shutil
from pathlib import Path

import pytest

from shoestring.errors import NoCompiler, ProgramError
from shoestring.kernels.tile.builder import Builder
from shoestring.kernels.tile.cuda import compile_cuda, render
from shoestring.kernels.tile.layout import local, spatial
from shoestring.kernels.tile.packing import PackedTile
from shoestring.kernels.tile.prepare import prepare
from shoestring.kernels.tile.programs.group_affine import GroupAffineConfig, group_affine
from shoestring.kernels.tile.programs.matmul import MatmulConfig, pipelined_matmul
from shoestring.kernels.tile.target import CUDA
from shoestring.kernels.tile.types import all_narrow_types, data_type

SNAPSHOTS = Path(__file__).parent / "snapshots"
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc here")


def matmul(weights, activations, **tiling):
    config = MatmulConfig(data_type(weights), data_type(activations), CUDA, 64, **tiling)
    return render(prepare(pipelined_matmul(config), CUDA))


def unpacking():
    tile = PackedTile(data_type("u5"), local(4, 2).spatial(1, 32).local(2, 1), CUDA)
    return render(prepare(tile.restore_layout_program(), CUDA))


FIXED = {
    "matmul_u4_f16": lambda: matmul("u4", "f16", warps=(1, 2), repeats=(1, 2, 2), split_k=2, aligned=64),
    "matmul_f6e3m2_bf16": lambda: matmul("f6e3m2", "bf16", warps=(1, 1), stages=2, aligned=16),
    "restore_u5": unpacking,
}


@pytest.mark.parametrize("name", FIXED)
def test_the_text_is_the_stored_one(name):
    kernel, file = FIXED[name](), SNAPSHOTS / f"{name}.cu"
    own = kernel.body[kernel.body.index('extern "C"') :]
    if os.environ.get("SHOESTRING_WRITE_SNAPSHOTS"):
        file.write_text(own)
    assert own == file.read_text()


def test_the_selected_instructions_and_no_others():
    """Two ldmatrix.x4 for A, 16-byte copies, a subtraction for each pair of codes, nothing for a View."""
    own = FIXED["matmul_u4_f16"]().body
    own = own[own.index('extern "C"') :]
    counts = {
        "load_matrices(": 2, "multiply_f16(": 8, "sub_f16(": 16, "mul_f16(": 16,
        "copy_later<16>(": 9, "copy_later<4>(": 0, "read_code(": 0, "commit_copies();": 3,
        "wait_copies<1>();": 2, "wait_copies<0>();": 1, "wait_for(": 1, "release(": 1, "uint8_t t_u": 0,
    }  # fmt: skip
    assert {text: own.count(text) for text in counts} == counts
    assert "uint32_t r3[" not in own, "a View needs no registers"
    assert re.search(r"to\[0\] = make_uint4\(r7\[0\], r7\[1\], r7\[2\], r7\[3\]\)", own), "stores of 16 bytes"


def test_narrow_floats_move_their_fields_and_unaligned_operands_move_alone():
    floats = matmul("f6e3m2", "f16").body
    assert "mul_f16(placed(" in floats
    assert "values_f6e3m2" not in floats, "no table"
    assert "copy_later<16>(shared_w" in floats, "packed weights are aligned whatever the shapes are"
    assert "copy_later<16>(shared_a" not in floats, "rows of A of unknown length are not"
    assert "values_e4m3fn" in matmul("e4m3fn", "f16").body, "special codes are looked up"


def test_what_has_no_cuda_form_names_the_instruction():
    b = Builder("test", threads=32)
    x = b.pointer("x", "f32")
    b.grid(1)
    b.block_indices()
    tile = b.load_global(b.view_global(x, [64]), [0], shape=[64], layout=local(2) * spatial(32))
    b.print(tile, "here")
    with pytest.raises(ProgramError, match=r"test: Print\(.*has no CUDA form"):
        render(prepare(b.build(), CUDA))
    b = Builder("test", threads=32)
    x = b.pointer("x", "f32")
    b.grid(1)
    b.block_indices()
    tile = b.load_global(b.view_global(x, [256]), [0], shape=[256], layout=spatial(32) * local(8))
    b.cast(tile, "u4")
    with pytest.raises(ProgramError, match=r"test: Cast\(.*rounding to u4 has no CUDA form"):
        render(prepare(b.build(), CUDA))


@needs_nvcc
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("name", FIXED)
def test_compiles(name, architecture, tmp_path, monkeypatch):
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path))
    cubin = compile_cuda(FIXED[name]().text, architecture)
    assert cubin.read_bytes()[:4] == b"\x7fELF"
    assert compile_cuda(FIXED[name]().text, architecture) == cubin, "the second time from the cache"


@needs_nvcc
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_four_bits_with_scale_and_zero_point_compile(architecture):
    config = GroupAffineConfig(data_type("u4"), CUDA, 64, 4, 1, True)
    kernel = render(prepare(group_affine(config), CUDA))
    assert compile_cuda(kernel.text, architecture).read_bytes()[:4] == b"\x7fELF"


@needs_nvcc
def test_a_rejected_source_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path))
    with pytest.raises(NoCompiler, match="nvcc rejects a kernel: .*error"):
        compile_cuda("__global__ void broken( {", "sm_80")
    assert not list(tmp_path.glob("cuda/*.cubin"))
    monkeypatch.setenv("SHOESTRING_NVCC", "no-such-compiler")
    with pytest.raises(NoCompiler, match="no nvcc found"):
        compile_cuda("", "sm_80")


@pytest.mark.slow
@needs_nvcc
@pytest.mark.parametrize("activations", ["f16", "bf16"])
@pytest.mark.parametrize("weights", [t.name for t in all_narrow_types()])
def test_the_template_compiles_for_every_type(weights, activations):
    compile_cuda(matmul(weights, activations, warps=(1, 4), repeats=(1, 2, 4), aligned=64).text, "sm_80")
