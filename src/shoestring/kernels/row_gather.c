// y = sum over kept inputs j of x_j * rows[j, :]: the product of a linear layer that reads only the rows of the
// transposed weight whose input counts. The inputs left out may go through two thin matrices instead:
// z = sum over the rest of x_j * down[j, :], y += sum over k of z_k * up[k, :].
//
// All three sums are one loop, over rows that a list names. A thread owns a share of the outputs and holds a
// slice of them in registers while all rows of the list go by, so that nothing is written but the result, and
// the sum of an output runs over the same rows in the same order whatever the number of threads.
//
// A linear_kernel's `weights` are: rows (inputs, outputs), score scales (inputs) or NULL, down (inputs, rank) or
// NULL, up (rank, outputs) or NULL, two int64 that count kept rows and tokens or NULL. Its `sizes` are: rank, element type
// (0 float32, 1 bfloat16), the bits of the float32 threshold.

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "linear_kernel.h"

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define MOST_BLOCKS 12 /* of two vectors of sums each: 24 of the 32 registers */
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#define MOST_BLOCKS 6
#else
#define VECTOR_BYTES 16
#define MOST_BLOCKS 6
#endif

#define LANES (VECTOR_BYTES / 4)
#define BLOCK (2 * LANES) /* outputs: one vector of bfloat16, two of float32 */
#define LINE 64
#define AHEAD 4 /* rows whose cache lines are asked for before their turn: skipped rows mislead the hardware */

typedef float vector __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(VECTOR_BYTES), aligned(2), may_alias));

enum { ROWS, SCALES, DOWN, UP, COUNTS };
enum { RANK, TYPE, THRESHOLD };
enum { FLOAT32, BFLOAT16 };

// The inputs whose rows are read, ascending, and what each row is multiplied by.
typedef struct {
    int64_t count;
    int32_t *row;
    float *factor;
} row_list;

static inline float from_bfloat16(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline float element(const void *matrix, int type, int64_t at) {
    return type == BFLOAT16 ? from_bfloat16(((const uint16_t *)matrix)[at]) : ((const float *)matrix)[at];
}

// Sums of `blocks` blocks of outputs, which the compiler keeps in registers: `blocks` and `type` are constants.
// Of bfloat16 pairs the even ones are shifted up and the odd ones masked, and put in order at the end.
static inline __attribute__((always_inline)) void sum_slice(const char *matrix, int64_t stride, const row_list *list,
                                                            float *y, const int blocks, const int type, int add) {
    vector sums[2 * MOST_BLOCKS];
#pragma GCC unroll 24
    for (int i = 0; i < 2 * blocks; i++) sums[i] = (vector){0};
    const int64_t bytes = (int64_t)blocks * BLOCK * (type == BFLOAT16 ? 2 : 4);
    const int64_t count = list->count;
    for (int64_t k = 0; k < count; k++) {
        const char *row = matrix + list->row[k] * stride;
        const char *later = matrix + list->row[k + AHEAD < count ? k + AHEAD : count - 1] * stride;
#pragma GCC unroll 24
        for (int64_t at = 0; at < bytes; at += LINE) __builtin_prefetch(later + at);
        const float factor = list->factor[k];
#pragma GCC unroll 12
        for (int b = 0; b < blocks; b++) {
            if (type == BFLOAT16) {
                words pair = *(const words *)(row + b * VECTOR_BYTES);
                words even = pair << 16, odd = pair & 0xffff0000u;
                sums[2 * b] += factor * (vector)even;
                sums[2 * b + 1] += factor * (vector)odd;
            } else {
                sums[2 * b] += factor * ((const vector *)(row + 2 * b * VECTOR_BYTES))[0];
                sums[2 * b + 1] += factor * ((const vector *)(row + 2 * b * VECTOR_BYTES))[1];
            }
        }
    }
#pragma GCC unroll 12
    for (int b = 0; b < blocks; b++) {
        float out[BLOCK];
        if (type == BFLOAT16) {
            for (int i = 0; i < LANES; i++) {
                out[2 * i] = sums[2 * b][i];
                out[2 * i + 1] = sums[2 * b + 1][i];
            }
        } else {
            memcpy(out, &sums[2 * b], sizeof out);
        }
        for (int i = 0; i < BLOCK; i++) y[b * BLOCK + i] = add ? y[b * BLOCK + i] + out[i] : out[i];
    }
}

#define CASE(N)                                                               \
    case N:                                                                   \
        if (type == BFLOAT16) sum_slice(matrix, stride, list, y, N, BFLOAT16, add); \
        else sum_slice(matrix, stride, list, y, N, FLOAT32, add);             \
        break;

static __attribute__((noinline)) void sum_blocks(const char *matrix, int64_t stride, const row_list *list, float *y,
                                                 int blocks, int type, int add) {
    switch (blocks) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if MOST_BLOCKS == 12
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
    }
}

