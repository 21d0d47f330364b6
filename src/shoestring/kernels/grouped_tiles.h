/* Many rows of x on a processor with matrix tiles (AMX): 16 rows, 16 outputs and up to 64 bytes of inputs at once.

   A quad is what a row of the second tile is: four bytes for each of 16 outputs. With x in int8 the sums are the
   same whole numbers as those of `grouped_panels.h`, and everything after them is the same, so results are too.
   With x in float32, every value is cut into three of bfloat16, which are exact together, as codes are; the sums
   are float32.
   Source: Intel Architecture Instruction Set Extensions Programming Reference, chapter 3 (AMX). */

#ifndef SHOESTRING_GROUPED_TILES_H
#define SHOESTRING_GROUPED_TILES_H

#if defined(__AMX_INT8__) && defined(__AMX_BF16__) && defined(__AVX512F__) && defined(__linux__)

#include <stdatomic.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* Numbers of tiles: they become names of registers, which an enum cannot. */
#define X_TILE 0
#define WEIGHT_TILE 1
#define SUM_TILE 2
enum { TILE_ROWS = 16, PARTS = 3, MOST_TILE_BYTES = 64 };
enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_shapes;

/* `bytes` are those of inputs. */
static void shape_tiles(int64_t bytes) {
    tile_shapes shapes = {.palette = 1,
                          .row_bytes = {(uint16_t)bytes, 64, 64},
                          .rows = {TILE_ROWS, (uint8_t)(bytes / 4), TILE_ROWS}};
    _tile_loadconfig(&shapes);
}

/* One product, in a child: a virtual machine may announce tiles that it does not have. */
static void try_tiles(void) {
    _Alignas(64) int8_t ones[TILE_ROWS * 64];
    _Alignas(64) int32_t sums[TILE_ROWS * LANES];
    memset(ones, 1, sizeof ones);
    shape_tiles(MOST_TILE_BYTES);
    _tile_loadd(X_TILE, ones, 64);
    _tile_loadd(WEIGHT_TILE, ones, 64);
    _tile_zero(SUM_TILE);
    _tile_dpbsud(SUM_TILE, X_TILE, WEIGHT_TILE);
    _tile_stored(SUM_TILE, sums, 64);
    _tile_release();
    for (int i = 0; i < TILE_ROWS * LANES; i++)
        if (sums[i] != MOST_TILE_BYTES) _exit(1);
    _exit(0);
}

static int ask_for_tiles(void) {
    if (syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)) return 0;
    pid_t child = fork();
    if (child == 0) try_tiles();
    int status = 1;
    return child > 0 && waitpid(child, &status, 0) == child && status == 0;
}

/* Whether this process may use tiles, and they work: asked once. */
static int has_tiles(void) {
    static atomic_int known; /* 0: not yet; else 1 + the answer */
    int answer = atomic_load(&known);
    if (!answer) atomic_store(&known, answer = 1 + ask_for_tiles());
    return answer - 1;
}

static int codes_fit_tiles(const grouping *g) {
    return (g->quartets == 1 || g->quartets == 2 || g->quartets == 4) && has_tiles();
}

static int floats_fit_tiles(const grouping *g) { return (g->quartets == 1 || g->quartets % 2 == 0) && has_tiles(); }

/* Of both kinds of x. */
typedef struct {
    char *values;    /* int8: (rows, stride); float32: (panels, blocks · pieces, PARTS, TILE_ROWS, piece) */
    float *t, *sums; /* (panels, blocks, TILE_ROWS): scales of x where it is int8, and sums of a block */
    char *row;       /* int8: scales and sums of one row */
    int64_t stride;  /* bytes from one row of a tile to the next */
} tile_room;

static int64_t lay_out_int8_tiles(const grouping *g, int64_t rows, char *room, tile_room *to) {
    int64_t used = 0, padded = panels_of(rows, TILE_ROWS) * TILE_ROWS;
    /* An odd number of cache lines: rows must not all fall into one set of the cache. */
    to->stride = aligned(g->places) | 64;
    to->values = cut_bytes(room, &used, padded * to->stride);
    to->t = cut_bytes(room, &used, padded * g->blocks * 4);
    to->sums = cut_bytes(room, &used, padded * g->blocks * 4);
    to->row = cut_bytes(room, &used, 3 * aligned(4 * g->blocks));
    return used;
}

static int64_t int8_tile_bytes(const grouping *g, int64_t rows) {
    tile_room room;
    return lay_out_int8_tiles(g, rows, NULL, &room);
}

static void fill_int8_tiles(const linear_kernel *self, const grouping *g, const float *x, int64_t rows,
                            char *prepared) {
    tile_room room;
    lay_out_int8_tiles(g, rows, prepared, &room);
    int64_t padded = panels_of(rows, TILE_ROWS) * TILE_ROWS, step = aligned(4 * g->blocks) / 4;
    memset(room.values + rows * room.stride, 0, (size_t)((padded - rows) * room.stride));
    float *scales = (float *)room.row, *sums = scales + 2 * step;
    for (int64_t r = 0; r < padded; r++) {
        prepared_row row = {(int8_t *)room.values + r * room.stride, NULL, scales, (int32_t *)(scales + step), sums};
        if (r < rows) quantise_row(g, x + r * self->inputs, row);
        else memset(room.row, 0, (size_t)(3 * step * 4));
        int64_t place = r / TILE_ROWS * TILE_ROWS * g->blocks + r % TILE_ROWS;
        for (int64_t b = 0; b < g->blocks; b++, place += TILE_ROWS) room.t[place] = scales[b], room.sums[place] = sums[b];
    }
}

