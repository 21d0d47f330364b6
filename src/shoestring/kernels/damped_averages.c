/* Damped averages of the features of a sequence, h[t] = h[t-1] - damping h[t-1] + x[t], a few for each feature, and
       y[t] = skip x[t] + sum over n of weight[n] h[n, t],
   forward and backward. What is taken off is computed as such: 1 - damping would lose the digits of a slow average.

   A lane is a feature. A thread takes groups of sixteen features of a sample whole, and what a sample adds to the
   gradients of the averages is stored on its own: results do not depend on the number of threads. For the gradient
   the averages before every CHUNK steps are kept, and those between are worked out again. */

#include "lanes.h"

enum { CHUNK = 32, MOST_STATES = 32 };

typedef struct {
    int64_t batch, seq, dim, states, is_reversed, threads;
    const float *x;                                /* (batch, seq, dim) */
    const float *damping, *weight, *skip;          /* (states, dim), (states, dim), (dim) */
    float *y;
    float *kept;                                   /* (batch, chunks, states, dim), or NULL */
    const float *grad;
    float *grad_x;
    float *grad_damping, *grad_weight, *grad_skip; /* (batch, states, dim), the same, (batch, dim) */
} damped_averages;

/* Sixteen features of a sample, or the last few. */
typedef struct {
    int64_t sample, first;
    int count;
} group;

INLINE lanes take(const float *from, const group *g) {
    return g->count == LANES ? load_lanes(from + g->first) : load_some(from, g->first, g->count, FLOAT32);
}

INLINE void put(float *to, const group *g, lanes value) {
    if (g->count == LANES) store_lanes(to + g->first, value);
    else memcpy(to + g->first, &value, (size_t)g->count * sizeof(float));
}

INLINE int64_t chunks_of(const damped_averages *s) { return (s->seq + CHUNK - 1) / CHUNK; }

INLINE int64_t row_of(const damped_averages *s, const group *g, int64_t step) {
    return (g->sample * s->seq + (s->is_reversed ? s->seq - 1 - step : step)) * s->dim;
}

INLINE float *kept_at(const damped_averages *s, const group *g, int64_t chunk, int64_t n) {
    return s->kept + ((g->sample * chunks_of(s) + chunk) * s->states + n) * s->dim;
}

INLINE void load_maps(const damped_averages *s, const group *g, lanes *damping, lanes *weight, const int states) {
    for (int n = 0; n < states; n++) {
        damping[n] = take(s->damping + n * s->dim, g);
        weight[n] = take(s->weight + n * s->dim, g);
    }
}

INLINE void forward(const damped_averages *s, const group *g, const int states) {
    lanes damping[MOST_STATES], weight[MOST_STATES], h[MOST_STATES], skip = take(s->skip, g);
    load_maps(s, g, damping, weight, states);
    for (int n = 0; n < states; n++) h[n] = all(0.0f);
    for (int64_t start = 0; start < s->seq; start += CHUNK) {
        if (s->kept)
            for (int n = 0; n < states; n++) put(kept_at(s, g, start / CHUNK, n), g, h[n]);
        const int64_t end = start + CHUNK < s->seq ? start + CHUNK : s->seq;
        for (int64_t step = start; step < end; step++) {
            lanes x = take(s->x + row_of(s, g, step), g), even = skip * x, odd = all(0.0f);
#pragma GCC unroll 32
            for (int n = 0; n < states; n++) {
                h[n] += x - damping[n] * h[n];
                if (n % 2) odd += weight[n] * h[n];
                else even += weight[n] * h[n];
            }
            put(s->y + row_of(s, g, step), g, even + odd);
        }
    }
}

/* The averages of a chunk once more, forward, into `before`; what they and the gradient give the weights. */
INLINE void averages_again(const damped_averages *s, const group *g, int64_t start, int64_t end, const lanes *damping,
                           lanes before[CHUNK][MOST_STATES], lanes *grad_weight, const int states) {
    lanes h[MOST_STATES];
    for (int n = 0; n < states; n++) h[n] = take(kept_at(s, g, start / CHUNK, n), g);
    for (int64_t step = start; step < end; step++) {
        lanes x = take(s->x + row_of(s, g, step), g), grad = take(s->grad + row_of(s, g, step), g);
#pragma GCC unroll 32
        for (int n = 0; n < states; n++) {
            before[step - start][n] = h[n];
            h[n] += x - damping[n] * h[n];
            grad_weight[n] += grad * h[n];
        }
    }
}

/* back[n] at step t: what the loss gains with h[n, t]. */
INLINE void backward(const damped_averages *s, const group *g, const int states) {
    lanes damping[MOST_STATES], weight[MOST_STATES], back[MOST_STATES], skip = take(s->skip, g);
    lanes grad_damping[MOST_STATES], grad_weight[MOST_STATES], grad_skip = all(0.0f), before[CHUNK][MOST_STATES];
    load_maps(s, g, damping, weight, states);
    for (int n = 0; n < states; n++) back[n] = grad_damping[n] = grad_weight[n] = all(0.0f);
    for (int64_t start = (chunks_of(s) - 1) * CHUNK; start >= 0; start -= CHUNK) {
        const int64_t end = start + CHUNK < s->seq ? start + CHUNK : s->seq;
        averages_again(s, g, start, end, damping, before, grad_weight, states);
        for (int64_t step = end - 1; step >= start; step--) {
            lanes x = take(s->x + row_of(s, g, step), g), grad = take(s->grad + row_of(s, g, step), g);
            lanes even = skip * grad, odd = all(0.0f);
            grad_skip += x * grad;
#pragma GCC unroll 32
            for (int n = 0; n < states; n++) {
                back[n] += weight[n] * grad - damping[n] * back[n];
                grad_damping[n] -= before[step - start][n] * back[n];
                if (n % 2) odd += back[n];
                else even += back[n];
            }
            put(s->grad_x + row_of(s, g, step), g, even + odd);
        }
    }
    for (int n = 0; n < states; n++) {
        put(s->grad_damping + (g->sample * s->states + n) * s->dim, g, grad_damping[n]);
        put(s->grad_weight + (g->sample * s->states + n) * s->dim, g, grad_weight[n]);
    }
    put(s->grad_skip + g->sample * s->dim, g, grad_skip);
}

INLINE group group_of(const damped_averages *s, int64_t item) {
    const int64_t groups = (s->dim + LANES - 1) / LANES, first = item % groups * LANES;
    return (group){item / groups, first, (int)(s->dim - first < LANES ? s->dim - first : LANES)};
}

void damped_averages_forward(const damped_averages *s) {
    const int64_t items = s->batch * ((s->dim + LANES - 1) / LANES);
#pragma omp parallel for schedule(static) num_threads((int)s->threads)
    for (int64_t item = 0; item < items; item++) {
        const group g = group_of(s, item);
        if (s->states == 16) forward(s, &g, 16);
        else if (s->states == 8) forward(s, &g, 8);
        else forward(s, &g, (int)s->states);
    }
}

void damped_averages_backward(const damped_averages *s) {
    const int64_t items = s->batch * ((s->dim + LANES - 1) / LANES);
#pragma omp parallel for schedule(static) num_threads((int)s->threads)
    for (int64_t item = 0; item < items; item++) {
        const group g = group_of(s, item);
        if (s->states == 16) backward(s, &g, 16);
        else if (s->states == 8) backward(s, &g, 8);
        else backward(s, &g, (int)s->states);
    }
}
