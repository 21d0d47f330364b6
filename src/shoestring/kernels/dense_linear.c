/* A linear layer with its matrix as it is: float32, bfloat16 or float16 rows, widened on the way to the FMA.

   weights[0]: (outputs, inputs). Sums have sixteen lanes over the inputs, whichever outputs share a block, so
   results depend neither on the number of threads nor on how many rows of x there are. */

#include "lanes.h"
#include "linear_kernel.h"

enum { OUTPUTS = 4, ROWS = 4 };

/* ahead: whether to ask for the rows of the matrix behind these, which are wanted next: while rows of x meet what
   is in the cache already, memory would have nothing to do. */
INLINE void product(const linear_kernel *self, const float *x, float *y, int64_t first, int outputs, int rows,
                    int kind, int ahead) {
    int64_t inputs = self->inputs, whole = inputs - inputs % LANES;
    const char *weight = (const char *)self->weights[0] + first * inputs * storage_bytes(kind);
    lanes sums[ROWS][OUTPUTS] = {0};
    for (int64_t c = 0; c < whole; c += LANES) {
        lanes w[OUTPUTS];
        for (int o = 0; o < outputs; o++) {
            w[o] = load_stored(weight, o * inputs + c, kind);
            if (ahead) __builtin_prefetch(weight + ((outputs + o) * inputs + c) * storage_bytes(kind));
        }
        for (int r = 0; r < rows; r++) {
            lanes part = load_lanes(x + r * inputs + c);
            for (int o = 0; o < outputs; o++) sums[r][o] += w[o] * part;
        }
    }
    if (whole < inputs) {
        int64_t rest = inputs - whole;
        for (int o = 0; o < outputs; o++) {
            lanes w = load_some(weight, o * inputs + whole, rest, kind);
            for (int r = 0; r < rows; r++) sums[r][o] += w * load_some(x, r * inputs + whole, rest, FLOAT32);
        }
    }
    float each[ROWS * OUTPUTS];
    /* Both ways add the same numbers in the same order. */
    if (rows * outputs == LANES) {
        store_lanes(each, sum_each(sums[0]));
    } else {
        for (int r = 0; r < rows; r++)
            for (int o = 0; o < outputs; o++) each[r * outputs + o] = sum_lanes(sums[r][o]);
    }
    for (int r = 0; r < rows; r++)
        for (int o = 0; o < outputs; o++) {
            float sum = each[r * outputs + o];
            y[r * self->outputs + first + o] = self->bias ? sum + self->bias[first + o] : sum;
        }
}

INLINE void all_rows(const linear_kernel *self, const float *x, float *y, int64_t tokens, int64_t first, int outputs,
                     int kind) {
    int64_t r = 0;
    for (; r + ROWS <= tokens; r += ROWS)
        product(self, x + r * self->inputs, y + r * self->outputs, first, outputs, ROWS, kind, r + ROWS >= tokens);
    for (; r < tokens; r++)
        product(self, x + r * self->inputs, y + r * self->outputs, first, outputs, 1, kind, r + 1 == tokens);
}

INLINE void run(const linear_kernel *self, const float *x, float *y, int64_t tokens, int thread, int n_threads,
                int kind) {
    /* Shares in whole blocks of sixteen: no two threads write to one cache line. */
    int64_t blocks = (self->outputs + LANES - 1) / LANES;
    int64_t o = blocks * thread / n_threads * LANES, end = blocks * (thread + 1) / n_threads * LANES;
    if (end > self->outputs) end = self->outputs;
    for (; o + OUTPUTS <= end; o += OUTPUTS) all_rows(self, x, y, tokens, o, OUTPUTS, kind);
    for (; o < end; o++) all_rows(self, x, y, tokens, o, 1, kind);
}

#define KIND(name, kind)                                                                                        \
    void name(const linear_kernel *self, const float *x, float *y, int64_t tokens, int thread, int n_threads,   \
              void *scratch) {                                                                                  \
        (void)scratch;                                                                                          \
        run(self, x, y, tokens, thread, n_threads, kind);                                                       \
    }
KIND(dense_float32, FLOAT32)
KIND(dense_bfloat16, BFLOAT16)
KIND(dense_float16, FLOAT16)

int64_t no_scratch(const linear_kernel *self, int64_t tokens) {
    (void)self, (void)tokens;
    return 0;
}
