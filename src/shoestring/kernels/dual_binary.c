/* y = x Wᵀ for W = a1·b1 + a2·b2, two binary planes with a pair of float16 levels for each group of inputs.

   Three ways to the same sums:
   - lookup: the planes woven into 2-bit codes, which choose among {0, a1, a2, a1 + a2} by a permutation of
     lanes; one multiply-add for a weight;
   - masked: the planes as they are stored choose which x are added; no multiplication inside a group;
   - bitwise: x in 8-bit integers, cut into bit planes; AND and popcount only.
   Every thread computes its own rows, each in one fixed order: the number of threads changes no bit. */

#include "lanes.h"
#include "linear_kernel.h"
static void share(int64_t total, int64_t step, int thread, int n_threads, int64_t *first, int64_t *last) {
    int64_t blocks = (total + step - 1) / step;
    *first = blocks * thread / n_threads * step;
    *last = blocks * (thread + 1) / n_threads * step;
    if (*last > total) *last = total;
}

/* ---- lookup ----
   codes: for each row and each run of 64 inputs 16 bytes; bits 2j, 2j + 1 of byte l belong to input 16j + l.
   levels: pairs of float16 (a1, a2), one for each row and run (groups longer than a run repeat theirs). */

#define RUN 64
#define ROWS 4

#ifdef __AVX512F__
static inline __m512 table_of(uint32_t pair) {
    __m512 both = _mm512_cvtph_ps(_mm256_set1_epi32((int)pair)); /* a1 a2 a1 a2 … */
    return _mm512_add_ps(_mm512_maskz_moveldup_ps(0xAAAA, both), _mm512_maskz_movehdup_ps(0xCCCC, both));
}

#define LOOKUP(TOKENS)                                                                                       \
    static void lookup_##TOKENS(const uint8_t *codes, const uint32_t *levels, int64_t runs, const float *x,  \
                                int64_t x_stride, float *y, int64_t y_stride, int rows) {                    \
        __m512 sums[ROWS][TOKENS];                                                                           \
        for (int r = 0; r < ROWS; r++)                                                                       \
            for (int t = 0; t < TOKENS; t++) sums[r][t] = _mm512_setzero_ps();                               \
        for (int64_t run = 0; run < runs; run++) {                                                           \
            __m512 table[ROWS];                                                                              \
            __m512i code[ROWS];                                                                              \
            for (int r = 0; r < ROWS; r++) {                                                                 \
                int64_t at = (r < rows ? r : 0) * runs + run;                                                \
                table[r] = table_of(levels[at]);                                                             \
                /* The same place in the rows that come next, where hardware has not been yet. */            \
                if (run % 4 == 0) __builtin_prefetch(codes + 16 * (at + ROWS * runs));                       \
                code[r] = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(codes + 16 * at)));         \
            }                                                                                                \
            for (int j = 0; j < 4; j++) {                                                                    \
                __m512 inputs[TOKENS];                                                                       \
                for (int t = 0; t < TOKENS; t++)                                                             \
                    inputs[t] = _mm512_loadu_ps(x + t * x_stride + RUN * run + 16 * j);                      \
                for (int r = 0; r < ROWS; r++) {                                                             \
                    __m512 weight = _mm512_permutexvar_ps(code[r], table[r]);                                \
                    code[r] = _mm512_srli_epi32(code[r], 2);                                                 \
                    for (int t = 0; t < TOKENS; t++)                                                         \
                        sums[r][t] = _mm512_fmadd_ps(weight, inputs[t], sums[r][t]);                         \
                }                                                                                            \
            }                                                                                                \
        }                                                                                                    \
        for (int r = 0; r < rows; r++)                                                                       \
            for (int t = 0; t < TOKENS; t++) y[t * y_stride + r] = _mm512_reduce_add_ps(sums[r][t]);         \
    }
#else
#define LOOKUP(TOKENS)                                                                                       \
    static void lookup_##TOKENS(const uint8_t *codes, const uint32_t *levels, int64_t runs, const float *x,  \
                                int64_t x_stride, float *y, int64_t y_stride, int rows) {                    \
        for (int r = 0; r < rows; r++) {                                                                     \
            float sums[TOKENS][16];                                                                          \
            memset(sums, 0, sizeof sums);                                                                    \
            for (int64_t run = 0; run < runs; run++) {                                                       \
                const uint8_t *code = codes + 16 * (r * runs + run);                                         \
                float a1 = half_to_float((uint16_t)levels[r * runs + run]);                                  \
                float a2 = half_to_float((uint16_t)(levels[r * runs + run] >> 16));                          \
                for (int j = 0; j < 4; j++)                                                                  \
                    for (int l = 0; l < 16; l++) {                                                           \
                        int bits = code[l] >> (2 * j);                                                       \
                        float weight = (float)(bits & 1) * a1 + (float)(bits >> 1 & 1) * a2;                 \
                        for (int t = 0; t < TOKENS; t++)                                                     \
                            sums[t][l] += weight * x[t * x_stride + RUN * run + 16 * j + l];                 \
                    }                                                                                        \
            }                                                                                                \
            for (int t = 0; t < TOKENS; t++) {                                                               \
                float total = 0;                                                                             \
                for (int l = 0; l < 16; l++) total += sums[t][l];                                            \
                y[t * y_stride + r] = total;                                                                 \
            }                                                                                                \
        }                                                                                                    \
    }
