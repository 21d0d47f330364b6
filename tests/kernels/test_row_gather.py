"""The product that reads only the rows that count: compiled, masked, and called by a team of threads."""

import ctypes
import platform

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from shoestring.kernels import row_gather as module
from shoestring.kernels.costs import listen
from shoestring.kernels.row_gather import RowGroup, RowWeights, naive_row_gather, row_gather
from shoestring.notices import record_fallbacks

RUN = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_int,
    ctypes.c_void_p,
)  # fmt: skip
SCRATCH = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64)


def make(inputs, outputs, *, active=0.5, rank=0, dtype=torch.float32, scaled=False, bias=False, tokens=1):
    """Random weights, an x, and the threshold at which that share of its inputs is kept."""
    generator = torch.Generator().manual_seed(inputs * 1000 + outputs)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    x, scales = draw(tokens, inputs), draw(inputs).abs() if scaled else None
    score = x.abs() if scales is None else x.abs() * scales
    order = score.flatten().sort(descending=True).values
    kept = round(active * len(order))
    threshold = -1.0 if kept == len(order) else order[kept].item()
    weights = RowWeights(
        draw(inputs, outputs).to(dtype),
        threshold,
        scales,
        (draw(inputs, rank) / inputs**0.5).to(dtype) if rank else None,
        draw(rank, outputs).to(dtype) if rank else None,
        draw(outputs) if bias else None,
    )
    return x, weights, kept


shapes = st.tuples(st.sampled_from([1, 7, 64, 129]), st.sampled_from([1, 3, 16, 31, 32, 65, 192, 417, 900]))


@given(
    shape=shapes,
    active=st.sampled_from([0.0, 0.01, 0.5, 0.99, 1.0]),
    rank=st.sampled_from([0, 1, 5, 40]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    scaled=st.booleans(),
    bias=st.booleans(),
    tokens=st.sampled_from([1, 2, 8]),
)
def test_compiled_equals_the_masked_product(shape, active, rank, dtype, scaled, bias, tokens):
    x, weights, kept = make(
        *shape, active=active, rank=rank, dtype=dtype, scaled=scaled, bias=bias, tokens=tokens
    )
    assert weights.kept(x).sum() == kept
    with record_fallbacks() as said:
        (y,) = row_gather([x], RowGroup([weights]))
    assert said == []
    expected = naive_row_gather(x.double(), weights, weights.kept(x))
    scale = 1 + expected.abs().max().item()
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-6 * scale)


def test_the_masked_product_is_the_linear_map_of_the_kept_inputs():
    x, weights, _ = make(40, 24, active=0.5)
    mask = x.abs() > weights.threshold
    assert 0 < mask.sum() < 40
    assert torch.equal(naive_row_gather(x, weights), F.linear(x * mask, weights.rows.T))


