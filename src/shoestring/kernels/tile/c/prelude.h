/* What every generated kernel may use, whatever its vectors are. Register tensors of less than 32 bits are bit
   strings: the words of one lane lie `lanes` words apart. */
#include <math.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int clamped(int64_t x, int limit) { return x < 0 ? 0 : x > limit ? limit : (int)x; }

/* A NaN wins, as in NumPy. */
static inline float greater(float a, float b) { return a != a || a > b ? a : b; }
static inline float lesser(float a, float b) { return a != a || a < b ? a : b; }

/* Integers wrap around; a remainder has the sign of the dividend, and is 0 where the divisor is. */
static inline int32_t wrapped_add(int32_t a, int32_t b) { return (int32_t)((uint32_t)a + (uint32_t)b); }
static inline int32_t wrapped_sub(int32_t a, int32_t b) { return (int32_t)((uint32_t)a - (uint32_t)b); }
static inline int32_t wrapped_mul(int32_t a, int32_t b) { return (int32_t)((uint32_t)a * (uint32_t)b); }
static inline int32_t remainder_of(int32_t a, int32_t b) { return b == 0 || b == -1 ? 0 : a % b; }
static inline int32_t magnitude_of(int32_t a) { return a < 0 ? wrapped_sub(0, a) : a; }
static inline int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }
static inline int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }

static inline uint32_t float_bits(float x) { uint32_t u; memcpy(&u, &x, 4); return u; }
static inline float bits_float(uint32_t u) { float x; memcpy(&x, &u, 4); return x; }

static inline int64_t swizzled(int64_t offset, int64_t mask, int shift) { return offset ^ (offset & mask) >> shift; }

/* Code `n` of a compact stream: at most two bytes for narrow types. */
static inline uint32_t read_code(const uint8_t *stream, int64_t n, int bits) {
    if (bits > 8) {
        uint32_t code = 0;
        memcpy(&code, stream + n * (bits / 8), (size_t)bits / 8);
        return code;
    }
    int64_t byte = n * bits / 8;
    int start = (int)(n * bits % 8);
    uint32_t code = (uint32_t)stream[byte] >> start;
    if (start + bits > 8) code |= (uint32_t)stream[byte + 1] << (8 - start);
    return code & ((1u << bits) - 1u);
}

/* Two blocks may write parts of one byte at the same time: bits around the code stay theirs. */
static inline void write_code(uint8_t *stream, int64_t n, int bits, uint32_t code) {
    if (bits >= 8) {
        memcpy(stream + n * (bits / 8), &code, (size_t)bits / 8);
        return;
    }
    int64_t byte = n * bits / 8;
    int start = (int)(n * bits % 8);
    uint32_t mask = ((1u << bits) - 1u) << start;
    for (int part = 0; mask >> (8 * part); part++) {
        uint8_t here = (uint8_t)(mask >> (8 * part)), value = (uint8_t)(code << start >> (8 * part));
        __atomic_fetch_and(stream + byte + part, (uint8_t)~here, __ATOMIC_RELAXED);
        __atomic_fetch_or(stream + byte + part, (uint8_t)(value & here), __ATOMIC_RELAXED);
    }
}

/* Slot `slot` of one lane's bit string. */
static inline uint32_t get_field(const uint32_t *words, int lanes, int slot, int bits) {
    int word = slot * bits / 32, start = slot * bits % 32;
    uint64_t both = words[word * lanes];
    if (start + bits > 32) both |= (uint64_t)words[(word + 1) * lanes] << 32;
    return (uint32_t)(both >> start) & (0xffffffffu >> (32 - bits));
}
static inline void put_field(uint32_t *words, int lanes, int slot, int bits, uint32_t code) {
    int word = slot * bits / 32, start = slot * bits % 32;
    uint32_t mask = 0xffffffffu >> (32 - bits);
    words[word * lanes] = (words[word * lanes] & ~(mask << start)) | (code & mask) << start;
    if (start + bits > 32) {
        uint32_t *next = words + (word + 1) * lanes;
        *next = (*next & ~(mask >> (32 - start))) | (code & mask) >> (32 - start);
    }
}

/* To nearest, ties to even, then into low .. high; NaN gives 0. */
static inline uint32_t round_saturated(double x, double low, double high) {
    if (x != x) return 0;
    x = nearbyint(x);
    return (uint32_t)(int64_t)(x < low ? low : x > high ? high : x);
}

/* The code of a narrow float: magnitudes above limit[c] have a code above c. */
static inline uint32_t round_narrow(float x, const float *limit, int count, int bits, int64_t nan_code) {
    if (x != x) return nan_code < 0 ? 0u : (uint32_t)nan_code;
    float magnitude = fabsf(x);
    int low = 0, high = count;
    while (low < high) {
        int middle = (low + high) / 2;
        if (magnitude > limit[middle]) low = middle + 1;
        else high = middle;
    }
    return (uint32_t)low | (float_bits(x) >> 31) << (bits - 1);
}

static inline uint32_t float_to_brain(float x) {
    uint32_t u = float_bits(x);
    return x != x ? u >> 16 | 0x40u : (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
}
static inline float half_to_float(uint32_t h) {
    uint32_t sign = (h & 0x8000u) << 16, magnitude = h & 0x7fffu;
    if (magnitude >= 0x7c00u) return bits_float(sign | 0x7f800000u | magnitude << 13 | (magnitude > 0x7c00u ? 0x400000u : 0));
    float x = (float)(magnitude & 0x3ffu) * 0x1p-24f;
    if (magnitude >= 0x400u) x = bits_float((magnitude << 13) + 0x38000000u);
    return bits_float(float_bits(x) | sign);
}
static inline uint32_t float_to_half(float x) {
    uint32_t u = float_bits(x), sign = u >> 16 & 0x8000u, magnitude = u & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return sign | 0x7e00u | (magnitude >> 13 & 0x3ffu);
    if (magnitude >= 0x477ff000u) return sign | 0x7c00u;
    if (magnitude < 0x38800000u) return sign | (uint32_t)nearbyintf(bits_float(magnitude) * 0x1p24f);
    uint32_t rebiased = magnitude - 0x38000000u;
    return sign | (rebiased + 0xfffu + (rebiased >> 13 & 1u)) >> 13;
}

/* Waits until *at == value; nonzero after half a minute in vain. */
static int wait_for(const int32_t *at, int64_t value) {
    time_t start = time(NULL);
    for (int64_t turn = 1; __atomic_load_n(at, __ATOMIC_ACQUIRE) != value; turn++) {
        sched_yield();
        if (turn % 1024 == 0 && time(NULL) - start > 30) return 1;
    }
    return 0;
}
