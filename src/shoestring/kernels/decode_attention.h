/* Attention of a few new tokens over the slots of a cache, in pieces of CHUNK slots with partial softmaxes.

   A piece of one key-value head belongs to one thread; how a sequence is cut does not depend on the number of
   threads, and pieces are merged in their order, so neither does the result.
   Source: Dao et al. 2023, "Flash-Decoding": a softmax over a split sequence, merged by its maxima and sums. */

#ifndef SHOESTRING_DECODE_ATTENTION_H
#define SHOESTRING_DECODE_ATTENTION_H

#include "lanes.h"

enum { CHUNK = 128 };

typedef struct {
    int64_t heads, kv_heads, head_dim, tokens, start, window; /* window 0: all */
    int64_t capacity;                                         /* slots between two heads of the cache */
    float scale;
    int kind; /* how the cache stores numbers */
} attention_shape;

/* Partial results of one row and head in one piece: the largest score, the sum, and head_dim weighted sums. */
INLINE int64_t partial_floats(int64_t head_dim) { return head_dim + 2; }

INLINE int64_t chunks_until(int64_t slots) { return (slots + CHUNK - 1) / CHUNK; }

INLINE float dot_stored(const float *a, const void *b, int64_t index, int64_t n, int kind) {
    lanes sum = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) sum += load_lanes(a + i) * load_stored(b, index + i, kind);
    if (i < n) sum += load_some(a, i, n - i, FLOAT32) * load_some(b, index + i, n - i, kind);
    return sum_lanes(sum);
}

INLINE void add_weighted(float *out, const void *values, int64_t index, int64_t stride, const float *weights,
                         int64_t slots, int64_t n, int kind) {
    for (int64_t i = 0; i < n; i += LANES) {
        int64_t rest = n - i;
        lanes even = {0}, odd = {0};
        int64_t s = 0;
        if (rest >= LANES) {
            for (; s + 2 <= slots; s += 2) {
                even += weights[s] * load_stored(values, index + s * stride + i, kind);
                odd += weights[s + 1] * load_stored(values, index + (s + 1) * stride + i, kind);
            }
            if (s < slots) even += weights[s] * load_stored(values, index + s * stride + i, kind);
            store_lanes(out + i, even + odd);
        } else {
            for (; s < slots; s++) even += weights[s] * load_some(values, index + s * stride + i, rest, kind);
            even += odd;
            memcpy(out + i, &even, (size_t)rest * 4);
        }
    }
}

/* One query against slots [first, end) of one head: partial <- its softmax over them. */
INLINE void attend_query(const float *q, const void *keys, const void *values, int64_t base, int64_t first,
                         int64_t end, const attention_shape *shape, int kind, float *partial) {
    int64_t slots = end - first, n = shape->head_dim, index = base + first * n;
    float scores[CHUNK], largest = -INFINITY;
    for (int64_t s = 0; s < slots; s++) {
        scores[s] = shape->scale * dot_stored(q, keys, index + s * n, n, kind);
        largest = scores[s] > largest ? scores[s] : largest;
    }
    for (int64_t s = slots; s % LANES; s++) scores[s] = -INFINITY;
    lanes sum = {0};
    for (int64_t s = 0; s < slots; s += LANES) {
        lanes score = load_lanes(scores + s), weight = exp_lanes(score - largest);
        weight = choose(score == all(-INFINITY), (lanes){0}, weight);
        store_lanes(scores + s, weight);
        sum += weight;
    }
    partial[0] = largest, partial[1] = sum_lanes(sum);
    add_weighted(partial + 2, values, index, n, scores, slots, n, kind);
}

INLINE void attend_piece(const float *q, const void *keys, const void *values, int64_t head, int64_t chunk,
                         int64_t n_chunks, const attention_shape *shape, int kind, float *partials) {
    int64_t group = shape->heads / shape->kv_heads, n = shape->head_dim;
    int64_t base = head * shape->capacity * n;
    for (int64_t row = 0; row < shape->tokens; row++) {
        int64_t position = shape->start + row, first = chunk * CHUNK, end = first + CHUNK;
        if (end > position + 1) end = position + 1;
        if (shape->window && first < position + 1 - shape->window) first = position + 1 - shape->window;
        for (int64_t g = 0; g < group; g++) {
            int64_t one = row * shape->heads + head * group + g;
            float *partial = partials + (one * n_chunks + chunk) * partial_floats(n);
            if (first < end) {
                attend_query(q + one * n, keys, values, base, first, end, shape, kind, partial);
            } else {
                partial[0] = -INFINITY;
            }
        }
    }
}

/* The pieces of this thread. */
static void attend_share(const float *q, const void *keys, const void *values, const attention_shape *shape,
                         float *partials, int thread, int n_threads) {
    int64_t n_chunks = chunks_until(shape->start + shape->tokens);
    int64_t skipped = shape->window && shape->start + 1 > shape->window ? (shape->start + 1 - shape->window) / CHUNK : 0;
    int64_t pieces = shape->kv_heads * (n_chunks - skipped);
    for (int64_t piece = pieces * thread / n_threads; piece < pieces * (thread + 1) / n_threads; piece++) {
        int64_t head = piece / (n_chunks - skipped), chunk = skipped + piece % (n_chunks - skipped);
        if (shape->kind == FLOAT32)
            attend_piece(q, keys, values, head, chunk, n_chunks, shape, FLOAT32, partials);
        else if (shape->kind == BFLOAT16)
            attend_piece(q, keys, values, head, chunk, n_chunks, shape, BFLOAT16, partials);
        else
            attend_piece(q, keys, values, head, chunk, n_chunks, shape, FLOAT16, partials);
    }
}

/* out (tokens, heads, head_dim): all of it, by every thread for itself. */
static void merge_pieces(const float *partials, const attention_shape *shape, float *out) {
    int64_t n = shape->head_dim, n_chunks = chunks_until(shape->start + shape->tokens);
    int64_t skipped = shape->window && shape->start + 1 > shape->window ? (shape->start + 1 - shape->window) / CHUNK : 0;
    for (int64_t one = 0; one < shape->tokens * shape->heads; one++, out += n) {
        const float *part = partials + one * n_chunks * partial_floats(n);
        float largest = -INFINITY, total = 0.0f;
        for (int64_t c = skipped; c < n_chunks; c++) {
            float here = part[c * partial_floats(n)];
            largest = here > largest ? here : largest;
        }
        memset(out, 0, (size_t)n * 4);
        for (int64_t c = skipped; c < n_chunks; c++) {
            const float *from = part + c * partial_floats(n);
            if (from[0] == -INFINITY) continue;
            float weight = expf(from[0] - largest);
            total += weight * from[1];
            for (int64_t i = 0; i < n; i++) out[i] += weight * from[2 + i];
        }
        float inverse = 1.0f / total;
        for (int64_t i = 0; i < n; i++) out[i] *= inverse;
    }
}

#endif
