/* One call for a whole product with packed weights: x in the order and type that a generated kernel reads, the
   kernel, and y in the type asked for. */
#include <stdlib.h>
#include <string.h>
#include "limbs.h"

enum { SINGLE = 0, BRAIN = 1 };

/* `kernel`: of a generated program, with factors if x is `limbs` bytes, with offsets and sums if weights have
   offsets. `size`: inputs of a group; `block`: rows that lie side by side. */
typedef struct {
    void *kernel;
    int64_t outputs, groups, size, limbs, block, has_offsets;
} Product;

typedef int Floats(int64_t m, int64_t n, int64_t k, const float *x, const void *packed, const float *scales,
                   float *y, int threads);
typedef int FloatsOffset(int64_t m, int64_t n, int64_t k, const float *x, const void *packed, const float *scales,
                         const float *offsets, const float *sums, float *y, int threads);
typedef int Limbs(int64_t m, int64_t n, int64_t k, const void *x, const float *factors, const void *packed,
                  const float *scales, float *y, int threads);
typedef int LimbsOffset(int64_t m, int64_t n, int64_t k, const void *x, const float *factors, const void *packed,
                        const float *scales, const float *offsets, const float *sums, float *y, int threads);

static void widen(const uint16_t *from, float *to, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        const uint32_t bits = (uint32_t)from[i] << 16;
        memcpy(to + i, &bits, 4);
    }
}

/* To nearest, ties to even; a NaN stays one. */
static void narrow(const float *from, uint16_t *to, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, from + i, 4);
        const uint32_t nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        to[i] = (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? bits >> 16 | 0x40 : nearest);
    }
}

/* x [rows][groups][size] -> [blocks][groups * runs][block][RUN], padded with zeros. */
static void blocks_of_rows(const float *x, int64_t rows, const Product *p, float *to) {
    const int64_t runs = (p->size + RUN - 1) / RUN, blocks = (rows + p->block - 1) / p->block;
    for (int64_t row = 0; row < blocks * p->block; row++)
        for (int64_t group = 0; group < p->groups; group++)
            for (int64_t run = 0; run < runs; run++) {
                const int64_t rest = p->size - run * RUN, count = row >= rows ? 0 : rest < RUN ? rest : RUN;
                const int64_t block = row / p->block, step = group * runs + run;
                float *const here = to + ((block * p->groups * runs + step) * p->block + row % p->block) * RUN;
                for (int64_t i = 0; i < count; i++)
                    here[i] = x[(row * p->groups + group) * p->size + run * RUN + i];
                for (int64_t i = count; i < RUN; i++) here[i] = 0;
            }
}

static void sums_of_groups(const float *x, int64_t groups, int64_t size, float *sums) {
    for (int64_t group = 0; group < groups; group++) {
        double sum = 0;
        #pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < size; i++) sum += x[group * size + i];
        sums[group] = (float)sum;
    }
}

static int64_t whole_lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }

/* y [rows][outputs] = x [rows][inputs] times the weights. Returns 0, what the kernel says, or -1 without memory. */
int packed_product(const Product *p, const void *x, int x_kind, int64_t rows, const void *packed,
                   const float *scales, const float *offsets, void *y, int y_kind, int threads) {
    const int64_t inputs = p->groups * p->size, k = p->groups * ((p->size + RUN - 1) / RUN) * RUN;
    const int64_t blocks = (rows + p->block - 1) / p->block, padded = blocks * p->block;
    const int in_place = !p->limbs && p->block == 1 && k == inputs;
    const int64_t for_x = x_kind == BRAIN ? whole_lines(rows * inputs * 4) : 0;
    const int64_t for_parts = whole_lines(p->limbs ? padded * k * p->limbs : in_place ? 0 : padded * k * 4);
    const int64_t for_factors = whole_lines(padded * p->groups * p->limbs * 4);
    const int64_t for_sums = p->has_offsets ? whole_lines(rows * p->groups * 4) : 0;
    const int64_t for_y = y_kind == BRAIN ? whole_lines(rows * p->outputs * 4) : 0;
    char *const room = aligned_alloc(64, (size_t)(64 + for_x + for_parts + for_factors + for_sums + for_y));
    if (!room) return -1;
    float *const wide = (float *)room, *const factors = (float *)(room + for_x + for_parts);
    void *const parts = room + for_x;
    float *const sums = (float *)((char *)factors + for_factors);
    float *const own_y = (float *)((char *)sums + for_sums), *const to = y_kind == BRAIN ? own_y : y;
    if (x_kind == BRAIN) widen(x, wide, rows * inputs);
    const float *const from = x_kind == BRAIN ? wide : x;
    if (p->has_offsets) sums_of_groups(from, rows * p->groups, p->size, sums);
    int code;
    if (p->limbs) {
        split_rows(from, rows, p->groups, p->size, (int)p->limbs, p->block, parts, factors);
        code = p->has_offsets
            ? ((LimbsOffset *)p->kernel)(rows, p->outputs, k, parts, factors, packed, scales, offsets, sums, to, threads)
            : ((Limbs *)p->kernel)(rows, p->outputs, k, parts, factors, packed, scales, to, threads);
    } else {
        if (!in_place) blocks_of_rows(from, rows, p, parts);
        const float *const ordered = in_place ? from : parts;
        code = p->has_offsets
            ? ((FloatsOffset *)p->kernel)(rows, p->outputs, k, ordered, packed, scales, offsets, sums, to, threads)
            : ((Floats *)p->kernel)(rows, p->outputs, k, ordered, packed, scales, to, threads);
    }
    if (y_kind == BRAIN) narrow(own_y, y, rows * p->outputs);
    free(room);
    return code;
}
