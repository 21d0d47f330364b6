/* Many rows of x on a processor with matrix tiles (AMX): 16 rows, 16 outputs and 32 inputs of bfloat16 at once.

   Where x may be rounded, it and the weights are rounded to bfloat16, which is nearer than int8 with a scale per
   block, and sums stay in tiles from the first input to the last. Where x is float32, every value is cut into three
   of bfloat16, which are exact together, as codes are; sums leave the tiles block by block, to be scaled. */

#ifndef SHOESTRING_GROUPED_TILES_H
#define SHOESTRING_GROUPED_TILES_H

#include "half_operands.h"

#if HAS_MATRIX_TILES

/* Numbers of tiles: they become names of registers, which an enum cannot. */
#define SUM_TILE 0
#define X_TILE 4
#define WEIGHT_TILE 6
enum { TILE_ROWS = MATRIX_ROWS, PARTS = 3 };

static int floats_fit_tiles(const grouping *g) { return (g->quartets == 1 || g->quartets % 2 == 0) && has_tiles(); }

typedef struct {
    uint16_t *values; /* (panels, pieces, PARTS or 1, TILE_ROWS, inputs of a piece) */
    float *sums;      /* (panels, blocks, TILE_ROWS): Σ x of a block, where x is float32 */
} tile_room;

/* Inputs of a tile of bfloat16. */
INLINE int64_t piece_inputs(const grouping *g) { return g->quartets == 1 ? 16 : 32; }

static int64_t lay_out_float_tiles(const grouping *g, int64_t rows, char *room, tile_room *to) {
    int64_t used = 0, padded = panels_of(rows, TILE_ROWS) * TILE_ROWS;
    to->values = cut_bytes(room, &used, padded * g->places * 2 * PARTS);
    to->sums = cut_bytes(room, &used, padded * g->blocks * 4);
    return used;
}

static int64_t float_tile_bytes(const grouping *g, int64_t rows) {
    tile_room room;
    return lay_out_float_tiles(g, rows, NULL, &room);
}

/* The upper half of every float, and what is left of it: nothing where the value is not finite. */
INLINE half_lanes cut_halves(lanes *values) {
    bit_lanes bits = (bit_lanes)*values;
    lanes upper = (lanes)(bits & 0xFFFF0000u);
    *values = choose((int_lanes)((bits & 0x7F800000u) == 0x7F800000u), (lanes){0}, *values - upper);
    return __builtin_convertvector(bits >> 16, half_lanes);
}

static void fill_float_tiles(const linear_kernel *self, const grouping *g, const float *x, int64_t rows,
                             char *prepared) {
    tile_room room;
    lay_out_float_tiles(g, rows, prepared, &room);
    int64_t piece = piece_inputs(g), pieces = g->quartets * QUARTET / piece, part = TILE_ROWS * piece;
    memset(prepared, 0, (size_t)float_tile_bytes(g, rows));
    for (int64_t r = 0; r < rows; r++) {
        uint16_t *to = room.values + r / TILE_ROWS * TILE_ROWS * g->places * PARTS + r % TILE_ROWS * piece;
        float *sums = room.sums + r / TILE_ROWS * TILE_ROWS * g->blocks + r % TILE_ROWS;
        const float *row = x + r * self->inputs;
        for (int64_t b = 0; b < g->blocks; b++, row += g->block) {
            lanes sum = {0};
            for (int64_t i = 0; i < g->block; i += LANES) {
                int64_t count = g->block - i < LANES ? g->block - i : LANES;
                lanes values = count == LANES ? load_lanes(row + i) : load_some(row, i, count, FLOAT32);
                uint16_t *here = to + (b * pieces + i / piece) * PARTS * part + i % piece;
                sum += values;
                for (int p = 0; p < PARTS; p++) {
                    half_lanes halves = cut_halves(&values);
                    memcpy(here + p * part, &halves, sizeof halves);
                }
            }
            sums[b * TILE_ROWS] = sum_lanes(sum);
        }
    }
}

/* Codes less their middle as pairs of bfloat16, which are exact up to 256: one vector for two inputs. */
INLINE void unpack_halves(const grouping *g, const code_planes *planes, int64_t tile, int which,
                          const unpacked_pair *to, int bits) {
    bit_lanes *pairs = (bit_lanes *)to->weights + which;
    int64_t quartets = g->blocks * g->quartets;
    for (int64_t q = 0; q < quartets; q++) {
        words quads[QUADS];
        prefetch_quartet(planes, tile * quartets + q, bits);
        unpack_quartet(planes, tile * quartets + q, bits, quads);
        for (int j = 0; j < QUADS; j++)
            for (int i = 0; i < 4; i += 2, pairs += PAIR)
                *pairs = (bit_lanes)centred(quads[j], i, bits) >> 16 | (bit_lanes)centred(quads[j], i + 1, bits);
    }
}

