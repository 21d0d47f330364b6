"""A speed that is asked for: what it leaves a token's products, and what was learnt from measured steps."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from shoestring.compression.apply import Slot, slots
from shoestring.compression.cache_choice import CacheOption
from shoestring.compression.decode_clock import DecodeClock
from shoestring.compression.profile import Option
from shoestring.compression.solver import Choice

MARGIN = 1.03
"""The plan is for a speed so much higher: a measured step is never quite the predicted one."""

TRUSTED_RATIO = 1.05
"""A predicted step within this factor of the measured one is not corrected."""

LARGEST_CORRECTION = 4.0

WORTHWHILE = 1.1
"""How much faster than asked for a model must be for its time to be divided anew."""


@dataclass(frozen=True)
class SpeedGoal:
    """Tokens a second that decoding must reach, and the clock that tells.

    Raises: ValueError for a number that is no speed.
    """

    tokens_per_second: float | int
    clock: DecodeClock

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tokens_per_second) and self.tokens_per_second > 0):
            raise ValueError(
                f"tokens_per_second={self.tokens_per_second} is no speed; give a number above 0, e.g. 40."
            )


@dataclass(frozen=True)
class Speed:
    """Tokens a second at a context: asked for, predicted by the plan, measured (None: not applied)."""

    wanted: float | int
    context: int
    predicted: float
    measured: float | None

    @property
    def met(self) -> bool:
        """Whether the measured speed is what was asked for; the predicted one where nothing was measured."""
        return (self.predicted if self.measured is None else self.measured) >= self.wanted


class Pace:
    """Predicts the steps of rewritten models, and gets better with every one that was measured."""

    def __init__(self, goal: SpeedGoal, original: nn.Module) -> None:
        self.goal, self.factor = goal, 1.0
        self._slots: dict[str, Slot] = {slot.name: slot for slot in slots(original)}

    def timed(
        self, options: Mapping[str, Sequence[Option]], cache: CacheOption | None
    ) -> dict[str, list[Option]]:
        """The options with the seconds that each is predicted to take, beside this cache."""
        recipe = None if cache is None else cache.recipe
        clock = self.goal.clock
        return {
            name: [
                replace(o, seconds=self.factor * clock.layer_seconds(self._slots[name], o.recipe, recipe))
                for o in own
            ]
            for name, own in options.items()
        }

    def room_seconds(self, cache: CacheOption | None) -> float:
        """What a token's products may take together, by plan; it may be less than nothing."""
        return 1 / (MARGIN * self.goal.tokens_per_second) - self._rest(cache)

    def speed(self, choice: Choice, cache: CacheOption | None, step_seconds: float | None) -> Speed:
        """What a choice is predicted to reach, beside what was measured."""
        measured = None if step_seconds is None else 1 / step_seconds
        predicted = 1 / self._predicted(choice, cache)
        return Speed(self.goal.tokens_per_second, self.goal.clock.context, predicted, measured)

    def learn(self, choice: Choice, cache: CacheOption | None, step_seconds: float) -> bool:
        """Correct the predictions by a measured step, where another division could gain from that.

        That is where a plan that was to reach the speed missed it, however little, or where the prediction
        was off and held the choice back.
        """
        predicted = self._predicted(choice, cache)
        off = not 1 / TRUSTED_RATIO <= step_seconds / predicted <= TRUSTED_RATIO
        wanted = 1 / self.goal.tokens_per_second
        missed = step_seconds > wanted and (predicted <= wanted or off)
        idle = off and step_seconds * WORTHWHILE < wanted and predicted * MARGIN * WORTHWHILE > wanted
        if not (missed or idle) or choice.seconds <= 0:
            return False
        layers = max(step_seconds - self._rest(cache), 0.0)
        ratio = min(max(layers / choice.seconds, 1 / LARGEST_CORRECTION), LARGEST_CORRECTION)
        self.factor *= ratio
        return True

    def _predicted(self, choice: Choice, cache: CacheOption | None) -> float:
        return self._rest(cache) + choice.seconds

    def _rest(self, cache: CacheOption | None) -> float:
        return self.goal.clock.rest_seconds(None if cache is None else cache.recipe)
