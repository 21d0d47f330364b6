"""Products with sparse weights against torch, scipy and one another, on every instruction set."""

import ctypes
import platform

import pytest
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.kernels.costs import Cost, listen
from shoestring.kernels.sparse.linear import ISA_FLAGS, DenseMatrix, expand_bitmap, library, sparse_linear
from shoestring.kernels.sparse.matmul import naive_sparse_matmul, run_split, sparse_matmul
from shoestring.notices import record_fallbacks
from shoestring.numbers.bitmap_matrix import BitmapMatrix
from shoestring.numbers.csr_matrix import CsrMatrix
from shoestring.numbers.sparse_values import ValueKind
from shoestring.numbers.tiled_csl import TiledCslMatrix

FORMS = [DenseMatrix, BitmapMatrix, TiledCslMatrix, CsrMatrix]
ON_X86 = platform.machine() in ("x86_64", "AMD64")


def _runs(isa: str) -> bool:
    """Whether this processor has what the flags of an instruction set ask for."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        flags = next((line.split() for line in file if line.startswith("flags")), [])
    needed = {"avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq"}, "avx2": {"avx2", "fma", "f16c"}}
    return needed.get(isa, set()) <= set(flags)


ISAS = [None, *(isa for isa in ISA_FLAGS if ON_X86 and _runs(isa))]


def pruned(rows: int, cols: int, sparsity: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, cols, generator=generator)
    return values * (torch.rand(rows, cols, generator=generator) >= sparsity)


def inputs(tokens: int, cols: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(tokens, cols, generator=torch.Generator().manual_seed(seed))


def exact(x: torch.Tensor, weights) -> torch.Tensor:
    return x.double() @ weights.to_dense().double().T


def relative(y: torch.Tensor, expected: torch.Tensor) -> float:
    return ((y.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


@given(
    form=st.sampled_from(FORMS),
    kind=st.sampled_from([ValueKind.BFLOAT16, ValueKind.FLOAT16]),
    rows=st.integers(1, 150),
    cols=st.integers(1, 200),
    tokens=st.one_of(st.integers(1, 19), st.integers(60, 70)),
    sparsity=st.sampled_from([0.6, 0.8, 0.95, 1.0]),
    isa=st.sampled_from(ISAS),
    round_inputs=st.booleans(),
    with_bias=st.booleans(),
    seed=st.integers(0, 20),
)
def test_equals_the_naive_product(
    form, kind, rows, cols, tokens, sparsity, isa, round_inputs, with_bias, seed
):
    weights = form.from_dense(pruned(rows, cols, sparsity, seed), kind)
    x, bias = inputs(tokens, cols, seed), torch.randn(rows) if with_bias else None
    y = sparse_linear(weights, bias, round_inputs=round_inputs, isa=isa)(x)
    meant = x.bfloat16().float() if round_inputs else x
    expected = naive_sparse_matmul(meant, weights, bias)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5 * (1 + expected.abs().max().item()))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("form", [BitmapMatrix, TiledCslMatrix, CsrMatrix])
@pytest.mark.parametrize("tokens", [1, 2, 3, 8, 13, 64])
def test_float32_is_exact_to_a_hundred_thousandth_and_bfloat16_to_a_hundredth(isa, form, tokens):
    weights = form.from_dense(pruned(140, 1000, 0.7))
    x = inputs(tokens, 1000)
    expected = exact(x, weights)
    assert relative(sparse_linear(weights, isa=isa)(x), expected) <= 1e-5
    assert relative(sparse_linear(weights, round_inputs=True, isa=isa)(x), expected) <= 1e-2
    assert (
        relative(sparse_linear(weights, round_inputs=True, isa=isa)(x), exact(x.bfloat16(), weights)) <= 1e-5
    )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", [ValueKind.BFLOAT16, ValueKind.FLOAT16])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.8, 0.95, 1.0])
def test_the_bitmap_is_bit_for_bit_the_dense_kernel_on_the_expanded_matrix(isa, kind, sparsity):
    matrix = pruned(61, 3000, sparsity)
    bitmap = BitmapMatrix.from_dense(matrix, kind)
    dense = DenseMatrix.from_dense(bitmap.to_dense(), kind)
    for tokens in (1, 2, 3, 5, 8, 9, 13, 64, 70):
        x = inputs(tokens, 3000)
        for rounds in (False, True):
            a, b = (sparse_linear(w, round_inputs=rounds, isa=isa)(x) for w in (bitmap, dense))
            assert torch.equal(a, b), (tokens, rounds)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cols", [31, 96, 1000])
def test_int8_values_and_their_scales(isa, cols):
    bitmap = BitmapMatrix.from_dense(pruned(50, cols, 0.6), ValueKind.INT8)
    for tokens in (1, 7, 8, 20):
        x = inputs(tokens, cols)
        assert relative(sparse_linear(bitmap, isa=isa)(x), exact(x, bitmap)) <= 1e-5
        rounded = sparse_linear(bitmap, round_inputs=True, isa=isa)(x)
        assert relative(rounded, exact(x.bfloat16(), bitmap)) <= 1e-5


@pytest.mark.parametrize("form", [BitmapMatrix, TiledCslMatrix, CsrMatrix])
def test_scipy_agrees(form):
    matrix = pruned(300, 200, 0.8).bfloat16().float()
    x = inputs(8, 200)
    expected = (scipy.sparse.csr_matrix(matrix.double().numpy()) @ x.double().numpy().T).T
    assert relative(sparse_matmul(x, form.from_dense(matrix)), torch.from_numpy(expected)) <= 1e-5


@pytest.mark.parametrize("form", [DenseMatrix, BitmapMatrix, TiledCslMatrix])
@pytest.mark.parametrize("tokens", [1, 2, 3, 8, 13, 64])
def test_splitting_the_inputs_changes_only_the_rounding_and_threads_nothing(form, tokens):
    weights = form.from_dense(pruned(50, 900, 0.7))
    bias, x = torch.randn(50), inputs(tokens, 900)
    expected = exact(x, weights) + bias
    for split in range(1, 9):
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            try:
                found.append(sparse_matmul(x, weights, bias, split=split))
            finally:
                torch.set_num_threads(1)
        assert torch.equal(*found)
        assert relative(found[0], expected) <= 1e-5


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [1, 5, 129, 400])
def test_the_number_of_threads_changes_nothing_even_where_rows_are_lopsided(form, rows):
    matrix = pruned(rows, 300, 0.6)
    matrix[: rows // 2] = 0  # pruned globally, some rows may lose everything
    weights, x = form.from_dense(matrix), inputs(3, 300)
    found = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        try:
            found.append(sparse_linear(weights)(x))
        finally:
            torch.set_num_threads(1)
    assert all(torch.equal(found[0], other) for other in found[1:])
    assert relative(found[0], exact(x, weights)) <= 1e-5


def test_shares_of_threads_are_balanced_by_what_is_stored():
    """Half of the rows hold everything: the first of two threads stops among them, not at the middle row."""
    matrix = torch.ones(960, 320)
    matrix[480:] = 0
    kernel = sparse_linear(BitmapMatrix.from_dense(matrix))
    boundary = library().rows_boundary
    boundary.argtypes, boundary.restype = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64], ctypes.c_int64
    assert 240 <= boundary(kernel.address, 1, 2) <= 264


def test_a_tile_above_half_takes_the_dense_path_or_raises():
    matrix = torch.ones(128, 64)
    with pytest.raises(ValueError, match="keep this matrix dense or use the bitmap"):
        TiledCslMatrix.from_dense(matrix)
    x = inputs(2, 64)
    for form in (DenseMatrix, BitmapMatrix):
        torch.testing.assert_close(sparse_matmul(x, form.from_dense(matrix)), x @ matrix.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_batches_and_types_are_kept(dtype):
    weights = BitmapMatrix.from_dense(pruned(20, 64, 0.5))
    y = sparse_matmul(inputs(6, 64).reshape(2, 3, 64).to(dtype), weights)
    assert (y.shape, y.dtype) == ((2, 3, 20), dtype)
    torch.testing.assert_close(
        y.float().reshape(6, 20), sparse_matmul(inputs(6, 64), weights), rtol=0.02, atol=0.1
    )
    assert sparse_matmul(torch.empty(0, 64), weights).shape == (0, 20)


@pytest.mark.parametrize("kind", list(ValueKind))
def test_the_compiled_expansion_equals_the_plain_one(kind):
    bitmap = BitmapMatrix.from_dense(pruned(33, 70, 0.6), kind)
    assert torch.equal(expand_bitmap(sparse_linear(bitmap)), bitmap.to_dense())


def test_the_cost_is_that_of_dense_arithmetic_on_compressed_bytes():
    matrix, x, heard = pruned(40, 64, 0.75), inputs(2, 64), []
    weights = [form.from_dense(matrix) for form in (BitmapMatrix, CsrMatrix)]
    with listen(lambda name, cost: heard.append((name, cost))):
        for each in weights:
            sparse_matmul(x, each)
    moved = x.nbytes + 2 * 40 * 4
    dense, gathered = 2 * 2 * 40 * 64, 2 * 2 * int((matrix != 0).sum())
    assert heard == [
        ("sparse_matmul", Cost(dense, weights[0].nbytes + moved)),
        ("sparse_matmul", Cost(gathered, weights[1].nbytes + moved)),
    ]


def test_without_a_compiler_torch_answers_and_says_so(monkeypatch):
    weights, x = BitmapMatrix.from_dense(pruned(20, 64, 0.5)), inputs(3, 64)
    fast = sparse_matmul(x, weights)
    monkeypatch.setenv("SHOESTRING_CC", "none")
    library.cache_clear()
    try:
        with record_fallbacks() as said:
            slow = sparse_matmul(x, weights)
    finally:
        library.cache_clear()
    assert any("expands in torch" in line for line in said)
    torch.testing.assert_close(slow, fast, rtol=1e-5, atol=1e-5)


def test_operands_that_do_not_belong_together():
    weights, x = BitmapMatrix.from_dense(pruned(20, 64, 0.5)), inputs(3, 64)
    with pytest.raises(ValueError, match="x has 5 inputs, the weights 64"):
        sparse_matmul(x[:, :5], weights)
    with pytest.raises(ValueError, match="split=0 must be 1 or more"):
        sparse_matmul(x, weights, split=0)
    with pytest.raises(ValueError, match="rows of a CSR matrix are not split"):
        sparse_matmul(x, CsrMatrix.from_dense(pruned(20, 64, 0.5)), split=2)
    with pytest.raises(ValueError, match="passes no gradient on"):
        sparse_matmul(x.requires_grad_(), weights)
    with pytest.raises(ValueError, match="isa='mmx'; use one of 'avx512'"):
        library("mmx")
    cut = BitmapMatrix(20, 64, weights.kind, weights.masks, weights.values[:-1], weights.row_starts)
    with pytest.raises(ValueError, match="lacks its 64 bytes of padding"):
        sparse_linear(cut)


def test_run_split_of_more_parts_than_blocks():
    weights, x = BitmapMatrix.from_dense(pruned(8, 40, 0.5)), inputs(2, 40)
    y = run_split(sparse_linear(weights), x, 8, tiles=False)
    assert relative(y, exact(x, weights)) <= 1e-5
