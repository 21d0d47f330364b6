/* Some tokens of a cache into codes of few bits: keys on a grid for each channel, values on one for each token.

   x: (heads, tokens, head_dim), rows of a head `row` floats apart; `index` names the tokens. Codes of a channel or
   token are packed from the lowest bit of a byte on. Nothing is fused, so that codes are those of plain torch. */

#include <omp.h>

#include "cache_rows.h"

typedef struct {
    const float *x;
    const int64_t *index;
    int64_t heads, head_dim, head, row, count; /* head, row: from one to the next, in floats; count: tokens */
    int64_t bits;
} tier_tokens;

typedef struct {
    float lowest, scale; /* as they are stored */
    int fits;
} code_grid;

static const float *token_of(const tier_tokens *tokens, int64_t head, int64_t i) {
    return tokens->x + head * tokens->head + tokens->index[i] * tokens->row;
}

INLINE lanes load_width(const float *from, int64_t width) {
    return width == LANES ? load_lanes(from) : load_some(from, 0, width, FLOAT32);
}

static int64_t packed_bytes(int64_t count, int64_t bits) { return (count * bits + 7) / 8; }

/* The lowest value is rounded down first, the scale then up: no value is off by more than half a scale. */
static code_grid make_grid(float least, float most, int64_t bits, uint16_t *stored) {
    stored[1] = half_below(least);
    float lowest = half_to_float(stored[1]);
    stored[0] = half_above((most - lowest) / (float)((1 << bits) - 1));
    float scale = half_to_float(stored[0]);
    return (code_grid){lowest, scale == 0.0f ? 1.0f : scale, fabsf(least) <= 65504.0f && !isinf(scale)};
}

INLINE int_lanes codes_of(lanes x, lanes lowest, lanes scale, int64_t bits) {
    const float rounder = 12582912.0f;
    lanes steps = (((x - lowest) / scale) + rounder) - rounder, highest = all((float)((1 << bits) - 1));
    return __builtin_convertvector(choose(steps > highest, highest, steps), int_lanes);
}

INLINE int is_finite(lanes sum) { return sum_lanes(0.0f * sum) == 0.0f; }

/* 16 channels of a head, or as many as are left: a grid for each over the tokens. */
static int encode_channels(const tier_tokens *tokens, int64_t head, int64_t first, uint8_t *codes, uint16_t *grids) {
    int64_t left = tokens->head_dim - first, width = left < LANES ? left : LANES, bits = tokens->bits;
    int64_t channel = head * tokens->head_dim + first, bytes = packed_bytes(tokens->count, bits), per_byte = 8 / bits;
    lanes least = all(INFINITY), most = -least, sum = {0}, lowest = {0}, scale = {0};
    for (int64_t i = 0; i < tokens->count; i++) {
        lanes x = load_width(token_of(tokens, head, i) + first, width);
        most = larger(most, x), least = -larger(-least, -x), sum += 0.0f * x;
    }
    int fits = is_finite(sum);
    for (int64_t lane = 0; lane < LANES && fits; lane++) {
        uint16_t stored[2];
        code_grid grid = make_grid(least[lane], most[lane], bits, stored);
        lowest[lane] = grid.lowest, scale[lane] = grid.scale;
        if (lane < width) memcpy(grids + 2 * (channel + lane), stored, sizeof stored), fits &= grid.fits;
    }
    for (int64_t byte = 0; byte < bytes && fits; byte++) {
        int_lanes packed = {0};
        for (int64_t part = 0; part < per_byte && byte * per_byte + part < tokens->count; part++) {
            const float *from = token_of(tokens, head, byte * per_byte + part) + first;
            packed |= codes_of(load_width(from, width), lowest, scale, bits) << (int32_t)(part * bits);
        }
        for (int64_t lane = 0; lane < width; lane++) codes[(channel + lane) * bytes + byte] = (uint8_t)packed[lane];
    }
    return fits;
}

static void pack_codes(const uint8_t *codes, int64_t bytes, int64_t bits, uint8_t *to) {
    for (int64_t i = 0; i < bytes; i++) {
        if (bits == 8) to[i] = codes[i];
        else if (bits == 4) to[i] = (uint8_t)(codes[2 * i] | codes[2 * i + 1] << 4);
        else to[i] = (uint8_t)(codes[4 * i] | codes[4 * i + 1] << 2 | codes[4 * i + 2] << 4 | codes[4 * i + 3] << 6);
    }
}

