/* What becomes of a head of queries, keys or values between its linear layer and attention. */

#ifndef SHOESTRING_HEAD_PLACEMENT_H
#define SHOESTRING_HEAD_PLACEMENT_H

#include "lanes.h"

/* x / rms(x) · gain; out may be x. */
static void normalise(const float *x, const float *gain, float epsilon, int64_t n, float *out) {
    lanes squares = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) squares += load_lanes(x + i) * load_lanes(x + i);
    if (i < n) {
        lanes rest = load_some(x, i, n - i, FLOAT32);
        squares += rest * rest;
    }
    float factor = 1.0f / sqrtf(sum_lanes(squares) / (float)n + epsilon);
    for (i = 0; i + LANES <= n; i += LANES) store_lanes(out + i, load_lanes(x + i) * factor * load_lanes(gain + i));
    for (; i < n; i++) out[i] = x[i] * factor * gain[i];
}

/* Pairs (i, i + n/2) turn by the angles of a position; the sines are signed for either half. */
static void rotate(float *x, const float *cosines, const float *sines, int64_t n) {
    int64_t half = n / 2, i = 0;
    for (; i + LANES <= half; i += LANES) {
        lanes first = load_lanes(x + i), second = load_lanes(x + i + half);
        store_lanes(x + i, first * load_lanes(cosines + i) + second * load_lanes(sines + i));
        store_lanes(x + i + half, second * load_lanes(cosines + i + half) + first * load_lanes(sines + i + half));
    }
    for (; i < half; i++) {
        float first = x[i], second = x[i + half];
        x[i] = first * cosines[i] + second * sines[i];
        x[i + half] = second * cosines[i + half] + first * sines[i + half];
    }
}

#endif
