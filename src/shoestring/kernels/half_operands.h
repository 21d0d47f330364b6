/* Operands of matrix tiles in bfloat16: two numbers that a product adds up share a word. */

#ifndef SHOESTRING_HALF_OPERANDS_H
#define SHOESTRING_HALF_OPERANDS_H

#include "lanes.h"
#include "matrix_tiles.h"

#if HAS_MATRIX_TILES

/* Of 32 halves in order: in each word one of the first 16 in the low half, that of the last 16 in the high one. */
INLINE bit_lanes paired_halves(__m512i halves) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return (bit_lanes)_mm512_permutexvar_epi16(order, halves);
}

/* Rounded; in each word `first` in the low half, `second` in the high one. */
INLINE bit_lanes rounded_pairs(lanes first, lanes second) {
    return paired_halves((__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first));
}

/* Rounded, one after the other: a row of 32 numbers. */
INLINE bit_lanes rounded_row(lanes first, lanes second) {
    return (bit_lanes)(__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
}

/* Row i of words becomes column i. */
INLINE void transpose_words(bit_lanes rows[LANES]) {
    __m512i t[LANES];
    for (int i = 0; i < LANES; i += 2) {
        t[i] = _mm512_unpacklo_epi32((__m512i)rows[i], (__m512i)rows[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32((__m512i)rows[i], (__m512i)rows[i + 1]);
    }
    __m512i u[LANES]; /* lane group g of u[4i + j]: words 4g + j of rows 4i to 4i + 3 */
    for (int i = 0; i < LANES; i += 4) {
        u[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        u[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        u[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        u[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int j = 0; j < 4; j++) {
        __m512i low = _mm512_shuffle_i32x4(u[j], u[4 + j], 0x88), high = _mm512_shuffle_i32x4(u[8 + j], u[12 + j], 0x88);
        rows[j] = (bit_lanes)_mm512_shuffle_i32x4(low, high, 0x88);
        rows[8 + j] = (bit_lanes)_mm512_shuffle_i32x4(low, high, 0xDD);
        low = _mm512_shuffle_i32x4(u[j], u[4 + j], 0xDD), high = _mm512_shuffle_i32x4(u[8 + j], u[12 + j], 0xDD);
        rows[4 + j] = (bit_lanes)_mm512_shuffle_i32x4(low, high, 0x88);
        rows[12 + j] = (bit_lanes)_mm512_shuffle_i32x4(low, high, 0xDD);
    }
}

#endif

#endif
