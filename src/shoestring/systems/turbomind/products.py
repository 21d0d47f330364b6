"""Products with 4-bit weights by themselves: dispatched ones beside torch's linear layers of every kind."""

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.errors import NoCompiler
from shoestring.kernels.linear_dispatch import DispatchedLinear
from shoestring.numbers.grouped_affine import GroupedAffine, ZeroPoint
from shoestring.systems.turbomind.claims import LARGE, MODEL, PRODUCTS, ROWS, product_metric
from shoestring.yardstick.comparison import Row
from shoestring.yardstick.timing import InterleavedTimes, time_interleaved

Shape = tuple[int, int]
OURS, DYNAMIC = "4 bits", "torch, dynamic int8"


@dataclass(frozen=True)
class ProductBench:
    """shapes: (outputs, inputs) by name, and copies of each that take turns: a core's caches hold few."""

    shapes: Mapping[str, tuple[Sequence[Shape], int]]
    rounds: int
    seed: int


def smollm2_bench(seed: int) -> ProductBench:
    """The shapes of SmolLM2-135M's layers, and of a 7B model's."""
    model = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]
    return ProductBench({MODEL: (model, 30), LARGE: ([(4096, 4096), (11008, 4096)], 3)}, 9, seed)


def tiny_bench(seed: int) -> ProductBench:
    """Shapes that take no time."""
    return ProductBench({MODEL: ([(32, 64), (48, 64)], 2), LARGE: ([(64, 128)], 1)}, 3, seed)


def product_rows(bench: ProductBench) -> tuple[list[Row], list[str]]:
    """Rows of every shape and number of rows of x, and notes. Without a compiler nothing is measured."""
    try:
        measured = [_shape_rows(bench, name) for name in bench.shapes]
    except NoCompiler as error:
        return [], [f"{claim.metric}: not measured, {error}" for claim in PRODUCTS.values()]
    return [row for rows, _ in measured for row in rows], [note for _, notes in measured for note in notes]


@torch.inference_mode()
def _shape_rows(bench: ProductBench, name: str) -> tuple[list[Row], list[str]]:
    layers = _Layers.random(bench, name)
    rows, notes = [], []
    for tokens in ROWS:
        layers.tune(tokens)
        timed = _time(layers, tokens, bench)
        plain = [n for n in timed.seconds if n not in (OURS, DYNAMIC)]
        best = min(plain, key=timed.median)
        rows.append(PRODUCTS[name, tokens].row(**_times(timed, best), against=best))
        rows.append(
            Row(
                metric=f"{product_metric(name, tokens)}, beside dynamic int8", kind="time", unit="s",
                better="lower", **_times(timed, DYNAMIC), against=DYNAMIC,
            )
        )  # fmt: skip
        others = ", ".join(f"{n} {timed.median(n) * 1e3:.3g} ms" for n in plain)
        notes.append(f"{product_metric(name, tokens)}: {others}; ours by {layers.chosen(tokens)}")
    return rows, notes


@dataclass
class _Layers:
    """Matrices of one list of shapes in each form, copies of each in a row."""

    packed: list[DispatchedLinear]
    float32: list[Tensor]
    bfloat16: list[Tensor]
    dynamic: list[nn.Module]

    @classmethod
    def random(cls, bench: ProductBench, name: str) -> "_Layers":
        generator = torch.Generator().manual_seed(bench.seed)
        found = cls([], [], [], [])
        shapes, copies = bench.shapes[name]
        for rows, cols in shapes:
            found._add(rows, cols, copies, generator)
        return found

    def _add(self, rows: int, cols: int, copies: int, generator: torch.Generator) -> None:
        form = GroupedAffine(4, 128 if cols % 128 == 0 else 64, ZeroPoint.INTEGER)
        codes = torch.randint(16, (rows, cols), generator=generator, dtype=torch.uint8)
        groups = form.groups(cols)
        grid = form.represent(torch.full((rows, groups), 0.01), torch.full((rows, groups), 8.0))
        stored = form.store(codes, grid)
        dense = form.decode(codes, grid)
        for _ in range(copies):
            own = {name: tensor.clone() for name, tensor in stored.items()}
            self.packed.append(DispatchedLinear(form, own, cols))
            self.float32.append(dense.clone())
            self.bfloat16.append(dense.bfloat16())
            self.dynamic.append(_dynamic(dense))

    def tune(self, tokens: int) -> None:
        """Measure one matrix of every shape; the others go by it."""
        seen: set[Shape] = set()
        for linear in self.packed:
            shape = len(linear.stored["codes"]), linear.cols
            linear.tune(tokens) if shape not in seen else None
            seen.add(shape)

    def chosen(self, tokens: int) -> str:
        """The options that the dispatcher took."""
        return ", ".join(sorted({linear.chosen(tokens).name for linear in self.packed}))


def _dynamic(weight: Tensor) -> nn.Module:
    """torch's linear with int8 weights and inputs rounded as they come."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight
    with warnings.catch_warnings():
        # It is announced to leave torch one day; until then it is what users have.
        warnings.simplefilter("ignore")
        quantised: Any = torch.ao.quantization.quantize_dynamic(
            nn.Sequential(linear), {nn.Linear}, torch.qint8
        )
    module: nn.Module = quantised[0]
    return module


def _time(layers: _Layers, tokens: int, bench: ProductBench) -> InterleavedTimes:
    """Each sample goes through all matrices once; torch with one thread and with all that there are."""
    generator = torch.Generator().manual_seed(bench.seed + tokens)
    widths = {linear.cols for linear in layers.packed}
    xs = {width: torch.randn(tokens, width, generator=generator) for width in widths}
    halves = {width: x.bfloat16() for width, x in xs.items()}
    threads = torch.get_num_threads()

    def plain(weights: list[Tensor], inputs: dict[int, Tensor], count: int) -> Callable[[], None]:
        def run() -> None:
            torch.set_num_threads(count)
            for weight in weights:
                F.linear(inputs[weight.shape[1]], weight)
            torch.set_num_threads(threads)

        return run

    def each(modules: Sequence[Callable[[Tensor], Tensor]]) -> Callable[[], None]:
        def run() -> None:
            for module, linear in zip(modules, layers.packed, strict=True):
                module(xs[linear.cols])

        return run

    works = {OURS: each(layers.packed), DYNAMIC: each(layers.dynamic)}
    forms = (("float32", layers.float32, xs), ("bfloat16", layers.bfloat16, halves))
    for (kind, weights, inputs), count in itertools.product(forms, sorted({1, threads})):
        works[f"torch {kind}, {count} thread{'s' if count > 1 else ''}"] = plain(weights, inputs, count)
    return time_interleaved(works, rounds=bench.rounds, warmup=1, min_sample_seconds=0, seed=bench.seed)


def _times(timed: InterleavedTimes, baseline: str) -> dict[str, Any]:
    return {
        "baseline": timed.median(baseline),
        "method": timed.median(OURS),
        "ratio": timed.ratio(OURS, baseline),
        "spread": timed.interval(OURS, baseline),
    }
