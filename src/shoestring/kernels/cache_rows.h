/* How a cache stores the keys or the values of one layer: numbers, or codes of few bits with a grid per row.

   A row belongs to one token and one head. Codes are packed from the lowest bit of a byte on. They unpack 16
   bytes at a time: first the lowest code of each byte, then the next. Vector i of a row is what comes out so,
   which is not channels 16i…16i + 15; all that meets rows of codes is held in that order (`channel_of`), and
   what leaves is put back. A sum over channels does not mind.
   Source: the order of fragments in TurboMind's attention, InternLM/lmdeploy; here for vectors of 16 floats. */

#ifndef SHOESTRING_CACHE_ROWS_H
#define SHOESTRING_CACHE_ROWS_H

#include "lanes.h"

enum { CODES8 = 3, CODES4 = 4, CODES2 = 5 /* more kinds of `storage` */ };
enum { LARGEST_RUN = 4 * LANES /* channels that one run of 16 bytes holds at most */ };

typedef uint8_t byte_lanes __attribute__((vector_size(16)));

typedef struct {
    char *rows;      /* (kv_heads, capacity) rows */
    uint16_t *grids; /* (kv_heads, capacity, 2) float16, scale and lowest value; for codes only */
    int64_t kind;
} cache_rows;

INLINE int code_bits(int kind) { return kind == CODES8 ? 8 : kind == CODES4 ? 4 : kind == CODES2 ? 2 : 0; }

/* Vectors of 16 channels that one load yields. */
INLINE int vectors_of_run(int kind) { return kind < CODES8 ? 1 : 8 / code_bits(kind); }

INLINE int64_t row_bytes(int kind, int64_t n) { return kind < CODES8 ? n * storage_bytes(kind) : n * code_bits(kind) / 8; }

/* The channel in lane `lane` of vector i. */
INLINE int64_t channel_of(int64_t i, int64_t lane, int kind) {
    int64_t parts = vectors_of_run(kind), run = i / parts;
    return (run * LANES + lane) * parts + i % parts;
}

INLINE int_lanes widen_bytes(byte_lanes bytes) {
    int_lanes wide;
#if defined(__AVX512F__)
    __m128i packed;
    memcpy(&packed, &bytes, sizeof packed);
    __m512i all = _mm512_cvtepu8_epi32(packed);
    memcpy(&wide, &all, sizeof wide);
#elif defined(__AVX2__)
    __m128i packed;
    memcpy(&packed, &bytes, sizeof packed);
    __m256i halves[2] = {_mm256_cvtepu8_epi32(packed), _mm256_cvtepu8_epi32(_mm_srli_si128(packed, 8))};
    memcpy(&wide, halves, sizeof wide);
#else
    wide = __builtin_convertvector(bytes, int_lanes);
#endif
    return wide;
}

/* The vectors of one run of a row: its numbers, or its codes as floats; `part` and `kind` are constants wherever
   this is inlined. */
INLINE lanes load_vector(const char *row, int64_t run, int part, int kind) {
    if (kind < CODES8) return load_stored(row, run * LANES, kind);
    byte_lanes bytes;
    int parts = vectors_of_run(kind), bits = code_bits(kind);
    memcpy(&bytes, row + run * LANES, sizeof bytes);
    int_lanes codes = widen_bytes(bytes);
    /* The highest code of a byte has nothing above it. */
    if (part) codes >>= part * bits;
    if (part < parts - 1) codes &= (1 << bits) - 1;
    return __builtin_convertvector(codes, lanes);
}

/* The last n % 16 channels of a row of numbers, zeros after. */
INLINE lanes load_rest(const char *row, int64_t n, int kind) {
    return load_some(row, n - n % LANES, n % LANES, kind);
}

typedef struct {
    lanes scale, lowest;
} grid_lanes;

/* The grids of 16 rows. */
INLINE grid_lanes load_grids(const uint16_t *grids) {
    bit_lanes pairs;
    memcpy(&pairs, grids, sizeof pairs);
    return (grid_lanes){widen_halves(__builtin_convertvector(pairs & 0xFFFF, half_lanes)),
                        widen_halves(__builtin_convertvector(pairs >> 16, half_lanes))};
}

/* Of `count` rows; nothing beyond is read, zeros after. */
INLINE grid_lanes load_some_grids(const uint16_t *grids, int64_t count) {
    uint16_t room[2 * LANES] = {0};
    memcpy(room, grids, (size_t)count * 4);
    return load_grids(room);
}

