/* Sums of real geometric sequences, taps[t] = sum over n of c[n] exp(t l[n]), row by row, and their gradients.

   A lane is a tap. Powers go on by multiplication and begin anew from an exponential every STRETCH taps, so that
   rounding does not add up. A thread takes whole rows, so results do not depend on the number of threads. */

#include "lanes.h"

enum { VECTORS = 16, STRETCH = VECTORS * LANES, MOST_STATES = 128 };

typedef struct {
    int64_t rows, states, length, threads;
    const float *coefficients, *log_poles; /* (rows, states) */
    float *taps;                           /* (rows, length) */
    const float *grad;
    float *to_coefficients, *to_log_poles;
} real_vandermonde;

INLINE lanes times_from(int64_t start) {
    lanes t;
    for (int i = 0; i < LANES; i++) t[i] = (float)(start + i);
    return t;
}

/* Vectors of a stretch before a state is so small that nothing is left of it: going on would only meet numbers that
   are slow to multiply. */
INLINE int vectors_left(float log_pole, int64_t start) {
    if (!(log_pole < 0.0f)) return VECTORS;
    const float left = (-80.0f / log_pole - (float)start) / LANES;
    return left < VECTORS ? (left > 0.0f ? (int)left + 1 : 0) : VECTORS;
}

INLINE void add_powers(lanes *sums, lanes power, float step, const int vectors) {
#pragma GCC unroll 16
    for (int i = 0; i < vectors; i++) {
        sums[i] += power;
        power *= step;
    }
}

INLINE void weigh_powers(const lanes *grad, const lanes *grad_time, lanes power, float step, const int vectors,
                         lanes *plain, lanes *timed) {
    lanes sum = {0}, sum_time = {0};
#pragma GCC unroll 16
    for (int i = 0; i < vectors; i++) {
        sum += power * grad[i];
        sum_time += power * grad_time[i];
        power *= step;
    }
    *plain += sum;
    *timed += sum_time;
}

static void forward_row(const real_vandermonde *p, int64_t row, const float *steps) {
    const float *coefficients = p->coefficients + row * p->states, *log_poles = p->log_poles + row * p->states;
    for (int64_t start = 0; start < p->length; start += STRETCH) {
        lanes sums[VECTORS] = {{0}};
        for (int64_t n = 0; n < p->states; n++) {
            const int vectors = vectors_left(log_poles[n], start);
            if (!vectors) continue;
            lanes power = coefficients[n] * exp_lanes(log_poles[n] * times_from(start));
            if (vectors == VECTORS) add_powers(sums, power, steps[n], VECTORS);
            else add_powers(sums, power, steps[n], vectors);
        }
        float *to = p->taps + row * p->length + start;
        int64_t count = p->length - start < STRETCH ? p->length - start : STRETCH;
        memcpy(to, sums, (size_t)count * sizeof(float));
    }
}

static void backward_row(const real_vandermonde *p, int64_t row, const float *steps) {
    const float *log_poles = p->log_poles + row * p->states;
    lanes plain[MOST_STATES] = {{0}}, timed[MOST_STATES] = {{0}};
    for (int64_t start = 0; start < p->length; start += STRETCH) {
        lanes grad[VECTORS] = {{0}}, grad_time[VECTORS];
        int64_t count = p->length - start < STRETCH ? p->length - start : STRETCH;
        memcpy(grad, p->grad + row * p->length + start, (size_t)count * sizeof(float));
        for (int i = 0; i < VECTORS; i++) grad_time[i] = grad[i] * times_from(start + i * LANES);
        for (int64_t n = 0; n < p->states; n++) {
            const int vectors = vectors_left(log_poles[n], start);
            if (!vectors) continue;
            lanes power = exp_lanes(log_poles[n] * times_from(start));
            if (vectors == VECTORS) weigh_powers(grad, grad_time, power, steps[n], VECTORS, plain + n, timed + n);
            else weigh_powers(grad, grad_time, power, steps[n], vectors, plain + n, timed + n);
        }
    }
    for (int64_t n = 0; n < p->states; n++) {
        int64_t at = row * p->states + n;
        p->to_coefficients[at] = sum_lanes(plain[n]);
        p->to_log_poles[at] = p->coefficients[at] * sum_lanes(timed[n]);
    }
}

/* How far a vector of taps is from the next. */
INLINE void fill_steps(const real_vandermonde *p, int64_t row, float steps[MOST_STATES]) {
    for (int64_t n = 0; n < p->states; n++) steps[n] = expf(LANES * p->log_poles[row * p->states + n]);
}

void real_vandermonde_forward(const real_vandermonde *p) {
#pragma omp parallel for schedule(static) num_threads((int)p->threads)
    for (int64_t row = 0; row < p->rows; row++) {
        float steps[MOST_STATES];
        fill_steps(p, row, steps);
        forward_row(p, row, steps);
    }
}

void real_vandermonde_backward(const real_vandermonde *p) {
#pragma omp parallel for schedule(static) num_threads((int)p->threads)
    for (int64_t row = 0; row < p->rows; row++) {
        float steps[MOST_STATES];
        fill_steps(p, row, steps);
        backward_row(p, row, steps);
    }
}
