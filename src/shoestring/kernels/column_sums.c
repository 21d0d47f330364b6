/* How much attention each key gets from some rows: the softmax of every row over what it sees, summed by column.

   A lane is a query, as in prompt_attention.h. A block of 48 queries keeps its scores, (slot, query), so that every
   product is made once. The blocks of a key-value head are dealt to a fixed number of parts with sums of their own,
   which are added in their order: results do not depend on the number of threads. */

#include <omp.h>

#include "query_lanes.h"

enum { SLOTS = 64, PARTS = 16 };

typedef struct {
    int64_t heads, kv_heads, rows, slots, head_dim, window; /* window 0: all */
    int64_t key_head, key_row;                              /* from one head or row of keys to the next */
    float scale;
    const float *queries, *keys; /* (heads, rows, head_dim), (kv_heads, slots, head_dim) */
    const int32_t *row_positions, *key_positions;
} column_shape;

typedef struct {
    float *queries, *scores; /* (head_dim, QUERIES), (tiles · SLOTS, QUERIES) */
    int64_t *tiles;          /* first slots of those that some query of the block sees */
} column_room;

typedef struct {
    int_lanes position[WIDE];
    lanes most[WIDE], total[WIDE];
    int32_t oldest, newest;
    int64_t count, tiles; /* queries; tiles held */
} column_block;

static int64_t all_tiles(const column_shape *shape) { return (shape->slots + SLOTS - 1) / SLOTS; }

static int64_t all_blocks(const column_shape *shape) {
    return (shape->rows * (shape->heads / shape->kv_heads) + QUERIES - 1) / QUERIES;
}

static int64_t parts_of(const column_shape *shape) {
    int64_t blocks = all_blocks(shape);
    return blocks < PARTS ? blocks : PARTS;
}

/* In floats; every piece is whole cache lines. */
static int64_t partial_floats(const column_shape *shape) {
    return shape->kv_heads * parts_of(shape) * all_tiles(shape) * SLOTS;
}

static int64_t own_floats(const column_shape *shape) {
    int64_t tiles = all_tiles(shape);
    return QUERIES * (shape->head_dim + tiles * SLOTS) + (2 * tiles + LANES - 1) / LANES * LANES;
}

int64_t column_sums_room(const column_shape *shape, int threads) {
    return 4 * (partial_floats(shape) + threads * own_floats(shape));
}

static void begin_block(const column_shape *shape, int64_t head, int64_t first, const column_room *room,
                        column_block *block) {
    int64_t group = shape->heads / shape->kv_heads, n = shape->head_dim, left = shape->rows * group - first;
    block->count = left < QUERIES ? left : QUERIES;
    for (int64_t lane = 0; lane < QUERIES; lane++) {
        /* What is missing at the end stands in as the last query. */
        int64_t query = first + (lane < block->count ? lane : block->count - 1), row = query / group;
        const float *from = shape->queries + ((head * group + query % group) * shape->rows + row) * n;
        int32_t position = shape->row_positions[row];
        block->position[lane / LANES][lane % LANES] = position;
        block->oldest = lane && block->oldest < position ? block->oldest : position;
        block->newest = lane && block->newest > position ? block->newest : position;
        for (int64_t i = 0; i < n; i++) room->queries[i * QUERIES + lane] = shape->scale * from[i];
    }
    for (int j = 0; j < WIDE; j++) block->most[j] = all(-INFINITY), block->total[j] = (lanes){0};
    block->tiles = 0;
}

/* Hides what a query does not see of `slots` scores, and what a tile has beyond them. */
static void hide(const column_shape *shape, const column_block *block, int64_t first, int64_t slots, float *scores) {
    for (int64_t s = 0; s < SLOTS; s++)
        for (int j = 0; j < WIDE; j++) {
            float *at = scores + s * QUERIES + j * LANES;
            int_lanes seen = {0};
            if (s < slots) {
                int_lanes key = shape->key_positions[first + s] - (int_lanes){0};
                seen = key <= block->position[j];
                if (shape->window) seen &= key > block->position[j] - (int32_t)shape->window;
            }
            store_lanes(at, choose(seen, load_lanes(at), all(-INFINITY)));
        }
}

