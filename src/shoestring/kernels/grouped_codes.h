/* Codes of 1 to 8 bits in the order in which a decode step multiplies them.

   A tile is 16 outputs; a quad is 4 inputs of each of them, 64 bytes when every code has one of its own: what
   a dot product of bytes takes at once. Four quads, a quartet, are stored together. A width is a sum of powers
   of two, and each of these is a plane of its own:
     8 bits: 4 vectors of 64 bytes, one for each quad;
     4 bits: 2 vectors, quads 0 and 2 in the low halves of their bytes, 1 and 3 in the high ones;
     2 bits: 1 vector, quad j in bits 2j and 2j + 1;
     1 bit:  32 bytes; byte b has quad j of byte b of the vector in bit j, and of byte b + 32 in bit 4 + j.
   The plane with the most bits has the highest bits of a code: 7 bits are 4 + 2 + 1, from the top. */

#ifndef SHOESTRING_GROUPED_CODES_H
#define SHOESTRING_GROUPED_CODES_H

#include "lanes.h"

typedef uint8_t bytes __attribute__((vector_size(64)));
typedef uint64_t words __attribute__((vector_size(64)));

enum shift { SYMMETRIC = 0, INTEGER = 1, REAL = 2 }; /* what there is beside a scale */
enum scale { HALVES = 0, BYTES = 1, FLOATS = 2 };    /* how it is stored, and an offset with it */

enum { QUADS = 4, QUARTET = 16, PLANE_BYTES = 32 /* of a quartet, per bit */ };

typedef struct {
    const uint8_t *wide, *pair, *single; /* planes of 8 or 4 bits, of 2 and of 1, where the width has them */
} code_planes;

INLINE words load_words(const uint8_t *from) {
    words value;
    memcpy(&value, from, sizeof value);
    return value;
}

/* 32 bytes in either half: by one instruction where there is one, because two stores are slow to load as one. */
INLINE words load_twice(const uint8_t *from) {
#if defined(__AVX512F__)
    return (words)_mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)from));
#else
    words value;
    memcpy(&value, from, 32);
    memcpy((char *)&value + 32, from, 32);
    return value;
#endif
}

INLINE words every_byte(uint8_t value) {
    bytes same = value - (bytes){0};
    return (words)same;
}

/* Bits that belong at `low` and up, `count` of them, from `shift` in every byte: moved and masked. */
INLINE words moved(words value, int shift, int low, int count) {
    words there = shift >= low ? value >> (shift - low) : value << (low - shift);
    return there & every_byte((uint8_t)(((1 << count) - 1) << low));
}

/* The four quads of one quartet, a code per byte; `bits` is a constant. */
INLINE void unpack_quartet(const code_planes *planes, int64_t quartet, int bits, words quads[QUADS]) {
    if (bits == 8) {
        for (int j = 0; j < QUADS; j++) quads[j] = load_words(planes->wide + quartet * 8 * PLANE_BYTES + 64 * j);
        return;
    }
    for (int j = 0; j < QUADS; j++) quads[j] = (words){0};
    if (bits & 4)
        for (int half = 0; half < 2; half++) {
            words v = load_words(planes->wide + quartet * 4 * PLANE_BYTES + 64 * half);
            quads[2 * half] = moved(v, 0, bits & 3, 4);
            quads[2 * half + 1] = moved(v, 4, bits & 3, 4);
        }
    if (bits & 2) {
        words v = load_words(planes->pair + quartet * 2 * PLANE_BYTES);
        for (int j = 0; j < QUADS; j++) quads[j] |= moved(v, 2 * j, bits & 1, 2);
    }
    if (bits & 1) {
        words v = load_twice(planes->single + quartet * PLANE_BYTES) >> (words){0, 0, 0, 0, 4, 4, 4, 4};
        for (int j = 0; j < QUADS; j++) quads[j] |= moved(v, j, 0, 1);
    }
}

/* Ask for what comes `AHEAD` bytes later: memory is far away, and hardware stops at the end of a page. */
enum { AHEAD = 1536 };

INLINE void prefetch_quartet(const code_planes *planes, int64_t quartet, int bits) {
    if (bits >= 4) {
        const uint8_t *wide = planes->wide + quartet * (bits == 8 ? 8 : 4) * PLANE_BYTES + AHEAD;
        for (int line = 0; line < (bits == 8 ? 4 : 2); line++) __builtin_prefetch(wide + 64 * line);
    }
    if (bits != 8 && (bits & 2)) __builtin_prefetch(planes->pair + quartet * 2 * PLANE_BYTES + AHEAD);
    if (bits != 8 && (bits & 1)) __builtin_prefetch(planes->single + quartet * PLANE_BYTES + AHEAD / 2);
}

#endif
