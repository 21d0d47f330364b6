"""Register steps, control flow and memory accesses against the interpreter."""

import re

import numpy as np
import pytest
import torch
from tests.kernels.tile.c.programs import both, compiled, on_each_isa, single_block

from shoestring.errors import LayoutError, ProgramError
from shoestring.kernels.tile.builder import Builder
from shoestring.kernels.tile.c.choice import ISAS, choose_isa, features_here
from shoestring.kernels.tile.c.renderer import render
from shoestring.kernels.tile.expressions import equal
from shoestring.kernels.tile.instructions import BINARY, UNARY
from shoestring.kernels.tile.layout import column_local, local, replicate, spatial
from shoestring.kernels.tile.prepare import prepare
from shoestring.kernels.tile.programs.group_affine import GroupAffineConfig, group_affine
from shoestring.kernels.tile.programs.matmul import MatmulConfig, pipelined_matmul
from shoestring.kernels.tile.target import AVX2, AVX512, CUDA
from shoestring.kernels.tile.types import data_type

SMALL = on_each_isa("avx512", "avx2", "portable")


def compare(results, tolerance=0.0):
    got, expected = results
    for name, array in got.items():
        if not isinstance(array, np.ndarray):
            continue
        if tolerance and array.dtype == np.float32:
            assert np.allclose(array, expected[name], rtol=tolerance, atol=tolerance, equal_nan=True), name
        else:
            assert np.array_equal(array, expected[name], equal_nan=array.dtype == np.float32), name


@SMALL
def test_register_steps(isa, target):
    """Everything but Dot: exact where IEEE says so, to an ulp or two where the C library computes."""
    rng = np.random.default_rng(0)
    lanes = target.group
    rows = 4
    x = rng.uniform(0.1, 2, (rows, 2 * lanes)).astype(np.float32)
    x[0, :2] = np.nan, 1
    y = rng.standard_normal(x.shape).astype(np.float32)
    y[0, :2] = 1, np.nan
    whole = rng.integers(-(2**31), 2**31, x.shape).astype(np.int32)
    b = single_block(target, "steps")
    layout = local(rows, 2).spatial(1, lanes)
    arguments = {"x": x, "y": y, "whole": whole, "row": y[:1].copy(), "column": y[:, -1:].copy()}
    kinds = {"whole": "i32"}
    views = {n: b.view_global(b.pointer(n, kinds.get(n, "f32")), a.shape) for n, a in arguments.items()}
    tiles = {
        name: b.load_global(views[name], [0, 0], shape=x.shape, layout=layout) for name in ("x", "y", "whole")
    }
    row = b.load_global(views["row"], [0, 0], shape=(1, 2 * lanes), layout=layout.reduce([0], keepdims=True))
    column = b.load_global(views["column"], [0, 0], shape=(rows, 1), layout=layout.reduce([1], keepdims=True))
    results = {f"u_{op}": b.unary(op, tiles["x"]) for op in UNARY}
    results |= {f"b_{op}": b.elementwise(op, tiles["x"], tiles["y"]) for op in BINARY}
    results |= {f"s_{op}": b.elementwise(op, tiles["y"], 0.75) for op in BINARY}
    results |= {f"i_{op}": b.elementwise(op, tiles["whole"], 37) for op in BINARY if op != "div"}
    results |= {f"i_{op}": b.unary(op, tiles["whole"]) for op in ("neg", "abs")}
    results["broadcast"] = b.mul(b.add(tiles["y"], row), column)
    results["uniform"] = b.elementwise("max", b.unary("neg", column), b.mul(column, 3.0))
    for op in ("sum", "max", "min"):
        for dim in (0, 1):
            results[f"r{dim}_{op}"] = b.reduce(op, tiles["y"], dim)
    few = b.elementwise("mod", tiles["whole"], 1000)  # sums that overflow are nobody's business
    results["sum_of_integers"] = b.reduce("sum", few, 1)
    results["moved"] = b.squeeze(b.unsqueeze(b.transpose(tiles["x"], [1, 0]), [1]), [1])
    halves = b.cast(tiles["y"], "f16")
    results["halves"] = b.cast(b.mul(b.add(halves, halves), 0.37), "f32")
    brains = b.cast(tiles["y"], "bf16")
    results["brains"] = b.cast(b.elementwise("sub", brains, b.mul(brains, 0.37)), "f32")
    for name, result in results.items():
        kind = result.dtype.name
        arguments[name] = np.zeros(result.extents, np.int32 if kind == "i32" else np.float32)
        b.store_global(b.view_global(b.pointer(name, kind), result.extents), result, [0, 0])
    compare(both(b.build(), target, isa, arguments), 2e-6)


