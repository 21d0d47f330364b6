/* The products of rows.h on a processor with matrix tiles (AMX), for bfloat16 on both sides: 16 rows of W, expanded,
   are one operand as they lie, x is the other, and a pair of inputs of 16 tokens is a vector of it.

   A multiplication costs the same for 1 to 16 tokens and less than expanding what it takes; for more tokens what
   is expanded is used again. Sums stay in tiles from the first input to the last. */

enum {
    TILE_TOKENS = MATRIX_ROWS,
    TILE_BLOCK_BYTES = MATRIX_ROWS * MATRIX_ROW_BYTES, /* of W or of x: BLOCK inputs of 16 rows or tokens */
    STEP = 8,         /* blocks that are expanded before they are multiplied: what was just stored is slow to load */
    MOST_GROUPS = 4,  /* of 16 tokens, which have their sums in tiles at the same time */
    LEAST_TOKENS = 3, /* fewer are multiplied as fast as they are expanded without tiles */
};

#if HAS_MATRIX_TILES && HAS_BFLOAT16_PRODUCTS

INLINE int by_tiles(const linear_kernel *self, int64_t tokens) {
    return pairs_of(self) && tokens >= LEAST_TOKENS && has_tiles();
}

INLINE int64_t tile_groups(int64_t tokens) { return (tokens + TILE_TOKENS - 1) / TILE_TOKENS; }

static int64_t tile_inputs_bytes(const linear_kernel *self, int64_t tokens) {
    return tile_groups(tokens) * blocks_of(self) * TILE_BLOCK_BYTES;
}

/* x as (groups, blocks, pairs, TILE_TOKENS) pairs of bfloat16. */
static void lay_out_tiles(const linear_kernel *self, const float *x, int64_t tokens, char *laid_out) {
    int64_t blocks = blocks_of(self);
    memset(laid_out, 0, (size_t)tile_inputs_bytes(self, tokens));
    for (int64_t t = 0; t < tokens; t++, x += self->inputs) {
        uint32_t *to = (uint32_t *)laid_out + t / TILE_TOKENS * blocks * TILE_BLOCK_BYTES / 4 + t % TILE_TOKENS;
        for (int64_t b = 0; b < blocks; b++, to += TILE_BLOCK_BYTES / 4) {
            int64_t left = self->inputs - b * BLOCK;
            float entries[BLOCK] = {0};
            uint32_t pairs[BLOCK / 2];
            memcpy(entries, x + b * BLOCK, (size_t)(left < BLOCK ? left : BLOCK) * sizeof(float));
            __m512bh halves = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(entries + LANES), _mm512_loadu_ps(entries));
            memcpy(pairs, &halves, sizeof pairs);
            for (int i = 0; i < BLOCK / 2; i++) to[i * TILE_TOKENS] = pairs[i];
        }
    }
}

/* Some blocks of up to 16 rows, expanded side by side: (blocks, MATRIX_ROWS, BLOCK). The streams move on. What lies
   `ahead` bytes behind the values that are read, and as far behind their masks as a panel of rows, is asked for. */
INLINE void expand_step(stream *from, int rows, int64_t blocks, int dense, int64_t ahead, int64_t masks_ahead, char *to) {
    for (int r = 0; r < rows; r++) {
        const char *next = from[r].values;
        for (int64_t b = 0; b < blocks; b++) {
            uint32_t mask = dense ? 0 : from[r].masks[b];
            __m512i w = dense ? _mm512_loadu_si512(next) : expand_16_bits(next, mask);
            _mm512_store_si512(to + b * TILE_BLOCK_BYTES + r * MATRIX_ROW_BYTES, w);
            next += 2 * (dense ? BLOCK : __builtin_popcount(mask));
        }
        for (const char *line = from[r].values; line < next; line += 64) __builtin_prefetch(line + ahead, 0, 2);
        if (!dense) __builtin_prefetch(from[r].masks + masks_ahead, 0, 2);
        from[r] = (stream){next, dense ? NULL : from[r].masks + blocks};
    }
}

