// Packed k-bit codes become floats: out = scale * (q - zero) + offset, one (scale, zero, offset) per group.
// Rows start on a byte and are independent, so threads share nothing. Products and sums are rounded one by
// one (no contraction), which makes the result equal to the plain path bit for bit.

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

// Eight codes of K bits fill K bytes: load them as one little-endian word and shift.
#define UNPACK(K)                                                                       \
    static void unpack##K(const uint8_t *packed, int64_t count, uint8_t *codes) {       \
        int64_t blocks = count / 8;                                                     \
        for (int64_t b = 0; b < blocks; b++) {                                          \
            uint64_t word = 0;                                                          \
            memcpy(&word, packed + b * K, K);                                           \
            for (int i = 0; i < 8; i++)                                                 \
                codes[8 * b + i] = (uint8_t)((word >> (K * i)) & ((1u << K) - 1));      \
        }                                                                               \
        int64_t rest = count - 8 * blocks;                                              \
        uint64_t word = 0;                                                              \
        memcpy(&word, packed + blocks * K, (size_t)((rest * K + 7) / 8));               \
        for (int i = 0; i < rest; i++)                                                  \
            codes[8 * blocks + i] = (uint8_t)((word >> (K * i)) & ((1u << K) - 1));     \
    }
UNPACK(2)
UNPACK(3)
UNPACK(4)
UNPACK(5)
UNPACK(6)
UNPACK(7)
UNPACK(8)

typedef void (*unpack_row)(const uint8_t *, int64_t, uint8_t *);
static const unpack_row unpack_rows[9] = {0, 0, unpack2, unpack3, unpack4, unpack5, unpack6, unpack7, unpack8};

// Round to the nearest bfloat16, ties to even. The inputs are finite.
static inline uint16_t to_bfloat16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (uint16_t)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

// packed: rows * packed_stride bytes. scale, zero, offset: rows * (cols / group) floats.
// out: rows * cols float32 or, if `bfloat16`, 16-bit patterns. Returns 0, or 1 when memory ran out.
int dequantise(const uint8_t *packed, int64_t packed_stride, int bits, int64_t rows, int64_t cols, int64_t group,
               const float *scale, const float *zero, const float *offset, void *out, int bfloat16, int threads) {
    int64_t groups = cols / group;
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        uint8_t *codes = malloc((size_t)cols);
        if (!codes) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for
        for (int64_t r = 0; r < rows; r++) {
            if (!codes) continue;
            unpack_rows[bits](packed + r * packed_stride, cols, codes);
            for (int64_t g = 0; g < groups; g++) {
                float s = scale[r * groups + g], z = zero[r * groups + g], o = offset[r * groups + g];
                const uint8_t *q = codes + g * group;
                if (bfloat16) {
                    uint16_t *to = (uint16_t *)out + r * cols + g * group;
                    for (int64_t c = 0; c < group; c++) to[c] = to_bfloat16(s * ((float)q[c] - z) + o);
                } else {
                    float *to = (float *)out + r * cols + g * group;
                    for (int64_t c = 0; c < group; c++) to[c] = s * ((float)q[c] - z) + o;
                }
            }
        }
        free(codes);
    }
    return failed;
}