@SMALL
def test_windows_at_every_edge(isa, target):
    """Tiles that hang over each side of a tensor, under layouts that take each way through memory."""
    lanes = target.group
    half = lanes // 2
    layouts = [
        local(2, 2).spatial(1, lanes),  # full vectors
        local(2, 1) * replicate(lanes) * local(1, lanes),  # the same in all lanes
        column_local(2, 2).spatial(2, half),  # lanes in two rows
        spatial(lanes, 1).local(1, 4),  # a row in a lane
        replicate(2).spatial(2, half // 2).local(1, 2),  # copies: one of them writes
    ]
    b = single_block(target, "windows")
    i, j = b.scalar("i"), b.scalar("j")
    shape = (2 * lanes + 3, 3 * lanes + 1)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    words = np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)
    source = b.view_global(b.pointer("x", "f32"), shape)
    bytes_ = b.view_global(b.pointer("words", "u8"), shape)
    arguments = {"x": x, "words": words}
    for number, layout in enumerate(layouts):
        tile = b.load_global(source, [i, j], shape=layout.shape, layout=layout)
        out = b.view_global(b.pointer(f"y{number}", "f32"), shape)
        b.store_global(out, b.add(tile, 1.0), [i, j])
        whole = b.view_global(b.pointer(f"z{number}", "f32"), layout.shape)
        b.store_global(whole, tile, [0, 0])
        arguments |= {
            f"y{number}": np.zeros(shape, np.float32),
            f"z{number}": np.zeros(layout.shape, np.float32),
        }
    flat = local(2, 1).spatial(1, lanes).local(1, 4)
    stored = b.view_global(b.pointer("copied", "u8"), shape)
    b.store_global(stored, b.load_global(bytes_, [i, j], shape=flat.shape, layout=flat), [i, j])
    arguments["copied"] = np.zeros(shape, np.uint8)
    program = b.build()
    for row, col in [
        (0, 0),
        (1, 3),
        (-1, -2),
        (2, lanes + 2),
        (shape[0] - 1, shape[1] - 3),
        (-50, 0),
        (0, 500),
    ]:
        compare(both(program, target, isa, {**arguments, "i": row, "j": col}))


@SMALL
def test_control_flow_shared_memory_and_workspaces(isa, target):
    lanes = target.group
    b = Builder("flow", threads=lanes)
    n = b.scalar("n")
    b.grid(n)
    (block,) = b.block_indices()
    counter, memory = b.allocate_global("i32", [1]), b.allocate_global("f32", [lanes])
    total = b.set_scalar("total", 0)
    with b.loop("turn", 5) as turn:
        with b.when(equal(turn % 2, 0)):
            b.update(total, total + turn)
        with b.otherwise():
            b.update(total, total + 10)
    with b.loop_while(total < 100):
        b.update(total, total * 2)
    source = b.view_global(b.pointer("x", "f32"), [n, lanes])
    shared = b.allocate_shared("f32", [2, lanes])
    b.copy_async(shared, source, [1, 0], [block, 3], shape=[1, lanes])
    b.commit_group()
    b.wait_group(0)
    b.synchronize()
    mine = b.mul(b.load_shared(shared, [1, 0], shape=[lanes]), total)
    b.lock_semaphore(counter, [0], block)
    before = b.load_global(memory, [0], shape=[lanes])
    b.store_global(memory, b.add(b.mul(before, 0.5), mine), [0])
    b.release_semaphore(counter, [0], block + 1)
    y = b.view_global(b.pointer("y", "f32"), [n, lanes])
    b.store_global(y, before, [block, 0], dims=[1])
    with b.when(block > 1):
        b.exit()
    b.store_global(y, mine, [block, 0], dims=[1])
    x = np.random.default_rng(0).standard_normal((6, lanes)).astype(np.float32)
    compare(both(b.build(), target, isa, {"n": 6, "x": x, "y": np.zeros_like(x)}))


