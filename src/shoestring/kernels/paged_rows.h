/* Keys and values in blocks: where a row is, and how it is stored, plainly or in codes with a grid of its own.

   A row is one token of one head. Codes of 4 bits: channel 2i in the low half of byte i, 2i + 1 in the high one.
   A grid is (scale, lowest) in float16: the lowest rounded down, the scale then up, so that no channel is off by
   more than half a scale. Source: TurboMind's cache, InternLM/lmdeploy; see numbers/token_codes.py. */

#ifndef SHOESTRING_PAGED_ROWS_H
#define SHOESTRING_PAGED_ROWS_H

#include "lanes.h"

enum { PAGED_CODES8 = 3, PAGED_CODES4 = 4 /* more kinds of `storage` */ };

/* The same fields in the same order as in decode_batch.py. */
typedef struct {
    char *rows;      /* (blocks, kv_heads, slots) rows */
    uint16_t *grids; /* (blocks, kv_heads, slots, 2), NULL where there are no codes */
    int64_t kind;
} paged_part;

typedef struct {
    paged_part keys, values;
} paged_layer;

typedef struct {
    const paged_layer *layers;
    int64_t slots; /* of a block */
} paged_memory;

typedef uint8_t code_lanes __attribute__((vector_size(16)));

INLINE int is_coded(int kind) { return kind >= PAGED_CODES8; }

INLINE int64_t paged_row_bytes(int kind, int64_t n) {
    return kind == PAGED_CODES4 ? n / 2 : kind == PAGED_CODES8 ? n : n * storage_bytes(kind);
}

INLINE int64_t paged_row(const paged_memory *memory, int64_t kv_heads, int64_t block, int64_t head, int64_t slot) {
    return (block * kv_heads + head) * memory->slots + slot;
}

/* Vectors of 16 channels that one load yields. */
INLINE int paged_vectors(int kind) { return kind == PAGED_CODES4 ? 2 : 1; }

/* Channels i … of a row, or their codes as floats; `kind` is a constant wherever this is inlined. */
INLINE void load_vectors(const char *row, int64_t i, int kind, lanes to[2]) {
    if (!is_coded(kind)) {
        to[0] = load_stored(row, i, kind);
        return;
    }
    code_lanes bytes;
    memcpy(&bytes, row + (kind == PAGED_CODES4 ? i / 2 : i), sizeof bytes);
    if (kind == PAGED_CODES8) {
        to[0] = __builtin_convertvector(bytes, lanes);
        return;
    }
    int_lanes wide = __builtin_convertvector(bytes, int_lanes);
    lanes even = __builtin_convertvector(wide & 15, lanes), odd = __builtin_convertvector(wide >> 4, lanes);
    to[0] = SHUFFLE(even, odd, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    to[1] = SHUFFLE(even, odd, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

INLINE void read_row(const char *row, int64_t n, int kind, float scale, float low, float *to) {
    int64_t step = LANES * paged_vectors(kind), whole = n - n % step;
    for (int64_t i = 0; i < whole; i += step) {
        lanes values[2];
        load_vectors(row, i, kind, values);
        for (int v = 0; v < paged_vectors(kind); v++)
            store_lanes(to + i + v * LANES, is_coded(kind) ? scale * values[v] + low : values[v]);
    }
    if (whole < n && !is_coded(kind)) {
        lanes rest = load_some(row, whole, n - whole, kind);
        memcpy(to + whole, &rest, (size_t)(n - whole) * 4);
    }
}

INLINE uint16_t nearest_half(float value) {
    uint16_t half;
    store_number(&half, 0, value, FLOAT16);
    return half;
}

/* Numbers into a row. 0 where there are no codes for them: NaN, infinities, or a grid beyond float16. */
INLINE int write_row(const float *x, int64_t n, const paged_part *to, int64_t row) {
    int kind = (int)to->kind;
    char *place = to->rows + row * paged_row_bytes(kind, n);
    if (!is_coded(kind)) {
        for (int64_t i = 0; i < n; i++) store_number(place, i, x[i], kind);
        return 1;
    }
    float least = x[0], most = x[0], zeros = 0.0f;
    for (int64_t i = 0; i < n; i++) {
        least = x[i] < least ? x[i] : least;
        most = x[i] > most ? x[i] : most;
        zeros += 0.0f * x[i];
    }
    if (zeros != 0.0f || fabsf(least) > 65504.0f) return 0;
    uint16_t low = nearest_half(least);
    if (half_to_float(low) > least) low = low & 0x8000 ? low + 1 : low == 0 ? 0x8001 : low - 1;
    float from = half_to_float(low), top = kind == PAGED_CODES4 ? 15.0f : 255.0f, wanted = (most - from) / top;
    uint16_t scale = nearest_half(wanted);
    if (half_to_float(scale) < wanted) scale++;
    float step = half_to_float(scale);
    if (isinf(step)) return 0;
    to->grids[2 * row] = scale, to->grids[2 * row + 1] = low;
    for (int64_t i = 0; i < n; i++) {
        float code = step > 0.0f ? rintf((x[i] - from) / step) : 0.0f;
        uint8_t bits = (uint8_t)(code > top ? top : code);
        if (kind == PAGED_CODES8) place[i] = (char)bits;
        else if (i % 2) place[i / 2] = (char)((uint8_t)place[i / 2] | bits << 4);
        else place[i / 2] = (char)bits;
    }
    return 1;
}

#endif
