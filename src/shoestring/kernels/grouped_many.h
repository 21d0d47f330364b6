/* The product of codes with many rows of x: a matrix product of whole numbers, scaled block by block.

   Each thread takes its own rows, PANEL of them side by side: their int8 interleaved by quads, their scales by
   blocks, so that all offsets are constants. Two tiles of 16 outputs are unpacked once for as many rows as fit the
   second-level cache; then a quad of codes meets four int8 of every row of a panel, in registers throughout.
   y = Σ_b t_b·s·(Σ q·k) + t_b·Σk·shift with shift = −s·z, −s·middle or o: the same sums as for a few rows, but with
   the shift in float32 instead of whole numbers. */

#ifndef SHOESTRING_GROUPED_MANY_H
#define SHOESTRING_GROUPED_MANY_H

enum { PANEL = 6, PAIR = 2 /* tiles */, CHUNK_ROWS = 32 * PANEL, LEAST_MANY = 32 };

typedef struct {
    words *quads;           /* (places / 4, PAIR): the codes of two tiles */
    lanes *scales, *shifts; /* (groups, PAIR) */
    int32_t *codes;         /* (panels, places / 4, PANEL): four int8 each */
    float *t, *sums;        /* (panels, blocks, PANEL): scales of x, and t·Σk */
    int8_t *row_codes;      /* one row, before it takes its place in a panel */
    float *row_scales, *row_sums;
    int32_t *row_whole;
} many_room;

INLINE int64_t lay_out_many(const grouping *g, char *room, many_room *to) {
    int64_t used = 0, groups = g->blocks / g->blocks_per_group, blocks = 4 * g->blocks;
    int64_t sizes[] = {16 * PAIR * g->places, 64 * PAIR * groups, 64 * PAIR * groups, CHUNK_ROWS * g->places,
                       CHUNK_ROWS * blocks,   CHUNK_ROWS * blocks, g->places,          blocks, blocks, blocks};
    char *parts[10];
    for (int i = 0; i < 10; i++) {
        parts[i] = room + used;
        used += aligned(sizes[i]);
    }
    *to = (many_room){(words *)parts[0], (lanes *)parts[1],  (lanes *)parts[2], (int32_t *)parts[3],
                      (float *)parts[4], (float *)parts[5],  (int8_t *)parts[6], (float *)parts[7],
                      (float *)parts[8], (int32_t *)parts[9]};
    return used;
}

/* Codes, scales and shifts of one tile become number `which` of a pair; `bits` is a constant. */
INLINE void unpack_tile(const linear_kernel *self, const grouping *g, const code_planes *planes, int64_t tile,
                        int which, const many_room *room, int bits) {
    int64_t quartets = g->blocks * g->quartets, groups = g->blocks / g->blocks_per_group;
    for (int64_t q = 0; q < quartets; q++) {
        words quads[QUADS];
        prefetch_quartet(planes, tile * quartets + q, bits);
        unpack_quartet(planes, tile * quartets + q, bits, quads);
        for (int j = 0; j < QUADS; j++) room->quads[(q * QUADS + j) * PAIR + which] = quads[j];
    }
    lanes multiplier = g->byte_scales ? load_lanes((const float *)self->weights[5] + tile * LANES) : all(1.0f);
    for (int64_t i = 0; i < groups; i++) {
        int64_t group = tile * groups + i;
        lanes scale = scales_at(self, g, group) * multiplier, shift;
        if (g->shift == INTEGER) shift = -scale * widen_bytes((const uint8_t *)self->weights[4] + group * LANES);
        else if (g->shift == REAL) shift = load_stored(self->weights[4], group * LANES, FLOAT16);
        else shift = -scale * (float)(1 << (bits - 1));
        room->scales[i * PAIR + which] = scale;
        room->shifts[i * PAIR + which] = shift;
    }
}

/* a·b + c, rounded once where the processor does so at no cost. */
INLINE lanes fused(lanes a, lanes b, lanes c) {
#ifdef __AVX512F__
    return (lanes)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
    return a * b + c;
#endif
}

/* One panel through `tiles` unpacked tiles; bits and tiles are constants, of bits only whether there are eight
   matters. */
INLINE void panel_through(const grouping *g, const many_room *room, int64_t panel, lanes y[PANEL][PAIR], int bits,
                          int tiles) {
    const int32_t *codes = room->codes + panel * g->places / 4 * PANEL;
    const float *t = room->t + panel * g->blocks * PANEL, *sums = room->sums + panel * g->blocks * PANEL;
    const words *quads = room->quads;
    for (int r = 0; r < PANEL; r++)
        for (int i = 0; i < tiles; i++) y[r][i] = (lanes){0};
    for (int64_t b = 0, group = 0; b < g->blocks; group++) {
        lanes scale[PAIR], shift[PAIR];
        for (int i = 0; i < tiles; i++) {
            scale[i] = room->scales[group * PAIR + i];
            shift[i] = room->shifts[group * PAIR + i];
        }
        for (int64_t end = b + g->blocks_per_group; b < end; b++, t += PANEL, sums += PANEL) {
            int_lanes dots[PANEL][PAIR];
            for (int r = 0; r < PANEL; r++)
                for (int i = 0; i < tiles; i++) dots[r][i] = (int_lanes){0};
            for (int64_t q = 0; q < g->quartets * QUADS; q++, quads += PAIR, codes += PANEL)
                for (int r = 0; r < PANEL; r++)
                    for (int i = 0; i < tiles; i++)
                        dots[r][i] = add_quad(dots[r][i], quads[i], (const int8_t *)(codes + r), bits);
            for (int r = 0; r < PANEL; r++)
                for (int i = 0; i < tiles; i++) {
                    lanes dot = __builtin_convertvector(dots[r][i], lanes);
                    y[r][i] = fused(scale[i] * t[r], dot, y[r][i]);
                    y[r][i] = fused(shift[i], all(sums[r]), y[r][i]);
                }
        }
    }
}

