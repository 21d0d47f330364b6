"""TurboMind's attention over a cache in few bits: its time beside our own kernel on bfloat16, its bytes, and
what the rounding of keys and values costs a model.

Source: TurboMind (InternLM/lmdeploy), KV cache quantisation and attention; bars: our own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from shoestring.errors import NoCompiler
from shoestring.generation.decoder_runner import decoder_cache
from shoestring.kernels.cached_attention import CachedAttention, StoredRows, empty_rows, store_rows
from shoestring.models.decoder import Decoder
from shoestring.numbers.token_cache_format import TokenCacheFormat
from shoestring.systems.card import Claim
from shoestring.yardstick.comparison import Row
from shoestring.yardstick.language_quality import perplexity
from shoestring.yardstick.timing import time_interleaved

KV8, K8V4, KV4 = (TokenCacheFormat(*widths) for widths in ((8, 8), (8, 4), (4, 4)))
NAMES = {KV8: "KV8", K8V4: "K8V4", KV4: "KV4"}
BASELINE = "our own kernel, keys and values in bfloat16"


def _claim(metric: str, text: str, figure: str, setting: str, bar: float, **options: Any) -> Claim:
    return Claim(text=text, figure=figure, setting=setting, metric=metric, better="lower", bar=bar, **options)


def _speed(form: TokenCacheFormat, context: int, speed_up: float, paper_ratio: float, figure: str) -> Claim:
    return _claim(
        f"time of attention, {NAMES[form]}, context {context}",
        "attention over fewer bits takes less time, although codes must be made numbers",
        f"{figure} requests a second",
        "Llama-2-7B-chat, batch 256, whole server; ours: one token, SmolLM2-135M's heads, all layers in turn",
        1 / speed_up, kind="time", unit="s", paper_ratio=paper_ratio,
    )  # fmt: skip


SPEED = {
    (form, context): _speed(form, context, *figures)
    for context in (4096, 8192)
    for form, figures in {KV8: (1.4, 1 / 1.27, "1.27x"), KV4: (1.7, 1 / 1.39, "1.39x")}.items()
}
BYTES = {
    form: _claim(
        f"bytes of keys and values, {NAMES[form]}", "two and four times the tokens fit the same memory",
        "half, a quarter", "heads of 64 channels, scale and lowest value of each token included; bar: exact",
        bar, kind="memory", unit="B",
    )
    for form, bar in {KV8: 68 / 128, KV4: 36 / 128}.items()
}  # fmt: skip
QUALITY = {
    form: _claim(
        f"perplexity, {NAMES[form]}", "the accuracy of the model stays", "MMLU 35.64 to 35.58; 4 bits: 34.79",
        "Llama-2-7B; ours: SmolLM2-135M, every key and value read as it is stored", bar,
        kind="quality", unit="",
    )
    for form, bar in {KV8: 1.01, K8V4: 1.02, KV4: 1.15}.items()
}  # fmt: skip
CLAIMS = (*SPEED.values(), *BYTES.values(), *QUALITY.values())


@dataclass(frozen=True)
class AttentionSettings:
    """Whose attention is timed, by default that of SmolLM2-135M, and how often."""

    layers: int = 30
    heads: int = 9
    kv_heads: int = 3
    head_dim: int = 64
    contexts: tuple[int, ...] = (4096, 8192)
    rounds: int = 15


def measure_attention(settings: AttentionSettings, seed: int) -> tuple[list[Row], list[str]]:
    """Rows of time and bytes of KV8 and KV4 (and K8V4, not judged) beside bfloat16, and notes.

    One token attends to a full cache in every layer; the caches of all layers are gone through in turn, as in
    a decode step. Contexts that no claim names are not judged. Without a compiler the claims about time are
    noted as not measured.
    """
    rows, notes = [], []
    try:
        for context in settings.contexts:
            rows += _speed_rows(settings, context, seed)
    except NoCompiler as error:
        notes = [f"{claim.metric}: not measured, {error}" for claim in SPEED.values()]
    for form, claim in BYTES.items():
        plain = 2 * 2 * settings.kv_heads * settings.head_dim
        token = form.token_bytes(settings.kv_heads, settings.head_dim)
        slots = settings.layers * max(settings.contexts)
        rows.append(claim.row(baseline=slots * plain, method=slots * token, against="16 bits"))
    return rows, notes


def _speed_rows(settings: AttentionSettings, context: int, seed: int) -> list[Row]:
    generator = torch.Generator().manual_seed(seed)
    shape = settings.kv_heads, context, settings.head_dim
    works = {"bfloat16": _attention(settings, [_plain(shape, generator) for _ in range(settings.layers)])}
    for form, name in NAMES.items():
        works[name] = _attention(settings, [_coded(form, shape, generator) for _ in range(settings.layers)])
    q = torch.randn(settings.layers, 1, settings.heads, settings.head_dim, generator=generator)
    with torch.inference_mode():
        timed = time_interleaved(
            {name: partial(work, q, context - 1) for name, work in works.items()},
            rounds=settings.rounds,
            min_sample_seconds=0,
        )
    rows = []
    for form, name in NAMES.items():
        figures: dict[str, Any] = {
            "baseline": timed.median("bfloat16"), "method": timed.median(name),
            "ratio": timed.ratio(name, "bfloat16"), "spread": timed.interval(name, "bfloat16"),
        }  # fmt: skip
        metric = f"time of attention, {name}, context {context}"
        claim = SPEED.get((form, context))
        row = Row(metric=metric, kind="time", unit="s", better="lower", against=BASELINE, **figures)
        rows.append(row if claim is None else claim.row(**figures, against=BASELINE))
    return rows


def _attention(
    settings: AttentionSettings, layers: Sequence[tuple[StoredRows, StoredRows]]
) -> CachedAttention:
    return CachedAttention(layers, settings.heads, settings.head_dim**-0.5)


def _plain(shape: tuple[int, int, int], generator: torch.Generator) -> tuple[StoredRows, StoredRows]:
    k, v = (torch.randn(shape, generator=generator).bfloat16() for _ in range(2))
    return StoredRows(k, shape[2]), StoredRows(v, shape[2])


def _coded(
    form: TokenCacheFormat, shape: tuple[int, int, int], generator: torch.Generator
) -> tuple[StoredRows, StoredRows]:
    pair = []
    for bits in form.widths.values():
        rows = empty_rows(*shape, bits)
        store_rows(rows, torch.randn(shape, generator=generator), 0)
        pair.append(rows)
    return pair[0], pair[1]


@torch.inference_mode()
def cache_quality_rows(model: Decoder, windows: Int[Tensor, "windows tokens"]) -> list[Row]:
    """Perplexity with keys and values in 8 bits, 8 and 4, and 4, beside those of the model as they are."""

    def found(form: TokenCacheFormat | None) -> float:
        def logits(ids: Tensor) -> Tensor:
            cache = None if form is None else decoder_cache(model, form, batch=len(ids))
            return model(ids, cache=cache).logits

        return perplexity(logits, windows).ppl

    exact = found(None)
    return [claim.row(baseline=exact, method=found(form)) for form, claim in QUALITY.items()]
