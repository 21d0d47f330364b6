from dataclasses import replace

import pytest

from shoestring.errors import LayoutError, ProgramError
from shoestring.kernels.tile.builder import Builder
from shoestring.kernels.tile.expressions import Var
from shoestring.kernels.tile.inference import infer_layouts
from shoestring.kernels.tile.layout import local, replicate, spatial
from shoestring.kernels.tile.target import AVX512, CUDA
from shoestring.kernels.tile.verify import verify

LANES = spatial(16)


def lanes(b, dtype="f32", init=0.0, name=None, layout=LANES):
    return b.allocate_register(dtype, layout.shape, layout=layout, init=init, name=name)


def view_bits(b):
    raw = lanes(b, "u8", layout=spatial(16).local(4))
    b.view(raw, "u4", [256], layout=spatial(16).local(16))


def store_bits(b):
    x = b.allocate_register("u4", [128], layout=spatial(32).local(4), init=0)
    b.store_global(b.view_global(b.pointer("y", "u4"), [127]), x, [1])


def unfinished_branch(b):
    n = b.scalar("n")
    with b.when(n > 0):
        x = lanes(b, name="x")
    b.print(x)


def wrong_dot(b):
    a, w = (lanes(b, layout=spatial(4, 4)) for _ in range(2))
    b.dot(a, w, lanes(b, layout=spatial(4, 4)))


def scalar_before(b):
    shared = b.allocate_shared("f32", [64])
    with b.loop("i", 3) as i:
        b.load_shared(shared, [i * 16], shape=[16])
    b.load_shared(shared, [Var("later")], shape=[16])


def freed(b):
    shared = b.allocate_shared("f32", [16])
    b.free_shared(shared)
    b.load_shared(shared)


