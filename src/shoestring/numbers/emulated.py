"""A value that knows its number format: every operation on it is rounded to it.

Source: Carson and Chen 2025, "Pychop", section 4 (the names).
"""

from collections.abc import Callable
from numbers import Real
from typing import Any, ClassVar

import numpy as np

from shoestring.numbers.accumulation import Accumulation, InCarrier, matmul
from shoestring.numbers.arithmetic import Arithmetic
from shoestring.numbers.exactness import Rounds

_EXACT = {
    "add": "add",
    "sub": "subtract",
    "subtract": "subtract",
    "mul": "multiply",
    "multiply": "multiply",
    "div": "divide",
    "divide": "divide",
    "true_divide": "divide",
    "sqrt": "sqrt",
}
_MATMUL = ("matmul", "mm", "bmm", "dot", "mv")


class Emulated:
    """A value and the rounder of its format; the base of `CPFloat`, `CPArray`, `CPTensor` and `CPJaxArray`.

    `Type(value, rounder)` rounds the value. Each of + − * / and `sqrt` is computed in the carrier, which is
    the value's own dtype, and correctly rounded; other functions are computed in the carrier and then
    rounded. A plain number or array beside it is rounded first. Values with different rounders do not mix:
    see `promote`. Comparisons compare the values.

    Raises: ValueError where the carrier is too narrow for correct rounding (2t + 2 bits are needed);
    TypeError for integer, boolean or complex values ("cast explicitly").
    """

    # NumPy must leave the operation to this class: it would take an emulated value for a sequence of numbers.
    __array_ufunc__: ClassVar[Any] = None
    __slots__ = ("arithmetic", "value")
    is_scalar: ClassVar[bool] = False
    value: Any

    def __init__(self, value: Any, rounder: Rounds) -> None:
        carried = self._carried(value)
        self.arithmetic = Arithmetic(rounder)
        self.arithmetic.check(carried.dtype)
        self.value = self.arithmetic.round(carried)

    @classmethod
    def _carried(cls, value: Any) -> Any:
        """The value as an array of this type's library."""
        raise NotImplementedError

    @property
    def rounder(self) -> Rounds:
        assert self.arithmetic.rounder is not None
        return self.arithmetic.rounder

    def _wrap(self, value: Any) -> Any:
        """A value that is a number of the format already."""
        wrapped = object.__new__(type(self))
        wrapped.value, wrapped.arithmetic = value, self.arithmetic
        return wrapped

    def _operand(self, other: Any) -> Any:
        """The other operand as numbers of this format; NotImplemented if its own type must decide.

        Raises: ValueError for another rounder.
        """
        if not isinstance(other, Emulated):
            if isinstance(other, Real):
                return self.arithmetic.round(self._carried_number(float(other)))
            return self.arithmetic.round(self._carried(other).astype(self.value.dtype))
        if other.rounder != self.rounder:
            raise ValueError(
                f"operands have different rounders, {self.rounder} and {other.rounder}; "
                f"convert one of them: promote(a, b), or x.rounded_by(rounder)"
            )
        if other.is_scalar and not self.is_scalar:
            return self._carried_number(float(other))
        if type(other) is type(self):
            return other.value
        return NotImplemented

    def _carried_number(self, number: float) -> Any:
        """A plain number in the carrier of this value."""
        return np.asarray(number, self.value.dtype)

    def _combine(self, operation: Callable[[Any, Any], Any], other: Any, *, swapped: bool = False) -> Any:
        operand = self._operand(other)
        if operand is NotImplemented:
            return NotImplemented
        return self._wrap(operation(operand, self.value) if swapped else operation(self.value, operand))

    def __add__(self, other: Any) -> Any:
        return self._combine(self.arithmetic.add, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        return self._combine(self.arithmetic.subtract, other)

    def __rsub__(self, other: Any) -> Any:
        return self._combine(self.arithmetic.subtract, other, swapped=True)

    def __mul__(self, other: Any) -> Any:
        return self._combine(self.arithmetic.multiply, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        return self._combine(self.arithmetic.divide, other)

    def __rtruediv__(self, other: Any) -> Any:
        return self._combine(self.arithmetic.divide, other, swapped=True)

    def __matmul__(self, other: Any) -> Any:
        return self.matmul(other)

    def __rmatmul__(self, other: Any) -> Any:
        return self._combine(lambda a, b: matmul(a, b, self.arithmetic, InCarrier()), other, swapped=True)

    def __rpow__(self, other: Any) -> Any:
        return self._combine(lambda a, b: self.arithmetic.round(a**b), other, swapped=True)

    def __pow__(self, other: Any) -> Any:
        return self._combine(lambda a, b: self.arithmetic.round(a**b), other)

    def __neg__(self) -> Any:
        return self._wrap(-self.value)

    def __abs__(self) -> Any:
        return self._wrap(abs(self.value))

    def __eq__(self, other: Any) -> Any:
        return self.value == plain(other)

    def __ne__(self, other: Any) -> Any:
        return self.value != plain(other)

    def __lt__(self, other: Any) -> Any:
        return self.value < plain(other)

    def __le__(self, other: Any) -> Any:
        return self.value <= plain(other)

    def __gt__(self, other: Any) -> Any:
        return self.value > plain(other)

    def __ge__(self, other: Any) -> Any:
        return self.value >= plain(other)

    def __float__(self) -> float:
        return float(self.value)

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, index: Any) -> Any:
        return self._wrap(self.value[index])

    def __setitem__(self, index: Any, value: Any) -> None:
        self.value[index] = self._operand(value)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.value}, {self.rounder})"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    @property
    def T(self) -> Any:
        return self._wrap(self.value.T)

    def sqrt(self) -> Any:
        return self._wrap(self.arithmetic.sqrt(self.value))

    def fma(self, factor: Any, addend: Any) -> Any:
        """self·factor + addend with one rounding."""
        return self._wrap(self.arithmetic.fma(self.value, self._operand(factor), self._operand(addend)))

    def apply(self, function: Callable[..., Any], *others: Any) -> Any:
        """`function(self, *others)` computed in the carrier, then rounded: `x.apply(np.hypot, y)`.

        The last bit of an elementary function may differ from correct rounding about as often as the
        carrier's own error reaches across a boundary: once in 2^(p − t) values or so.
        """
        with np.errstate(all="ignore"):
            result = function(self.value, *(self._operand(other) for other in others))
        return self._wrap(self.arithmetic.round(result))

    def sum(self, axis: int | None = None) -> Any:
        """The sum in the carrier, rounded once."""
        return self._wrap(self.arithmetic.round(self.value.sum() if axis is None else self.value.sum(axis)))

    def cumsum(self, axis: int = -1) -> Any:
        """Every partial sum in the carrier, each rounded once."""
        return self._wrap(self.arithmetic.round(self.value.cumsum(axis)))

    def matmul(self, other: Any, accumulate: Accumulation | None = None) -> Any:
        """The matrix product; `accumulate` says where it is rounded (`InCarrier()` if not given).

        Raises: ValueError for sizes that do not match.
        """
        way = InCarrier() if accumulate is None else accumulate
        return self._combine(lambda a, b: matmul(a, b, self.arithmetic, way), other)

    dot = matmul

    def rounded_by(self, rounder: Rounds) -> Any:
        """The same value under another rounder, rounded by it."""
        return type(self)(self.value, rounder)

    def _call_named(self, name: str, function: Callable[..., Any], operands: tuple[Any, ...]) -> Any:
        """A NumPy or torch function of this and other operands, one of them an `Emulated`."""
        if name in _EXACT and len(operands) <= 2:
            if len(operands) == 1:
                return self._wrap(getattr(self.arithmetic, _EXACT[name])(self.value))
            operation = getattr(self.arithmetic, _EXACT[name])
            if operands[0] is self:
                return self._combine(operation, operands[1])
            return self._combine(operation, operands[0], swapped=True)
        if name in _MATMUL and operands[0] is self:
            return self.matmul(operands[1])
        with np.errstate(all="ignore"):
            result = function(*(self.value if each is self else self._operand(each) for each in operands))
        if not _is_floating(result):
            return result
        return self._wrap(self.arithmetic.round(result))


def plain(x: Any) -> Any:
    """The value of an emulated number or array; anything else as it is."""
    return x.value if isinstance(x, Emulated) else x


def _is_floating(x: Any) -> bool:
    return "float" in str(getattr(x, "dtype", "")) and "bool" not in str(x.dtype)
