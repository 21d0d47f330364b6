/* A linear layer whose weights are codes with a scale per group of inputs: w = s·(q − z) + o.

   weights: 0, 1, 2: the planes of `grouped_codes.h`; 3: scales, (tiles, groups, 16), float16 or float32 or
   unsigned bytes that mean (code + 1) · multiplier; 4: zero points as bytes or offsets, as float32 beside such
   scales and else as float16, in the same order, where there are any; 5: multipliers (tiles, 16) float32, where scales are bytes. Rows beyond `outputs` are zeros.
   sizes: 0: inputs of a block, for which x is scaled together; 1: quartets that a block takes; 2: blocks of a
   group; 3: blocks of a row; 4: what there is beside the scale; 5: how scales are stored.

   Few rows of x meet a tile of 16 outputs in registers; for many see `grouped_many.h`.
   With x in int8 the sums inside a block are whole numbers and exact; x ≈ t·k with k in −127…127 and t a float
   per block, so y = Σ s·t·(Σ q·k − z·Σ k) + Σ o·t·Σ k. With x in float32 every code is a float that is exact. */

#define _GNU_SOURCE

#include "grouped_codes.h"
#include "linear_kernel.h"

enum { ROWS = 4 };

typedef struct {
    const int8_t *codes;     /* blocks of whole quartets, zeros where a block ends */
    const float *values;     /* the same places, where x stays float32 */
    const float *scales;     /* of each block */
    const int32_t *sums;     /* Σ k of each block */
    const float *float_sums; /* Σ x of each block, of t·k or of the float32 values */
} prepared_row;

typedef struct {
    int64_t block, quartets, blocks_per_group, blocks, places;
    int shift, scale; /* enums of grouped_codes.h */
} grouping;

INLINE grouping grouping_of(const linear_kernel *self) {
    const int64_t *s = self->sizes;
    return (grouping){s[0], s[1], s[2], s[3], s[3] * s[1] * QUARTET, (int)s[4], (int)s[5]};
}

INLINE int64_t aligned(int64_t n) { return (n + 63) / 64 * 64; }

static int64_t row_bytes(const linear_kernel *self, int item) {
    grouping g = grouping_of(self);
    return aligned(item * g.places) + 3 * aligned(4 * g.blocks);
}

int64_t grouped_int8_scratch(const linear_kernel *self, int64_t tokens) { return tokens * row_bytes(self, 1); }
int64_t grouped_float_scratch(const linear_kernel *self, int64_t tokens) { return tokens * row_bytes(self, 4); }

static prepared_row lay_out(const linear_kernel *self, char *room, int item) {
    grouping g = grouping_of(self);
    char *after = room + aligned(item * g.places);
    int64_t step = aligned(4 * g.blocks);
    return (prepared_row){(int8_t *)room, (float *)room, (float *)after, (int32_t *)(after + step),
                          (float *)(after + 2 * step)};
}

/* The largest |x| as bits: these compare as numbers do, and anything not finite comes out on top. */
INLINE uint32_t largest_bits(const float *x, int64_t n) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t here;
        memcpy(&here, x + i, 4);
        here &= 0x7FFFFFFF;
        largest = here > largest ? here : largest;
    }
    return largest;
}

/* k = x / t to the nearest whole number, ties to even, of the exact product with 1 / t. */
INLINE int32_t round_block(const float *x, int64_t n, float inverse, int8_t *codes) {
    const float rounder = 12582912.0f;
    int32_t sum = 0;
    for (int64_t i = 0; i < n; i++) {
        int32_t code = (int32_t)(fmaf(x[i], inverse, rounder) - rounder);
        codes[i] = (int8_t)code;
        sum += code;
    }
    return sum;
}