CASES = {
    "threads of a tensor": (
        lambda b: lanes(b, layout=spatial(8)),
        ProgramError,
        r"AllocateRegister.*spatial\(8\) is spread over 8 threads, the block has 16",
    ),
    "threads of a view": (
        lambda b: b.view(lanes(b), "f32", [8], layout=spatial(8)),
        ProgramError,
        "View.*is spread over 8 threads",
    ),
    "bits of a view": (
        lambda b: view_bits(b),
        LayoutError,
        r"View.*u8 spatial\(16\)\.local\(4\) has 16 threads × 32 bits, u4 .*local\(16\) has 16 × 64",
    ),
    "copies of a view": (
        lambda b: b.view(lanes(b), "f32", [8], layout=replicate(2) * spatial(8)),
        LayoutError,
        r"View.*copies under replicate\(2\)\.spatial\(8\) hold different elements under spatial\(16\)",
    ),
    "words": (
        lambda b: lanes(b, "u3", layout=spatial(16).local(8)),
        ProgramError,
        r"u3.*8 slots × 3 bits = 24 bits are not whole words of 32 bits on avx512",
    ),
    "uninitialised": (lambda b: b.print(lanes(b, init=None, name="x")), ProgramError, "x is never written"),
    "undefined on one path": (unfinished_branch, ProgramError, "Print.*x is not defined before this"),
    "undefined scalar": (scalar_before, ProgramError, "LoadShared.*'later' has no value here"),
    "memory space": (
        lambda b: b.print(b.view_global(b.pointer("x", "f32"), [16])),
        ProgramError,
        "Print.*source must be in register memory, not x_view: global f32",
    ),
    "freed": (freed, ProgramError, "LoadShared.*not defined before this"),
    "narrow arithmetic": (
        lambda b: b.add(lanes(b, "u8", layout=spatial(16).local(4)), 1.0),
        ProgramError,
        "u8 is for storage; Cast it",
    ),
    "narrow to narrow": (
        lambda b: b.cast(lanes(b, "i4", layout=spatial(16).local(8)), "u8"),
        ProgramError,
        "i4 cannot be cast to u8 directly",
    ),
    "mixed types": (
        lambda b: b.add(lanes(b, "f32"), lanes(b, "f16")),
        ProgramError,
        "differ in type; Cast one of them",
    ),
    "lanes that differ": (
        lambda b: b.assign(lanes(b, layout=spatial(4, 4)), lanes(b, layout=spatial(4, 4).permute([1, 0]))),
        LayoutError,
        r"Assign.*needed spatial\(4, 4\), held column_spatial\(4, 4\)",
    ),
    "dot layouts": (wrong_dot, LayoutError, r"Dot.*no matrix step fits a=spatial\(4, 4\), b=.*, c="),
    "static bounds": (
        lambda b: b.load_shared(b.allocate_shared("f32", [20]), [8], shape=[16]),
        ProgramError,
        r"LoadShared.*reaches 8 \.\. 23 along dimension 0",
    ),
    "outside the tensor": (
        lambda b: b.load_global(b.view_global(b.pointer("x", "f32"), [16]), [16], shape=[16]),
        ProgramError,
        "LoadGlobal.*lies wholly outside dimension 0",
    ),
    "shared budget": (
        lambda b: b.allocate_shared("f32", [1 << 18, 2]),
        ProgramError,
        "needs 2097152 bytes of shared memory at once, avx512 gives a block 1048576",
    ),
    "narrow shared": (
        lambda b: b.allocate_shared("u4", [64]),
        ProgramError,
        "shared elements are whole bytes",
    ),
    "unknown operation": (
        lambda b: b.unary("sinh", lanes(b)),
        ProgramError,
        "unknown operation 'sinh'; there are neg, abs",
    ),
    "integer division": (
        lambda b: b.elementwise("div", lanes(b, "i32"), 2.0),
        ProgramError,
        "integers are not divided",
    ),
    "unknown reduction": (lambda b: b.reduce("mean", lanes(b), 0), ProgramError, "unknown reduction 'mean'"),
    "semaphore type": (
        lambda b: b.lock_semaphore(b.allocate_global("f32", [1]), [0], 0),
        ProgramError,
        "a semaphore is one i32",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_errors_name_the_instruction_and_the_reason(name):
    write, error, message = CASES[name]
    b = Builder("bad", threads=16)
    b.grid(1)
    b.block_indices()
    write(b)
    with pytest.raises(error, match=message) as caught:
        verify(infer_layouts(b.build(), AVX512), AVX512)
    assert str(caught.value).startswith("bad: ")


def test_two_threads_may_not_write_one_byte_at_once():
    b = Builder("bits", threads=32)
    b.grid(1)
    store_bits(b)
    program = b.build()
    with pytest.raises(ProgramError, match="would write parts of one byte"):
        verify(program, CUDA)
    verify(program, replace(CUDA, parallel_stores=False))


@pytest.mark.parametrize(("threads", "target"), [(8, AVX512), (48, CUDA), (0, CUDA), (2048, CUDA)])
def test_thread_counts(threads, target):
    b = Builder("threads", threads=threads)
    b.grid(1)
    with pytest.raises(ProgramError, match=f"{threads} threads; {target.name} runs 1 to"):
        verify(b.build(), target)


def test_open_layouts_are_refused():
    b = Builder("open", threads=16)
    b.grid(1)
    b.allocate_register("f32", [16], init=0)
    with pytest.raises(ProgramError, match="has no layout; run infer_layouts first"):
        verify(b.build(), AVX512)


def test_definitions_on_both_paths_hold_after():
    b = Builder("both", threads=16)
    b.grid(1)
    n = b.scalar("n")
    x = b.allocate_register("f32", [16], layout=LANES)
    with b.when(n > 0):
        b.assign(x, lanes(b, init=1.0))
    with b.otherwise():
        b.assign(x, lanes(b, init=2.0))
    b.print(x)
    verify(infer_layouts(b.build(), AVX512), AVX512)


def test_shapes_of_a_product():
    b = Builder("shape", threads=16)
    b.grid(1)
    a, w = lanes(b, layout=replicate(16) * local(2, 3)), lanes(b, layout=local(4, 1).spatial(1, 16))
    total = lanes(b, layout=local(2, 1).spatial(1, 16))
    b.dot(a, w, total, out=total)
    with pytest.raises(ProgramError, match=r"a \(2, 3\) · b \(4, 16\) does not give"):
        verify(b.build(), AVX512)


def test_windows_of_the_wrong_rank():
    b = Builder("window", threads=16)
    view = b.view_global(b.pointer("x", "f32"), [4, 16])
    with pytest.raises(ProgramError, match="1 offsets into the 2 dimensions of x_view"):
        b.load_global(view, [0], shape=[16])
    with pytest.raises(ProgramError, match="are not different dimensions"):
        b.load_global(view, [0, 0], shape=[16], dims=[2])
