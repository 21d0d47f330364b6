/* Attention of many new tokens: blocks of 48 queries against tiles of the cache, with a running softmax.

   A lane is a query, all the way: scores are (slot, query), sums (channel, query), so that maxima, exponentials
   and the rescaling of sums need no look across lanes. Keys and values are made floats once per tile and block
   of queries, and both products keep 8 rows by 48 queries in registers. A block of one key-value head belongs to
   one thread.
   Source: Dao et al. 2022, "FlashAttention: Fast and Memory-Efficient Exact Attention", algorithm 1. */

#ifndef SHOESTRING_PROMPT_ATTENTION_H
#define SHOESTRING_PROMPT_ATTENTION_H

#include "prompt_tiles.h"

typedef struct {
    float *queries, *keys, *values, *weights, *sums; /* (n, QUERIES), 2 × (TILE, n), (TILE, QUERIES), (n, QUERIES) */
} block_room;

INLINE int64_t prompt_floats(int64_t n) {
    int64_t floats = 2 * (QUERIES + TILE) * n + TILE * QUERIES, tiles = tile_floats(n);
    return tiles > floats ? tiles : floats;
}

INLINE block_room cut_block(float *room, int64_t n) {
    float *keys = room + n * QUERIES, *values = keys + TILE * n, *weights = values + TILE * n;
    return (block_room){room, keys, values, weights, weights + TILE * QUERIES};
}

/* Neighbouring rows of the cache as floats, (slots, n), channels in the order of the vectors. */
INLINE void load_run_of(const cache_rows *from, row_run rows, int64_t n, int kind, float *to) {
    int64_t index = rows.index;
    const char *row = from->rows + index * row_bytes(kind, n);
    for (int64_t s = 0; s < rows.slots; s++, row += row_bytes(kind, n), to += n) {
        float scale = 1.0f, lowest = 0.0f;
        if (kind >= CODES8) {
            scale = half_to_float(from->grids[2 * (index + s)]);
            lowest = half_to_float(from->grids[2 * (index + s) + 1]);
        }
        int parts = vectors_of_run(kind);
        for (int64_t run = 0; run < n / (parts * LANES); run++)
            for (int part = 0; part < parts; part++) {
                lanes numbers = load_vector(row, run, part, kind);
                store_lanes(to + (run * parts + part) * LANES, kind >= CODES8 ? numbers * scale + lowest : numbers);
            }
        if (n % LANES) {
            lanes rest = load_rest(row, n, kind);
            memcpy(to + n - n % LANES, &rest, (size_t)(n % LANES) * 4);
        }
    }
}

static void load_run(const cache_rows *from, row_run rows, int64_t n, float *to) {
    switch (from->kind) {
    case FLOAT32: load_run_of(from, rows, n, FLOAT32, to); break;
    case BFLOAT16: load_run_of(from, rows, n, BFLOAT16, to); break;
    case FLOAT16: load_run_of(from, rows, n, FLOAT16, to); break;
    case CODES8: load_run_of(from, rows, n, CODES8, to); break;
    case CODES4: load_run_of(from, rows, n, CODES4, to); break;
    default: load_run_of(from, rows, n, CODES2, to);
    }
}

/* Keys and values of a head from slot `first` on. */
static void load_tile(const attention_shape *shape, int64_t head, int64_t first, int64_t slots,
                      const block_room *room) {
    int64_t n = shape->head_dim;
    row_run rows;
    for (int64_t s = 0; s < slots; s += rows.slots) {
        rows = find_rows(shape, head, first + s, slots - s);
        load_run(&shape->keys, rows, n, room->keys + s * n);
        load_run(&shape->values, rows, n, room->values + s * n);
    }
}

/* Scores of a tile into weights and a running softmax; factor: by what earlier sums shrink. */
INLINE void weigh_tile(float *scores, int64_t slots, block_state *state, lanes factor[WIDE]) {
    lanes most[WIDE];
    for (int j = 0; j < WIDE; j++) most[j] = state->most[j];
    for (int64_t s = 0; s < slots; s++)
        for (int j = 0; j < WIDE; j++) most[j] = larger(load_lanes(scores + s * QUERIES + j * LANES), most[j]);
    for (int j = 0; j < WIDE; j++) {
        /* A query that has seen nothing yet has nothing to rescale. */
        lanes base = choose(most[j] == all(-INFINITY), (lanes){0}, most[j]);
        factor[j] = exp_lanes(state->most[j] - base);
        state->total[j] *= factor[j];
        state->most[j] = most[j], most[j] = base;
    }
    for (int64_t s = 0; s < slots; s++)
        for (int j = 0; j < WIDE; j++) {
            lanes score = load_lanes(scores + s * QUERIES + j * LANES), weight = exp_lanes(score - most[j]);
            weight = choose(score == all(-INFINITY), (lanes){0}, weight);
            state->total[j] += weight;
            store_lanes(scores + s * QUERIES + j * LANES, weight);
        }
}

