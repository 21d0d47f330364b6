/* The product of codes with many rows of x, a panel of rows side by side.

   Two tiles of 16 outputs are unpacked for all rows of a thread; then panel after panel passes through them. A
   processor with matrix tiles takes `grouped_tiles.h`, wherever a block of inputs fills whole ones; others take
   `grouped_panels.h` for x in int8 and `grouped_floats.h` for x in float32. */

#ifndef SHOESTRING_GROUPED_MANY_H
#define SHOESTRING_GROUPED_MANY_H

enum { PANEL = 6, PAIR = 2 /* tiles that are unpacked together */ };

/* Two tiles of weights as a path unpacks them, the vectors of one beside those of the other. */
typedef struct {
    void *weights;
    lanes *scales, *shifts; /* (groups, PAIR): w = scale·code + shift, or scale·(code − middle) + shift */
} unpacked_pair;

typedef void (*unpack_function)(const linear_kernel *, const grouping *, const code_planes *, int64_t tile, int which,
                                const unpacked_pair *);

/* One way to multiply. pass: rows from `first` on, one panel, through `tiles` tiles from `tile` on; y are these
   rows of the result. centred: codes take part less their middle. */
typedef struct {
    int64_t rows;
    int centred;
    int64_t (*weight_bytes)(const grouping *);
    int64_t (*prepared_bytes)(const grouping *, int64_t rows);
    void (*prepare)(const linear_kernel *, const grouping *, const float *x, int64_t rows, char *prepared);
    void (*pass)(const linear_kernel *, const grouping *, const unpacked_pair *, char *prepared, int64_t rows,
                 int64_t first, int64_t tile, int tiles, float *y);
    void (*start)(const grouping *); /* before the first pass and after the last, where there is anything to do */
    void (*finish)(void);
} row_path;

/* Cut bytes off a room; with no room, only count. */
static void *cut_bytes(char *room, int64_t *used, int64_t bytes) {
    void *here = room ? room + *used : NULL;
    *used += aligned(bytes);
    return here;
}

INLINE int64_t panels_of(int64_t rows, int64_t panel) { return (rows + panel - 1) / panel; }

/* a·b + c, rounded once where the processor does so at no cost. */
INLINE lanes fused(lanes a, lanes b, lanes c) {
#ifdef __AVX512F__
    return (lanes)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
    return a * b + c;
#endif
}

static void unpack_grid(const linear_kernel *self, const grouping *g, int64_t tile, int which, int bits, int centred,
                        const unpacked_pair *to) {
    int64_t groups = g->blocks / g->blocks_per_group;
    lanes middle = all((float)(1 << (bits - 1)));
    lanes multiplier = g->scale == BYTES ? load_lanes((const float *)self->weights[5] + tile * LANES) : all(1.0f);
    for (int64_t i = 0; i < groups; i++) {
        int64_t group = tile * groups + i;
        lanes scale = scales_at(self, g, group) * multiplier, shift = {0};
        if (g->shift == REAL) {
            shift = offsets_at(self, g, group);
            if (centred) shift = fused(scale, middle, shift);
        } else {
            lanes zero = middle;
            if (g->shift == INTEGER) zero = widen_bytes((const uint8_t *)self->weights[4] + group * LANES);
            shift = -scale * (centred ? zero - middle : zero);
        }
        to->scales[i * PAIR + which] = scale;
        to->shifts[i * PAIR + which] = shift;
    }
}

/* The codes of one tile, a byte each; `bits` is a constant. */
INLINE void unpack_codes(const grouping *g, const code_planes *planes, int64_t tile, int which,
                         const unpacked_pair *to, int bits) {
    int64_t quartets = g->blocks * g->quartets;
    for (int64_t q = 0; q < quartets; q++) {
        words quads[QUADS];
        prefetch_quartet(planes, tile * quartets + q, bits);
        unpack_quartet(planes, tile * quartets + q, bits, quads);
        for (int j = 0; j < QUADS; j++) ((words *)to->weights)[(q * QUADS + j) * PAIR + which] = quads[j];
    }
}

static int64_t code_bytes(const grouping *g) { return (int64_t)sizeof(words) / 4 * PAIR * g->places; }

/* One tile of the results of `rows` rows; `y` has `step` vectors from one row to the next. */
INLINE void write_rows(const linear_kernel *self, int64_t tile, const lanes *y, int step, float *to, int64_t rows) {
    int64_t first = tile * LANES, count = self->outputs - first < LANES ? self->outputs - first : LANES;
    lanes bias = self->bias ? load_some(self->bias, first, count, FLOAT32) : (lanes){0};
    for (int64_t r = 0; r < rows; r++) {
        lanes value = y[r * step] + bias;
        if (count == LANES) store_lanes(to + r * self->outputs + first, value);
        else memcpy(to + r * self->outputs + first, &value, (size_t)count * 4);
    }
}

#include "grouped_floats.h"
#include "grouped_panels.h"
#include "grouped_tiles.h"

static const row_path *int8_path(const grouping *g, int bits) {
    (void)g;
    if (has_tiles()) return &half_tiles;
    return bits == 8 ? &panels_of_eight : &int8_panels;
}

static const row_path *float_path(const grouping *g) { return floats_fit_tiles(g) ? &float_tiles : &float_panels; }

