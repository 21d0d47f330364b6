import pytest

from shoestring.errors import ProgramError
from shoestring.kernels.tile.builder import Builder
from shoestring.kernels.tile.expressions import ceil_div, evaluate
from shoestring.kernels.tile.ir import AllocateShared, For, If, Space, with_tensors
from shoestring.kernels.tile.layout import spatial
from shoestring.kernels.tile.memory_layout import row_major
from shoestring.kernels.tile.shared_memory import plan_shared_memory


def double():
    b = Builder("double", threads=32)
    n, x = b.scalar("n"), b.pointer("x", "f32")
    b.grid(ceil_div(n, 128))
    (block,) = b.block_indices()
    data = b.view_global(x, [n])
    with b.loop("step", 4) as step, b.when(step < n):
        tile = b.load_global(data, [block * 128 + step * 32], shape=[32], layout=spatial(32), name="tile")
        b.store_global(data, b.mul(tile, 2.0), [block * 128 + step * 32])
    return b.build()


def test_a_program_is_data_that_reads_well():
    program = double()
    assert evaluate(program.grid[0], {"n": 129}) == 2
    assert [p.name for p in program.params] == ["n", "x"]
    assert list(program.tensors()) == ["x_view", "tile", "r0"]
    loop = program.body[-1]
    assert isinstance(loop, For)
    assert isinstance(loop.body[0], If)
    assert str(program).splitlines() == [
        "double<((n + 127) // 128)> of 32 threads",
        "    BlockIndices(variables=[block_x])",
        "    ViewGlobal(out=x_view, pointer=x)",
        "    For(step < 4)",
        "        If((step < n))",
        "            LoadGlobal(out=tile, source=x_view[((block_x * 128) + (step * 32))])",
        "            ElementwiseScalar(out=r0, op=mul, source=tile, value=2.0)",
        "            StoreGlobal(out=x_view[((block_x * 128) + (step * 32))], source=r0)",
    ]
    assert program == double()
    assert hash(program) == hash(double())


def test_tensors_are_replaced_everywhere():
    renamed = with_tensors(double(), lambda t: t.__class__(f"new_{t.name}", t.dtype, t.shape, t.space))
    assert all(name.startswith("new_") for name in renamed.tensors())
    assert renamed.tensors()["new_tile"].space is Space.REGISTER
    assert with_tensors(double(), lambda t: t) == double()


def test_names_are_claimed_once():
    b = Builder("names", threads=1)
    b.scalar("n")
    with pytest.raises(ProgramError, match="two things are called 'n'"):
        b.pointer("n", "f32")
    with pytest.raises(ProgramError, match="'2x' is no name"):
        b.scalar("2x")
    with pytest.raises(ProgramError, match="must follow a `when`"), b.otherwise():
        pass
    with pytest.raises(ProgramError, match="differ in rank"):
        b.add(b.allocate_register("f32", [4]), b.allocate_register("f32", [4, 1]))


def test_shared_tensors_that_do_not_meet_share_room():
    b = Builder("shared", threads=1)
    first = b.allocate_shared("f32", [32], layout=row_major(32), name="first")
    second = b.allocate_shared("f16", [33], layout=row_major(33), name="second")
    b.free_shared(first)
    third = b.allocate_shared("u8", [100], layout=row_major(100), name="third")
    b.allocate_shared("f32", [65], layout=row_major(65), name="fourth")
    plan = plan_shared_memory(b.build())
    assert plan.offsets == {"first": 0, "second": 128, "third": 0, "fourth": 256}
    assert plan.total_bytes == 256 + 384
    b.free_shared(third)
    b.free_shared(second)
    assert isinstance(next(i for i in b.build().instructions()), AllocateShared)
    b.free_shared(first)
    with pytest.raises(ProgramError, match="frees what is not allocated"):
        plan_shared_memory(b.build())
