"""Tokens a second of both models through compiled steps, each with its best number of threads."""

from collections.abc import Callable
from typing import Any

import torch

from shoestring.generation.decode import generate
from shoestring.models.decoder import Decoder
from shoestring.models.hamburger import Hamburger
from shoestring.systems.hamburger.claims import CONFIDENCE, SPEED
from shoestring.systems.hamburger.quality import JSON_TOKENS, Prompts
from shoestring.yardstick.comparison import Row
from shoestring.yardstick.timing import time_interleaved

PLAIN, GROUPS = "plain", "groups"


def speed_row(
    model: Hamburger, baseline: Decoder, prompts: Prompts, tokenizer: Any, rounds: int
) -> tuple[Row, str]:
    """Both write the records; prompts, what is set up for each text, and the tokens that come with the
    prompt, are part of neither speed. With it a note on threads: one, and as many as there are, are tried."""
    model.confidence = CONFIDENCE
    threads = torch.get_num_threads()
    models: dict[str, Decoder | Hamburger] = {PLAIN: baseline, GROUPS: model}
    counts = sorted({1, threads})
    speeds: dict[str, dict[int, list[float]]] = {name: {count: [] for count in counts} for name in models}

    def write(name: str, count: int) -> Callable[[], None]:
        def work() -> None:
            torch.set_num_threads(count)
            speeds[name][count].append(decoding_speed(models[name], prompts, tokenizer))

        return work

    works = {f"{name}, {count}": write(name, count) for name in models for count in counts}
    try:
        time_interleaved(works, rounds=rounds, warmup=1, min_sample_seconds=0)
    finally:
        torch.set_num_threads(threads)
    measured = {
        name: {count: found[1:] for count, found in by_count.items()} for name, by_count in speeds.items()
    }
    best = {name: max(counts, key=lambda count: _median(measured[name][count])) for name in models}
    theirs, ours = (measured[name][best[name]] for name in (PLAIN, GROUPS))
    ratios = sorted(one / other for one, other in zip(ours, theirs, strict=True))
    row = SPEED.row(
        baseline=_median(theirs), method=_median(ours), ratio=_median(ratios), spread=(ratios[0], ratios[-1])
    )
    tried = "; ".join(
        f"{count}: {_median(measured[PLAIN][count]):.0f} and {_median(measured[GROUPS][count]):.0f}"
        for count in counts
    )
    note = (
        f"{SPEED.metric}: compiled steps in float32 for both, the fastest number of threads for each, "
        f"{best[PLAIN]} and {best[GROUPS]} (by threads, {tried})"
    )
    return row, note


def decoding_speed(model: Decoder | Hamburger, prompts: Prompts, tokenizer: Any) -> float:
    """Tokens a second behind what the prompt's pass gives."""
    outputs = [
        generate(model, prompt, tokenizer, max_new_tokens=JSON_TOKENS) for prompt, _ in prompts.records
    ]
    return sum(len(output.tokens) - output.first_tokens for output in outputs) / sum(
        output.decode_seconds for output in outputs
    )


def _median(values: list[float]) -> float:
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
