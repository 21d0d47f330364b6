"""Tokens a second of both models through the same compiled engine, in turns."""

from collections.abc import Callable
from typing import Any

from shoestring.generation.decode import generate
from shoestring.models.decoder import Decoder
from shoestring.models.hamburger import Hamburger
from shoestring.systems.hamburger_claims import CONFIDENCE, SPEED
from shoestring.systems.hamburger_quality import JSON_TOKENS, Prompts
from shoestring.yardstick.comparison import Row
from shoestring.yardstick.timing import time_interleaved


def speed_row(model: Hamburger, baseline: Decoder, prompts: Prompts, tokenizer: Any, rounds: int) -> Row:
    """Both write the records; prompts, and what is set up for each text, are part of neither time."""
    model.confidence = CONFIDENCE
    speeds: dict[str, list[float]] = {"plain": [], "groups": []}

    def write(name: str, one: Decoder | Hamburger) -> Callable[[], None]:
        def work() -> None:
            outputs = [
                generate(one, prompt, tokenizer, max_new_tokens=JSON_TOKENS) for prompt, _ in prompts.records
            ]
            seconds = sum(output.decode_seconds for output in outputs)
            # The first token is the prompt's work for both.
            speeds[name].append((sum(len(output.tokens) for output in outputs) - len(outputs)) / seconds)

        return work

    works = {"plain": write("plain", baseline), "groups": write("groups", model)}
    time_interleaved(works, rounds=rounds, warmup=1, min_sample_seconds=0)
    ratios = sorted(
        ours / theirs for ours, theirs in zip(speeds["groups"][1:], speeds["plain"][1:], strict=True)
    )
    return SPEED.row(
        baseline=_median(speeds["plain"][1:]),
        method=_median(speeds["groups"][1:]),
        ratio=_median(ratios),
        spread=(ratios[0], ratios[-1]),
    )


def _median(values: list[float]) -> float:
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
