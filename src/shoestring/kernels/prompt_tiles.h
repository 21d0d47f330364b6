/* Blocks of queries by matrix tiles (AMX), where what is multiplied may be rounded to bfloat16; scores, totals and
   sums stay float32.

   As in prompt_attention.h a lane is a query: scores are (slot, query), sums (channel, query). Keys are the left
   operand as they lie. Weights of two slots side by side are the right one, and values are turned once per tile.
   Several blocks of 48 queries share a tile of the cache, so that it is turned less often. Scores count in powers
   of two. */

#ifndef SHOESTRING_PROMPT_TILES_H
#define SHOESTRING_PROMPT_TILES_H

#include "half_operands.h"
#include "prompt_blocks.h"

enum { SHARING = 4, TILE_BLOCK = SHARING * QUERIES };

#if HAS_MATRIX_TILES

enum { PIECE = 32 /* numbers that a product adds up at once */, TILE_BYTES = MATRIX_ROWS * MATRIX_ROW_BYTES };

INLINE int fits_tiles(const attention_shape *shape) {
    return shape->rounded && shape->head_dim % LANES == 0 && has_tiles();
}

typedef struct {
    char *keys, *rows; /* (TILE, pieces) of PIECE channels; rows: values, before they are turned */
    char *values;      /* (n / 16, TILE / PIECE) tiles: 16 channels, PIECE slots */
    char *weights;     /* (TILE / PIECE, WIDE) tiles: pairs of slots, 16 queries */
    float *scores;     /* (TILE, QUERIES) */
    char *queries;     /* (SHARING, pieces, WIDE) tiles: pairs of channels, 16 queries */
    float *sums;       /* (SHARING, n, QUERIES) */
} turned_room;

INLINE int64_t pieces_of(int64_t n) { return (n + PIECE - 1) / PIECE; }

INLINE int64_t cut_turned(char *room, int64_t n, turned_room *to) {
    int64_t used = 0, row = pieces_of(n) * MATRIX_ROW_BYTES;
    to->keys = room + used, used += TILE * row;
    to->rows = room + used, used += TILE * row;
    to->values = room + used, used += n * TILE * 2;
    to->weights = room + used, used += TILE / PIECE * WIDE * TILE_BYTES;
    to->scores = (float *)(room + used), used += TILE * QUERIES * 4;
    to->queries = room + used, used += SHARING * pieces_of(n) * WIDE * TILE_BYTES;
    to->sums = (float *)(room + used), used += SHARING * n * QUERIES * 4;
    return used;
}

INLINE int64_t tile_floats(int64_t n) {
    turned_room room;
    return n % LANES ? 0 : cut_turned(NULL, n, &room) / 4;
}

static void begin_tiles(void) { shape_tiles(MATRIX_ROW_BYTES); }

static void end_tiles(void) { release_tiles(); }

