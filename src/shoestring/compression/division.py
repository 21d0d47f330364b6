"""Divides one budget over the weights of one model, tries the result, and learns from it."""

import copy
from collections.abc import Sequence

from torch import Tensor, nn

from shoestring.compression.apply import apply, slots, stored_bytes
from shoestring.compression.cache_choice import CacheOption
from shoestring.compression.file_size import file_bytes
from shoestring.compression.fitted import Attempt, FitSettings, Fitted, Progress
from shoestring.compression.profile import Option, Profile
from shoestring.compression.refinement import corrected, corrections, marginal_losses
from shoestring.compression.solver import BudgetTooSmall, Choice, TooSlow, fastest, solve
from shoestring.compression.speed import Pace, Speed
from shoestring.compression.weight_matrix import weight_matrix
from shoestring.yardstick.language_quality import divergence

HEADER_MARGIN_BYTES = 4096
"""Kept free for the digits that a file's header needs more than a similar one."""

TRUSTED_RATIO = 1.25
"""A prediction within this factor of what was measured is not corrected."""

Divided = tuple[Choice, CacheOption | None, bool]
"""A choice for the weights, one for the cache, and whether they are predicted to meet what was asked for."""


class BudgetDivision:
    """The problem: bytes (None: as many as it takes), a pace where a speed is asked for, and the caches among
    which to choose where they are counted."""

    def __init__(
        self,
        original: nn.Module,
        known: Profile,
        budget_bytes: int | None,
        caches: Sequence[CacheOption],
        verification: Tensor,
        settings: FitSettings,
        say: Progress,
        pace: Pace | None = None,
    ) -> None:
        self.original, self.known, self.budget_bytes = original, known, budget_bytes
        self.caches, self.verification, self.settings, self.say = caches, verification, settings, say
        self.pace = pace
        self.options = {name: own for name, own in known.options.items() if own}
        self.fixed_bytes = fixed_bytes(original, self.options)

    def best(self) -> Fitted:
        """The best of the first division and those after corrections, by measured speed and divergence."""
        tried = [self.attempt(self.options)]
        for _ in range(self.settings.speed_rounds if self.pace is not None else 0):
            if not self._learn_speed(tried[-1]):
                break
            tried.append(self.attempt(self.options))
            if tried[-1].recipes == tried[-2].recipes:
                break
        for _ in range(self.settings.rounds if tried[-1].met else 0):
            best, last = min(tried, key=_badness), tried[-1].attempts[0]
            if 1 / TRUSTED_RATIO <= last.measured / max(last.predicted, 1e-9) <= TRUSTED_RATIO:
                break
            falls = marginal_losses(
                best.model,
                self.original,
                self.verification[: max(1, len(self.verification) // 2)],
                autocast=self.settings.autocast,
                progress=lambda done, total: self.say("measuring blocks", done, total),
            )
            tried.append(self.attempt(corrected(self.options, corrections(best.choice.options, falls))))
        best = min(tried, key=_badness)
        best.attempts = [fitted.attempts[0] for fitted in tried]
        return best

    def attempt(self, options: dict[str, list[Option]]) -> Fitted:
        """Divide the budget by these losses, apply, measure. The choice keeps the first predictions."""
        choice, cache, met = self.divide(options)
        predicted = choice.loss + (0.0 if cache is None else cache.loss)
        first = {name: self._as_first_predicted(name, own) for name, own in choice.options.items()}
        model = copy.deepcopy(self.original)
        apply(
            model,
            {name: option.recipe for name, option in first.items()},
            calibration=self.known.calibration,
            ignore=(),
            progress=lambda _, done, total: self.say("applying", done, total),
        )
        if cache is not None and cache.recipe is not None:
            apply(model, cache.recipe)
        measured = self.measure(model)
        size = file_bytes(model)
        kept = Choice(first, choice.nbytes, sum(o.loss for o in first.values()), choice.gap)
        speed = self.measured_speed(model, choice, cache)
        return Fitted(
            model,
            kept,
            self.budget_bytes,
            size,
            cache,
            [Attempt(predicted, measured, size, speed)],
            measured,
            self.known,
            met if speed is None else self._holds(choice, cache) and speed.met,
            self.caches,
            speed,
        )

    def divide(self, options: dict[str, list[Option]]) -> Divided:
        """The best choice for weights and cache together. If none fits, False, and the smallest one, or the
        fastest of those that are small enough."""
        found: list[tuple[float, Choice, CacheOption | None]] = []
        slow: list[tuple[float, Choice, CacheOption | None]] = []
        candidates: list[CacheOption | None] = [*self.caches] or [None]
        for cache in candidates:
            timed = options if self.pace is None else self.pace.timed(options, cache)
            limit = None if self.pace is None else self.pace.room_seconds(cache)
            try:
                choice = solve(timed, self._room(cache), limit)
            except BudgetTooSmall:
                continue
            except TooSlow:
                assert self.pace is not None
                choice = fastest(timed, self._room(cache))
                slow.append((-self.pace.speed(choice, cache, None).predicted, choice, cache))
                continue
            found.append((choice.loss + (0.0 if cache is None else cache.loss), choice, cache))
        if found or slow:
            _, best, chosen_cache = min(found or slow, key=lambda f: f[0])
            return best, chosen_cache, bool(found)
        least = min(self.caches, key=lambda c: c.nbytes) if self.caches else None
        timed = options if self.pace is None else self.pace.timed(options, least)
        smallest = {name: min(own, key=lambda o: (o.nbytes, o.loss)) for name, own in timed.items()}
        total, loss = sum(o.nbytes for o in smallest.values()), sum(o.loss for o in smallest.values())
        return Choice(smallest, total, loss, 0.0), least, False

    def measure(self, model: nn.Module) -> float:
        """Divergence from the original on the verification windows, nats a token."""
        return divergence(model, self.original, self.verification, autocast=self.settings.autocast).kld

    def measured_speed(self, model: nn.Module, choice: Choice, cache: CacheOption | None) -> Speed | None:
        """The speed of a model, measured, beside what was predicted; None where none was asked for."""
        if self.pace is None:
            return None
        self.say("measuring speed", 0, 1)
        seconds = self.pace.goal.clock.step_seconds(model)
        self.say("measuring speed", 1, 1)
        return self.pace.speed(choice, cache, seconds)

    def _learn_speed(self, fitted: Fitted) -> bool:
        assert self.pace is not None
        assert fitted.speed is not None
        assert fitted.speed.measured is not None
        return self.pace.learn(fitted.choice, fitted.cache, 1 / fitted.speed.measured)

    def _holds(self, choice: Choice, cache: CacheOption | None) -> bool:
        room = self._room(cache)
        return room is None or choice.nbytes <= room

    def _room(self, cache: CacheOption | None) -> int | None:
        """Bytes for the weights that are chosen; None: as many as it takes."""
        if self.budget_bytes is None:
            return None
        return self.budget_bytes - self.fixed_bytes - (0 if cache is None else cache.nbytes)

    def _as_first_predicted(self, name: str, option: Option) -> Option:
        first = next(o for o in self.options[name] if o.recipe == option.recipe)
        return Option(first.recipe, first.nbytes, first.loss, option.seconds)


def _badness(fitted: Fitted) -> tuple[bool, float, float]:
    """Fast enough before good; of those that are too slow, the fastest."""
    if fitted.speed is None or fitted.speed.met:
        return False, fitted.attempts[0].measured, 0.0
    assert fitted.speed.measured is not None
    return True, -fitted.speed.measured, fitted.attempts[0].measured


def fixed_bytes(model: nn.Module, options: dict[str, list[Option]]) -> int:
    """Bytes of the file that no choice changes: tensors that stay, and the header, rounded up.

    The header is taken as that of a model whose weights all have five stored tensors.
    """
    rewritten = [slot for slot in slots(model) if slot.name in options]
    weights = sum(weight_matrix(slot.module).nbytes for slot in rewritten)
    line_bytes = 110
    header = file_bytes(model) - stored_bytes(model)
    header += sum(5 * (line_bytes + len(slot.name)) for slot in rewritten)
    return stored_bytes(model) - weights + header + HEADER_MARGIN_BYTES
