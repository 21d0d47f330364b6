/* Blocks of 32 stored weights become floats, dense or through a bitmap, on whatever vectors there are.

   A block lies in PARTS vectors of LANES floats. On processors with VBMI2 the parts of a bfloat16 block are its
   even and its odd entries (a shift and a mask instead of two conversions), elsewhere and for other values its
   entries in order; `part_of` and `lane_of` say where entry i of a block is, so that x can be laid out alike. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define BLOCK 32
#define INLINE static inline __attribute__((always_inline))

enum value_kind { BFLOAT16, FLOAT16, INT8 };

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define LANES 16
typedef __m512 vec;
#if defined(__AVX512VBMI2__)
#define EXPANDS_NARROW 1
#endif
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define LANES 8
typedef __m256 vec;
#else
#define LANES 4
typedef float vec __attribute__((vector_size(16)));
#endif
#define PARTS (BLOCK / LANES)

typedef struct { vec part[PARTS]; } block;

INLINE int itemsize(int kind) { return kind == INT8 ? 1 : 2; }

INLINE int splits_even_odd(int kind) {
#ifdef EXPANDS_NARROW
    return kind == BFLOAT16;
#else
    (void)kind;
    return 0;
#endif
}

/* Where entry i of a block stands among the 32 floats of its parts. */
INLINE int place_in_block(int i, int kind) { return splits_even_odd(kind) ? (i & 1) * LANES + (i >> 1) : i; }

INLINE float bfloat16_to_float(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

INLINE uint16_t float_to_bfloat16(float value) { /* nearest, ties to even; NaN stays NaN */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if ((bits & 0x7FFFFFFF) > 0x7F800000) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

INLINE float float16_to_float(uint16_t bits) {
    uint32_t sign = (uint32_t)(bits & 0x8000) << 16, magnitude = bits & 0x7FFF, wide;
    float value;
    if (magnitude < 0x400) { /* subnormal: a whole number of 2^-24 */
        value = (float)magnitude * 0x1p-24f;
        memcpy(&wide, &value, 4);
    } else {
        wide = (magnitude << 13) + (magnitude < 0x7C00 ? 0x38000000u : 0x70000000u);
    }
    wide |= sign;
    memcpy(&value, &wide, 4);
    return value;
}

INLINE float value_at(const void *values, int64_t i, int kind) {
    if (kind == INT8) return (float)((const int8_t *)values)[i];
    uint16_t bits = ((const uint16_t *)values)[i];
    return kind == BFLOAT16 ? bfloat16_to_float(bits) : float16_to_float(bits);
}

/* ---- the vector vocabulary ---- */

#if LANES == 16
INLINE vec vec_zero(void) { return _mm512_setzero_ps(); }
INLINE vec vec_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void vec_store(float *p, vec v) { _mm512_storeu_ps(p, v); }
INLINE vec vec_all(float v) { return _mm512_set1_ps(v); }
INLINE vec vec_fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
#elif LANES == 8
INLINE vec vec_zero(void) { return _mm256_setzero_ps(); }
INLINE vec vec_load(const float *p) { return _mm256_loadu_ps(p); }
INLINE void vec_store(float *p, vec v) { _mm256_storeu_ps(p, v); }
INLINE vec vec_all(float v) { return _mm256_set1_ps(v); }
INLINE vec vec_fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
#else
INLINE vec vec_zero(void) { return (vec){0}; }
INLINE vec vec_load(const float *p) { vec v; memcpy(&v, p, sizeof v); return v; }
INLINE void vec_store(float *p, vec v) { memcpy(p, &v, sizeof v); }
INLINE vec vec_all(float v) { return (vec){v, v, v, v}; }
INLINE vec vec_fma(vec a, vec b, vec c) { return a * b + c; }
#endif

INLINE float vec_sum(vec v) {
    float lanes[LANES];
    vec_store(lanes, v);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
    return lanes[0];
}

/* LANES consecutive values as floats. Reads LANES values, stored or padding. */
INLINE vec convert_lanes(const void *values, int kind) {
#if LANES == 16
    if (kind == INT8) return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(values)));
    __m256i bits = _mm256_loadu_si256(values);
    if (kind == FLOAT16) return _mm512_cvtph_ps(bits);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
#elif LANES == 8
    if (kind == INT8) return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(values)));
    __m128i bits = _mm_loadu_si128(values);
    if (kind == FLOAT16) return _mm256_cvtph_ps(bits);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