// y[first:last] = (or +=) sum over the list of factor * matrix[row, first:last]; rows have `width` elements.
static void sum_rows(const void *matrix, int type, int64_t width, const row_list *list, float *y, int64_t first,
                     int64_t last, int add) {
    const int64_t size = type == BFLOAT16 ? 2 : 4;
    int64_t whole = (last - first) / BLOCK;
    if (list->count == 0) {
        for (int64_t o = first; !add && o < last; o++) y[o] = 0;
        return;
    }
    while (whole > 0) { // slices as even as can be: 13 blocks are 7 and 6
        int64_t slices = (whole + MOST_BLOCKS - 1) / MOST_BLOCKS, blocks = (whole + slices - 1) / slices;
        sum_blocks((const char *)matrix + first * size, width * size, list, y + first, (int)blocks, type, add);
        first += blocks * BLOCK;
        whole -= blocks;
    }
    for (int64_t o = first; o < last; o++) {
        float sum = 0;
        for (int64_t k = 0; k < list->count; k++)
            sum += list->factor[k] * element(matrix, type, list->row[k] * width + o);
        y[o] = add ? y[o] + sum : sum;
    }
}

// The share of `width` columns that a thread owns, in whole blocks; the last thread takes what is over.
static void share(int64_t width, int thread, int threads, int64_t *first, int64_t *last) {
    int64_t blocks = width / BLOCK;
    *first = blocks * thread / threads * BLOCK;
    *last = thread == threads - 1 ? width : blocks * (thread + 1) / threads * BLOCK;
}

