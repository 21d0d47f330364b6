/* Rows of a sequence from which tokens were left out: moved there and back, weighed, and added up.

   An index says for each row where it comes from, and -1 where it comes from nowhere and is 0. The index of the
   way back is its inverse: both directions only read, so that nothing is added up twice and results do not depend
   on the number of threads. */

#include "activations.h"

typedef struct {
    int64_t tokens, slots, width, threads, is_rectified;
    const int64_t *slot_of, *token_of; /* (tokens), (slots); both NULL where all tokens stay */
    const float *x, *g;                /* (tokens, width), or both NULL for 0 */
    const float *h, *weight;           /* (slots, width); (tokens), or NULL for 1 */
    float *sum, *y;                    /* (tokens, width): x + g + weight h, and what is made of it */
    const float *grad;                 /* of y */
    float *grad_sum, *grad_h, *grad_weight;
} compressed_sum;

INLINE int width_at(int64_t first, int64_t end) { return (int)(end - first < LANES ? end - first : LANES); }

INLINE lanes take(const float *from, int count) {
    return count == LANES ? load_lanes(from) : load_some(from, 0, count, FLOAT32);
}

INLINE void put(float *to, lanes value, int count) {
    if (count == LANES) store_lanes(to, value);
    else memcpy(to, &value, (size_t)count * sizeof(float));
}

/* Sequence by sequence: slot_of[t] = its first slot + active tokens before t, and the other way round. Slots that
   no token fills have -1. Where token_of is NULL only the counts are made. */
void compressed_rows_places(const uint8_t *active, int64_t batch, int64_t seq, int64_t slots, int64_t *counts,
                            int64_t *slot_of, int64_t *token_of) {
    for (int64_t sample = 0; sample < batch; sample++) {
        const int64_t first = sample * seq;
        int64_t count = 0;
        if (!token_of) {
            for (int64_t t = 0; t < seq; t++) count += active[first + t];
            counts[sample] = count;
            continue;
        }
        int64_t *tokens = token_of + sample * slots;
        for (int64_t t = first; t < first + seq; t++) {
            slot_of[t] = active[t] ? sample * slots + count : -1;
            if (active[t]) tokens[count++] = t;
        }
        while (count < slots) tokens[count++] = -1;
    }
}

void compressed_rows_move(const char *from, const int64_t *index, char *to, int64_t rows, int64_t bytes,
                          int64_t threads) {
#pragma omp parallel for schedule(static) num_threads((int)threads)
    for (int64_t row = 0; row < rows; row++) {
        if (index[row] < 0) memset(to + row * bytes, 0, (size_t)bytes);
        else memcpy(to + row * bytes, from + index[row] * bytes, (size_t)bytes);
    }
}

/* y = x + g + weight h, rectified or not. */
void compressed_rows_sum(const compressed_sum *s) {
#pragma omp parallel for schedule(static) num_threads((int)s->threads)
    for (int64_t t = 0; t < s->tokens; t++) {
        const int64_t slot = s->slot_of ? s->slot_of[t] : t;
        const float weight = s->weight ? s->weight[t] : 1.0f;
        for (int64_t i = 0; i < s->width; i += LANES) {
            const int count = width_at(i, s->width);
            const int64_t at = t * s->width + i;
            lanes sum = s->x ? take(s->x + at, count) + take(s->g + at, count) : all(0.0f);
            if (slot >= 0) sum += weight * take(s->h + slot * s->width + i, count);
            if (s->is_rectified) {
                put(s->sum + at, sum, count);
                sum *= quick_sigmoid_lanes(sum);
            }
            put(s->y + at, sum, count);
        }
    }
}

/* Of a token, and of its slot if it has one. */
static void sum_back(const compressed_sum *s, int64_t t) {
    const int64_t slot = s->slot_of ? s->slot_of[t] : t;
    const float weight = s->weight ? s->weight[t] : 1.0f;
    lanes dot = all(0.0f);
    for (int64_t i = 0; i < s->width; i += LANES) {
        const int count = width_at(i, s->width);
        const int64_t at = t * s->width + i, from = slot * s->width + i;
        lanes grad = take(s->grad + at, count);
        if (s->is_rectified) {
            lanes sum = take(s->sum + at, count), gate = quick_sigmoid_lanes(sum);
            grad *= gate * (1.0f + sum * (1.0f - gate));
            put(s->grad_sum + at, grad, count);
        }
        if (slot < 0 || !s->grad_h) continue;
        put(s->grad_h + from, weight * grad, count);
        if (s->grad_weight) dot += grad * take(s->h + from, count);
    }
    if (s->grad_weight) s->grad_weight[t] = sum_lanes(dot);
}

void compressed_rows_sum_back(const compressed_sum *s) {
#pragma omp parallel num_threads((int)s->threads)
    {
#pragma omp for schedule(static) nowait
        for (int64_t t = 0; t < s->tokens; t++) sum_back(s, t);
        if (s->token_of && s->grad_h) {
#pragma omp for schedule(static)
            for (int64_t slot = 0; slot < s->slots; slot++)
                if (s->token_of[slot] < 0) memset(s->grad_h + slot * s->width, 0, sizeof(float) * (size_t)s->width);
        }
    }
}