@SMALL
@pytest.mark.parametrize(
    ("store_between", "rows", "width", "in_place"),
    [(False, 1, 4, True), (True, 1, 4, False), (False, 3, 4, True), (False, 3, 5, False)],
)
def test_scalars_read_in_place_are_those_of_the_load(isa, target, store_between, rows, width, in_place):
    """A store between load and use, or gaps between rows, make a copy; else they are read where they lie."""
    b = single_block(target)
    x = b.view_global(b.pointer("x", "f32"), [2, width])
    y = b.view_global(b.pointer("y", "f32"), [rows, target.group])
    same, lanes = replicate(target.group), spatial(1, target.group)
    part = b.load_global(x, [0, 1], shape=[rows, 4], layout=same * local(rows, 4), name="part")
    ones = b.allocate_register("f32", [4, target.group], layout=local(4, 1) * lanes, init=1)
    total = b.allocate_register("f32", [rows, target.group], layout=local(rows, 1) * lanes, init=0.5)
    if store_between:
        nines = b.allocate_register("f32", [2, 4], layout=same * local(2, 4), init=9)
        b.store_global(x, nines, [0, 0])
    b.dot(part, ones, total, out=total)
    b.store_global(y, total, [0, 0])
    program = b.build()
    own = compiled(program, target, isa).rendered.text
    assert ("const float *part;" in own) is in_place
    values = np.arange(2 * width, dtype=np.float32).reshape(2, width)
    results = both(program, target, isa, {"x": values, "y": np.zeros((rows, target.group), np.float32)})
    compare(results)
    sums = 0.5 + np.array([*values[:, 1:].sum(1), 0], np.float32)  # zeros beyond the edges of x
    assert np.array_equal(results[0]["y"], np.repeat(sums[:rows, None], target.group, 1))


SELECTED = [
    ("u4", "avx512", AVX512, "_mm512_permutexvar_ps(code", "shrdi_epi32(raw"),
    ("i5", "avx512", AVX512, "_mm512_shrdi_epi32(raw[0], raw[1], 30)", "_ps(code"),
    ("i5", "avx512", AVX512, "_mm512_permutex2var_ps(", "vi_sar"),
    ("i5", "avx512f", AVX512, "vi_or(vi_shr(raw[0], 30), vi_shl(raw[1], 2))", "shrdi_epi32(raw"),
    ("f6e3m2", "avx512", AVX512, "_mm512_permutex2var_epi16(", "vi_sar"),
    ("i6", "avx512", AVX512, "_mm512_shrdi_epi16(t_halves", "vi_shr(raw"),
    ("u6", "avx512f", AVX512, "vi_or(vi_shr_halves(t_halves", "shrdi"),
    ("f7e3m3", "avx512", AVX512, "vi_and(vi_sar(code, 5), vi_set1(0x83f00000u))", "permutex"),
    ("u3", "avx2", AVX2, "_mm256_permutevar8x32_ps(", "blendv"),
    ("f4e2m1", "avx2", AVX2, "_mm256_blendv_ps(_mm256_permutevar8x32_ps(", "permutexvar"),
    ("u6", "portable", AVX2, "values[U(code[t]) & 63]", "_mm"),
]


@pytest.mark.parametrize(("weights", "isa", "target", "present", "absent"), SELECTED)
def test_the_text_has_the_selected_instructions(weights, isa, target, present, absent):
    """Tables for up to five bits, of pairs for six, shifts for more, a funnel shift across words, nothing for
    a View."""
    rows = 4 if weights in ("i6", "u6") and target is AVX512 else 1  # one row alone has no need of pairs
    config = GroupAffineConfig(data_type(weights), target, 64, rows, 4, offsets=False)
    source = render(prepare(group_affine(config), target), ISAS[isa]).text
    own = source[source.index("#define ENTER_KERNEL") :]
    assert present in own
    assert absent not in own
    assert "vi codes[" not in own, "a View needs no registers"
    assert "vf weights[" not in own, "the Cast is done where its values are used"
    assert "memcpy" not in own, "x is read where it lies"
    assert re.search(r"__builtin_prefetch\(\w+ \+ 0, 0, 2\)", own)
    assert own.count("= vf_fma(") == 32 * 4 * rows


