/* A linear layer's product outside a decode step: a team of its own for one call. */

#include <omp.h>
#include <string.h>

#include "linear_kernel.h"

/* scratch: `threads` times `stride` bytes, 64-byte aligned. */
void apply_linear(const linear_kernel *kernel, const float *x, float *y, int64_t tokens, char *scratch,
                  int64_t stride, int threads) {
#pragma omp parallel num_threads(threads)
    {
        int thread = omp_get_thread_num();
        kernel->run(kernel, x, y, tokens, thread, omp_get_num_threads(), scratch + thread * stride);
    }
}

int64_t linear_scratch_bytes(const linear_kernel *kernel, int64_t tokens) {
    return kernel->scratch_bytes(kernel, tokens);
}

/* One layer after the other by one team, as the layers of a model follow each other in a decode step. */
void apply_linears(const linear_kernel *const *kernels, int64_t count, const float *x, float *y, int64_t tokens,
                   char *scratch, int64_t stride, int threads) {
#pragma omp parallel num_threads(threads)
    {
        int thread = omp_get_thread_num();
        for (int64_t i = 0; i < count; i++) {
            kernels[i]->run(kernels[i], x, y, tokens, thread, omp_get_num_threads(), scratch + thread * stride);
#pragma omp barrier
        }
    }
}

/* The layer whose weights are all zero, without any: what a step takes with these is the rest of it. */
void zero_linear(const linear_kernel *self, const float *x, float *y, int64_t tokens, int thread, int n_threads,
                 void *scratch) {
    (void)x, (void)scratch;
    int64_t from = self->outputs * thread / n_threads, to = self->outputs * (thread + 1) / n_threads;
    for (int64_t t = 0; t < tokens; t++) memset(y + t * self->outputs + from, 0, sizeof(float) * (to - from));
}

int64_t zero_linear_scratch(const linear_kernel *self, int64_t tokens) {
    (void)self, (void)tokens;
    return 0;
}
