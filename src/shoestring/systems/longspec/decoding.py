"""Decoding with and without a draft behind one reading of the prompt, in turns."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from shoestring.generation.decode_steps import DecodeSteps
from shoestring.generation.decoder_runner import DecoderRunner
from shoestring.generation.runner import make_runner
from shoestring.generation.sampling import Sampling
from shoestring.generation.slot_cache import SlotCache
from shoestring.generation.speculation.draft import Speculation
from shoestring.generation.speculation.speculative_steps import SpeculativeSteps
from shoestring.kernels.grouped_linear import Activations
from shoestring.models.decoder import Decoder

CHUNK = 1024
PLAIN = None


@dataclass(frozen=True)
class Decoded:
    """One output. seconds, passes: of all tokens after the first, which is the prompt's work."""

    tokens: list[int]
    seconds: float
    passes: int


class Prompt:
    """A prompt that is read once; outputs begin behind it as often as is asked."""

    def __init__(
        self, model: Decoder, ids: Int[Tensor, " tokens"], new_tokens: int,
        activations: Activations = Activations.FLOAT32,
    ) -> None:  # fmt: skip
        self.ids, self.new_tokens = ids.tolist(), new_tokens
        runner = make_runner(model, capacity=len(ids) + new_tokens, activations=activations)
        assert isinstance(runner, DecoderRunner)
        assert isinstance(runner.cache, SlotCache)
        self.runner, self.cache = runner, runner.cache
        with torch.inference_mode():
            for part in ids[None].split(CHUNK, 1):
                self.logits = runner.feed(part.to(runner.device))
        self.read = self.cache.mark()

    def decode(self, speculation: Speculation | None) -> Decoded:
        """Greedily, to `new_tokens`; what the cache gained is dropped again."""
        generator = torch.Generator(self.runner.device).manual_seed(0)
        arguments = self.runner, self.ids, Sampling(), generator, self.new_tokens, CHUNK
        steps = DecodeSteps(*arguments) if speculation is None else SpeculativeSteps(speculation, *arguments)
        steps.go_on(self.logits)
        tokens = self._step(steps)
        start = time.perf_counter()
        while len(tokens) < self.new_tokens:
            tokens += self._step(steps)
        if self.runner.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        self.cache.rollback(self.read)
        return Decoded(tokens, seconds, steps.passes)

    @staticmethod
    def _step(steps: DecodeSteps) -> list[int]:
        tokens = steps.step(())
        steps.keep(len(tokens))
        return tokens


@dataclass
class Race:
    """Outputs of several ways to decode, for each prompt and round."""

    outputs: dict[str, list[Decoded]] = field(default_factory=dict)

    def run(self, prompt: Prompt, ways: Mapping[str, Speculation | None], rounds: int) -> None:
        """All ways in turns, the order reversed every other round; the first outputs only warm up."""
        names = list(ways)
        for turn in range(rounds + 1):
            for name in names if turn % 2 else reversed(names):
                output = prompt.decode(ways[name])
                if turn:
                    self.outputs.setdefault(name, []).append(output)

    def speeds(self, way: str, against: str) -> list[float]:
        """Tokens per second of one way over those of another, for each pair of outputs."""
        pairs = zip(self.outputs[way], self.outputs[against], strict=True)
        return [other.seconds / one.seconds for one, other in pairs]

    def tokens_per_second(self, way: str) -> float:
        """Median over outputs."""
        return statistics.median((len(one.tokens) - 1) / one.seconds for one in self.outputs[way])

    def tokens_per_pass(self, way: str) -> float:
        """Of all outputs together."""
        outputs = self.outputs[way]
        return sum(len(one.tokens) - 1 for one in outputs) / sum(one.passes for one in outputs)

    def same_text(self, way: str, against: str) -> tuple[int, int]:
        """(outputs that are equal, outputs)."""
        pairs = list(zip(self.outputs[way], self.outputs[against], strict=True))
        return sum(one.tokens == other.tokens for one, other in pairs), len(pairs)


@torch.inference_mode()
def race(
    model: Decoder,
    prompts: Sequence[Int[Tensor, " tokens"]],
    ways: Mapping[str, Speculation | None],
    new_tokens: int,
    rounds: int,
    activations: Activations = Activations.FLOAT32,
) -> Race:
    """All ways behind all prompts."""
    found = Race()
    for ids in prompts:
        found.run(Prompt(model, ids, new_tokens, activations), ways, rounds)
    return found
