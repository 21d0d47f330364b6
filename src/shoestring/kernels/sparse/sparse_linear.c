/* Products with sparse weights as linear kernels (rows_run, tiles_run, csr_run), and the split over inputs. */

#define _GNU_SOURCE

#include <omp.h>

#include "../linear_kernel.h"
#include "../matrix_tiles.h"
#include "vectors.h"
#include "rows.h"
#include "tiled_csl.h"
#include "csr.h"

/* The inputs in `parts` parts, each with sums of its own, (parts, tokens, outputs), that are added at the end in
   order: work for many threads where there are few rows. `tiles`: the weights are Tiled-CSL, else rows.
   scratch: threads * stride bytes, 64-byte aligned. */
void run_split(const linear_kernel *kernel, int tiles, const float *x, float *y, int64_t tokens, int threads,
               int64_t parts, float *sums, char *scratch, int64_t stride) {
    int64_t size = tokens * kernel->outputs;
#pragma omp parallel num_threads(threads)
    {
        int team = omp_get_num_threads();
        char *mine = scratch + omp_get_thread_num() * stride;
#pragma omp for collapse(2) schedule(static)
        for (int64_t part = 0; part < parts; part++)
            for (int share = 0; share < team; share++) {
                if (tiles)
                    tiles_run_part(kernel, x, sums + part * size, tokens, share, team, part, parts, mine);
                else
                    rows_run_part(kernel, x, sums + part * size, tokens, share, team, part, parts, mine);
            }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < size; i++) {
            float total = sums[i];
            for (int64_t part = 1; part < parts; part++) total += sums[part * size + i];
            y[i] = kernel->bias ? total + kernel->bias[i % kernel->outputs] : total;
        }
    }
}

/* The dense float32 matrix of a bitmap, row by row. weights and sizes as in rows.h. */
void expand_bitmap(const linear_kernel *kernel, float *out, int threads) {
    int kind = kind_of(kernel);
    const float *scales = kernel->weights[3];
    int64_t cols = kernel->inputs;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < kernel->outputs; row++) {
        stream from = stream_at(kernel, row, 0);
        float scale = scales ? scales[row] : 1.0f, *to = out + row * cols;
        int64_t taken = 0;
        memset(to, 0, (size_t)cols * sizeof(float));
        for (int64_t b = 0; b < blocks_of(kernel); b++)
            for (uint32_t rest = from.masks[b]; rest; rest &= rest - 1)
                to[b * BLOCK + __builtin_ctz(rest)] = scale * value_at(from.values, taken++, kind);
    }
}
