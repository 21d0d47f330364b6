"""Stated costs: heard once, by whoever listens, and never from within another statement."""

import pytest

from shoestring.kernels.costs import Cost, cost_is_stated, count_cost, listen, states_cost


@states_cost(lambda n: Cost(flops=2 * n, bytes=8 * n))
def kernel(n: int) -> int:
    assert cost_is_stated()
    return n + 1


def test_decorated_kernel_states_what_the_call_costs():
    heard = []
    with listen(lambda name, cost: heard.append((name, cost))):
        assert kernel(5) == 6
        assert not cost_is_stated()
        kernel(n=7)
    assert heard == [("kernel", Cost(10, 40)), ("kernel", Cost(14, 56))]


def test_only_the_outermost_statement_counts():
    heard = []

    @states_cost(lambda: Cost(flops=100))
    def outer() -> None:
        kernel = states_cost(lambda: Cost(flops=7))(lambda: None)
        kernel()
        with count_cost("inner", flops=3, bytes=0):
            pass

    with listen(lambda name, cost: heard.append((name, cost.flops))):
        outer()
    assert heard == [("outer", 100)]


def test_nobody_listens_nothing_is_computed():
    called = []

    @states_cost(lambda: called.append(1) or Cost())
    def quiet() -> str:
        return "done"

    assert quiet() == "done"
    assert not called


def test_a_kernel_that_fails_costs_nothing_and_leaves_no_trace():
    heard = []
    with listen(lambda name, cost: heard.append(name)):
        with pytest.raises(ZeroDivisionError), count_cost("bad", flops=1, bytes=1):
            raise ZeroDivisionError
        assert not cost_is_stated()
    assert heard == []


def test_negative_costs_are_refused():
    with pytest.raises(ValueError, match="flops=-1 and bytes=0 must not be negative"):
        Cost(flops=-1)
