"""Serving in a fixed memory: what keys and values in 8 or 4 bits bring over 16, in the same engine."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from shoestring.errors import NoCompiler
from shoestring.kernels.grouped_linear import Activations
from shoestring.models.decoder import Decoder
from shoestring.numbers.block_format import BlockFormat
from shoestring.numbers.token_cache_format import TokenCacheFormat
from shoestring.serving import (
    ChunkedPrefill,
    Emit,
    Engine,
    EngineSettings,
    RequestTimes,
    plan_memory,
    summarise,
)
from shoestring.systems.card import Claim
from shoestring.yardstick.comparison import Row
from shoestring.yardstick.timing import time_interleaved

WORKLOAD = "SmolLM2-135M in 4 bits, 64 synthetic requests at once in one fixed memory, blocks of 16 tokens"
ADMITTED = Claim(
    text="lower bits of keys and values give so many more blocks, hence larger batches",
    figure="4x fewer bits, scales and offsets apart",
    setting=f"{WORKLOAD}; bar: exact at 64 channels, blocks rounded down",
    metric="tokens that the memory holds, KV4 against KV16",
    kind="memory",
    unit="tokens",
    better="higher",
    bar=3.5,
)
THROUGHPUT = Claim(
    text="requests a second rise with the batch",
    figure="KV int4: 1.39x requests a second",
    setting=f"{WORKLOAD}; the paper: Llama-2-7B, batch 256, one GPU",
    metric="time to serve all requests, KV4 against KV16",
    kind="time",
    unit="s",
    better="lower",
    paper_ratio=1 / 1.39,
    bar=1 / 1.2,
)
FORMS = {"KV16": BlockFormat(16), "KV4": BlockFormat(16, TokenCacheFormat(4, 4))}


@dataclass(frozen=True)
class ServingSettings:
    """The requests, and the memory: weights, buffers and `wide_tokens` tokens of keys and values in 16 bits.

    prompt, output: least and most tokens, drawn evenly. rounds: how often both formats serve all requests,
    once more to warm up.
    """

    requests: int = 64
    prompt: tuple[int, int] = (16, 48)
    output: tuple[int, int] = (8, 32)
    wide_tokens: int = 208
    rounds: int = 3
    policy: ChunkedPrefill = field(default_factory=ChunkedPrefill)


@dataclass(frozen=True)
class _Job:
    prompt: list[int]
    new_tokens: int


@dataclass
class _Served:
    """What one pass over all requests was like."""

    most_tokens: int
    most_sequences: int
    preemptions: int
    metrics: dict[str, int | float]


def serving_rows(
    model: Decoder, ids: Int[Tensor, " tokens"], settings: ServingSettings, seed: int
) -> tuple[list[Row], list[str]]:
    """Rows of admitted tokens and of time, and notes. ids: text that prompts are cut from.

    Raises: ValueError where the text is no longer than a prompt; NoCompiler where the model has no compiled
    step, because sequences one by one would say nothing about batches.
    """
    jobs = _jobs(ids, settings, seed)
    engines = _engines(model, settings)
    last: dict[str, _Served] = {}

    def work(name: str) -> Any:
        return lambda: last.__setitem__(name, _serve(engines[name], jobs))

    timed = time_interleaved(
        {name: work(name) for name in engines}, rounds=settings.rounds, warmup=1, min_sample_seconds=0
    )
    tokens = {name: engine.plan.tokens for name, engine in engines.items() if engine.plan}
    plan = engines["KV4"].plan
    assert plan is not None
    narrow = plan_memory(
        model.cfg, plan.budget_bytes, BlockFormat(16, TokenCacheFormat(8, 8)), torch.float16,
        weights_bytes=plan.weights_bytes, buffers_bytes=plan.buffers_bytes,
    )  # fmt: skip
    rows = [
        ADMITTED.row(baseline=tokens["KV16"], method=tokens["KV4"]),
        THROUGHPUT.row(
            baseline=timed.median("KV16"),
            method=timed.median("KV4"),
            ratio=timed.ratio("KV4", "KV16"),
            spread=timed.interval("KV4", "KV16"),
        ),
        Row(metric="tokens that the memory holds, KV8", kind="memory", unit="tokens", better="higher",
            baseline=tokens["KV16"], method=narrow.tokens, against="KV16"),
    ]  # fmt: skip
    return rows, _notes(engines, last, jobs)


def _notes(engines: dict[str, Engine], served: dict[str, _Served], jobs: Sequence[_Job]) -> list[str]:
    plan = engines["KV16"].plan
    assert plan is not None
    out = sum(job.new_tokens for job in jobs)
    notes = [
        f"{len(jobs)} requests arrive at once: {sum(len(job.prompt) for job in jobs)} tokens of prompts, "
        f"{out} new ones; memory {plan.budget_bytes / 2**20:.1f} MiB, of which weights "
        f"{plan.weights_bytes / 2**20:.1f} and buffers {plan.buffers_bytes / 2**20:.1f}"
    ]
    for name, found in served.items():
        notes.append(
            f"{name}: at most {found.most_sequences} requests and {found.most_tokens} tokens at a time, "
            f"{found.preemptions} preempted, {found.metrics['output_throughput']:.0f} tokens/s, TTFT "
            f"{found.metrics['p50_ttft']:.2f} s and ITL {1000 * found.metrics['p50_itl']:.0f} ms (medians)"
        )
    return notes


def _jobs(ids: Int[Tensor, " tokens"], settings: ServingSettings, seed: int) -> list[_Job]:
    if len(ids) <= settings.prompt[1]:
        raise ValueError(f"{len(ids)} tokens of text are no more than a prompt of {settings.prompt[1]}.")
    draw, text = random.Random(seed), ids.tolist()
    jobs = []
    for _ in range(settings.requests):
        length, new = draw.randint(*settings.prompt), draw.randint(*settings.output)
        start = draw.randrange(len(text) - length)
        jobs.append(_Job(text[start : start + length], new))
    return jobs


def _engines(model: Decoder, settings: ServingSettings) -> dict[str, Engine]:
    def made(form: BlockFormat, n_blocks: int | None = None, memory_bytes: int | None = None) -> Engine:
        # Every pass brings the same prompts: shared blocks would make all but the first one free.
        how = EngineSettings(form, torch.float16, Activations.INT8, settings.policy, share_prefixes=False)
        return Engine(model, n_blocks=n_blocks, memory_bytes=memory_bytes, settings=how)

    probe = made(FORMS["KV16"], n_blocks=1)
    if probe.compiled is False:
        raise NoCompiler("the model has no compiled step for many sequences")
    cfg = model.cfg
    token = FORMS["KV16"].token_bytes(cfg.num_key_value_heads, cfg.head_dim, torch.float16)
    kept = settings.wide_tokens * token * cfg.num_hidden_layers
    budget = probe.weights_bytes + probe.buffers_bytes + kept
    return {name: made(form, memory_bytes=budget) for name, form in FORMS.items()}


def _serve(engine: Engine, jobs: Sequence[_Job]) -> _Served:
    pool, clock = engine.scheduler.pool, engine.clock
    before, times = engine.preemptions, {}
    for number, job in enumerate(jobs):
        times[str(number)] = RequestTimes(clock())
        engine.add(str(number), job.prompt, job.new_tokens, stop_tokens=())
    found = _Served(0, 0, 0, {})
    while engine.busy:
        found.most_tokens = max(found.most_tokens, pool.manager.used * pool.manager.slots)
        found.most_sequences = max(found.most_sequences, len(pool.running))
        for message in engine.step():
            if isinstance(message, Emit):
                times[message.rid].tokens.append(clock())
    found.preemptions, found.metrics = engine.preemptions - before, summarise(times.values())
    return found
