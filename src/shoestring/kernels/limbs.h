/* Rows of floats as whole numbers of a few bytes, with a power of two for each group. */
#include <math.h>
#include <stdint.h>

#define RUN 32

/* The largest whole number of `limbs` bytes of -128 .. 127 with a lowest counterpart: 127 in every byte. */
static float largest(int limbs) { return limbs == 1 ? 127.0f : limbs == 2 ? 32639.0f : 8355711.0f; }

/* The least power of two, of those that are normal, so that no magnitude up to `most` exceeds `bound` of them. */
static float unit_of(float most, float bound) {
    int exponent = -124;
    if (most > 0) frexpf(most / bound, &exponent);
    float unit = ldexpf(1.0f, exponent < -124 ? -124 : exponent);
    return most <= bound * (unit * 0.5f) ? unit * 0.5f : unit;
}

/* x [rows][groups][size] -> bytes [blocks][groups * runs][limbs][block][RUN] and factors
   [blocks][groups][limbs][block], what one counts in each byte; groups are padded to whole runs, rows to whole
   blocks, with zeros. A group with a NaN or an infinity has NaNs for factors. */
static void split_rows(const float *x, int64_t rows, int64_t groups, int64_t size, int limbs, int64_t block,
                    int8_t *bytes, float *factors) {
    const int64_t runs = (size + RUN - 1) / RUN, blocks = (rows + block - 1) / block;
    for (int64_t row = 0; row < blocks * block; row++) {
        const int64_t at = row / block, within = row % block;
        for (int64_t group = 0; group < groups; group++) {
            const float *from = x + (row * groups + group) * size;
            const int64_t count = row < rows ? size : 0;
            int32_t top = 0;
            for (int64_t k = 0; k < count; k++) { /* of floats without a sign, bits are in the order of values */
                union { float f; int32_t i; } u = {from[k]};
                const int32_t magnitude = u.i & 0x7fffffff;
                top = magnitude > top ? magnitude : top;
            }
            union { int32_t i; float f; } most = {top};
            const int finite = top < 0x7f800000;
            const float unit = finite ? unit_of(most.f, largest(limbs)) : 1.0f, inverse = 1.0f / unit;
            float factor = finite ? unit : NAN;
            for (int limb = 0; limb < limbs; limb++, factor *= 256.0f)
                factors[((at * groups + group) * limbs + limb) * block + within] = factor;
            for (int64_t run = 0; run < runs; run++) {
                int8_t *const to = bytes + (((at * groups + group) * runs + run) * limbs * block + within) * RUN;
                const int64_t stride = block * RUN;
                int32_t whole[RUN] = {0};
                const int64_t start = run * RUN, here = count - start < RUN ? count - start : RUN;
                if (finite)
                    for (int64_t k = 0; k < here; k++) whole[k] = (int32_t)rintf(from[start + k] * inverse);
                for (int limb = 0; limb < limbs; limb++)
                    for (int k = 0; k < RUN; k++) {
                        const int32_t rest = whole[k] + 128;
                        to[limb * stride + k] = (int8_t)((rest & 255) - 128);
                        whole[k] = rest >> 8;
                    }
            }
        }
    }
}
