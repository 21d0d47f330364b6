"""Routing Transformer: each head attends only inside clusters of tokens that online k-means finds.

The published mode lets each cluster take its best tokens, which reads the future; the strict mode measured
beside it does not.
"""

from shoestring.notices import record_fallbacks
from shoestring.systems.card import Card, Effort
from shoestring.systems.routing_transformer.claims import CLAIMS, LENGTHS
from shoestring.systems.routing_transformer.quality import QualitySettings, recall_rows, text_rows
from shoestring.systems.routing_transformer.speed import speed_rows
from shoestring.yardstick.comparison import Comparison

card = Card(
    slug="routing-transformer",
    title="Routing Transformer",
    paper="Efficient Content-Based Sparse Attention with Routing Transformers (2020)",
    year=2020,
    authors_code="google-research/google-research",
    saves=("compute", "memory", "time"),
    parts=(
        "shoestring.models.routing_transformer.RoutingTransformer",
        "shoestring.layers.routing.routing_attention.RoutingAttention",
        "shoestring.layers.routing.routing_heads.RoutingHeads",
        "shoestring.layers.routing.top_w_attention.top_w_attention",
        "shoestring.layers.routing.cluster_attention.cluster_attention",
        "shoestring.layers.kmeans.OnlineKMeans",
        "shoestring.layers.local_attention.local_attention",
        "shoestring.layers.routing.relative_tables.RelativeTables",
    ),
    claims=CLAIMS,
)

SETTINGS = {
    Effort.SMOKE: QualitySettings(
        recall_steps=2, recall_length=64, recall_pairs=8, text_steps=2, text_length=64, text_batch=2,
        text_windows=2, text_dim=32,
    ),
    Effort.QUICK: QualitySettings(),
    Effort.FULL: QualitySettings(recall_steps=3000, text_steps=2000, text_batch=8, text_windows=100),
}  # fmt: skip
"""By effort; `full` takes about an hour on two cores."""


def measure(effort: Effort, seed: int) -> Comparison:
    """Speed, growth and memory of routing heads; recall and text of models with and without them."""
    smoke = effort is Effort.SMOKE
    with record_fallbacks() as fallbacks:
        recall = recall_rows(SETTINGS[effort], seed)
        text, origin = text_rows(SETTINGS[effort], seed)
        real = (64, 128, 256, 512, 1024) if smoke else LENGTHS
        speed = speed_rows(dict(zip(LENGTHS, real, strict=True)), 3 if smoke else 5, seed)
    return Comparison(
        system=card.slug,
        method="routing heads (strict and top-w) beside local heads",
        baseline="fused causal attention for time, local heads alone for quality",
        work="random vectors for time; recall of pairs and bytes of text for quality",
        rows=(*speed, *recall, *text),
        effort=effort,
        seed=seed,
        notes=(
            origin,
            "Top-w routing reads the future, so its text loss flatters it. Below about 2,000 tokens dense "
            "attention is as fast or faster (see n=1024).",
            "15.8 against 18.3 perplexity on WikiText-103 takes days on accelerators: not repeated here.",
            *fallbacks,
        ),
    )
