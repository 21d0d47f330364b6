"""Tilus: one tile machine compiles products with weights of any type of 1 to 8 bits.

The published system makes kernels for GPUs. Ours also makes them for processors (AVX-512, AVX2, portable C),
which is what the card measures; its CUDA text is tested by running it on the processor, thread for thread.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from shoestring.kernels.large_pages import on_large_pages
from shoestring.kernels.packed_linear import (
    PackedWeights,
    naive_packed_linear,
    packed_linear,
    tune_packed_linear,
)
from shoestring.kernels.tile.types import data_type
from shoestring.kernels.tuning import last_level_cache_bytes
from shoestring.systems.card import Card, Claim, Effort
from shoestring.yardstick.comparison import Comparison, Row
from shoestring.yardstick.timing import InterleavedTimes, time_interleaved

SMALL_TYPES = ("u1", "u2", "u3", "u4", "u5", "u6", "f3e1m1", "f4e2m1", "f5e2m2", "f6e3m2")
WIDE_TYPES = ("u7", "u8")
BETWEEN = ("u2", "u3", "u4", "u5", "u6")
"""Types of one kind, whose times are compared with one another."""


def _time(metric: str, text: str, setting: str, bar: float, paper_ratio: float | None = None) -> Claim:
    figure = "all types from one template" if paper_ratio is None else f"{1 / paper_ratio:.2f}x"
    return Claim(
        text=text, figure=figure, setting=setting, metric=metric, kind="time", unit="s", better="lower",
        paper_ratio=paper_ratio, bar=bar,
    )  # fmt: skip


_SETTING = "L40S, u1-u8 and floats, batch 16, K 8192, N 57344 against cuBLAS f16; ours: 8192 x 4096, CPU"
SMALL_SINGLE = _time(
    "M = 1, slowest type of at most 6 bits", "every narrow type beats a dense product", _SETTING, 1 / 4.5
)
SMALL_HALF = _time(
    "M = 1, slowest type of at most 6 bits, to bf16", "the same against bfloat16", _SETTING, 1 / 2.5
)
WIDE_SINGLE = _time("M = 1, slower of u7 and u8", "7 and 8 bits too", _SETTING, 1 / 3.5)
WIDE_HALF = _time("M = 1, slower of u7 and u8, to bf16", "the same against bfloat16", _SETTING, 1 / 2)
ROWS_8 = _time("M = 8, slowest type, to bf16", "several rows are fast too", _SETTING, 1 / 1.2)
THREE_FOUR = _time("M = 1, u3 to u4", "three bits are not slower than four", "no power of two needed", 1.0)
NAIVE = _time(
    "M = 1, u3 to unpacking",
    "a kernel beats unpacking and multiplying",
    "against Triton's unpacking 1.75x on L40S; bar: against a whole unpacked matrix in NumPy and torch",
    1 / 20,
    1 / 1.75,
)
SPREAD = Claim(
    text="speed hardly depends on the width",
    figure="all types from one template",
    setting="time of the slowest of u2 to u6 over that of the fastest, M = 1",
    metric="spread over u2 to u6, M = 1",
    kind="other",
    unit="",
    better="lower",
    bar=1.4,
    bar_on="value",
)
EXACT = Claim(
    text="products are those of the dequantised weights",
    figure="exact casts",
    setting="largest difference from torch in float64 over all types, relative to the largest output",
    metric="largest relative error",
    kind="quality",
    unit="",
    better="lower",
    bar=1e-4,
    bar_on="value",
)

card = Card(
    slug="tilus",
    title="Tilus",
    paper="Tilus: A Virtual Machine for Arbitrary Low-Precision GPGPU Computation in LLM Serving (2025)",
    year=2025,
    authors_code="NVIDIA/tilus",
    saves=("time", "memory", "engineering"),
    parts=(
        "shoestring.kernels.tile.layout",
        "shoestring.kernels.tile.builder.Builder",
        "shoestring.kernels.tile.c.compiled.compile_program",
        "shoestring.kernels.tile.cuda.render",
        "shoestring.kernels.packed_linear.packed_linear",
        "shoestring.kernels.packed_linear.tune_packed_linear",
    ),
    claims=(SMALL_SINGLE, SMALL_HALF, WIDE_SINGLE, WIDE_HALF, ROWS_8, THREE_FOUR, NAIVE, SPREAD, EXACT),
)


@dataclass(frozen=True)
class Work:
    """What is measured: a layer of `outputs` x `inputs` with a scale for each `group` inputs."""

    outputs: int
    inputs: int
    group: int
    rounds: int
    cache_bytes: int


SMOKE = Work(128, 256, 128, 3, 1)
QUICK = Work(8192, 4096, 128, 21, last_level_cache_bytes())


@dataclass(frozen=True)
class Dense:
    """The same layer in float32 and bfloat16, as many copies of each as exceed twice the cache."""

    single: Sequence[Tensor]
    half: Sequence[Tensor]

    @classmethod
    def of(cls, work: Work, generator: torch.Generator) -> "Dense":
        weight = torch.randn(work.outputs, work.inputs, generator=generator)
        return cls(_copies(weight, work), _copies(weight.bfloat16(), work))


def measure(effort: Effort, seed: int) -> Comparison:
    """Products with packed weights beside torch's dense ones, in turns, all weights from memory."""
    work = SMOKE if effort is Effort.SMOKE else QUICK
    generator = torch.Generator().manual_seed(seed)
    dense = Dense.of(work, generator)
    single_row: dict[str, InterleavedTimes] = {}
    eight_rows: dict[str, InterleavedTimes] = {}
    smoke = effort is Effort.SMOKE
    for name in ("u3", "u4", "u7") if smoke else (*SMALL_TYPES, *WIDE_TYPES):
        packed = _random_weights(name, work, generator)
        if not smoke:
            _tune(packed[0])
        single_row[name] = _timed(packed, dense, 1, work, generator, against=("f32", "bf16"))
        if not smoke or name == "u3":
            eight_rows[name] = _timed(packed, dense, 8, work, generator, against=("bf16",))
    return Comparison(
        system=card.slug,
        method="packed weights, codes decoded in registers",
        baseline="torch float32 linear",
        work=f"{work.outputs} x {work.inputs}, groups of {work.group}, {torch.get_num_threads()} threads; "
        "calls rotate over copies that exceed twice the last-level cache",
        rows=tuple(_rows(single_row, eight_rows, work, generator, smoke=smoke)),
        effort=effort,
        seed=seed,
        notes=_notes(single_row, work),
    )


