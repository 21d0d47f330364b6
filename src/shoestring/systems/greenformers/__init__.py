"""Greenformers: low rank along the weights or along the sequence (Linformer), and which of them to take.

Low rank makes short inputs fast and the model small; Linformer makes long inputs fast. Both are built here by
design, and any trained model is factored after the fact.
"""

import torch

from shoestring.data.text import default_halves
from shoestring.notices import record_fallbacks
from shoestring.systems.card import Card, Effort
from shoestring.systems.greenformers.claims import CLAIMS
from shoestring.systems.greenformers.encoder import (
    EncoderSettings,
    EncoderTask,
    encoder_rows,
    encoder_task,
    language_rows,
)
from shoestring.systems.greenformers.speed import SpeedSettings, gpu_rows, speed_rows
from shoestring.systems.greenformers.training import DesignSettings, character_text, design_rows
from shoestring.systems.language_task import corpus_halves, language_task, tiny_task
from shoestring.yardstick.comparison import Comparison

card = Card(
    slug="greenformers",
    title="Greenformers",
    paper="Greenformers: Improving Computation and Memory Efficiency in Transformer Models via Low-Rank "
    "Approximation (2021)",
    year=2021,
    authors_code="SamuelCahyawijaya/greenformer",
    saves=("compute", "time", "memory", "storage", "energy"),
    parts=(
        "shoestring.compression.auto_factorize.auto_fact",
        "shoestring.compression.factor_solvers",
        "shoestring.compression.low_rank_chooser.choose",
        "shoestring.layers.low_rank.linformer.LinformerAttention",
        "shoestring.layers.low_rank.low_rank_attention.LowRankSelfAttention",
        "shoestring.layers.low_rank.low_rank_conv.LowRankConv",
        "shoestring.layers.low_rank.low_rank_linear.LowRankLinear",
        "shoestring.models.transformer.TransformerLM",
        "shoestring.yardstick.energy.footprint",
    ),
    claims=CLAIMS,
)

SMOKE_SPEED = SpeedSettings(d_model=32, n_heads=2, rank=8, projected=8, tokens=128, rounds=3, scale=32)
SMOKE_ENCODER = EncoderSettings(windows=4, window=16, sentences=8, tuning_steps=2, tuning_batch=4)
SMOKE_DESIGN = DesignSettings(
    d_model=32, n_heads=2, n_layers=2, rank=8, seq=16, batch=4, steps=3, held_out=4, rounds=3
)


def measure(effort: Effort, seed: int) -> Comparison:
    """One block at six lengths, a trained encoder factored, a small model of low rank trained from scratch.

    `full` factors a language model too and tunes ten times as long.
    """
    smoke, full = effort is Effort.SMOKE, effort is Effort.FULL
    with record_fallbacks() as fallbacks:
        speed, notes = speed_rows(SMOKE_SPEED if smoke else SpeedSettings(), seed)
        settings = SMOKE_ENCODER if smoke else EncoderSettings(tuning_steps=600 if full else 60)
        task = tiny_encoder(settings, seed) if smoke else encoder_task(settings)
        encoder = encoder_rows(task, settings, seed)
        if not smoke and not full:
            language = []
        else:
            language = language_rows(tiny_task(seed) if smoke else language_task((8, 512), (16, 256)))
        text = character_text(default_halves() if smoke else corpus_halves("shakespeare"))
        design, more = design_rows(text, SMOKE_DESIGN if smoke else DesignSettings(), seed)
    gpu = gpu_rows(seed) if torch.cuda.is_available() and not smoke else []
    return Comparison(
        system=card.slug,
        method="Low-Rank Transformer and Linformer",
        baseline="the dense block, q, k and v from one product, fused attention",
        work="a BERT-base block at six lengths; a trained encoder; a language model of characters",
        rows=(*speed, *encoder, *language, *design, *gpu),
        effort=effort,
        seed=seed,
        notes=(task.origin, *notes, *more, *fallbacks),
    )


def tiny_encoder(settings: EncoderSettings, seed: int) -> EncoderTask:
    """A random encoder of two layers on random ids, for a smoke run."""
    from transformers import BertConfig, BertModel

    generator = torch.Generator().manual_seed(seed)
    config = BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=32, initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertModel(config).eval()

    def ids(count: int, length: int) -> torch.Tensor:
        return torch.randint(64, (count, length), generator=generator)

    tuning = [(ids(settings.tuning_batch, 9), torch.ones(settings.tuning_batch, 9, dtype=torch.int64))]
    mask = (torch.arange(11) < torch.randint(5, 12, (settings.sentences, 1), generator=generator)).long()
    return EncoderTask(
        model, ids(settings.windows, settings.window), tuning, [(ids(settings.sentences, 11), mask)],
        ("encoder",), "a random encoder on random ids",
    )  # fmt: skip
