import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.kernels.tile.strategies import layouts

from shoestring.errors import ProgramError
from shoestring.kernels.tile.builder import Builder
from shoestring.kernels.tile.expressions import equal
from shoestring.kernels.tile.inference import infer_layouts
from shoestring.kernels.tile.interpreter import run
from shoestring.kernels.tile.layout import local, replicate, spatial
from shoestring.kernels.tile.target import AVX2, CUDA
from shoestring.kernels.tile.verify import verify

NAN = np.float32(np.nan)


def execute(b, arguments, *, target=AVX2, checked=True, seed=None):
    program = infer_layouts(b.build(), target)
    if checked:
        verify(program, target)
    run(program, arguments, seed=seed)


def single_block(threads=8):
    b = Builder("test", threads=threads)
    b.grid(1)
    b.block_indices()
    return b


def through(shape, body, *arrays, out_shape=None, dtype="f32"):
    """Load each array whole, apply `body(builder, *tensors)`, return what it gives as an array."""
    b = single_block()
    tensors = []
    for number, array in enumerate(arrays):
        view = b.view_global(b.pointer(f"x{number}", dtype), array.shape)
        tensors.append(b.load_global(view, [0] * array.ndim, shape=array.shape))
    result = body(b, *tensors)
    stored = {"f32": np.float32, "i32": np.int32}[result.dtype.name]
    y = np.zeros(out_shape or shape, stored)
    view = b.view_global(b.pointer("y", result.dtype), y.shape)
    b.store_global(view, result, [0] * y.ndim)
    execute(b, {**{f"x{i}": a for i, a in enumerate(arrays)}, "y": y})
    return y


def test_elementwise_and_broadcast():
    rng = np.random.default_rng(0)
    x, row, column = (rng.standard_normal(s).astype(np.float32) for s in ((8, 16), (1, 16), (8, 1)))
    operations = {
        "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "mod": np.fmod,
        "max": np.maximum, "min": np.minimum,
    }  # fmt: skip
    for op, reference in operations.items():
        got = through(x.shape, lambda b, t, op=op: b.elementwise(op, t, b.elementwise("mul", t, 0.5)), x)
        assert np.array_equal(got, reference(x, x * np.float32(0.5)))

    def combine(b, t):
        view_r = b.view_global(b.pointer("row", "f32"), row.shape)
        view_c = b.view_global(b.pointer("column", "f32"), column.shape)
        sums = b.add(t, b.load_global(view_r, [0, 0], shape=row.shape))
        return b.mul(sums, b.load_global(view_c, [0, 0], shape=column.shape))

    b = single_block()
    view = b.view_global(b.pointer("x", "f32"), x.shape)
    y = np.zeros_like(x)
    out = b.view_global(b.pointer("y", "f32"), x.shape)
    result = combine(
        b, b.load_global(view, [0, 0], shape=x.shape, layout=local(4, 2).spatial(2, 4).local(1, 2))
    )
    b.store_global(out, result, [0, 0])
    execute(b, {"x": x, "row": row, "column": column, "y": y})
    assert np.array_equal(y, (x + row) * column)


def test_unary_operations():
    x = np.random.default_rng(0).uniform(0.1, 2, (4, 8)).astype(np.float32)
    functions = {
        "neg": np.negative, "abs": np.abs, "exp": np.exp, "exp2": np.exp2, "log": np.log, "sqrt": np.sqrt,
        "rsqrt": lambda v: 1 / np.sqrt(v), "tanh": np.tanh,
    }  # fmt: skip
    for op, reference in functions.items():
        got = through(x.shape, lambda b, t, op=op: b.unary(op, t), x)
        assert np.allclose(got, reference(x), rtol=1e-6)


def test_reductions_and_moves_of_dimensions():
    x = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    for op, reference in (("sum", np.sum), ("max", np.max), ("min", np.min)):
        for dim, shape in ((0, (1, 16)), (1, (8, 1))):
            got = through(shape, lambda b, t, op=op, dim=dim: b.reduce(op, t, dim), x)
            assert np.allclose(got, reference(x, axis=dim, keepdims=True), rtol=1e-6)
    assert np.array_equal(through((16, 8), lambda b, t: b.transpose(t, [1, 0]), x), x.T)
    moved = through((8, 1, 16), lambda b, t: b.unsqueeze(t, [1]), x)
    assert np.array_equal(moved, x[:, None])
    back = through((8, 16), lambda b, t: b.squeeze(b.unsqueeze(t, [0]), [0]), x)
    assert np.array_equal(back, x)


