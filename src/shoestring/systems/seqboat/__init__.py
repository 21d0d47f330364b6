"""SeqBoat: a moving average reads every token, and a router sends those that need it through attention.

Attention runs on the picked tokens as a sequence of their own, so its window spans what matters rather than
what is near, and its cost follows how many are picked.
"""

import torch

from shoestring.data.recall import ScatteredRecall
from shoestring.notices import record_fallbacks
from shoestring.systems.card import Card, Effort
from shoestring.systems.language_task import corpus_text
from shoestring.systems.seqboat.claims import CLAIMS
from shoestring.systems.seqboat.cost import CostSettings, cost_rows, gpu_rows
from shoestring.systems.seqboat.recall import RecallSettings, recall_rows
from shoestring.systems.seqboat.text import TextSettings, text_rows
from shoestring.yardstick.comparison import Comparison, Row

card = Card(
    slug="seqboat",
    title="SeqBoat",
    paper="Sparse Modular Activation for Efficient Sequence Modeling (NeurIPS 2023)",
    year=2023,
    authors_code="renll/SeqBoat",
    saves=("compute", "memory", "time"),
    parts=(
        "shoestring.layers.seqboat.seqboat.SeqBoat",
        "shoestring.layers.seqboat.sparse_modular_activation.SparseModularActivation",
        "shoestring.layers.seqboat.compression_index.CompressedPlaces",
        "shoestring.layers.seqboat.gated_attention_unit.GatedAttentionUnit",
        "shoestring.layers.seqboat.ema.DampedEMA",
        "shoestring.layers.seqboat.token_window",
        "shoestring.layers.local_attention.local_attention",
        "shoestring.kernels.damped_averages.damped_averages",
        "shoestring.kernels.gated_attention.gated_attention",
        "shoestring.kernels.compressed_rows.compressed_sum",
        "shoestring.models.seqboat.SeqBoatLM",
    ),
    claims=CLAIMS,
)

SMOKE_RECALL = RecallSettings(
    task=ScatteredRecall(length=24, queries=4, batch_size=4), window=8, d_model=16, d_qk=8, n_states=2,
    steps=3, full_steps=2, judged=2, rounds=3,
)  # fmt: skip
LONG_RECALL = RecallSettings(
    task=ScatteredRecall(length=2048, queries=512), window=256, steps=1500, full_steps=500, rounds=3
)


def measure(effort: Effort, seed: int) -> Comparison:
    """The cost of a layer by activity, and a recall task on which it must both see far and skip."""
    smoke = effort is Effort.SMOKE
    with record_fallbacks() as fallbacks:
        cost = CostSettings(length=256, d_model=16, window=16, rounds=3) if smoke else CostSettings()
        rows = cost_rows(cost, seed)
        more, notes = recall_rows(SMOKE_RECALL if smoke else RecallSettings(), seed)
        rows += more
        if effort is Effort.FULL:
            extra, remarks = _full_rows(seed)
            rows, notes = rows + extra, notes + remarks
        if torch.cuda.is_available():
            rows += gpu_rows(seed)
    return Comparison(
        system=card.slug,
        method="SeqBoat",
        baseline="the same network with other attention, or with every token in it",
        work="a layer on random tokens, and recall over 128 tokens of which most are fillers",
        rows=tuple(rows),
        effort=effort,
        seed=seed,
        notes=(*notes, *fallbacks),
    )


def _full_rows(seed: int) -> tuple[list[Row], list[str]]:
    """Recall over 2,048 tokens, and a text byte by byte. Takes hours on two cores."""
    rows, notes = recall_rows(LONG_RECALL, seed)
    rows = [_renamed(row, "2,048 tokens") for row in rows]
    text, name = corpus_text("shakespeare")
    return rows + text_rows(text, TextSettings(), seed), [*notes, f"text: {name}"]


def _renamed(row: Row, suffix: str) -> Row:
    """The same figure under a name of its own, shown and not judged."""
    fields = {name: getattr(row, name) for name in row.__dataclass_fields__}
    return Row(**fields | {"metric": f"{row.metric}, {suffix}", "bar": None})
