/* Rounding of float32 (WIDTH=32) or float64 (WIDTH=64) arrays to a number format, every mode.

   One element is integer arithmetic on its bits, written without branches so that the compiler vectorises the
   loop of each mode. Draws come from Philox4x32-10 (Salmon et al. 2011) with the element's index as counter:
   the result does not depend on how elements are divided among threads. */
#include <omp.h>
#include <stdint.h>
#include <string.h>

#if WIDTH == 64
typedef uint64_t word;
typedef int64_t integer;
typedef double real;
#define SIG_BITS 52
#else
typedef uint32_t word;
typedef int32_t integer;
typedef float real;
#define SIG_BITS 23
#endif

#define BIAS ((integer)(((word)1 << (WIDTH - 2 - SIG_BITS)) - 1))
#define HIDDEN ((word)1 << SIG_BITS)
#define SIGN ((word)1 << (WIDTH - 1))
#define INFINITE ((word)(2 * BIAS + 1) << SIG_BITS)
#define CHUNK 1024 /* elements whose draws are made at a time; a multiple of 4 */

enum { EVEN = 1, UP, DOWN, TOWARD_ZERO, STOCHASTIC, EQUAL, TO_ZERO, AWAY, ODD, DIRECTED, EVEN_FAST };

typedef struct {
    int64_t sig_bits, lowest, flush, bias; /* of the grid; flush is far below everything when unused */
    uint64_t smallest;                     /* bits of the least positive number of the grid */
    uint64_t largest, above, below;        /* xmax, and what stands beyond it on either side */
    uint64_t infinite;                     /* what an infinity becomes */
    uint64_t xmin;                         /* bits of the least normal number */
    double magic;                          /* adding and subtracting it rounds to multiples of the least number */
} target;

typedef struct {
    integer sig_bits, lowest, flush, bias;
    word smallest, largest, above, below, infinite, xmin;
    real magic;
} grid;

static inline integer clip(integer value, integer low, integer high) {
    value = value < low ? low : value;
    return value > high ? high : value;
}