def test_integers_stay_integers():
    x = np.arange(-16, 16, dtype=np.int32).reshape(4, 8)
    got = through(x.shape, lambda b, t: b.elementwise("mod", b.mul(t, t), 7.0), x, dtype="i32")
    assert np.array_equal(got, x * x % 7)
    half = through(x.shape, lambda b, t: b.cast(b.mul(b.cast(t, "f32"), 0.5), "i32"), x, dtype="i32")
    assert np.array_equal(half, np.rint(x * 0.5))


@given(layouts(factors=2, copies=True), st.integers(-3, 9), st.integers(-3, 9))
def test_loads_give_zero_outside_and_stores_stop_there(layout, row, col):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 7)).astype(np.float32)
    b = Builder("window", threads=layout.threads)
    b.grid(1)
    i, j = b.scalar("i"), b.scalar("j")
    tile = b.load_global(
        b.view_global(b.pointer("x", "f32"), [6, 7]), [i, j], shape=layout.shape, layout=layout
    )
    whole = b.view_global(b.pointer("whole", "f32"), layout.shape)
    b.store_global(whole, tile, [0, 0])
    b.store_global(b.view_global(b.pointer("y", "f32"), [6, 7]), b.add(tile, 1.0), [i, j])
    seen, y = np.full(layout.shape, NAN), np.zeros_like(x)
    program = infer_layouts(b.build(), AVX2)
    run(program, {"i": row, "j": col, "x": x, "whole": seen, "y": y})
    padded = np.zeros((6 + 200, 7 + 200), np.float32)
    padded[50:56, 50:57] = x
    expected = padded[50 + row : 50 + row + layout.shape[0], 50 + col : 50 + col + layout.shape[1]]
    if expected.shape == layout.shape:
        assert np.array_equal(seen, expected)
    r, c = np.indices(x.shape)
    inside = (r >= row) & (r < row + layout.shape[0]) & (c >= col) & (c < col + layout.shape[1])
    assert np.array_equal(y, np.where(inside, x + 1, 0))


def test_undefined_registers_and_shared_memory_show():
    b = single_block()
    blank = b.allocate_register("f32", [8])
    shared = b.allocate_shared("f32", [8])
    y = np.zeros((2, 8), np.float32)
    out = b.view_global(b.pointer("y", "f32"), y.shape)
    b.store_global(out, blank, [0, 0], dims=[1])
    b.store_global(out, b.load_shared(shared), [1, 0], dims=[1])
    execute(b, {"y": y}, checked=False)
    assert np.isnan(y).all()


@pytest.mark.parametrize(("wait", "meet"), [(True, True), (False, True), (True, False)])
def test_asynchronous_copies_land_after_wait_and_meeting_only(wait, meet):
    x = np.arange(8, dtype=np.float32)
    b = single_block()
    source = b.view_global(b.pointer("x", "f32"), [8])
    shared = b.allocate_shared("f32", [8])
    b.copy_async(shared, source, [0], [0], shape=[8])
    b.commit_group()
    b.copy_async(shared, source, [0], [100], shape=[1])  # another group, which must not be waited for
    b.commit_group()
    b.wait_group(1 if wait else 2)
    if meet:
        b.synchronize()
    y = np.zeros(8, np.float32)
    b.store_global(b.view_global(b.pointer("y", "f32"), [8]), b.load_shared(shared), [0])
    execute(b, {"x": x, "y": y}, checked=False)
    if wait and meet:
        assert np.array_equal(y[1:], x[1:])
    else:
        assert np.isnan(y).all()


def test_a_copy_on_its_way_spoils_what_was_there():
    x = np.arange(16, dtype=np.float32)
    b = single_block()
    source = b.view_global(b.pointer("x", "f32"), [16])
    shared = b.allocate_shared("f32", [8])
    for half in range(2):
        b.copy_async(shared, source, [0], [8 * half], shape=[8])
        b.commit_group()
        b.wait_group(half)
        b.synchronize()
    y = np.zeros(8, np.float32)
    b.store_global(b.view_global(b.pointer("y", "f32"), [8]), b.load_shared(shared), [0])
    execute(b, {"x": x, "y": y})
    assert np.isnan(y).all()


def test_control_flow():
    b = single_block()
    y = np.zeros(8, np.int32)
    out = b.view_global(b.pointer("y", "i32"), [8])
    total = b.set_scalar("total", 0)
    with b.loop("i", 5) as i:
        with b.when(equal(i % 2, 0)):
            b.update(total, total + i)
        with b.otherwise():
            b.update(total, total + 10)
    with b.loop_while(total < 100):
        b.update(total, total * 2)
    value = b.allocate_register("i32", [8], init=1)
    b.store_global(out, b.mul(value, total), [0])
    with b.when(total > 0):
        b.exit()
    b.store_global(out, value, [0])
    execute(b, {"y": y})
    assert (y == 104).all()  # 0 + 10 + 2 + 10 + 4 = 26, doubled twice


