"""Rotary position embeddings on half-split channels, with the scalings that stretch a model's context.

Channel i and channel i + d/2 of a head are the two coordinates of a point that position p turns by the angle
p · f_i, with f_i = base^(−2i/d). (Checkpoints in GGUF of some families pair channels 2i and 2i + 1 instead;
their rows are put in order when they are loaded.)

Source: Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding", section 3.2;
Chen et al. 2023, "Extending Context Window of Large Language Models via Positional Interpolation" (linear);
Peng et al. 2023, "YaRN: Efficient Context Window Extension of Large Language Models", section 3.
"""

import functools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class LinearScaling:
    """All frequencies divided by `factor`."""

    factor: float

    def apply(self, frequencies: Float[Tensor, " half"], base: float) -> Float[Tensor, " half"]:
        """The scaled frequencies."""
        return frequencies / self.factor

    @property
    def gain(self) -> float:
        """What cosines and sines are multiplied by."""
        return 1.0


@dataclass(frozen=True)
class Llama3Scaling:
    """Wavelengths above original/low_freq_factor tokens are stretched by `factor`, those below
    original/high_freq_factor stay, those between are interpolated (as Llama 3.1 was trained)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def apply(self, frequencies: Float[Tensor, " half"], base: float) -> Float[Tensor, " half"]:
        """The scaled frequencies."""
        turns = self.original_max_position_embeddings * frequencies / (2 * math.pi)
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = kept.clamp(0, 1)
        return kept * frequencies + (1 - kept) * frequencies / self.factor

    @property
    def gain(self) -> float:
        """What cosines and sines are multiplied by."""
        return 1.0


@dataclass(frozen=True)
class YarnScaling:
    """Channels that turn at least `beta_fast` times over the original context stay, those that turn at most
    `beta_slow` times are stretched by `factor`, with a ramp over the channels between.

    attention_factor: what cosines and sines are multiplied by; None: 0.1 ln(factor) + 1. truncate: whether
    the ramp ends on whole channels.
    """

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def apply(self, frequencies: Float[Tensor, " half"], base: float) -> Float[Tensor, " half"]:
        """The scaled frequencies."""
        half = frequencies.numel()
        low, high = self._channel(self.beta_fast, base, half), self._channel(self.beta_slow, base, half)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * half - 1)
        width = high - low if high != low else 1e-3
        channels = torch.arange(half, dtype=frequencies.dtype, device=frequencies.device)
        stretched = ((channels - low) / width).clamp(0, 1)
        return frequencies / self.factor * stretched + frequencies * (1 - stretched)

    @property
    def gain(self) -> float:
        """What cosines and sines are multiplied by."""
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

    def _channel(self, turns: float, base: float, half: int) -> float:
        """The channel, as a real number, that turns so often over the original context."""
        return half * math.log(self.original_max_position_embeddings / (turns * 2 * math.pi)) / math.log(base)


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling


@dataclass(frozen=True)
class Rope:
    """The angles of one kind of layer. base: the wavelengths reach from 2π to 2π · base tokens."""

    base: float = 10_000.0
    scaling: RopeScaling | None = None

    def frequencies(self, head_dim: int, device: torch.device | str = "cpu") -> Float[Tensor, " half"]:
        """Radians per token of each pair of channels, fastest first."""
        return _frequencies(self, head_dim, str(device))

    def tables(
        self, pos: Int[Tensor, "batch n"], head_dim: int, dtype: torch.dtype
    ) -> tuple[Float[Tensor, "batch n 1 head_dim"], Float[Tensor, "batch n 1 head_dim"]]:
        """Cosines, and sines with the sign that `rotate` needs, for tokens at these positions."""
        # In float32 whatever the model's type: as all of the ecosystem does, which models are trained with.
        angle = pos[:, :, None, None].float() * self.frequencies(head_dim, pos.device)
        gain = 1.0 if self.scaling is None else self.scaling.gain
        cos, sin = angle.cos() * gain, angle.sin() * gain
        return torch.cat([cos, cos], -1).to(dtype), torch.cat([-sin, sin], -1).to(dtype)


def rotate(
    x: Float[Tensor, "batch n heads head_dim"],
    cos: Float[Tensor, "batch n 1 head_dim"],
    sin: Float[Tensor, "batch n 1 head_dim"],
) -> Float[Tensor, "batch n heads head_dim"]:
    """Turn queries or keys by the angles of `Rope.tables`."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def rotate_heads(
    x: Float[Tensor, "batch heads n head_dim"], position: Int[Tensor, " n"], rope: Rope
) -> Float[Tensor, "batch heads n head_dim"]:
    """`rotate` for heads before positions, all samples at the same positions."""
    cos, sin = rope.tables(position.expand(x.shape[0], -1), x.shape[-1], torch.float32)
    return rotate(x.transpose(1, 2), cos.to(x.dtype), sin.to(x.dtype)).transpose(1, 2)


def naive_rotate(
    x: Float[Tensor, "batch n heads head_dim"],
    pos: Int[Tensor, "batch n"],
    frequencies: Float[Tensor, " half"],
) -> Float[Tensor, "batch n heads head_dim"]:
    """Each pair of channels as a complex number, multiplied by exp(i · position · frequency)."""
    first, second = x.chunk(2, -1)
    turned = torch.complex(first, second) * torch.exp(
        1j * pos[:, :, None, None].to(first.dtype) * frequencies.to(first.dtype)
    )
    return torch.cat([turned.real, turned.imag], -1)


@functools.lru_cache(maxsize=64)
def _frequencies(rope: Rope, head_dim: int, device: str) -> Tensor:
    # Kept beyond this call: a tensor made in inference mode could not take part in training later.
    with torch.inference_mode(False):
        steps = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
        frequencies = 1.0 / rope.base**steps
        return frequencies if rope.scaling is None else rope.scaling.apply(frequencies, rope.base)
