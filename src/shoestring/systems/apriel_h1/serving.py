"""The time of a decoded token and the bytes of its cache, with states in place of keys and values.

Random weights and synthetic contents of the caches: the time depends on shapes, not on values.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from shoestring.generation.compiled_batch_runner import batch_runner
from shoestring.generation.decoder_runner import DecoderRunner, decoder_cache
from shoestring.generation.hybrid_cache import HybridCache, StateStore
from shoestring.generation.slot_cache import SlotCache
from shoestring.layers.mamba.grouped_mamba import grouped_mixer
from shoestring.layers.rotary import Rope
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_config import DecoderConfig
from shoestring.models.layer_layout import LayerKind
from shoestring.systems.apriel_h1.claims import (
    CACHE,
    KEYS,
    RATE_60,
    RATE_80,
    RATE_CALL,
    RATE_SHORT,
    RATE_SINGLE,
)
from shoestring.yardstick.comparison import Row
from shoestring.yardstick.timing import InterleavedTimes, time_interleaved


@dataclass(frozen=True, kw_only=True)
class Serving:
    """A decoder's shape, by default that of SmolLM2-135M, and how it is served."""

    layers: int = 30
    hidden: int = 576
    intermediate: int = 1536
    heads: int = 9
    kv_heads: int = 3
    head_dim: int = 64
    vocabulary: int = 49_152
    batch: int = 8
    context: int = 8192
    short_context: int = 2048
    rounds: int = 7

    @property
    def config(self) -> DecoderConfig:
        """All attention."""
        return DecoderConfig(
            vocab_size=self.vocabulary, hidden_size=self.hidden, intermediate_size=self.intermediate,
            num_hidden_layers=self.layers, num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads, head_dim=self.head_dim, windows=(None,) * self.layers,
            ropes=(Rope(100_000.0),) * self.layers, max_position_embeddings=2 * self.context,
            tie_word_embeddings=True,
        )  # fmt: skip