static int64_t code_pair_bytes(const grouping *g) { return (int64_t)sizeof(bit_lanes) / 2 * PAIR * g->places; }

INLINE void float_block(const uint16_t *x, int64_t piece, int64_t pieces, const bit_lanes *pairs, float *dots) {
    int64_t part = TILE_ROWS * piece;
    settle(x);
    _tile_zero(SUM_TILE);
    for (int64_t p = 0; p < pieces; p++, x += PARTS * part, pairs += piece / 2 * PAIR) {
        _tile_loadd(WEIGHT_TILE, pairs, 64 * PAIR);
        for (int i = PARTS - 1; i >= 0; i--) { /* the small ones first */
            _tile_loadd(X_TILE, x + i * part, 2 * piece);
            _tile_dpbf16ps(SUM_TILE, X_TILE, WEIGHT_TILE);
        }
    }
    _tile_stored(SUM_TILE, dots, 64);
}

static void pass_float_tiles(const linear_kernel *self, const grouping *g, const unpacked_pair *pair, char *prepared,
                             int64_t rows, int64_t first, int64_t tile, int tiles, float *to) {
    tile_room room;
    lay_out_float_tiles(g, rows, prepared, &room);
    int64_t piece = piece_inputs(g), pieces = g->quartets * QUARTET / piece, part = TILE_ROWS * piece;
    for (int i = 0; i < tiles; i++) {
        _Alignas(64) float dots[2][TILE_ROWS * LANES];
        const bit_lanes *pairs = (const bit_lanes *)pair->weights + i;
        const uint16_t *x = room.values + first * g->places * PARTS;
        const float *sums = room.sums + first * g->blocks;
        lanes y[TILE_ROWS] = {0};
        for (int64_t b = 0, left = 0, group = -1; b < g->blocks; b++, left--) {
            if (left == 0) left = g->blocks_per_group, group++;
            lanes scale = pair->scales[group * PAIR + i], shift = pair->shifts[group * PAIR + i];
            float *here = dots[b & 1];
            float_block(x, piece, pieces, pairs, here);
#pragma GCC unroll 16
            for (int r = 0; r < TILE_ROWS; r++) {
                y[r] = fused(scale, load_lanes(here + r * LANES), y[r]);
                y[r] = fused(shift, all(sums[r]), y[r]);
            }
            x += pieces * PARTS * part, pairs += g->quartets * QUARTET / 2 * PAIR, sums += TILE_ROWS;
        }
        write_rows(self, tile + i, y, 1, to, rows - first < TILE_ROWS ? rows - first : TILE_ROWS);
    }
}

static void start_float_tiles(const grouping *g) { shape_tiles(2 * piece_inputs(g)); }

static const row_path float_tiles = {.rows = TILE_ROWS,
                                     .centred = 1,
                                     .weight_bytes = code_pair_bytes,
                                     .prepared_bytes = float_tile_bytes,
                                     .prepare = fill_float_tiles,
                                     .pass = pass_float_tiles,
                                     .start = start_float_tiles,
                                     .finish = release_tiles};

/* x in bfloat16: two panels of rows meet two tiles of outputs, so that what is loaded is used twice. */
enum { HALF_PIECE = 32, HALF_ROWS = 2 * TILE_ROWS, PIECE_PAIRS = HALF_PIECE / 2 };

INLINE int64_t half_pieces(const grouping *g) { return (g->places + HALF_PIECE - 1) / HALF_PIECE; }

static int64_t half_tile_bytes(const grouping *g, int64_t rows) {
    return panels_of(rows, HALF_ROWS) * HALF_ROWS * half_pieces(g) * HALF_PIECE * 2;
}

static int64_t half_weight_bytes(const grouping *g) {
    return half_pieces(g) * PAIR * PIECE_PAIRS * (int64_t)sizeof(bit_lanes);
}

