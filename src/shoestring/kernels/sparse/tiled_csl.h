/* y = x Wᵀ with W in Tiled-CSL: the items of a tile are scattered into a zeroed buffer that stays in the first
   cache, and the dense tile is multiplied.

   The buffer holds the tile by columns, 128 floats each: a vector is 16 (or fewer) rows of one column, which a
   single value of x multiplies. The sums of the tile's 128 rows stay in scratch until its row of tiles is done.

   weights: 0 items; 1 tile_offsets. sizes: 0 value kind (bfloat16 or float16); 1 round x to bfloat16. */

#define TILE_ROWS 128
#define TILE_COLS 64
#define TOKENS_AT_ONCE 3
#define VECTORS (LANES == 16 ? 8 : 4)

INLINE int64_t tiles_across(const linear_kernel *self) { return (self->inputs + TILE_COLS - 1) / TILE_COLS; }
INLINE int64_t tiles_down(const linear_kernel *self) { return (self->outputs + TILE_ROWS - 1) / TILE_ROWS; }

int64_t tiles_scratch_bytes(const linear_kernel *self, int64_t tokens) {
    return 4 * (TILE_ROWS * TILE_COLS + tokens * (TILE_ROWS + tiles_across(self) * TILE_COLS));
}

static void scatter_tile(const uint32_t *items, int64_t count, int kind, float *tile) {
    memset(tile, 0, sizeof(float) * TILE_ROWS * TILE_COLS);
    for (int64_t i = 0; i < count; i++) {
        uint32_t item = items[i], row = item >> 6 & 127, column = (item & 63) ^ (row & 7) << 3;
        float value = kind == BFLOAT16 ? bfloat16_to_float((uint16_t)(item >> 16))
                                       : float16_to_float((uint16_t)(item >> 16));
        tile[column * TILE_ROWS + row] = value;
    }
}

INLINE void multiply_tile(int tokens, const float *tile, const float *x, int64_t stride, float *sums) {
    for (int first = 0; first < TILE_ROWS; first += VECTORS * LANES) {
        vec total[TOKENS_AT_ONCE][VECTORS];
#pragma GCC unroll 3
        for (int t = 0; t < tokens; t++)
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v++) total[t][v] = vec_load(sums + t * TILE_ROWS + first + v * LANES);
        for (int column = 0; column < TILE_COLS; column++)
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v++) {
                vec w = vec_load(tile + column * TILE_ROWS + first + v * LANES);
#pragma GCC unroll 3
                for (int t = 0; t < tokens; t++)
                    total[t][v] = vec_fma(w, vec_all(x[t * stride + column]), total[t][v]);
            }
#pragma GCC unroll 3
        for (int t = 0; t < tokens; t++)
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v++) vec_store(sums + t * TILE_ROWS + first + v * LANES, total[t][v]);
    }
}

static void multiply_tile_row(const linear_kernel *self, const float *x, float *y, int64_t tokens, int64_t down,
                              int64_t from, int64_t to, float *tile, float *sums) {
    const uint32_t *items = self->weights[0];
    const int32_t *offsets = self->weights[1];
    int64_t across = tiles_across(self), stride = across * TILE_COLS;
    memset(sums, 0, (size_t)(tokens * TILE_ROWS) * sizeof(float));
    for (int64_t t = from; t < to; t++) {
        int64_t first = offsets[down * across + t], last = offsets[down * across + t + 1];
        if (first == last) continue;
        scatter_tile(items + 4 * first, 4 * (last - first), (int)self->sizes[0], tile);
        const float *own = x + t * TILE_COLS;
        int64_t n = 0;
        for (; n + 3 <= tokens; n += 3) multiply_tile(3, tile, own + n * stride, stride, sums + n * TILE_ROWS);
        if (tokens - n == 2) multiply_tile(2, tile, own + n * stride, stride, sums + n * TILE_ROWS);
        if (tokens - n == 1) multiply_tile(1, tile, own + n * stride, stride, sums + n * TILE_ROWS);
    }
    int64_t row = down * TILE_ROWS, rows = self->outputs - row < TILE_ROWS ? self->outputs - row : TILE_ROWS;
    for (int64_t n = 0; n < tokens; n++)
        memcpy(y + n * self->outputs + row, sums + n * TILE_ROWS, (size_t)rows * sizeof(float));
}

/* The first row of tiles of a thread: shares are balanced by items. */
static int64_t tiles_boundary(const linear_kernel *self, int64_t thread, int64_t threads) {
    const int32_t *offsets = self->weights[1];
    int64_t across = tiles_across(self), down = tiles_down(self), row = 0;
    if (thread >= threads) return down;
    /* emptying and multiplying a tile costs about as much as reading 256 vectors */
    double all = (double)offsets[across * down] + 256.0 * (double)(across * down);
    while (row < down && (double)offsets[across * row] + 256.0 * (double)(across * row) <
                             all * (double)thread / (double)threads)
        row++;
    return row;
}

static void pad_inputs(const linear_kernel *self, const float *x, int64_t tokens, float *padded) {
    int64_t stride = tiles_across(self) * TILE_COLS;
    for (int64_t t = 0; t < tokens; t++, x += self->inputs, padded += stride) {
        memcpy(padded, x, (size_t)self->inputs * sizeof(float));
        memset(padded + self->inputs, 0, (size_t)(stride - self->inputs) * sizeof(float));
        if (self->sizes[1])
            for (int64_t i = 0; i < self->inputs; i++)
                padded[i] = bfloat16_to_float(float_to_bfloat16(padded[i]));
    }
}

static void tiles_run_part(const linear_kernel *self, const float *x, float *y, int64_t tokens, int thread,
                           int n_threads, int64_t part, int64_t parts, void *scratch) {
    int64_t across = tiles_across(self), size = (across + parts - 1) / parts;
    int64_t from = part * size < across ? part * size : across;
    int64_t to = from + size < across ? from + size : across;
    int64_t first = tiles_boundary(self, thread, n_threads), last = tiles_boundary(self, thread + 1, n_threads);
    if (first >= last) return;
    float *tile = scratch, *sums = tile + TILE_ROWS * TILE_COLS, *padded = sums + tokens * TILE_ROWS;
    pad_inputs(self, x, tokens, padded);
    for (int64_t down = first; down < last; down++)
        multiply_tile_row(self, padded, y, tokens, down, from, to, tile, sums);
}

void tiles_run(const linear_kernel *self, const float *x, float *y, int64_t tokens, int thread,
                      int n_threads, void *scratch) {
    tiles_run_part(self, x, y, tokens, thread, n_threads, 0, 1, scratch);
    int64_t first = TILE_ROWS * tiles_boundary(self, thread, n_threads);
    int64_t last = TILE_ROWS * tiles_boundary(self, thread + 1, n_threads);
    add_bias(self, y, tokens, first, last < self->outputs ? last : self->outputs);
}
