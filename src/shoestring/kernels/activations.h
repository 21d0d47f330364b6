/* Exponential, softplus and sigmoid of sixteen floats. */

#ifndef SHOESTRING_ACTIVATIONS_H
#define SHOESTRING_ACTIVATIONS_H

#include "lanes.h"

INLINE lanes at_least(lanes x, lanes bound) {
#if defined(__AVX512F__)
    return (lanes)_mm512_max_ps((__m512)x, (__m512)bound);
#else
    return choose(x < bound, bound, x);
#endif
}

/* 2^x for x up to 127, to two units in the last place; 0 or next to it below -126.
   Coefficients: a minimax fit of degree 6 on [-1/2, 1/2] with 1 at 0; relative error below 2e-9 before rounding. */
INLINE lanes exp2_lanes(lanes x) {
    const float rounder = 12582912.0f;
    x = at_least(x, all(-126.0f));
    lanes shifted = x + rounder, r = x - (shifted - rounder);
    lanes p = all(0.000153533619f);
    p = p * r + 0.00133988750f;
    p = p * r + 0.00961843692f;
    p = p * r + 0.0555033237f;
    p = p * r + 0.240226477f;
    p = p * r + 0.693147182f;
    p = p * r + 1.0f;
    return (lanes)((int_lanes)p + ((int_lanes)shifted << 23));
}

INLINE lanes at_most(lanes x, lanes bound) {
#if defined(__AVX512F__)
    return (lanes)_mm512_min_ps((__m512)x, (__m512)bound);
#else
    return choose(x > bound, bound, x);
#endif
}

/* 1 / (1 + e^-x) to three units in the last place; next to 0 below -87. */
INLINE lanes quick_sigmoid_lanes(lanes x) {
    return 1.0f / (1.0f + exp2_lanes(at_most(x * -1.44269504f, all(126.0f))));
}

INLINE lanes sigmoid_lanes(lanes x) { return 1.0f / (1.0f + exp_lanes(-x)); }

/* log(1 + u) for u in [0, 1]: 2 artanh(u / (2 + u)); the argument is at most 1/3, where the series' next term is
   below 2e-9 of the sum. */
INLINE lanes log1p_lanes(lanes u) {
    lanes s = u / (2.0f + u), q = s * s;
    lanes p = all(1.0f / 15);
    p = p * q + 1.0f / 13;
    p = p * q + 1.0f / 11;
    p = p * q + 1.0f / 9;
    p = p * q + 1.0f / 7;
    p = p * q + 1.0f / 5;
    p = p * q + 1.0f / 3;
    return 2.0f * s * (p * q + 1.0f);
}

/* log(1 + e^x), which never overflows. */
INLINE lanes softplus_lanes(lanes x) {
    lanes size = choose(x < 0.0f, -x, x);
    return at_least(x, all(0.0f)) + log1p_lanes(exp_lanes(-size));
}

#endif
