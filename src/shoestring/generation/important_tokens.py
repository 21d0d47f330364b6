"""Which tokens of a prompt are important: those that get most of the attention of some of its rows.

How many: as few as hold a share τ of the summed attention a. Which: those with the highest attention per row
that could see them, a/c, since early tokens are seen by more rows.

Source: He et al. 2024, "ZipVL", section 4.1, eq. 6-9; He et al. 2024, "ZipCache", section 4.2 (a/c).
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shoestring.generation.selection import top_k


def probe_rows(n: int, count: int, generator: torch.Generator) -> Int[Tensor, " m"]:
    """Rows of a prompt of `n` tokens to look at, ascending: half of them, rounded up, the most recent, the
    others drawn from the rest without replacement. All rows where `count` is n or more."""
    if count >= n:
        return torch.arange(n)
    recent = recent_rows(n, count)
    drawn = torch.randperm(n - recent, generator=generator)[: count - recent]
    return torch.cat([drawn.sort().values, torch.arange(n - recent, n)])


def recent_rows(n: int, count: int) -> int:
    """How many of the probe rows are there for being the most recent."""
    return -(-min(count, n) // 2)


@dataclass(frozen=True)
class Attended:
    """Sums of attention by column, of one layer of one sequence.

    mass: a, one row for all heads or one per KV head, summing to the number of probe rows. counts: c.
    forced: tokens that are important whatever they get.
    """

    layer: int
    mass: Float[Tensor, "rows n"]
    counts: Int[Tensor, " n"]
    forced: Bool[Tensor, " n"]

    @property
    def normalised(self) -> Float[Tensor, "rows n"]:
        """a/c; −∞ for a token that no row could see."""
        return (self.mass / self.counts.clamp(min=1)).masked_fill(self.counts == 0, -torch.inf)


@runtime_checkable
class TokenChoice(Protocol):
    """Marks the important tokens."""

    def mark(self, attended: Attended) -> Bool[Tensor, "rows n"]:
        """One row of marks for each row of sums."""
        ...


@dataclass(frozen=True)
class TopMass:
    """As few tokens as hold a share `tau` of the attention, but at least `least` and those that are forced.

    The clamp is ours: on small models one token may hold most of the attention. Forced tokens count first.
    Raises: ValueError for tau outside (0, 1], or least below 1.
    """

    tau: float = 0.975
    least: int = 16

    def __post_init__(self) -> None:
        if not 0 < self.tau <= 1:
            raise ValueError(f"tau={self.tau} is a share of the attention; it must be in (0, 1].")
        if self.least < 1:
            raise ValueError(f"least={self.least} tokens must be 1 or more.")

    def needed(self, mass: Float[Tensor, "rows n"]) -> Int[Tensor, " rows"]:
        """p, eq. 6: how many of the largest masses hold the share, before the clamp.

        Raises: FloatingPointError for NaN."""
        if self.tau == 1:
            return torch.full(mass.shape[:1], mass.shape[1], device=mass.device)
        largest = mass.sort(-1, descending=True).values.double()
        held = largest.cumsum(-1)
        if bool(held[:, -1:].isnan().any()):
            raise FloatingPointError("attention by column holds NaN; check the model's weights and inputs.")
        return (held - largest < self.tau * held[:, -1:]).sum(-1)

    def mark(self, attended: Attended) -> Bool[Tensor, "rows n"]:
        """Eq. 8."""
        count = self.needed(attended.mass).clamp(min=max(self.least, int(attended.forced.sum())))
        return top_k(attended.normalised, count, protected=attended.forced[None], what="attention by row")


@dataclass(frozen=True)
class FixedShare:
    """The same share of the tokens in every layer, as FastV and ZipCache keep; ranked like `TopMass`."""

    share: float
    least: int = 16

    def mark(self, attended: Attended) -> Bool[Tensor, "rows n"]:
        """round(share · n) tokens."""
        count = max(self.least, int(attended.forced.sum()), round(self.share * attended.mass.shape[1]))
        return top_k(attended.normalised, count, protected=attended.forced[None], what="attention by row")


@dataclass(frozen=True)
class Shuffled:
    """As many tokens as another choice marks, drawn by chance: the control."""

    choice: TokenChoice
    seed: int = 0

    def mark(self, attended: Attended) -> Bool[Tensor, "rows n"]:
        """Forced tokens stay."""
        generator = torch.Generator().manual_seed(self.seed * 1009 + attended.layer)
        drawn = torch.rand(attended.mass.shape, generator=generator).to(attended.mass.device)
        return top_k(drawn, self.choice.mark(attended).sum(-1), protected=attended.forced[None])


@dataclass(frozen=True)
class UpsideDown:
    """As many tokens as another choice marks, those that get the least: the control that should be worst."""

    choice: TokenChoice

    def mark(self, attended: Attended) -> Bool[Tensor, "rows n"]:
        """Forced tokens stay."""
        count = self.choice.mark(attended).sum(-1)
        return top_k(-attended.normalised, count, protected=attended.forced[None])


def naive_top_mass_count(mass: list[float], tau: float) -> int:
    """p, eq. 6, one token after the other."""
    held, count = 0.0, 0
    for part in sorted(mass, reverse=True):
        if held >= tau * sum(mass):
            break
        held, count = held + part, count + 1
    return len(mass) if tau == 1 else count
