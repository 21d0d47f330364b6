"""Apriel-H1: the least critical attention of a Transformer becomes Mamba, by distillation in stages."""

import dataclasses
import hashlib
import tempfile
from pathlib import Path

import torch

from shoestring.data.corpora import load_corpus
from shoestring.data.tokens import Characters, split_ids, token_ids
from shoestring.files import cache_folder
from shoestring.layers.mamba.grouped_mamba import MambaShape
from shoestring.models.decoder import Decoder
from shoestring.notices import record_fallbacks
from shoestring.systems.apriel_h1.claims import CLAIMS, FAMILY, RECALL
from shoestring.systems.apriel_h1.family import FamilyRun, family_rows
from shoestring.systems.apriel_h1.learning import Lesson, Text, learning_rows
from shoestring.systems.apriel_h1.serving import Serving, serving_rows
from shoestring.systems.card import Card, Effort
from shoestring.systems.language_task import LanguageTask, language_task
from shoestring.yardstick.comparison import Comparison, Row

card = Card(
    slug="apriel-h1",
    title="Apriel-H1",
    paper="Apriel-H1: Towards Efficient Enterprise Reasoning Models (2025)",
    year=2025,
    authors_code="ServiceNow/Fast-LLM",
    saves=("memory", "time"),
    parts=(
        "shoestring.layers.mamba.grouped_mamba.GroupedMambaMixer",
        "shoestring.models.decoder.Decoder",
        "shoestring.models.layer_layout.LayerKind",
        "shoestring.models.save_decoder.save_decoder",
        "shoestring.generation.hybrid_cache.HybridCache",
        "shoestring.compression.mamba_in_llama.convert",
        "shoestring.compression.layer_importance.leave_one_out",
        "shoestring.compression.layer_importance.probe_replacements",
        "shoestring.compression.hybrid_conversion.convert_in_stages",
        "shoestring.training.reverse_kl.reverse_kl",
        "shoestring.training.logit_distillation.distil_logits",
    ),
    claims=CLAIMS,
)

FULL_CLAIMS = (*FAMILY.values(), *RECALL.values())
_SMALL_SHAPE = MambaShape(d_state=4, dt_rank=4)
TINY_LESSON = Lesson(
    layers=3, hidden=16, heads=2, kv_heads=1, length=16, batch_size=4, teacher_steps=3, converted=1, most=2,
    steps=2, stage_steps=(1, 2), probe_steps=1, windows=3, ranking_windows=2, shape=_SMALL_SHAPE,
)  # fmt: skip
TINY_SERVING = Serving(
    layers=5, hidden=32, intermediate=48, heads=2, kv_heads=1, head_dim=16, vocabulary=64, batch=2,
    context=64, short_context=16, rounds=3,
)  # fmt: skip
TINY_FAMILY = FamilyRun(
    steps=1, probe_steps=1, traces=4, length=12, batch_size=2, recall_tokens=6, shape=_SMALL_SHAPE
)


def measure(effort: Effort, seed: int) -> Comparison:
    """Time and bytes of serving, then quality after a conversion; the full run converts SmolLM2-135M too."""
    smoke = effort is Effort.SMOKE
    with record_fallbacks() as fallbacks:
        rows, notes = serving_rows(TINY_SERVING if smoke else Serving(), seed)
        lesson = TINY_LESSON if smoke else Lesson()
        text, origin = _noise(lesson, seed) if smoke else _shakespeare(lesson)
        learnt, more = learning_rows(text, lesson, seed)
        family, yet_more = _family(effort, seed)
    return Comparison(
        system=card.slug,
        method="a hybrid of attention and Mamba",
        baseline="attention in every layer",
        work="decoding at the shape of SmolLM2-135M; characters of Shakespeare",
        rows=(*rows, *learnt, *family),
        effort=effort,
        seed=seed,
        notes=(origin, *notes, *more, *yet_more, *fallbacks),
    )


def _family(effort: Effort, seed: int) -> tuple[list[Row], list[str]]:
    if effort is Effort.QUICK:
        return [], [f"{claim.metric}: not measured, it takes the full run" for claim in FULL_CLAIMS]
    if effort is Effort.FULL:
        run = FamilyRun()
        name = hashlib.sha256(repr((run, seed)).encode()).hexdigest()[:16]
        task = language_task((16, 256), (16, 512), torch.float32)
        return family_rows(task, run, cache_folder("apriel-h1", name), seed)
    with tempfile.TemporaryDirectory() as folder:
        return family_rows(_tiny_language(seed), TINY_FAMILY, Path(folder), seed, say=lambda line: None)


def _tiny_language(seed: int) -> LanguageTask:
    """A random model of four layers and random tokens: its figures say nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Decoder(dataclasses.replace(TINY_SERVING, layers=4).config).requires_grad_(False).eval()
        windows = torch.randint(model.cfg.vocab_size, (4, 12))
    return LanguageTask(model, windows[:2], windows[2:], "a random model of four layers on random tokens")


def _shakespeare(lesson: Lesson) -> tuple[Text, str]:
    text = load_corpus("shakespeare")
    characters = Characters.of(text)
    train, held_out = split_ids(token_ids(text, characters), 0.05)
    return Text.cut(train, held_out, len(characters), lesson), "tiny Shakespeare by characters, 5 % held out"


def _noise(lesson: Lesson, seed: int) -> tuple[Text, str]:
    ids = torch.randint(17, (40 * lesson.length,), generator=torch.Generator().manual_seed(seed))
    train, held_out = split_ids(ids, 0.3)
    return Text.cut(train, held_out, 17, lesson), "a smoke run: random tokens"
