"""Paired time: known sleeps give known ratios, and the order is fair."""

import gc
import itertools
import time
from collections import Counter

import pytest

from shoestring.yardstick import timing
from shoestring.yardstick.timing import InterleavedTimes, time_interleaved, time_pair


class FakeClock:
    """A clock that only work moves: every call of `work(cost)` takes exactly `cost` seconds, plus a drift."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.calls = 0.0, []
        self.slowness = lambda now: 1.0
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)

    def work(self, name: str, cost: float):
        def run() -> None:
            self.calls.append(name)
            self.now += cost * self.slowness(self.now)

        return run


@pytest.fixture
def clock(monkeypatch):
    return FakeClock(monkeypatch)


def test_ratio_is_exact_on_an_exact_clock(clock):
    times = time_pair(clock.work("slow", 0.4), clock.work("fast", 0.1), rounds=5)
    assert times.baseline_seconds == pytest.approx(0.4)
    assert times.method_seconds == pytest.approx(0.1)
    assert times.ratio == pytest.approx(0.25)
    assert times.spread == pytest.approx((0.25, 0.25))


def test_fast_functions_are_repeated_until_a_sample_is_long_enough(clock):
    times = time_interleaved(
        {"a": clock.work("a", 1e-6), "b": clock.work("b", 0.5)}, rounds=3, min_sample_seconds=1e-3
    )
    assert times.inner["b"] == 1
    assert 1000 <= times.inner["a"] <= 2000
    assert times.median("a") == pytest.approx(1e-6, rel=1e-3)


def test_a_machine_that_slows_down_steadily_does_not_move_the_ratio(clock):
    clock.slowness = lambda now: 1.0 + now / 10  # ten times slower in the end than in the beginning
    times = time_pair(clock.work("a", 1.0), clock.work("b", 2.0), rounds=40)
    assert times.ratio == pytest.approx(2.0, rel=0.1)
    assert times.method_seconds > 4.0, "the drift of this test is real"


def test_everyone_runs_equally_often_in_every_place(clock):
    works = {name: clock.work(name, 1.0) for name in "abc"}
    time_interleaved(works, rounds=6, warmup=1)
    rounds = [tuple(clock.calls[3 + 3 * i : 6 + 3 * i]) for i in range(6)]
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    for place in range(3):
        assert Counter(r[place] for r in rounds) == {"a": 2, "b": 2, "c": 2}
    follows = Counter((x, y) for r in rounds for x, y in itertools.pairwise(r))
    assert len(follows) == 6, "each comes behind each other one at times"


def test_interval_is_seeded_and_covers_the_median():
    seconds = {"a": (1.0,) * 9, "b": (2.0, 2.1, 1.9, 2.2, 1.8, 2.0, 2.05, 1.95, 30.0)}
    times = InterleavedTimes(seconds=seconds, inner={"a": 1, "b": 1}, threads=1, seed=3)
    low, high = times.interval("b", "a")
    assert times.ratio("b", "a") == 2.0
    assert 1.8 <= low <= 2.0 <= high <= 2.2, "one disturbed round must not widen it to 30"
    assert times.interval("b", "a") == (low, high)
    wide_low, wide_high = times.interval("b", "a", confidence=0.999)
    assert wide_low <= low
    assert high <= wide_high


def test_interval_covers_the_true_ratio_about_as_often_as_it_says():
    import numpy as np

    draws, hits = np.random.default_rng(0), 0
    for seed in range(200):
        noisy = tuple(np.exp(draws.normal(np.log(3.0), 0.3, 25)))
        times = InterleavedTimes(seconds={"a": (1.0,) * 25, "b": noisy}, inner={}, threads=1, seed=seed)
        low, high = times.interval("b", "a", resamples=400)
        hits += low <= 3.0 <= high
    assert 0.88 <= hits / 200 <= 0.995


def test_real_clock_tells_a_sleep_from_a_shorter_one():
    times = time_pair(lambda: time.sleep(0.008), lambda: time.sleep(0.002), rounds=7, warmup=1)
    assert 0.2 < times.ratio < 0.5
    assert times.threads >= 1


def test_collector_is_back_on_even_after_an_error():
    def fails() -> None:
        raise RuntimeError("work failed")

    with pytest.raises(RuntimeError, match="work failed"):
        time_pair(fails, fails)
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rounds": 2}, "rounds=2 must be at least 3"),
        ({"warmup": 0}, "warmup=0 must be at least 1"),
        ({"min_sample_seconds": -1.0}, "must not be negative"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        time_pair(lambda: None, lambda: None, **arguments)


def test_one_callable_is_no_comparison():
    with pytest.raises(ValueError, match="at least two"):
        time_interleaved({"alone": lambda: None})


def test_unknown_name_lists_what_was_timed():
    times = InterleavedTimes(seconds={"a": (1.0,), "b": (1.0,)}, inner={}, threads=1, seed=0)
    with pytest.raises(ValueError, match="'c' was not timed; there are 'a', 'b'"):
        times.median("c")
    with pytest.raises(ValueError, match="confidence=1.5"):
        times.interval("a", "b", confidence=1.5)
