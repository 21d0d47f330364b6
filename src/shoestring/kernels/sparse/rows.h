/* y = x Wᵀ where a row of W is dense or a bitmap with its stored values: weights are loaded as they are stored
   and multiplied as if they were dense.

   Two to four rows are in flight, so that a load of x serves them all. For up to eight tokens the blocks go from
   the stream straight into the products, where expanding hides behind multiplying; for more, they are first
   expanded into scratch and then multiplied as dense ones, so that expanding is paid once. Inputs are taken in
   tiles, so that x stays in the second cache; the vectors of sums of a panel of rows wait in scratch meanwhile. The
   order of the sums is the same in every case: those of a bitmap are bit for bit those of the dense matrix. Where a
   processor has matrix tiles, products of bfloat16 for several tokens take `row_tiles.h` instead.

   weights: 0 values; 1 masks (NULL: dense, rows of whole blocks); 2 row_starts; 3 scales of the rows or NULL.
   sizes: 0 value kind; 1 products: 0 float32, 1 pairs of bfloat16 (x is rounded to it), 2 float32 of rounded x. */

#define PANEL 24                /* rows: a multiple of all that are taken together */
#define SHARE 12                /* rows: the shares of threads are multiples of it */
#define COLUMNS 8               /* most tokens that are multiplied together */
#define TILE_BYTES (128 << 10)  /* of x, for the tokens that are multiplied together */

#if defined(__AVX512BF16__) && defined(EXPANDS_NARROW)
#define HAS_BFLOAT16_PRODUCTS 1
#else
#define HAS_BFLOAT16_PRODUCTS 0
#endif

int has_bfloat16_products(void) { return HAS_BFLOAT16_PRODUCTS; }

INLINE int64_t blocks_of(const linear_kernel *self) { return (self->inputs + BLOCK - 1) / BLOCK; }
INLINE int kind_of(const linear_kernel *self) { return (int)self->sizes[0]; }
INLINE int pairs_of(const linear_kernel *self) { return HAS_BFLOAT16_PRODUCTS && self->sizes[1] == 1; }

/* Where a row is read: its masks and the next stored value. */
typedef struct { const char *values; const uint32_t *masks; } stream;

INLINE stream stream_at(const linear_kernel *self, int64_t row, int64_t first_block) {
    int size = itemsize(kind_of(self));
    const char *values = self->weights[0];
    const uint32_t *masks = self->weights[1];
    if (!masks) return (stream){values + (row * blocks_of(self) + first_block) * BLOCK * size, NULL};
    masks += row * blocks_of(self);
    int64_t before = ((const int32_t *)self->weights[2])[row];
    for (int64_t b = 0; b < first_block; b++) before += __builtin_popcount(masks[b]);
    return (stream){values + before * size, masks + first_block};
}

/* Add the products of `rows` rows with `columns` columns of x to their sums; all constants where this is expanded.
   x: (blocks, columns, BLOCK) floats, or bfloat16 where `pairs`. total: (rows, COLUMNS) vectors. */
INLINE void multiply(int rows, int columns, int dense, int kind, int pairs, stream *from, const char *x,
                     int64_t blocks, vec *total) {
    vec sum[4][COLUMNS];
    const char *next[4];
    /* The same place in the rows that come next: at the end of a row hardware cannot know where the next one is. */
    int64_t ahead = rows > 1 ? (from[rows - 1].values - from[0].values) * rows / (rows - 1) : 512;
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        next[r] = from[r].values;
#pragma GCC unroll 8
        for (int c = 0; c < columns; c++) sum[r][c] = total[r * COLUMNS + c];
    }
    for (int64_t b = 0; b < blocks; b++) {
        uint32_t mask[4];
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) mask[r] = dense ? 0 : from[r].masks[b];
        if (!dense)
            for (int r = 0; r < rows; r++) __builtin_prefetch(next[r] + ahead);
#if HAS_BFLOAT16_PRODUCTS
        if (pairs) {
            __m512i w[4];
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++)
                w[r] = dense ? _mm512_loadu_si512(next[r]) : expand_16_bits(next[r], mask[r]);
#pragma GCC unroll 8
            for (int c = 0; c < columns; c++) {
                __m512i v = _mm512_loadu_si512(x + 2 * (b * columns + c) * BLOCK);
#pragma GCC unroll 4
                for (int r = 0; r < rows; r++) sum[r][c] = _mm512_dpbf16_ps(sum[r][c], (__m512bh)w[r], (__m512bh)v);
            }
        } else
