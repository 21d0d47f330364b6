/* How a team of threads calls the product of a linear layer, whatever its weights look like.

   y = x Wᵀ (+ bias where the layer has one), for `tokens` rows of x. Every thread of the team calls `run` with
   its number; it writes its own outputs only (a share of the columns of y, the same for every row) and returns
   without waiting for the others: barriers belong to the caller. `run` allocates nothing; `scratch_bytes` says
   how many bytes each thread must be given, 64-byte aligned, for these tokens.
   x is (tokens, inputs), y is (tokens, outputs), both float32, contiguous, 64-byte aligned.

   From LEAST_MANY rows on, threads share the rows instead (`multiply_rows` of linear_rows.h): each takes all
   outputs of its own, and waits for nobody. */

#ifndef SHOESTRING_LINEAR_KERNEL_H
#define SHOESTRING_LINEAR_KERNEL_H

#include <stddef.h>
#include <stdint.h>

enum { LEAST_MANY = 32 };

typedef struct linear_kernel linear_kernel;

/* A product of many rows in two steps, so that layers with the same input share the first: `prepare` looks at
   nothing of a kernel but `inputs` and `sizes[0]`. No result depends on how many rows there are. */
typedef struct {
    void (*prepare)(const linear_kernel *self, const float *x, int64_t rows, void *prepared);
    void (*multiply)(const linear_kernel *self, const void *prepared, float *y, int64_t rows, void *scratch);
    int64_t (*prepared_bytes)(const linear_kernel *self, int64_t rows);
    int64_t (*scratch_bytes)(const linear_kernel *self);
} many_rows;

struct linear_kernel {
    void (*run)(const linear_kernel *self, const float *x, float *y, int64_t tokens, int thread, int n_threads,
                void *scratch);
    int64_t (*scratch_bytes)(const linear_kernel *self, int64_t tokens);
    int64_t inputs, outputs;
    const float *bias;      /* (outputs) or NULL */
    const void *weights[6]; /* what `run` reads; its own comment says which is which */
    int64_t sizes[6];       /* likewise */
    const many_rows *many;  /* NULL: `run`, as the only thread of a team, is what there is for many rows too */
};

#endif
