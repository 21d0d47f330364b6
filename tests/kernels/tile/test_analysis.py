from hypothesis import given
from hypothesis import strategies as st
from tests.kernels.tile.strategies import layouts

from shoestring.kernels.tile.analysis import naive_run_of, run_of, vector_of
from shoestring.kernels.tile.expressions import Const, Var, expression
from shoestring.kernels.tile.ir import LoadGlobal, LoadShared, Space, Tensor, Window
from shoestring.kernels.tile.layout import local, spatial
from shoestring.kernels.tile.memory_layout import column_major, row_major, swizzled_row_major
from shoestring.kernels.tile.types import data_type


def global_tensor(rows, cols, dtype="f32", pitch=None):
    strides = (expression(cols if pitch is None else pitch), Const(1))
    return Tensor("x", data_type(dtype), (expression(rows), expression(cols)), Space.GLOBAL, strides=strides)


@given(
    layouts(factors=4),
    *[st.sampled_from([1, 2, 4, 8])] * 3,
    st.integers(0, 4),
    st.integers(0, 3),
)
def test_a_run_in_global_memory_is_one_whatever_the_values(layout, by_n, by_k, step, n8, k8):
    """What the divisors promise must hold for concrete values that keep the promises."""
    n, k = Var("n", divisible_by=by_n), Var("k", divisible_by=by_k)
    window = Window(global_tensor(20, n), (k, k * step), (0, 1))
    run = run_of(window, layout)
    values = {"n": by_n * (n8 + 1), "k": by_k * k8}
    assert naive_run_of(window, layout, values, (20, values["n"])) % run == 0


def test_runs_are_as_wide_as_the_divisors_allow():
    layout = spatial(4, 8).local(1, 8)
    n, k = Var("n", divisible_by=8), Var("k")
    whole = Window(global_tensor(4, n), (Const(0), k * 8), (0, 1))
    assert run_of(whole, layout) == 8
    assert run_of(Window(global_tensor(4, n), (Const(0), k * 2), (0, 1)), layout) == 2
    assert run_of(Window(global_tensor(4, Var("m")), (Const(0), k * 8), (0, 1)), layout) == 1
    assert (
        run_of(Window(global_tensor(4, n, pitch=Var("p", divisible_by=4)), whole.offsets, (0, 1)), layout)
        == 4
    )
    assert run_of(whole, layout.permute([1, 0])) == 1


def test_what_lies_beyond_the_extent_and_other_dimensions_limit_runs():
    layout = spatial(4).local(1, 8)
    ragged = Window(global_tensor(4, 12, pitch=16), (Const(0), Const(0)), (0, 1))
    assert run_of(ragged, layout) == 4  # elements 8 .. 11 are inside, 12 .. 15 masked
    steps = (Const(100), Const(16), Const(1))
    cube = Tensor("x", data_type("f32"), tuple(map(Const, (3, 4, 16))), Space.GLOBAL, strides=steps)
    k = Var("k")
    assert run_of(Window(cube, (k, Const(0), Const(0)), (1, 2)), layout) == 4
    assert run_of(Window(cube, (k * 2, Const(0), Const(0)), (1, 2)), layout) == 8
    assert naive_run_of(Window(cube, (k, Const(0), Const(0)), (1, 2)), layout, {"k": 1}, (3, 4, 16)) == 4


def test_vectors_come_in_units_of_whole_bytes():
    tensor = Tensor("r", data_type("u3"), (Const(4), Const(64)), Space.REGISTER, spatial(4, 8).local(1, 8))
    access = LoadGlobal(tensor, Window(global_tensor(4, 64, "u3"), (Const(0), Const(0)), (0, 1)))
    assert (vector_of(access).elements, vector_of(access).unit_bytes) == (8, 1)
    odd = LoadGlobal(tensor, Window(global_tensor(4, 64, "u3"), (Const(0), Const(4)), (0, 1)))
    assert (vector_of(odd).elements, vector_of(odd).unit_bytes) == (1, 0)
    half = Tensor("h", data_type("f16"), (Const(4), Const(64)), Space.REGISTER, spatial(4, 8).local(1, 8))
    wide = LoadGlobal(half, Window(global_tensor(4, 64, "f16"), (Const(0), Const(0)), (0, 1)))
    assert (vector_of(wide).elements, vector_of(wide).unit_bytes) == (8, 16)


@given(
    st.sampled_from([row_major(3, 16, 64), column_major(3, 16, 64), swizzled_row_major(3, 16, 64, bits=16)]),
    layouts(factors=4),
    st.sampled_from([(0, 0), (8, 32), (0, 4), (1, 2)]),
    st.integers(0, 2),
)
def test_a_run_in_shared_memory_is_one_whatever_the_stage(memory, layout, place, stage):
    if any(n + o > m for n, o, m in zip(layout.shape, place, (16, 64), strict=True)):
        return
    tensor = Tensor("s", data_type("f16"), tuple(map(Const, (3, 16, 64))), Space.SHARED, memory)
    window = Window(tensor, (Var("stage"), *map(Const, place)), (1, 2))
    run = run_of(window, layout)
    assert naive_run_of(window, layout, {"stage": stage}, (3, 16, 64)) % run == 0


def test_a_swizzled_tile_is_read_in_runs_of_sixteen_bytes():
    memory = swizzled_row_major(16, 64, bits=16)
    tensor = Tensor("s", data_type("f16"), (Const(16), Const(64)), Space.SHARED, memory)
    half = Tensor("h", data_type("f16"), (Const(16), Const(64)), Space.REGISTER, spatial(16, 2).local(1, 32))
    access = LoadShared(half, Window(tensor, (Const(0), Const(0)), (0, 1)))
    assert (vector_of(access).elements, vector_of(access).unit_bytes) == (8, 16)
    assert run_of(access.source, local(16, 64)) == 8