def test_programs_without_a_c_form_name_the_instruction():
    b = single_block(AVX2)
    b.print(b.allocate_register("f32", [8], init=1.0), "here")
    with pytest.raises(ProgramError, match=r"test: Print\(.*has no C form"):
        compiled(b.build(), AVX2, "portable")
    b = single_block(AVX2)
    with b.loop("i", 3) as i:
        pass
    b.set_scalar("after", i)
    with pytest.raises(ProgramError, match=r"SetScalar\(variable=after.*reads 'i' after its loop"):
        compiled(b.build(), AVX2, "portable")
    mma = pipelined_matmul(MatmulConfig(data_type("i4"), data_type("f16"), CUDA, 32))
    with pytest.raises(LayoutError, match=r"pipelined_matmul_i4_f16: Dot\(.*needs element"):
        compiled(mma, CUDA, "portable")


def test_instruction_sets_that_are_not_here(monkeypatch):
    with pytest.raises(ProgramError, match="'neon'; there are avx512vnni, avx512, avx512f, avx2, portable"):
        choose_isa(AVX2, "neon")
    with pytest.raises(ProgramError, match="avx2 has vectors of 8 lanes, target avx512 groups of 16"):
        choose_isa(AVX512, "avx2")
    lacking = features_here() - {"avx512_vbmi2", "fma"}
    monkeypatch.setattr("shoestring.kernels.tile.c.choice.features_here", lambda: lacking)
    with pytest.raises(ProgramError, match="this processor lacks fma.*, which avx2 needs"):
        choose_isa(AVX2, "avx2")
    assert choose_isa(AVX2).name == "portable"


def copier():
    b = single_block(AVX2, "copier")
    n = b.scalar("n", divisible_by=4)
    tile = b.load_global(b.view_global(b.pointer("x", "f32"), [n]), [0], shape=[8])
    b.store_global(b.view_global(b.pointer("y", "f32"), [n]), tile, [0])
    return compiled(b.build(), AVX2, "portable")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 6}, "n=6 must be an int divisible by 4"),
        ({"n": 12}, r"ViewGlobal\(.*: a tensor of 48 bytes in a buffer of 32"),
        ({"x": torch.zeros(8, dtype=torch.float64)}, "x holds f32: give float32, not float64"),
        ({"x": torch.zeros(16)[::2]}, r"x must be contiguous; use .contiguous\(\)"),
        ({"x": torch.zeros(9)[1:]}, r"x must start at a multiple of 16 bytes; use .clone\(\)"),
        ({"x": torch.zeros(8, requires_grad=True)}, "need no gradient"),
        ({"y": np.broadcast_to(np.float32(0), (8,))}, "y must be contiguous"),
        ({"x": 3}, "x must be an array, not 3"),
        ({"z": 3}, r"copier takes \['n', 'x', 'y'\]"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ProgramError, match=message):
        copier()(**{"n": 8, "x": torch.ones(8), "y": torch.zeros(8), **change})


def test_without_a_compiler_the_interpreter_answers_and_says_so(monkeypatch):
    from shoestring.kernels.tile.c.compiled import compile_program
    from shoestring.notices import record_fallbacks

    program = copier().program
    monkeypatch.setenv("SHOESTRING_CC", "none")
    with record_fallbacks() as said:
        kernel = compile_program(program, AVX2)
    assert any("the interpreter instead of compiled C" in line for line in said)
    y = torch.zeros(8)
    kernel(n=8, x=torch.arange(8.0), y=y)
    assert torch.equal(y, torch.arange(8.0))


def test_a_launch_states_its_cost():
    from shoestring.kernels.costs import Cost, listen

    heard = {}
    with listen(lambda name, cost: heard.__setitem__(name, cost)):
        copier()(n=8, x=torch.ones(8), y=torch.zeros(8))
    assert heard == {"copier": Cost(0, 64)}
