"""FlashButterfly: sequence layers that are one long, freely learned convolution, and learned transforms.

Three experiments: how fast long convolutions are beside what they replace, whether a squashed kernel learns
what a state space does, and whether a learned butterfly stands in for the MLPs of a Transformer.
"""

import time

from shoestring.data.corpora import PYDOC
from shoestring.data.pixel_sequences import PixelTask, digit_pixels, fashion_pixels
from shoestring.notices import record_fallbacks
from shoestring.systems.card import Card, Effort
from shoestring.systems.flash_butterfly.claims import (
    AS_S4D,
    AS_UNSQUASHED,
    ATTENTION,
    DIRECT,
    GPU,
    LENGTH,
    LOSS,
    WEIGHTS,
)
from shoestring.systems.flash_butterfly.pixels import PixelExperiment, pixel_rows
from shoestring.systems.flash_butterfly.speed import speed_rows
from shoestring.systems.flash_butterfly.text import TextExperiment, text_rows
from shoestring.systems.language_task import corpus_text
from shoestring.yardstick.comparison import Comparison

card = Card(
    slug="flash-butterfly",
    title="FlashButterfly",
    paper="Simple Hardware-Efficient Long Convolutions for Sequence Modeling (2023)",
    year=2023,
    authors_code="HazyResearch/safari",
    saves=("compute", "time", "storage"),
    parts=(
        "shoestring.kernels.fft_convolution.fft_convolve",
        "shoestring.kernels.block_dft.block_dft",
        "shoestring.kernels.three_pass_convolution.three_pass_convolve",
        "shoestring.layers.long_convolution.squash.KernelRegulariser",
        "shoestring.layers.long_convolution.long_convolution.LongConv",
        "shoestring.layers.long_convolution.long_convolution.FeatureLongConv",
        "shoestring.layers.long_convolution.learned_butterfly.LearnedButterfly",
        "shoestring.layers.long_convolution.h3.H3LongConv",
        "shoestring.models.sequence_classifier.SequenceClassifier",
    ),
    claims=(DIRECT, ATTENTION, LENGTH, GPU, AS_S4D, AS_UNSQUASHED, WEIGHTS, LOSS),
)

PIXELS = {
    Effort.SMOKE: PixelExperiment(d_model=8, n_layers=1, epochs=1, chosen_on=50),
    Effort.QUICK: PixelExperiment(d_model=64, n_layers=2, epochs=3, chosen_on=1000),
    Effort.FULL: PixelExperiment(d_model=64, n_layers=2, epochs=5, chosen_on=2000),
}
TEXT = {
    Effort.SMOKE: TextExperiment(d_model=16, n_layers=1, context=16, batch=4, steps=3, windows=8),
    Effort.QUICK: TextExperiment(d_model=128, n_layers=4, context=64, batch=32, steps=250, windows=1000),
    Effort.FULL: TextExperiment(d_model=128, n_layers=4, context=64, batch=32, steps=3000, windows=1700),
}


def measure(effort: Effort, seed: int) -> Comparison:
    """All three experiments. Full takes Fashion-MNIST at its 28 x 28 pixels, some hours on two cores."""
    started = time.perf_counter()
    smoke = effort is Effort.SMOKE
    with record_fallbacks() as fallbacks:
        text, origin = corpus_text(PYDOC if smoke else "shakespeare")
    rows = speed_rows(32 if smoke else 1, 3 if smoke else 9, seed)
    rows += pixel_rows(_pixels(effort, seed), PIXELS[effort], seed)
    rows += text_rows(text[:20_000] if smoke else text, TEXT[effort], seed)
    return Comparison(
        system=card.slug,
        method="long convolutions",
        baseline="what they replace",
        work="one convolution of random signals; pictures classified pixel by pixel; characters predicted",
        rows=tuple(rows),
        effort=effort,
        seed=seed,
        notes=(
            f"characters of {origin}",
            "Accuracies differ by about a point from seed to seed at this size.",
            "A squash looks at no lag: at this size it thins the taps and does not smooth the spectrum.",
            "On a CPU the gain is that of O(L log L): its library keeps to the caches by itself, and three "
            "passes by small matrices pay only where products are faster than transforms.",
            "The fused GPU kernel of the paper is not here: a GPU runs torch's transforms at a good length.",
            *fallbacks,
        ),
        seconds=time.perf_counter() - started,
    )


def _pixels(effort: Effort, seed: int) -> PixelTask:
    if effort is Effort.SMOKE:
        return digit_pixels(train_size=100, test_size=100, seed=seed)
    if effort is Effort.QUICK:
        return fashion_pixels(14, train_size=3000, test_size=3000, seed=seed)
    return fashion_pixels(28, train_size=20_000, seed=seed)
