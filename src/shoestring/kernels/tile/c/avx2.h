/* The vector vocabulary of generated kernels on AVX2 with FMA and F16C: 8 lanes of 32 bits. */
#include <immintrin.h>

typedef __m256 vf;  /* floats */
typedef __m256i vi; /* integers, or 32 bits of each lane's bit string */
typedef __m256i vm; /* the sign bit of each lane */

#define vf_set1(x) _mm256_set1_ps(x)
#define vi_set1(x) _mm256_set1_epi32((int)(x))
#define vf_load(p) _mm256_loadu_ps(p)
#define vi_load(p) _mm256_loadu_si256((const __m256i *)(p))
#define vf_store(p, x) _mm256_storeu_ps(p, x)
#define vi_store(p, x) _mm256_storeu_si256((__m256i *)(p), x)
#define vf_first(x) _mm256_cvtss_f32(x)
#define vi_first(x) _mm_cvtsi128_si32(_mm256_castsi256_si128(x))

/* Lanes low .. high - 1, both of 0 .. 8. */
static inline vm vm_between(int low, int high) {
    __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i under = _mm256_cmpgt_epi32(_mm256_set1_epi32(low), lane);
    return _mm256_andnot_si256(under, _mm256_cmpgt_epi32(_mm256_set1_epi32(high), lane));
}
#define vf_load_masked(p, m) _mm256_maskload_ps(p, m)
#define vi_load_masked(p, m) _mm256_maskload_epi32((const int *)(p), m)
#define vf_store_masked(p, m, x) _mm256_maskstore_ps(p, m, x)
#define vi_store_masked(p, m, x) _mm256_maskstore_epi32((int *)(p), m, x)

#define vf_add(a, b) _mm256_add_ps(a, b)
#define vf_sub(a, b) _mm256_sub_ps(a, b)
#define vf_mul(a, b) _mm256_mul_ps(a, b)
#define vf_div(a, b) _mm256_div_ps(a, b)
#define vf_fma(a, b, c) _mm256_fmadd_ps(a, b, c)
#define vf_sqrt(a) _mm256_sqrt_ps(a)
#define vf_rsqrt(a) vf_div(vf_set1(1.0f), vf_sqrt(a))
#define vf_abs(a) vi_as_float(vi_and(vf_bits(a), vi_set1(0x7fffffff)))
#define vf_neg(a) vi_as_float(vi_xor(vf_bits(a), vi_set1(0x80000000)))
#define vi_add(a, b) _mm256_add_epi32(a, b)
#define vi_sub(a, b) _mm256_sub_epi32(a, b)
#define vi_mul(a, b) _mm256_mullo_epi32(a, b)
#define vi_max(a, b) _mm256_max_epi32(a, b)
#define vi_min(a, b) _mm256_min_epi32(a, b)
#define vi_abs(a) _mm256_abs_epi32(a)
#define vi_neg(a) vi_sub(_mm256_setzero_si256(), a)
#define vi_and(a, b) _mm256_and_si256(a, b)
#define vi_or(a, b) _mm256_or_si256(a, b)
#define vi_xor(a, b) _mm256_xor_si256(a, b)
#define vi_shl(a, n) _mm256_slli_epi32(a, n)
#define vi_shr(a, n) _mm256_srli_epi32(a, n)
#define vi_sar(a, n) _mm256_srai_epi32(a, n)
#define vf_bits(a) _mm256_castps_si256(a)
#define vi_as_float(a) _mm256_castsi256_ps(a)
#define vf_from_int(a) _mm256_cvtepi32_ps(a)

/* A NaN wins, as in NumPy. */
static inline vf vf_max(vf a, vf b) {
    return _mm256_blendv_ps(_mm256_max_ps(a, b), a, _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
}
static inline vf vf_min(vf a, vf b) {
    return _mm256_blendv_ps(_mm256_min_ps(a, b), a, _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
}

/* To nearest, ties to even; saturates, NaN gives 0. */
static inline vi vi_round(vf a) {
    __m256 numbers = _mm256_cmp_ps(a, a, _CMP_ORD_Q);
    __m256 large = _mm256_cmp_ps(a, vf_set1(2147483648.0f), _CMP_GE_OQ);
    __m256 whole = _mm256_and_ps(numbers, vi_as_float(_mm256_cvtps_epi32(a)));
    return vf_bits(_mm256_blendv_ps(whole, vi_as_float(vi_set1(0x7fffffff)), large));
}

/* a | set where x >= limit, as signed integers; a elsewhere. */
static inline vi vi_or_where(vi a, vi x, int limit, int set) {
    return vi_or(a, vi_and(_mm256_cmpgt_epi32(x, vi_set1(limit - 1)), vi_set1(set)));
}

/* f16 codes in the low half of each lane; what the upper half holds does not matter to the first. */
static inline vf vf_from_half(vi a) {
    __m256i low = vi_and(a, vi_set1(0xffff));
    return _mm256_cvtph_ps(_mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1)));
}
static inline vi vi_half(vf a) {
    return _mm256_cvtepu16_epi32(_mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

/* The bf16 code of each lane, ties to even. */
static inline vi vi_brain(vf a) {
    vi bits = vf_bits(a), odd = vi_and(vi_shr(bits, 16), vi_set1(1));
    vi rounded = vi_shr(vi_add(bits, vi_add(odd, vi_set1(0x7fff))), 16);
    vi quiet = vi_or(vi_shr(bits, 16), vi_set1(0x40));
    return _mm256_blendv_epi8(rounded, quiet, vf_bits(_mm256_cmp_ps(a, a, _CMP_UNORD_Q)));
}

/* Each lane gets the value of lane (own number xor k), k = 1, 2 or 4. */
#define vi_swap(a, k)                                                         \
    ((k) == 1   ? _mm256_shuffle_epi32(a, _MM_SHUFFLE(2, 3, 0, 1))            \
     : (k) == 2 ? _mm256_shuffle_epi32(a, _MM_SHUFFLE(1, 0, 3, 2))            \
                : _mm256_permute2x128_si256(a, a, 1))
#define vf_swap(a, k) vi_as_float(vi_swap(vf_bits(a), k))

/* Casts of narrow floats pass through subnormals, which must not be flushed. */
#define ENTER_KERNEL unsigned int old_mode = _mm_getcsr(); _mm_setcsr(old_mode & ~0x8040u)
#define LEAVE_KERNEL _mm_setcsr(old_mode)