def test_a_view_reads_the_same_bits_and_copies_must_agree():
    b = single_block()
    x = np.arange(32, dtype=np.uint8)
    y = np.zeros((4, 8), np.uint32)
    raw = b.load_global(
        b.view_global(b.pointer("x", "u8"), [32]), [0], shape=[32], layout=spatial(8).local(4)
    )
    words = b.view(raw, "i32", [8], layout=spatial(8))
    b.store_global(b.view_global(b.pointer("y", "i32"), [8]), words, [0])
    execute(b, {"x": x, "y": y[0]})
    assert np.array_equal(y[0], x.view("<u4"))
    again = single_block()
    raw = again.load_global(
        again.view_global(again.pointer("x", "f32"), [8]), [0], shape=[8], layout=spatial(8)
    )
    again.view(raw, "i32", [4], layout=replicate(2) * spatial(4))
    with pytest.raises(ProgramError, match="copies disagree"):
        execute(again, {"x": np.arange(8, dtype=np.float32)}, checked=False)


def test_workspaces_are_shared_and_zero_and_semaphores_order_blocks():
    b = Builder("chain", threads=8)
    b.grid(5)
    (block,) = b.block_indices()
    counter = b.allocate_global("i32", [1])
    memory = b.allocate_global("f32", [8])
    b.lock_semaphore(counter, [0], block)
    tile = b.load_global(memory, [0], shape=[8])
    y = np.zeros((5, 8), np.float32)
    b.store_global(b.view_global(b.pointer("y", "f32"), y.shape), tile, [block, 0], dims=[1])
    b.store_global(memory, b.add(b.mul(tile, 2.0), 1.0), [0])
    b.release_semaphore(counter, [0], block + 1)
    execute(b, {"y": y}, seed=4)
    assert y[:, 0].tolist() == [0, 1, 3, 7, 15]


def test_a_semaphore_nobody_releases_is_found():
    b = single_block()
    counter = b.allocate_global("i32", [1])
    b.lock_semaphore(counter, [0], 1)
    with pytest.raises(ProgramError, match="1 blocks wait for semaphores that nobody releases"):
        execute(b, {})


def test_print_shows_the_tile(capsys):
    b = single_block()
    b.print(b.allocate_register("f32", [8], init=2), "twos")
    execute(b, {})
    assert "twos [0]\n[2. 2. 2." in capsys.readouterr().out


def test_the_dot_of_fragments_equals_numpy():
    rng = np.random.default_rng(0)
    a, w = rng.standard_normal((32, 16)).astype(np.float16), rng.standard_normal((16, 8)).astype(np.float16)
    b = single_block(threads=32)
    left = b.load_global(b.view_global(b.pointer("a", "f16"), a.shape), [0, 0], shape=a.shape)
    right = b.load_global(b.view_global(b.pointer("w", "f16"), w.shape), [0, 0], shape=w.shape)
    total = b.allocate_register("f32", (32, 8), init=1)
    y = np.zeros((32, 8), np.float32)
    b.store_global(b.view_global(b.pointer("y", "f32"), y.shape), b.dot(left, right, total), [0, 0])
    execute(b, {"a": a, "w": w, "y": y}, target=CUDA)
    assert np.allclose(y, 1 + a.astype(np.float32) @ w.astype(np.float32), rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"takes \['n', 'x'\], not \[\]"),
        ({"n": 6, "x": np.zeros(8, np.float32)}, "n=6 must be an int divisible by 4"),
        ({"n": 8, "x": np.zeros((8, 2), np.float32)[:, 0]}, "x must be a contiguous array"),
        ({"n": 8, "x": np.zeros(7, np.float32)}, "a tensor of 32 bytes in a buffer of 28"),
    ],
)
def test_bad_arguments(arguments, message):
    b = single_block()
    b.view_global(b.pointer("x", "f32"), [b.scalar("n", divisible_by=4)])
    with pytest.raises(ProgramError, match=message):
        execute(b, arguments)


def test_shared_accesses_out_of_bounds():
    b = single_block()
    n = b.scalar("n")
    shared = b.allocate_shared("f32", [8])
    b.load_shared(shared, [n], shape=[8])
    with pytest.raises(ProgramError, match=r"reaches 3 \.\. 10 along dimension 0 of 8"):
        execute(b, {"n": 3})