static inline real as_real(word bits) {
    real value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline word as_bits(real value) {
    word bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* Exponent of the value, exact for subnormal numbers: their integer is put under a large power of two. */
static inline integer exponent_of(word magnitude) {
    const word large = (word)(BIAS + SIG_BITS) << SIG_BITS;
    const word normalised = as_bits(as_real(large | magnitude) - as_real(large));
    const word field = magnitude >> SIG_BITS;
    const integer subnormal = (integer)(normalised >> SIG_BITS) - BIAS + (1 - BIAS - SIG_BITS);
    return field ? (integer)field - BIAS : subnormal;
}

static inline __attribute__((always_inline)) word goes_away(word kept, word rest, integer shift, integer distance,
                                                            word odd, word flushed, word negative, word draw,
                                                            int mode) {
    const word inexact = rest != 0, twice = rest << 1, unit = (word)1 << shift;
    const word above = twice > unit, tie = (word)(twice == unit) & inexact, heads = draw >> (WIDTH - 2);
    const integer bits = WIDTH - 1;
    switch (mode) {
    case UP: return inexact & ~negative & 1;
    case DOWN: return inexact & negative;
    case TOWARD_ZERO: return 0;
    case STOCHASTIC: {
        const word near = rest << clip(bits - distance, 0, bits), far = rest >> clip(distance - bits, 0, bits);
        return inexact & (word)(draw < (distance <= bits ? near : far));
    }
    case EQUAL: return inexact & heads;
    case TO_ZERO: return above;
    case AWAY: return above | tie;
    case ODD: return inexact & ~odd & ~flushed & 1;
    case DIRECTED: return inexact & (heads ^ negative);
    default: return above | (tie & (odd | flushed));
    }
}

static inline __attribute__((always_inline)) word nearest_even_fast(word magnitude, const grid g) {
    const integer cut = SIG_BITS - g.sig_bits;
    const word below_half = ((word)1 << cut >> 1) - (cut > 0), last = (magnitude >> cut) & (cut > 0);
    const word normal = ((magnitude + below_half + last) >> cut) << cut;
    const word subnormal = as_bits((as_real(magnitude) + g.magic) - g.magic);
    return magnitude < g.xmin ? subnormal : normal;
}

static inline __attribute__((always_inline)) word round_generic(word magnitude, word negative, word draw,
                                                                const grid g, int mode) {
    const word field = magnitude >> SIG_BITS;
    const word significand = field ? (magnitude & (HIDDEN - 1)) | HIDDEN : magnitude;
    const integer spacing = (field ? (integer)field : 1) - (BIAS + SIG_BITS);
    const integer exponent = exponent_of(magnitude);
    const integer fine = exponent - g.sig_bits;
    const word flushed = exponent < g.flush;
    const integer wanted = fine < g.lowest ? g.lowest : fine;
    const integer distance = (flushed ? g.flush : wanted) - spacing;
    const integer shift = clip(distance, 0, SIG_BITS + 2);
    const word kept = significand >> shift, rest = significand - (kept << shift);
    const word odd = kept & 1 & ((word)(g.sig_bits != 0) | (word)(exponent + g.bias));
    const word away = goes_away(kept, rest, shift, distance, odd, flushed, negative, draw, mode);
    const integer inside = clip(shift, 0, SIG_BITS);
    const word near = ((magnitude >> inside) + away) << inside;
    const word inner = -(word)(shift <= SIG_BITS);
    return (near & inner) | (g.smallest & -away & ~inner);
}

static inline __attribute__((always_inline)) word round_one(word bits, word draw, const grid g, int mode) {
    const word magnitude = bits & ~SIGN, negative = bits >> (WIDTH - 1);
    word rounded = mode == EVEN_FAST ? nearest_even_fast(magnitude, g)
                                     : round_generic(magnitude, negative, draw, g, mode);
    rounded = rounded > g.largest ? (negative ? g.below : g.above) : rounded;
    rounded = magnitude == INFINITE ? g.infinite : rounded;
    return magnitude > INFINITE ? bits : rounded | (bits & SIGN);
}

/* Words 4·first .. 4·(first + CHUNK/4) − 1 of a stream, one for each element; counter (block, stream, call). */
static void draw_words(uint32_t *words, uint64_t first, uint32_t stream, uint32_t call, uint64_t seed) {
    for (int block = 0; block < CHUNK / 4; block++) {
        const uint64_t index = first + block;
        uint32_t c0 = (uint32_t)index, c1 = (uint32_t)(index >> 32), c2 = stream, c3 = call;
        uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
        for (int round = 0; round < 10; round++) {
            const uint64_t product0 = (uint64_t)0xD2511F53u * c0, product1 = (uint64_t)0xCD9E8D57u * c2;
            c0 = (uint32_t)(product1 >> 32) ^ c1 ^ k0;
            c1 = (uint32_t)product1;
            c2 = (uint32_t)(product0 >> 32) ^ c3 ^ k1;
            c3 = (uint32_t)product0;
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        words[4 * block] = c0;
        words[4 * block + 1] = c1;
        words[4 * block + 2] = c2;
        words[4 * block + 3] = c3;
    }
}

#define ROUND_LOOP(MODE)                                                                                       \
    case MODE:                                                                                                 \
        for (int64_t i = 0; i < count; i++)                                                                    \
            y[i] = round_one(x[i], 0, g, MODE);                                                                \
        break;

#define DRAW_LOOP(MODE)                                                                                        \
    case MODE:                                                                                                 \
        for (int64_t i = 0; i < count; i++)                                                                    \
            y[i] = round_one(x[i], draws[i], g, MODE);                                                         \
        break;

static void round_span(const word *restrict x, word *restrict y, int64_t count, const grid g, int mode) {
    switch (mode) {
        ROUND_LOOP(EVEN_FAST)
        ROUND_LOOP(EVEN)
        ROUND_LOOP(UP)
        ROUND_LOOP(DOWN)
        ROUND_LOOP(TOWARD_ZERO)
        ROUND_LOOP(TO_ZERO)
        ROUND_LOOP(AWAY)
        ROUND_LOOP(ODD)
    }
}

static void draw_span(const word *restrict x, word *restrict y, int64_t count, const word *restrict draws,
                      const grid g, int mode) {
    switch (mode) {
        DRAW_LOOP(STOCHASTIC)
        DRAW_LOOP(EQUAL)
        DRAW_LOOP(DIRECTED)
    }
}

/* One chunk; positions count from the first block of four that the array touches, `skipped` of it left out. */
static void draw_chunk(const word *x, word *y, int64_t begin, int64_t skipped, int64_t count, const grid g,
                       int mode, uint64_t seed, uint64_t block, uint32_t call) {
    uint32_t high[CHUNK];
    word draws[CHUNK];
    draw_words(high, block + begin / 4, 0, call, seed);
#if WIDTH == 64
    uint32_t low[CHUNK];
    draw_words(low, block + begin / 4, 1, call, seed);
    for (int i = 0; i < CHUNK; i++)
        draws[i] = (uint64_t)high[i] << 31 | low[i] >> 1;
#else
    for (int i = 0; i < CHUNK; i++)
        draws[i] = high[i] >> 1;
#endif
    const int64_t first = begin < skipped ? skipped - begin : 0;
    const int64_t left = count + skipped - begin, last = left < CHUNK ? left : CHUNK;
    draw_span(x + begin + first - skipped, y + begin + first - skipped, last - first, draws + first, g, mode);
}

void round_array(const word *x, word *y, int64_t count, const target *t, int mode, uint64_t seed,
                 uint64_t offset, uint32_t call, int threads) {
    const grid g = {(integer)t->sig_bits, (integer)t->lowest, (integer)t->flush, (integer)t->bias,
                    (word)t->smallest,    (word)t->largest,   (word)t->above,    (word)t->below,
                    (word)t->infinite,    (word)t->xmin,      (real)t->magic};
    if (mode == STOCHASTIC || mode == EQUAL || mode == DIRECTED) {
        const int64_t skipped = offset % 4;
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t begin = 0; begin < count + skipped; begin += CHUNK)
            draw_chunk(x, y, begin, skipped, count, g, mode, seed, offset / 4, call);
        return;
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t begin = 0; begin < count; begin += CHUNK)
        round_span(x + begin, y + begin, count - begin < CHUNK ? count - begin : CHUNK, g, mode);
}
