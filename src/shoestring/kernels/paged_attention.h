/* Attention of the rows of many sequences over keys and values in blocks, which are read where they are.

   A piece of work is up to TILE_ROWS rows of a sequence and the heads that share one key-value head. It belongs
   to one thread, goes through the slots PIECE by PIECE with a running softmax, and puts its output in the place of
   its queries: how the work is cut does not depend on the number of threads, so neither does the result.
   Sources: Kwon et al. 2023, "PagedAttention", section 4.3; Milakov and Gimelshein 2018, "Online normalizer
   calculation for softmax"; q·k = s·(q·c) + l·Σq for k = s·c + l: TurboMind, InternLM/lmdeploy. */

#ifndef SHOESTRING_PAGED_ATTENTION_H
#define SHOESTRING_PAGED_ATTENTION_H

#include "paged_rows.h"

enum { PIECE = 128, TILE_ROWS = 16, PAGED_QUERIES = 4 /* that share a key when it is read */ };

/* One sequence of a batch: rows first_row … first_row + tokens − 1 of x go to positions and slots start … */
typedef struct {
    int64_t first_row, tokens, start, wants_logits; /* of its last row */
    const int32_t *blocks;                          /* those of its slots, in order */
} batch_sequence;

typedef struct {
    int64_t heads, kv_heads, head_dim, window; /* window 0: all */
    float scale;
} paged_shape;

/* Where the slots of one piece are: rows, and their grids. */
typedef struct {
    const char *keys[PIECE], *values[PIECE];
    float key_scale[PIECE], key_low[PIECE], value_scale[PIECE], value_low[PIECE];
} paged_piece;

/* A query's softmax so far. */
typedef struct {
    float largest, total, *sums;
} running;

INLINE int64_t paged_room_floats(const paged_shape *s) {
    int64_t queries = TILE_ROWS * (s->heads / s->kv_heads);
    return queries * s->head_dim + 2 * PIECE * s->head_dim;
}

static void find_piece(const paged_memory *memory, const paged_layer *layer, const batch_sequence *sequence,
                       const paged_shape *shape, int64_t head, int64_t first, int64_t slots, paged_piece *piece) {
    int64_t key_bytes = paged_row_bytes((int)layer->keys.kind, shape->head_dim);
    int64_t value_bytes = paged_row_bytes((int)layer->values.kind, shape->head_dim);
    for (int64_t s = 0; s < slots; s++) {
        int64_t row = paged_row(memory, shape->kv_heads, sequence->blocks[(first + s) / memory->slots], head,
                                (first + s) % memory->slots);
        piece->keys[s] = layer->keys.rows + row * key_bytes;
        piece->values[s] = layer->values.rows + row * value_bytes;
        if (layer->keys.grids) {
            piece->key_scale[s] = half_to_float(layer->keys.grids[2 * row]);
            piece->key_low[s] = half_to_float(layer->keys.grids[2 * row + 1]);
        }
        if (layer->values.grids) {
            piece->value_scale[s] = half_to_float(layer->values.grids[2 * row]);
            piece->value_low[s] = half_to_float(layer->values.grids[2 * row + 1]);
        }
    }
}

/* Rows as float32 in a room of this thread: worth it where several queries tiles read them. */
static void decode_rows(const char **rows, const float *scales, const float *lows, int64_t slots, int64_t n, int kind,
                        float *to) {
    if (kind == FLOAT32) return;
    for (int64_t s = 0; s < slots; s++, to += n) {
        if (kind == PAGED_CODES8) read_row(rows[s], n, PAGED_CODES8, scales[s], lows[s], to);
        else if (kind == PAGED_CODES4) read_row(rows[s], n, PAGED_CODES4, scales[s], lows[s], to);
        else if (kind == BFLOAT16) read_row(rows[s], n, BFLOAT16, 1, 0, to);
        else read_row(rows[s], n, FLOAT16, 1, 0, to);
        rows[s] = (const char *)to;
    }
}

