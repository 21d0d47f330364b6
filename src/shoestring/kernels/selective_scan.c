/* The selective scan of Mamba: for every channel e and state n
       d = softplus(dt + bias),  h = exp(d A) h + d x B,  y = C h + D x,  y *= silu(z),
   position after position, with B and C shared by groups of channels.

   A lane is a channel. A thread takes whole blocks of sixteen channels of one sequence, with the state of a block
   in registers, so results do not depend on the number of threads. For the gradient only the state before each
   CHUNK positions is kept; the backward pass walks the chunks from the last and computes their states again.
   What channels add to the gradients of B and C is stored block by block and summed by the caller. */

#include <stdlib.h>

#include "activations.h"

enum { CHUNK = 64, AHEAD = 8, MOST_STATES = 256 };

typedef struct {
    int64_t batch, seq, channels, states, b_groups, c_groups, blocks; /* blocks: of each sequence */
    int64_t x_row, dt_row, z_row, b_row, c_row;                       /* floats from a position to the next */
    int64_t reverse, softplus, threads;
    const float *x, *dt, *a, *b, *c, *skip, *z, *bias, *initial;      /* skip, z, bias, initial may be NULL */
    float *y, *last, *checkpoints;                                    /* checkpoints may be NULL */
    const float *grad_y, *grad_last;
    float *grad_x, *grad_dt, *grad_z, *grad_a, *grad_b, *grad_c, *grad_skip, *grad_bias, *grad_initial;
} selective_scan;

/* One block: which channels of which sequence, and what belongs to them at every position. */
typedef struct {
    int64_t sequence, first, b_group, c_group;
    int count;
    lanes skip, bias;
} block;

INLINE lanes take(const float *from, int count) {
    return count == LANES ? load_lanes(from) : load_some(from, 0, count, FLOAT32);
}

INLINE void put(float *to, lanes value, int count) {
    if (count == LANES) store_lanes(to, value);
    else memcpy(to, &value, (size_t)count * sizeof(float));
}

INLINE block block_of(const selective_scan *s, int64_t item) {
    int64_t groups = s->b_groups > s->c_groups ? s->b_groups : s->c_groups;
    int64_t width = s->channels / groups, each = s->blocks / groups;
    int64_t number = item % s->blocks, group = number / each, start = number % each * LANES;
    block k = {.sequence = item / s->blocks, .first = group * width + start};
    k.b_group = group * s->b_groups / groups;
    k.c_group = group * s->c_groups / groups;
    k.count = (int)(width - start < LANES ? width - start : LANES);
    k.skip = s->skip ? take(s->skip + k.first, k.count) : all(0.0f);
    k.bias = s->bias ? take(s->bias + k.first, k.count) : all(0.0f);
    return k;
}

/* (channels, states) in memory, a vector of channels for each state here. */
INLINE void gather_states(lanes *to, const float *from, const block *k, int states) {
    for (int n = 0; n < states; n++) {
        lanes value = all(0.0f);
        for (int i = 0; i < k->count; i++) value[i] = from[(k->first + i) * states + n];
        to[n] = value;
    }
}

INLINE void scatter_states(float *to, const lanes *from, const block *k, int states) {
    for (int n = 0; n < states; n++)
        for (int i = 0; i < k->count; i++) to[(k->first + i) * states + n] = from[n][i];
}

INLINE int64_t row_of(const selective_scan *s, const block *k, int64_t step) {
    return k->sequence * s->seq + (s->reverse ? s->seq - 1 - step : step);
}

INLINE lanes step_size(const selective_scan *s, const block *k, int64_t row) {
    lanes raw = take(s->dt + row * s->dt_row + k->first, k->count) + k->bias;
    return s->softplus ? softplus_lanes(raw) : raw;
}

INLINE void prefetch(const selective_scan *s, const block *k, int64_t step) {
    if (step >= s->seq) return;
    int64_t row = row_of(s, k, step);
    __builtin_prefetch(s->x + row * s->x_row + k->first);
    __builtin_prefetch(s->dt + row * s->dt_row + k->first);
    if (s->z) __builtin_prefetch(s->z + row * s->z_row + k->first);
}