/* Sums of 16 rows and one tile over a block, in whole numbers. */
INLINE void int8_block(const char *x, int64_t stride, const words *quads, int32_t *dots) {
    _tile_loadd(X_TILE, x, stride);
    _tile_loadd(WEIGHT_TILE, quads, 64 * PAIR);
    _tile_zero(SUM_TILE);
    _tile_dpbsud(SUM_TILE, X_TILE, WEIGHT_TILE);
    _tile_stored(SUM_TILE, dots, 64);
}

static void pass_int8_tiles(const linear_kernel *self, const grouping *g, const unpacked_pair *pair, char *prepared,
                            int64_t rows, int64_t first, int64_t tile, int tiles, float *to) {
    tile_room room;
    lay_out_int8_tiles(g, rows, prepared, &room);
    int64_t width = g->quartets * QUARTET;
    shape_tiles(width);
    for (int i = 0; i < tiles; i++) {
        /* Two in turn, so that a block need not wait until the last one has been read. */
        _Alignas(64) int32_t dots[2][TILE_ROWS * LANES];
        const words *quads = (const words *)pair->weights + i;
        const char *x = room.values + first * room.stride;
        const float *t = room.t + first * g->blocks, *sums = room.sums + first * g->blocks;
        lanes y[TILE_ROWS] = {0};
        for (int64_t b = 0, left = 0, group = -1; b < g->blocks; b++, left--) {
            if (left == 0) left = g->blocks_per_group, group++;
            lanes scale = pair->scales[group * PAIR + i], shift = pair->shifts[group * PAIR + i];
            int32_t *here = dots[b & 1];
            int8_block(x, room.stride, quads, here);
#pragma GCC unroll 16
            for (int r = 0; r < TILE_ROWS; r++) {
                int_lanes dot;
                memcpy(&dot, here + r * LANES, sizeof dot);
                y[r] = fused(scale * t[r], __builtin_convertvector(dot, lanes), y[r]);
                y[r] = fused(shift, all(sums[r]), y[r]);
            }
            x += width, quads += g->quartets * QUADS * PAIR, t += TILE_ROWS, sums += TILE_ROWS;
        }
        write_rows(self, tile + i, y, 1, to, rows - first < TILE_ROWS ? rows - first : TILE_ROWS);
    }
    _tile_release();
}

/* Inputs of a tile of bfloat16. */
INLINE int64_t piece_inputs(const grouping *g) { return g->quartets == 1 ? 16 : 32; }

static int64_t lay_out_float_tiles(const grouping *g, int64_t rows, char *room, tile_room *to) {
    int64_t used = 0, padded = panels_of(rows, TILE_ROWS) * TILE_ROWS;
    to->stride = 2 * piece_inputs(g);
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
        uint16_t *to = (uint16_t *)room.values + r / TILE_ROWS * TILE_ROWS * g->places * PARTS + r % TILE_ROWS * piece;
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

static int64_t half_weight_bytes(const grouping *g) { return (int64_t)sizeof(bit_lanes) / 2 * PAIR * g->places; }

INLINE void float_block(const uint16_t *x, int64_t part, int64_t stride, int64_t pieces, const bit_lanes *pairs,
                        float *dots) {
    _tile_zero(SUM_TILE);
    for (int64_t p = 0; p < pieces; p++, x += PARTS * part, pairs += stride / 4 * PAIR) {
        _tile_loadd(WEIGHT_TILE, pairs, 64 * PAIR);
        for (int i = PARTS - 1; i >= 0; i--) { /* the small ones first */
            _tile_loadd(X_TILE, x + i * part, stride);
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
    shape_tiles(room.stride);
    for (int i = 0; i < tiles; i++) {
        _Alignas(64) float dots[2][TILE_ROWS * LANES];
        const bit_lanes *pairs = (const bit_lanes *)pair->weights + i;
        const uint16_t *x = (const uint16_t *)room.values + first * g->places * PARTS;
        const float *sums = room.sums + first * g->blocks;
        lanes y[TILE_ROWS] = {0};
        for (int64_t b = 0, left = 0, group = -1; b < g->blocks; b++, left--) {
            if (left == 0) left = g->blocks_per_group, group++;
            lanes scale = pair->scales[group * PAIR + i], shift = pair->shifts[group * PAIR + i];
            float *here = dots[b & 1];
            float_block(x, part, room.stride, pieces, pairs, here);
#pragma GCC unroll 16
            for (int r = 0; r < TILE_ROWS; r++) {
                y[r] = fused(scale, load_lanes(here + r * LANES), y[r]);
                y[r] = fused(shift, all(sums[r]), y[r]);
            }
            x += pieces * PARTS * part, pairs += g->quartets * QUARTET / 2 * PAIR, sums += TILE_ROWS;
        }
        write_rows(self, tile + i, y, 1, to, rows - first < TILE_ROWS ? rows - first : TILE_ROWS);
    }
    _tile_release();
}

static const row_path int8_tiles = {TILE_ROWS, 0, code_bytes, int8_tile_bytes, fill_int8_tiles, pass_int8_tiles};
static const row_path float_tiles = {TILE_ROWS,        1,               half_weight_bytes, float_tile_bytes,
                                     fill_float_tiles, pass_float_tiles};

#else

static int codes_fit_tiles(const grouping *g) { return (void)g, 0; }
static int floats_fit_tiles(const grouping *g) { return (void)g, 0; }
INLINE void unpack_halves(const grouping *g, const code_planes *planes, int64_t tile, int which,
                          const unpacked_pair *to, int bits) {
    (void)g, (void)planes, (void)tile, (void)which, (void)to, (void)bits;
}
static const row_path int8_tiles = {0}, float_tiles = {0};

#endif

#endif
