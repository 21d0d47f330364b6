/* Many rows of x in int8: a matrix product of whole numbers, scaled block by block.

   PANEL rows are interleaved by quads and their scales by blocks, so that all offsets are constants: a quad of
   codes meets four int8 of every row, in registers throughout.
   y = Σ_b t_b·s·(Σ q·k) + t_b·Σk·shift: the same sums as for a few rows, with the shift in float32. */

#ifndef SHOESTRING_GROUPED_PANELS_H
#define SHOESTRING_GROUPED_PANELS_H

typedef struct {
    int32_t *codes;  /* (panels, places / 4, PANEL): four int8 each */
    float *t, *sums; /* (panels, blocks, PANEL): scales of x, and t·Σk */
    char *row;       /* one row, before it takes its place in a panel */
} int8_room;

static int64_t lay_out_panels(const grouping *g, int64_t rows, char *room, int8_room *to) {
    int64_t used = 0, padded = panels_of(rows, PANEL) * PANEL;
    to->codes = cut_bytes(room, &used, padded * g->places);
    to->t = cut_bytes(room, &used, padded * g->blocks * 4);
    to->sums = cut_bytes(room, &used, padded * g->blocks * 4);
    to->row = cut_bytes(room, &used, aligned(g->places) + 3 * aligned(4 * g->blocks));
    return used;
}

static int64_t panel_bytes(const grouping *g, int64_t rows) {
    int8_room room;
    return lay_out_panels(g, rows, NULL, &room);
}

/* What a panel lacks is zeros. */
static void fill_panels(const linear_kernel *self, const grouping *g, const float *x, int64_t rows, char *prepared) {
    int8_room room;
    lay_out_panels(g, rows, prepared, &room);
    prepared_row row = lay_out(self, room.row, 1);
    for (int64_t r = 0; r < panels_of(rows, PANEL) * PANEL; r++) {
        int64_t panel = r / PANEL, place = r % PANEL;
        int32_t *codes = room.codes + panel * g->places / 4 * PANEL + place;
        float *t = room.t + panel * g->blocks * PANEL + place, *sums = room.sums + panel * g->blocks * PANEL + place;
        if (r < rows) quantise_row(g, x + r * self->inputs, row);
        else memset(room.row, 0, (size_t)row_bytes(self, 1));
        for (int64_t q = 0; q < g->places / 4; q++) memcpy(codes + q * PANEL, row.codes + 4 * q, 4);
        for (int64_t b = 0; b < g->blocks; b++) t[b * PANEL] = row.scales[b], sums[b * PANEL] = row.float_sums[b];
    }
}

/* One panel through `tiles` unpacked tiles; bits and tiles are constants, of bits only whether there are eight
   matters. */
INLINE void panel_through(const grouping *g, const unpacked_pair *pair, const int8_room *room, int64_t panel,
                          lanes y[PANEL][PAIR], int bits, int tiles) {
    const int32_t *codes = room->codes + panel * g->places / 4 * PANEL;
    const float *t = room->t + panel * g->blocks * PANEL, *sums = room->sums + panel * g->blocks * PANEL;
    const words *quads = pair->weights;
    for (int r = 0; r < PANEL; r++)
        for (int i = 0; i < tiles; i++) y[r][i] = (lanes){0};
    for (int64_t b = 0, group = 0; b < g->blocks; group++) {
        lanes scale[PAIR], shift[PAIR];
        for (int i = 0; i < tiles; i++) {
            scale[i] = pair->scales[group * PAIR + i];
            shift[i] = pair->shifts[group * PAIR + i];
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

INLINE void pass_panel(const linear_kernel *self, const grouping *g, const unpacked_pair *pair, char *prepared,
                       int64_t rows, int64_t first, int64_t tile, int tiles, float *y, int bits) {
    int8_room room;
    lanes sums[PANEL][PAIR];
    lay_out_panels(g, rows, prepared, &room);
    if (tiles == PAIR) panel_through(g, pair, &room, first / PANEL, sums, bits, PAIR);
    else panel_through(g, pair, &room, first / PANEL, sums, bits, 1);
    for (int i = 0; i < tiles; i++)
        write_rows(self, tile + i, &sums[0][i], PAIR, y, rows - first < PANEL ? rows - first : PANEL);
}

static void pass_int8(const linear_kernel *self, const grouping *g, const unpacked_pair *pair, char *prepared,
                      int64_t rows, int64_t first, int64_t tile, int tiles, float *y) {
    pass_panel(self, g, pair, prepared, rows, first, tile, tiles, y, 7);
}

static void pass_int8_of_eight(const linear_kernel *self, const grouping *g, const unpacked_pair *pair, char *prepared,
                               int64_t rows, int64_t first, int64_t tile, int tiles, float *y) {
    pass_panel(self, g, pair, prepared, rows, first, tile, tiles, y, 8);
}

static const row_path int8_panels = {.rows = PANEL,
                                     .weight_bytes = code_bytes,
                                     .prepared_bytes = panel_bytes,
                                     .prepare = fill_panels,
                                     .pass = pass_int8};
static const row_path panels_of_eight = {.rows = PANEL,
                                         .weight_bytes = code_bytes,
                                         .prepared_bytes = panel_bytes,
                                         .prepare = fill_panels,
                                         .pass = pass_int8_of_eight};

#endif
