// Fit the grid of every group of a weight matrix, and round a block of columns with error compensation.
// The search is that of numbers/affine_fit.py. Rows are independent: threads share nothing, so the result
// does not depend on their number.

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { SYMMETRIC = 0, INTEGER = 1, REAL = 2 };

typedef struct {
    int32_t bits, zero_point, scale_bits, group, factors, refinements;
    const float *factor;
} format;

typedef struct {
    float scale, zero, offset;
} grid;

static float round_to_half(float x) {
    float a = fabsf(x);
    if (a < 6.103515625e-05f) return copysignf((a + 0.5f) - 0.5f, x);  // subnormal: multiples of 2^-24
    uint32_t bits;
    memcpy(&bits, &x, 4);
    bits = (bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFFu;
    memcpy(&x, &bits, 4);
    return fabsf(x) > 65504.0f ? copysignf(INFINITY, x) : x;
}

static inline float clamp(float x, float low, float high) {
    x = x < low ? low : x;
    return x > high ? high : x;
}

static grid represent(const format *f, float scale, float shift, float multiplier) {
    float levels = (float)(1 << f->bits);
    grid g = {0, 0, 0};
    if (f->scale_bits == 32) {
        g.scale = scale;
    } else if (f->scale_bits == 16) {
        g.scale = round_to_half(scale);
    } else {
        float codes = (float)(1 << f->scale_bits), step = multiplier / codes;
        g.scale = clamp(rintf(scale / step), 1, codes) * step;
    }
    if (f->zero_point == REAL) g.offset = f->scale_bits == 32 ? shift : round_to_half(shift);
    else if (f->zero_point == INTEGER) g.zero = clamp(rintf(shift), 0, levels - 1);
    else g.zero = levels / 2;
    return g;
}

static inline float reciprocal(float scale) { return scale == 0 ? 0 : 1 / scale; }

static float grid_error(const format *f, const float *w, const float *h, grid g) {
    float inverse = reciprocal(g.scale), top = (float)((1 << f->bits) - 1), error = 0;
#pragma omp simd reduction(+ : error)
    for (int i = 0; i < f->group; i++) {
        float q = clamp(rintf((w[i] - g.offset) * inverse + g.zero), 0, top);
        float d = w[i] - (g.scale * (q - g.zero) + g.offset);
        error += h[i] * d * d;
    }
    return error;
}

static void extremes(const format *f, float low, float high, float factor, float *scale, float *shift) {
    float levels = (float)(1 << f->bits), half = levels / 2;
    *shift = 0;
    if (f->zero_point == SYMMETRIC) {
        float up = high / (half - 1), down = -low / half;
        *scale = (up > down ? up : down) * factor;
    } else if (f->zero_point == INTEGER) {
        low = low < 0 ? low : 0;
        high = high > 0 ? high : 0;
        *scale = (high - low) * (factor / (levels - 1));
        if (*scale > 0) *shift = -low * factor / *scale;
    } else {
        *scale = (high - low) * (factor / (levels - 1));
        *shift = (high + low) / 2 - (high - low) * (factor / 2);
    }
}

// Codes on the grid (scale, shift), then the scale and shift that suit them best; returns their error.
static float least_squares(const format *f, const float *w, const float *h, float *codes, float *scale,
                           float *shift) {
    int n = f->group;
    float inverse = reciprocal(*scale), top = (float)((1 << f->bits) - 1), error = 0;
    if (f->zero_point == REAL) {
        float o = *shift, sum = 0, sum_w = 0, sum_q = 0;
#pragma omp simd reduction(+ : sum, sum_w, sum_q)
        for (int i = 0; i < n; i++) {
            codes[i] = clamp(rintf((w[i] - o) * inverse), 0, top);
            sum += h[i];
            sum_w += h[i] * w[i];
            sum_q += h[i] * codes[i];
        }
        sum = sum < 1.17549435e-38f ? 1.17549435e-38f : sum;
        float mean_w = sum_w / sum, mean_q = sum_q / sum, spread = 0, product = 0;
#pragma omp simd reduction(+ : spread, product)
        for (int i = 0; i < n; i++) {
            float q = codes[i] - mean_q;
            spread += h[i] * q * q;
            product += h[i] * q * (w[i] - mean_w);
        }
        if (spread > 0) *scale = product / spread;
        *shift = o = mean_w - *scale * mean_q;
        float s = *scale;
#pragma omp simd reduction(+ : error)
        for (int i = 0; i < n; i++) {
            float d = w[i] - s * codes[i] - o;
            error += h[i] * d * d;
        }
        return error;
    }
    float zero = f->zero_point == INTEGER ? clamp(rintf(*shift), 0, top) : (top + 1) / 2;
    float square = 0, product = 0;
#pragma omp simd reduction(+ : square, product)
    for (int i = 0; i < n; i++) {
        float q = clamp(rintf(w[i] * inverse + zero), 0, top) - zero;
        codes[i] = q;
        square += h[i] * q * q;
        product += h[i] * q * w[i];
    }
    if (square > 0) *scale = product / square;
    float s = *scale;
#pragma omp simd reduction(+ : error)
    for (int i = 0; i < n; i++) {
        float d = w[i] - s * codes[i];
        error += h[i] * d * d;
    }
    return error;
}

static grid better(const format *f, const float *w, const float *h, float multiplier, float scale, float shift,
                   grid old, float *old_error) {
    if (f->scale_bits < 16 && scale < 0) scale = 0;
    grid g = represent(f, scale, shift, multiplier);
    float error = grid_error(f, w, h, g);
    if (!(error < *old_error)) return old;
    *old_error = error;
    return g;
}

static grid fit_group(const format *f, const float *w, const float *h, float multiplier, float *codes) {
    float low = w[0], high = w[0], best = INFINITY, scale, shift, best_scale, best_shift;
    for (int i = 1; i < f->group; i++) {
        low = w[i] < low ? w[i] : low;
        high = w[i] > high ? w[i] : high;
    }
    extremes(f, low, high, 1, &best_scale, &best_shift);
    grid g = represent(f, best_scale, best_shift, multiplier);
    float error = grid_error(f, w, h, g);
    int signs = f->zero_point == SYMMETRIC && f->scale_bits >= 16 ? 2 : 1;
    for (int t = 0; t < f->factors; t++) {
        for (int sign = 0; sign < signs; sign++) {
            extremes(f, low, high, f->factor[t], &scale, &shift);
            if (sign) scale = -scale;
            float e = least_squares(f, w, h, codes, &scale, &shift);
            if (e < best) {
                best = e;
                best_scale = scale;
                best_shift = shift;
            }
        }
    }
    g = better(f, w, h, multiplier, best_scale, best_shift, g, &error);
    for (int t = 0; t < f->refinements; t++) {
        scale = g.scale;
        shift = f->zero_point == REAL ? g.offset : g.zero;
        least_squares(f, w, h, codes, &scale, &shift);
        g = better(f, w, h, multiplier, scale, shift, g, &error);
    }
    return g;
}

// w: rows * cols. h: cols. multiplier: rows, or null. scale, zero, offset: rows * groups, filled.
int fit_groups(const format *f, const float *w, const float *h, int64_t rows, int64_t cols,
               const float *multiplier, float *scale, float *zero, float *offset, int threads) {
    int64_t groups = cols / f->group;
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        float *codes = malloc(sizeof(float) * (size_t)f->group);
        if (!codes) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            for (int64_t i = 0; codes && i < groups; i++) {
                grid g = fit_group(f, w + r * cols + i * f->group, h + i * f->group,
                                   multiplier ? multiplier[r] : 0, codes);
                scale[r * groups + i] = g.scale;
                zero[r * groups + i] = g.zero;
                offset[r * groups + i] = g.offset;
            }
        }
        free(codes);
    }
    return failed;
}

