/* The split of rows in limbs, by itself. */
#include "limbs.h"

void split_in_limbs(const float *x, int64_t rows, int64_t groups, int64_t size, int limbs, int64_t block,
                    int8_t *bytes, float *factors) {
    split_rows(x, rows, groups, size, limbs, block, bytes, factors);
}
