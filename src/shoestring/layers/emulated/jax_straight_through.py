"""The straight-through estimator for JAX functions: rounded forwards, backwards the identity."""

from typing import Any

import jax

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