/* (panels, pieces, TILE_ROWS, HALF_PIECE) */
static void fill_half_tiles(const linear_kernel *self, const grouping *g, const float *x, int64_t rows,
                            char *prepared) {
    int64_t pieces = half_pieces(g), width = g->quartets * QUARTET, panel = pieces * TILE_ROWS * HALF_PIECE;
    int64_t last = g->places % HALF_PIECE;
    for (int64_t r = 0; r < panels_of(rows, HALF_ROWS) * HALF_ROWS; r++) {
        uint16_t *to = (uint16_t *)prepared + r / TILE_ROWS * panel + r % TILE_ROWS * HALF_PIECE;
        const float *row = x + r * self->inputs;
        for (int64_t b = 0, place = 0; b < g->blocks; b++, row += g->block)
            for (int64_t i = 0; i < width; i += LANES, place += LANES) {
                int64_t count = r >= rows || i >= g->block ? 0 : g->block - i < LANES ? g->block - i : LANES;
                lanes values = count == LANES ? load_lanes(row + i) : count ? load_some(row, i, count, FLOAT32) : (lanes){0};
                bit_lanes halves = rounded_row(values, values);
                memcpy(to + place / HALF_PIECE * TILE_ROWS * HALF_PIECE + place % HALF_PIECE, &halves, sizeof halves / 2);
            }
        if (last) memset(to + (pieces - 1) * TILE_ROWS * HALF_PIECE + last, 0, (size_t)(HALF_PIECE - last) * 2);
    }
}


/* Weights of one tile as the stored form decodes to, rounded: (pieces, PAIR, PIECE_PAIRS) pairs of inputs; bits is a constant. */
INLINE void unpack_rounded(const linear_kernel *self, const grouping *g, const code_planes *planes, int64_t tile,
                           int which, const unpacked_pair *to, int bits) {
    int64_t quartet = tile * g->blocks * g->quartets, groups = g->blocks / g->blocks_per_group, count = 0;
    bit_lanes *pairs = (bit_lanes *)to->weights + which * PIECE_PAIRS;
    for (int64_t group = 0; group < groups; group++) {
        lanes scale = to->scales[group * PAIR + which], shift = to->shifts[group * PAIR + which];
        for (int64_t q = 0; q < g->blocks_per_group * g->quartets; q++, quartet++) {
            words quads[QUADS];
            prefetch_quartet(planes, quartet, bits);
            unpack_quartet(planes, quartet, bits, quads);
            for (int j = 0; j < QUADS; j++)
                for (int i = 0; i < 4; i += 2)
                    pairs[2 * j + i / 2] = rounded_pairs(fused(scale, code_floats(quads[j], i, bits, 0), shift),
                                                        fused(scale, code_floats(quads[j], i + 1, bits, 0), shift));
            pairs += ++count % 2 ? QUARTET / 2 : (PAIR - 1) * PIECE_PAIRS + QUARTET / 2;
        }
    }
    if (count % 2) memset(pairs, 0, QUARTET / 2 * sizeof *pairs);
}

static void pass_half_tiles(const linear_kernel *self, const grouping *g, const unpacked_pair *pair, char *prepared,
                            int64_t rows, int64_t first, int64_t tile, int tiles, float *to) {
    _Alignas(64) lanes sums[4][TILE_ROWS];
    int64_t pieces = half_pieces(g), panel = pieces * TILE_ROWS * HALF_PIECE;
    int two_panels = rows - first > TILE_ROWS;
    const uint16_t *x = (const uint16_t *)prepared + first / TILE_ROWS * panel;
    const bit_lanes *weights = pair->weights;
    settle(x);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t p = 0; p < pieces; p++, x += TILE_ROWS * HALF_PIECE, weights += PAIR * PIECE_PAIRS) {
        _tile_loadd(4, x, 64);
        _tile_loadd(6, weights, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (tiles == PAIR) {
            _tile_loadd(7, weights + PIECE_PAIRS, 64);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (!two_panels) continue;
        _tile_loadd(5, x + panel, 64);
        _tile_dpbf16ps(2, 5, 6);
        if (tiles == PAIR) _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    _tile_stored(2, sums[2], 64);
    _tile_stored(3, sums[3], 64);
    for (int64_t half = 0; half <= two_panels; half++, first += TILE_ROWS, to += TILE_ROWS * self->outputs)
        for (int i = 0; i < tiles; i++)
            write_rows(self, tile + i, sums[2 * half + i], 1, to, rows - first < TILE_ROWS ? rows - first : TILE_ROWS);
}

static void start_half_tiles(const grouping *g) {
    (void)g;
    shape_tiles(2 * HALF_PIECE);
}

static const row_path half_tiles = {.rows = HALF_ROWS,
                                    .weight_bytes = half_weight_bytes,
                                    .prepared_bytes = half_tile_bytes,
                                    .prepare = fill_half_tiles,
                                    .pass = pass_half_tiles,
                                    .start = start_half_tiles,
                                    .finish = release_tiles};

#else

static int floats_fit_tiles(const grouping *g) { return (void)g, 0; }
#define unpack_halves(g, planes, tile, which, to, bits) ((void)0)
#define unpack_rounded(self, g, planes, tile, which, to, bits) ((void)0)
static const row_path half_tiles = {0}, float_tiles = {0};

#endif

#endif
