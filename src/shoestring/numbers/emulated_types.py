"""The emulated number, NumPy array, torch tensor and JAX array.

Source: Carson and Chen 2025, "Pychop", section 4 (the names).
"""

from collections.abc import Callable
from numbers import Real
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from shoestring.numbers.emulated import Emulated
from shoestring.numbers.formats import FloatFormat
from shoestring.numbers.rounding import is_jax_array
from shoestring.numbers.rounding_bits import carrier_of

First = TypeVar("First", bound=Emulated)
Second = TypeVar("Second", bound=Emulated)


class CPArray(Emulated):
    """A NumPy array of float32 or float64 that holds numbers of a format. NumPy's functions work on it."""

    __slots__ = ()
    value: Float[np.ndarray, "..."]

    @classmethod
    def _carried(cls, value: Any) -> Any:
        if isinstance(value, Tensor):
            raise TypeError("a CPArray does not mix with a torch tensor; use CPTensor, or x.numpy()")
        if is_jax_array(value):
            raise TypeError("a CPArray does not mix with a JAX array; use CPJaxArray, or np.asarray(x)")
        array = np.asarray(value)
        carrier_of(array.dtype.name)
        return array

    def __getitem__(self, index: Any) -> Any:
        return self._wrap(np.asarray(self.value[index]))

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        if method != "__call__" or options:
            raise TypeError(
                f"numpy.{ufunc.__name__}.{method} with {sorted(options) or 'no options'} is not emulated; "
                f"use x.apply(function), or x.value for the plain array"
            )
        return self._call_named(ufunc.__name__, ufunc, inputs)


class CPFloat(CPArray):
    """One number of a format, carried by float64."""

    __slots__ = ()
    is_scalar = True

    @classmethod
    def _carried(cls, value: Any) -> Any:
        if not isinstance(value, Emulated | Real | np.ndarray) or isinstance(value, bool | np.bool):
            raise TypeError(f"a CPFloat is made from a number, not {type(value).__name__}; cast explicitly")
        number = np.asarray(value.value if isinstance(value, Emulated) else value, np.float64)
        if number.ndim:
            raise TypeError(f"a CPFloat is one number, not an array of shape {number.shape}; use CPArray")
        return number

    def _operand(self, other: Any) -> Any:
        if isinstance(other, Emulated) and not other.is_scalar:
            return super()._operand(other) if other.rounder != self.rounder else NotImplemented
        return super()._operand(other)


class CPTensor(Emulated):
    """A torch tensor of float32 or float64, on any device; torch's functions work on it. No gradient passes.

    Raises: as `Emulated`; ValueError for a plain tensor on another device.
    """

    __slots__ = ()
    value: Float[Tensor, "..."]

    @classmethod
    def _carried(cls, value: Any) -> Any:
        if not isinstance(value, Tensor):
            raise TypeError(f"a CPTensor is made from a torch tensor, not {type(value).__name__}")
        carrier_of(str(value.dtype))
        return value.detach()

    def _carried_number(self, number: float) -> Any:
        return torch.tensor(number, dtype=self.value.dtype, device=self.value.device)

    def _operand(self, other: Any) -> Any:
        if isinstance(other, Tensor):
            if other.device != self.value.device:
                raise ValueError(
                    f"a tensor on {other.device} meets a CPTensor on {self.value.device}; move one of them"
                )
            return self.arithmetic.round(self._carried(other).to(self.value.dtype))
        return super()._operand(other)

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(function, "__name__", str(function)).strip("_")
        if kwargs:
            raise TypeError(f"torch.{name} with {sorted(kwargs)} is not emulated; use x.apply(function)")
        emulated = next(each for each in args if isinstance(each, CPTensor))
        return emulated._call_named(name, function, args)


class CPJaxArray(Emulated):
    """A JAX array of float32 or float64 that holds numbers of a format. `x.apply(jnp.sin)` for functions.

    XLA on the CPU flushes float32 subnormals to zero: a format whose numbers reach below 2^-126 needs
    float64.
    """

    __slots__ = ()

    @classmethod
    def _carried(cls, value: Any) -> Any:
        import jax.numpy as jnp

        if not is_jax_array(value):
            kind = type(value).__name__
            raise TypeError(f"a CPJaxArray is made from a JAX array, not {kind}; use jnp.asarray(x)")
        array = jnp.asarray(value)
        carrier_of(array.dtype.name)
        return array

    def _carried_number(self, number: float) -> Any:
        import jax.numpy as jnp

        return jnp.asarray(number, self.value.dtype)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.value = self.value.at[index].set(self._operand(value))


def promote(a: First, b: Second) -> tuple[First, Second]:
    """Both values under the rounder whose format holds all numbers of the other's, so that they mix.

    Raises: ValueError where neither format holds the other, or one rounder has no float format.
    """
    first, second = _format_of(a), _format_of(b)
    if _contains(first, second):
        return a, b.rounded_by(a.rounder)
    if _contains(second, first):
        return a.rounded_by(b.rounder), b
    raise ValueError(
        f"neither of {first} and {second} holds all numbers of the other; choose one by x.rounded_by(rounder)"
    )


def _format_of(x: Emulated) -> FloatFormat:
    fmt = getattr(x.rounder, "fmt", None)
    if not isinstance(fmt, FloatFormat):
        raise ValueError(f"{x.rounder} has no float format; convert by x.rounded_by(rounder)")
    return fmt


def _contains(outer: FloatFormat, inner: FloatFormat) -> bool:
    def smallest(fmt: FloatFormat) -> float:
        return fmt.xmins if fmt.subnormal else fmt.xmin

    return (
        outer.sig_bits >= inner.sig_bits
        and outer.xmax >= inner.xmax
        and smallest(outer) <= smallest(inner)
        and (outer.has_infinity or not inner.has_infinity)
    )