def spread_layout(layers: int, mamba: int) -> tuple[LayerKind, ...]:
    """`mamba` mixers spread evenly over the layers: where they stand does not change the time."""
    places = {(2 * i + 1) * layers // (2 * mamba) for i in range(mamba)}
    return tuple(LayerKind.MAMBA if i in places else LayerKind.ATTENTION for i in range(layers))


def build_models(serving: Serving, seed: int) -> dict[int, Decoder]:
    """By number of mixers, none, 60 % and 80 % of the layers; what is the same is shared."""
    cfg = serving.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        models = {0: Decoder(cfg).requires_grad_(False).eval()}
        weights = models[0].state_dict()
        for mamba in (serving.layers * 3 // 5, serving.layers * 4 // 5):
            own = replace(cfg, layout=spread_layout(serving.layers, mamba))
            kept = dict(weights)
            for index in own.layers_of(LayerKind.MAMBA):
                mixer = grouped_mixer(cfg.hidden_size, cfg.num_attention_heads, cfg.num_key_value_heads,
                                      cfg.head_dim, own.mamba)  # fmt: skip
                for name in [n for n in kept if n.startswith(f"model.layers.{index}.self_attn.")]:
                    del kept[name]
                kept |= {f"model.layers.{index}.mixer.{n}": t for n, t in mixer.state_dict().items()}
            models[mamba] = Decoder.from_weights(own, kept)
    return models


def filled_cache(model: Decoder, batch: int, context: int, seed: int, more: int = 1) -> SlotCache:
    """A cache of the model that holds `context` tokens of noise and has room for `more`."""
    cfg, generator = model.cfg, torch.Generator().manual_seed(seed)
    cache = decoder_cache(model, batch=batch, capacity=context + more)
    shape = batch, cfg.num_key_value_heads, context, cfg.head_dim
    k, v = (torch.randn(shape, generator=generator) for _ in range(2))
    pos = torch.arange(context).expand(batch, -1)
    for layer, store in enumerate(cache.layers):
        if isinstance(store, StateStore):
            assert isinstance(cache, HybridCache)
            noise = {n: torch.randn(t.shape, generator=generator) for n, t in store.state.items()}
            cache.set_state(layer, noise, pos)
        else:
            cache.append(layer, k, v, pos)
    return cache


def decode(runner: DecoderRunner) -> Callable[[], Tensor]:
    """Makes the next token of every sequence; each call sees one slot more."""
    ids = torch.arange(_cache_of(runner).batch)[:, None]

    @torch.inference_mode()
    def step() -> Tensor:
        return runner.feed(ids)

    return step


def _cache_of(runner: DecoderRunner) -> SlotCache:
    assert isinstance(runner.cache, SlotCache)
    return runner.cache


def serving_rows(serving: Serving, seed: int) -> tuple[list[Row], list[str]]:
    """Rows of time and bytes, and notes: what the bytes alone would allow, and from which context on a hybrid
    is faster at all."""
    models = build_models(serving, seed)
    middle, high = sorted(models)[1:]
    batch, context = serving.batch, serving.context
    runners = {str(n): _runner(model, batch, context, serving, seed) for n, model in models.items()}
    caches = {name: _cache_of(runner) for name, runner in runners.items()}
    bytes_rows = [_keys_row(caches["0"], caches[str(middle)]), _cache_row(caches["0"], caches[str(middle)])]
    notes = [
        "caches hold noise and weights are random: the time of a token depends on shapes only",
        *(bytes_note(runners["0"], runners[str(count)], count) for count in (middle, high)),
    ]
    works = {name: decode(runner) for name, runner in runners.items()}
    works["modules"] = decode(DecoderRunner(models[middle], caches[str(middle)].clone()))
    long = _timed(works, serving, seed)
    del works, caches, runners
    short = _pair(models, middle, batch, serving.short_context, serving, seed)
    single = _pair(models, middle, 1, context, serving, seed)
    rows = [
        RATE_60.row(**_times(long, str(middle), "0"), against="attention, one compiled call too"),
        RATE_80.row(**_times(long, str(high), "0"), against="attention, one compiled call too"),
        RATE_CALL.row(**_times(long, str(middle), "modules"), against="the same module by module"),
        RATE_SHORT.row(**_times(short, str(middle), "0"), against=f"attention at {serving.short_context}"),
        RATE_SINGLE.row(**_times(single, str(middle), "0"), against="attention, one sequence"),
    ]
    notes.append(break_even_note(short, long, str(middle), serving))
    return rows + bytes_rows, notes


def read_bytes(runner: DecoderRunner) -> int:
    """Bytes that a token of all sequences reads: the weights once, keys, values and states."""
    cache, weights = runner.cache, {p.data_ptr(): p.nbytes for p in runner.model.parameters()}
    assert isinstance(cache, SlotCache)
    parts, slots = cache.parts(), max(int(cache.length(layer).max()) for layer in range(cache.n_layers))
    held = max(store.table.capacity for store in cache.layers)
    seen = (parts.get("k", 0) + parts.get("v", 0)) * slots // max(1, held)
    return sum(weights.values()) + seen + parts.get("states", 0)


def bytes_note(attention: DecoderRunner, hybrid: DecoderRunner, count: int) -> str:
    """What a step would gain that only read what it must."""
    ratio = read_bytes(attention) / read_bytes(hybrid)
    return f"{count} mixers: by the bytes that a token reads at most {ratio:.2f} times as fast as attention"


def break_even_note(short: InterleavedTimes, long: InterleavedTimes, name: str, serving: Serving) -> str:
    """Where two lines through the times at both contexts meet."""
    contexts = serving.short_context, serving.context
    gains = [times.median("0") - times.median(name) for times in (short, long)]
    slope = (gains[1] - gains[0]) / (contexts[1] - contexts[0])
    if slope <= 0:
        return f"{name} mixers: the gain does not grow from context {contexts[0]} to {contexts[1]}"
    meets = contexts[0] - gains[0] / slope
    if meets <= 0:
        return f"{name} mixers at batch {serving.batch}: faster at any context, by the line through both"
    return f"{name} mixers at batch {serving.batch}: faster from a context of about {meets:.0f} on"


def _runner(model: Decoder, batch: int, context: int, serving: Serving, seed: int) -> DecoderRunner:
    """The fastest there is for a model with `context` tokens of noise in its cache."""
    return batch_runner(model, filled_cache(model, batch, context, seed, more=2 * serving.rounds + 2))


def _pair(
    models: dict[int, Decoder], count: int, batch: int, context: int, serving: Serving, seed: int
) -> InterleavedTimes:
    works = {str(n): decode(_runner(models[n], batch, context, serving, seed)) for n in (0, count)}
    return _timed(works, serving, seed)


def _timed(works: dict[str, Callable[[], Tensor]], serving: Serving, seed: int) -> InterleavedTimes:
    return time_interleaved(works, rounds=serving.rounds, warmup=1, min_sample_seconds=0, seed=seed)


def _times(times: InterleavedTimes, method: str, baseline: str) -> dict[str, Any]:
    return {
        "baseline": times.median(baseline), "method": times.median(method),
        "ratio": times.ratio(method, baseline), "spread": times.interval(method, baseline),
    }  # fmt: skip


def _keys_row(attention: SlotCache, hybrid: SlotCache) -> Row:
    held = [cache.parts()["k"] + cache.parts()["v"] for cache in (attention, hybrid)]
    return KEYS.row(baseline=held[0], method=held[1], against="attention")


def _cache_row(attention: SlotCache, hybrid: SlotCache) -> Row:
    return CACHE.row(baseline=attention.nbytes(), method=hybrid.nbytes(), against="attention")
