"""Vision Mamba: an image backbone without attention, linear in the patches; slow at 224 pixels."""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from shoestring.data.photos import PHOTOS, load_photos, square_photo
from shoestring.data.pixel_sequences import digit_pixels, fashion_pixels
from shoestring.models.vision_mamba_config import VisionMambaConfig
from shoestring.models.vision_transformer import VisionTransformerConfig
from shoestring.notices import record_fallbacks
from shoestring.systems.card import Card, Effort
from shoestring.systems.vision_mamba.claims import CLAIMS
from shoestring.systems.vision_mamba.learning import Lesson, learning_rows
from shoestring.systems.vision_mamba.resolution import Sweep, resolution_rows
from shoestring.yardstick.comparison import Comparison

card = Card(
    slug="vision-mamba",
    title="Vision Mamba",
    paper="Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model "
    "(ICML 2024)",
    year=2024,
    authors_code="hustvl/Vim",
    saves=("memory", "time"),
    parts=(
        "shoestring.kernels.selective_scan.selective_scan",
        "shoestring.kernels.causal_conv1d.causal_conv1d",
        "shoestring.layers.mamba.bidirectional_mamba.BidirectionalMamba",
        "shoestring.layers.patches.patch_tokens.PatchTokens",
        "shoestring.layers.patches.feature_pyramid.FeaturePyramid",
        "shoestring.models.vision_mamba.VisionMamba",
        "shoestring.models.vision_mamba_weights",
        "shoestring.models.vision_transformer.VisionTransformer",
    ),
    claims=CLAIMS,
)

LESSONS = {
    Effort.SMOKE: Lesson(
        patch_size=2, dim=16, depth=2, steps=4, trial_steps=2, batch_size=8, held_out=64, rates=(1e-3, 2e-3)
    ),
    Effort.QUICK: Lesson(),
    Effort.FULL: Lesson(steps=4000, trial_steps=500, held_out=5000, rates=(5e-4, 1e-3, 2e-3, 4e-3, 8e-3)),
}
"""By effort; the full one takes about an hour on two cores."""


def measure(effort: Effort, seed: int) -> Comparison:
    """Time and memory by resolution, then accuracy after equal steps of learning."""
    smoke = effort is Effort.SMOKE
    with record_fallbacks() as fallbacks:
        if smoke:
            photo, origin = partial(_noise, seed=seed), "a smoke run: pictures of noise, digits to learn"
            task = digit_pixels(seed=seed)
        else:
            photo, origin = partial(square_photo, load_photos()[seed % len(PHOTOS)]), _origin(seed)
            task = fashion_pixels(seed=seed)
        rows, notes = resolution_rows(_tiny_sweep() if smoke else Sweep(), photo, seed)
        learnt, more = learning_rows(task, LESSONS[effort], seed)
    return Comparison(
        system=card.slug,
        method="Vim-Ti, 24 blocks",
        baseline="DeiT-Ti, 12 blocks",
        work="one photograph through random weights; classes of Fashion-MNIST",
        rows=(*rows, *learnt),
        effort=effort,
        seed=seed,
        notes=(origin, *notes, *more, *fallbacks),
    )


def _origin(seed: int) -> str:
    return f"scikit-image's photograph {PHOTOS[seed % len(PHOTOS)]!r}, its middle square, resized"


def _noise(side: int, seed: int) -> Float[Tensor, "3 side side"]:
    return torch.randn(3, side, side, generator=torch.Generator().manual_seed(seed))


def _tiny_sweep() -> Sweep:
    sizes: dict[str, Any] = {"image_size": (32, 32), "dim": 12, "n_classes": 5}
    return Sweep(
        sides=(32, 64), rounds={32: 3, 64: 3},
        mamba=VisionMambaConfig(**sizes, depth=2, d_state=4),
        transformer=VisionTransformerConfig(**sizes, depth=1),
    )  # fmt: skip