#endif
        {
            block w[4];
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++)
                w[r] = dense ? dense_block(next[r], kind) : expanded_block(next[r], mask[r], kind);
#pragma GCC unroll 8
            for (int c = 0; c < columns; c++)
#pragma GCC unroll 8
                for (int p = 0; p < PARTS; p++) {
                    vec v = vec_load((const float *)x + (b * columns + c) * BLOCK + p * LANES);
#pragma GCC unroll 4
                    for (int r = 0; r < rows; r++) sum[r][c] = vec_fma(w[r].part[p], v, sum[r][c]);
                }
        }
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) next[r] += (dense ? BLOCK : __builtin_popcount(mask[r])) * itemsize(kind);
    }
    (void)pairs;
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        from[r] = (stream){next[r], dense ? NULL : from[r].masks + blocks};
#pragma GCC unroll 8
        for (int c = 0; c < columns; c++) total[r * COLUMNS + c] = sum[r][c];
    }
}

/* Tokens are multiplied 1, 2, 4 or 8 at a time; what is missing is zeros. */
INLINE int columns_for(int64_t tokens) { return tokens >= 5 ? 8 : tokens >= 3 ? 4 : tokens == 2 ? 2 : 1; }

INLINE int64_t padded_tokens(int64_t tokens) { return tokens / 8 * 8 + (tokens % 8 ? columns_for(tokens % 8) : 0); }

/* As many rows together as their sums and blocks leave registers for. */
INLINE int rows_for(int columns, int pairs) { return columns < 8 ? 4 : pairs ? 3 : 2; }

/* The constants of `multiply`, chosen at run time. */
INLINE void multiply_some(int rows, int columns, int dense, int kind, int pairs, stream *from, const char *x,
                          int64_t blocks, vec *total) {
    if (rows > 1) switch (columns) {
        case 1: multiply(4, 1, dense, kind, pairs, from, x, blocks, total); return;
        case 2: multiply(4, 2, dense, kind, pairs, from, x, blocks, total); return;
        case 4: multiply(4, 4, dense, kind, pairs, from, x, blocks, total); return;
        default: multiply(rows_for(8, pairs), 8, dense, kind, pairs, from, x, blocks, total); return;
        }
    switch (columns) {
    case 1: multiply(1, 1, dense, kind, pairs, from, x, blocks, total); return;
    case 2: multiply(1, 2, dense, kind, pairs, from, x, blocks, total); return;
    case 4: multiply(1, 4, dense, kind, pairs, from, x, blocks, total); return;
    default: multiply(1, 8, dense, kind, pairs, from, x, blocks, total);
    }
}

#define FOR_KIND(NAME, DENSE, KIND, PAIRS)                                                                  \
    static void NAME(int rows, int columns, stream *from, const char *x, int64_t blocks, vec *total) {      \
        multiply_some(rows, columns, DENSE, KIND, PAIRS, from, x, blocks, total);                   \
    }
FOR_KIND(dense_bfloat16, 1, BFLOAT16, 0)
FOR_KIND(dense_float16, 1, FLOAT16, 0)
FOR_KIND(dense_int8, 1, INT8, 0)
FOR_KIND(bitmap_bfloat16, 0, BFLOAT16, 0)
FOR_KIND(bitmap_float16, 0, FLOAT16, 0)
FOR_KIND(bitmap_int8, 0, INT8, 0)
#if HAS_BFLOAT16_PRODUCTS
FOR_KIND(dense_pairs, 1, BFLOAT16, 1)
FOR_KIND(bitmap_pairs, 0, BFLOAT16, 1)
#endif

typedef void (*multiply_rows)(int, int, stream *, const char *, int64_t, vec *);

static multiply_rows loop_for(int dense, int kind, int pairs) {
#if HAS_BFLOAT16_PRODUCTS
    if (pairs) return dense ? dense_pairs : bitmap_pairs;
#endif
    (void)pairs;
    static const multiply_rows loops[2][3] = {{bitmap_bfloat16, bitmap_float16, bitmap_int8},
                                              {dense_bfloat16, dense_float16, dense_int8}};
    return loops[dense][kind];
}

#include "row_tiles.h"

/* Bytes of x as the loops read it. */
INLINE int64_t laid_out_bytes(const linear_kernel *self, int64_t tokens) {
    if (by_tiles(self, tokens)) return tile_inputs_bytes(self, tokens);
    int64_t bytes = padded_tokens(tokens) * blocks_of(self) * BLOCK * (pairs_of(self) ? 2 : 4);
    return (bytes + 63) / 64 * 64;
}

