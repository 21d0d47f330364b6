/* The vector vocabulary of generated kernels on AVX-512: 16 lanes of 32 bits. */
#include <immintrin.h>

typedef __m512 vf;    /* floats */
typedef __m512i vi;   /* integers, or 32 bits of each lane's bit string */
typedef __mmask16 vm; /* a bit for each lane */

#define vf_set1(x) _mm512_set1_ps(x)
#define vi_set1(x) _mm512_set1_epi32((int)(x))
#define vf_load(p) _mm512_loadu_ps(p)
#define vi_load(p) _mm512_loadu_si512(p)
#define vf_store(p, x) _mm512_storeu_ps(p, x)
#define vi_store(p, x) _mm512_storeu_si512(p, x)
#define vf_first(x) _mm512_cvtss_f32(x)
#define vi_first(x) _mm_cvtsi128_si32(_mm512_castsi512_si128(x))

/* Lanes low .. high - 1, both of 0 .. 16. */
static inline vm vm_between(int low, int high) { return (vm)(((1u << high) - 1u) & ~((1u << low) - 1u)); }
#define vf_load_masked(p, m) _mm512_maskz_loadu_ps(m, p)
#define vi_load_masked(p, m) _mm512_maskz_loadu_epi32(m, p)
#define vf_store_masked(p, m, x) _mm512_mask_storeu_ps(p, m, x)
#define vi_store_masked(p, m, x) _mm512_mask_storeu_epi32(p, m, x)

#define vf_add(a, b) _mm512_add_ps(a, b)
#define vf_sub(a, b) _mm512_sub_ps(a, b)
#define vf_mul(a, b) _mm512_mul_ps(a, b)
#define vf_div(a, b) _mm512_div_ps(a, b)
#define vf_fma(a, b, c) _mm512_fmadd_ps(a, b, c)
#define vf_sqrt(a) _mm512_sqrt_ps(a)
#define vf_rsqrt(a) vf_div(vf_set1(1.0f), vf_sqrt(a))
#define vf_abs(a) _mm512_abs_ps(a)
#define vf_neg(a) vi_as_float(vi_xor(vf_bits(a), vi_set1(0x80000000)))
#define vi_add(a, b) _mm512_add_epi32(a, b)
#define vi_sub(a, b) _mm512_sub_epi32(a, b)
#define vi_mul(a, b) _mm512_mullo_epi32(a, b)
#define vi_max(a, b) _mm512_max_epi32(a, b)
#define vi_min(a, b) _mm512_min_epi32(a, b)
#define vi_abs(a) _mm512_abs_epi32(a)
#define vi_neg(a) vi_sub(_mm512_setzero_si512(), a)
#define vi_and(a, b) _mm512_and_si512(a, b)
#define vi_or(a, b) _mm512_or_si512(a, b)
#define vi_xor(a, b) _mm512_xor_si512(a, b)
#define vi_shl(a, n) _mm512_slli_epi32(a, n)
#define vi_shr(a, n) _mm512_srli_epi32(a, n)
#define vi_sar(a, n) _mm512_srai_epi32(a, n)

/* Of 16-bit halves: each shifted by itself; those below from a, those above from b. */
#define vi_shr_halves(a, n) _mm512_srli_epi16(a, n)
#define vi_low_high(a, b) _mm512_mask_blend_epi16(0xaaaaaaaau, a, b)

/* a & keep ^ flip */
#define vi_and_xor(a, keep, flip) _mm512_ternarylogic_epi32(a, vi_set1(keep), vi_set1(flip), 0x6a)

/* sum + the products of the four bytes of each lane, those of a without a sign, those of b with one */
#define vi_dot_bytes(sum, a, b) _mm512_dpbusd_epi32(sum, a, b)

#define vf_bits(a) _mm512_castps_si512(a)
#define vi_as_float(a) _mm512_castsi512_ps(a)
#define vf_from_int(a) _mm512_cvtepi32_ps(a)

/* A NaN wins, as in NumPy. */
static inline vf vf_max(vf a, vf b) {
    return _mm512_mask_mov_ps(_mm512_max_ps(a, b), _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), a);
}
static inline vf vf_min(vf a, vf b) {
    return _mm512_mask_mov_ps(_mm512_min_ps(a, b), _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), a);
}

/* To nearest, ties to even; saturates, NaN gives 0. */
static inline vi vi_round(vf a) {
    __mmask16 numbers = _mm512_cmp_ps_mask(a, a, _CMP_ORD_Q);
    __mmask16 large = _mm512_cmp_ps_mask(a, vf_set1(2147483648.0f), _CMP_GE_OQ);
    return _mm512_mask_mov_epi32(_mm512_maskz_cvtps_epi32(numbers, a), large, vi_set1(0x7fffffff));
}

/* a | set where x >= limit, as signed integers; a elsewhere. */
static inline vi vi_or_where(vi a, vi x, int limit, int set) {
    return _mm512_mask_or_epi32(a, _mm512_cmpge_epi32_mask(x, vi_set1(limit)), a, vi_set1(set));
}

/* f16 codes in the low half of each lane; what the upper half holds does not matter to the first. */
static inline vf vf_from_half(vi a) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(a)); }
static inline vi vi_half(vf a) {
    return _mm512_cvtepu16_epi32(_mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

/* The bf16 code of each lane, ties to even. */
static inline vi vi_brain(vf a) {
    vi bits = vf_bits(a), odd = vi_and(vi_shr(bits, 16), vi_set1(1));
    vi rounded = vi_shr(vi_add(bits, vi_add(odd, vi_set1(0x7fff))), 16);
    vi quiet = vi_or(vi_shr(bits, 16), vi_set1(0x40));
    return _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), quiet);
}

/* Each lane gets the value of lane (own number xor k), k = 1, 2, 4 or 8. */
#define vi_swap(a, k)                                                                   \
    ((k) == 1   ? _mm512_shuffle_epi32(a, _MM_PERM_CDAB)                                \
     : (k) == 2 ? _mm512_shuffle_epi32(a, _MM_PERM_BADC)                                \
     : (k) == 4 ? _mm512_shuffle_i32x4(a, a, _MM_SHUFFLE(2, 3, 0, 1))                   \
                : _mm512_shuffle_i32x4(a, a, _MM_SHUFFLE(1, 0, 3, 2)))
#define vf_swap(a, k) vi_as_float(vi_swap(vf_bits(a), k))

/* Casts of narrow floats pass through subnormals, which must not be flushed. */
#define ENTER_KERNEL unsigned int old_mode = _mm_getcsr(); _mm_setcsr(old_mode & ~0x8040u)
#define LEAVE_KERNEL _mm_setcsr(old_mode)
