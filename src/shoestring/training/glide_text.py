"""Text for training a draft: a prompt, what the target writes after it, and all that the target says of both.

It is made once, in large batches, and kept in a folder.

The target's last keys and values and its normalised last states are stored beside the tokens: they are what a
draft reads and what it is to predict, so that a training step runs the draft alone.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from shoestring.data.seeded import torch_generator
from shoestring.files import replacing_file
from shoestring.generation.decoder_runner import decoder_cache
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_step import Want

MOST_SINKS = 4
FARTHEST = 30_000
"""Of the published code; a target of fewer positions sets its own limit."""
RESERVED = 1000
"""Positions at the end of a target's range that are not trained."""
PREFILL_TOKENS = 4096
"""Tokens of a prompt, of all samples together, in one forward pass."""
STATES = Want(logits=None, hidden=("norm",))


@dataclass(frozen=True)
class Writing:
    """samples: written at once. prompt, written: tokens of each. temperature: 0 for the likeliest tokens.

    offset: the tokens behind a few anchors stand at far positions.
    """

    samples: int
    prompt: int
    written: int
    temperature: float = 0.0
    offset: bool = True

    @property
    def length(self) -> int:
        """Tokens of a sample."""
        return self.prompt + self.written


@dataclass(frozen=True)
class Written:
    """Samples of equal length, at the positions `pos`.

    states: the target's, after its final norm: the head on that of token t predicts token t + 1. keys,
    values: of its last layer.
    """

    ids: Int[Tensor, "samples length"]
    pos: Int[Tensor, " length"]
    keys: Float[Tensor, "samples kv_heads length dim"]
    values: Float[Tensor, "samples kv_heads length dim"]
    states: Float[Tensor, "samples length hidden"]

    def take(self, rows: slice) -> "Written":
        """Some of the samples."""
        return Written(self.ids[rows], self.pos, self.keys[rows], self.values[rows], self.states[rows])


def anchor_offset_positions(
    length: int, max_positions: int, generator: torch.Generator
) -> Int[Tensor, " length"]:
    """0, 1, … for the first `sink` tokens, then `offset` + i for token i: sink and offset are drawn.

    Raises: ValueError for a length that the positions do not hold.
    Source: Yang et al. 2025, "LongSpec", section 3.2.
    """
    if not 1 <= length <= max_positions:
        raise ValueError(f"length={length} must be 1 to max_positions={max_positions}.")
    sink = int(torch.randint(MOST_SINKS + 1, (), generator=generator))
    room = max(min(FARTHEST, max_positions - RESERVED) - length, 0)
    offset = int(torch.randint(room + 1, (), generator=generator))
    index = torch.arange(length)
    return torch.where(index < sink, index, offset + index)


@torch.no_grad()
def write(
    target: Decoder, prompts: Int[Tensor, " tokens"], writing: Writing, generator: torch.Generator
) -> Written:
    """Samples whose prompts begin anywhere in `prompts`.

    Raises: ValueError for prompts that are no longer than one sample's, or positions that do not hold one.
    """
    if len(prompts) <= writing.prompt:
        raise ValueError(f"{len(prompts)} tokens of prompts; a sample takes {writing.prompt} and more.")
    start = torch.randint(len(prompts) - writing.prompt, (writing.samples, 1), generator=generator)
    ids = prompts[start + torch.arange(writing.prompt)]
    most = target.cfg.max_position_embeddings or FARTHEST
    if writing.offset:
        pos = anchor_offset_positions(writing.length, most, generator)
    else:
        pos = torch.arange(writing.length)
    cache = decoder_cache(target, batch=writing.samples, capacity=writing.length)
    states, at = [], 0
    for part in ids.split(max(1, PREFILL_TOKENS // writing.samples), 1):
        here = pos[at : at + part.shape[1]].expand(part.shape)
        states.append(target(part, here, cache, want=STATES).hidden["norm"])
        at += part.shape[1]
    while ids.shape[1] < writing.length:
        new = _next(target.lm_head(states[-1][:, -1]).float(), writing.temperature, generator)
        ids = torch.cat([ids, new], 1)
        states.append(target(new, cache=cache, want=STATES).hidden["norm"])
    view = cache.view(target.cfg.num_hidden_layers - 1)
    return Written(ids, pos, view.k.contiguous(), view.v.contiguous(), torch.cat(states, 1))


def _next(
    logits: Float[Tensor, "samples vocab"], temperature: float, generator: torch.Generator
) -> Int[Tensor, "samples 1"]:
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)


@dataclass(frozen=True)
class GlideText:
    """Batches of `shards` files of written text, each made when it is first asked for.

    Shard i is a function of the target, the prompts, the seed and i alone, written as `kinds` say in turn; a
    step takes one part in `steps_per_shard` of one shard, and after the last shard the first comes again.
    """

    target: Decoder
    prompts: Int[Tensor, " tokens"]
    kinds: Sequence[Writing]
    shards: int
    folder: Path
    steps_per_shard: int = 8
    seed: int = 0

    def __call__(self, step: int) -> Written:
        """The samples of one step."""
        shard = self.shard(step // self.steps_per_shard % self.shards)
        rows = len(shard.ids) // self.steps_per_shard
        first = step % self.steps_per_shard * rows
        return shard.take(slice(first, first + rows))

    def shard(self, number: int) -> Written:
        """All samples of one shard."""
        file = self._file(number)
        if not file.is_file():
            made = write(
                self.target, self.prompts, self.kinds[number % len(self.kinds)],
                torch_generator(self.seed, number),
            )  # fmt: skip
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing_file(file) as place:
                save_file(vars(made), place)
        return Written(**load_file(file))

    def seconds_to_write(self) -> float:
        """About how long the shards that are not there yet will take here, by a short trial."""
        missing = [number for number in range(self.shards) if not self._file(number).is_file()]
        if not missing:
            return 0.0
        token, step = self._trial()
        kinds = [self.kinds[number % len(self.kinds)] for number in missing]
        return sum(kind.samples * kind.prompt * token + kind.written * step for kind in kinds)

    def _trial(self) -> tuple[float, float]:
        """Seconds for a token of a prompt, and for a token that is written in all samples."""
        samples = self.kinds[0].samples
        prompt = min(64, len(self.prompts) - 1)
        seconds = []
        for written in (1, 9):
            start = time.perf_counter()
            write(self.target, self.prompts, Writing(samples, prompt, written), torch_generator(self.seed))
            seconds.append(time.perf_counter() - start)
        return seconds[0] / (samples * prompt), max(0.0, seconds[1] - seconds[0]) / 8

    def _file(self, number: int) -> Path:
        return self.folder / f"{number}.safetensors"

    def name(self) -> str:
        """Of the folder that such text may be kept in: what it depends on, but for the target."""
        return repr(([asdict(kind) for kind in self.kinds], self.prompts.tolist(), self.seed))
