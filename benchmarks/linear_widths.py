"""The product of a linear layer with codes of 1 to 8 bits against torch's, over shapes and columns.

    python benchmarks/linear_widths.py [--quick] [--rounds 7]

Matrices are 4096 x 4096 and 8192 x 4096, codes have a scale and an offset per 32 inputs. Ours takes inputs
as they are (float32) or rounded (int8; see `Activations`), and a matrix of bfloat16; theirs are torch's
linear in float32 and bfloat16, its dynamic int8 one, and torchao's with int8 weights where it is installed.
A round runs everybody once, each on another copy of its weights than the last time, so that together they
exceed the caches of most machines; a figure is the median over rounds. "GB/s" are bytes of weights,
"GFLOP/s" two for each weight and column; "of the limit" is the larger of the two as a part of what this
machine reads, or multiplies in float32 without matrix tiles, at best. The table goes to
benchmarks/results/linear_widths.json and .md. Run it on a quiet machine.
"""

import argparse
import ctypes
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.kernels.dense_linear import dense_linear
from shoestring.kernels.grouped_linear import Activations, GroupedWeights, has_matrix_tiles
from shoestring.kernels.native import load_library
from shoestring.numbers.grouped_affine import AffineGrid, GroupedAffine, ZeroPoint
from shoestring.yardstick.environment import Environment

SHAPES = ((4096, 4096), (8192, 4096))
COLUMNS = (1, 2, 4, 8, 16, 32, 64)
QUICK_SHAPES, QUICK_COLUMNS, QUICK_WIDTHS = ((4096, 4096),), (1, 8, 64), (2, 4, 8)
GROUP = 32
PEERS = ("torch float32", "torch bfloat16", "torch dynamic int8", "torchao int8 weights")
LIMITS = """
#include <stdint.h>
uint64_t read_sum(const uint64_t *from, int64_t words, int threads) {
    uint64_t sum = 0;
#pragma omp parallel for simd reduction(+ : sum) num_threads(threads)
    for (int64_t i = 0; i < words; i++) sum += from[i];
    return sum;
}
typedef float lanes __attribute__((vector_size(64)));
float multiply_add(int64_t turns, int threads) {
    float total = 0;
#pragma omp parallel for reduction(+ : total) num_threads(threads)
    for (int thread = 0; thread < threads; thread++) {
        lanes sums[12];
        for (int i = 0; i < 12; i++) sums[i] = (lanes){0} + (float)(i + thread);
        for (int64_t n = 0; n < turns; n++)
#pragma GCC unroll 12
            for (int i = 0; i < 12; i++) sums[i] = sums[i] * 0.999f + 0.5f;
        for (int i = 0; i < 12; i++) total += sums[i][0];
    }
    return total;
}
"""


class OneBit(GroupedAffine):
    """The container of saved models begins at two bits; the kernel takes one as well."""

    def __post_init__(self) -> None:
        pass


@dataclass(frozen=True)
class Contestant:
    """name; copies of the product x -> y that take turns; bytes of the weights of one."""

    name: str
    copies: list[Callable[[Tensor], object]]
    weight_bytes: int


@dataclass(frozen=True)
class Limits:
    """What this machine does at best: bytes read and float32 operations, a second."""

    bytes_per_second: float
    flops_per_second: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer shapes and widths; writes nothing")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    shapes = QUICK_SHAPES if options.quick else SHAPES
    columns = QUICK_COLUMNS if options.quick else COLUMNS
    widths = QUICK_WIDTHS if options.quick else tuple(range(1, 9))
    limits = measured_limits()
    rows = []
    with torch.inference_mode():
        for outputs, inputs in shapes:
            entered = contestants(outputs, inputs, widths, copies=2 if options.quick else 3)
            for count in columns:
                times = run_rounds(entered, inputs, count, options.rounds)
                rows += table(entered, times, (outputs, inputs), count, limits)
    text = markdown(rows)
    print(f"{torch.get_num_threads()} threads; {limits}; matrix tiles: {has_matrix_tiles()}\n{text}")
    if not options.quick:
        document = {
            "environment": asdict(Environment.here()),
            "limits": asdict(limits),
            "matrix_tiles": has_matrix_tiles(),
            "rounds": options.rounds,
            "rows": rows,
        }
        folder = Path(__file__).with_name("results")
        folder.joinpath("linear_widths.json").write_text(json.dumps(document, indent=1) + "\n")
        folder.joinpath("linear_widths.md").write_text(text)


