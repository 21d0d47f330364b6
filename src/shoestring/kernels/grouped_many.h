/* The product of codes with many rows of x: a matrix product of whole numbers, scaled block by block.

   Each thread takes its own rows. A tile of 16 outputs is unpacked once for as many rows as fit the second-level
   cache, then MANY rows at a time go through it in registers: a quad of codes meets four int8 of every row.
   y = Σ_b t_b·s·(Σ q·k) + t_b·Σk·shift with shift = −s·z, −s·middle or o: the same sums as for a few rows, with the
   shift in float32 instead of whole numbers. */

#ifndef SHOESTRING_GROUPED_MANY_H
#define SHOESTRING_GROUPED_MANY_H

enum { MANY = 12, CHUNK_ROWS = 16 * MANY, LEAST_MANY = 32 };

typedef struct {
    words *panel;          /* the quads of a tile */
    lanes *scales, *shifts; /* of its groups */
    int8_t *codes;         /* (CHUNK_ROWS, places) */
    float *t, *sums;       /* (CHUNK_ROWS, blocks): scales of x, and t·Σk */
    int32_t *whole;        /* room for the sums k of one row */
} many_room;

INLINE int64_t lay_out_many(const grouping *g, char *room, many_room *to) {
    int64_t used = 0, groups = g->blocks / g->blocks_per_group;
    int64_t sizes[] = {16 * g->places, 64 * groups, 64 * groups, CHUNK_ROWS * g->places, 4 * CHUNK_ROWS * g->blocks,
                       4 * CHUNK_ROWS * g->blocks, 4 * g->blocks};
    char *parts[7];
    for (int i = 0; i < 7; i++) {
        parts[i] = room + used;
        used += aligned(sizes[i]);
    }
    *to = (many_room){(words *)parts[0], (lanes *)parts[1], (lanes *)parts[2], (int8_t *)parts[3],
                      (float *)parts[4], (float *)parts[5], (int32_t *)parts[6]};
    return used;
}

/* Codes, scales and shifts of one tile; `bits` is a constant. */
INLINE void unpack_tile(const linear_kernel *self, const grouping *g, const code_planes *planes, int64_t tile,
                        const many_room *room, int bits) {
    int64_t quartets = g->blocks * g->quartets, groups = g->blocks / g->blocks_per_group;
    for (int64_t q = 0; q < quartets; q++) {
        prefetch_quartet(planes, tile * quartets + q, bits);
        unpack_quartet(planes, tile * quartets + q, bits, room->panel + q * QUADS);
    }
    lanes multiplier = g->byte_scales ? load_lanes((const float *)self->weights[5] + tile * LANES) : all(1.0f);
    for (int64_t i = 0; i < groups; i++) {
        int64_t group = tile * groups + i;
        lanes scale = scales_at(self, g, group) * multiplier, shift;
        if (g->shift == INTEGER) shift = -scale * widen_bytes((const uint8_t *)self->weights[4] + group * LANES);
        else if (g->shift == REAL) shift = load_stored(self->weights[4], group * LANES, FLOAT16);
        else shift = -scale * (float)(1 << (bits - 1));
        room->scales[i] = scale, room->shifts[i] = shift;
    }
}

/* `rows` rows, from `row` on, through the unpacked tile; bits and rows are constants, of bits only whether there
   are eight matters. */
INLINE void rows_through_tile(const grouping *g, const many_room *room, int64_t row, lanes *y, int bits, int rows) {
    const int8_t *codes = room->codes + row * g->places;
    const float *t = room->t + row * g->blocks, *sums = room->sums + row * g->blocks;
    const words *panel = room->panel;
    for (int r = 0; r < rows; r++) y[r] = (lanes){0};
    for (int64_t b = 0, group = 0; b < g->blocks; group++) {
        lanes scale = room->scales[group], shift = room->shifts[group];
        for (int64_t end = b + g->blocks_per_group; b < end; b++) {
            int_lanes dots[MANY];
            for (int r = 0; r < rows; r++) dots[r] = (int_lanes){0};
            for (int64_t q = 0; q < g->quartets * QUADS; q++, panel++, codes += 4) {
                words quad = *panel;
                for (int r = 0; r < rows; r++) dots[r] = add_quad(dots[r], quad, codes + r * g->places, bits);
            }
            for (int r = 0; r < rows; r++) {
                y[r] += scale * t[r * g->blocks + b] * __builtin_convertvector(dots[r], lanes);
                y[r] += shift * sums[r * g->blocks + b];
            }
        }
    }
}

INLINE void write_rows(const linear_kernel *self, int64_t tile, const lanes *y, float *to, int rows) {
    int64_t first = tile * LANES, count = self->outputs - first < LANES ? self->outputs - first : LANES;
    lanes bias = self->bias ? load_some(self->bias, first, count, FLOAT32) : (lanes){0};
    for (int r = 0; r < rows; r++) {
        lanes value = y[r] + bias;
        memcpy(to + r * self->outputs + first, &value, (size_t)count * 4);
    }
}

#define THROUGH(rows)                                                                                               \
    static void through_##rows(const linear_kernel *self, const grouping *g, const many_room *room, int64_t tile,   \
                               int64_t row, float *y, int eight) {                                                  \
        lanes sums[MANY];                                                                                           \
        if (eight) rows_through_tile(g, room, row, sums, 8, rows);                                                  \
        else rows_through_tile(g, room, row, sums, 7, rows);                                                        \
        write_rows(self, tile, sums, y + row * self->outputs, rows);                                                \
    }
THROUGH(12) THROUGH(4) THROUGH(1)

typedef void (*unpack_function)(const linear_kernel *, const grouping *, const code_planes *, int64_t,
                                const many_room *);

/* All outputs for the rows of x that belong to this thread. */
static void run_many(const linear_kernel *self, const float *x, float *y, int64_t tokens, int thread, int n_threads,
                     char *scratch, unpack_function unpack, int eight) {
    grouping g = grouping_of(self);
    code_planes planes = {self->weights[0], self->weights[1], self->weights[2]};
    many_room room;
    lay_out_many(&g, scratch, &room);
    int64_t tiles = (self->outputs + LANES - 1) / LANES, last = tokens * (thread + 1) / n_threads;
    for (int64_t first = tokens * thread / n_threads; first < last; first += CHUNK_ROWS) {
        int64_t count = last - first < CHUNK_ROWS ? last - first : CHUNK_ROWS;
        for (int64_t r = 0; r < count; r++) {
            prepared_row row = {room.codes + r * g.places, NULL, room.t + r * g.blocks, room.whole,
                                room.sums + r * g.blocks};
            quantise_row(&g, x + (first + r) * self->inputs, row);
        }
        float *out = y + first * self->outputs;
        for (int64_t tile = 0; tile < tiles; tile++) {
            unpack(self, &g, &planes, tile, &room);
            int64_t r = 0;
            for (; r + MANY <= count; r += MANY) through_12(self, &g, &room, tile, r, out, eight);
            for (; r + 4 <= count; r += 4) through_4(self, &g, &room, tile, r, out, eight);
            for (; r < count; r++) through_1(self, &g, &room, tile, r, out, eight);
        }
    }
}

#endif
