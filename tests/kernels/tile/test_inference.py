import pytest

from shoestring.errors import LayoutError
from shoestring.kernels.tile.builder import Builder
from shoestring.kernels.tile.fragments import MMA_M16N8K16_A, MMA_M16N8K16_B, MMA_M16N8K16_C
from shoestring.kernels.tile.inference import flat_bytes, infer_layouts
from shoestring.kernels.tile.layout import auto_local_spatial, local, spatial
from shoestring.kernels.tile.memory_layout import row_major, swizzled_row_major
from shoestring.kernels.tile.target import AVX512, CUDA
from shoestring.kernels.tile.verify import verify


def product(threads, m, n, k, target):
    b = Builder("product", threads=threads)
    b.grid(1)
    a = b.load_shared(b.allocate_shared("f16", [m, k], name="memory_a"), name="a")
    w = b.load_shared(b.allocate_shared("f16", [k, n], name="memory_w"), name="w")
    c = b.allocate_register("f32", [m, n], init=0, name="c")
    b.dot(a, w, c, out=c)
    program = infer_layouts(b.build(), target)
    verify(program, target)
    return program.tensors()


def test_a_product_takes_the_fragments_of_tensor_cores_and_spreads_its_warps():
    tensors = product(128, 64, 32, 32, CUDA)
    assert tensors["c"].layout == local(2, 2) * spatial(2, 2) * MMA_M16N8K16_C
    assert tensors["a"].layout / MMA_M16N8K16_A == local(2, 1).spatial(2, 1).replicate(2).local(1, 2)
    assert (tensors["w"].layout / MMA_M16N8K16_B).replicas == 2
    assert tensors["memory_a"].layout == swizzled_row_major(64, 32, bits=16)
    assert tensors["memory_w"].layout == row_major(
        32, 32
    )  # b is read across rows: no matrix load without a turn


def test_a_product_on_lanes():
    tensors = product(16, 3, 16, 4, AVX512)
    assert tensors["c"].layout == local(3, 1).spatial(1, 16)
    assert tensors["a"].layout == local(3, 1).replicate(16).local(1, 4)
    assert tensors["w"].layout == local(4, 1).spatial(1, 16)


def test_loads_are_as_wide_as_memory_allows():
    b = Builder("load", threads=32)
    n = b.scalar("n", divisible_by=8)
    b.grid(1)
    view = b.view_global(b.pointer("x", "f16"), [16, n])
    odd = b.view_global(b.pointer("y", "f16"), [16, b.scalar("m")])
    turned = b.view_global(b.pointer("z", "f16"), [n, 16], strides=[1, n])
    for name, tensor, shape in (
        ("wide", view, [16, 64]),
        ("single", odd, [16, 64]),
        ("tall", turned, [64, 16]),
    ):
        b.print(b.load_global(tensor, [0, 0], shape=shape, name=name))
    tensors = infer_layouts(b.build(), CUDA).tensors()
    assert tensors["wide"].layout == local(4, 1).spatial(4, 8).local(1, 8)
    assert tensors["single"].layout == auto_local_spatial(32, [16, 64])
    assert tensors["tall"].layout.local_digits[-1].dim == 0
    assert tensors["tall"].layout.local_digits[-1].size == 8


def test_layouts_flow_through_instructions_both_ways():
    b = Builder("flow", threads=8)
    b.grid(1)
    fixed = local(2, 1).spatial(2, 4)
    x = b.allocate_register("f32", [4, 4], init=1, name="x")
    y = b.unary("exp", b.transpose(x, [1, 0]))
    scale = b.allocate_register("f32", [1, 4], init=2, name="scale")
    total = b.allocate_register("f32", [4, 4], layout=fixed, init=0, name="total")
    b.add(total, b.mul(y, scale), out=total)
    column = b.reduce("sum", total, 1)
    program = infer_layouts(b.build(), AVX512)
    tensors = program.tensors()
    assert tensors["x"].layout == fixed.permute([1, 0])
    assert tensors["scale"].layout == fixed.reduce([0], keepdims=True)
    assert tensors[column.name].layout == fixed.reduce([1], keepdims=True)


def test_bytes_under_a_view_lie_as_in_a_packed_tile():
    b = Builder("view", threads=32)
    b.grid(1)
    raw = b.load_global(b.view_global(b.pointer("x", "u8"), [96]), [0], shape=[96], name="raw")
    b.view(raw, "i6", [16, 8], layout=MMA_M16N8K16_B)
    assert infer_layouts(b.build(), CUDA).tensors()["raw"].layout == local(3).spatial(32)
    assert flat_bytes(32, 24, 16) == local(3).spatial(32).local(8)
    assert flat_bytes(16, 12, 4) == local(3).spatial(16).local(4)


def test_what_follows_from_nothing_is_named():
    b = Builder("stuck", threads=32)
    b.grid(1)
    raw = b.allocate_register("u8", [96], init=0, layout=local(3).spatial(32))
    b.view(raw, "i6", [16, 8], name="codes")
    with pytest.raises(LayoutError, match="stuck: the layout of codes: register i6.* follows from nothing"):
        infer_layouts(b.build(), CUDA)
