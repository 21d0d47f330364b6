"""Scalar expressions of tile programs: integers computed from parameters, block indices and loop variables.

Operands of // and % are never negative, so that C, CUDA and Python agree on them.
"""

import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Expr:
    """An integer expression; arithmetic and ordering operators build larger ones, `==` compares structure.

    For a test of equality inside a program use `equal`.
    """

    def __add__(self, other: "Expr | int") -> "Expr":
        return binary("+", self, other)

    def __radd__(self, other: int) -> "Expr":
        return binary("+", other, self)

    def __sub__(self, other: "Expr | int") -> "Expr":
        return binary("-", self, other)

    def __rsub__(self, other: int) -> "Expr":
        return binary("-", other, self)

    def __mul__(self, other: "Expr | int") -> "Expr":
        return binary("*", self, other)

    def __rmul__(self, other: int) -> "Expr":
        return binary("*", other, self)

    def __floordiv__(self, other: "Expr | int") -> "Expr":
        return binary("//", self, other)

    def __rfloordiv__(self, other: int) -> "Expr":
        return binary("//", other, self)

    def __mod__(self, other: "Expr | int") -> "Expr":
        return binary("%", self, other)

    def __rmod__(self, other: int) -> "Expr":
        return binary("%", other, self)

    def __lt__(self, other: "Expr | int") -> "Expr":
        return binary("<", self, other)

    def __le__(self, other: "Expr | int") -> "Expr":
        return binary("<=", self, other)

    def __gt__(self, other: "Expr | int") -> "Expr":
        return binary("<", other, self)

    def __ge__(self, other: "Expr | int") -> "Expr":
        return binary("<=", other, self)

    def __bool__(self) -> bool:
        raise TypeError(f"{self} has no value before the program runs; branch with `builder.when`")


@dataclass(frozen=True)
class Const(Expr):
    value: int

    def __str__(self) -> str:
        return str(self.value)


@dataclass(frozen=True)
class Var(Expr):
    """A scalar parameter, a block index or a loop variable, named once in a program.

    `divisible_by`: a promise about its value, checked at launch, that wide memory accesses build on.
    """

    name: str
    divisible_by: int = 1

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Binary(Expr):
    """`op`: + - * // % min max < <= == and or; comparisons give 1 or 0."""

    op: str
    left: Expr
    right: Expr

    def __str__(self) -> str:
        if self.op in ("min", "max"):
            return f"{self.op}({self.left}, {self.right})"
        return f"({self.left} {self.op} {self.right})"


def _whole(function: Callable[[int, int], int]) -> Callable[[int, int], int]:
    def checked(a: int, b: int) -> int:
        if a < 0 or b <= 0:
            raise ValueError(f"{a} and {b}: // and % take a dividend ≥ 0 and a divisor > 0")
        return function(a, b)

    return checked


OPERATIONS: Mapping[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": _whole(operator.floordiv),
    "%": _whole(operator.mod),
    "min": min,
    "max": max,
    "<": lambda a, b: int(a < b),
    "<=": lambda a, b: int(a <= b),
    "==": lambda a, b: int(a == b),
    "and": lambda a, b: int(bool(a) and bool(b)),
    "or": lambda a, b: int(bool(a) or bool(b)),
}


def expression(value: "Expr | int") -> Expr:
    """`value` as an expression."""
    return value if isinstance(value, Expr) else Const(int(value))


def binary(op: str, left: "Expr | int", right: "Expr | int") -> Expr:
    """left op right, computed at once where both are known or the other operand changes nothing."""
    a, b = expression(left), expression(right)
    if isinstance(a, Const) and isinstance(b, Const):
        return Const(OPERATIONS[op](a.value, b.value))
    if isinstance(b, Const) and ((op, b.value) in (("+", 0), ("-", 0), ("*", 1), ("//", 1))):
        return a
    if isinstance(a, Const) and ((op, a.value) in (("+", 0), ("*", 1))):
        return b
    if op == "*" and Const(0) in (a, b):
        return Const(0)
    if op == "*" and isinstance(a, Const):
        a, b = b, a
    inner = a if isinstance(a, Binary) and a.op == "*" and isinstance(a.right, Const) else None
    if inner is not None and isinstance(inner.right, Const) and isinstance(b, Const):
        factor = inner.right.value
        if op == "*":
            return binary("*", inner.left, factor * b.value)
        if op == "//" and b.value > 0 and factor % b.value == 0:
            return binary("*", inner.left, factor // b.value)
    return Binary(op, a, b)


def equal(left: "Expr | int", right: "Expr | int") -> Expr:
    return binary("==", left, right)


def both(left: "Expr | int", right: "Expr | int") -> Expr:
    return binary("and", left, right)


def minimum(left: "Expr | int", right: "Expr | int") -> Expr:
    return binary("min", left, right)


def ceil_div(left: "Expr | int", right: int) -> Expr:
    """⌈left / right⌉."""
    return binary("//", binary("+", left, right - 1), right)


def evaluate(expr: "Expr | int", values: Mapping[str, int]) -> int:
    """The value of an expression. Raises: KeyError naming a variable without a value."""
    if isinstance(expr, int):
        return expr
    try:
        return _function_of(expr)(values)
    except KeyError as error:
        raise KeyError(f"{error.args[0]!r} has no value here") from None


@functools.lru_cache(maxsize=4096)
def _function_of(expr: Expr) -> Callable[[Mapping[str, int]], int]:
    if isinstance(expr, Const):
        value = expr.value
        return lambda values: value
    if isinstance(expr, Var):
        name = expr.name
        return lambda values: values[name]
    assert isinstance(expr, Binary)
    operation, left, right = OPERATIONS[expr.op], _function_of(expr.left), _function_of(expr.right)
    return lambda values: operation(left(values), right(values))


def variables_of(expr: "Expr | int") -> frozenset[str]:
    """Names of the variables in an expression."""
    expr = expression(expr)
    if isinstance(expr, Var):
        return frozenset({expr.name})
    if isinstance(expr, Binary):
        return variables_of(expr.left) | variables_of(expr.right)
    return frozenset()