/* Scores of the slots from `first` on, where some query sees one of them. */
static void score_tile(const column_shape *shape, int64_t head, int64_t first, const column_room *room,
                       column_block *block) {
    int64_t n = shape->head_dim, slots = shape->slots - first < SLOTS ? shape->slots - first : SLOTS;
    int32_t lowest = shape->key_positions[first], highest = lowest, window = (int32_t)shape->window;
    for (int64_t s = 1; s < slots; s++) {
        int32_t position = shape->key_positions[first + s];
        lowest = position < lowest ? position : lowest;
        highest = position > highest ? position : highest;
    }
    if (lowest > block->newest || (window && highest <= block->oldest - window)) return;
    float *scores = room->scores + block->tiles * SLOTS * QUERIES;
    const lanes nothing[WIDE] = {{0}};
    memset(scores, 0, (size_t)(SLOTS * QUERIES) * 4);
    const float *keys = shape->keys + head * shape->key_head + first * shape->key_row;
    multiply_tile(keys, shape->key_row, 1, room->queries, n, slots, nothing, scores);
    if (slots < SLOTS || highest > block->oldest || (window && lowest <= block->newest - window))
        hide(shape, block, first, slots, scores);
    for (int64_t s = 0; s < SLOTS; s++)
        for (int j = 0; j < WIDE; j++)
            block->most[j] = larger(load_lanes(scores + s * QUERIES + j * LANES), block->most[j]);
    room->tiles[block->tiles++] = first;
}

/* Scores into exponentials below the largest, and their totals. */
static void weigh_scores(const column_room *room, column_block *block) {
    lanes base[WIDE];
    for (int j = 0; j < WIDE; j++) base[j] = choose(block->most[j] == all(-INFINITY), (lanes){0}, block->most[j]);
    for (int64_t s = 0; s < block->tiles * SLOTS; s++)
        for (int j = 0; j < WIDE; j++) {
            float *at = room->scores + s * QUERIES + j * LANES;
            lanes score = load_lanes(at);
            lanes weight = choose(score == all(-INFINITY), (lanes){0}, exp_lanes(score - base[j]));
            block->total[j] += weight;
            store_lanes(at, weight);
        }
}

/* Adds the probabilities to the sums of the columns; how many queries see nothing. */
static int64_t sum_columns(const column_room *room, const column_block *block, float *sums) {
    lanes share[WIDE];
    int64_t blind = 0;
    for (int64_t lane = 0; lane < QUERIES; lane++) {
        float total = block->total[lane / LANES][lane % LANES];
        int counts = lane < block->count;
        blind += counts && total == 0.0f;
        share[lane / LANES][lane % LANES] = counts && total != 0.0f ? 1.0f / total : 0.0f;
    }
    for (int64_t tile = 0; tile < block->tiles; tile++)
        for (int64_t s = 0; s < SLOTS; s += LANES) {
            const float *weights = room->scores + (tile * SLOTS + s) * QUERIES;
            float *to = sums + room->tiles[tile] + s;
            lanes rows[LANES];
            for (int i = 0; i < LANES; i++) {
                rows[i] = (lanes){0};
                for (int j = 0; j < WIDE; j++) rows[i] += load_lanes(weights + i * QUERIES + j * LANES) * share[j];
            }
            store_lanes(to, load_lanes(to) + sum_each(rows));
        }
    return blind;
}

static int64_t sum_part(const column_shape *shape, int64_t head, int64_t part, const column_room *room, float *sums) {
    int64_t blind = 0;
    memset(sums, 0, (size_t)(all_tiles(shape) * SLOTS) * 4);
    for (int64_t i = part; i < all_blocks(shape); i += PARTS) {
        column_block block;
        begin_block(shape, head, i * QUERIES, room, &block);
        for (int64_t first = 0; first < shape->slots; first += SLOTS) score_tile(shape, head, first, room, &block);
        weigh_scores(room, &block);
        blind += sum_columns(room, &block, sums);
    }
    return blind;
}

/* out: (kv_heads, slots). Gives the number of queries that see no key. */
int64_t column_sums(const column_shape *shape, float *room, float *out, int threads) {
    int64_t parts = parts_of(shape), padded = all_tiles(shape) * SLOTS, blind = 0;
    float *partials = room;
#pragma omp parallel num_threads(threads) reduction(+ : blind)
    {
        float *own = room + partial_floats(shape) + omp_get_thread_num() * own_floats(shape);
        float *scores = own + QUERIES * shape->head_dim;
        column_room mine = {own, scores, (int64_t *)(scores + QUERIES * padded)};
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < shape->kv_heads * parts; i++)
            blind += sum_part(shape, i / parts, i % parts, &mine, partials + i * padded);
#pragma omp for
        for (int64_t i = 0; i < shape->kv_heads * shape->slots; i++) {
            const float *from = partials + i / shape->slots * parts * padded + i % shape->slots;
            float sum = 0.0f;
            for (int64_t part = 0; part < parts; part++) sum += from[part * padded];
            out[i] = sum;
        }
    }
    return blind;
}