/* A token over all its channels, each divided by c. room: 5 bytes for each channel and 64 more. */
static int encode_token(const tier_tokens *tokens, int64_t i, const float *c, char *room, uint8_t *codes,
                        uint16_t *grid) {
    int64_t n = tokens->heads * tokens->head_dim, padded = (n + LANES - 1) / LANES * LANES;
    float *x = (float *)room;
    uint8_t *wide = (uint8_t *)(x + padded);
    lanes least = all(INFINITY), most = -least, sum = {0};
    for (int64_t head = 0; head < tokens->heads; head++)
        memcpy(x + head * tokens->head_dim, token_of(tokens, head, i), (size_t)tokens->head_dim * 4);
    /* What fills up the last vector is no new extreme. */
    for (int64_t k = n; k < padded; k++) x[k] = x[0] / c[0];
    for (int64_t k = 0; k < padded; k += LANES) {
        lanes by = load_width(c + k, n - k < LANES ? n - k : LANES);
        lanes y = load_lanes(x + k) / choose(by == (lanes){0}, all(1.0f), by);
        most = larger(most, y), least = -larger(-least, -y), sum += 0.0f * y;
        store_lanes(x + k, y);
    }
    if (!is_finite(sum)) return 0;
    code_grid found = make_grid(-largest_lane(-least), largest_lane(most), tokens->bits, grid);
    for (int64_t k = 0; k < padded; k += LANES) {
        int_lanes here = codes_of(load_lanes(x + k), all(found.lowest), all(found.scale), tokens->bits);
        byte_lanes narrow = __builtin_convertvector(here, byte_lanes);
        memcpy(wide + k, &narrow, sizeof narrow);
    }
    memset(wide + n, 0, (size_t)(padded - n));
    pack_codes(wide, packed_bytes(n, tokens->bits), tokens->bits, codes);
    return found.fits;
}

int64_t tier_codes_room(const tier_tokens *tokens) {
    return 5 * ((tokens->heads * tokens->head_dim + 63) / 64 * 64) + 64;
}

/* codes: (channels, bytes), grids: (channels, 2). 0 where a value or grid is beyond float16. */
int encode_by_channel(const tier_tokens *tokens, uint8_t *codes, uint16_t *grids, int threads) {
    int fit = 1;
    int64_t runs = (tokens->head_dim + LANES - 1) / LANES;
#pragma omp parallel for num_threads(threads) reduction(& : fit)
    for (int64_t i = 0; i < tokens->heads * runs; i++)
        fit &= encode_channels(tokens, i / runs, i % runs * LANES, codes, grids);
    return fit;
}

/* codes: (count, bytes), grids: (count, 2); c: of every channel; room: `tier_codes_room` bytes for each thread. */
int encode_by_token(const tier_tokens *tokens, const float *c, char *room, uint8_t *codes, uint16_t *grids,
                    int threads) {
    int fit = 1;
    int64_t bytes = packed_bytes(tokens->heads * tokens->head_dim, tokens->bits);
#pragma omp parallel for num_threads(threads) reduction(& : fit)
    for (int64_t i = 0; i < tokens->count; i++) {
        char *own = room + omp_get_thread_num() * tier_codes_room(tokens);
        fit &= encode_token(tokens, i, c, own, codes + i * bytes, grids + 2 * i);
    }
    return fit;
}

/* largest: of the sizes of each channel over the tokens. 0 where a value is not finite. */
int largest_by_channel(const tier_tokens *tokens, float *largest, int threads) {
    int fit = 1;
    int64_t runs = (tokens->head_dim + LANES - 1) / LANES;
#pragma omp parallel for num_threads(threads) reduction(& : fit)
    for (int64_t i = 0; i < tokens->heads * runs; i++) {
        int64_t head = i / runs, first = i % runs * LANES, left = tokens->head_dim - first;
        int64_t width = left < LANES ? left : LANES;
        lanes most = {0}, sum = {0};
        for (int64_t t = 0; t < tokens->count; t++) {
            lanes x = load_width(token_of(tokens, head, t) + first, width);
            most = larger(most, larger(x, -x)), sum += 0.0f * x;
        }
        memcpy(largest + head * tokens->head_dim + first, &most, (size_t)width * 4);
        fit &= is_finite(sum);
    }
    return fit;
}