static void write_panel(const linear_kernel *self, int64_t tile, lanes y[PANEL][PAIR], float *to, int rows, int tiles) {
    for (int i = 0; i < tiles; i++) {
        int64_t first = (tile + i) * LANES, count = self->outputs - first < LANES ? self->outputs - first : LANES;
        lanes bias = self->bias ? load_some(self->bias, first, count, FLOAT32) : (lanes){0};
        for (int r = 0; r < rows; r++) {
            lanes value = y[r][i] + bias;
            if (count == LANES) store_lanes(to + r * self->outputs + first, value);
            else memcpy(to + r * self->outputs + first, &value, (size_t)count * 4);
        }
    }
}

#define THROUGH(name, bits, tiles)                                                                                   \
    static void name(const linear_kernel *self, const grouping *g, const many_room *room, int64_t tile,             \
                     int64_t panel, float *y, int rows) {                                                            \
        lanes sums[PANEL][PAIR];                                                                                     \
        panel_through(g, room, panel, sums, bits, tiles);                                                            \
        write_panel(self, tile, sums, y, rows, tiles);                                                               \
    }
THROUGH(through_one, 7, 1)
THROUGH(through_pair, 7, 2)
THROUGH(through_one_of_eight, 8, 1)
THROUGH(through_pair_of_eight, 8, 2)

/* Rows [0, count) of x in int8, side by side; what a panel lacks is zeros. */
static void fill_panels(const linear_kernel *self, const grouping *g, const float *x, int64_t count,
                        const many_room *room) {
    prepared_row row = {room->row_codes, NULL, room->row_scales, room->row_whole, room->row_sums};
    for (int64_t r = 0; r < (count + PANEL - 1) / PANEL * PANEL; r++) {
        int64_t panel = r / PANEL, place = r % PANEL;
        int32_t *codes = room->codes + panel * g->places / 4 * PANEL + place;
        float *t = room->t + panel * g->blocks * PANEL + place, *sums = room->sums + panel * g->blocks * PANEL + place;
        if (r < count) {
            quantise_row(g, x + r * self->inputs, row);
        } else {
            memset(room->row_codes, 0, (size_t)g->places);
            memset(room->row_scales, 0, (size_t)g->blocks * 4);
            memset(room->row_sums, 0, (size_t)g->blocks * 4);
        }
        for (int64_t q = 0; q < g->places / 4; q++) memcpy(codes + q * PANEL, room->row_codes + 4 * q, 4);
        for (int64_t b = 0; b < g->blocks; b++) t[b * PANEL] = room->row_scales[b], sums[b * PANEL] = room->row_sums[b];
    }
}

typedef void (*unpack_function)(const linear_kernel *, const grouping *, const code_planes *, int64_t, int,
                                const many_room *);

/* All outputs for the rows of x that belong to this thread. */
static void run_many(const linear_kernel *self, const float *x, float *y, int64_t tokens, int thread, int n_threads,
                     char *scratch, unpack_function unpack, int eight) {
    grouping g = grouping_of(self);
    code_planes planes = {self->weights[0], self->weights[1], self->weights[2]};
    many_room room;
    lay_out_many(&g, scratch, &room);
    int64_t n_tiles = (self->outputs + LANES - 1) / LANES, last = tokens * (thread + 1) / n_threads;
    for (int64_t first = tokens * thread / n_threads; first < last; first += CHUNK_ROWS) {
        int64_t count = last - first < CHUNK_ROWS ? last - first : CHUNK_ROWS;
        fill_panels(self, &g, x + first * self->inputs, count, &room);
        for (int64_t tile = 0; tile < n_tiles; tile += PAIR) {
            int pair = tile + 1 < n_tiles;
            for (int i = 0; i <= pair; i++) unpack(self, &g, &planes, tile + i, i, &room);
            for (int64_t r = 0; r < count; r += PANEL) {
                float *to = y + (first + r) * self->outputs;
                int rows = count - r < PANEL ? (int)(count - r) : PANEL;
                if (eight) (pair ? through_pair_of_eight : through_one_of_eight)(self, &g, &room, tile, r / PANEL, to, rows);
                else (pair ? through_pair : through_one)(self, &g, &room, tile, r / PANEL, to, rows);
            }
        }
    }
}

#endif