static int64_t lay_out_pair(const grouping *g, const row_path *path, char *room, unpacked_pair *to) {
    int64_t used = 0, grid = (int64_t)sizeof(lanes) * PAIR * (g->blocks / g->blocks_per_group);
    to->weights = cut_bytes(room, &used, path->weight_bytes(g));
    to->scales = cut_bytes(room, &used, grid);
    to->shifts = cut_bytes(room, &used, grid);
    return used;
}

static void through_tiles(const linear_kernel *self, const grouping *g, const row_path *path, unpack_function unpack,
                          int bits, char *prepared, float *y, int64_t rows, char *scratch) {
    code_planes planes = {self->weights[0], self->weights[1], self->weights[2]};
    unpacked_pair pair;
    lay_out_pair(g, path, scratch, &pair);
    int64_t n_tiles = (self->outputs + LANES - 1) / LANES;
    if (path->start) path->start(g);
    for (int64_t tile = 0; tile < n_tiles; tile += PAIR) {
        int tiles = tile + 1 < n_tiles ? PAIR : 1;
        for (int i = 0; i < tiles; i++) {
            unpack_grid(self, g, tile + i, i, bits, path->centred, &pair);
            unpack(self, g, &planes, tile + i, i, &pair);
        }
        for (int64_t first = 0; first < rows; first += path->rows)
            path->pass(self, g, &pair, prepared, rows, first, tile, tiles, y + first * self->outputs);
    }
    if (path->finish) path->finish();
}

/* The functions of `many_rows` for a kind of input: its path is asked for anew, and is always the same. */
#define MANY_KIND(kind, path)                                                                                        \
    static void prepare_##kind(const linear_kernel *self, const float *x, int64_t rows, void *prepared) {            \
        grouping g = grouping_of(self);                                                                              \
        (path)->prepare(self, &g, x, rows, prepared);                                                                \
    }                                                                                                                \
    static int64_t prepared_bytes_##kind(const linear_kernel *self, int64_t rows) {                                  \
        grouping g = grouping_of(self);                                                                              \
        return (path)->prepared_bytes(&g, rows);                                                                     \
    }                                                                                                                \
    static int64_t many_scratch_##kind(const linear_kernel *self) {                                                  \
        grouping g = grouping_of(self);                                                                              \
        unpacked_pair pair;                                                                                          \
        return lay_out_pair(&g, path, NULL, &pair);                                                                  \
    }
/* Of eight bits and fewer the path is the same but for `pass`. */
MANY_KIND(int8, int8_path(&g, 0))
MANY_KIND(float, float_path(&g))

#define MANY_ROWS_int8(bits)                                                                                         \
    static void unpack_codes_##bits(const linear_kernel *self, const grouping *g, const code_planes *planes,         \
                                    int64_t tile, int which, const unpacked_pair *to) {                              \
        (void)self;                                                                                                  \
        unpack_codes(g, planes, tile, which, to, bits);                                                              \
    }                                                                                                                \
    static void unpack_rounded_##bits(const linear_kernel *self, const grouping *g, const code_planes *planes,       \
                                      int64_t tile, int which, const unpacked_pair *to) {                            \
        (void)self;                                                                                                  \
        unpack_rounded(self, g, planes, tile, which, to, bits);                                                      \
    }                                                                                                                \
    static void multiply_int8_##bits(const linear_kernel *self, const void *prepared, float *y, int64_t rows,        \
                                     void *scratch) {                                                                \
        grouping g = grouping_of(self);                                                                              \
        const row_path *path = int8_path(&g, bits);                                                                  \
        unpack_function unpack = path == &half_tiles ? unpack_rounded_##bits : unpack_codes_##bits;                  \
        through_tiles(self, &g, path, unpack, bits, (char *)prepared, y, rows, scratch);                             \
    }                                                                                                                \
    const many_rows grouped_int8_many_##bits = {prepare_int8, multiply_int8_##bits, prepared_bytes_int8,             \
                                                many_scratch_int8};
#define MANY_ROWS_float(bits)                                                                                        \
    static void unpack_floats_##bits(const linear_kernel *self, const grouping *g, const code_planes *planes,        \
                                     int64_t tile, int which, const unpacked_pair *to) {                             \
        unpack_floats(self, g, planes, tile, which, to, bits);                                                       \
    }                                                                                                                \
    static void unpack_halves_##bits(const linear_kernel *self, const grouping *g, const code_planes *planes,        \
                                     int64_t tile, int which, const unpacked_pair *to) {                             \
        (void)self;                                                                                                  \
        unpack_halves(g, planes, tile, which, to, bits);                                                             \
    }                                                                                                                \
    static void multiply_float_##bits(const linear_kernel *self, const void *prepared, float *y, int64_t rows,       \
                                      void *scratch) {                                                               \
        grouping g = grouping_of(self);                                                                              \
        const row_path *path = float_path(&g);                                                                       \
        unpack_function unpack = path == &float_tiles ? unpack_halves_##bits : unpack_floats_##bits;                 \
        through_tiles(self, &g, path, unpack, bits, (char *)prepared, y, rows, scratch);                             \
    }                                                                                                                \
    const many_rows grouped_float_many_##bits = {prepare_float, multiply_float_##bits, prepared_bytes_float,         \
                                                 many_scratch_float};

#endif