/* scores[query][slot], −∞ in what is left of the last run of 16; every key is read once. */
INLINE void paged_scores(const float *q, const paged_piece *piece, int64_t first, int64_t slots, int64_t n, float scale,
                         int queries, int kind, float scores[PAGED_QUERIES][PIECE]) {
    int64_t step = LANES * paged_vectors(kind), whole = n - n % step;
    float q_sums[PAGED_QUERIES] = {0};
    for (int g = 0; g < queries && is_coded(kind); g++)
        for (int64_t i = 0; i < n; i += LANES) q_sums[g] += sum_lanes(load_lanes(q + g * n + i));
    for (int64_t s = 0; s < slots; s += LANES) {
        lanes sums[PAGED_QUERIES][LANES] = {0};
        int64_t run = slots - s < LANES ? slots - s : LANES;
        for (int64_t t = 0; t < run; t++) {
            const char *row = piece->keys[first + s + t];
            lanes sum[PAGED_QUERIES] = {0};
            for (int64_t i = 0; i < whole; i += step) {
                lanes key[2];
                load_vectors(row, i, kind, key);
                for (int v = 0; v < paged_vectors(kind); v++)
                    for (int g = 0; g < queries; g++) sum[g] += load_lanes(q + g * n + i + v * LANES) * key[v];
            }
            if (whole < n && !is_coded(kind)) {
                lanes key = load_some(row, whole, n - whole, kind);
                for (int g = 0; g < queries; g++) sum[g] += load_some(q, g * n + whole, n - whole, FLOAT32) * key;
            }
            for (int g = 0; g < queries; g++) sums[g][t] = sum[g];
        }
        for (int g = 0; g < queries; g++) {
            lanes dots = sum_each(sums[g]);
            if (is_coded(kind))
                dots = load_some(piece->key_scale, first + s, run, FLOAT32) * dots +
                       load_some(piece->key_low, first + s, run, FLOAT32) * q_sums[g];
            store_lanes(scores[g] + s, scale * dots);
            for (int64_t t = run; t < LANES; t++) scores[g][s + t] = -INFINITY;
        }
    }
}

/* Weights in the place of scores; what was summed up so far is brought to the new largest score. */
INLINE void update_softmax(running *state, float *scores, int64_t slots, int64_t n) {
    lanes most = all(-INFINITY), sum = {0};
    for (int64_t s = 0; s < slots; s += LANES) most = larger(most, load_lanes(scores + s));
    float largest = largest_lane(most);
    if (largest < state->largest) largest = state->largest;
    for (int64_t s = 0; s < slots; s += LANES) {
        lanes score = load_lanes(scores + s), weight = exp_lanes(score - largest);
        weight = choose(score == all(-INFINITY), (lanes){0}, weight);
        store_lanes(scores + s, weight);
        sum += weight;
    }
    float factor = state->largest == -INFINITY ? 0.0f : expf(state->largest - largest);
    state->total = state->total * factor + sum_lanes(sum);
    state->largest = largest;
    if (factor != 1.0f)
        for (int64_t i = 0; i < n; i++) state->sums[i] *= factor;
}

/* sums[query] += Σ weights[query][slot] · value; every value is read once. */
INLINE void paged_weigh(const paged_piece *piece, int64_t first, int64_t slots, int64_t n, int queries, int kind,
                        float weights[PAGED_QUERIES][PIECE], running *states) {
    int64_t step = LANES * paged_vectors(kind), whole = n - n % step;
    float more[PAGED_QUERIES] = {0};
    for (int g = 0; g < queries && is_coded(kind); g++)
        for (int64_t s = 0; s < slots; s++) {
            more[g] += weights[g][s] * piece->value_low[first + s];
            weights[g][s] *= piece->value_scale[first + s];
        }
    for (int64_t i = 0; i < whole; i += step) {
        lanes sums[PAGED_QUERIES][2] = {0};
        for (int64_t s = 0; s < slots; s++) {
            lanes value[2];
            load_vectors(piece->values[first + s], i, kind, value);
            for (int v = 0; v < paged_vectors(kind); v++)
                for (int g = 0; g < queries; g++) sums[g][v] += weights[g][s] * value[v];
        }
        for (int g = 0; g < queries; g++)
            for (int v = 0; v < paged_vectors(kind); v++) {
                float *to = states[g].sums + i + v * LANES;
                store_lanes(to, load_lanes(to) + sums[g][v] + more[g]);
            }
    }
    if (whole < n && !is_coded(kind))
        for (int g = 0; g < queries; g++) {
            lanes sum = load_some(states[g].sums, whole, n - whole, FLOAT32);
            for (int64_t s = 0; s < slots; s++)
                sum += weights[g][s] * load_some(piece->values[first + s], whole, n - whole, kind);
            memcpy(states[g].sums + whole, &sum, (size_t)(n - whole) * 4);
        }
}

INLINE void attend_some(const float *q, const paged_piece *piece, int64_t first, int64_t slots, const paged_shape *shape,
                        int queries, int key_kind, int value_kind, running *states) {
    float scores[PAGED_QUERIES][PIECE];
    switch (key_kind) {
    case FLOAT32: paged_scores(q, piece, first, slots, shape->head_dim, shape->scale, queries, FLOAT32, scores); break;
    case BFLOAT16: paged_scores(q, piece, first, slots, shape->head_dim, shape->scale, queries, BFLOAT16, scores); break;
    case FLOAT16: paged_scores(q, piece, first, slots, shape->head_dim, shape->scale, queries, FLOAT16, scores); break;
    case PAGED_CODES8: paged_scores(q, piece, first, slots, shape->head_dim, shape->scale, queries, PAGED_CODES8, scores); break;
    default: paged_scores(q, piece, first, slots, shape->head_dim, shape->scale, queries, PAGED_CODES4, scores);
    }
    for (int g = 0; g < queries; g++) update_softmax(states + g, scores[g], slots, shape->head_dim);
    switch (value_kind) {
    case FLOAT32: paged_weigh(piece, first, slots, shape->head_dim, queries, FLOAT32, scores, states); break;
    case BFLOAT16: paged_weigh(piece, first, slots, shape->head_dim, queries, BFLOAT16, scores, states); break;
    case FLOAT16: paged_weigh(piece, first, slots, shape->head_dim, queries, FLOAT16, scores, states); break;
    case PAGED_CODES8: paged_weigh(piece, first, slots, shape->head_dim, queries, PAGED_CODES8, scores, states); break;
    default: paged_weigh(piece, first, slots, shape->head_dim, queries, PAGED_CODES4, scores, states);
    }
}

