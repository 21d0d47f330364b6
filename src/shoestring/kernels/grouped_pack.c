/* Stored rows of codes, dense bit streams, to the planes of `grouped_codes.h`; and single rows back to floats,
   rounded as the stored form is decoded: product, then sum (built without contraction). */

#include <stdlib.h>

#include "grouped_codes.h"

typedef struct {
    int64_t rows, cols, stride; /* stored: bytes from one row to the next */
    int64_t block, quartets, blocks;
    int bits;
} code_matrix;

/* Code i of a row fills bits i·bits … of a little-endian stream. */
static void unpack_row(const uint8_t *stored, const code_matrix *m, uint8_t *codes) {
    uint32_t held = 0;
    int count = 0;
    for (int64_t c = 0; c < m->cols; c++) {
        if (count < m->bits) held |= (uint32_t)*stored++ << count, count += 8;
        codes[c] = (uint8_t)(held & ((1u << m->bits) - 1));
        held >>= m->bits, count -= m->bits;
    }
}

/* The bits of a code that a plane of `width` bits holds. */
static uint8_t part_of(uint8_t code, int bits, int width) {
    int below = width == 8 ? 0 : bits & (width - 1);
    return (uint8_t)((code >> below) & ((1 << width) - 1));
}

/* codes: [quad][output][input], 256 of them. */
static void fold(const uint8_t *codes, int bits, int width, uint8_t *to) {
    memset(to, 0, (size_t)(width * PLANE_BYTES));
    for (int j = 0; j < QUADS; j++)
        for (int b = 0; b < 64; b++) {
            uint8_t part = part_of(codes[64 * j + b], bits, width);
            if (width == 8) to[64 * j + b] = part;
            else if (width == 4) to[64 * (j / 2) + b] |= (uint8_t)(part << (4 * (j % 2)));
            else if (width == 2) to[b] |= (uint8_t)(part << (2 * j));
            else to[b % 32] |= (uint8_t)(part << (j + 4 * (b / 32)));
        }
}

static void pack_tile(const uint8_t *stored, const code_matrix *m, int64_t tile, uint8_t *const planes[3],
                      uint8_t *row_codes) {
    int64_t first = tile * LANES, here = m->rows - first < LANES ? m->rows - first : LANES;
    for (int64_t o = 0; o < here; o++) unpack_row(stored + (first + o) * m->stride, m, row_codes + o * m->cols);
    const int widths[3] = {m->bits == 8 ? 8 : m->bits & 4, m->bits == 8 ? 0 : m->bits & 2, m->bits == 8 ? 0 : m->bits & 1};
    for (int64_t b = 0; b < m->blocks; b++)
        for (int64_t q = 0; q < m->quartets; q++) {
            uint8_t codes[QUADS * 64] = {0};
            for (int64_t o = 0; o < here; o++)
                for (int64_t i = 0; i < QUARTET && q * QUARTET + i < m->block; i++)
                    codes[64 * (i / 4) + 4 * o + i % 4] = row_codes[o * m->cols + b * m->block + q * QUARTET + i];
            int64_t quartet = (tile * m->blocks + b) * m->quartets + q;
            for (int p = 0; p < 3; p++)
                if (widths[p]) fold(codes, m->bits, widths[p], planes[p] + quartet * widths[p] * PLANE_BYTES);
        }
}

/* planes: of 8 or 4 bits, of 2 and of 1; those that the width has not are NULL. Returns 1 for want of memory. */
int pack_codes(const uint8_t *stored, int64_t stride, int bits, int64_t rows, int64_t cols, int64_t block,
               int64_t quartets, uint8_t *wide, uint8_t *pair, uint8_t *single, int threads) {
    const code_matrix m = {rows, cols, stride, block, quartets, cols / block, bits};
    uint8_t *const planes[3] = {wide, pair, single};
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        uint8_t *row_codes = malloc((size_t)(LANES * cols));
        if (!row_codes) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for
        for (int64_t tile = 0; tile < (rows + LANES - 1) / LANES; tile++)
            if (row_codes) pack_tile(stored, &m, tile, planes, row_codes);
        free(row_codes);
    }
    return failed;
}

