"""TurboMind: weights packed offline in the order of the instruction that reads them, inference in few bits.

On a processor the lanes of a vector take the place of the threads of a tensor core.
"""

import torch
from torch import Tensor

from shoestring.models.built_in import built_in_file
from shoestring.models.load import load_decoder
from shoestring.notices import record_fallbacks
from shoestring.systems.card import Card, Effort
from shoestring.systems.language_task import MODEL, LanguageTask, language_task, tiny_task
from shoestring.systems.turbomind_claims import WEIGHT_CLAIMS
from shoestring.systems.turbomind_decode import decode_rows
from shoestring.systems.turbomind_products import product_rows, smollm2_bench, tiny_bench
from shoestring.systems.turbomind_quality import QualityTask, quality_rows
from shoestring.yardstick.comparison import Comparison, Row

card = Card(
    slug="turbomind",
    title="TurboMind",
    paper="Efficient Mixed-Precision Large Language Model Inference with TurboMind (2025)",
    year=2025,
    authors_code="InternLM/lmdeploy",
    saves=("memory", "time"),
    parts=(
        "shoestring.compression.awq.AWQ",
        "shoestring.compression.precision.Precision",
        "shoestring.models.packed_import",
        "shoestring.kernels.grouped_order.quartet_order",
        "shoestring.kernels.tile.packing.PackedTile",
        "shoestring.kernels.linear_dispatch.DispatchedLinear",
        "shoestring.numbers.block_float.BlockFloat",
    ),
    claims=WEIGHT_CLAIMS,
)


def measure(effort: Effort, seed: int) -> Comparison:
    """Products alone, decoding at batch 1 and 8, and what rounding costs."""
    smoke = effort is Effort.SMOKE
    rows: list[Row] = []
    with record_fallbacks() as fallbacks:
        parts = [product_rows(tiny_bench(seed) if smoke else smollm2_bench(seed))]
        parts.append(_model_rows(effort, seed))
    notes = []
    for part, said in parts:
        rows += part
        notes += said
    return Comparison(
        system=card.slug,
        method="weights in 4 bits, inputs in float32",
        baseline="bfloat16 or float32, as the row says",
        work="linear layers alone, a decoded token, held-out text",
        rows=tuple(rows),
        effort=effort,
        seed=seed,
        notes=(*notes, *fallbacks),
    )


def _model_rows(effort: Effort, seed: int) -> tuple[list[Row], list[str]]:
    smoke, full = effort is Effort.SMOKE, effort is Effort.FULL
    task = _tiny(seed) if smoke else _smollm2(full)
    # Windows that calibrated are fine to time.
    windows = task.calibration if smoke else _timed_windows(task)
    timed, notes = decode_rows(
        task.model, windows, 32 if smoke else 64, 4 if smoke else 16, 3 if smoke else 7
    )
    imported = task.model if smoke else load_decoder(built_in_file(MODEL), packed=True)
    steps = 3 if smoke else 20 if full else 10
    rows = quality_rows(QualityTask(task.model, imported, task.calibration, task.held_out, steps))
    return [*timed, *rows], [task.origin, *notes]


def _smollm2(full: bool) -> LanguageTask:
    return language_task((8, 512), (32, 512)) if full else language_task((1, 512), (4, 512))


def _timed_windows(task: LanguageTask) -> Tensor:
    """Eight windows of 64 tokens."""
    return torch.stack(list(task.held_out.flatten()[: 8 * 64].split(64)))


def _tiny(seed: int) -> LanguageTask:
    return tiny_task(seed, (8, 32))
