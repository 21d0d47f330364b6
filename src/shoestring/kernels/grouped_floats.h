/* Many rows of x in float32: the weights of two tiles become floats, which PANEL rows then meet in registers. */

#ifndef SHOESTRING_GROUPED_FLOATS_H
#define SHOESTRING_GROUPED_FLOATS_H

/* Weights as floats, one vector of 16 outputs per input; bits is a constant. */
INLINE void unpack_floats(const linear_kernel *self, const grouping *g, const code_planes *planes, int64_t tile,
                          int which, const unpacked_pair *to, int bits) {
    lanes *weights = (lanes *)to->weights + which;
    int64_t quartet = tile * g->blocks * g->quartets, groups = g->blocks / g->blocks_per_group;
    (void)self;
    for (int64_t group = 0; group < groups; group++) {
        lanes scale = to->scales[group * PAIR + which], shift = to->shifts[group * PAIR + which];
        for (int64_t q = 0; q < g->blocks_per_group * g->quartets; q++, quartet++) {
            words quads[QUADS];
            prefetch_quartet(planes, quartet, bits);
            unpack_quartet(planes, quartet, bits, quads);
            for (int j = 0; j < QUADS; j++)
                for (int i = 0; i < 4; i++, weights += PAIR) *weights = fused(scale, centred(quads[j], i, bits), shift);
        }
    }
}

static int64_t float_weight_bytes(const grouping *g) { return (int64_t)sizeof(lanes) * PAIR * g->places; }

static int64_t float_panel_bytes(const grouping *g, int64_t rows) {
    return panels_of(rows, PANEL) * PANEL * g->places * 4;
}

/* (panels, places, PANEL); zeros where a block ends, and for rows that are not there. */
static void interleave_rows(const linear_kernel *self, const grouping *g, const float *x, int64_t rows,
                            char *prepared) {
    float *to = (float *)prepared;
    int64_t width = g->quartets * QUARTET;
    memset(to, 0, (size_t)float_panel_bytes(g, rows));
    for (int64_t r = 0; r < rows; r++) {
        float *places = to + r / PANEL * PANEL * g->places + r % PANEL;
        const float *row = x + r * self->inputs;
        for (int64_t b = 0; b < g->blocks; b++)
            for (int64_t i = 0; i < g->block; i++) places[(b * width + i) * PANEL] = *row++;
    }
}

INLINE void floats_through(const grouping *g, const lanes *weights, const float *x, lanes y[PANEL][PAIR], int tiles) {
    for (int r = 0; r < PANEL; r++)
        for (int i = 0; i < tiles; i++) y[r][i] = (lanes){0};
    for (int64_t c = 0; c < g->places; c++, weights += PAIR, x += PANEL)
        for (int r = 0; r < PANEL; r++)
            for (int i = 0; i < tiles; i++) y[r][i] = fused(weights[i], all(x[r]), y[r][i]);
}

static void pass_floats(const linear_kernel *self, const grouping *g, const unpacked_pair *pair, char *prepared,
                        int64_t rows, int64_t first, int64_t tile, int tiles, float *y) {
    lanes sums[PANEL][PAIR];
    const float *x = (const float *)prepared + first * g->places;
    if (tiles == PAIR) floats_through(g, pair->weights, x, sums, PAIR);
    else floats_through(g, pair->weights, x, sums, 1);
    for (int i = 0; i < tiles; i++)
        write_rows(self, tile + i, &sums[0][i], PAIR, y, rows - first < PANEL ? rows - first : PANEL);
}

static const row_path float_panels = {.rows = PANEL,
                                      .centred = 1,
                                      .weight_bytes = float_weight_bytes,
                                      .prepared_bytes = float_panel_bytes,
                                      .prepare = interleave_rows,
                                      .pass = pass_floats};

#endif