/* 2^x to a relative error of 2^-14; 0 from −∞. */
INLINE lanes rough_exp2(lanes x) {
    __m512 at = _mm512_max_ps((__m512)x, _mm512_set1_ps(-200.0f));
    __m512 whole = _mm512_roundscale_ps(at, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    lanes r = (lanes)_mm512_sub_ps(at, whole);
    lanes p = all(0.00961813f);
    p = p * r + 0.05550411f;
    p = p * r + 0.24022651f;
    p = p * r + 0.69314718f;
    p = p * r + 1.0f;
    return (lanes)_mm512_scalef_ps((__m512)p, whole);
}

INLINE void store_words(char *to, bit_lanes words) { memcpy(to, &words, sizeof words); }

INLINE bit_lanes load_bits(const char *from) {
    bit_lanes bits;
    memcpy(&bits, from, sizeof bits);
    return bits;
}

/* Neighbouring rows of the cache, rounded, channels in the order of its vectors: (slots, pieces). */
INLINE void round_run_of(const cache_rows *from, row_run rows, int64_t n, int kind, char *to) {
    int parts = vectors_of_run(kind);
    int64_t vectors = n / LANES, bytes = pieces_of(n) * MATRIX_ROW_BYTES;
    const char *row = from->rows + rows.index * row_bytes(kind, n);
    for (int64_t s = 0; s < rows.slots; s++, row += row_bytes(kind, n), to += bytes) {
        float scale = 1.0f, lowest = 0.0f;
        if (kind >= CODES8) {
            scale = half_to_float(from->grids[2 * (rows.index + s)]);
            lowest = half_to_float(from->grids[2 * (rows.index + s) + 1]);
        }
        for (int64_t i = 0; i < vectors; i += 2) {
            lanes pair[2] = {{0}};
            for (int64_t j = 0; j < 2 && i + j < vectors; j++) {
                pair[j] = load_vector(row, (i + j) / parts, (int)((i + j) % parts), kind);
                if (kind >= CODES8) pair[j] = pair[j] * scale + lowest;
            }
            store_words(to + i / 2 * MATRIX_ROW_BYTES, rounded_row(pair[0], pair[1]));
        }
    }
}

static void round_run(const cache_rows *from, row_run rows, int64_t n, char *to) {
    switch (from->kind) {
    case FLOAT32: round_run_of(from, rows, n, FLOAT32, to); break;
    case BFLOAT16: round_run_of(from, rows, n, BFLOAT16, to); break;
    case FLOAT16: round_run_of(from, rows, n, FLOAT16, to); break;
    case CODES8: round_run_of(from, rows, n, CODES8, to); break;
    case CODES4: round_run_of(from, rows, n, CODES4, to); break;
    default: round_run_of(from, rows, n, CODES2, to);
    }
}

/* Words of two slots for each of 16 channels, turned: (16 channels, PIECE slots). */
INLINE void turn_values(const char *rows, int64_t row, char *to) {
    bit_lanes words[LANES];
    for (int64_t i = 0; i < LANES; i++, rows += 2 * row) {
        __m512i both = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)rows));
        both = _mm512_inserti64x4(both, _mm256_loadu_si256((const __m256i *)(rows + row)), 1);
        words[i] = paired_halves(both);
    }
    transpose_words(words);
    for (int i = 0; i < LANES; i++) store_words(to + i * MATRIX_ROW_BYTES, words[i]);
}

/* Keys and values of a head from slot `first` on. Scores of slots beyond are not looked at; values are zeros there,
   which meet weights of zero. */
static void turn_tile(const attention_shape *shape, int64_t head, int64_t first, int64_t slots,
                      const turned_room *room) {
    int64_t n = shape->head_dim, row = pieces_of(n) * MATRIX_ROW_BYTES, whole = (slots + PIECE - 1) / PIECE * PIECE;
    row_run run;
    for (int64_t s = 0; s < slots; s += run.slots) {
        run = find_rows(shape, head, first + s, slots - s);
        round_run(&shape->keys, run, n, room->keys + s * row);
        round_run(&shape->values, run, n, room->rows + s * row);
    }
    memset(room->rows + slots * row, 0, (size_t)((whole - slots) * row));
    for (int64_t c = 0; c < n / LANES; c++)
        for (int64_t s = 0; s < whole; s += PIECE)
            turn_values(room->rows + s * row + c * LANES * 2, row,
                        room->values + (c * (TILE / PIECE) + s / PIECE) * TILE_BYTES);
}

/* sums (16, QUERIES) = or, where `onto`, += the sum over `pieces` of 16 rows of `left`, `step` bytes apart, by WIDE
   tiles of `right`. */
INLINE void multiply_by_tiles(const char *left, int64_t row, int64_t step, const char *right, int64_t pieces, int onto,
                              float *sums) {
    enum { DOWN = QUERIES * 4 };
    settle(left), settle(right), settle(sums);
    if (onto) {
        _tile_loadd(0, sums, DOWN);
        _tile_loadd(1, sums + LANES, DOWN);
        _tile_loadd(2, sums + 2 * LANES, DOWN);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
    }
    for (int64_t p = 0; p < pieces; p++, left += step, right += WIDE * TILE_BYTES) {
        _tile_loadd(4, left, row);
        _tile_loadd(6, right, MATRIX_ROW_BYTES);
        _tile_loadd(7, right + TILE_BYTES, MATRIX_ROW_BYTES);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(6, right + 2 * TILE_BYTES, MATRIX_ROW_BYTES);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 4, 6);
    }
    _tile_stored(0, sums, DOWN);
    _tile_stored(1, sums + LANES, DOWN);
    _tile_stored(2, sums + 2 * LANES, DOWN);
    settle(sums);
}

