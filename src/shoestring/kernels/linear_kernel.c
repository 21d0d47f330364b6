/* A linear layer's product outside a decode step: a team of its own for one call. */

#include <omp.h>

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
