"""Products with one large pruned matrix: ours beside torch's dense ones, beside CSR, and its size."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from shoestring.kernels.sparse.linear import sparse_linear
from shoestring.layers.sparse_linear import SparseLinear
from shoestring.numbers.bitmap_matrix import BitmapMatrix, bitmap_bytes
from shoestring.numbers.csr_matrix import CsrMatrix
from shoestring.systems.flash_llm.claims import (
    BESIDE_CSR,
    BYTES,
    FORMULA,
    TIMES,
    bytes_metric,
    csr_metric,
    time_metric,
)
from shoestring.yardstick.comparison import Row
from shoestring.yardstick.timing import InterleavedTimes, time_interleaved

SPARSITIES = (0.5, 0.7, 0.8, 0.9)
HOPELESS = 3.0
"""A dense baseline that takes so many times the other's time in one call is left out of the rounds."""


@dataclass(frozen=True)
class Bench:
    """The matrix and how it is timed. copies: that take turns, so that no cache holds them."""

    rows: int
    cols: int
    copies: int
    rounds: int
    sample_seconds: float
    seed: int


class Turns:
    """Calls that go round the copies of a matrix: each call finds its own gone from the caches."""

    def __init__(self, calls: Sequence[Callable[[], object]]) -> None:
        self._calls = itertools.cycle(calls)

    def __call__(self) -> object:
        return next(self._calls)()


def kernel_rows(bench: Bench) -> list[Row]:
    """Rows on time and size at all sparsities, and where CSR overtakes."""
    generator = torch.Generator().manual_seed(bench.seed)
    weight = torch.randn(bench.rows, bench.cols, generator=generator)
    draws = torch.rand(bench.rows, bench.cols, generator=generator)
    dense = [weight.clone() for _ in range(bench.copies)]
    half = [weight.bfloat16() for _ in range(bench.copies)]
    rows, ratios = [], []
    for sparsity in SPARSITIES:
        pruned = weight * per_row_mask(draws, sparsity)
        bitmap, csr = BitmapMatrix.from_dense(pruned), CsrMatrix.from_dense(pruned)
        rows += size_rows(bitmap, sparsity)
        for tokens in (1, 8):
            x = torch.randn(tokens, bench.cols, generator=generator)
            timed = _time(bench, x, dense, half, _copies(bitmap, bench), _csr_copies(csr, bench))
            best = min((name for name in timed.seconds if name.startswith("torch")), key=timed.median)
            rows.append(_time_row(timed, sparsity, tokens, best))
            if tokens == 1:
                rows.append(_csr_row(timed, sparsity))
                ratios.append(timed.ratio("bitmap", "csr"))
    rows.append(crossover_row(SPARSITIES, ratios))
    return rows


def per_row_mask(draws: Tensor, sparsity: float) -> Tensor:
    """What Wanda leaves in shape: in every row the same share goes, here those with the smallest draws."""
    going = round(sparsity * draws.shape[1])
    return draws > draws.kthvalue(going, dim=1, keepdim=True).values


def size_rows(bitmap: BitmapMatrix, sparsity: float) -> list[Row]:
    """Bytes of the tensors as they are, beside dense and, once, beside the formula."""
    stored = sum(part.nbytes for part in (bitmap.masks, bitmap.values, bitmap.row_starts))
    rows = [
        BYTES[sparsity].row(baseline=2 * bitmap.rows * bitmap.cols, method=stored, against="dense, 16 bits")
    ]
    assert rows[0].metric == bytes_metric(sparsity)
    if sparsity == SPARSITIES[0]:
        off = abs(stored - bitmap_bytes(bitmap.rows, bitmap.cols, bitmap.nonzeros))
        rows.append(FORMULA.row(baseline=None, method=off))
    return rows


def crossover_row(sparsities: Sequence[float], ratios: Sequence[float]) -> Row:
    """The sparsity at which the bitmap takes as long as CSR, between the measured ones; 1 if never."""
    place = 1.0
    for (s0, r0), (s1, r1) in itertools.pairwise(zip(sparsities, ratios, strict=True)):
        if r0 <= 1 < r1:
            place = s0 + (s1 - s0) * -math.log(r0) / (math.log(r1) - math.log(r0))
            break
    else:
        if ratios[0] > 1:
            place = sparsities[0]
    return Row(
        metric="sparsity from which CSR is faster, 1 token", kind="other", unit="", better="higher",
        baseline=None, method=place,
    )  # fmt: skip


def _time(
    bench: Bench,
    x: Tensor,
    dense: list[Tensor],
    half: list[Tensor],
    ours: list[SparseLinear],
    csr: list[CsrMatrix],
) -> InterleavedTimes:
    narrow = x.bfloat16()
    kernels = [sparse_linear(matrix) for matrix in csr]
    works: dict[str, Callable[[], object]] = {
        "torch bfloat16": Turns([partial(F.linear, narrow, w) for w in half]),
        "torch float32": Turns([partial(F.linear, x, w) for w in dense]),
        "bitmap": Turns([partial(layer, narrow) for layer in ours]),
        "csr": Turns([partial(kernel, x) for kernel in kernels]),
    }
    with torch.inference_mode():
        once = time_interleaved(
            {name: works[name] for name in ("torch bfloat16", "torch float32")},
            rounds=3, warmup=1, min_sample_seconds=0,
        )  # fmt: skip
        if once.median("torch float32") > HOPELESS * once.median("torch bfloat16"):
            del works["torch float32"]
        return time_interleaved(
            works, rounds=bench.rounds, min_sample_seconds=bench.sample_seconds, seed=bench.seed
        )


def _time_row(timed: InterleavedTimes, sparsity: float, tokens: int, best: str) -> Row:
    row = Row(
        metric=time_metric(sparsity, tokens), kind="time", unit="s", better="lower",
        baseline=timed.median(best), method=timed.median("bitmap"), ratio=timed.ratio("bitmap", best),
        spread=timed.interval("bitmap", best), against=best,
    )  # fmt: skip
    claim = TIMES.get((sparsity, tokens))
    return row if claim is None else replace(row, bar=claim.bar, paper_ratio=claim.paper_ratio)


def _csr_row(timed: InterleavedTimes, sparsity: float) -> Row:
    row = Row(
        metric=csr_metric(sparsity), kind="time", unit="s", better="lower", baseline=timed.median("csr"),
        method=timed.median("bitmap"), ratio=timed.ratio("bitmap", "csr"),
        spread=timed.interval("bitmap", "csr"), against="CSR",
    )  # fmt: skip
    claim = BESIDE_CSR.get(sparsity)
    return row if claim is None else replace(row, bar=claim.bar, paper_ratio=claim.paper_ratio)


def _copies(matrix: BitmapMatrix, bench: Bench) -> list[SparseLinear]:
    tensors = matrix.masks, matrix.values, matrix.row_starts
    shape = matrix.rows, matrix.cols, matrix.kind
    return [
        SparseLinear.of(BitmapMatrix(*shape, *(part.clone() for part in tensors)))
        for _ in range(bench.copies)
    ]


def _csr_copies(matrix: CsrMatrix, bench: Bench) -> list[CsrMatrix]:
    tensors = matrix.columns, matrix.values, matrix.row_starts
    shape = matrix.rows, matrix.cols, matrix.kind
    return [CsrMatrix(*shape, *(part.clone() for part in tensors)) for _ in range(bench.copies)]