INLINE void forward_block(const selective_scan *s, int64_t item, const int states) {
    const float log2_e = 1.44269504f;
    const block k = block_of(s, item);
    /* What is addressed by a variable stays in memory: `h`, indexed by constants alone, lives in registers. */
    lanes h[MOST_STATES], a[MOST_STATES], stored[MOST_STATES];
    int64_t size = s->channels * states, chunks = (s->seq + CHUNK - 1) / CHUNK;
    gather_states(a, s->a, &k, states);
    for (int n = 0; n < states; n++) a[n] *= log2_e, stored[n] = all(0.0f);
    if (s->initial) gather_states(stored, s->initial + k.sequence * size, &k, states);
#pragma GCC unroll 16
    for (int n = 0; n < states; n++) h[n] = stored[n];
    for (int64_t step = 0; step < s->seq; step++) {
        if (s->checkpoints && step % CHUNK == 0) {
            float *to = s->checkpoints + (item * chunks + step / CHUNK) * states * LANES;
#pragma GCC unroll 16
            for (int n = 0; n < states; n++) store_lanes(to + n * LANES, h[n]);
        }
        prefetch(s, &k, step + AHEAD);
        int64_t row = row_of(s, &k, step);
        const float *b = s->b + row * s->b_row + k.b_group * states, *c = s->c + row * s->c_row + k.c_group * states;
        lanes d = step_size(s, &k, row), x = take(s->x + row * s->x_row + k.first, k.count);
        lanes dx = d * x, sums[2] = {k.skip * x, all(0.0f)};
#pragma GCC unroll 16
        for (int n = 0; n < states; n++) {
            h[n] = exp2_lanes(d * a[n]) * h[n] + dx * b[n];
            sums[n & 1] += h[n] * c[n];
        }
        lanes y = sums[0] + sums[1];
        if (s->z) {
            lanes z = take(s->z + row * s->z_row + k.first, k.count);
            y *= z * sigmoid_lanes(z);
        }
        put(s->y + row * s->channels + k.first, y, k.count);
    }
#pragma GCC unroll 16
    for (int n = 0; n < states; n++) stored[n] = h[n];
    scatter_states(s->last + k.sequence * size, stored, &k, states);
}

/* The sixteen channels of every state added up. */
INLINE void sum_channels(float *to, lanes *each, int states) {
    int n = 0;
    for (; n + LANES <= states; n += LANES) store_lanes(to + n, sum_each(each + n));
    for (; n < states; n++) to[n] = sum_lanes(each[n]);
}

/* Of one chunk: states before its positions and after the last, decays, step sizes. */
typedef struct {
    lanes *h, *decay, *d;
} replay;

INLINE void replay_chunk(const selective_scan *s, const block *k, int64_t item, int64_t chunk, int64_t length,
                         const lanes *a, replay r, const int states) {
    int64_t chunks = (s->seq + CHUNK - 1) / CHUNK;
    memcpy(r.h, s->checkpoints + (item * chunks + chunk) * states * LANES, (size_t)states * sizeof(lanes));
    for (int64_t i = 0; i < length; i++) {
        prefetch(s, k, chunk * CHUNK + i + AHEAD);
        int64_t row = row_of(s, k, chunk * CHUNK + i);
        const float *b = s->b + row * s->b_row + k->b_group * states;
        lanes d = step_size(s, k, row), dx = d * take(s->x + row * s->x_row + k->first, k->count);
        lanes *h = r.h + i * states, *decay = r.decay + i * states;
        r.d[i] = d;
#pragma GCC unroll 16
        for (int n = 0; n < states; n++) {
            decay[n] = exp2_lanes(d * a[n] * 1.44269504f);
            h[states + n] = decay[n] * h[n] + dx * b[n];
        }
    }
}