static void quantise_row(const grouping *g, const float *x, prepared_row row) {
    for (int64_t b = 0; b < g->blocks; b++, x += g->block) {
        int64_t place = b * g->quartets * QUARTET, width = g->quartets * QUARTET;
        int8_t *codes = (int8_t *)row.codes + place;
        uint32_t bits = largest_bits(x, g->block);
        float largest;
        memcpy(&largest, &bits, 4);
        int finite = bits < 0x7F800000;
        float inverse = finite && largest > 1e-30f ? 127.0f / largest : 0.0f;
        /* What is not finite makes everything that it meets NaN; what is that small counts as zero. */
        float scale = finite ? (inverse > 0 ? largest / 127.0f : 0.0f) : NAN;
        int32_t sum = 0;
        if (inverse > 0) sum = g->block == 32 ? round_block(x, 32, inverse, codes) : round_block(x, g->block, inverse, codes);
        else memset(codes, 0, (size_t)g->block);
        memset(codes + g->block, 0, (size_t)(width - g->block));
        ((float *)row.scales)[b] = scale;
        ((int32_t *)row.sums)[b] = sum;
        ((float *)row.float_sums)[b] = scale * (float)sum;
    }
}

static void copy_row(const grouping *g, const float *x, prepared_row row) {
    for (int64_t b = 0; b < g->blocks; b++, x += g->block) {
        int64_t width = g->quartets * QUARTET;
        float *values = (float *)row.values + b * width, sum = 0.0f;
        memset(values, 0, (size_t)width * 4);
        for (int64_t i = 0; i < g->block; i++) {
            values[i] = x[i];
            sum += x[i];
        }
        ((float *)row.float_sums)[b] = sum;
    }
}

/* sums[output] += Σ over a quad of code · x, x being the same four int8 for all outputs. */
INLINE int_lanes add_quad(int_lanes sums, words quad, const int8_t *x, int bits) {
    int32_t four;
    memcpy(&four, x, 4);
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
    (void)bits;
    return (int_lanes)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)quad, _mm512_set1_epi32(four));
#elif defined(__AVX2__)
    __m256i halves[2], totals[2], same = _mm256_set1_epi32(four), ones = _mm256_set1_epi16(1);
    memcpy(halves, &quad, sizeof quad);
    memcpy(totals, &sums, sizeof sums);
    for (int h = 0; h < 2; h++) {
        /* Pairs of products fit 16 bits as long as codes have 7: the eighth is a product of its own. */
        __m256i seven = bits == 8 ? _mm256_and_si256(halves[h], _mm256_set1_epi8(0x7F)) : halves[h];
        totals[h] = _mm256_add_epi32(totals[h], _mm256_madd_epi16(_mm256_maddubs_epi16(seven, same), ones));
        if (bits == 8) {
            __m256i top = _mm256_and_si256(_mm256_srli_epi16(halves[h], 7), _mm256_set1_epi8(1));
            __m256i product = _mm256_madd_epi16(_mm256_maddubs_epi16(top, same), ones);
            totals[h] = _mm256_add_epi32(totals[h], _mm256_slli_epi32(product, 7));
        }
    }
    memcpy(&sums, totals, sizeof sums);
    return sums;
#else
    (void)bits, (void)four;
    bytes codes = (bytes)quad;
    for (int o = 0; o < LANES; o++)
        for (int i = 0; i < 4; i++) sums[o] += codes[4 * o + i] * x[i];
    return sums;
#endif
}

/* Code i of every output in a quad, less `middle`, as floats. */
INLINE lanes code_floats(words quad, int i, int bits, int middle) {
#if defined(__AVX512F__)
    if (bits <= 4) {
        lanes table;
        for (int c = 0; c < LANES; c++) table[c] = (float)(c - middle);
        return (lanes)_mm512_permutexvar_ps(_mm512_srli_epi32((__m512i)quad, 8 * i), (__m512)table);
    }
#endif
    bit_lanes codes = ((bit_lanes)quad >> (8 * i)) & 0xFF;
    return __builtin_convertvector((int_lanes)codes - middle, lanes);
}

INLINE lanes widen_bytes(const uint8_t *from) {
    typedef uint8_t few __attribute__((vector_size(16)));
    few codes;
    memcpy(&codes, from, sizeof codes);
    return __builtin_convertvector(__builtin_convertvector(codes, int_lanes), lanes);
}

INLINE lanes scales_at(const linear_kernel *self, const grouping *g, int64_t group) {
    if (g->scale == BYTES) return widen_bytes((const uint8_t *)self->weights[3] + group * LANES) + 1.0f;
    return load_stored(self->weights[3], group * LANES, g->scale == FLOATS ? FLOAT32 : FLOAT16);
}

