/* A linear layer's product outside a decode step: a team of its own for one call. */

#include <omp.h>
#include <string.h>

#include "linear_rows.h"

static int64_t share_rows(int64_t tokens, int threads) {
    int64_t rows = (tokens + threads - 1) / threads;
    return rows < MOST_ROWS ? rows : MOST_ROWS;
}

static void run_rows(const linear_kernel *kernel, const float *x, float *y, int64_t tokens, char *room, int thread,
                     int threads) {
    int64_t last = tokens * (thread + 1) / threads;
    for (int64_t first = tokens * thread / threads; first < last; first += MOST_ROWS) {
        int64_t rows = last - first < MOST_ROWS ? last - first : MOST_ROWS;
        float *to = y + first * kernel->outputs;
        multiply_rows(&kernel, &to, 1, x + first * kernel->inputs, rows, room, room + prepared_bytes(kernel, rows));
    }
}

/* room: of `linear_room_bytes` bytes, 64-byte aligned. */
void apply_linear(const linear_kernel *kernel, const float *x, float *y, int64_t tokens, char *room, int threads) {
    int by_rows = tokens >= LEAST_MANY;
#pragma omp parallel num_threads(threads)
    {
        int thread = omp_get_thread_num(), team = omp_get_num_threads();
        /* A team that came out smaller has larger shares, but fewer of them. */
        int64_t rows = share_rows(tokens, team);
        int64_t stride = by_rows ? prepared_bytes(kernel, rows) + rows_scratch_bytes(kernel, rows)
                                 : whole_lines(kernel->scratch_bytes(kernel, tokens));
        if (by_rows) run_rows(kernel, x, y, tokens, room + thread * stride, thread, team);
        else kernel->run(kernel, x, y, tokens, thread, team, room + thread * stride);
    }
}

int64_t linear_room_bytes(const linear_kernel *kernel, int64_t tokens, int threads) {
    if (tokens < LEAST_MANY) return threads * whole_lines(kernel->scratch_bytes(kernel, tokens));
    int64_t most = 0;
    for (int team = 1; team <= threads; team++) {
        int64_t rows = share_rows(tokens, team);
        int64_t bytes = team * (prepared_bytes(kernel, rows) + rows_scratch_bytes(kernel, rows));
        most = bytes > most ? bytes : most;
    }
    return most;
}

/* What `run` needs of one thread, in whole lines of the cache. */
int64_t linear_scratch_bytes(const linear_kernel *kernel, int64_t tokens) {
    return whole_lines(kernel->scratch_bytes(kernel, tokens));
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
