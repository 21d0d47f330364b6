/* y = x Wᵀ with W in compressed sparse rows: the baseline that fetches an entry of x for every stored weight.

   One token gathers from x; several lie side by side for each input, so that a weight multiplies them all.

   weights: 0 columns (uint16, or int32 where sizes[2]); 1 values; 2 row_starts. sizes: 0 value kind; 1 round x to
   bfloat16; 2 wide columns. */

#define SIDE 8
#define MOST_SIDES 8
typedef float side __attribute__((vector_size(4 * SIDE), aligned(4)));

INLINE int64_t side_tokens(int64_t tokens) { return tokens == 1 ? 1 : (tokens + SIDE - 1) / SIDE * SIDE; }

int64_t csr_scratch_bytes(const linear_kernel *self, int64_t tokens) {
    return 4 * self->inputs * side_tokens(tokens) + 64;
}

INLINE int64_t column_at(const linear_kernel *self, int64_t i) {
    return self->sizes[2] ? ((const int32_t *)self->weights[0])[i] : ((const uint16_t *)self->weights[0])[i];
}

static float gather_row(const linear_kernel *self, const float *x, int64_t first, int64_t last) {
    int kind = (int)self->sizes[0];
    const uint16_t *values = self->weights[1];
    float sum = 0;
    int64_t i = first;
#if LANES >= 8
    vec total[2] = {vec_zero(), vec_zero()};
    for (; i + 2 * LANES <= last; i += 2 * LANES)
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            int64_t at = i + h * LANES;
#if LANES == 16
            const uint16_t *narrow = (const uint16_t *)self->weights[0] + at;
            const int32_t *wide = (const int32_t *)self->weights[0] + at;
            __m512i place = self->sizes[2] ? _mm512_loadu_si512(wide)
                                           : _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)narrow));
            total[h] = vec_fma(convert_lanes(values + at, kind), _mm512_i32gather_ps(place, x, 4), total[h]);
#else
            const uint16_t *narrow = (const uint16_t *)self->weights[0] + at;
            const int32_t *wide = (const int32_t *)self->weights[0] + at;
            __m256i place = self->sizes[2] ? _mm256_loadu_si256((const void *)wide)
                                           : _mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)narrow));
            total[h] = vec_fma(convert_lanes(values + at, kind), _mm256_i32gather_ps(x, place, 4), total[h]);
#endif
        }
    float lanes[LANES];
    vec_store(lanes, total[0]);
    sum = vec_sum(total[1]);
    for (int l = 0; l < LANES; l++) sum += lanes[l];
#endif
    for (; i < last; i++) sum += value_at(values, i, kind) * x[column_at(self, i)];
    return sum;
}

INLINE void multiply_sides(int sides, const linear_kernel *self, const float *x, int64_t stride, int64_t first,
                           int64_t last, float *sums) {
    enum { CHAINS = 4 };
    int chains = sides == 1 ? CHAINS : sides == 2 ? 2 : 1, kind = (int)self->sizes[0];
    side total[CHAINS][MOST_SIDES];
    for (int c = 0; c < chains; c++)
        for (int s = 0; s < sides; s++) total[c][s] = (side){0};
    int64_t i = first;
    for (; i + chains <= last; i += chains)
#pragma GCC unroll 4
        for (int c = 0; c < chains; c++) {
            float w = value_at(self->weights[1], i + c, kind);
            const float *entry = x + column_at(self, i + c) * stride;
#pragma GCC unroll 8
            for (int s = 0; s < sides; s++) total[c][s] += w * *(const side *)(entry + s * SIDE);
        }
    for (; i < last; i++) {
        float w = value_at(self->weights[1], i, kind);
        const float *entry = x + column_at(self, i) * stride;
        for (int s = 0; s < sides; s++) total[0][s] += w * *(const side *)(entry + s * SIDE);
    }
    for (int s = 0; s < sides; s++) {
        side sum = total[0][s];
        for (int c = 1; c < chains; c++) sum += total[c][s];
        memcpy(sums + s * SIDE, &sum, sizeof sum);
    }
}

static void csr_row(const linear_kernel *self, const float *x, float *y, int64_t tokens, int64_t row) {
    const int32_t *starts = self->weights[2];
    int64_t first = starts[row], last = starts[row + 1], stride = side_tokens(tokens);
    if (tokens == 1) {
        y[row] = gather_row(self, x, first, last);
        return;
    }
    float sums[SIDE * MOST_SIDES];
    for (int64_t t = 0; t < stride; t += SIDE * MOST_SIDES) {
        int64_t sides = (stride - t) / SIDE < MOST_SIDES ? (stride - t) / SIDE : MOST_SIDES;
        switch (sides) {
        case 1: multiply_sides(1, self, x + t, stride, first, last, sums); break;
        case 2: multiply_sides(2, self, x + t, stride, first, last, sums); break;
        case 4: multiply_sides(4, self, x + t, stride, first, last, sums); break;
        case 8: multiply_sides(8, self, x + t, stride, first, last, sums); break;
        default:
            for (int64_t s = 0; s < sides; s++)
                multiply_sides(1, self, x + t + s * SIDE, stride, first, last, sums + s * SIDE);
        }
        for (int64_t n = 0; n < sides * SIDE && t + n < tokens; n++) y[(t + n) * self->outputs + row] = sums[n];
    }
}

static int64_t csr_boundary(const linear_kernel *self, int64_t thread, int64_t threads) {
    const int32_t *starts = self->weights[2];
    if (thread >= threads) return self->outputs;
    double wanted = (double)starts[self->outputs] * (double)thread / (double)threads;
    int64_t low = 0, high = self->outputs;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if ((double)starts[middle] < wanted) low = middle + 1;
        else high = middle;
    }
    return low;
}

void csr_run(const linear_kernel *self, const float *x, float *y, int64_t tokens, int thread,
                    int n_threads, void *scratch) {
    int64_t first = csr_boundary(self, thread, n_threads), last = csr_boundary(self, thread + 1, n_threads);
    if (first >= last) return;
    int64_t stride = side_tokens(tokens);
    float *beside = scratch;
    for (int64_t i = 0; i < self->inputs; i++)
        for (int64_t t = 0; t < stride; t++) {
            float entry = t < tokens ? x[t * self->inputs + i] : 0.0f;
            beside[i * stride + t] = self->sizes[1] ? bfloat16_to_float(float_to_bfloat16(entry)) : entry;
        }
    for (int64_t row = first; row < last; row++) csr_row(self, beside, y, tokens, row);
    add_bias(self, y, tokens, first, last);
}
