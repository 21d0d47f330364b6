"""What a model takes and what it can do, measured alike before and after it was fitted."""

import copy
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from shoestring.generation.decode import generate
from shoestring.generation.text_stream import Tokenizer
from shoestring.yardstick.language_quality import Divergence, divergences
from shoestring.yardstick.memory import LiveMemory

PROMPT_TOKENS = 64
NEW_TOKENS = 48


@dataclass(frozen=True)
class Measured:
    """One state of a model.

    disk_bytes: of the weights as a file. peak_bytes: most bytes of live tensors (weights, cache,
    activations) while generating. tokens_per_second: decoding, batch 1, the median of several runs taken in
    turn with the other states; None where the model sees too few tokens to be timed. quality: divergence from
    the model as shipped on held-out text. sample: how the model goes on from the prompt, taking the likeliest
    token each time.
    """

    name: str
    disk_bytes: int
    peak_bytes: int
    tokens_per_second: float | None
    quality: Divergence
    sample: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class State:
    """A model to be measured, and what its file takes."""

    name: str
    model: nn.Module
    disk_bytes: int


def measure_states(
    states: Sequence[State],
    original: nn.Module,
    tokenizer: Tokenizer,
    windows: Int[Tensor, "windows tokens"],
    *,
    autocast: torch.dtype | None,
    rounds: int = 3,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Measured]:
    """Measure every state on the same held-out windows and the same prompt, the first tokens of these.

    Speeds are taken in turn, `rounds` times each.
    """
    # Half a window at most, so that there is room to go on where the model sees little.
    prompt = windows[0, : min(PROMPT_TOKENS, windows.shape[1] // 2)].tolist()
    memory, samples = {}, {}
    speeds: dict[str, list[float]] = {state.name: [] for state in states}
    for state in states:
        with torch.inference_mode(), LiveMemory(state.model) as live:
            result = generate(state.model, prompt, tokenizer, max_new_tokens=NEW_TOKENS, stop_tokens=())
        memory[state.name], samples[state.name] = live.peak_bytes, result.text
    for _ in range(rounds):
        for state in states:
            run = generate(state.model, prompt, tokenizer, max_new_tokens=NEW_TOKENS, stop_tokens=())
            if run.tokens_per_second:
                speeds[state.name].append(run.tokens_per_second)
    report = None if progress is None else (lambda done, total: progress("quality", done, total))
    qualities = divergences(
        [_in_arithmetic_of(original, state.model) for state in states],
        original,
        windows,
        autocast=autocast,
        progress=report,
    )
    return [
        Measured(
            name=state.name,
            disk_bytes=state.disk_bytes,
            peak_bytes=memory[state.name],
            tokens_per_second=statistics.median(speeds[state.name]) if speeds[state.name] else None,
            quality=quality,
            sample=samples[state.name],
        )
        for state, quality in zip(states, qualities, strict=True)
    ]


def _in_arithmetic_of(original: nn.Module, model: nn.Module) -> nn.Module:
    """The model with its weights as they are but computing in the original's type, as every other state does.

    Under autocast a processor may not even have the mixture: LayerNorm refuses float16 weights for float32.
    """
    dtype = next(original.parameters()).dtype
    if next(model.parameters()).dtype == dtype:
        return model
    return copy.deepcopy(model).to(dtype)
