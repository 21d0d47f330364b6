"""How many drafted tokens to verify: as many as make the text come fastest, by what was measured so far.

With odds a₁ that the first drafted token is accepted and a that a later one is after it, n tokens add
E(n) = 1 + a₁ (1 + a + … + aⁿ⁻¹) to the text, and take t(n). The n with the largest E(n) / t(n) is chosen; 0
is plain decoding. Of all n only 1, 3, 7, … are looked at: with the token before them they fill the tiles that
kernels take rows in, and fewer lengths are sooner measured.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

MEMORY = 0.9
"""How much of what was seen of a kind of drafts still counts one draft later."""
STEP_PRIOR = 0.15
"""What verifying one more token is thought to cost, in plain steps, before it is measured."""

RETRY_STEPS = 32
"""Plain steps after which one drafted token is tried again where nothing else tells whether it would do."""


@runtime_checkable
class LengthRule(Protocol):
    """Decides how much to draft, and hears what came of it."""

    def fresh(self) -> "LengthRule":
        """The same rule, with nothing measured, for a new text."""
        ...

    def choose(self, kind: int, most: int) -> int:
        """Tokens to verify of a draft of this kind, 0 to `most`."""
        ...

    def record(self, kind: int, drafted: int, accepted: int, rejected: bool) -> None:
        """Of a draft so many tokens were right; `rejected`: the next one was wrong, else it is not known."""
        ...

    def took(self, drafted: int, seconds: float) -> None:
        """A step with so many drafted tokens, drafting and verification together, took so long."""
        ...


@dataclass(frozen=True)
class FixedLength:
    """Always all that is drafted."""

    def fresh(self) -> "FixedLength":
        """Itself: nothing is measured."""
        return self

    def choose(self, kind: int, most: int) -> int:
        """All."""
        return most

    def record(self, kind: int, drafted: int, accepted: int, rejected: bool) -> None:
        """Nothing is learned."""

    def took(self, drafted: int, seconds: float) -> None:
        """Nothing is learned."""


@dataclass
class _Odds:
    """Right and tried guesses, the newest counting most; the prior counts as `weight` guesses."""

    right: float
    tried: float = 1.0

    def see(self, right: bool) -> None:
        self.right = MEMORY * self.right + right
        self.tried = MEMORY * self.tried + 1

    @property
    def value(self) -> float:
        return self.right / self.tried


@dataclass
class MeasuredLength:
    """By the time that steps took and the tokens that were accepted.

    first_odds: of a first drafted token, before anything is known. A draft is only verified where it is
    expected to gain more than `least_gain` over a plain step.
    """

    first_odds: float = 0.6
    later_odds: float = 0.7
    least_gain: float = 0.05
    _first: dict[int, _Odds] = field(default_factory=dict)
    _later: dict[int, _Odds] = field(default_factory=dict)
    _seconds: dict[int, float] = field(default_factory=dict)
    _samples: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    _unheard: int = 0

    def fresh(self) -> "MeasuredLength":
        """The same settings, with nothing measured."""
        return MeasuredLength(self.first_odds, self.later_odds, self.least_gain)

    def choose(self, kind: int, most: int) -> int:
        """The length with the largest expected speed; 0 until plain steps are measured."""
        if self._samples[0] < 2 or most == 0:
            return 0
        self._unheard += 1
        if self._unheard > RETRY_STEPS:
            return 1
        plain = self._time(0)
        first, later = self._odds(self._first, kind).value, self._odds(self._later, kind).value
        best, best_speed, tokens, more = 0, (1 + self.least_gain) / plain, 1.0, first
        for n in range(1, most + 1):
            tokens, more = tokens + more, more * later
            if (n & (n + 1) == 0 or n == most) and (speed := tokens / self._time(n)) > best_speed:
                best, best_speed = n, speed
        return best

    def record(self, kind: int, drafted: int, accepted: int, rejected: bool) -> None:
        """Update the odds of this kind."""
        if drafted == 0:
            return
        self._unheard = 0
        first, later = self._odds(self._first, kind), self._odds(self._later, kind)
        if accepted or rejected:
            first.see(accepted > 0)
        for _ in range(accepted - 1):
            later.see(True)
        if accepted and rejected:
            later.see(False)

    def took(self, drafted: int, seconds: float) -> None:
        """Update the time of steps with so many tokens; the first of each only warms up."""
        self._samples[drafted] += 1
        if self._samples[drafted] == 1:
            return
        known = self._seconds.get(drafted)
        # What disturbs a shared machine only ever makes a step slower: a slow one counts little.
        weight = 0.5 if known is not None and seconds < known else 0.1
        self._seconds[drafted] = (
            seconds if known is None else known + weight * (min(seconds, 2 * known) - known)
        )
        for other in self._seconds.keys() - {0, drafted}:
            # What has not been tried for long may have changed.
            self._seconds[other] += 0.01 * (self._guess(other) - self._seconds[other])

    def _odds(self, table: dict[int, _Odds], kind: int) -> _Odds:
        if kind not in table:
            prior = self.first_odds if table is self._first else self.later_odds
            table[kind] = _Odds(prior)
        return table[kind]

    def _time(self, drafted: int) -> float:
        return self._seconds.get(drafted) or self._guess(drafted)

    def _guess(self, drafted: int) -> float:
        return self._seconds[0] * (1 + STEP_PRIOR * drafted)