#endif
LOOKUP(1)
LOOKUP(2)
LOOKUP(4)

typedef void (*lookup_fn)(const uint8_t *, const uint32_t *, int64_t, const float *, int64_t, float *, int64_t, int);

/* weights[0]: codes. weights[1]: levels. Inputs are whole runs. */
void dual_binary_run(const linear_kernel *self, const float *x, float *y, int64_t tokens, int thread, int n_threads,
                     void *scratch) {
    (void)scratch;
    const uint8_t *codes = self->weights[0];
    const uint32_t *levels = self->weights[1];
    int64_t runs = self->inputs / RUN, first, last;
    share(self->outputs, ROWS, thread, n_threads, &first, &last);
    for (int64_t row = first; row < last; row += ROWS) {
        int rows = last - row < ROWS ? (int)(last - row) : ROWS;
        const uint8_t *own = codes + 16 * row * runs;
        const uint32_t *pairs = levels + row * runs;
        for (int64_t t = 0; t < tokens;) {
            int64_t left = tokens - t;
            lookup_fn call = left >= 4 ? lookup_4 : left >= 2 ? lookup_2 : lookup_1;
            call(own, pairs, runs, x + t * self->inputs, self->inputs, y + t * self->outputs + row,
                 self->outputs, rows);
            t += left >= 4 ? 4 : left >= 2 ? 2 : 1;
        }
        if (self->bias)
            for (int64_t t = 0; t < tokens; t++)
                for (int r = 0; r < rows; r++) y[t * self->outputs + row + r] += self->bias[row + r];
    }
}

int64_t dual_binary_scratch(const linear_kernel *self, int64_t tokens) {
    (void)self, (void)tokens;
    return 0;
}

/* ---- masked ----
   planes: rows of `stride` bytes, bit i of a row belongs to input i; levels: float16 pairs (row, group). Groups
   are whole eights of inputs. */

/* Adds the x that a group's bits choose; x has as many values as the group. */
static inline float chosen_sum(const uint8_t *bits, const float *x, int64_t group) {
#ifdef __AVX512F__
    __m512 sums = _mm512_setzero_ps();
    int64_t i = 0;
    for (; i + 16 <= group; i += 16) {
        uint16_t mask;
        memcpy(&mask, bits + i / 8, 2);
        sums = _mm512_mask_add_ps(sums, mask, sums, _mm512_loadu_ps(x + i));
    }
    if (i < group) sums = _mm512_add_ps(sums, _mm512_maskz_loadu_ps(bits[i / 8], x + i));
    return _mm512_reduce_add_ps(sums);
#else
    float sums[8] = {0};
    for (int64_t i = 0; i < group; i += 8)
        for (int l = 0; l < 8; l++) sums[l] += bits[i / 8] >> l & 1 ? x[i + l] : 0.0f;
    return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
#endif
}

void dual_binary_masked(const uint8_t *plane1, const uint8_t *plane2, int64_t stride, const uint32_t *levels,
                        int64_t rows, int64_t cols, int64_t group, const float *x, float *y, int64_t tokens,
                        int threads) {
    int64_t groups = cols / group;
#pragma omp parallel for num_threads(threads)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t t = 0; t < tokens; t++) {
            float sum = 0;
            for (int64_t g = 0; g < groups; g++) {
                uint32_t pair = levels[r * groups + g];
                int64_t at = r * stride + g * group / 8;
                const float *inputs = x + t * cols + g * group;
                float one = chosen_sum(plane1 + at, inputs, group), two = chosen_sum(plane2 + at, inputs, group);
                sum += half_to_float((uint16_t)pair) * one + half_to_float((uint16_t)(pair >> 16)) * two;
            }
            y[t * rows + r] = sum;
        }
}

/* ---- bitwise ----
   x_planes: for each row of x and group, 8 planes of `words` 64-bit words: bit i of plane j is bit j of x + 128.
   scales: one for each row of x. Groups are whole words. */

void dual_binary_bitwise(const uint8_t *plane1, const uint8_t *plane2, int64_t stride, const uint32_t *levels,
                         int64_t rows, int64_t cols, int64_t group, const uint64_t *x_planes,
                         const float *scales, float *y, int64_t tokens, int threads) {
    int64_t groups = cols / group, words = group / 64;
#pragma omp parallel for num_threads(threads)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t t = 0; t < tokens; t++) {
            float sum = 0;
            for (int64_t g = 0; g < groups; g++) {
                const uint64_t *planes = x_planes + (t * groups + g) * 8 * words;
                int64_t one = 0, two = 0;
                for (int64_t w = 0; w < words; w++) {
                    uint64_t b1, b2;
                    memcpy(&b1, plane1 + r * stride + 8 * (g * words + w), 8);
                    memcpy(&b2, plane2 + r * stride + 8 * (g * words + w), 8);
                    one -= 128 * __builtin_popcountll(b1);
                    two -= 128 * __builtin_popcountll(b2);
                    for (int j = 0; j < 8; j++) {
                        one += (int64_t)__builtin_popcountll(b1 & planes[j * words + w]) << j;
                        two += (int64_t)__builtin_popcountll(b2 & planes[j * words + w]) << j;
                    }
                }
                uint32_t pair = levels[r * groups + g];
                sum += half_to_float((uint16_t)pair) * (float)one +
                       half_to_float((uint16_t)(pair >> 16)) * (float)two;
            }
            y[t * rows + r] = sum * scales[t];
        }
}