def _copies(tensor: Tensor, work: Work) -> list[Tensor]:
    count = 2 * work.cache_bytes // tensor.nbytes + 1
    return [on_large_pages(tensor.clone()) for _ in range(count)]


def _random_weights(name: str, work: Work, generator: torch.Generator) -> list[PackedWeights]:
    """Random codes; all bit patterns are codes, so random bytes are packed codes."""
    first = PackedWeights.pack(torch.zeros(work.outputs, work.inputs, dtype=torch.uint8), name, work.group)
    data = torch.randint(0, 256, first.data.shape, dtype=torch.uint8, generator=generator)
    return [replace(first, data=copy) for copy in _copies(data, work)]


def _tune(packed: PackedWeights) -> None:
    """Choose the variants of this machine by measuring, as the published system does."""
    for rows in (1, 8):
        tune_packed_linear(packed, rows, x_type=torch.bfloat16)


def _scales(work: Work, generator: torch.Generator) -> Float[Tensor, "outputs groups"]:
    return (torch.rand(work.inputs // work.group, work.outputs, generator=generator) / 64).T


def _timed(
    packed: Sequence[PackedWeights],
    dense: Dense,
    rows: int,
    work: Work,
    generator: torch.Generator,
    *,
    against: tuple[str, ...],
) -> InterleavedTimes:
    x, scales = torch.randn(rows, work.inputs, generator=generator), _scales(work, generator)
    ours, single, half = itertools.cycle(packed), itertools.cycle(dense.single), itertools.cycle(dense.half)
    x_half = x.bfloat16()
    works: dict[str, Callable[[], object]] = {
        "ours": lambda: packed_linear(x_half, next(ours), scales),
        "f32": lambda: torch.nn.functional.linear(x, next(single)),
        "bf16": lambda: torch.nn.functional.linear(x_half, next(half)),
    }
    chosen = {name: works[name] for name in ("ours", *against)}
    return time_interleaved(chosen, rounds=work.rounds, min_sample_seconds=0)


def _rows(
    single_row: dict[str, InterleavedTimes],
    eight_rows: dict[str, InterleavedTimes],
    work: Work,
    generator: torch.Generator,
    *,
    smoke: bool,
) -> list[Row]:
    small = {name: times for name, times in single_row.items() if name in SMALL_TYPES}
    wide = {name: times for name, times in single_row.items() if name in WIDE_TYPES}
    rows = [
        _slowest(SMALL_SINGLE, small, "f32"),
        _slowest(SMALL_HALF, small, "bf16"),
        _slowest(WIDE_SINGLE, wide, "f32"),
        _slowest(WIDE_HALF, wide, "bf16"),
        _slowest(ROWS_8, eight_rows, "bf16"),
        _three_to_four(work, generator),
        _naive(work, generator),
        _spread(single_row),
        EXACT.row(baseline=None, method=_largest_error(smoke=smoke)),
    ]
    for rows_of_x, times in ((1, single_row), (8, eight_rows)):
        for name, timed in times.items():
            rows += [
                _plain(f"M = {rows_of_x}, {name}", timed, base) for base in timed.seconds if base != "ours"
            ]
    return rows


def _slowest(claim: Claim, times: dict[str, InterleavedTimes], against: str) -> Row:
    name = max(times, key=lambda name: times[name].ratio("ours", against))
    return _claimed(claim, times[name], against, f"torch {against}, {name}")


def _claimed(claim: Claim, timed: InterleavedTimes, baseline: str, against: str) -> Row:
    return claim.row(
        baseline=timed.median(baseline),
        method=timed.median("ours"),
        ratio=timed.ratio("ours", baseline),
        spread=timed.interval("ours", baseline),
        against=against,
    )


def _plain(metric: str, timed: InterleavedTimes, baseline: str) -> Row:
    return Row(
        metric=f"{metric}, to {baseline}", kind="time", unit="s", better="lower",
        baseline=timed.median(baseline), method=timed.median("ours"), ratio=timed.ratio("ours", baseline),
        spread=timed.interval("ours", baseline), against=f"torch {baseline}",
    )  # fmt: skip


def _three_to_four(work: Work, generator: torch.Generator) -> Row:
    x, scales = torch.randn(1, work.inputs, generator=generator).bfloat16(), _scales(work, generator)
    three, four = (itertools.cycle(_random_weights(name, work, generator)) for name in ("u3", "u4"))
    timed = time_interleaved(
        {
            "ours": lambda: packed_linear(x, next(three), scales),
            "u4": lambda: packed_linear(x, next(four), scales),
        },
        rounds=2 * work.rounds,
    )
    return _claimed(THREE_FOUR, timed, "u4", "ours with u4")


def _naive(work: Work, generator: torch.Generator) -> Row:
    """On a quarter of the layer: unpacking takes seconds."""
    part = replace(work, outputs=work.outputs // 4)
    x, scales = torch.randn(1, part.inputs, generator=generator), _scales(part, generator)
    (weights, *_) = _random_weights("u3", part, generator)
    works = {
        "ours": partial(packed_linear, x, weights, scales),
        "unpacked": partial(naive_packed_linear, x, weights, scales),
    }
    timed = time_interleaved(works, rounds=3, warmup=1)
    return _claimed(NAIVE, timed, "unpacked", "unpacking the matrix, a quarter of the layer")


def _spread(times: dict[str, InterleavedTimes]) -> Row:
    """Each type by its ratio to float32 in the same rounds, which takes the drift of the machine out."""
    ratios = [times[name].ratio("ours", "f32") for name in BETWEEN if name in times]
    return SPREAD.row(baseline=None, method=max(ratios) / min(ratios))


def _largest_error(*, smoke: bool) -> float:
    generator = torch.Generator().manual_seed(0)
    return max(_error(name, generator) for name in (("u3",) if smoke else (*SMALL_TYPES, *WIDE_TYPES)))


def _error(name: str, generator: torch.Generator) -> float:
    """Of one type, with ragged outputs: relative to the largest output."""
    outputs, groups, group = 200, 3, 128
    kind = data_type(name)
    codes = torch.randint(0, 1 << kind.bits, (outputs, groups * group), generator=generator)
    scales = torch.rand(outputs, groups, generator=generator)
    x = torch.randn(1, groups * group, generator=generator)
    values = torch.from_numpy(kind.decode(codes.numpy())).double()
    expected = x.double() @ (values * scales.double().repeat_interleave(group, 1)).T
    got = packed_linear(x, PackedWeights.pack(codes, kind, group), scales)
    return ((got - expected).abs().max() / expected.abs().max()).item()


def _notes(times: dict[str, InterleavedTimes], work: Work) -> tuple[str, ...]:
    weights = work.outputs * work.inputs
    speed = ", ".join(f"{name} {weights / timed.median('ours') / 1e9:.1f}" for name, timed in times.items())
    return (
        f"M = 1, weights a second in units of 1e9: {speed}.",
        "Inputs are bfloat16, as the paper's are of 16 bits; torch's float32 product has its own in float32.",
        "u6 has 2.8 times the bytes of u2: near the speed of memory, the spread of the times "
        "is that of the bytes.",
        "Codes are random bytes: speed does not depend on their values.",
        "The variant of each kernel was chosen by measuring it here first.",
        "The paper's figures are of GPUs; here the CUDA text is compiled and emulated, not timed.",
    )
