"""S4: sequence layers that train as a convolution and run as a recurrence with a state of fixed size.

Four experiments: the cost of the taps beside dense powers, generation beside a Transformer, pictures read
pixel by pixel beside a GRU and a Transformer, and, at full, what the initial matrix is worth.
"""

import time

from shoestring.data.pixel_sequences import PixelTask, digit_pixels, fashion_pixels
from shoestring.systems.card import Card, Effort
from shoestring.systems.s4.claims import (
    BATCH,
    CLAIMS,
    CONTEXT,
    D_STATE,
    FEATURES,
    HIPPO,
    LAYERS,
    TAPS,
    TOKENS,
    WIDTH,
)
from shoestring.systems.s4.generation import GenerationSettings, generation_rows
from shoestring.systems.s4.kernels import kernel_rows
from shoestring.systems.s4.memory import memory_rows
from shoestring.systems.s4.pixels import PixelSettings, pixel_rows
from shoestring.yardstick.comparison import Comparison

card = Card(
    slug="s4",
    title="S4",
    paper="Efficiently Modeling Long Sequences with Structured State Spaces (ICLR 2022)",
    year=2021,
    authors_code="state-spaces/s4",
    saves=("compute", "memory", "time"),
    parts=(
        "shoestring.layers.state_space.S4",
        "shoestring.layers.state_space.S4D",
        "shoestring.layers.state_space.dplr_legs",
        "shoestring.layers.state_space.recurrence.LinearRecurrence",
        "shoestring.kernels.cauchy.dplr_spectrum",
        "shoestring.kernels.vandermonde.vandermonde",
        "shoestring.kernels.fft_convolution.fft_convolve",
        "shoestring.models.state_space_lm.StateSpaceLM",
    ),
    claims=CLAIMS,
)

SMALL = GenerationSettings(
    n_layers=1, d_model=32, batch=2, tokens=32, context=64, early=5, late=20, rounds=3, parts=2
)
STANDARD = GenerationSettings(
    n_layers=LAYERS, d_model=WIDTH, batch=BATCH, tokens=TOKENS, context=CONTEXT, early=100, late=2000,
    rounds=9, parts=4,
)  # fmt: skip
PIXELS = {
    Effort.SMOKE: PixelSettings(d_model=8, n_layers=1, seconds=None, steps=3),
    Effort.QUICK: PixelSettings(d_model=64, n_layers=2, seconds=38.0),
    Effort.FULL: PixelSettings(d_model=64, n_layers=2, seconds=1800.0),
}
MEMORY_STEPS = 1000


def measure(effort: Effort, seed: int) -> Comparison:
    """All of them. Full takes half an hour for each of three pixel models, and as long for the signals."""
    started = time.perf_counter()
    smoke = effort is Effort.SMOKE
    rows = kernel_rows(*((4, 8, 64, 3) if smoke else (FEATURES, D_STATE, TAPS, 5)), seed)
    rows += generation_rows(SMALL if smoke else STANDARD, seed)
    rows += pixel_rows(_pixels(effort, seed), PIXELS[effort], seed)
    notes = [
        "The models that generate are untrained: what they cost does not depend on their weights.",
        "Learning rates of all three pixel models were chosen alike, from the same list.",
    ]
    if effort is Effort.FULL:
        rows += memory_rows(MEMORY_STEPS, seed)
    else:
        notes.append(f"{HIPPO.metric}: not measured at this effort; full trains for it")
    return Comparison(
        system=card.slug,
        method="structured state spaces",
        baseline="dense powers, Transformers and a GRU",
        work="taps of one set of matrices; greedy decoding; pictures classified pixel by pixel",
        rows=tuple(rows),
        effort=effort,
        seed=seed,
        notes=tuple(notes),
        seconds=time.perf_counter() - started,
    )


def _pixels(effort: Effort, seed: int) -> PixelTask:
    if effort is Effort.SMOKE:
        return digit_pixels(train_size=100, test_size=100, seed=seed)
    if effort is Effort.QUICK:
        return fashion_pixels(14, train_size=6000, test_size=4000, seed=seed)
    return fashion_pixels(28, train_size=6000, seed=seed)
