/* Sixteen floats that travel together. Written with the vector types of the compiler, so that every processor
   gets the same sums in the same order, in whatever registers it has. */

#ifndef SHOESTRING_LANES_H
#define SHOESTRING_LANES_H

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif

#define LANES 16
#define INLINE static inline __attribute__((always_inline))
typedef float lanes __attribute__((vector_size(64)));
typedef int32_t int_lanes __attribute__((vector_size(64)));
typedef uint32_t bit_lanes __attribute__((vector_size(64)));
typedef uint16_t half_lanes __attribute__((vector_size(32)));

enum storage { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

INLINE int64_t storage_bytes(int kind) { return kind == FLOAT32 ? 4 : 2; }

INLINE lanes all(float value) { return value - (lanes){0}; }

/* Lane by lane: where a comparison held (all bits set) the first, else the second. */
INLINE lanes choose(int_lanes held, lanes first, lanes second) {
    return (lanes)((held & (int_lanes)first) | (~held & (int_lanes)second));
}

INLINE lanes load_lanes(const float *from) {
    lanes value;
    memcpy(&value, from, sizeof value);
    return value;
}

INLINE void store_lanes(float *to, lanes value) { memcpy(to, &value, sizeof value); }

INLINE float half_to_float(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7FFF;
    float value;
    if (rest < 0x0400) {
        value = (float)rest * 0x1p-24f;
    } else {
        uint32_t bits = (rest << 13) + (rest >= 0x7C00 ? 0x70000000u : 0x38000000u);
        memcpy(&value, &bits, 4);
    }
    return sign ? -value : value;
}

INLINE lanes widen_halves(half_lanes halves) {
    lanes value;
#if defined(__AVX512F__)
    __m256i packed;
    memcpy(&packed, &halves, sizeof packed);
    __m512 wide = _mm512_cvtph_ps(packed);
    memcpy(&value, &wide, sizeof value);
#elif defined(__F16C__)
    __m128i packed[2];
    memcpy(packed, &halves, sizeof packed);
    __m256 wide[2] = {_mm256_cvtph_ps(packed[0]), _mm256_cvtph_ps(packed[1])};
    memcpy(&value, wide, sizeof value);
#else
    for (int i = 0; i < LANES; i++) value[i] = half_to_float(halves[i]);
#endif
    return value;
}

/* Sixteen stored numbers from `index` on; `kind` is a constant wherever this is inlined. */
INLINE lanes load_stored(const void *from, int64_t index, int kind) {
    if (kind == FLOAT32) return load_lanes((const float *)from + index);
    half_lanes halves;
    memcpy(&halves, (const uint16_t *)from + index, sizeof halves);
    if (kind == FLOAT16) return widen_halves(halves);
    bit_lanes bits = __builtin_convertvector(halves, bit_lanes) << 16;
    return (lanes)bits;
}

/* The first `count` of them, zeros after; nothing beyond is read. */
INLINE lanes load_some(const void *from, int64_t index, int64_t count, int kind) {
    uint32_t room[LANES] = {0};
    int64_t bytes = storage_bytes(kind);
    memcpy(room, (const char *)from + index * bytes, (size_t)(count * bytes));
    return load_stored(room, 0, kind);
}

INLINE lanes larger(lanes a, lanes b) { return choose(a > b, a, b); }

#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)

INLINE float sum_lanes(lanes v) {
    v += SHUFFLE(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    v += SHUFFLE(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    v += SHUFFLE(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    v += SHUFFLE(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    return v[0];
}

INLINE float largest_lane(lanes v) {
    v = larger(v, SHUFFLE(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
    v = larger(v, SHUFFLE(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
    v = larger(v, SHUFFLE(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
    v = larger(v, SHUFFLE(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
    return v[0];
}

/* Lane i: the sum of v[i]. Neighbours are added while they are interleaved, so that a sum costs three
   instructions instead of eight. The vectors are overwritten. */
INLINE lanes sum_each(lanes v[LANES]) {
    for (int i = 0; i < 8; i++)
        v[i] = SHUFFLE(v[i], v[i + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
               SHUFFLE(v[i], v[i + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    for (int i = 0; i < 4; i++)
        v[i] = SHUFFLE(v[i], v[i + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
               SHUFFLE(v[i], v[i + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    for (int i = 0; i < 2; i++)
        v[i] = SHUFFLE(v[i], v[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
               SHUFFLE(v[i], v[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    return SHUFFLE(v[0], v[1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
           SHUFFLE(v[0], v[1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
}

/* Round to nearest even, as the stored type does it. */
INLINE void store_number(void *to, int64_t index, float value, int kind) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (kind == FLOAT32) {
        ((float *)to)[index] = value;
    } else if (kind == BFLOAT16) {
        ((uint16_t *)to)[index] = value != value ? 0x7FC0 : (uint16_t)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
    } else {
        uint16_t sign = (uint16_t)((bits >> 16) & 0x8000);
        uint32_t rest = bits & 0x7FFFFFFF;
        uint16_t half;
        if (rest > 0x7F800000) half = 0x7E00;
        else if (rest >= 0x477FF000) half = 0x7C00;
        else if (rest < 0x38800000) half = (uint16_t)lrintf(fabsf(value) * 0x1p24f);
        else half = (uint16_t)((rest - 0x38000000 + 0x0FFF + ((rest >> 13) & 1)) >> 13);
        ((uint16_t *)to)[index] = sign | half;
    }
}

INLINE half_lanes narrow_lanes(lanes value, int kind) {
    half_lanes halves;
    if (kind == BFLOAT16) {
        bit_lanes bits = (bit_lanes)value, even = bits + 0x7FFF + ((bits >> 16) & 1);
        int_lanes is_nan = value != value;
        bits = ((bit_lanes)is_nan & 0x7FC00000) | (~(bit_lanes)is_nan & even);
        return __builtin_convertvector(bits >> 16, half_lanes);
    }
#if defined(__AVX512F__)
    __m512 wide;
    memcpy(&wide, &value, sizeof wide);
    __m256i packed = _mm512_cvtps_ph(wide, _MM_FROUND_TO_NEAREST_INT);
    memcpy(&halves, &packed, sizeof halves);
#elif defined(__F16C__)
    __m256 wide[2];
    memcpy(wide, &value, sizeof wide);
    __m128i packed[2] = {_mm256_cvtps_ph(wide[0], _MM_FROUND_TO_NEAREST_INT),
                         _mm256_cvtps_ph(wide[1], _MM_FROUND_TO_NEAREST_INT)};
    memcpy(&halves, packed, sizeof halves);
#else
    uint16_t each[LANES];
    for (int i = 0; i < LANES; i++) store_number(each, i, value[i], FLOAT16);
    memcpy(&halves, each, sizeof halves);
#endif
    return halves;
}

/* `count` numbers, each rounded as `store_number` does it. */
INLINE void store_numbers(void *to, const float *from, int64_t count, int kind) {
    int64_t i = 0;
    if (kind == FLOAT32) {
        memcpy(to, from, (size_t)count * 4);
        return;
    }
    for (; i + LANES <= count; i += LANES) {
        half_lanes halves = narrow_lanes(load_lanes(from + i), kind);
        memcpy((uint16_t *)to + i, &halves, sizeof halves);
    }
    for (; i < count; i++) store_number(to, i, from[i], kind);
}

/* exp(x) to about one unit in the last place: 2^n times a polynomial on [−ln 2 / 2, ln 2 / 2].
   Coefficients: Taylor's, whose remainder there is below 2^-24 at degree 7. */
INLINE lanes exp_lanes(lanes x) {
    lanes least = all(-87.0f), most = all(88.0f);
    x = choose(x < least, least, x);
    x = choose(x > most, most, x);
    const float rounder = 12582912.0f;
    lanes n = (x * 1.44269504f + rounder) - rounder;
    lanes r = x - n * 0.693145752f;
    r = r - n * 1.42860677e-6f;
    lanes p = all(1.0f / 5040);
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    int_lanes exponent = (__builtin_convertvector(n, int_lanes) + 127) << 23;
    return p * (lanes)exponent;
}

#endif