// Round columns [start, stop) of w in place, one after the other, and spread each error over the columns of the
// block that follow, by the rows of `upper` (cols * cols, the Cholesky factor of the inverse second moment).
// A group is fitted when its first column is reached. error: rows * (stop - start), what is left for the
// columns after the block; q: rows * cols codes.
int compensate_block(const format *f, float *w, const float *h, const float *upper, int64_t rows, int64_t cols,
                     int64_t start, int64_t stop, const float *multiplier, float *scale, float *zero,
                     float *offset, uint8_t *q, float *error, int threads) {
    int64_t groups = cols / f->group, width = stop - start;
    float top = (float)((1 << f->bits) - 1);
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        float *codes = malloc(sizeof(float) * (size_t)f->group);
        if (!codes) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            if (!codes) continue;
            float *row = w + r * cols;
            grid g = {0, 0, 0};
            float inverse = 0;
            for (int64_t j = start; j < stop; j++) {
                int64_t at = r * groups + j / f->group;
                if (j % f->group == 0) {
                    g = fit_group(f, row + j, h + j, multiplier ? multiplier[r] : 0, codes);
                    scale[at] = g.scale;
                    zero[at] = g.zero;
                    offset[at] = g.offset;
                }
                if (j % f->group == 0 || j == start) {
                    g = (grid){scale[at], zero[at], offset[at]};
                    inverse = reciprocal(g.scale);
                }
                float code = clamp(rintf((row[j] - g.offset) * inverse + g.zero), 0, top);
                float rounded = g.scale * (code - g.zero) + g.offset;
                float e = (row[j] - rounded) / upper[j * cols + j];
                q[r * cols + j] = (uint8_t)code;
                row[j] = rounded;
                error[r * width + (j - start)] = e;
                const float *u = upper + j * cols;
                for (int64_t k = j + 1; k < stop; k++) row[k] -= e * u[k];
            }
        }
        free(codes);
    }
    return failed;
}