static float threshold_of(const linear_kernel *self) {
    uint32_t bits = (uint32_t)self->sizes[THRESHOLD];
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

// Inputs with |x| * scale above the threshold, or with `rest` the others. A score that is no number is kept, so
// that what is wrong with x shows in y.
static void choose(const linear_kernel *self, const float *x, row_list *list, int rest) {
    const float *scales = self->weights[SCALES], threshold = threshold_of(self);
    int64_t count = 0;
    for (int64_t j = 0; j < self->inputs; j++) {
        const float score = scales ? fabsf(x[j]) * scales[j] : fabsf(x[j]);
        list->row[count] = (int32_t)j;
        list->factor[count] = x[j];
        count += !(score <= threshold) != rest;
    }
    list->count = count;
}

static row_list list_in(void *scratch, int64_t inputs) {
    row_list list = {0, (int32_t *)scratch, (float *)scratch + inputs};
    return list;
}

static void write_outputs(const linear_kernel *self, const row_list *kept, const row_list *hidden, float *y,
                          int64_t first, int64_t last) {
    const int type = (int)self->sizes[TYPE];
    sum_rows(self->weights[ROWS], type, self->outputs, kept, y, first, last, 0);
    if (hidden) sum_rows(self->weights[UP], type, self->outputs, hidden, y, first, last, 1);
    for (int64_t o = first; self->bias && o < last; o++) y[o] += self->bias[o];
}

static void count_rows(const linear_kernel *self, int64_t kept) {
    int64_t *counts = (int64_t *)self->weights[COUNTS];
    if (counts) counts[0] += kept, counts[1] += 1;
}

static row_list all_of(float *z, int32_t *numbers, int64_t rank) {
    for (int64_t k = 0; k < rank; k++) numbers[k] = (int32_t)k;
    row_list list = {rank, numbers, z};
    return list;
}

// Lists of inputs, z and its numbers.
int64_t row_gather_scratch_bytes(const linear_kernel *self, int64_t tokens) {
    (void)tokens;
    return 8 * (self->inputs + self->sizes[RANK]) + LINE;
}

// For a team that brings its own barriers. Every thread chooses the rows, and computes z, for itself.
void row_gather_run(const linear_kernel *self, const float *x, float *y, int64_t tokens, int thread, int threads,
                    void *scratch) {
    const int64_t rank = self->sizes[RANK], inputs = self->inputs;
    int64_t first, last;
    share(self->outputs, thread, threads, &first, &last);
    row_list list = list_in(scratch, inputs);
    float *z = (float *)scratch + 2 * inputs;
    int32_t *numbers = (int32_t *)scratch + 2 * inputs + rank;
    for (int64_t t = 0; t < tokens; t++, x += inputs, y += self->outputs) {
        row_list hidden;
        if (rank) {
            choose(self, x, &list, 1);
            sum_rows(self->weights[DOWN], (int)self->sizes[TYPE], rank, &list, z, 0, rank, 0);
            hidden = all_of(z, numbers, rank);
        }
        choose(self, x, &list, 0);
        if (thread == 0) count_rows(self, list.count);
        write_outputs(self, &list, rank ? &hidden : 0, y, first, last);
    }
}

static int same_choice(const linear_kernel *a, const linear_kernel *b) {
    return a->inputs == b->inputs && a->weights[SCALES] == b->weights[SCALES] &&
           (uint32_t)a->sizes[THRESHOLD] == (uint32_t)b->sizes[THRESHOLD];
}

// Several layers: x[l] is (tokens, inputs of layer l), y[l] (tokens, its outputs). Layers in a row that choose
// alike of one x share their lists. Threads share z as well. Returns 0, or 1 when memory ran out.
int row_gather(const linear_kernel *const *layers, int count, const float *const *x, float *const *y, int64_t tokens,
               int threads) {
    int64_t rank = 0, inputs = 0;
    for (int l = 0; l < count; l++) {
        if (layers[l]->sizes[RANK] > rank) rank = layers[l]->sizes[RANK];
        if (layers[l]->inputs > inputs) inputs = layers[l]->inputs;
    }
    float *shared = malloc(sizeof(float) * (size_t)(4 * inputs + 2 * rank + 1));
    if (!shared) return 1;
    row_list kept = list_in(shared, inputs), rest = list_in(shared + 2 * inputs, inputs);
    float *z = shared + 4 * inputs;
    int32_t *numbers = (int32_t *)shared + 4 * inputs + rank;
#pragma omp parallel num_threads(threads)
    {
        int thread = 0, team = 1;
#ifdef _OPENMP
        extern int omp_get_thread_num(void), omp_get_num_threads(void);
        thread = omp_get_thread_num();
        team = omp_get_num_threads();
#endif
        for (int64_t t = 0; t < tokens; t++) {
            for (int l = 0; l < count; l++) {
                const linear_kernel *self = layers[l];
                const int64_t own_rank = self->sizes[RANK];
                int64_t first, last;
                row_list hidden;
                const int anew = l == 0 || x[l] != x[l - 1] || !same_choice(self, layers[l - 1]);
                const int rest_anew = own_rank && (anew || !layers[l - 1]->sizes[RANK]);
                if (anew || rest_anew || own_rank) {
#pragma omp barrier
                    if (thread == 0) {
                        if (anew) choose(self, x[l] + t * self->inputs, &kept, 0);
                        if (rest_anew) choose(self, x[l] + t * self->inputs, &rest, 1);
                    }
#pragma omp barrier
                }
                if (thread == 0) count_rows(self, kept.count);
                if (own_rank) {
                    share(own_rank, thread, team, &first, &last);
                    sum_rows(self->weights[DOWN], (int)self->sizes[TYPE], own_rank, &rest, z, first, last, 0);
                    for (int64_t k = first; k < last; k++) numbers[k] = (int32_t)k;
#pragma omp barrier
                    hidden = (row_list){own_rank, numbers, z};
                }
                share(self->outputs, thread, team, &first, &last);
                write_outputs(self, &kept, own_rank ? &hidden : 0, y[l] + t * self->outputs, first, last);
            }
        }
    }
    free(shared);
    return 0;
}