INLINE void backward_block(const selective_scan *s, int64_t item, lanes *room, const int states) {
    const block k = block_of(s, item);
    const int64_t size = s->channels * states, at = k.sequence * size;
    const replay r = {room, room + (CHUNK + 1) * states, room + (2 * CHUNK + 1) * states};
    lanes a[MOST_STATES], grad_h[MOST_STATES], grad_a[MOST_STATES], of_b[MOST_STATES], of_c[MOST_STATES];
    lanes grad_skip = all(0.0f), grad_bias = all(0.0f);
    gather_states(a, s->a, &k, states);
    for (int n = 0; n < states; n++) grad_h[n] = grad_a[n] = all(0.0f);
    if (s->grad_last) gather_states(grad_h, s->grad_last + at, &k, states);
    for (int64_t chunk = (s->seq - 1) / CHUNK; chunk >= 0; chunk--) {
        int64_t first = chunk * CHUNK, length = s->seq - first < CHUNK ? s->seq - first : CHUNK;
        replay_chunk(s, &k, item, chunk, length, a, r, states);
        for (int64_t i = length - 1; i >= 0; i--) {
            int64_t row = row_of(s, &k, first + i);
            const float *b = s->b + row * s->b_row + k.b_group * states;
            const float *c = s->c + row * s->c_row + k.c_group * states;
            const lanes *before = r.h + i * states, *after = before + states, *decay = r.decay + i * states;
            lanes d = r.d[i], x = take(s->x + row * s->x_row + k.first, k.count);
            lanes grad = take(s->grad_y + row * s->channels + k.first, k.count);
            if (s->z) {
                lanes z = take(s->z + row * s->z_row + k.first, k.count), gate = sigmoid_lanes(z);
                lanes y = k.skip * x;
#pragma GCC unroll 16
                for (int n = 0; n < states; n++) y += after[n] * c[n];
                put(s->grad_z + row * s->channels + k.first, grad * y * gate * (1.0f + z * (1.0f - gate)), k.count);
                grad *= z * gate;
            }
            lanes dx = d * x, grad_d = all(0.0f), grad_dx = all(0.0f);
#pragma GCC unroll 16
            for (int n = 0; n < states; n++) {
                lanes g = grad_h[n] + grad * c[n];
                of_c[n] = grad * after[n];
                of_b[n] = g * dx;
                grad_dx += g * b[n];
                g *= decay[n];
                lanes of_exponent = g * before[n];
                grad_a[n] += of_exponent * d;
                grad_d += of_exponent * a[n];
                grad_h[n] = g;
            }
            grad_skip += grad * x;
            grad_d += grad_dx * x;
            if (s->softplus)
                grad_d *= sigmoid_lanes(take(s->dt + row * s->dt_row + k.first, k.count) + k.bias);
            grad_bias += grad_d;
            put(s->grad_x + row * s->channels + k.first, grad * k.skip + grad_dx * d, k.count);
            put(s->grad_dt + row * s->channels + k.first, grad_d, k.count);
            int64_t own = (item * s->seq + row - k.sequence * s->seq) * states;
            sum_channels(s->grad_b + own, of_b, states);
            sum_channels(s->grad_c + own, of_c, states);
        }
    }
    scatter_states(s->grad_a + at, grad_a, &k, states);
    scatter_states(s->grad_initial + at, grad_h, &k, states);
    put(s->grad_skip + k.sequence * s->channels + k.first, grad_skip, k.count);
    put(s->grad_bias + k.sequence * s->channels + k.first, grad_bias, k.count);
}

void selective_scan_forward(const selective_scan *s) {
#pragma omp parallel for schedule(dynamic) num_threads((int)s->threads)
    for (int64_t item = 0; item < s->batch * s->blocks; item++) {
        if (s->states == 16) forward_block(s, item, 16);
        else forward_block(s, item, (int)s->states);
    }
}

/* 1 where there was no memory. */
int selective_scan_backward(const selective_scan *s) {
    int failed = 0;
    size_t bytes = (size_t)((2 * CHUNK + 1) * s->states + CHUNK) * sizeof(lanes);
#pragma omp parallel num_threads((int)s->threads)
    {
        lanes *room = aligned_alloc(sizeof(lanes), bytes);
        if (!room) {
#pragma omp atomic write
            failed = 1;
        } else {
#pragma omp for schedule(dynamic)
            for (int64_t item = 0; item < s->batch * s->blocks; item++) {
                if (s->states == 16) backward_block(s, item, room, 16);
                else backward_block(s, item, room, (int)s->states);
            }
        }
        free(room);
    }
    return failed;
}