/* Channels of x, in their order, into that of the vectors of rows of this kind. */
INLINE void to_row_order(float *x, int64_t n, int kind) {
    int parts = vectors_of_run(kind);
    if (parts == 1) return;
    float run[LARGEST_RUN];
    for (int64_t begin = 0; begin < n; begin += parts * LANES) {
        memcpy(run, x + begin, (size_t)parts * LANES * 4);
        for (int part = 0; part < parts; part++)
            for (int lane = 0; lane < LANES; lane++) x[begin + part * LANES + lane] = run[lane * parts + part];
    }
}

/* And back. */
INLINE void from_row_order(float *x, int64_t n, int kind) {
    int parts = vectors_of_run(kind);
    if (parts == 1) return;
    float run[LARGEST_RUN];
    for (int64_t begin = 0; begin < n; begin += parts * LANES) {
        memcpy(run, x + begin, (size_t)parts * LANES * 4);
        for (int part = 0; part < parts; part++)
            for (int lane = 0; lane < LANES; lane++) x[begin + lane * parts + part] = run[part * LANES + lane];
    }
}

/* The largest float16 that is not above a value: the bits of float16 count on from zero, on either side. */
INLINE uint16_t half_below(float value) {
    uint16_t half;
    store_number(&half, 0, value, FLOAT16);
    if (half_to_float(half) <= value) return half;
    return half & 0x8000 ? half + 1 : half - 1;
}

/* The least float16 that is not below a value which is not negative. */
INLINE uint16_t half_above(float value) {
    uint16_t half;
    store_number(&half, 0, value, FLOAT16);
    return half_to_float(half) < value ? half + 1 : half;
}

/* A row of numbers into codes on the finest grid that holds its extremes; 0 where float16 cannot hold the grid.
   The lowest value is rounded down first, the scale then up: so no value is off by more than half a scale. */
INLINE int store_codes(const float *x, int64_t n, int kind, char *row, uint16_t *grid) {
    int bits = code_bits(kind), parts = vectors_of_run(kind);
    lanes least = load_lanes(x), most = least, sum = least;
    for (int64_t i = LANES; i < n; i += LANES) {
        lanes here = load_lanes(x + i);
        most = larger(most, here);
        least = -larger(-least, -here);
        sum += here;
    }
    float lowest = -largest_lane(-least);
    if (sum_lanes(0.0f * sum) != 0.0f || fabsf(lowest) > 65504.0f) return 0; /* the sum finds NaN and infinities */
    grid[1] = half_below(lowest);
    float from = half_to_float(grid[1]);
    grid[0] = half_above((largest_lane(most) - from) / (float)((1 << bits) - 1));
    float scale = half_to_float(grid[0]);
    if (isinf(scale)) return 0;
    const float rounder = 12582912.0f;
    for (int64_t run = 0; run < n; run += parts * LANES, row += LANES) {
        int_lanes packed = {0};
        float ordered[LARGEST_RUN];
        memcpy(ordered, x + run, (size_t)parts * LANES * 4);
        to_row_order(ordered, parts * LANES, kind);
        for (int part = 0; part < parts && scale > 0.0f; part++) {
            lanes steps = (load_lanes(ordered + part * LANES) - from) / scale;
            steps = (steps + rounder) - rounder;
            steps = choose(steps > all((1 << bits) - 1), all((1 << bits) - 1), steps);
            packed |= __builtin_convertvector(steps, int_lanes) << (part * bits);
        }
        byte_lanes bytes = __builtin_convertvector(packed, byte_lanes);
        memcpy(row, &bytes, sizeof bytes);
    }
    return 1;
}

INLINE int store_row(const float *x, int64_t n, const cache_rows *to, int64_t index) {
    int kind = (int)to->kind;
    char *row = to->rows + index * row_bytes(kind, n);
    if (kind == CODES8) return store_codes(x, n, CODES8, row, to->grids + 2 * index);
    if (kind == CODES4) return store_codes(x, n, CODES4, row, to->grids + 2 * index);
    if (kind == CODES2) return store_codes(x, n, CODES2, row, to->grids + 2 * index);
    if (kind == FLOAT32) store_numbers(row, x, n, FLOAT32);
    else if (kind == BFLOAT16) store_numbers(row, x, n, BFLOAT16);
    else store_numbers(row, x, n, FLOAT16);
    return 1;
}

#endif
