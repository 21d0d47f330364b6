/* y = x Wᵀ where a row of W is dense or a bitmap with its stored values: weights are loaded as they are stored
   and multiplied as if they were dense.

   Four rows are in flight, so that a load of x serves four of them. For a few columns of products (tokens) the
   blocks go from the stream straight into the products; for more, four rows are first expanded into scratch and
   then multiplied by the loop for dense rows, so that expanding is paid once. Both add up in the same order: the
   sums of a bitmap are bit for bit those of the dense matrix.

   weights: 0 values; 1 masks (NULL: dense, rows of whole blocks); 2 row_starts; 3 scales of the rows or NULL.
   sizes: 0 value kind; 1 products: 0 float32, 1 pairs of bfloat16 (x is rounded to it), 2 float32 of rounded x. */

#define ROWS 4
#define COLUMNS 4

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

/* The products of `rows` rows with `columns` columns of x, all constants where this is expanded.
   x: (columns, stride) floats, or bfloat16 where `pairs`. */
INLINE void multiply(int rows, int columns, int dense, int kind, int pairs, stream *from, const void *x,
                     int64_t stride, int64_t blocks, float sums[ROWS][COLUMNS]) {
    vec total[ROWS][COLUMNS];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int c = 0; c < columns; c++) total[r][c] = vec_zero();
    const char *next[ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) next[r] = from[r].values;
    for (int64_t b = 0; b < blocks; b++) {
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            uint32_t mask = dense ? 0 : from[r].masks[b];
#if HAS_BFLOAT16_PRODUCTS
            if (pairs) {
                __m512i w = dense ? _mm512_loadu_si512(next[r]) : expand_16_bits(next[r], mask);
#pragma GCC unroll 4
                for (int c = 0; c < columns; c++) {
                    __m512i v = _mm512_loadu_si512((const uint16_t *)x + c * stride + b * BLOCK);
                    total[r][c] = _mm512_dpbf16_ps(total[r][c], (__m512bh)w, (__m512bh)v);
                }
            } else
#endif
            {
                block w = dense ? dense_block(next[r], kind) : expanded_block(next[r], mask, kind);
#pragma GCC unroll 4
                for (int c = 0; c < columns; c++)
#pragma GCC unroll 8
                    for (int p = 0; p < PARTS; p++) {
                        const float *v = (const float *)x + c * stride + b * BLOCK + p * LANES;
                        total[r][c] = vec_fma(w.part[p], vec_load(v), total[r][c]);
                    }
            }
            next[r] += (dense ? BLOCK : __builtin_popcount(mask)) * itemsize(kind);
        }
    }
    (void)pairs;
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        from[r].values = next[r];
#pragma GCC unroll 4
        for (int c = 0; c < columns; c++) sums[r][c] = vec_sum(total[r][c]);
    }
}

/* The constants of `multiply`, chosen at run time. */
INLINE void multiply_columns(int rows, int columns, int dense, int kind, int pairs, stream *from, const void *x,
                             int64_t stride, int64_t blocks, float sums[ROWS][COLUMNS]) {
    switch (columns) {
    case 1: multiply(rows, 1, dense, kind, pairs, from, x, stride, blocks, sums); break;
    case 2: multiply(rows, 2, dense, kind, pairs, from, x, stride, blocks, sums); break;
    case 3: multiply(rows, 3, dense, kind, pairs, from, x, stride, blocks, sums); break;
    default: multiply(rows, 4, dense, kind, pairs, from, x, stride, blocks, sums);
    }
}

