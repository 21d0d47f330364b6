"""ZipVL: as few tokens of a prompt as hold the attention attend, and are cached in 4 bits; the rest in 2.

How many differs by layer and prompt; nothing is trained. Measured on text: what the paper says of pictures
and videos (accuracy of vision-language models, ratios that follow the question) is not claimed here.
"""

import torch
from torch import Tensor

from shoestring.compression.load_model import load_model
from shoestring.data.needles import RecallPrompt, needle_prompts
from shoestring.data.text import Encoder, default_halves, token_windows
from shoestring.data.tokens import Bytes
from shoestring.layers.rotary import Rope
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_config import DecoderConfig
from shoestring.notices import record_fallbacks
from shoestring.systems.card import Card, Effort
from shoestring.systems.language_task import text_halves
from shoestring.systems.zipvl.claims import CLAIMS
from shoestring.systems.zipvl.quality import QualityRun
from shoestring.systems.zipvl.speed import SpeedSettings, operator_rows, prompt_row
from shoestring.yardstick.comparison import Comparison

card = Card(
    slug="zipvl",
    title="ZipVL",
    paper="ZipVL: Efficient Large Vision-Language Models with Dynamic Token Sparsification and KV Cache "
    "Compression (arXiv 2024)",
    year=2024,
    authors_code="ThisisBillhe/ZipCache",
    saves=("compute", "memory", "time"),
    parts=(
        "shoestring.generation.zipvl.ZipVL",
        "shoestring.generation.important_tokens.TopMass",
        "shoestring.generation.tier_cache.TierCache",
        "shoestring.layers.column_sums.column_sums",
        "shoestring.layers.gathered_attention.gathered_attention",
        "shoestring.numbers.tier_format",
        "shoestring.data.needles",
        "shoestring.yardstick.decode_quality",
    ),
    claims=CLAIMS,
)

DECODED = 64
TINY = SpeedSettings(operator_tokens=96, prompt_tokens=96, layers=(0, 1), rounds=3)


def measure(effort: Effort, seed: int) -> Comparison:
    """Attention and prompts timed, answers and perplexity beside the controls, bytes of the cache."""
    with record_fallbacks() as fallbacks:
        run, ids, settings, origin = _tiny(seed) if effort is Effort.SMOKE else _smollm2(effort, seed)
        timed, note = operator_rows(run.model, ids, settings)
        timed.append(prompt_row(run.model, ids, settings))
        answers, notes = run.needle_rows()
        tiers, more = run.tier_rows()
    return Comparison(
        system=card.slug,
        method="ZipVL, tau 0.975, 4 and 2 bits",
        baseline="the dense model",
        work="long prompts of text, answers and text decoded behind them",
        rows=(*timed, *answers, *tiers),
        effort=effort,
        seed=seed,
        notes=(origin, note, *notes, *more, *fallbacks),
    )


def _smollm2(effort: Effort, seed: int) -> tuple[QualityRun, Tensor, SpeedSettings, str]:
    """SmolLM2-135M on the held-out half of `$SHOESTRING_TEXT` or the default text."""
    model, tokenizer = load_model("smollm2-135m")
    halves = text_halves()
    full = effort is Effort.FULL
    settings = SpeedSettings(rounds=11, prompt_rounds=7) if full else SpeedSettings()
    windows = token_windows(
        halves.held_out, tokenizer, 1024 + DECODED, limit=4 if full else 2, name=halves.name
    )
    ids = token_windows(halves.held_out, tokenizer, settings.operator_tokens, limit=1, name=halves.name)[0]
    prompts = _needles(halves.held_out, tokenizer, full, seed)
    run = QualityRun(model, prompts, windows, 1024, seed)
    return run, ids, settings, f"{halves.name}: {len(windows)} windows, {len(prompts)} needle prompts"


def _needles(text: str, tokenizer: Encoder, full: bool, seed: int) -> list[RecallPrompt]:
    """Prompts of 1 and 2 thousand tokens; at quick effort of one thousand and of one and a half."""
    lengths, count = ((1024, 2048), 10) if full else ((1024, 1536), 4)
    return [
        prompt
        for length in lengths
        for prompt in needle_prompts(text, tokenizer, length, count, seed=seed)
    ]  # fmt: skip


def _tiny(seed: int) -> tuple[QualityRun, Tensor, SpeedSettings, str]:
    """A random decoder on bytes, so that a smoke run loads nothing."""
    generator = torch.Generator().manual_seed(seed)
    cfg = DecoderConfig(
        vocab_size=256, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=1, head_dim=16, windows=(None, None), ropes=(Rope(), Rope()),
    )  # fmt: skip
    model = Decoder(cfg).requires_grad_(False).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 4 / parameter.shape[1] ** 0.5)
    text = default_halves().held_out[:4000]
    prompts = needle_prompts(text, Bytes(), 160, 2, seed=seed)
    windows = token_windows(text, Bytes(), 104, limit=2)
    run = QualityRun(model, prompts, windows, 96, seed)
    return run, windows.flatten(), TINY, "a random decoder on the bytes of the default text"
