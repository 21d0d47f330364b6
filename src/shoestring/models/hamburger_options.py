"""What a HAMburger adds to its base, in numbers, and when its groups end."""

import math
from collections.abc import Collection
from dataclasses import dataclass

MOST_CONFIDENCE = 1.01
"""Above 1: no follower is ever trusted, every group has one token."""


def even_features(layers: int, count: int) -> tuple[int, ...]:
    """The layers after which states are taken: ⌈i · layers / count⌉ − 1 for i = 1 … count, the last one
    normalised.

    Raises: ValueError for more features than layers, or none.
    """
    if not 1 <= count <= layers:
        raise ValueError(f"{count} features of {layers} layers; give 1 to {layers}.")
    return tuple(math.ceil(i * layers / count) - 1 for i in range(1, count + 1))


@dataclass(frozen=True)
class HamburgerOptions:
    """The trained parts. The defaults are those of the published model of 16 layers.

    max_steps: tokens of a group at most (S). features: layers of the base whose states the micro decoder
    reads, ascending; that of the base's last layer is taken after the final norm. micro_layers: of the micro
    decoder. merge_head_size: channels of each head that merges a group. output_norm: the micro decoder ends
    with a norm of its own before the head; the published one does not.

    Raises: ValueError for a number below 1, or features that are repeated or do not ascend.
    """

    features: tuple[int, ...] = (3, 7, 11, 15)
    max_steps: int = 4
    micro_layers: int = 4
    merge_head_size: int = 32
    output_norm: bool = False

    def __post_init__(self) -> None:
        for name in ("max_steps", "micro_layers", "merge_head_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more.")
        if not self.features or min(self.features) < 0:
            raise ValueError(f"features={self.features}: name at least one layer, counted from 0.")
        if len(set(self.features)) < len(self.features):
            raise ValueError(f"features={self.features} repeats a layer; name each once.")
        if list(self.features) != sorted(self.features):
            raise ValueError(f"features={self.features} must ascend.")

    def check_fits(self, layers: int, hidden_size: int) -> None:
        """Raises: ValueError for a base of too few layers, whose last layer is no feature, or whose width
        does not split in heads."""
        if self.features[-1] != layers - 1:
            raise ValueError(
                f"features={self.features} of a base of {layers} layers: the last one must be "
                f"{layers - 1}, whose normalised state gives the first token of a group."
            )
        if hidden_size % 2 or hidden_size % self.merge_head_size:
            raise ValueError(
                f"hidden_size={hidden_size} must be even and a multiple of merge_head_size="
                f"{self.merge_head_size}."
            )


def check_confidence(confidence: float | None) -> None:
    """Raises: ValueError outside 0 … 1.01; None stands for a stop where it is likelier than not."""
    if confidence is not None and not 0 <= confidence <= MOST_CONFIDENCE:
        raise ValueError(
            f"confidence={confidence} must be 0 (groups as long as they may be) to {MOST_CONFIDENCE} (one "
            "token each), or None."
        )


def stops(stop_logit: float, confidence: float | None) -> bool:
    """Whether a group ends: 1 − p_stop < confidence, in double precision as it is a threshold."""
    if confidence is None:
        return stop_logit > 0
    # 1 − sigmoid(x) = sigmoid(−x), exact for large x where 1 − p is not.
    return _sigmoid(-stop_logit) < confidence


def check_groups(sizes: Collection[int], length: int, max_steps: int, where: str = "the response") -> None:
    """Raises: ValueError for groups that are empty, too large, or do not sum to the length."""
    if sum(sizes) != length:
        raise ValueError(
            f"{where}: groups {list(sizes)} sum to {sum(sizes)}; the response has {length} tokens."
        )
    if bad := [size for size in sizes if not 1 <= size <= max_steps]:
        raise ValueError(f"{where}: a group of {bad[0]} tokens; groups have 1 to max_steps={max_steps}.")


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
