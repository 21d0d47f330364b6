/* Attention of a few new tokens over the slots of a cache, CHUNK by CHUNK, in SPANS pieces with partial softmaxes.

   A piece of one key-value head belongs to one thread. How the slots that a token sees are cut depends on nothing
   but its position, and pieces are merged in their order: so neither the number of threads nor what else is
   computed changes a result. Every key and value is read once for all queries of its head. Codes are never
   decoded: with k = s·c + l, q·k = s·(q·c) + l·Σ q, and Σ p·v = Σ (p·s)·c + Σ p·l.
   Sources: Dao et al. 2023, "Flash-Decoding": a softmax over a split sequence, merged by its maxima and sums;
   grids outside the inner loop: TurboMind, InternLM/lmdeploy. */

#ifndef SHOESTRING_DECODE_ATTENTION_H
#define SHOESTRING_DECODE_ATTENTION_H

#include "attention_shape.h"

enum { CHUNK = 128, SPANS = 8, GROUP = 4 /* queries that share a key when it is read */ };
/* Of one query in a chunk: a run of 16 that ends beyond it still fits. */
enum { SCORES = CHUNK + LANES };
enum { KINDS = 6, STRIP = 4 /* vectors of a row of values that are summed up together */ };

/* Partial results of one query in one piece: the largest score, the sum, and head_dim weighted sums. */
INLINE int64_t partial_floats(int64_t head_dim) { return head_dim + 2; }

INLINE int64_t chunks_until(int64_t slots) { return (slots + CHUNK - 1) / CHUNK; }

/* Where what comes next is: the keys of the next run, and the values of this one. */
typedef struct {
    const char *keys, *values;
    int64_t value_bytes; /* of a row */
} next_rows;

/* Ask for row s of them. */
INLINE void prefetch_row(const next_rows *next, int64_t s, int64_t key_bytes) {
    for (int64_t i = 0; i < key_bytes; i += 64) __builtin_prefetch(next->keys + s * key_bytes + i);
    for (int64_t i = 0; i < next->value_bytes; i += 64) __builtin_prefetch(next->values + s * next->value_bytes + i);
}

/* Vector `at` + v of a row, of whole runs from `at` on, or what is left of it. */
INLINE lanes load_of_strip(const char *row, int64_t n, int64_t at, int v, int kind, int rest) {
    int parts = vectors_of_run(kind);
    return rest ? load_rest(row, n, kind) : load_vector(row, at / parts + v / parts, v % parts, kind);
}

/* sums[query][slot] += Σ over the lanes of `width` vectors of q · key, which are still to be added up. The
   queries stay in registers; every key is read once. */
INLINE void multiply_strip(const float *q, const char *keys, const next_rows *next, int64_t slots, int64_t n,
                           int64_t at, int width, int queries, int kind, int rest, lanes sums[GROUP][LANES]) {
    int64_t bytes = row_bytes(kind, n);
    lanes held[GROUP][STRIP];
    for (int g = 0; g < queries; g++)
        for (int v = 0; v < width; v++)
            held[g][v] = rest ? load_some(q, g * n + at * LANES, n % LANES, FLOAT32)
                              : load_lanes(q + g * n + (at + v) * LANES);
    for (int64_t s = 0; s < slots; s++) {
        lanes sum[GROUP];
        if (at == 0) prefetch_row(next, s, bytes);
        for (int g = 0; g < queries; g++) sum[g] = sums[g][s];
        for (int v = 0; v < width; v++) {
            lanes key = load_of_strip(keys + s * bytes, n, at, v, kind, rest);
            for (int g = 0; g < queries; g++) sum[g] += held[g][v] * key;
        }
        for (int g = 0; g < queries; g++) sums[g][s] = sum[g];
    }
}

/* dots[query] <- the products of up to GROUP queries with a run of `slots` <= 16 rows, a lane each. */
INLINE void multiply_run(const float *q, const char *keys, const next_rows *next, int64_t slots, int64_t n, int queries,
                         int kind, lanes dots[GROUP]) {
    lanes sums[GROUP][LANES] = {0};
    int64_t whole = n / LANES, at = 0;
    for (; at + STRIP <= whole; at += STRIP)
        multiply_strip(q, keys, next, slots, n, at, STRIP, queries, kind, 0, sums);
    for (; at < whole; at += vectors_of_run(kind))
        multiply_strip(q, keys, next, slots, n, at, vectors_of_run(kind), queries, kind, 0, sums);
    if (n % LANES) multiply_strip(q, keys, next, slots, n, at, 1, queries, kind, 1, sums);
    for (int g = 0; g < queries; g++) dots[g] = sum_each(sums[g]);
}

