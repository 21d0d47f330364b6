"""Pychop: any low-precision format, rounding mode and bit fault, emulated on ordinary arrays.

Three experiments: how an image classifier bears formats and rounding modes, how fast rounding is beside the
libraries that round, and whether a system solved in half is refined as the theory says.
"""

import importlib.util
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from shoestring.kernels.rounding import round_to_format
from shoestring.numbers.arithmetic import Arithmetic
from shoestring.numbers.formats import FloatFormat, named_format
from shoestring.numbers.linear_algebra import backward_error
from shoestring.numbers.refinement import gmres_refinement, iterative_refinement
from shoestring.numbers.rounder import Rounder
from shoestring.systems.card import Card, Claim, Effort
from shoestring.systems.pychop.claims import (
    ACCURACY,
    AGAINST_HALF,
    AHEAD,
    COPY,
    GFLOAT,
    GPU,
    LOST_UP,
    PLAIN_FAILS,
    PLAIN_WORKS,
    PYCHOP,
    QAT_STEPS,
    REFINED,
    REGAINED,
    SYSTEMS,
    TIMES_LOST_UP,
)
from shoestring.systems.pychop.network import (
    FORMATS,
    MODES,
    deep_rows,
    digits_task,
    fashion_mnist_task,
    sensitivity_rows,
    training_rows,
)
from shoestring.yardstick.comparison import Comparison, Row
from shoestring.yardstick.environment import Environment
from shoestring.yardstick.timing import time_interleaved

card = Card(
    slug="pychop",
    title="Pychop",
    paper="Pychop: Emulating Low-Precision Arithmetic in Numerical Methods and Neural Networks (2025)",
    year=2025,
    authors_code="inEXASCALE/pychop",
    saves=("engineering",),
    parts=(
        "shoestring.numbers.rounding.round_to_format",
        "shoestring.kernels.rounding.round_to_format",
        "shoestring.numbers.emulated_types.CPArray",
        "shoestring.numbers.linear_algebra.lu_factor",
        "shoestring.numbers.refinement.gmres_refinement",
        "shoestring.layers.emulated.emulate_layers",
        "shoestring.training.emulated_optimizers",
        "shoestring.compression.emulation.emulate",
    ),
    claims=(
        *ACCURACY.values(),
        LOST_UP,
        TIMES_LOST_UP,
        REGAINED,
        AHEAD,
        GFLOAT,
        PYCHOP,
        COPY,
        GPU,
        REFINED,
        AGAINST_HALF,
        PLAIN_WORKS,
        PLAIN_FAILS,
    ),
)


def measure(effort: Effort, seed: int) -> Comparison:
    """All three experiments; smoke runs them on scikit-learn's digits, small arrays and a small system.

    At effort full a 20-layer residual net joins, which takes some minutes to train.
    """
    started = time.perf_counter()
    smoke = effort is Effort.SMOKE
    task = digits_task(seed) if smoke else fashion_mnist_task(seed)
    formats, modes = (ACCURACY, ("nearest", "up")) if smoke else (FORMATS, MODES)
    rows = sensitivity_rows(task, formats, modes, seed)
    rows += training_rows(task, 3 if smoke else QAT_STEPS, seed)
    if effort is Effort.FULL:
        rows += deep_rows(task, seed)
    timed, notes = speed_rows(128 if smoke else 4096, seed)
    rows += timed
    rows += solver_rows(10 if smoke else 200, seed)
    return Comparison(
        system=card.slug,
        method="emulated low precision",
        baseline="float32",
        work=f"{task.name}, {len(task.labels):,} pictures: parameters, inputs and outputs of layers rounded",
        rows=tuple(rows),
        effort=effort,
        seed=seed,
        environment=Environment.here([peer for peer in ("gfloat", "pychop") if _installed(peer)]),
        notes=tuple(notes),
        seconds=time.perf_counter() - started,
    )