/* Blocks of a tile of inputs: x of the tokens that go together fills about TILE_BYTES. */
INLINE int64_t tile_blocks(const linear_kernel *self, int64_t tokens) {
    int64_t columns = tokens < COLUMNS ? columns_for(tokens) : COLUMNS;
    int64_t fitting = TILE_BYTES / (columns * BLOCK * (pairs_of(self) ? 2 : 4));
    return fitting < blocks_of(self) ? fitting : blocks_of(self);
}

INLINE int64_t groups_of(int64_t tokens) { return (tokens + COLUMNS - 1) / COLUMNS; }

INLINE int64_t sums_bytes(int64_t tokens) { return groups_of(tokens) * PANEL * COLUMNS * (int64_t)sizeof(vec); }

int64_t rows_scratch_bytes(const linear_kernel *self, int64_t tokens) {
    int64_t expanded = tokens > COLUMNS ? PANEL * tile_blocks(self, tokens) * BLOCK * itemsize(kind_of(self)) : 0;
    return laid_out_bytes(self, tokens) + sums_bytes(tokens) + expanded;
}

/* x as the loops read it: for each group of up to eight tokens (blocks, columns, BLOCK). */
static void lay_out(const linear_kernel *self, const float *x, int64_t tokens, char *laid_out) {
    int64_t blocks = blocks_of(self), width = blocks * BLOCK;
    int kind = kind_of(self), pairs = pairs_of(self);
    if (by_tiles(self, tokens)) {
        lay_out_tiles(self, x, tokens, laid_out);
        return;
    }
    memset(laid_out, 0, (size_t)laid_out_bytes(self, tokens));
    for (int64_t t = 0; t < tokens; t++, x += self->inputs) {
        int64_t group = t / COLUMNS * COLUMNS;
        int columns = columns_for(tokens - group < COLUMNS ? tokens - group : COLUMNS);
        for (int64_t b = 0; b < blocks; b++) {
            int64_t left = self->inputs - b * BLOCK, place = group * width + (b * columns + t - group) * BLOCK;
            float entries[BLOCK] = {0};
            memcpy(entries, x + b * BLOCK, (size_t)(left < BLOCK ? left : BLOCK) * sizeof(float));
            if (pairs) {
                uint16_t *to = (uint16_t *)laid_out + place;
                for (int i = 0; i < BLOCK; i++) to[i] = float_to_bfloat16(entries[i]);
                continue;
            }
            float *to = (float *)laid_out + place;
            if (self->sizes[1]) /* no instruction for pairs: round, and multiply as floats */
                for (int i = 0; i < BLOCK; i++) entries[i] = bfloat16_to_float(float_to_bfloat16(entries[i]));
            if (splits_even_odd(kind))
                for (int i = 0; i < BLOCK; i++) to[place_in_block(i, kind)] = entries[i];
            else
                memcpy(to, entries, sizeof entries);
        }
    }
}

/* Some blocks of the rows of a panel, expanded; the streams move on. `to` gets a dense panel. */
static void expand_panel(stream *from, int rows, int64_t blocks, int kind, char *to) {
    for (int r = 0; r < rows; r++)
        for (int64_t b = 0; b < blocks; b++) {
            uint32_t mask = *from[r].masks++;
            expand_to(to + (r * blocks + b) * BLOCK * itemsize(kind), from[r].values, mask, kind);
            from[r].values += __builtin_popcount(mask) * itemsize(kind);
        }
}

/* The sums of a panel of rows for `columns` tokens over one tile of inputs. */
static void multiply_panel(multiply_rows loop, stream *from, int rows, int columns, int pairs, const char *x,
                           int64_t blocks, vec *sums) {
    int together = rows_for(columns, pairs);
    for (int r = 0; r < rows;) {
        int some = rows - r >= together ? together : 1;
        loop(some, columns, from + r, x, blocks, sums + r * COLUMNS);
        r += some;
    }
}

static void write_sums(const linear_kernel *self, const vec *sums, int rows, int64_t tokens, int64_t row, float *y) {
    const float *scales = self->weights[3];
    for (int64_t t = 0; t < tokens; t++)
        for (int r = 0; r < rows; r++) {
            float sum = vec_sum(sums[(t / COLUMNS * PANEL + r) * COLUMNS + t % COLUMNS]);
            y[t * self->outputs + row + r] = scales ? sum * scales[row + r] : sum;
        }
}