def contestants(outputs: int, inputs: int, widths: tuple[int, ...], copies: int) -> list[Contestant]:
    """Everybody who can run here."""
    entered = []
    for bits in widths:
        packed = [_packed(bits, outputs, inputs, seed) for seed in range(copies)]
        for activations in Activations:
            kernels: list[Callable[[Tensor], object]] = [weights.kernel(activations) for weights in packed]
            entered.append(
                Contestant(f"ours, {bits} bits, {activations.name.lower()}", kernels, packed[0].nbytes)
            )
    dense = [torch.randn(outputs, inputs) / math.sqrt(inputs) for _ in range(copies)]
    halves = [weight.bfloat16() for weight in dense]
    entered.append(Contestant("ours, bfloat16, float32", [dense_linear(w) for w in halves], halves[0].nbytes))
    entered.append(Contestant(PEERS[0], [_linear(w, torch.float32) for w in dense], dense[0].nbytes))
    entered.append(Contestant(PEERS[1], [_linear(w, torch.bfloat16) for w in halves], halves[0].nbytes))
    entered.append(Contestant(PEERS[2], [_dynamic(w) for w in dense], outputs * inputs))
    try:
        entered.append(Contestant(PEERS[3], [_torchao(w) for w in dense], outputs * inputs))
    except ImportError as error:
        print(f"torchao does not take part: {error}")
    return entered


def run_rounds(entered: list[Contestant], inputs: int, columns: int, rounds: int) -> dict[str, float]:
    """Median seconds of a product by name, over rounds in which each has a turn, after one not counted."""
    x = torch.randn(columns, inputs)
    seconds: dict[str, list[float]] = {one.name: [] for one in entered}
    for turn in range(rounds + 1):
        for one in entered:
            begin = time.perf_counter()
            one.copies[turn % len(one.copies)](x)
            if turn:
                seconds[one.name].append(time.perf_counter() - begin)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def table(
    entered: list[Contestant], times: dict[str, float], shape: tuple[int, int], columns: int, limits: Limits
) -> list[dict[str, object]]:
    """A row for each; its ratio is that to the faster of torch's linear layers in float32 and bfloat16."""
    best = min(times[PEERS[0]], times[PEERS[1]])
    rows: list[dict[str, object]] = []
    for one in entered:
        taken = times[one.name]
        n_bytes, flops = one.weight_bytes / taken, 2 * shape[0] * shape[1] * columns / taken
        part = max(n_bytes / limits.bytes_per_second, flops / limits.flops_per_second)
        rows.append(
            {
                "name": one.name, "outputs": shape[0], "inputs": shape[1], "columns": columns,
                "microseconds": 1e6 * taken, "gigabytes_per_second": n_bytes / 1e9,
                "gigaflops_per_second": flops / 1e9, "part_of_limit": part, "speed_ratio": best / taken,
            }
        )  # fmt: skip
    return rows


def markdown(rows: list[dict[str, object]]) -> str:
    """The rows as a table."""
    lines = [
        "| matrix | columns | product | µs | GB/s | GFLOP/s | of the limit | x torch's best |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        "| {outputs}x{inputs} | {columns} | {name} | {microseconds:.0f} | {gigabytes_per_second:.1f} "
        "| {gigaflops_per_second:.0f} | {part_of_limit:.2f} | {speed_ratio:.2f} |".format(**row)
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def measured_limits() -> Limits:
    """The best of a few tries, on all threads."""
    library, threads = load_library(LIMITS, extra_flags=("-ffp-contract=fast",)), torch.get_num_threads()
    library.read_sum.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]
    library.read_sum.restype = ctypes.c_uint64
    library.multiply_add.argtypes = [ctypes.c_int64, ctypes.c_int]
    library.multiply_add.restype = ctypes.c_float
    numbers, turns = torch.ones(1 << 26, dtype=torch.int64), 4_000_000
    reading = _least(lambda: library.read_sum(numbers.data_ptr(), len(numbers), threads))
    adding = _least(lambda: library.multiply_add(turns, threads))
    return Limits(numbers.nbytes / reading, turns * 12 * 16 * 2 * threads / adding)


def _least(work: Callable[[], object]) -> float:
    taken = []
    for _ in range(5):
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return min(taken)


def _packed(bits: int, outputs: int, inputs: int, seed: int) -> GroupedWeights:
    generator = torch.Generator().manual_seed(seed)
    form = OneBit(bits, GROUP, ZeroPoint.REAL) if bits == 1 else GroupedAffine(bits, GROUP, ZeroPoint.REAL)
    codes = torch.randint(1 << bits, (outputs, inputs), generator=generator, dtype=torch.uint8)
    scale = torch.rand(outputs, inputs // GROUP, generator=generator) / (1 << bits)
    grid = AffineGrid(scale, torch.zeros_like(scale), -scale * (1 << (bits - 1)))
    return GroupedWeights.pack(form, form.store(codes, grid), inputs)


def _linear(weight: Tensor, dtype: torch.dtype) -> Callable[[Tensor], object]:
    return lambda x: F.linear(x.to(dtype), weight)


def _dynamic(weight: Tensor) -> Callable[[Tensor], object]:
    layer = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    layer[0].weight = nn.Parameter(weight, requires_grad=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that its quantisation moves to torchao
        return torch.ao.quantization.quantize_dynamic(layer, {nn.Linear}, dtype=torch.qint8)


def _torchao(weight: Tensor) -> Callable[[Tensor], object]:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.bfloat16)
    layer.weight = nn.Parameter(weight.bfloat16(), requires_grad=False)
    quantize_(layer, Int8WeightOnlyConfig())
    return lambda x: layer(x.bfloat16())


if __name__ == "__main__":
    main()