#define FOR_KIND(NAME, DENSE, KIND, PAIRS)                                                                   \
    static void NAME(int rows, int columns, stream *from, const void *x, int64_t stride, int64_t blocks,     \
                     float sums[ROWS][COLUMNS]) {                                                            \
        if (rows == ROWS) multiply_columns(ROWS, columns, DENSE, KIND, PAIRS, from, x, stride, blocks, sums); \
        else multiply_columns(1, columns, DENSE, KIND, PAIRS, from, x, stride, blocks, sums);                \
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

typedef void (*multiply_rows)(int, int, stream *, const void *, int64_t, int64_t, float[ROWS][COLUMNS]);

static multiply_rows loop_for(int dense, int kind, int pairs) {
#if HAS_BFLOAT16_PRODUCTS
    if (pairs) return dense ? dense_pairs : bitmap_pairs;
#endif
    (void)pairs;
    static const multiply_rows loops[2][3] = {{bitmap_bfloat16, bitmap_float16, bitmap_int8},
                                              {dense_bfloat16, dense_float16, dense_int8}};
    return loops[dense][kind];
}

static void write_sums(const linear_kernel *self, float sums[ROWS][COLUMNS], int rows, int columns, int64_t row,
                       int64_t column, float *y) {
    const float *scales = self->weights[3];
    for (int c = 0; c < columns; c++)
        for (int r = 0; r < rows; r++) {
            float sum = sums[r][c];
            if (scales) sum *= scales[row + r];
            y[(column + c) * self->outputs + row + r] = sum;
        }
}

/* Bytes of x as the loops read it. */
INLINE int64_t laid_out_bytes(const linear_kernel *self, int64_t tokens) {
    int64_t bytes = tokens * blocks_of(self) * BLOCK * (pairs_of(self) ? 2 : 4);
    return (bytes + 63) / 64 * 64;
}

int64_t rows_scratch_bytes(const linear_kernel *self, int64_t tokens) {
    int64_t expanded = ROWS * blocks_of(self) * BLOCK * 2;
    return laid_out_bytes(self, tokens) + expanded;
}

static void lay_out(const linear_kernel *self, const float *x, int64_t tokens, void *laid_out) {
    int64_t blocks = blocks_of(self), width = blocks * BLOCK;
    int kind = kind_of(self), pairs = pairs_of(self);
    for (int64_t t = 0; t < tokens; t++, x += self->inputs)
        for (int64_t b = 0; b < blocks; b++) {
            int64_t left = self->inputs - b * BLOCK;
            float entries[BLOCK] = {0};
            memcpy(entries, x + b * BLOCK, (size_t)(left < BLOCK ? left : BLOCK) * sizeof(float));
            if (pairs) {
                uint16_t *to = (uint16_t *)laid_out + t * width + b * BLOCK;
                for (int i = 0; i < BLOCK; i++) to[i] = float_to_bfloat16(entries[i]);
            } else {
                float *to = (float *)laid_out + t * width + b * BLOCK;
                if (self->sizes[1]) /* no instruction for pairs: round, and multiply as floats */
                    for (int i = 0; i < BLOCK; i++) entries[i] = bfloat16_to_float(float_to_bfloat16(entries[i]));
                if (splits_even_odd(kind))
                    for (int i = 0; i < BLOCK; i++) to[place_in_block(i, kind)] = entries[i];
                else
                    memcpy(to, entries, sizeof entries);
            }
        }
}

/* Rows first .. last of y, summed over some blocks of inputs. */
static void multiply_range(const linear_kernel *self, const void *laid_out, float *y, int64_t tokens,
                           int64_t first, int64_t last, int64_t first_block, int64_t blocks, void *expanded) {
    int kind = kind_of(self), pairs = pairs_of(self), dense = self->weights[1] == NULL;
    int64_t width = blocks_of(self) * BLOCK, size = itemsize(kind);
    const char *x = (const char *)laid_out + first_block * BLOCK * (pairs ? 2 : 4);
    int64_t token_bytes = width * (pairs ? 2 : 4);
    int through_scratch = !dense && tokens > COLUMNS;
    multiply_rows loop = loop_for(dense || through_scratch, kind, pairs);
    for (int64_t row = first; row < last;) {
        int rows = last - row >= ROWS ? ROWS : 1;
        stream from[ROWS];
        for (int r = 0; r < rows; r++) from[r] = stream_at(self, row + r, first_block);
        if (through_scratch)
            for (int r = 0; r < rows; r++) {
                char *to = (char *)expanded + r * blocks * BLOCK * size;
                const char *next = from[r].values;
                for (int64_t b = 0; b < blocks; b++) {
                    uint32_t mask = from[r].masks[b];
                    expand_to(to + b * BLOCK * size, next, mask, kind);
                    next += __builtin_popcount(mask) * size;
                }
                from[r] = (stream){to, NULL};
            }
        for (int64_t t = 0; t < tokens; t += COLUMNS) {
            int columns = tokens - t < COLUMNS ? (int)(tokens - t) : COLUMNS;
            float sums[ROWS][COLUMNS];
            stream here[ROWS];
            memcpy(here, from, sizeof here);
            loop(rows, columns, here, x + t * token_bytes, width, blocks, sums);
            write_sums(self, sums, rows, columns, row, t, y);
        }
        row += rows;
    }
}

/* Stored bytes of the rows before `row`: what the shares of the threads are balanced by. */
static int64_t bytes_before(const linear_kernel *self, int64_t row) {
    int64_t size = itemsize(kind_of(self));
    if (!self->weights[1]) return row * blocks_of(self) * BLOCK * size;
    return row * blocks_of(self) * 4 + size * ((const int32_t *)self->weights[2])[row];
}

static int64_t rows_boundary(const linear_kernel *self, int64_t thread, int64_t threads) {
    if (thread >= threads) return self->outputs;
    int64_t low = 0, high = (self->outputs + ROWS - 1) / ROWS;
    double wanted = (double)bytes_before(self, self->outputs) * (double)thread / (double)threads;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if ((double)bytes_before(self, middle * ROWS) < wanted) low = middle + 1;
        else high = middle;
    }
    return low * ROWS < self->outputs ? low * ROWS : self->outputs;
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
    char *expanded = (char *)scratch + laid_out_bytes(self, tokens);
    lay_out(self, x, tokens, scratch);
    multiply_range(self, scratch, y, tokens, first, last, 0, blocks_of(self), expanded);
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
    char *expanded = (char *)scratch + laid_out_bytes(self, tokens);
    lay_out(self, x, tokens, scratch);
    multiply_range(self, scratch, y, tokens, first, last, from, count, expanded);
}