typedef void score_function(const float *q, const attention_shape *shape, int64_t head, int64_t first, int64_t slots,
                            float scores[GROUP][SCORES]);
typedef void weigh_function(const attention_shape *shape, int64_t head, int64_t first, int64_t slots,
                            float weights[GROUP][SCORES], float *const out[GROUP]);

/* scores[query][0…] of slots that are neighbours; what the last run of 16 has beyond them is worth nothing.
   after: where the slots behind them are. */
INLINE void score_run(const float *q, const attention_shape *shape, row_run rows, row_run after,
                      const float q_sums[GROUP], float *const scores[GROUP], int queries, int kind) {
    int64_t n = shape->head_dim, bytes = row_bytes(kind, n), value_bytes = row_bytes((int)shape->values.kind, n);
    for (int64_t s = 0; s < rows.slots; s += LANES) {
        int64_t run = rows.slots - s < LANES ? rows.slots - s : LANES, at = rows.index + s;
        const char *keys = shape->keys.rows + at * bytes, *values = shape->values.rows + at * value_bytes;
        int64_t later = s + LANES < rows.slots ? at + LANES : after.index;
        next_rows next = {shape->keys.rows + later * bytes, values, value_bytes};
        lanes dots[GROUP];
        multiply_run(q, keys, &next, run, n, queries, kind, dots);
        if (kind >= CODES8) {
            grid_lanes grid = load_some_grids(shape->keys.grids + 2 * at, run);
            for (int g = 0; g < queries; g++) dots[g] = grid.scale * dots[g] + grid.lowest * q_sums[g];
        }
        for (int g = 0; g < queries; g++) store_lanes(scores[g] + s, shape->scale * dots[g]);
    }
}

/* scores[query][slot] for `slots` <= CHUNK slots of a head from `first` on, −∞ in what is left of the last 16. */
INLINE void score_rows(const float *q, const attention_shape *shape, int64_t head, int64_t first, int64_t slots,
                       float scores[GROUP][SCORES], int queries, int kind) {
    int64_t n = shape->head_dim;
    float q_sums[GROUP] = {0};
    for (int g = 0; g < queries && kind >= CODES8; g++) {
        lanes sum = {0};
        for (int64_t i = 0; i < n; i += LANES) sum += load_lanes(q + g * n + i);
        q_sums[g] = sum_lanes(sum);
    }
    row_run rows = find_rows(shape, head, first, slots), after;
    for (int64_t s = 0; s < slots; s += rows.slots, rows = after) {
        int64_t left = slots - s - rows.slots;
        float *to[GROUP];
        for (int g = 0; g < queries; g++) to[g] = scores[g] + s;
        /* What comes after a chunk is most likely behind it. */
        after = left ? find_rows(shape, head, first + s + rows.slots, left) : (row_run){rows.index + rows.slots, 0};
        score_run(q, shape, rows, after, q_sums, to, queries, kind);
    }
    for (int g = 0; g < queries; g++)
        for (int64_t s = slots; s % LANES; s++) scores[g][s] = -INFINITY;
}

/* out[query][vectors i…] = Σ weights[query][slot] · value + more[query], for `width` vectors of whole runs, or for
   the rest of a row; every value is read once. */
INLINE void weigh_strip(const attention_shape *shape, int64_t head, int64_t first, int64_t slots, int64_t i, int width,
                        int queries, int kind, int rest, float weights[GROUP][SCORES], const float more[GROUP],
                        float *const out[GROUP]) {
    lanes sums[GROUP][STRIP] = {0};
    int64_t n = shape->head_dim, bytes = row_bytes(kind, n);
    for (int64_t s = 0; s < slots;) {
        row_run rows = find_rows(shape, head, first + s, slots - s);
        const char *value_row = shape->values.rows + rows.index * bytes;
        for (int64_t end = s + rows.slots; s < end; s++, value_row += bytes)
            for (int v = 0; v < width; v++) {
                lanes value = load_of_strip(value_row, n, i, v, kind, rest);
                for (int g = 0; g < queries; g++) sums[g][v] += weights[g][s] * value;
            }
    }
    for (int g = 0; g < queries; g++)
        for (int v = 0; v < width; v++) {
            int64_t begin = (i + v) * LANES, count = n - begin < LANES ? n - begin : LANES;
            lanes sum = sums[g][v] + more[g];
            memcpy(out[g] + begin, &sum, (size_t)count * 4);
        }
}

