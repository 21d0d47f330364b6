"""Flash-LLM: weights pruned without structure are loaded compressed and multiplied as if they were dense.

On a CPU a bitmap and the packed values take the place of value-and-position pairs: they are smaller up to
94 % of zeros, and one instruction expands 32 of them.
"""

from shoestring.errors import MissingData
from shoestring.systems.card import Card, Effort
from shoestring.systems.flash_llm.claims import (
    CLAIMS,
    DECODING,
    SAME_TEXT,
    WANDA_AGAINST_MAGNITUDE,
    WANDA_QUALITY,
)
from shoestring.systems.flash_llm.kernels import Bench, kernel_rows
from shoestring.systems.flash_llm.model import model_rows, random_task, trained_task
from shoestring.yardstick.comparison import Comparison, Row

card = Card(
    slug="flash-llm",
    title="Flash-LLM",
    paper="Flash-LLM: Enabling Cost-Effective and Highly-Efficient Large Generative Model Inference with "
    "Unstructured Sparsity (VLDB 2024)",
    year=2023,
    authors_code="AlibabaResearch/flash-llm",
    saves=("memory", "time", "storage"),
    parts=(
        "shoestring.numbers.bitmap_matrix.BitmapMatrix",
        "shoestring.numbers.tiled_csl.TiledCslMatrix",
        "shoestring.kernels.sparse.matmul.sparse_matmul",
        "shoestring.kernels.sparse.dispatch.fastest_storage",
        "shoestring.layers.sparse_linear.SparseLinear",
        "shoestring.compression.pruning",
        "shoestring.training.masked_tuning.tune_masked",
        "shoestring.generation.batch_memory.batch_memory",
    ),
    claims=CLAIMS,
)


def measure(effort: Effort, seed: int) -> Comparison:
    """A large matrix with random zeros, rotating over copies; then SmolLM2-135M, pruned at once."""
    smoke = effort is Effort.SMOKE
    bench = Bench(256, 512, 2, 3, 0.0, seed) if smoke else Bench(8192, 4096, 6, 9, 0.04, seed)
    rows, notes = kernel_rows(bench), []
    try:
        task = random_task(seed) if smoke else trained_task(8, 10, 512)
    except MissingData as error:
        claims = (DECODING, SAME_TEXT, WANDA_QUALITY, WANDA_AGAINST_MAGNITUDE)
        notes += [f"{claim.metric}: not measured, {error}" for claim in claims]
    else:
        rows += _ordered(model_rows(task, 3 if smoke else 9, 4 if smoke else 16, seed))
        notes.append(task.origin)
    return Comparison(
        system=card.slug,
        method="bitmap of 16-bit values",
        baseline="dense",
        work=f"products with a {bench.rows} x {bench.cols} matrix, {bench.copies} copies in turn",
        rows=tuple(rows),
        effort=effort,
        seed=seed,
        notes=(
            *notes,
            "Time at 8 tokens is against bfloat16 alone where torch's float32 takes over 3 times as long.",
            "At 70 % of zeros and more a model needs recovery tuning; the row without it says why.",
        ),
    )


def _ordered(rows: list[Row]) -> list[Row]:
    """Time first."""
    return sorted(rows, key=lambda row: row.kind != "time")
