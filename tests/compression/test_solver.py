"""The integer program against trying everything."""

import ctypes

import hypothesis.strategies as st
import pytest
from hypothesis import given

from shoestring.compression import solver
from shoestring.compression.group_quantize import RoundToNearest
from shoestring.compression.profile import Option
from shoestring.compression.solver import (
    BudgetTooSmall,
    TooSlow,
    fastest,
    naive_solve,
    solve,
    unbeaten,
    undominated,
)

RECIPE = RoundToNearest()

menus = st.lists(
    st.lists(
        st.builds(Option, st.just(RECIPE), st.integers(1, 10**7), st.floats(0, 2, allow_nan=False, width=32)),
        min_size=1,
        max_size=4,
    ),
    min_size=1,
    max_size=5,
).map(lambda own: {f"w{i}": options for i, options in enumerate(own)})


@given(menus, st.floats(0, 1))
def test_is_as_good_as_the_best_of_all_combinations_and_never_over_budget(options, share):
    smallest = sum(min(o.nbytes for o in own) for own in options.values())
    largest = sum(max(o.nbytes for o in own) for own in options.values())
    budget = round(smallest + share * (largest - smallest))
    choice = solve(options, budget)
    assert choice.nbytes == sum(o.nbytes for o in choice.options.values()) <= budget
    assert all(choice.options[name] in own for name, own in options.items())
    best = naive_solve(options, budget)
    assert best <= choice.loss + 1e-9
    assert choice.loss <= best * (1 + 2e-4) + 1e-6 * max(o.loss for own in options.values() for o in own)


@given(menus)
def test_a_budget_below_the_smallest_is_refused_with_that_size(options):
    smallest = sum(min(o.nbytes for o in own) for own in options.values())
    with pytest.raises(BudgetTooSmall, match=f"the smallest choice takes {smallest}") as caught:
        solve(options, smallest - 1)
    assert caught.value.smallest_bytes == smallest
    assert solve(options, smallest).nbytes == smallest


def test_undominated_options_get_better_as_they_grow():
    sizes = [(3, 1.0), (1, 5.0), (2, 6.0), (3, 2.0), (4, 0.5), (5, 0.5)]
    kept = undominated([Option(RECIPE, size, loss) for size, loss in sizes])
    assert [(o.nbytes, o.loss) for o in kept] == [(1, 5.0), (3, 1.0), (4, 0.5)]


def test_bad_input():
    with pytest.raises(ValueError, match="'w' has no option"):
        solve({"w": []}, 10)
    with pytest.raises(ValueError, match="the predicted loss of .* in 'w' is nan"):
        solve({"w": [Option(RECIPE, 1, float("nan"))]}, 10)


def test_nothing_that_the_solver_prints_reaches_stdout(monkeypatch, capfd):
    """HiGHS sometimes prints a line with C's printf, which would spoil the one document of `--json`."""
    libc, milp = ctypes.CDLL(None), solver.milp

    def talkative(*arguments, **keywords):
        libc.printf(b"a line of the solver\n")
        return milp(*arguments, **keywords)

    monkeypatch.setattr(solver, "milp", talkative)
    libc.printf(b"before\n")
    solve({"w": [Option(RECIPE, 10, 1.0), Option(RECIPE, 20, 0.5)]}, 15)
    libc.printf(b"after\n")
    libc.fflush(None)
    assert capfd.readouterr().out == "before\nafter\n"


timed = st.lists(
    st.lists(
        st.builds(
            Option,
            st.just(RECIPE),
            st.integers(1, 10**7),
            st.floats(0, 2, allow_nan=False, width=32),
            st.integers(1, 10**6).map(lambda ns: ns * 1e-9),
        ),
        min_size=1,
        max_size=4,
    ),
    min_size=1,
    max_size=5,
).map(lambda own: {f"w{i}": options for i, options in enumerate(own)})


@given(timed, st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_a_second_limit_on_time_is_kept_and_costs_as_little_as_it_can(options, share, speed_share, sized):
    smallest = sum(min(o.nbytes for o in own) for own in options.values())
    largest = sum(max(o.nbytes for o in own) for own in options.values())
    budget = round(smallest + share * (largest - smallest)) if sized else None
    most = largest if budget is None else budget
    slowest = sum(max(o.seconds for o in own) for own in options.values())
    quickest = fastest(options, budget)
    limit = quickest.seconds * 1.00001 + speed_share * (slowest - quickest.seconds)
    choice = solve(options, budget, limit)
    assert choice.nbytes <= most
    assert choice.seconds <= limit * (1 + 1e-6)
    strict, loose = (naive_solve(options, most, limit * factor) for factor in (1 - 1e-6, 1 + 1e-6))
    assert loose - 1e-9 <= choice.loss
    assert choice.loss <= strict * (1 + 2e-4) + 1e-6 * max(o.loss for own in options.values() for o in own)
    assert naive_solve(options, most, quickest.seconds * (1 - 1e-3)) == float("inf"), "nothing is faster"


@given(timed)
def test_a_speed_out_of_reach_is_refused_with_the_fastest(options):
    smallest = sum(min(o.nbytes for o in own) for own in options.values())
    least = sum(min(o.seconds for o in own) for own in options.values())
    for seconds in (0.0, -1.0, 0.99 * least):
        with pytest.raises(
            TooSlow, match="seconds a token cannot be met: the fastest choice takes"
        ) as caught:
            solve(options, None, seconds)
        assert caught.value.fastest_seconds == pytest.approx(least, rel=1e-3)
    with pytest.raises(TooSlow) as caught:
        solve(options, smallest, 0.5 * least)
    assert caught.value.fastest_seconds >= least * (1 - 1e-9), "within the bytes"
    with pytest.raises(BudgetTooSmall):
        solve(options, smallest - 1, 1.0)


def test_what_is_slower_may_be_worth_its_loss_only_with_time_to_spare():
    options = {
        "w": [Option(RECIPE, 10, 1.0, 1e-3), Option(RECIPE, 10, 0.5, 3e-3), Option(RECIPE, 12, 0.5, 1e-3)]
    }
    assert solve(options, 10, 5e-3).loss == 0.5
    assert solve(options, 10, 2e-3).loss == 1.0
    assert solve(options, None, 2e-3).nbytes == 12
    assert fastest(options, None).options["w"] == options["w"][2], "as fast, and better"
    assert len(unbeaten(options["w"])) == 3
