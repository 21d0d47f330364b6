/* Products of many rows: what one thread does for the rows that are its own. */

#ifndef SHOESTRING_LINEAR_ROWS_H
#define SHOESTRING_LINEAR_ROWS_H

#include "linear_kernel.h"

/* Rows that are prepared at once: as many as stay in a second-level cache. */
enum { MOST_ROWS = 192 };

static inline int64_t whole_lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }

/* Bytes of the two rooms that `multiply_rows` needs for `rows` rows. */
static int64_t prepared_bytes(const linear_kernel *kernel, int64_t rows) {
    return kernel->many ? whole_lines(kernel->many->prepared_bytes(kernel, rows)) : 0;
}

static int64_t rows_scratch_bytes(const linear_kernel *kernel, int64_t rows) {
    return whole_lines(kernel->many ? kernel->many->scratch_bytes(kernel) : kernel->scratch_bytes(kernel, rows));
}

static int prepared_alike(const linear_kernel *a, const linear_kernel *b) {
    return a && a->many->prepare == b->many->prepare && a->inputs == b->inputs && a->sizes[0] == b->sizes[0];
}

/* ys[i] = x Wᵀ of each of `count` kernels, for the same rows; both rooms are 64-byte aligned. */
static void multiply_rows(const linear_kernel *const *kernels, float *const *ys, int count, const float *x,
                          int64_t rows, void *prepared, void *scratch) {
    const linear_kernel *last = NULL;
    for (int i = 0; i < count && rows > 0; i++) {
        const linear_kernel *kernel = kernels[i];
        if (!kernel->many) {
            kernel->run(kernel, x, ys[i], rows, 0, 1, scratch);
            continue;
        }
        if (!prepared_alike(last, kernel)) kernel->many->prepare(kernel, x, rows, prepared);
        kernel->many->multiply(kernel, prepared, ys[i], rows, scratch);
        last = kernel;
    }
}

#endif
