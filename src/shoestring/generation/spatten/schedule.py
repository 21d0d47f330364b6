"""How many tokens, or heads, enter each layer: never more in a later one.

Source: Wang et al. 2021, "SpAtten", section III-A and V; the published trace of GPT-2-medium.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class KeepSchedule:
    """counts: how many enter each layer; all of them where there are fewer. what: the counted thing.

    Raises: ValueError for a count below 1 or one that grows with depth, naming the layer.
    """

    counts: tuple[int, ...]
    what: str = "tokens"

    def __post_init__(self) -> None:
        for layer, count in enumerate(self.counts):
            if count < 1:
                raise ValueError(f"layer {layer} is to keep {count} {self.what}; it must be 1 or more.")
            if layer and count > self.counts[layer - 1]:
                raise ValueError(
                    f"layer {layer} is to keep {count} {self.what}, but the layer before "
                    f"{self.counts[layer - 1]}: what is pruned does not come back, so counts never grow."
                )

    def check_layers(self, layers: int) -> None:
        """Raises: ValueError where this is not a schedule of so many layers."""
        if len(self.counts) != layers:
            raise ValueError(
                f"the schedule of {self.what} is of {len(self.counts)} layers, the model has {layers}."
            )

    def __getitem__(self, layer: int) -> int:
        return self.counts[layer]


def count_schedule(counts: Sequence[int], what: str = "tokens") -> KeepSchedule:
    """A schedule from counts. Raises: as `KeepSchedule`."""
    return KeepSchedule(tuple(counts), what)


def share_schedule(shares: Sequence[float], reference: int, what: str = "tokens") -> KeepSchedule:
    """Counts as shares of a reference length.

    Raises: ValueError for a share outside (0, 1] or that grows with depth, naming the layer.
    """
    for layer, share in enumerate(shares):
        if not 0 < share <= 1:
            raise ValueError(f"the share of {what} that layer {layer} keeps is {share}; use (0, 1].")
    return KeepSchedule(tuple(max(1, int(share * reference)) for share in shares), what)


def linear_schedule(
    layers: int,
    reference: int,
    final: float,
    *,
    start: float = 1.0,
    unpruned: int | None = None,
    what: str = "tokens",
) -> KeepSchedule:
    """All in the first `unpruned` layers, then a linear fall from `start` of the reference to `final`, which
    would be reached after the last layer.

    unpruned: layers; by default 15 % of them, rounded. Raises: ValueError for shares outside (0, 1], a rise,
    or more unpruned layers than there are.
    """
    whole = round(0.15 * layers) if unpruned is None else unpruned
    if not 0 <= whole <= layers:
        raise ValueError(f"unpruned={whole} layers, but there are {layers}.")
    falling = max(1, layers - whole + 1)
    shares = [1.0] * whole
    shares += [start + (final - start) * (i + 1) / falling for i in range(layers - whole)]
    return share_schedule(shares, reference, what)


def gpt2_medium_tokens(reference: int = 1024) -> KeepSchedule:
    """Tokens that enter each of the 24 layers in the published trace."""
    return share_schedule([1.0] * 2 + [0.9] + [0.8] * 2 + [0.6] * 6 + [0.3] * 13, reference)


def gpt2_medium_heads() -> KeepSchedule:
    """Heads in each of the 24 layers in the published trace."""
    return KeepSchedule((16,) * 16 + (13,) * 6 + (10,) * 2, "heads")
