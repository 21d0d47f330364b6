"""R-Sparse: decode with the columns of each weight whose input is large; low rank stands in for the others.

A prompt is dense, a decoded token reads half of the weights, and nothing is trained.
"""

import torch
from torch import Tensor

from shoestring.compression.alpha_search import Evolution
from shoestring.compression.load_model import load_model
from shoestring.data.text import token_windows
from shoestring.layers.rotary import Rope
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_config import DecoderConfig
from shoestring.notices import record_fallbacks
from shoestring.systems.card import Card, Effort
from shoestring.systems.language_task import text_halves
from shoestring.systems.r_sparse.claims import CLAIMS
from shoestring.systems.r_sparse.quality import QualityRun, Texts
from shoestring.systems.r_sparse.speed import PROMPT, SpeedSettings, speed_rows
from shoestring.yardstick.comparison import Comparison

card = Card(
    slug="r-sparse",
    title="R-Sparse",
    paper="R-Sparse: Rank-Aware Activation Sparsity for Efficient LLM Inference (ICLR 2025)",
    year=2025,
    authors_code="VITA-Group/R-Sparse",
    saves=("compute", "time"),
    parts=(
        "shoestring.compression.r_sparse.RSparse",
        "shoestring.compression.score_quantiles.capture_scores",
        "shoestring.compression.alpha_search.evolve",
        "shoestring.compression.sparsity_baselines",
        "shoestring.layers.row_sparse_linear.RowSparseLinear",
        "shoestring.generation.shared_rows.SharedRows",
        "shoestring.kernels.row_gather",
    ),
    claims=CLAIMS,
)

SEARCH = {
    Effort.SMOKE: Evolution(population=3, generations=1, elite=2),
    Effort.QUICK: Evolution(population=8, generations=4, elite=4),
    Effort.FULL: Evolution(),
}
"""By effort; the quick one is a part of the full one."""


def measure(effort: Effort, seed: int) -> Comparison:
    """Perplexity with tokens decoded sparsely, rivals beside it, and the time of a token."""
    model, texts, origin = _tiny(seed) if effort is Effort.SMOKE else _smollm2(effort)
    with record_fallbacks() as fallbacks:
        smoke = effort is Effort.SMOKE
        run = QualityRun(model, texts, SEARCH[effort], seed, every_rival=effort is not Effort.QUICK)
        rows = run.rows()
        settings = SpeedSettings(tokens=4, rounds=3, linear_rounds=3) if smoke else SpeedSettings()
        ids = texts.held_out.flatten()[: PROMPT + settings.tokens]
        timed, notes = speed_rows(model, ids, settings)
    return Comparison(
        system=card.slug,
        method="R-Sparse, matrices in bfloat16",
        baseline="the dense model",
        work="the second half of windows of text, decoded after a dense prompt",
        rows=(*rows, *timed),
        effort=effort,
        seed=seed,
        notes=(origin, *run.notes, *notes, *fallbacks),
    )


def _smollm2(effort: Effort) -> tuple[Decoder, Texts, str]:
    """SmolLM2-135M on `$SHOESTRING_TEXT` or the default text: the first half calibrates, the other judges."""
    model, tokenizer = load_model("smollm2-135m")
    halves = text_halves()
    name = halves.name
    windows = token_windows(halves.calibration, tokenizer, 512, name=name)
    # Spread over the text: thresholds are of the whole of it, not of its first article.
    spread = torch.linspace(0, len(windows) - 1, 16).long()
    between = spread[1 :: 2 if effort is Effort.FULL else 4]
    calibration, search = windows[spread[::2]], windows[between, :256]
    others = token_windows(halves.held_out, tokenizer, 512, name=name)
    held_out, counted = others[:8], others[torch.linspace(0, len(others) - 1, 16).long()]
    sizes = f"{len(calibration)} x 512 tokens to calibrate, {len(search)} x 256 to search"
    return model, Texts(calibration, search, held_out, counted, 256, 128), f"{name}: {sizes}, others to judge"


def _tiny(seed: int) -> tuple[Decoder, Texts, str]:
    """A random decoder and random tokens, so that a smoke run loads nothing."""
    generator = torch.Generator().manual_seed(seed)
    cfg = DecoderConfig(
        vocab_size=64, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=1, head_dim=16, windows=(None, None), ropes=(Rope(), Rope()),
    )  # fmt: skip
    model = Decoder(cfg).requires_grad_(False).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 2 / parameter.shape[1] ** 0.5)

    def ids(windows: int, window: int) -> Tensor:
        return torch.randint(64, (windows, window), generator=generator)

    texts = Texts(ids(6, 64), ids(2, 32), ids(3, 64), ids(4, 64), 32, 16)
    return model, texts, "a random decoder on random tokens"
