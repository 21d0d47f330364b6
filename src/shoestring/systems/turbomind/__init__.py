"""TurboMind: weights packed offline in the order of the instruction that reads them, inference in few bits.

On a processor the lanes of a vector take the place of the threads of a tensor core.
"""

import torch
from torch import Tensor

from shoestring.errors import NoCompiler
from shoestring.models.built_in import built_in_file
from shoestring.models.decoder import Decoder
from shoestring.models.load import load_decoder
from shoestring.notices import record_fallbacks
from shoestring.systems.card import Card, Effort
from shoestring.systems.language_task import MODEL, LanguageTask, language_task, tiny_task
from shoestring.systems.turbomind.attention import CLAIMS as CACHE_CLAIMS
from shoestring.systems.turbomind.attention import AttentionSettings, cache_quality_rows, measure_attention
from shoestring.systems.turbomind.claims import WEIGHT_CLAIMS
from shoestring.systems.turbomind.decode import decode_rows
from shoestring.systems.turbomind.products import product_rows, smollm2_bench, tiny_bench
from shoestring.systems.turbomind.quality import QualityTask, quality_rows
from shoestring.systems.turbomind.serving import ADMITTED, THROUGHPUT, ServingSettings, serving_rows
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
        "shoestring.numbers.token_cache_format.TokenCacheFormat",
        "shoestring.kernels.cached_attention.CachedAttention",
        "shoestring.generation.paged_cache.PagedCache",
        "shoestring.serving.engine.Engine",
    ),
    claims=(*WEIGHT_CLAIMS, *CACHE_CLAIMS, ADMITTED, THROUGHPUT),
)

Part = tuple[list[Row], list[str]]
"""Rows of a part of the experiment, and its notes."""

FEW_REQUESTS = ServingSettings(4, (4, 12), (2, 4), 64)
FEW_SLOTS = AttentionSettings(layers=2, contexts=(4096, 8192), rounds=3)


def measure(effort: Effort, seed: int) -> Comparison:
    """Products alone, attention alone, decoding at batch 1 and 8, serving, and what rounding costs."""
    smoke = effort is Effort.SMOKE
    with record_fallbacks() as fallbacks:
        parts = [
            product_rows(tiny_bench(seed) if smoke else smollm2_bench(seed)),
            measure_attention(FEW_SLOTS if smoke else AttentionSettings(), seed),
            *_model_parts(effort, seed),
        ]
    return Comparison(
        system=card.slug,
        method="weights in 4 bits, inputs in float32; keys and values in 8 and 4 bits",
        baseline="bfloat16 or float32, as the row says",
        work="linear layers and attention alone, a decoded token, requests served, held-out text",
        rows=tuple(row for rows, _ in parts for row in rows),
        effort=effort,
        seed=seed,
        notes=(*(note for _, notes in parts for note in notes), *fallbacks),
    )


def _model_parts(effort: Effort, seed: int) -> list[Part]:
    smoke, full = effort is Effort.SMOKE, effort is Effort.FULL
    task = tiny_task(seed, (8, 32)) if smoke else _smollm2(full)
    imported = task.model if smoke else load_decoder(built_in_file(MODEL), packed=True)
    # Windows that calibrated are fine to time.
    windows = task.calibration if smoke else _timed_windows(task)
    steps = 3 if smoke else 20 if full else 10
    return [
        ([], [task.origin]),
        decode_rows(task.model, windows, 32 if smoke else 64, 4 if smoke else 16, 3 if smoke else 7),
        _served(imported, task, FEW_REQUESTS if smoke else ServingSettings(), seed),
        (cache_quality_rows(task.model, task.held_out), []),
        (quality_rows(QualityTask(task.model, imported, task.calibration, task.held_out, steps)), []),
    ]


def _served(model: Decoder, task: LanguageTask, settings: ServingSettings, seed: int) -> Part:
    try:
        return serving_rows(model, task.held_out.flatten(), settings, seed)
    except NoCompiler as error:
        return [], [f"{claim.metric}: not measured, {error}" for claim in (ADMITTED, THROUGHPUT)]


def _smollm2(full: bool) -> LanguageTask:
    return language_task((8, 512), (32, 512)) if full else language_task((1, 512), (4, 512))


def _timed_windows(task: LanguageTask) -> Tensor:
    """Eight windows of 64 tokens."""
    return torch.stack(list(task.held_out.flatten()[: 8 * 64].split(64)))