/* Rows first .. last of y, summed over some blocks of inputs. */
static void multiply_range(const linear_kernel *self, const char *laid_out, float *y, int64_t tokens, int64_t first,
                           int64_t last, int64_t first_block, int64_t blocks, char *scratch) {
    if (by_tiles(self, tokens)) {
        multiply_tiles(self, laid_out, y, tokens, first, last, first_block, blocks);
        return;
    }
    int kind = kind_of(self), pairs = pairs_of(self), dense = self->weights[1] == NULL;
    int64_t width = blocks_of(self) * BLOCK, value_bytes = pairs ? 2 : 4, tile = tile_blocks(self, tokens);
    int through_scratch = !dense && tokens > COLUMNS;
    multiply_rows loop = loop_for(dense || through_scratch, kind, pairs);
    vec *sums = (vec *)scratch;
    char *expanded = scratch + sums_bytes(tokens);
    for (int64_t row = first; row < last; row += PANEL) {
        int rows = last - row < PANEL ? (int)(last - row) : PANEL;
        stream from[PANEL];
        for (int r = 0; r < rows; r++) from[r] = stream_at(self, row + r, first_block);
        memset(sums, 0, (size_t)sums_bytes(tokens));
        for (int64_t done = 0; done < blocks; done += tile) {
            int64_t some = blocks - done < tile ? blocks - done : tile;
            if (through_scratch) expand_panel(from, rows, some, kind, expanded);
            for (int64_t t = 0; t < tokens; t += COLUMNS) {
                int columns = columns_for(tokens - t < COLUMNS ? tokens - t : COLUMNS);
                const char *x = laid_out + value_bytes * (t * width + (first_block + done) * columns * BLOCK);
                stream here[PANEL];
                for (int r = 0; r < rows; r++) {
                    here[r] = from[r];
                    if (through_scratch) here[r] = (stream){expanded + r * some * BLOCK * itemsize(kind), NULL};
                }
                multiply_panel(loop, here, rows, columns, pairs, x, some, sums + t * PANEL);
                if (!through_scratch && t + COLUMNS >= tokens) memcpy(from, here, sizeof here);
            }
        }
        write_sums(self, sums, rows, tokens, row, y);
    }
}

/* Stored bytes of the rows before `row`: what the shares of the threads are balanced by. */
static int64_t bytes_before(const linear_kernel *self, int64_t row) {
    int64_t size = itemsize(kind_of(self));
    if (!self->weights[1]) return row * blocks_of(self) * BLOCK * size;
    return row * blocks_of(self) * 4 + size * ((const int32_t *)self->weights[2])[row];
}

int64_t rows_boundary(const linear_kernel *self, int64_t thread, int64_t threads) {
    if (thread >= threads) return self->outputs;
    int64_t low = 0, high = (self->outputs + SHARE - 1) / SHARE;
    double wanted = (double)bytes_before(self, self->outputs) * (double)thread / (double)threads;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if ((double)bytes_before(self, middle * SHARE) < wanted) low = middle + 1;
        else high = middle;
    }
    return low * SHARE < self->outputs ? low * SHARE : self->outputs;
}

static void add_bias(const linear_kernel *self, float *y, int64_t tokens, int64_t first, int64_t last) {
    if (self->bias)
        for (int64_t t = 0; t < tokens; t++)
            for (int64_t row = first; row < last; row++) y[t * self->outputs + row] += self->bias[row];
}

void rows_run(const linear_kernel *self, const float *x, float *y, int64_t tokens, int thread,
                     int n_threads, void *scratch) {
    int64_t first = rows_boundary(self, thread, n_threads), last = rows_boundary(self, thread + 1, n_threads);
    if (first >= last) return;
    char *rest = (char *)scratch + laid_out_bytes(self, tokens);
    lay_out(self, x, tokens, scratch);
    multiply_range(self, scratch, y, tokens, first, last, 0, blocks_of(self), rest);
    add_bias(self, y, tokens, first, last);
}

/* One part of the inputs: `part` of `parts`, for the rows of one thread; see `run_split`. */
static void rows_run_part(const linear_kernel *self, const float *x, float *y, int64_t tokens, int thread,
                          int n_threads, int64_t part, int64_t parts, void *scratch) {
    int64_t blocks = blocks_of(self), size = (blocks + parts - 1) / parts;
    int64_t from = part * size < blocks ? part * size : blocks;
    int64_t count = blocks - from < size ? blocks - from : size;
    int64_t first = rows_boundary(self, thread, n_threads), last = rows_boundary(self, thread + 1, n_threads);
    if (first >= last) return;
    char *rest = (char *)scratch + laid_out_bytes(self, tokens);
    lay_out(self, x, tokens, scratch);
    multiply_range(self, scratch, y, tokens, first, last, from, count, rest);
}
