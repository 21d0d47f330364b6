/* What every generated kernel may use and any C++ compiler understands. Register tensors of less than 32 bits
   are bit strings in words. */
#include <stdint.h>

__device__ __forceinline__ int least(int a, int b) { return a < b ? a : b; }
__device__ __forceinline__ int most(int a, int b) { return a > b ? a : b; }
__device__ __forceinline__ int swizzled(int offset, int mask, int shift) { return offset ^ ((offset & mask) >> shift); }
__device__ __forceinline__ uint32_t twice_low(uint32_t a) { return __byte_perm(a, 0, 0x1010); }
__device__ __forceinline__ uint32_t twice_high(uint32_t a) { return __byte_perm(a, 0, 0x3232); }
/* Halves x of a and y of b as a pair, 0 the low one. */
__device__ __forceinline__ uint32_t pair_of(uint32_t a, int x, uint32_t b, int y) {
    return __byte_perm(a, b, (x ? 0x32 : 0x10) | (y ? 0x76 : 0x54) << 8);
}
/* Codes with their sign moved up by `up` to the top of a half or word, and their fields by `places`. */
__device__ __forceinline__ uint32_t placed(uint32_t codes, uint32_t sign, int up, uint32_t fields, int places) {
    return (codes & sign) << up | (codes & fields) << places;
}
/* Code `n` of a compact stream: at most two bytes for narrow types. */
__device__ __forceinline__ uint32_t read_code(const uint8_t *stream, int64_t n, int bits) {
    int64_t byte = n * bits / 8;
    int start = (int)(n * bits % 8);
    uint32_t code = (uint32_t)stream[byte] >> start;
    if (start + bits > 8) code |= (uint32_t)stream[byte + 1] << (8 - start);
    return code & ((1u << bits) - 1u);
}

/* To nearest, ties to even, saturated; NaN gives 0. */
__device__ __forceinline__ int32_t round_to_int(float x) { return __float2int_rn(x); }

/* A NaN wins. */
__device__ __forceinline__ float greater(float a, float b) { return a != a || a > b ? a : b; }
__device__ __forceinline__ float lesser(float a, float b) { return a != a || a < b ? a : b; }
