"""What the paper says of the Routing Transformer, and the bars that are set here."""

from shoestring.systems.card import Claim

SHORTEST, LONG, LONGER, LONGEST = 2048, 4096, 8192, 16384
"""Speed is judged at the middle two, the growth of time between the outer ones."""
LENGTHS = (1024, SHORTEST, LONG, LONGER, LONGEST)
"""Of which 1,024 shows where dense attention is no slower."""
FASTER = {("top-w", LONG): 2.0, ("top-w", LONGER): 4.0, ("strict", LONG): 1.4, ("strict", LONGER): 2.2}
"""How many times as fast as dense attention each mode must be."""
MODES = ("top-w", "strict")


def _speed(mode: str, n: int) -> Claim:
    faster = FASTER.get((mode, n))
    return Claim(
        text="attention inside clusters costs O(n^1.5 d)",
        figure="O(n^1.5 d) against O(n² d)",
        setting=f"4 heads of 64, batch 1, n={n}, k=round(√n), w=n/k, forward, against fused causal attention",
        metric=f"time, {mode}, n={n}",
        kind="time",
        unit="s",
        better="lower",
        bar=None if faster is None else 1 / faster,
    )


SPEED = {(mode, n): _speed(mode, n) for n in LENGTHS for mode in MODES}
EXPONENT = {
    mode: Claim(
        text="time grows with the length to the power 1.5",
        figure="1.5",
        setting=f"slope from n={SHORTEST} to {LONGEST}",
        metric=f"exponent of time, {mode}",
        kind="other",
        unit="",
        better="lower",
        bar=1.7,
        bar_on="value",
    )
    for mode in MODES
}
PEAK_MEMORY = {
    mode: Claim(
        text="scores exist inside clusters only",
        figure="O(n^1.5) scores",
        setting=f"n={LONGER}, as above, against scores that stand in memory",
        metric=f"peak extra memory, {mode}",
        kind="memory",
        unit="B",
        better="lower",
        bar=0.15,
    )
    for mode in MODES
}
TEXT = Claim(
    text="routing heads beside local heads predict text better than local heads alone",
    figure="15.8 against 18.3 perplexity (Transformer-XL)",
    setting="WikiText-103, 10 layers; here bytes of a small text, n=1,024, 3 layers of 128, equal steps",
    metric="text loss, local + strict routing",
    kind="quality",
    unit="nat",
    better="lower",
    bar=0.0,
    bar_on="difference",
)
RECALL = Claim(
    text="each token reaches the relevant ones however far they are",
    figure="(qualitative)",
    setting="share of the gap from local heads to full attention that local + strict routing closes, where "
    "32 pairs are asked for after 128 to 255 positions",
    metric="recall gap closed",
    kind="quality",
    unit="",
    better="higher",
    bar=0.3,
    bar_on="value",
)
IMAGE = Claim(
    text="as good as the Sparse Transformer on images with fewer layers",
    figure="3.43 against 3.44 bits/dim",
    setting="ImageNet-64, 24 layers; not measured here",
    metric="bits per dim, ImageNet-64",
    kind="quality",
    unit="bit",
    better="lower",
    paper_ratio=3.43 / 3.44,
    needs_gpu=True,
)
BOOKS = Claim(
    text="better than the Compressive Transformer on long books",
    figure="33.2 against 33.6 perplexity",
    setting="PG-19, 22 layers, length 8,192; not measured here",
    metric="perplexity, PG-19",
    kind="quality",
    unit="",
    better="lower",
    paper_ratio=33.2 / 33.6,
    needs_gpu=True,
)

CLAIMS = (*SPEED.values(), *EXPONENT.values(), *PEAK_MEMORY.values(), TEXT, RECALL, IMAGE, BOOKS)
