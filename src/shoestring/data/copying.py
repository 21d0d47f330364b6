"""Memory tasks: what came first must be said again later.

Each task is called with the number of a step and gives that step's batch, a function of its seed and the step
alone.

Source: Arjovsky, Shah and Bengio 2016, "Unitary Evolution Recurrent Neural Networks", section 5.1 (copying);
Gu and Dao 2023, "Mamba", section 4.1.1 (selective copying); Voelker, Kajić and Eliasmith 2019, "Legendre
Memory Units", section 3.1 (a delayed signal).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoestring.data.seeded import IGNORED, check_seed, distinct, torch_generator

Tokens = Int[Tensor, "batch length"]


@dataclass(frozen=True)
class Copying:
    """`symbols` tokens, `delay` blanks, then as many marks, at which to say the tokens in their order.

    The tokens come first; `SelectiveCopying` scatters them among the blanks. Token ids: 0
    blank, 1 the mark, 2 .. alphabet + 1 the tokens. The target is the token less 2 at a mark, IGNORED
    elsewhere. Length: 2 · symbols + delay.

    Raises: ValueError for fewer than one symbol, an alphabet below 2 or a delay below 0.
    """

    symbols: int = 10
    delay: int = 100
    alphabet: int = 8
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed, self.batch_size)
        for name, least in (("symbols", 1), ("alphabet", 2), ("delay", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be {least} or more")

    @property
    def vocabulary(self) -> int:
        """How many token ids there are."""
        return self.alphabet + 2

    @property
    def length(self) -> int:
        """Positions of a sample."""
        return 2 * self.symbols + self.delay

    def __call__(self, step: int) -> tuple[Tokens, Tokens]:
        """Tokens and targets of a step."""
        generator = torch_generator(self.seed, step)
        said = torch.randint(self.alphabet, (self.batch_size, self.symbols), generator=generator)
        tokens = torch.zeros(self.batch_size, self.length, dtype=torch.int64)
        targets = torch.full_like(tokens, IGNORED)
        tokens.scatter_(1, self._places(generator), said + 2)
        tokens[:, -self.symbols :] = 1
        targets[:, -self.symbols :] = said
        return tokens, targets

    def _places(self, generator: torch.Generator) -> Tokens:
        return torch.arange(self.symbols).expand(self.batch_size, -1)


@dataclass(frozen=True)
class SelectiveCopying(Copying):
    """Copying of tokens that lie at random places among the blanks: when to remember depends on the input.

    What a layer whose dynamics do not depend on its input cannot do.
    """

    def _places(self, generator: torch.Generator) -> Tokens:
        places = distinct(self.batch_size, self.symbols, self.symbols + self.delay, generator)
        return places.sort(1).values


@dataclass(frozen=True)
class DelayedSignal:
    """A random smooth signal in, the same signal `delay` steps later out.

    The signal is a sum of waves of random phase up to `cutoff` of the highest frequency that `length` steps
    can hold, with root mean square 1. Before the delay has passed the target is 0.

    Raises: ValueError for a delay outside 0 .. length - 1 or a cutoff outside 0 .. 1.
    """

    length: int = 1000
    delay: int = 250
    cutoff: float = 0.1
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed, self.batch_size)
        if not 0 <= self.delay < self.length:
            raise ValueError(f"delay={self.delay} must lie within 0 .. length - 1 = {self.length - 1}")
        if not 0 < self.cutoff <= 1:
            raise ValueError(f"cutoff={self.cutoff} must be above 0 and no more than 1")

    def __call__(self, step: int) -> tuple[Float[Tensor, "batch length 1"], Float[Tensor, "batch length 1"]]:
        """Inputs and targets of a step."""
        generator = torch_generator(self.seed, step)
        waves = max(1, math.floor(self.cutoff * (self.length // 2)))
        parts = torch.zeros(self.batch_size, self.length // 2 + 1, dtype=torch.complex64)
        noise = torch.randn(self.batch_size, waves, 2, generator=generator)
        highest = min(waves, self.length // 2)
        parts[:, 1 : highest + 1] = torch.view_as_complex(noise)[:, :highest]
        signal = torch.fft.irfft(parts, n=self.length).unsqueeze(-1)
        signal = signal / signal.square().mean(1, keepdim=True).sqrt().clamp_min(1e-12)
        return signal, naive_delay(signal, self.delay)


def naive_delay(signal: Float[Tensor, "batch length 1"], delay: int) -> Float[Tensor, "batch length 1"]:
    """y_t = u_(t - delay), and 0 before the signal began."""
    target = torch.zeros_like(signal)
    target[:, delay:] = signal[:, : signal.shape[1] - delay]
    return target


def naive_copy(tokens: Tokens) -> Tokens:
    """The targets of either copying task by reading from left to right with a queue."""
    targets = torch.full_like(tokens, IGNORED)
    for row, line in enumerate(tokens.tolist()):
        queue = [token - 2 for token in line if token > 1]
        for place, token in enumerate(line):
            if token == 1:
                targets[row, place] = queue.pop(0)
    return targets