/* Scores of a tile into weights, rounded, and a running softmax; factor: by what earlier sums shrink. Gives whether
   any of them does. */
INLINE int weigh_by_tiles(const float *scores, int64_t slots, block_state *state, lanes factor[WIDE], char *weights) {
    lanes most[WIDE], total[WIDE];
    int_lanes shrinks = {0};
    for (int j = 0; j < WIDE; j++) most[j] = state->most[j];
    for (int64_t s = 0; s < slots; s++)
        for (int j = 0; j < WIDE; j++)
            most[j] = (lanes)_mm512_max_ps((__m512)load_lanes(scores + s * QUERIES + j * LANES), (__m512)most[j]);
    for (int j = 0; j < WIDE; j++) {
        shrinks |= most[j] != state->most[j];
        lanes base = choose(most[j] == all(-INFINITY), (lanes){0}, most[j]);
        factor[j] = rough_exp2(state->most[j] - base);
        total[j] = state->total[j] * factor[j];
        state->most[j] = most[j], most[j] = base;
    }
    int64_t whole = (slots + PIECE - 1) / PIECE * PIECE;
    for (int64_t s = 0; s < whole; s += 2)
        for (int j = 0; j < WIDE; j++) {
            const float *at = scores + s * QUERIES + j * LANES;
            lanes first = {0}, second = {0};
            if (s < slots) first = rough_exp2(load_lanes(at) - most[j]);
            if (s + 1 < slots) second = rough_exp2(load_lanes(at + QUERIES) - most[j]);
            total[j] += first + second;
            store_words(weights + (s / PIECE * WIDE + j) * TILE_BYTES + s % PIECE / 2 * MATRIX_ROW_BYTES,
                        rounded_pairs(first, second));
        }
    for (int j = 0; j < WIDE; j++) state->total[j] = total[j];
    return _mm512_movepi32_mask((__m512i)shrinks) != 0;
}

/* The tile that is in the room, for the queries of one block of 48. */
static void meet_turned(const turned_room *room, int64_t n, const char *queries, int64_t first, int64_t slots, int masked,
                        block_state *state, float *sums) {
    int64_t pieces = pieces_of(n), row = pieces * MATRIX_ROW_BYTES;
    lanes factor[WIDE];
    for (int64_t s = 0; s < slots; s += MATRIX_ROWS)
        multiply_by_tiles(room->keys + s * row, row, MATRIX_ROW_BYTES, queries, pieces, 0, room->scores + s * QUERIES);
    if (masked) mask_scores(room->scores, slots, first, state);
    int shrinks = weigh_by_tiles(room->scores, slots, state, factor, room->weights);
    for (int64_t c = 0; c < n; c += LANES, sums += LANES * QUERIES) {
        for (int64_t i = 0; shrinks && i < LANES; i++)
            for (int j = 0; j < WIDE; j++) {
                float *at = sums + i * QUERIES + j * LANES;
                store_lanes(at, load_lanes(at) * factor[j]);
            }
        multiply_by_tiles(room->values + c / LANES * (TILE / PIECE) * TILE_BYTES, MATRIX_ROW_BYTES, TILE_BYTES,
                          room->weights, (slots + PIECE - 1) / PIECE, 1, sums);
    }
}