#else
    return (vec){value_at(values, 0, kind), value_at(values, 1, kind), value_at(values, 2, kind),
                 value_at(values, 3, kind)};
#endif
}

/* LANES entries of which those under `mask` are the next values, the others 0. */
#if LANES == 8
static uint64_t places_of_mask[256]; /* byte i: which of the packed values entry i takes */
__attribute__((constructor)) static void fill_places_of_mask(void) {
    for (int mask = 0; mask < 256; mask++)
        for (int i = 0, taken = 0; i < 8; i++)
            if (mask >> i & 1) places_of_mask[mask] |= (uint64_t)taken++ << 8 * i;
}
#endif

INLINE vec expand_lanes(const void *values, uint32_t mask, int kind) {
#if LANES == 16
    return _mm512_maskz_expand_ps((__mmask16)mask, convert_lanes(values, kind));
#elif LANES == 8
    __m256i places = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)places_of_mask[mask]));
    __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    __m256i kept = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32((int)mask), bits), bits);
    vec packed = _mm256_permutevar8x32_ps(convert_lanes(values, kind), places);
    return _mm256_and_ps(packed, _mm256_castsi256_ps(kept));
#else
    float lanes[LANES];
    int64_t taken = 0;
    for (int i = 0; i < LANES; i++) lanes[i] = mask >> i & 1 ? value_at(values, taken++, kind) : 0.0f;
    return vec_load(lanes);
#endif
}

#ifdef EXPANDS_NARROW
INLINE block floats_of_16_bits(__m512i bits, int kind) {
    if (kind == BFLOAT16)
        return (block){{_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16)),
                        _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32((int)0xFFFF0000)))}};
    return (block){{_mm512_cvtph_ps(_mm512_castsi512_si256(bits)),
                    _mm512_cvtph_ps(_mm512_extracti64x4_epi64(bits, 1))}};
}

INLINE __m512i expand_16_bits(const void *values, uint32_t mask) {
    __m512i packed = _mm512_loadu_si512(values);
    __asm__("" : "+v"(packed)); /* stays a load of its own: expanding from memory is microcoded on some processors */
    return _mm512_maskz_expand_epi16(mask, packed);
}

INLINE __m256i expand_8_bits(const void *values, uint32_t mask) {
    __m256i packed = _mm256_loadu_si256(values);
    __asm__("" : "+v"(packed));
    return _mm256_maskz_expand_epi8(mask, packed);
}
#endif

/* 32 consecutive entries of a dense row. */
INLINE block dense_block(const void *values, int kind) {
#ifdef EXPANDS_NARROW
    if (kind == BFLOAT16) return floats_of_16_bits(_mm512_loadu_si512(values), kind);
#endif
    block out;
    for (int p = 0; p < PARTS; p++)
        out.part[p] = convert_lanes((const char *)values + p * LANES * itemsize(kind), kind);
    return out;
}

/* 32 entries of which those under `mask` are the next values of the stream. */
INLINE block expanded_block(const void *values, uint32_t mask, int kind) {
#ifdef EXPANDS_NARROW
    if (kind != INT8) return floats_of_16_bits(expand_16_bits(values, mask), kind);
    __m256i octets = expand_8_bits(values, mask);
    return (block){{_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(octets))),
                    _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(octets, 1)))}};
#else
    block out;
    const char *next = values;
    for (int p = 0; p < PARTS; p++) {
        uint32_t own = mask >> p * LANES & (uint32_t)((1ull << LANES) - 1);
        out.part[p] = expand_lanes(next, own, kind);
        next += __builtin_popcount(own) * itemsize(kind);
    }
    return out;
#endif
}

/* The same 32 entries as they are stored, written to a dense row. */
INLINE void expand_to(void *row, const void *values, uint32_t mask, int kind) {
#ifdef EXPANDS_NARROW
    if (kind == INT8)
        _mm256_storeu_si256(row, expand_8_bits(values, mask));
    else
        _mm512_storeu_si512(row, expand_16_bits(values, mask));
#else
    int64_t taken = 0;
    memset(row, 0, (size_t)(BLOCK * itemsize(kind)));
    for (uint32_t rest = mask; rest; rest &= rest - 1, taken++) {
        int i = __builtin_ctz(rest);
        if (kind == INT8) ((int8_t *)row)[i] = ((const int8_t *)values)[taken];
        else ((uint16_t *)row)[i] = ((const uint16_t *)values)[taken];
    }
#endif
}