/* The weights of a chunk times the scales of their values; more[query] <- Σ weight · lowest. */
INLINE void weigh_grids(const attention_shape *shape, int64_t head, int64_t first, int64_t slots,
                        float weights[GROUP][SCORES], float more[GROUP], int queries) {
    lanes sums[GROUP] = {0};
    for (int64_t s = 0; s < slots;) {
        row_run rows = find_rows(shape, head, first + s, slots - s < LANES ? slots - s : LANES);
        grid_lanes grid = load_some_grids(shape->values.grids + 2 * rows.index, rows.slots);
        for (int g = 0; g < queries; g++) {
            lanes weight = load_lanes(weights[g] + s), scaled = weight * grid.scale;
            sums[g] += weight * grid.lowest;
            /* What follows a short run has grids of its own. */
            if (rows.slots == LANES) store_lanes(weights[g] + s, scaled);
            else memcpy(weights[g] + s, &scaled, (size_t)rows.slots * 4);
        }
        s += rows.slots;
    }
    for (int g = 0; g < queries; g++) more[g] = sum_lanes(sums[g]);
}

/* out[query] <- Σ weights[query][slot] · value over `slots` slots from `first` on; the weights are overwritten. */
INLINE void weigh_rows(const attention_shape *shape, int64_t head, int64_t first, int64_t slots,
                       float weights[GROUP][SCORES], float *const out[GROUP], int queries, int kind) {
    int64_t whole = shape->head_dim / LANES, parts = vectors_of_run(kind), i = 0;
    float more[GROUP] = {0};
    if (kind >= CODES8) weigh_grids(shape, head, first, slots, weights, more, queries);
    for (; i + STRIP <= whole; i += STRIP)
        weigh_strip(shape, head, first, slots, i, STRIP, queries, kind, 0, weights, more, out);
    for (; i + parts <= whole; i += parts)
        weigh_strip(shape, head, first, slots, i, vectors_of_run(kind), queries, kind, 0, weights, more, out);
    if (shape->head_dim % LANES)
        weigh_strip(shape, head, first, slots, i, 1, queries, kind, 1, weights, more, out);
}

/* One function for every kind of storage and number of queries: keys and values may differ in kind. */
#define WITH_QUERIES(KIND, QUERIES)                                                                                 \
    static void score_##KIND##_##QUERIES(const float *q, const attention_shape *shape, int64_t head, int64_t first, \
                                         int64_t slots, float scores[GROUP][SCORES]) {                              \
        score_rows(q, shape, head, first, slots, scores, QUERIES, KIND);                                            \
    }                                                                                                               \
    static void weigh_##KIND##_##QUERIES(const attention_shape *shape, int64_t head, int64_t first, int64_t slots,  \
                                         float weights[GROUP][SCORES], float *const out[GROUP]) {                   \
        weigh_rows(shape, head, first, slots, weights, out, QUERIES, KIND);                                         \
    }
#define WITH_KIND(KIND) WITH_QUERIES(KIND, 1) WITH_QUERIES(KIND, 2) WITH_QUERIES(KIND, 3) WITH_QUERIES(KIND, 4)
WITH_KIND(FLOAT32)
WITH_KIND(BFLOAT16)
WITH_KIND(FLOAT16)
WITH_KIND(CODES8)
WITH_KIND(CODES4)
WITH_KIND(CODES2)
#define EACH_COUNT(NAME, KIND) {NAME##_##KIND##_1, NAME##_##KIND##_2, NAME##_##KIND##_3, NAME##_##KIND##_4}
#define EACH_KIND(NAME)                                                                                         \
    {EACH_COUNT(NAME, FLOAT32), EACH_COUNT(NAME, BFLOAT16), EACH_COUNT(NAME, FLOAT16), EACH_COUNT(NAME, CODES8), \
     EACH_COUNT(NAME, CODES4),  EACH_COUNT(NAME, CODES2)}
static score_function *const score_functions[KINDS][GROUP] = EACH_KIND(score);
static weigh_function *const weigh_functions[KINDS][GROUP] = EACH_KIND(weigh);