INLINE lanes offsets_at(const linear_kernel *self, const grouping *g, int64_t group) {
    return load_stored(self->weights[4], group * LANES, g->scale == FLOATS ? FLOAT32 : FLOAT16);
}

INLINE void write_tile(const linear_kernel *self, const grouping *g, int64_t tile, lanes y, lanes shifted, float *to) {
    if (g->scale == BYTES) y *= load_lanes((const float *)self->weights[5] + tile * LANES);
    y += shifted;
    int64_t first = tile * LANES, count = self->outputs - first < LANES ? self->outputs - first : LANES;
    if (self->bias) y += load_some(self->bias, first, count, FLOAT32);
    if (count == LANES) store_lanes(to + first, y);
    else memcpy(to + first, &y, (size_t)count * 4);
}

/* Code i of every output in a quad, less the middle of the codes, as floats. */
INLINE lanes centred(words quad, int i, int bits) { return code_floats(quad, i, bits, 1 << (bits - 1)); }

/* One tile for `rows` rows of x in int8; bits, rows and, as far as it is not 0, `quartets` are constants. */
INLINE void tile_int8(const linear_kernel *self, const grouping *g, const code_planes *planes, int64_t tile,
                      const prepared_row *x, float *y, int bits, int rows, int quartets) {
    int64_t n_quartets = quartets ? quartets : g->quartets, quartet = tile * g->blocks * n_quartets;
    int64_t groups = g->blocks / g->blocks_per_group, group = tile * groups;
    lanes sums[ROWS] = {0}, shifted[ROWS] = {0};
    for (int64_t b = 0; b < g->blocks; group++) {
        lanes scale = scales_at(self, g, group);
        for (int64_t end = b + g->blocks_per_group; b < end; b++) {
            int_lanes dots[ROWS];
            if (g->shift == INTEGER) {
                int_lanes zeros =
                    __builtin_convertvector(widen_bytes((const uint8_t *)self->weights[4] + group * LANES), int_lanes);
                for (int r = 0; r < rows; r++) dots[r] = -zeros * x[r].sums[b];
            } else {
                int middle = g->shift == SYMMETRIC ? 1 << (bits - 1) : 0;
                for (int r = 0; r < rows; r++) dots[r] = -middle * x[r].sums[b] - (int_lanes){0};
            }
            for (int64_t q = 0; q < n_quartets; q++, quartet++) {
                words quads[QUADS];
                prefetch_quartet(planes, quartet, bits);
                unpack_quartet(planes, quartet, bits, quads);
                for (int r = 0; r < rows; r++) {
                    const int8_t *codes = x[r].codes + (b * n_quartets + q) * QUARTET;
                    for (int j = 0; j < QUADS; j++) dots[r] = add_quad(dots[r], quads[j], codes + 4 * j, bits);
                }
            }
            for (int r = 0; r < rows; r++) sums[r] += scale * x[r].scales[b] * __builtin_convertvector(dots[r], lanes);
            if (g->shift == REAL) {
                lanes offset = offsets_at(self, g, group);
                for (int r = 0; r < rows; r++) shifted[r] += offset * x[r].float_sums[b];
            }
        }
    }
    for (int r = 0; r < rows; r++) write_tile(self, g, tile, sums[r], shifted[r], y + r * self->outputs);
}