/* 48 queries from `first` on as WIDE right operands of each piece of channels. */
static void turn_queries(const float *q, const attention_shape *shape, int64_t head, int64_t first, char *to) {
    int64_t n = shape->head_dim, vectors = n / LANES;
    float scale = shape->scale * 1.44269504f;
    for (int64_t i = 0; i < vectors; i += 2)
        for (int j = 0; j < WIDE; j++, to += TILE_BYTES) {
            bit_lanes words[LANES];
            for (int64_t lane = 0; lane < LANES; lane++) {
                const float *from = q + query_row(shape, head, first + j * LANES + lane) * n + i * LANES;
                lanes second = i + 1 < vectors ? load_lanes(from + LANES) : (lanes){0};
                words[lane] = rounded_row(load_lanes(from) * scale, second * scale);
            }
            transpose_words(words);
            for (int k = 0; k < LANES; k++) store_words(to + k * MATRIX_ROW_BYTES, words[k]);
        }
}

/* The output of 48 queries to their rows of `out`. */
static void turn_back(const attention_shape *shape, int64_t head, int64_t first, const float *sums,
                      const block_state *state, float *out) {
    int64_t n = shape->head_dim, queries = shape->tokens * (shape->heads / shape->kv_heads);
    for (int j = 0; j < WIDE; j++) {
        lanes inverse = 1.0f / state->total[j];
        for (int64_t c = 0; c < n; c += LANES) {
            bit_lanes words[LANES];
            for (int64_t i = 0; i < LANES; i++)
                words[i] = (bit_lanes)(load_lanes(sums + (c + i) * QUERIES + j * LANES) * inverse);
            transpose_words(words);
            for (int64_t lane = 0; lane < LANES && first + j * LANES + lane < queries; lane++)
                store_lanes(out + query_row(shape, head, first + j * LANES + lane) * n + c, (lanes)words[lane]);
        }
    }
    for (int64_t lane = 0; lane < QUERIES && first + lane < queries; lane++)
        from_row_order(out + query_row(shape, head, first + lane) * n, n, (int)shape->values.kind);
}

/* TILE_BLOCK queries from `first` on; their output takes their place. */
static void attend_block_by_tiles(float *q, const attention_shape *shape, int64_t head, int64_t first, float *floats) {
    turned_room room;
    block_state states[SHARING];
    seen_slots seen[SHARING];
    int64_t n = shape->head_dim, queries = pieces_of(n) * WIDE * TILE_BYTES, sums = n * QUERIES;
    int64_t left = shape->tokens * (shape->heads / shape->kv_heads) - first;
    int count = left < TILE_BLOCK ? (int)((left + QUERIES - 1) / QUERIES) : SHARING;
    cut_turned((char *)floats, n, &room);
    memset(room.sums, 0, (size_t)(count * sums) * 4);
    for (int i = 0; i < count; i++) {
        begin_state(shape, head, first + i * QUERIES, states + i);
        seen[i] = slots_seen(states + i);
        turn_queries(q, shape, head, first + i * QUERIES, room.queries + i * queries);
    }
    int64_t end = seen[count - 1].end;
    for (int64_t slot = seen[0].begin; slot < end; slot += TILE) {
        int64_t slots = end - slot < TILE ? end - slot : TILE;
        turn_tile(shape, head, slot, slots, &room);
        for (int i = 0; i < count; i++) {
            int64_t own = seen[i].end - slot < slots ? seen[i].end - slot : slots;
            if (own <= 0 || slot + slots <= seen[i].begin) continue;
            meet_turned(&room, n, room.queries + i * queries, slot, own, !seen_by_all(seen + i, slot, own), states + i,
                        room.sums + i * sums);
        }
    }
    for (int i = 0; i < count; i++)
        turn_back(shape, head, first + i * QUERIES, room.sums + i * sums, states + i, q);
}

#else

INLINE int fits_tiles(const attention_shape *shape) { return (void)shape, 0; }
INLINE int64_t tile_floats(int64_t n) { return (void)n, 0; }
static void begin_tiles(void) {}
static void end_tiles(void) {}
static void attend_block_by_tiles(float *q, const attention_shape *shape, int64_t head, int64_t first, float *floats) {
    (void)q, (void)shape, (void)head, (void)first, (void)floats;
}

#endif

#endif