/* Up to GROUP queries against `slots` slots of one head from `first` on: partials <- their softmaxes over them. */
static void attend_queries(const float *q, const attention_shape *shape, int64_t head, int64_t first, int64_t slots,
                           int queries, float *const partials[GROUP]) {
    float scores[GROUP][SCORES], *out[GROUP];
    score_functions[shape->keys.kind][queries - 1](q, shape, head, first, slots, scores);
    for (int g = 0; g < queries; g++) {
        lanes most = all(-INFINITY), sum = {0};
        for (int64_t s = 0; s < slots; s += LANES) most = larger(most, load_lanes(scores[g] + s));
        float largest = largest_lane(most);
        int64_t s = 0;
        for (; s < slots; s += LANES) {
            lanes score = load_lanes(scores[g] + s), weight = exp_lanes(score - largest);
            weight = choose(score == all(-INFINITY), (lanes){0}, weight);
            store_lanes(scores[g] + s, weight);
            sum += weight;
        }
        store_lanes(scores[g] + s, (lanes){0});
        partials[g][0] = largest, partials[g][1] = sum_lanes(sum);
        out[g] = partials[g] + 2;
    }
    weigh_functions[shape->values.kind][queries - 1](shape, head, first, slots, scores, out);
}

/* One more partial softmax into another. */
static void add_partial(float *to, const float *more, int64_t n) {
    float largest = more[0] > to[0] ? more[0] : to[0];
    float kept = expf(to[0] - largest), added = expf(more[0] - largest);
    to[0] = largest;
    for (int64_t i = 1; i < n + 2; i++) to[i] = kept * to[i] + added * more[i];
}

/* Slots [first, end) of one head, CHUNK by CHUNK. */
static void attend_slots(const float *q, const attention_shape *shape, int64_t head, int64_t first, int64_t end,
                         int queries, float *const partials[GROUP]) {
    int64_t n = shape->head_dim;
    float room[GROUP][partial_floats(n)], *more[GROUP];
    for (int g = 0; g < GROUP; g++) more[g] = room[g];
    for (int64_t slot = first, next; slot < end; slot = next) {
        next = (slot / CHUNK + 1) * CHUNK;
        next = next < end ? next : end;
        attend_queries(q, shape, head, slot, next - slot, queries, slot == first ? partials : more);
        if (slot == first) continue;
        for (int g = 0; g < queries; g++) add_partial(partials[g], more[g], n);
    }
}

/* Of one key-value head, the span of this number of what each token sees. */
static void attend_piece(const float *q, const attention_shape *shape, int64_t head, int64_t span, float *partials) {
    int64_t group = shape->heads / shape->kv_heads, n = shape->head_dim;
    for (int64_t row = 0; row < shape->tokens; row++) {
        int64_t seen = shape->start + row + 1;
        int64_t begin = shape->window && shape->window < seen ? seen - shape->window : 0;
        int64_t skipped = begin / CHUNK, chunks = chunks_until(seen) - skipped;
        int64_t first = (skipped + chunks * span / SPANS) * CHUNK;
        int64_t end = (skipped + chunks * (span + 1) / SPANS) * CHUNK;
        first = first < begin ? begin : first;
        end = end < seen ? end : seen;
        for (int64_t g = 0; g < group; g += GROUP) {
            int64_t one = row * shape->heads + head * group + g, queries = group - g < GROUP ? group - g : GROUP;
            float *part[GROUP];
            for (int64_t i = 0; i < queries; i++) {
                part[i] = partials + ((one + i) * SPANS + span) * partial_floats(n);
                part[i][0] = -INFINITY;
            }
            attend_slots(q + one * n, shape, head, first, end, (int)queries, part);
        }
    }
}

/* Pieces [begin, end) of the SPANS of every key-value head. */
static void attend_pieces(const float *q, const attention_shape *shape, float *partials, int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; piece++)
        attend_piece(q, shape, piece / SPANS, piece % SPANS, partials);
}

/* out (queries, head_dim) <- what their pieces come to; values of this kind. */
static void merge_pieces(const float *partials, int64_t queries, int64_t n, int kind, float *out) {
    for (int64_t one = 0; one < queries; one++, out += n) {
        const float *part = partials + one * SPANS * partial_floats(n);
        float largest = -INFINITY, total = 0.0f;
        for (int64_t c = 0; c < SPANS; c++) {
            float here = part[c * partial_floats(n)];
            largest = here > largest ? here : largest;
        }
        memset(out, 0, (size_t)n * 4);
        for (int64_t c = 0; c < SPANS; c++) {
            const float *from = part + c * partial_floats(n);
            if (from[0] == -INFINITY) continue;
            float weight = expf(from[0] - largest);
            total += weight * from[1];
            for (int64_t i = 0; i < n; i++) out[i] += weight * from[2 + i];
        }
        float inverse = 1.0f / total;
        for (int64_t i = 0; i < n; i++) out[i] *= inverse;
        from_row_order(out, n, kind);
    }
}

#endif
