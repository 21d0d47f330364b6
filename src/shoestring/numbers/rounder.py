"""A rounder: a format, a mode and a seed in one object that is called on arrays."""

from dataclasses import dataclass, field
from typing import Any, TypeVar

from shoestring.numbers.fixed_point import FixedPointFormat, round_to_fixed_point
from shoestring.numbers.formats import FloatFormat
from shoestring.numbers.philox import check_seed
from shoestring.numbers.rounding import round_to_format
from shoestring.numbers.rounding_bits import DRAWING_MODES, Rounding, check_float_mode, check_mode

Array = TypeVar("Array")


@dataclass
class CallCounter:
    """The number that the next call of a rounder takes."""

    upcoming: int = 0

    def take(self) -> int:
        call = self.upcoming
        self.upcoming = (call + 1) % (1 << 32)
        return call


@dataclass(frozen=True)
class Rounder:
    """Rounds arrays to `fmt`; see `round_to_format` (`round_to_fixed_point`) for what each mode does.

    In a stochastic mode the calls of one rounder are numbered 0, 1, 2, …, and call c draws from the Philox
    counters of c under the key `seed`: two calls draw independently, two rounders of the same seed give the
    same sequence, and no global generator is read or moved. `rounder(x, call=c)` draws as call c did and
    counts nothing; under `jax.jit` give it, because a trace runs the counter only once. A deep copy counts
    by itself.

    Raises: ValueError for an unknown mode or a seed outside 0 .. 2^64−1.
    """

    fmt: FloatFormat | FixedPointFormat
    mode: int = Rounding.NEAREST_EVEN
    seed: int = 0
    explim: bool = True
    counter: CallCounter = field(default_factory=CallCounter, compare=False, repr=False)

    def __post_init__(self) -> None:
        check = check_float_mode if isinstance(self.fmt, FloatFormat) else check_mode
        object.__setattr__(self, "mode", check(self.mode))
        check_seed(self.seed)

    def __call__(self, x: Array, *, call: Any = None) -> Array:
        """`x` rounded: same type, dtype and shape."""
        if call is None:
            call = self.counter.take() if self.mode in DRAWING_MODES else 0
        if isinstance(self.fmt, FixedPointFormat):
            array: Any = x
            rounded: Any = round_to_fixed_point(array, self.fmt, self.mode, seed=self.seed, call=call)
            return rounded
        return round_to_format(x, self.fmt, self.mode, seed=self.seed, explim=self.explim, call=call)