static void attend_queries_of(const float *q, const paged_piece *piece, int64_t first, int64_t slots,
                              const paged_shape *shape, int64_t queries, int key_kind, int value_kind, running *states) {
    if (queries == 1) attend_some(q, piece, first, slots, shape, 1, key_kind, value_kind, states);
    else if (queries == 2) attend_some(q, piece, first, slots, shape, 2, key_kind, value_kind, states);
    else if (queries == 3) attend_some(q, piece, first, slots, shape, 3, key_kind, value_kind, states);
    else attend_some(q, piece, first, slots, shape, 4, key_kind, value_kind, states);
}

/* Rows [begin, end) of a sequence and the heads of one key-value head; q (rows, heads, head_dim) becomes output. */
static void paged_tile(float *q, const paged_memory *memory, const paged_layer *layer, const batch_sequence *sequence,
                        const paged_shape *shape, int64_t head, int64_t begin, int64_t end, float *room) {
    int64_t n = shape->head_dim, group = shape->heads / shape->kv_heads, rows = end - begin;
    float *tiles = room + TILE_ROWS * group * n;
    running states[TILE_ROWS][group];
    memset(room, 0, (size_t)(rows * group * n) * 4);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t g = 0; g < group; g++) states[r][g] = (running){-INFINITY, 0.0f, room + (r * group + g) * n};
    int64_t low = sequence->start + begin + 1 - shape->window, stop = sequence->start + end;
    for (int64_t at = shape->window && low > 0 ? low : 0; at < stop; at += PIECE) {
        int64_t slots = stop - at < PIECE ? stop - at : PIECE;
        int key_kind = (int)layer->keys.kind, value_kind = (int)layer->values.kind;
        paged_piece piece;
        find_piece(memory, layer, sequence, shape, head, at, slots, &piece);
        if (rows > 1) {
            decode_rows(piece.keys, piece.key_scale, piece.key_low, slots, n, key_kind, tiles);
            decode_rows(piece.values, piece.value_scale, piece.value_low, slots, n, value_kind, tiles + PIECE * n);
            key_kind = value_kind = FLOAT32;
        }
        for (int64_t r = 0; r < rows; r++) {
            int64_t position = sequence->start + begin + r, from = 0, to = position + 1 - at;
            if (shape->window && position + 1 - shape->window > at) from = position + 1 - shape->window - at;
            if (to > slots) to = slots;
            if (from >= to) continue;
            float *rows_q = q + ((sequence->first_row + begin + r) * shape->heads + head * group) * n;
            for (int64_t g = 0; g < group; g += PAGED_QUERIES)
                attend_queries_of(rows_q + g * n, &piece, from, to - from, shape, group - g < PAGED_QUERIES ? group - g : PAGED_QUERIES,
                                  key_kind, value_kind, states[r] + g);
        }
    }
    for (int64_t r = 0; r < rows; r++)
        for (int64_t g = 0; g < group; g++) {
            float *out = q + ((sequence->first_row + begin + r) * shape->heads + head * group + g) * n;
            for (int64_t i = 0; i < n; i++) out[i] = states[r][g].sums[i] / states[r][g].total;
        }
}

/* This thread's pieces of work: neighbours, with about its share of all slots that rows see. */
static void paged_attend(float *q, const paged_memory *memory, const paged_layer *layer, const batch_sequence *sequences,
                         int64_t n_sequences, const paged_shape *shape, float *room, int thread, int n_threads) {
    int64_t all_slots = 0, before = 0;
    for (int64_t i = 0; i < n_sequences; i++)
        all_slots += sequences[i].tokens * (sequences[i].start + sequences[i].tokens) * shape->kv_heads;
    for (int64_t i = 0; i < n_sequences; i++) {
        const batch_sequence *sequence = sequences + i;
        for (int64_t head = 0; head < shape->kv_heads; head++)
            for (int64_t begin = 0; begin < sequence->tokens; begin += TILE_ROWS) {
                int64_t end = begin + TILE_ROWS < sequence->tokens ? begin + TILE_ROWS : sequence->tokens;
                int64_t middle = before + (end - begin) * (sequence->start + sequence->tokens) / 2;
                before += (end - begin) * (sequence->start + sequence->tokens);
                if (middle * n_threads / all_slots != thread) continue;
                paged_tile(q, memory, layer, sequence, shape, head, begin, end, room);
            }
    }
}

#endif
