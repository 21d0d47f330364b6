"""Rounding of JAX arrays, under `jax.jit` too, by the same integer arithmetic as NumPy and torch.

XLA on the CPU flushes float32 subnormals in arithmetic, hence only bit views are computed on. Philox runs in
32-bit integers here, because JAX has 64-bit ones only where `jax_enable_x64` is set.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from shoestring.numbers.formats import FloatFormat
from shoestring.numbers.philox import (
    MASK,
    MULTIPLIERS,
    ROUNDING_LOW_STREAM,
    ROUNDING_STREAM,
    ROUNDS,
    WEYL,
    check_seed,
)
from shoestring.numbers.rounding_bits import (
    BFLOAT16,
    DRAWING_MODES,
    FLOAT16,
    FLOAT64,
    Carrier,
    Rounding,
    carrier_of,
    check_carrier,
    round_bits,
)


def round_to_format_jax(
    x: jax.Array,
    fmt: FloatFormat,
    mode: Rounding,
    *,
    seed: int = 0,
    explim: bool = True,
    offset: int = 0,
    call: Any = 0,
) -> jax.Array:
    """`round_to_format` for JAX arrays; all but `x` and `call` are static under `jax.jit`.

    Raises: as `round_to_format`.
    """
    carrier = carrier_of(x.dtype.name)
    check_carrier(fmt, carrier, explim)
    x = lax.stop_gradient(x)
    if carrier is FLOAT16:
        wide = round_to_format_jax(
            x.astype(jnp.float32), fmt, mode, seed=seed, explim=explim, offset=offset, call=call
        )
        return wide.astype(x.dtype)
    if carrier is BFLOAT16:
        wide = lax.bitcast_convert_type(_bits_of_bfloat16(x), jnp.float32)
        wide = round_to_format_jax(wide, fmt, mode, seed=seed, explim=explim, offset=offset, call=call)
        narrow = (lax.bitcast_convert_type(wide, jnp.uint32) >> 16).astype(jnp.uint16)
        return lax.bitcast_convert_type(narrow, jnp.bfloat16)
    words = _draw(x.size, seed, offset, call, carrier).reshape(x.shape) if mode in DRAWING_MODES else None
    integer = jnp.int64 if carrier is FLOAT64 else jnp.int32
    bits = lax.bitcast_convert_type(x, integer)
    rounded = round_bits(bits, words, fmt, mode, carrier, explim, jnp.where)
    return lax.bitcast_convert_type(rounded.astype(integer), x.dtype)


def random_words_jax(size: int, seed: int, *, offset: int = 0, stream: int = 0, call: Any = 0) -> jax.Array:
    """The same words as `random_words`, as a JAX uint32 array; `call` may be traced."""
    check_seed(seed)
    first, last = offset // 4, (offset + size + 3) // 4
    low = jnp.arange(last - first, dtype=jnp.uint32) + jnp.uint32(first & MASK)
    carried = low < jnp.uint32(first & MASK)
    high = jnp.where(carried, jnp.uint32((first >> 32) + 1 & MASK), jnp.uint32(first >> 32))
    counter = (low, high, jnp.full_like(low, stream), jnp.zeros_like(low) + jnp.asarray(call, jnp.uint32))
    words = jnp.stack(_philox_blocks(counter, seed), axis=-1).reshape(-1)
    return words[offset - 4 * first :][:size]


def _philox_blocks(counter: tuple[jax.Array, ...], seed: int) -> tuple[jax.Array, ...]:
    c0, c1, c2, c3 = counter
    k0, k1 = seed & MASK, seed >> 32
    for _ in range(ROUNDS):
        high0, low0 = _wide_product(c0, MULTIPLIERS[0])
        high1, low1 = _wide_product(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ jnp.uint32(k0), low1, high0 ^ c3 ^ jnp.uint32(k1), low0
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3


def _wide_product(a: jax.Array, b: int) -> tuple[jax.Array, jax.Array]:
    """High and low word of a 32 × 32 bit product, from four 16-bit ones."""
    a0, a1 = a & 0xFFFF, a >> 16
    b0, b1 = jnp.uint32(b & 0xFFFF), jnp.uint32(b >> 16)
    middle = a1 * b0 + (a0 * b0 >> 16)
    cross = a0 * b1 + (middle & 0xFFFF)
    return a1 * b1 + (middle >> 16) + (cross >> 16), a * jnp.uint32(b)


def _draw(size: int, seed: int, offset: int, call: Any, carrier: Carrier) -> jax.Array:
    high = random_words_jax(size, seed, offset=offset, stream=ROUNDING_STREAM, call=call)
    if carrier is not FLOAT64:
        return (high >> 1).astype(jnp.int32)
    low = random_words_jax(size, seed, offset=offset, stream=ROUNDING_LOW_STREAM, call=call)
    return (high.astype(jnp.int64) << 31) | (low >> 1).astype(jnp.int64)


def _bits_of_bfloat16(x: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(x, jnp.uint16).astype(jnp.uint32) << 16
