"""What TurboMind claims of weights in few bits, and the bars that this project sets itself on a processor."""

from shoestring.systems.card import Claim

MODEL, LARGE = "SmolLM2's layers", "4096 and 11008 wide"
ROWS = (1, 8)
GROUPS = (64, 32)
"""Group sizes of the quality rows: 128 does not divide 576."""
_PAPER_LATENCY, _PAPER_THROUGHPUT = 0.70, 1.58


def product_metric(shapes: str, rows: int) -> str:
    """The name of a row on products alone."""
    return f"time of W4A16 products, {shapes}, {rows} row{'s' if rows > 1 else ''}"


def _time(metric: str, text: str, setting: str, bar: float, paper_ratio: float | None = None) -> Claim:
    return Claim(
        text=text,
        figure="30 % lower latency, 58 % more throughput on average" if paper_ratio else "-",
        setting=setting,
        metric=metric,
        kind="time",
        unit="s",
        better="lower",
        paper_ratio=paper_ratio,
        bar=bar,
    )


def _quality(metric: str, text: str, setting: str, bar: float) -> Claim:
    return Claim(
        text=text,
        figure="-",
        setting=setting,
        metric=metric,
        kind="quality",
        unit="",
        better="lower",
        bar=bar,
    )


PRODUCTS = {
    (shapes, rows): _time(
        product_metric(shapes, rows),
        "packed for the instruction that will use them, 4-bit weights are faster, not only smaller",
        "against the fastest of torch's float32 and bfloat16 linear at the better number of threads",
        1 / 2.5 if rows == 1 else 1 / 1.2,
    )
    for shapes in (MODEL, LARGE)
    for rows in ROWS
}
DECODING = {
    1: _time(
        "time of a decoded token, batch 1",
        "serving in mixed precision has lower latency",
        "16 models on four kinds of GPU against other frameworks of mixed precision; here 4-bit weights and "
        "an 8-bit head against bfloat16 in the same compiled step",
        1 / 1.8,
        _PAPER_LATENCY,
    ),
    8: _time(
        "time of a decoded step, batch 8",
        "and higher throughput",
        "as above, eight sequences at once, layer by layer",
        1 / 1.2,
        1 / _PAPER_THROUGHPUT,
    ),
}
IMPORT = _quality(
    "perplexity, codes of the GGUF file as they are",
    "weights that were shipped in four bits are imported without loss",
    "Q4_1 blocks kept against the same decoded to float32",
    1.0001,
)
COST = {
    group: _quality(
        f"perplexity, AWQ, 4 bits, groups of {group}",
        "weights in four bits cost little",
        "SmolLM2-135M, which was rounded to a grid of 32 before; head and table as they are",
        1.25,
    )
    for group in GROUPS
}
BETTER = {
    group: _quality(
        f"perplexity, AWQ against rounding to nearest, groups of {group}",
        "scales that activations choose beat plain rounding",
        "against the better of two fits of the grid, by extremes and by least squares",
        1.0,
    )
    for group in GROUPS
}
WEIGHT_CLAIMS = (*PRODUCTS.values(), *DECODING.values(), IMPORT, *COST.values(), *BETTER.values())
