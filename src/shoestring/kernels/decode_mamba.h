/* What a Mamba mixer with grouped inputs does between its projections, for a run of tokens of each sequence: short
   convolution, step sizes, selective step, skip and gate, in place on the states that the cache keeps.

   A lane is a state where states are stepped, a channel elsewhere. A thread takes whole blocks of sixteen channels
   of one sequence, so no result depends on the number of threads.
   Source: the equations of layers/mamba/grouped_mamba.py. */

#ifndef SHOESTRING_DECODE_MAMBA_H
#define SHOESTRING_DECODE_MAMBA_H

#include "activations.h"

/* The same fields in the same order as `MixerFields` and `StateFields` of decode_mamba.py. */
typedef struct {
    const float *dt_weight, *dt_bias;     /* (inner, rank), (inner) */
    const float *conv_weight, *conv_bias; /* (width, inner), (inner) */
    const float *decays, *skip;           /* (inner, states) A · log2 e, (inner) */
    int64_t inner, shared, states, rank, width;
} mamba_mixer;

/* Of all samples: (samples, width − 1, inner) of a kind in lanes.h, and (samples, inner, states). */
typedef struct {
    char *conv;
    float *ssm;
    int64_t conv_kind;
} mamba_states;

/* Neighbouring rows: tokens of one sample, in order. */
typedef struct {
    int64_t first_row, tokens, sample;
} token_run;

/* Sixteen channels of one run. */
typedef struct {
    const mamba_mixer *m;
    int64_t first, count;
    const float *mixed, *low; /* rows of z, x, B and C, and of the input of the step sizes */
    float *ssm, *y;
} channel_block;

INLINE int64_t mixed_width(const mamba_mixer *m) { return 2 * (m->inner + m->shared); }

INLINE lanes take_floats(const float *from, int64_t count) {
    return count == LANES ? load_lanes(from) : load_some(from, 0, count, FLOAT32);
}

INLINE void put_floats(float *to, lanes value, int64_t count) {
    memcpy(to, &value, (size_t)count * sizeof(float));
}

/* The head of x and of B that channel c has: both are repeated, as keys and values are in attention. */
INLINE int64_t shared_head(const mamba_mixer *m, int64_t c, int64_t states) {
    return c / states / (m->inner / m->shared);
}

INLINE lanes repeated_inputs(const channel_block *b, const float *x, int64_t states) {
    lanes found = all(0.0f);
    for (int64_t i = 0; i < b->count; i++) {
        int64_t c = b->first + i;
        found[i] = x[shared_head(b->m, c, states) * states + c % states];
    }
    return found;
}

/* softplus(W low + bias) of each channel. */
INLINE lanes step_sizes(const channel_block *b, const float *low, int64_t rank) {
    lanes sums[LANES] = {0};
    for (int64_t r = 0; r < rank; r += LANES) {
        int64_t n = rank - r < LANES ? rank - r : LANES;
        lanes input = take_floats(low + r, n);
        for (int64_t i = 0; i < b->count; i++)
            sums[i] += take_floats(b->m->dt_weight + (b->first + i) * rank + r, n) * input;
    }
    return softplus_lanes(sum_each(sums) + take_floats(b->m->dt_bias + b->first, b->count));
}

/* h <- exp(d A) h + dx B of one channel; the lanes add up to C · h. */
INLINE lanes step_channel(float *h, const float *decays, const float *B, const float *C, float d, float dx,
                          int64_t states) {
    lanes sum = all(0.0f);
    for (int64_t s = 0; s < states; s += LANES) {
        int64_t n = states - s < LANES ? states - s : LANES;
        lanes next = exp2_lanes(d * take_floats(decays + s, n)) * take_floats(h + s, n) + dx * take_floats(B + s, n);
        put_floats(h + s, next, n);
        sum += next * take_floats(C + s, n);
    }
    return sum;
}

/* One token: u, the convolved inputs, through the states to y. */
INLINE void step_block(const channel_block *b, int64_t row, lanes u, int64_t states, int64_t rank) {
    const mamba_mixer *m = b->m;
    const float *z = b->mixed + row * mixed_width(m), *B = z + m->inner + m->shared, *C = B + m->shared;
    float d[LANES], dx[LANES];
    lanes sizes = step_sizes(b, b->low + row * rank, rank), sums[LANES] = {0};
    store_lanes(d, sizes), store_lanes(dx, sizes * u);
    for (int64_t i = 0; i < b->count; i++) {
        int64_t c = b->first + i;
        sums[i] = step_channel(b->ssm + c * states, m->decays + c * states, B + shared_head(m, c, states) * states,
                               C + c / states * states, d[i], dx[i], states);
    }
    lanes gate = take_floats(z + b->first, b->count);
    lanes y = (sum_each(sums) + take_floats(m->skip + b->first, b->count) * u) * gate * sigmoid_lanes(gate);
    put_floats(b->y + row * m->inner + b->first, y, b->count);
}

/* Sixteen channels from `first` on through the tokens of a run. */
INLINE void scan_block(const channel_block *b, const token_run *run, char *conv, int kind, int64_t states,
                       int64_t rank) {
    const mamba_mixer *m = b->m;
    int64_t before = m->width - 1;
    lanes seen[m->width], taps[m->width], bias = take_floats(m->conv_bias + b->first, b->count);
    for (int64_t k = 0; k < m->width; k++) taps[k] = take_floats(m->conv_weight + k * m->inner + b->first, b->count);
    for (int64_t k = 0; k < before; k++) seen[k] = load_some(conv, k * m->inner + b->first, b->count, kind);
    for (int64_t row = run->first_row; row < run->first_row + run->tokens; row++) {
        lanes sum = bias;
        seen[before] = repeated_inputs(b, b->mixed + row * mixed_width(m) + m->inner, states);
        for (int64_t k = 0; k < m->width; k++) sum += taps[k] * seen[k];
        for (int64_t k = 0; k < before; k++) seen[k] = seen[k + 1];
        step_block(b, row, sum * sigmoid_lanes(sum), states, rank);
    }
    for (int64_t k = 0; k < before; k++) {
        float inputs[LANES];
        store_lanes(inputs, seen[k]);
        store_numbers(conv + (k * m->inner + b->first) * storage_bytes(kind), inputs, b->count, kind);
    }
}

/* This thread's blocks of all runs. mixed: (rows, mixed_width), low: (rows, rank), y: (rows, inner). */
static void scan_runs(const mamba_mixer *m, const mamba_states *states, const float *mixed, const float *low, float *y,
                      const token_run *runs, int64_t n_runs, int thread, int n_threads) {
    int64_t blocks = (m->inner + LANES - 1) / LANES, all_blocks = n_runs * blocks;
    for (int64_t one = all_blocks * thread / n_threads; one < all_blocks * (thread + 1) / n_threads; one++) {
        const token_run *run = runs + one / blocks;
        int64_t first = one % blocks * LANES, count = m->inner - first < LANES ? m->inner - first : LANES;
        int kind = (int)states->conv_kind;
        char *conv = states->conv + run->sample * (m->width - 1) * m->inner * storage_bytes(kind);
        channel_block b = {m, first, count, mixed, low, states->ssm + run->sample * m->inner * m->states, y};
        /* The sizes as published are constants to the compiler. */
        if (m->states == LANES && m->rank == LANES) scan_block(&b, run, conv, kind, LANES, LANES);
        else scan_block(&b, run, conv, kind, m->states, m->rank);
    }
}

#endif
