"""The straight-through estimators for JAX functions: rounded forwards, backwards the identity."""

from typing import Any

import jax
import jax.numpy as jnp

from shoestring.numbers.formats import FloatFormat
from shoestring.numbers.rounder import Rounder


def straight_through_jax(x: jax.Array, rounder: Rounder, *, call: Any = 0) -> jax.Array:
    """`rounder(x, call=call)` with the gradient of the identity, under `jax.jit` and `jax.grad` too.

    `call` numbers the draws of a stochastic mode; give each step its own.
    """

    @jax.custom_vjp
    def rounded(value: jax.Array) -> jax.Array:
        return rounder(value, call=call)

    rounded.defvjp(lambda value: (rounded(value), None), lambda _, gradient: (gradient,))
    return rounded(x)


def saturating_straight_through_jax(x: jax.Array, rounder: Rounder, *, call: Any = 0) -> jax.Array:
    """The same, but with a gradient of zero where |x| > xmax of the float format.

    Raises: ValueError for a rounder of another kind of format.
    """
    fmt = rounder.fmt
    if not isinstance(fmt, FloatFormat):
        raise ValueError(f"JAX arrays are rounded to float formats, not {fmt}")

    @jax.custom_vjp
    def rounded(value: jax.Array) -> jax.Array:
        return rounder(value, call=call)

    def backward(inside: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
        return (jnp.where(inside, gradient, 0),)

    rounded.defvjp(lambda value: (rounded(value), jnp.abs(value) <= fmt.xmax), backward)
    return rounded(x)
