/* Attention of a few new tokens over the slots of a cache, in pieces of CHUNK slots with partial softmaxes.

   A piece of one key-value head belongs to one thread; how a sequence is cut does not depend on the number of
   threads, and pieces are merged in their order, so neither does the result.
   Source: Dao et al. 2023, "Flash-Decoding": a softmax over a split sequence, merged by its maxima and sums. */

#ifndef SHOESTRING_DECODE_ATTENTION_H
#define SHOESTRING_DECODE_ATTENTION_H

#include "lanes.h"

enum { CHUNK = 128, GROUP = 4 /* queries that share a key when it is read */ };

typedef struct {
    int64_t heads, kv_heads, head_dim, tokens, start, window; /* window 0: all */
    int64_t capacity;                                         /* slots between two heads of the cache */
    float scale;
    int kind; /* how the cache stores numbers */
} attention_shape;

/* Partial results of one row and head in one piece: the largest score, the sum, and head_dim weighted sums. */
INLINE int64_t partial_floats(int64_t head_dim) { return head_dim + 2; }

INLINE int64_t chunks_until(int64_t slots) { return (slots + CHUNK - 1) / CHUNK; }

/* scores[query][slot] of up to GROUP queries with a run of `slots` <= 16 slots; every key is read once. */
INLINE void score_run(const float *q, const void *keys, const void *values, int64_t index, int64_t slots, int64_t n, float scale,
                      int queries, int kind, float scores[GROUP][CHUNK]) {
    lanes sums[GROUP][LANES] = {0};
    int64_t whole = n - n % LANES;
    for (int64_t s = 0; s < slots; s++) {
        int64_t here = index + s * n, bytes = storage_bytes(kind);
        lanes sum[GROUP] = {0};
        /* Ask for the values, which come next, and for the keys of the next run. */
        for (int64_t i = 0; i < n * bytes; i += 64) {
            __builtin_prefetch((const char *)values + here * bytes + i);
            __builtin_prefetch((const char *)keys + (here + LANES * n) * bytes + i);
        }
        for (int64_t i = 0; i < whole; i += LANES) {
            lanes key = load_stored(keys, here + i, kind);
            for (int g = 0; g < queries; g++) sum[g] += load_lanes(q + g * n + i) * key;
        }
        if (whole < n) {
            lanes key = load_some(keys, here + whole, n - whole, kind);
            for (int g = 0; g < queries; g++) sum[g] += load_some(q, g * n + whole, n - whole, FLOAT32) * key;
        }
        for (int g = 0; g < queries; g++) sums[g][s] = sum[g];
    }
    for (int g = 0; g < queries; g++) store_lanes(scores[g], scale * sum_each(sums[g]));
}

INLINE lanes stored_or_some(const void *from, int64_t index, int64_t count, int kind) {
    return count == LANES ? load_stored(from, index, kind) : load_some(from, index, count, kind);
}

/* out[query][i…] = Σ weights[query][slot] · value, for `count` <= 16 channels; every value is read once. */
INLINE void weigh_channels(const void *values, int64_t index, int64_t slots, int64_t n, int64_t count, int queries,
                           int kind, float weights[GROUP][CHUNK], float *const out[GROUP], int64_t i) {
    lanes even[GROUP] = {0}, odd[GROUP] = {0};
    int64_t s = 0;
    for (; s + 2 <= slots; s += 2) {
        lanes first = stored_or_some(values, index + s * n, count, kind);
        lanes second = stored_or_some(values, index + (s + 1) * n, count, kind);
        for (int g = 0; g < queries; g++) {
            even[g] += weights[g][s] * first;
            odd[g] += weights[g][s + 1] * second;
        }
    }
    if (s < slots) {
        lanes last = stored_or_some(values, index + s * n, count, kind);
        for (int g = 0; g < queries; g++) even[g] += weights[g][s] * last;
    }
    for (int g = 0; g < queries; g++) {
        lanes sum = even[g] + odd[g];
        memcpy(out[g] + i, &sum, (size_t)count * 4);
    }
}

INLINE void weigh_values(const void *values, int64_t index, int64_t slots, int64_t n, int queries, int kind,
                         float weights[GROUP][CHUNK], float *const out[GROUP]) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        weigh_channels(values, index + i, slots, n, LANES, queries, kind, weights, out, i);
    if (i < n) weigh_channels(values, index + i, slots, n, n - i, queries, kind, weights, out, i);
}

/* Up to GROUP queries against slots [first, end) of one head: partials <- their softmaxes over them. */
INLINE void attend_queries(const float *q, const void *keys, const void *values, int64_t base, int64_t first,
                           int64_t end, const attention_shape *shape, int queries, int kind,
                           float *const partials[GROUP]) {
    int64_t slots = end - first, n = shape->head_dim, index = base + first * n;
    float scores[GROUP][CHUNK], *out[GROUP];
    for (int64_t s = 0; s < slots; s += LANES) {
        int64_t run = slots - s < LANES ? slots - s : LANES;
        float here[GROUP][CHUNK];
        score_run(q, keys, values, index + s * n, run, n, shape->scale, queries, kind, here);
        for (int g = 0; g < queries; g++) {
            for (int64_t i = run; i < LANES; i++) here[g][i] = -INFINITY;
            memcpy(scores[g] + s, here[g], LANES * 4);
        }
    }
    for (int g = 0; g < queries; g++) {
        lanes most = all(-INFINITY), sum = {0};
        for (int64_t s = 0; s < slots; s += LANES) most = larger(most, load_lanes(scores[g] + s));
        float largest = largest_lane(most);
        for (int64_t s = 0; s < slots; s += LANES) {
            lanes score = load_lanes(scores[g] + s), weight = exp_lanes(score - largest);
            weight = choose(score == all(-INFINITY), (lanes){0}, weight);
            store_lanes(scores[g] + s, weight);
            sum += weight;
        }
        partials[g][0] = largest, partials[g][1] = sum_lanes(sum);
        out[g] = partials[g] + 2;
    }
    weigh_values(values, index, slots, n, queries, kind, scores, out);
}

INLINE void attend_piece(const float *q, const void *keys, const void *values, int64_t head, int64_t chunk,
                         int64_t n_chunks, const attention_shape *shape, int kind, float *partials) {
    int64_t group = shape->heads / shape->kv_heads, n = shape->head_dim;
    int64_t base = head * shape->capacity * n;
    for (int64_t row = 0; row < shape->tokens; row++) {
        int64_t position = shape->start + row, first = chunk * CHUNK, end = first + CHUNK;
        if (end > position + 1) end = position + 1;
        if (shape->window && first < position + 1 - shape->window) first = position + 1 - shape->window;
        for (int64_t g = 0; g < group; g += GROUP) {
            int64_t one = row * shape->heads + head * group + g, queries = group - g < GROUP ? group - g : GROUP;
            float *part[GROUP];
            for (int64_t i = 0; i < queries; i++) {
                part[i] = partials + ((one + i) * n_chunks + chunk) * partial_floats(n);
                part[i][0] = -INFINITY;
            }
            if (first >= end) continue;
            if (queries == 1) attend_queries(q + one * n, keys, values, base, first, end, shape, 1, kind, part);
            else if (queries == 2) attend_queries(q + one * n, keys, values, base, first, end, shape, 2, kind, part);
            else if (queries == 3) attend_queries(q + one * n, keys, values, base, first, end, shape, 3, kind, part);
            else attend_queries(q + one * n, keys, values, base, first, end, shape, 4, kind, part);
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