typedef struct {
    const uint8_t *planes[3];
    const void *scales, *shifts;
    const float *multipliers;
    int64_t block, quartets, blocks_per_group, blocks, shift, scale; /* as in grouped_linear.c */
} grouped_matrix;

/* The code at `byte` of quad j of a quartet. */
static int code_at(const grouped_matrix *m, int bits, int64_t quartet, int j, int byte) {
    if (bits == 8) return m->planes[0][quartet * 8 * PLANE_BYTES + 64 * j + byte];
    int code = 0;
    if (bits & 4) code |= (m->planes[0][quartet * 4 * PLANE_BYTES + 64 * (j / 2) + byte] >> 4 * (j % 2) & 15) << (bits & 3);
    if (bits & 2) code |= (m->planes[1][quartet * 2 * PLANE_BYTES + byte] >> 2 * j & 3) << (bits & 1);
    if (bits & 1) code |= m->planes[2][quartet * PLANE_BYTES + byte % 32] >> (j + 4 * (byte / 32)) & 1;
    return code;
}

/* The codes of the rows `ids` as `pack_codes` was given them, `stride` bytes from one row of out to the next. */
void unpack_codes(const grouped_matrix *m, int64_t bits, const int64_t *ids, int64_t count, int64_t stride,
                  uint8_t *out, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t n = 0; n < count; n++) {
        int64_t tile = ids[n] / LANES, lane = ids[n] % LANES;
        uint8_t *to = out + n * stride;
        uint32_t held = 0;
        int filled = 0;
        for (int64_t b = 0; b < m->blocks; b++)
            for (int64_t i = 0; i < m->block; i++) {
                int64_t quartet = (tile * m->blocks + b) * m->quartets + i / QUARTET;
                held |= (uint32_t)code_at(m, (int)bits, quartet, (int)(i % QUARTET / 4), (int)(4 * lane + i % 4)) << filled;
                for (filled += (int)bits; filled >= 8; filled -= 8, held >>= 8) *to++ = (uint8_t)held;
            }
        if (filled) *to = (uint8_t)held;
    }
}

/* A scale or an offset that is no byte. */
static float stored_float(const grouped_matrix *m, const void *values, int64_t at) {
    return m->scale == FLOATS ? ((const float *)values)[at] : half_to_float(((const uint16_t *)values)[at]);
}

/* out: (count, inputs), the rows `ids` of the matrix. */
void grouped_rows(const grouped_matrix *m, int64_t bits, const int64_t *ids, int64_t count, float *out) {
    int64_t groups = m->blocks / m->blocks_per_group;
    for (int64_t n = 0; n < count; n++) {
        int64_t tile = ids[n] / LANES, lane = ids[n] % LANES;
        for (int64_t b = 0; b < m->blocks; b++) {
            int64_t at = (tile * groups + b / m->blocks_per_group) * LANES + lane;
            float scale = m->scale == BYTES ? ((const uint8_t *)m->scales)[at] + 1.0f : stored_float(m, m->scales, at);
            if (m->scale == BYTES) scale *= m->multipliers[tile * LANES + lane];
            float zero = m->shift == SYMMETRIC ? (float)(1 << (bits - 1)) : 0.0f, offset = 0.0f;
            if (m->shift == INTEGER) zero = ((const uint8_t *)m->shifts)[at];
            if (m->shift == REAL) offset = stored_float(m, m->shifts, at);
            for (int64_t i = 0; i < m->block; i++) {
                int64_t quartet = (tile * m->blocks + b) * m->quartets + i / QUARTET;
                int code = code_at(m, (int)bits, quartet, (int)(i % QUARTET / 4), (int)(4 * lane + i % 4));
                *out++ = scale * ((float)code - zero) + offset;
            }
        }
    }
}