static void attend_tile(const attention_shape *shape, const block_room *room, int64_t head, int64_t first,
                        int64_t slots, int masked, block_state *state) {
    int64_t n = shape->head_dim;
    const lanes nothing[WIDE] = {{0}};
    lanes factor[WIDE];
    load_tile(shape, head, first, slots, room);
    memset(room->weights, 0, (size_t)(slots * QUERIES) * 4);
    multiply_tile(room->keys, n, 1, room->queries, n, slots, nothing, room->weights);
    if (masked) mask_scores(room->weights, slots, first, state);
    weigh_tile(room->weights, slots, state, factor);
    multiply_tile(room->values, 1, n, room->weights, slots, n, factor, room->sums);
}

static void begin_block(const float *q, const attention_shape *shape, int64_t head, int64_t first,
                        const block_room *room, block_state *state) {
    int64_t n = shape->head_dim;
    begin_state(shape, head, first, state);
    for (int64_t lane = 0; lane < QUERIES; lane++) {
        const float *from = q + query_row(shape, head, first + lane) * n;
        for (int64_t i = 0; i < n; i++) room->queries[i * QUERIES + lane] = shape->scale * from[i];
    }
    memset(room->sums, 0, (size_t)(n * QUERIES) * 4);
}

static void end_block(const attention_shape *shape, int64_t head, int64_t first, const block_room *room,
                      const block_state *state, float *out) {
    int64_t n = shape->head_dim, queries = shape->tokens * (shape->heads / shape->kv_heads);
    for (int64_t lane = 0; lane < QUERIES && first + lane < queries; lane++) {
        float *to = out + query_row(shape, head, first + lane) * n;
        float inverse = 1.0f / state->total[lane / LANES][lane % LANES];
        for (int64_t i = 0; i < n; i++) to[i] = inverse * room->sums[i * QUERIES + lane];
        from_row_order(to, n, (int)shape->values.kind);
    }
}

static void attend_block(float *q, const attention_shape *shape, int64_t head, int64_t first,
                         const block_room *room) {
    block_state state;
    begin_block(q, shape, head, first, room, &state);
    seen_slots seen = slots_seen(&state);
    for (int64_t slot = seen.begin; slot < seen.end; slot += TILE) {
        int64_t slots = seen.end - slot < TILE ? seen.end - slot : TILE;
        attend_tile(shape, room, head, slot, slots, !seen_by_all(&seen, slot, slots), &state);
    }
    end_block(shape, head, first, room, &state, q);
}

/* Queries of a block that is one part of the work. */
INLINE int64_t block_queries(const attention_shape *shape) {
    return fits_tiles(shape) ? TILE_BLOCK : QUERIES;
}

/* Blocks of queries of one key-value head. */
INLINE int64_t query_blocks(const attention_shape *shape) {
    return (shape->tokens * (shape->heads / shape->kv_heads) + block_queries(shape) - 1) / block_queries(shape);
}

/* Blocks [begin, end) of the `query_blocks` of every key-value head. Early blocks see less than late ones: they
   come in turn, so that as many of them are about as much work anywhere. Their output takes the place of q. */
static void attend_blocks(float *q, const attention_shape *shape, float *room, int64_t begin, int64_t end) {
    int64_t blocks = query_blocks(shape), queries = block_queries(shape);
    block_room own = cut_block(room, shape->head_dim);
    if (fits_tiles(shape)) begin_tiles();
    for (int64_t i = begin; i < end; i++) {
        int64_t turn = i % blocks, block = turn % 2 ? blocks - 1 - turn / 2 : turn / 2;
        if (fits_tiles(shape)) attend_block_by_tiles(q, shape, i / blocks, block * queries, room);
        else attend_block(q, shape, i / blocks, block * queries, &own);
    }
    if (fits_tiles(shape)) end_tiles();
}

#endif