@given(shape=shapes, rank=st.sampled_from([0, 3, 33]), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_threads_do_not_change_a_bit(shape, rank, dtype):
    x, weights, _ = make(*shape, rank=rank, dtype=dtype, tokens=2, bias=True)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            results.append(row_gather([x], RowGroup([weights]))[0])
        finally:
            torch.set_num_threads(1)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@given(
    shape=shapes,
    rank=st.sampled_from([0, 3, 33]),
    team=st.integers(1, 4),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_a_team_of_threads_gets_the_same_bits(shape, rank, team, dtype):
    x, weights, _ = make(*shape, rank=rank, dtype=dtype, tokens=3, scaled=True, bias=True)
    y = torch.full((3, shape[1]), float("nan"))
    kernel = weights.kernel
    needed = SCRATCH(kernel.fields.scratch_bytes)(kernel.address, 3)
    guard = 64
    for thread in range(team):
        scratch = torch.full((needed + guard,), 77, dtype=torch.uint8)
        RUN(kernel.fields.run)(
            kernel.address, x.data_ptr(), y.data_ptr(), 3, thread, team, scratch.data_ptr()
        )
        assert bool((scratch[needed:] == 77).all()), "written behind the scratch that was asked for"
    assert torch.equal(y, row_gather([x], RowGroup([weights]))[0])


@pytest.mark.parametrize("flags", [("-mno-avx512f",), ("-mno-avx512f", "-mno-avx2", "-mno-avx", "-mno-fma")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrower_vectors_give_the_same(flags, dtype, monkeypatch):
    """What a machine without AVX-512, or without AVX, would run."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("these are flags of x86")
    build = module.load_library

    def narrow(source, extra_flags):
        return build(source, extra_flags=extra_flags + flags)

    cases = [make(65, outputs, rank=7, dtype=dtype, bias=True) for outputs in (3, 200, 417)]
    expected = [naive_row_gather(x, weights) for x, weights, _ in cases]
    monkeypatch.setattr(module, "load_library", narrow)
    module._library.cache_clear()
    try:
        found = [row_gather([x], RowGroup([weights]))[0] for x, weights, _ in cases]
    finally:
        module._library.cache_clear()
    for y, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-4)


def test_layers_of_one_input_share_what_they_can():
    """Shared thresholds, another one, and low rank beside none: each layer gets its own result."""
    x, first, _ = make(50, 33, rank=4)
    others = [
        RowWeights(torch.randn(50, 8), first.threshold),
        RowWeights(torch.randn(50, 20), first.threshold, down=first.down, up=torch.randn(4, 20)),
        RowWeights(torch.randn(50, 5), first.threshold * 1.5),
        RowWeights(torch.randn(50, 5), first.threshold * 1.5, torch.rand(50)),
        first,
    ]
    for y, weights in zip(row_gather([x] * 6, RowGroup((first, *others))), (first, *others), strict=True):
        torch.testing.assert_close(y, naive_row_gather(x, weights), rtol=1e-4, atol=1e-4)


def test_layers_of_other_inputs_run_in_the_same_call():
    """A list is shared by neighbours of one x, and not by those whose x only looks alike."""
    made = [make(50, 20, rank=3), make(64, 33), make(50, 20, rank=3), make(7, 9)]
    xs = [made[0][0], made[1][0], -2 * made[0][0], made[3][0]]
    layers = [weights for _, weights, _ in made]
    for x, y, weights in zip(xs, row_gather(xs, RowGroup(layers)), layers, strict=True):
        torch.testing.assert_close(y, naive_row_gather(x, weights), rtol=1e-4, atol=1e-4)
    pair = RowGroup([layers[0], layers[0]])
    one, other = row_gather([xs[0], 3 * xs[0]], pair)
    assert torch.equal(one, row_gather([xs[0]], RowGroup(layers[:1]))[0])
    torch.testing.assert_close(other, naive_row_gather(3 * xs[0], layers[0]), rtol=1e-4, atol=1e-4)


def test_rows_are_counted():
    x, weights, kept = make(64, 9, active=0.25, tokens=4)
    counter = torch.zeros(2, dtype=torch.int64)
    counting = RowWeights(weights.rows, weights.threshold, counts=counter)
    row_gather([x, x], RowGroup((counting, counting)))
    assert counter.tolist() == [2 * kept, 2 * 4]


def test_the_cost_is_what_is_read():
    x, weights, _ = make(64, 96, active=0.25, rank=5, dtype=torch.bfloat16)
    kept = int(weights.kept(x).sum())
    heard = []
    with listen(lambda name, cost: heard.append((name, cost))):
        row_gather([x], RowGroup([weights]))
    ((name, cost),) = heard
    numbers = kept * 96 + (64 - kept) * 5 + 5 * 96
    assert (name, cost.flops) == ("row_gather", 2 * numbers)
    assert cost.bytes == 2 * numbers + 4 * 64 + 4 * 96


def test_what_is_no_number_shows():
    x, weights, _ = make(16, 40, active=0.5)
    x[0, 3] = float("nan")
    assert row_gather([x], RowGroup([weights]))[0].isnan().all()
    assert naive_row_gather(x, weights).isnan().all()


def test_without_a_compiler_torch_masks_and_says_so(monkeypatch):
    x, weights, kept = make(30, 20, rank=3)
    counter = torch.zeros(2, dtype=torch.int64)
    fast = row_gather([x], RowGroup([weights]))[0]
    monkeypatch.setenv("SHOESTRING_CC", "none")
    module._library.cache_clear()
    try:
        with record_fallbacks() as said:
            again = RowWeights(
                weights.rows, weights.threshold, down=weights.down, up=weights.up, counts=counter
            )
            (slow,) = row_gather([x], RowGroup([again]))
    finally:
        module._library.cache_clear()
    torch.testing.assert_close(slow, fast, rtol=1e-4, atol=1e-5)
    assert counter.tolist() == [kept, 1]
    assert "reads all rows" in said[0]


def test_another_type_is_masked_and_says_so():
    x, weights, _ = make(30, 20)
    halves = RowWeights(weights.rows.half(), weights.threshold)
    with record_fallbacks() as said:
        (y,) = row_gather([x], RowGroup([halves]))
    assert torch.equal(y, naive_row_gather(x, halves))
    assert "not torch.float16 on cpu" in said[0]
    with pytest.raises(TypeError, match=r"not torch.float16 on cpu"):
        _ = halves.kernel


def test_what_does_not_fit():
    rows = torch.randn(6, 4)
    with pytest.raises(ValueError, match=r"scales is \(5,\); rows of 6×4 take \(6,\)"):
        RowWeights(rows, 0.0, torch.ones(5))
    with pytest.raises(ValueError, match="down and up belong together"):
        RowWeights(rows, 0.0, down=torch.ones(6, 2))
    with pytest.raises(ValueError, match=r"down is torch.float64, the rows torch.float32"):
        RowWeights(rows, 0.0, down=torch.ones(6, 2).double(), up=torch.ones(2, 4))
    with pytest.raises(ValueError, match="a group of no layers"):
        RowGroup(())
    group = RowGroup([RowWeights(rows, 0.0)])
    with pytest.raises(ValueError, match="x has 5 inputs, the weights 6"):
        row_gather([torch.ones(1, 5)], group)
    with pytest.raises(ValueError, match="2 inputs for 1 layers"):
        row_gather([torch.ones(1, 6)] * 2, group)
    with pytest.raises(ValueError, match=r"inputs of \[1, 3\] tokens in one call"):
        row_gather([torch.ones(1, 6), torch.ones(3, 6)], RowGroup([RowWeights(rows, 0.0)] * 2))