def speed_rows(size: int, seed: int) -> tuple[list[Row], list[str]]:
    """The compiled rounding beside a copy and the libraries that round; notes on those not installed."""
    x = torch.randn(size, size, generator=torch.Generator().manual_seed(seed))
    out, fmt = torch.empty_like(x), FORMATS["e4m3"]

    def ours() -> Tensor:
        return round_to_format(x, fmt, out=out)

    times = time_interleaved({"ours": ours, "copy": lambda: out.copy_(x)}, rounds=15, seed=seed)
    rows = [
        COPY.row(
            baseline=times.median("copy"),
            method=times.median("ours"),
            ratio=times.ratio("ours", "copy"),
            spread=times.interval("ours", "copy"),
            against="Tensor.copy_",
        )
    ]
    notes = []
    for claim, peer, build in ((GFLOAT, "gfloat", _gfloat_work), (PYCHOP, "pychop", _pychop_work)):
        if not _installed(peer):
            notes.append(f"{claim.metric}: not measured, {peer} is not installed (pip install {peer})")
            continue
        # A call of ours lasts milliseconds, one of theirs seconds: samples long enough that what theirs
        # leaves behind (cold caches, sleeping threads) is not counted against ours.
        works = {"ours": ours, peer: build(x, fmt)}
        times = time_interleaved(works, rounds=5, warmup=1, min_sample_seconds=0.1, seed=seed)
        rows.append(
            claim.row(
                baseline=times.median(peer),
                method=times.median("ours"),
                ratio=times.ratio("ours", peer),
                spread=times.interval("ours", peer),
                against=peer,
            )
        )
    if torch.cuda.is_available():
        rows.append(_gpu_row(x, fmt, seed))
    return rows, notes


def _gpu_row(x: Tensor, fmt: FloatFormat, seed: int) -> Row:
    there = x.cuda()
    out, rounder = torch.empty_like(there), Rounder(fmt)
    times = time_interleaved(
        {"ours": lambda: rounder(there), "copy": lambda: out.copy_(there)}, rounds=9, seed=seed
    )
    return GPU.row(
        baseline=times.median("copy"),
        method=times.median("ours"),
        ratio=times.ratio("ours", "copy"),
        spread=times.interval("ours", "copy"),
        against="Tensor.copy_",
    )


def _gfloat_work(x: Tensor, fmt: FloatFormat) -> Callable[[], object]:
    import gfloat

    info = gfloat.FormatInfo(
        name="e4m3",
        k=fmt.bits,
        precision=fmt.precision,
        bias=fmt.bias,
        is_signed=True,
        domain=gfloat.Domain.Extended,
        has_nz=True,
        num_high_nans=2**fmt.sig_bits - 1,
        has_subnormals=True,
        is_twos_complement=False,
    )
    array = x.numpy()
    return lambda: gfloat.round_ndarray(info, array)


def _pychop_work(x: Tensor, fmt: FloatFormat) -> Callable[[], object]:
    import pychop

    pychop.backend("numpy")
    chop = pychop.Chop(exp_bits=fmt.exp_bits, sig_bits=fmt.sig_bits, rmode=1)
    array = x.numpy()
    return lambda: chop(array)


def solver_rows(n: int, seed: int) -> list[Row]:
    """Backward errors of systems factored in half, refined plainly and by GMRES; the worst system counts."""
    generator = np.random.default_rng(seed)
    half, errors = Arithmetic(Rounder(named_format("half"))), []
    unit = 2.0**-53
    for _ in range(SYSTEMS):
        (easy, b_easy), (hard, b_hard) = (random_system(n, cond, generator) for cond in (1e3, 1e4))
        plain_easy = iterative_refinement(easy, b_easy, half, tolerance=unit).solution
        plain_hard = iterative_refinement(hard, b_hard, half, tolerance=unit)
        krylov = gmres_refinement(hard, b_hard, half, tolerance=unit).solution
        errors.append(
            {
                "float64 at 1e3": _float64_error(easy, b_easy),
                "plain at 1e3": plain_easy.errors[-1],
                "float64": _float64_error(hard, b_hard),
                "half": plain_hard.solution.errors[0],
                "plain": plain_hard.solution.errors[-1],
                "GMRES": krylov.errors[-1],
            }
        )

    def worst(claim: Claim, method: str, baseline: str) -> Row:
        found = max(errors, key=lambda each: each[method] / each[baseline])
        return claim.row(baseline=found[baseline], method=found[method], against=baseline)

    return [
        worst(REFINED, "GMRES", "float64"),
        worst(AGAINST_HALF, "GMRES", "half"),
        worst(PLAIN_WORKS, "plain at 1e3", "float64 at 1e3"),
        worst(PLAIN_FAILS, "GMRES", "plain"),
    ]


def random_system(n: int, cond: float, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A matrix with random singular vectors, singular values log-spaced from 1 to 1/cond; a Gaussian b."""
    u, v = (np.linalg.qr(generator.standard_normal((n, n)))[0] for _ in range(2))
    return (u * np.geomspace(1, 1 / cond, n)) @ v.T, generator.standard_normal(n)


def _float64_error(a: np.ndarray, b: np.ndarray) -> float:
    return backward_error(a, np.linalg.solve(a, b), b)


def _installed(peer: str) -> bool:
    return importlib.util.find_spec(peer) is not None
