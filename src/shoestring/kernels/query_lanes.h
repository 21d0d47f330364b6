/* Products with 48 queries side by side, a query in each lane: 8 rows of them keep in registers. */

#ifndef SHOESTRING_QUERY_LANES_H
#define SHOESTRING_QUERY_LANES_H

#include "lanes.h"

#if defined(__AVX512F__)
enum { TALL = 8 }; /* rows of a product that stay in registers */
#else
enum { TALL = 2 };
#endif
enum { WIDE = 3, QUERIES = WIDE * LANES };

/* to[i][query] = to[i][query] · factor[query] + Σ over `depth` of from[i · down + k · right] · with[k][query],
   for `tall` i's. */
INLINE void multiply_block(const float *from, int64_t down, int64_t right, const float *with, int64_t depth, int tall,
                           const lanes factor[WIDE], float *to) {
    lanes sums[TALL][WIDE];
    for (int i = 0; i < tall; i++)
        for (int j = 0; j < WIDE; j++) sums[i][j] = load_lanes(to + i * QUERIES + j * LANES) * factor[j];
    for (int64_t k = 0; k < depth; k++, from += right, with += QUERIES)
        for (int i = 0; i < tall; i++)
            for (int j = 0; j < WIDE; j++) sums[i][j] += from[i * down] * load_lanes(with + j * LANES);
    for (int i = 0; i < tall; i++)
        for (int j = 0; j < WIDE; j++) store_lanes(to + i * QUERIES + j * LANES, sums[i][j]);
}

INLINE void multiply_tile(const float *from, int64_t down, int64_t right, const float *with, int64_t depth,
                          int64_t rows, const lanes factor[WIDE], float *to) {
    int64_t i = 0;
    for (; i + TALL <= rows; i += TALL)
        multiply_block(from + i * down, down, right, with, depth, TALL, factor, to + i * QUERIES);
    for (; i < rows; i++) multiply_block(from + i * down, down, right, with, depth, 1, factor, to + i * QUERIES);
}

#endif
