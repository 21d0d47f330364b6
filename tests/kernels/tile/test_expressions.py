import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.kernels.tile.analysis import divisor_of, range_of
from shoestring.kernels.tile.expressions import (
    Const,
    Var,
    both,
    ceil_div,
    equal,
    evaluate,
    expression,
    minimum,
    variables_of,
)

X, Y = Var("x", divisible_by=4), Var("y")


@st.composite
def trees(draw, depth=3):
    """An expression and the same computed by Python, as a function of x and y."""
    if depth == 0 or draw(st.booleans()):
        leaf = draw(st.sampled_from([X, Y, 0, 1, 3, 8]))
        if isinstance(leaf, Var):
            return leaf, leaf.name
        return leaf, str(leaf)
    op = draw(st.sampled_from(["+", "*", "//", "%", "min"]))
    (a, left), (b, right) = draw(trees(depth=depth - 1)), draw(trees(depth=depth - 1))
    if op == "min":
        return minimum(a, b), f"min({left}, {right})"
    if op in ("//", "%"):
        divisor = draw(st.sampled_from([1, 2, 4, 8]))
        b, right = divisor, str(divisor)
    a = expression(a)
    return {"+": lambda: a + b, "*": lambda: a * b, "//": lambda: a // b, "%": lambda: a % b}[op](), (
        f"({left} {op} {right})"
    )


@given(trees(), st.integers(0, 5), st.integers(0, 20))
def test_simplified_trees_keep_value_divisor_and_range(tree, fours, y):
    expr, text = expression(tree[0]), tree[1]
    values = {"x": 4 * fours, "y": y}
    value = evaluate(expr, values)
    assert value == eval(text, dict(values))
    assert value == 0 or (divisor_of(expr) != 0 and value % divisor_of(expr) == 0)
    low, high = range_of(expr, {"x": (0, 20), "y": (0, 20)})
    assert low <= value <= high
    assert evaluate(expr, values) == eval(str(expr), dict(values))


def test_known_divisors_and_simplifications():
    assert divisor_of(X * 6 + 12) == 12
    assert divisor_of(X // 2) == 2
    assert divisor_of(X // 3) == 1
    assert divisor_of(Const(0)) == 0
    assert (Y * 16) // 16 == Y
    assert (4 * Y) * 8 == Y * 32
    assert range_of(Y, {}) is None
    assert range_of(Y % 3, {}) == (0, 2)


def test_comparisons_and_conditions():
    assert evaluate(X < Y, {"x": 1, "y": 2}) == 1
    assert evaluate(X >= Y, {"x": 1, "y": 2}) == 0
    assert evaluate(both(equal(X, 4), Y > 0), {"x": 4, "y": 1}) == 1
    assert evaluate(ceil_div(Y, 4), {"y": 9}) == 3
    assert variables_of(X + Y * 2) == {"x", "y"}
    with pytest.raises(TypeError, match="no value before"):
        bool(X < Y)
    with pytest.raises(KeyError, match="'y' has no value"):
        evaluate(Y, {})
    with pytest.raises(ValueError, match="dividend"):
        evaluate((X - 5) // 2, {"x": 4})
