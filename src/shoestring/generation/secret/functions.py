"""Functions of secrets with rounds that do not depend on data: products, exponential, reciprocal, softmax."""

import math

import numpy as np

from shoestring.generation.secret.comparison import less, maximum
from shoestring.generation.secret.engine import Engine, FixedOperand
from shoestring.generation.secret.shares import Secret

EXP_SQUARES, EXP_EXTRA_BITS = 7, 4
"""exp(x) is (1 + y + y²/2)^(2^squares), y = x / 2^squares, with so many more fraction bits inside: an error
of a unit grows 2^squares times."""
RECIPROCAL_BITS = 13
"""Fraction bits of 1 / t inside Newton's iteration: enough for 2^-10, few enough for safe truncation."""


def product(engine: Engine, x: Secret, y: Secret) -> Secret:
    """x · y at the usual number of fraction bits."""
    return engine.truncate(engine.multiply(x, y), engine.form.frac_bits)


def matrix_product(engine: Engine, x: Secret, y: Secret | FixedOperand) -> Secret:
    """x @ y at the usual number of fraction bits."""
    return engine.truncate(engine.matmul(x, y), engine.form.frac_bits)


def exponential(engine: Engine, x: Secret) -> Secret:
    """exp(x) within 2^-10 for x from −14 to 0; vanishes down to −200; wrong below −240.

    (1 + y + y²/2)^128 with y = x / 128 costs what (1 + x / 256)^256 costs, and its error is e^x |x|³ / 98304
    instead of e^x x² / 512.
    """
    form = engine.form.frac_bits
    inner = form + EXP_EXTRA_BITS
    # At `inner` fraction bits, x / 128 is x · 2^4 / 2^7.
    y = engine.truncate(x, EXP_SQUARES - EXP_EXTRA_BITS)
    half_square = engine.truncate(engine.square(y), inner + 1)
    power = engine.add_public(y + half_square, 1 << inner)
    for step in range(EXP_SQUARES):
        last = step == EXP_SQUARES - 1
        power = engine.truncate(engine.square(power), inner + (EXP_EXTRA_BITS if last else 0))
    return power


def newton_steps(bound_bits: int) -> int:
    """Iterations until 1 / t is known to 2^-11 for t from 2^-bound_bits to 1.

    The start 2 / (1 + 2^-bound_bits) leaves 1 − t·y0 within e0 = (u − 1) / (u + 1), u = 2^bound_bits; each
    step squares that.
    """
    u = 2.0**bound_bits
    first = (u - 1) / (u + 1)
    return 0 if first == 0 else max(0, math.ceil(math.log2(11 * math.log(2) / -math.log(first))))


def reciprocal(engine: Engine, x: Secret, bound_bits: int) -> Secret:
    """1 / x for x from 1 to 2^bound_bits, with `RECIPROCAL_BITS + bound_bits` fraction bits.

    t = x / 2^bound_bits is the same integer read with more fraction bits; y ← y (2 − t y). A start that knows
    the public bound converges for all sums that a softmax over 2^bound_bits items can have.
    """
    form = engine.form.frac_bits
    u = 2.0**bound_bits
    start = round(2 / (1 + 1 / u) * 2**RECIPROCAL_BITS)
    y = engine.constant(np.full(x.shape, start, dtype=np.uint64))
    for _ in range(newton_steps(bound_bits)):
        ty = engine.truncate(engine.multiply(x, y), bound_bits + RECIPROCAL_BITS)
        y = engine.truncate(engine.multiply(y, engine.add_public(-ty, 2 << form)), form)
    return y


def softmax_parts(
    engine: Engine, scores: Secret, clip_below: float | None = None
) -> tuple[Secret, Secret, int]:
    """exp(s − max s) of the last axis, the reciprocal of its sum, and the fraction bits of that.

    clip_below: exp is 0 below it, at the price of a comparison per item; without it, scores must lie within
    240 of the largest.
    """
    top = maximum(engine, scores)
    below = Secret(scores.parts - top.parts[..., None])
    weights = exponential(engine, below)
    if clip_below is not None:
        limit = engine.form.encode(-clip_below)
        far = less(engine, engine.add_public(below, limit), engine.constant(np.zeros(below.shape, np.uint64)))
        one = engine.constant(np.ones(far.shape, dtype=np.uint64))
        weights = engine.multiply(one - far, weights)
    bound_bits = math.ceil(math.log2(scores.shape[-1]))
    return weights, reciprocal(engine, weights.sum(-1), bound_bits), RECIPROCAL_BITS + bound_bits


def softmax(engine: Engine, scores: Secret, clip_below: float | None = None) -> Secret:
    """Probabilities along the last axis."""
    weights, inverse, bits = softmax_parts(engine, scores, clip_below)
    spread = Secret(np.broadcast_to(inverse.parts[..., None], weights.parts.shape))
    return engine.truncate(engine.multiply(weights, spread), bits)


def normalised(engine: Engine, sums: Secret, inverse: Secret, bits: int) -> Secret:
    """sums (…, d), with twice the usual fraction bits, times inverse (…) of `bits` fraction bits.

    Half of the inverse's range is shifted out beforehand: the product then stays small enough for shares to
    be truncated safely.
    """
    early = (bits - RECIPROCAL_BITS) // 2
    small = engine.truncate(sums, engine.form.frac_bits + early)
    spread = Secret(np.broadcast_to(inverse.parts[..., None], small.parts.shape))
    return engine.truncate(engine.multiply(small, spread), bits - early)