INLINE void tile_float(const linear_kernel *self, const grouping *g, const code_planes *planes, int64_t tile,
                       const prepared_row *x, float *y, int bits, int rows, int quartets) {
    int64_t n_quartets = quartets ? quartets : g->quartets, quartet = tile * g->blocks * n_quartets;
    int64_t groups = g->blocks / g->blocks_per_group, group = tile * groups;
    const float middle = (float)(1 << (bits - 1));
    lanes sums[ROWS] = {0}, shifted[ROWS] = {0};
    for (int64_t b = 0; b < g->blocks; group++) {
        lanes scale = scales_at(self, g, group);
        for (int64_t end = b + g->blocks_per_group; b < end; b++) {
            lanes even[ROWS] = {0}, odd[ROWS] = {0};
            for (int64_t q = 0; q < n_quartets; q++, quartet++) {
                words quads[QUADS];
                prefetch_quartet(planes, quartet, bits);
                unpack_quartet(planes, quartet, bits, quads);
                for (int j = 0; j < QUADS; j++)
                    for (int i = 0; i < 4; i += 2) {
                        lanes first = centred(quads[j], i, bits), second = centred(quads[j], i + 1, bits);
                        for (int r = 0; r < rows; r++) {
                            const float *values = x[r].values + (b * n_quartets + q) * QUARTET + 4 * j + i;
                            even[r] += first * values[0];
                            odd[r] += second * values[1];
                        }
                    }
            }
            for (int r = 0; r < rows; r++) {
                lanes dot = even[r] + odd[r];
                float sum = x[r].float_sums[b];
                if (g->shift == INTEGER)
                    dot -= (widen_bytes((const uint8_t *)self->weights[4] + group * LANES) - middle) * sum;
                if (g->shift == REAL) {
                    dot += middle * sum;
                    shifted[r] += offsets_at(self, g, group) * sum;
                }
                sums[r] += scale * dot;
            }
        }
    }
    for (int r = 0; r < rows; r++) write_tile(self, g, tile, sums[r], shifted[r], y + r * self->outputs);
}

typedef void (*tile_function)(const linear_kernel *, const grouping *, const code_planes *, int64_t,
                              const prepared_row *, float *);

enum { MOST_TOKENS = 64 };

/* This thread's tiles for all rows: first as many as ROWS together, then one by one. */
INLINE void run(const linear_kernel *self, const float *x, float *y, int64_t tokens, int thread, int n_threads,
                char *scratch, int is_float, tile_function several, tile_function single) {
    grouping g = grouping_of(self);
    code_planes planes = {self->weights[0], self->weights[1], self->weights[2]};
    int64_t tiles = (self->outputs + LANES - 1) / LANES;
    for (int64_t done = 0; done < tokens; done += MOST_TOKENS) {
        int64_t here = tokens - done < MOST_TOKENS ? tokens - done : MOST_TOKENS;
        prepared_row rows[MOST_TOKENS];
        for (int64_t r = 0; r < here; r++) {
            rows[r] = lay_out(self, scratch + r * row_bytes(self, is_float ? 4 : 1), is_float ? 4 : 1);
            (is_float ? copy_row : quantise_row)(&g, x + (done + r) * self->inputs, rows[r]);
        }
        for (int64_t tile = tiles * thread / n_threads; tile < tiles * (thread + 1) / n_threads; tile++) {
            int64_t r = 0;
            float *out = y + done * self->outputs;
            for (; r + ROWS <= here; r += ROWS) several(self, &g, &planes, tile, rows + r, out + r * self->outputs);
            for (; r < here; r++) single(self, &g, &planes, tile, rows + r, out + r * self->outputs);
        }
    }
}

#include "grouped_many.h"

/* Whether many rows of x that may be rounded are rounded to bfloat16, on this processor. */
int grouped_has_tiles(void) { return has_tiles(); }

#define TILE(kind, bits, rows)                                                                                       \
    static void tile_##kind##_##bits##_##rows(const linear_kernel *self, const grouping *g, const code_planes *p,    \
                                              int64_t tile, const prepared_row *x, float *y) {                       \
        if (g->quartets == 2) tile_##kind(self, g, p, tile, x, y, bits, rows, 2);                                    \
        else tile_##kind(self, g, p, tile, x, y, bits, rows, 0);                                                     \
    }
#define KERNEL(kind, is_float, bits)                                                                                 \
    TILE(kind, bits, 4)                                                                                              \
    TILE(kind, bits, 1)                                                                                              \
    void grouped_##kind##_##bits(const linear_kernel *self, const float *x, float *y, int64_t tokens, int thread,    \
                                 int n_threads, void *scratch) {                                                     \
        run(self, x, y, tokens, thread, n_threads, scratch, is_float, tile_##kind##_##bits##_4,                      \
            tile_##kind##_##bits##_1);                                                                               \
    }                                                                                                                \
    MANY_ROWS_##kind(bits)
#define WIDTH(bits)                                                                                                  \
    KERNEL(int8, 0, bits)                                                                                            \
    KERNEL(float, 1, bits)
WIDTH(1) WIDTH(2) WIDTH(3) WIDTH(4) WIDTH(5) WIDTH(6) WIDTH(7) WIDTH(8)