/* x: that of the first group, `stride` bytes from one group to the next. */
INLINE void multiply_step(const char *weights, const char *x, int64_t blocks, int64_t stride, int groups) {
    settle(weights);
    for (int64_t b = 0; b < blocks; b++, weights += TILE_BLOCK_BYTES, x += TILE_BLOCK_BYTES) {
        _tile_loadd(4, weights, MATRIX_ROW_BYTES);
        _tile_loadd(6, x, MATRIX_ROW_BYTES);
        _tile_dpbf16ps(0, 4, 6);
        if (groups < 2) continue;
        _tile_loadd(7, x + stride, MATRIX_ROW_BYTES);
        _tile_dpbf16ps(1, 4, 7);
        if (groups < 3) continue;
        _tile_loadd(6, x + 2 * stride, MATRIX_ROW_BYTES);
        _tile_dpbf16ps(2, 4, 6);
        if (groups < 4) continue;
        _tile_loadd(7, x + 3 * stride, MATRIX_ROW_BYTES);
        _tile_dpbf16ps(3, 4, 7);
    }
}

/* Rows first .. last of y, as `multiply_range` gives them. */
static void multiply_tiles(const linear_kernel *self, const char *laid_out, float *y, int64_t tokens, int64_t first,
                           int64_t last, int64_t first_block, int64_t blocks) {
    _Alignas(64) char weights[STEP * TILE_BLOCK_BYTES] = {0};
    _Alignas(64) float sums[MOST_GROUPS][MATRIX_ROWS][TILE_TOKENS];
    int dense = self->weights[1] == NULL;
    int64_t stride = blocks_of(self) * TILE_BLOCK_BYTES, most = MOST_GROUPS * TILE_TOKENS;
    shape_tiles(MATRIX_ROW_BYTES);
    for (int64_t row = first; row < last; row += MATRIX_ROWS) {
        int rows = last - row < MATRIX_ROWS ? (int)(last - row) : MATRIX_ROWS;
        stream start[MATRIX_ROWS], from[MATRIX_ROWS];
        for (int r = 0; r < rows; r++) start[r] = stream_at(self, row + r, first_block);
        int64_t ahead = start[rows - 1].values - start[0].values; /* where the rows lie that come next */
        for (int64_t t = 0; t < tokens; t += most) {
            int64_t here = tokens - t < most ? tokens - t : most;
            const char *x = laid_out + t / TILE_TOKENS * stride + first_block * TILE_BLOCK_BYTES;
            memcpy(from, start, sizeof from);
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            for (int64_t done = 0; done < blocks; done += STEP, x += STEP * TILE_BLOCK_BYTES) {
                int64_t some = blocks - done < STEP ? blocks - done : STEP;
                if (dense) expand_step(from, rows, some, 1, ahead, 0, weights);
                else expand_step(from, rows, some, 0, ahead, MATRIX_ROWS * blocks_of(self), weights);
                multiply_step(weights, x, some, stride, (int)tile_groups(here));
            }
            _tile_stored(0, sums[0], MATRIX_ROW_BYTES);
            _tile_stored(1, sums[1], MATRIX_ROW_BYTES);
            _tile_stored(2, sums[2], MATRIX_ROW_BYTES);
            _tile_stored(3, sums[3], MATRIX_ROW_BYTES);
            for (int64_t i = 0; i < here; i++)
                for (int r = 0; r < rows; r++)
                    y[(t + i) * self->outputs + row + r] = sums[i / TILE_TOKENS][r][i % TILE_TOKENS];
        }
    }
    release_tiles();
}

#else

INLINE int by_tiles(const linear_kernel *self, int64_t tokens) { return (void)self, (void)tokens, 0; }
static int64_t tile_inputs_bytes(const linear_kernel *self, int64_t tokens) { return (void)self, (void)tokens, 0; }
static void lay_out_tiles(const linear_kernel *self, const float *x, int64_t tokens, char *laid_out) {
    (void)self, (void)x, (void)tokens, (void)laid_out;
}
static void multiply_tiles(const linear_kernel *self, const char *laid_out, float *y, int64_t tokens, int64_t first,
                           int64_t last, int64_t first_block, int64_t blocks) {
    (void)self, (void)laid_out, (void)y, (void)tokens, (void)first, (void)last, (void)first_block, (void)blocks;
}

#endif
