/* The transform of a row of real numbers that a causal convolution needs.

   A row is a polynomial in X, and n = 2 m is at least as long as the product of two. So it may be taken modulo
   X^n + 1, and half of the roots of that are enough for real rows: those of X^m - i. Where others untangle the
   spectrum of a row folded in two, here a product is a product, and a conjugate is the row read backwards.

   X^m - i splits into `top` factors X^h - r, each of these into four, and so on to single roots. A factor has one
   number r for all of its coefficients, so twiddles are constants in the first passes; in the last two, after a
   transposition, a lane is a factor. The order of the roots is the order in which they fall out: the inverse goes
   the same way back. The first pass reads real numbers and skips the zeros behind a row; the last writes only what
   is asked for.

   Numbers lie in groups of LANES real parts and as many imaginary parts. NUMBER is float or double. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 16
#define PAIR (2 * LANES)
#define TURN 6.28318530717958647692
#define INLINE static inline __attribute__((always_inline))
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
typedef NUMBER lanes __attribute__((vector_size(LANES * sizeof(NUMBER))));
typedef struct {
    lanes re, im;
} pair;

enum {
    LEAF = LANES * LANES,          /* coefficients that are transformed in one go */
    MOST_TOP = 14,
    TURNS = 6,                     /* numbers of a factor: s, s^2, s^3 for s^4 = r */
    LEAF_SCALARS = TURNS * 5 + 2,  /* of the two passes before the transposition, filled up to whole pairs */
    LEAF_TABLE = LEAF_SCALARS + 5 * TURNS * LANES
};

typedef struct {
    int64_t top, height, points; /* factors of the first pass, coefficients of each, and of all: m */
    const NUMBER *weights;       /* (top, 2 top, 2): powers of the roots of the first pass */
    const NUMBER *turns;         /* of the passes between, level by level */
    const NUMBER *leaves;        /* (points / LEAF, LEAF_TABLE) */
} row_transform;

INLINE lanes load_lanes(const NUMBER *from) {
    lanes value;
    memcpy(&value, from, sizeof value);
    return value;
}

INLINE void store_lanes(NUMBER *to, lanes value) { memcpy(to, &value, sizeof value); }

INLINE pair load_pair(const NUMBER *from) { return (pair){load_lanes(from), load_lanes(from + LANES)}; }

INLINE void store_pair(NUMBER *to, pair value) {
    store_lanes(to, value.re);
    store_lanes(to + LANES, value.im);
}

/* Zeros from `length` on; nothing there is read. */
INLINE lanes load_until(const NUMBER *row, int64_t at, int64_t length) {
    if (at + LANES <= length) return load_lanes(row + at);
    lanes value = {0};
    if (at < length) memcpy(&value, row + at, (size_t)(length - at) * sizeof(NUMBER));
    return value;
}

INLINE void store_until(NUMBER *row, int64_t at, int64_t length, lanes value) {
    if (at + LANES <= length) store_lanes(row + at, value);
    else if (at < length) memcpy(row + at, &value, (size_t)(length - at) * sizeof(NUMBER));
}

#define TURNED(NAME, SIGN)                                                                                       \
    INLINE pair NAME(pair a, lanes re, lanes im) {                                                               \
        return (pair){a.re * re - SIGN a.im * im, a.im * re + SIGN a.re * im};                                   \
    }
TURNED(turned, +)
TURNED(turned_back, -)

INLINE pair plus(pair a, pair b) { return (pair){a.re + b.re, a.im + b.im}; }

INLINE pair minus(pair a, pair b) { return (pair){a.re - b.re, a.im - b.im}; }

INLINE pair plus_i(pair a, pair b) { return (pair){a.re - b.im, a.im + b.re}; }

INLINE pair minus_i(pair a, pair b) { return (pair){a.re + b.im, a.im - b.re}; }

/* a + b X + c X^2 + d X^3 at the roots s, i s, -s, -i s. */
INLINE void split(pair v[4], const lanes s[TURNS]) {
    pair b = turned(v[1], s[0], s[1]), c = turned(v[2], s[2], s[3]), d = turned(v[3], s[4], s[5]);
    pair even = plus(v[0], c), odd = plus(b, d), rest = minus(v[0], c), turn = minus(b, d);
    v[0] = plus(even, odd);
    v[1] = plus_i(rest, turn);
    v[2] = minus(even, odd);
    v[3] = minus_i(rest, turn);
}

/* Four times what `split` was given. */
INLINE void join(pair v[4], const lanes s[TURNS]) {
    pair even = plus(v[0], v[2]), odd = plus(v[1], v[3]), rest = minus(v[0], v[2]), turn = minus(v[1], v[3]);
    v[0] = plus(even, odd);
    v[1] = turned_back(minus_i(rest, turn), s[0], s[1]);
    v[2] = turned_back(minus(even, odd), s[2], s[3]);
    v[3] = turned_back(plus_i(rest, turn), s[4], s[5]);
}

INLINE void constants(const NUMBER *from, lanes s[TURNS]) {
    for (int i = 0; i < TURNS; i++) s[i] = from[i] - (lanes){0};
}

INLINE void vectors(const NUMBER *from, lanes s[TURNS]) {
    for (int i = 0; i < TURNS; i++) s[i] = load_lanes(from + i * LANES);
}

#define EXCHANGE(STEP, FIRST, SECOND)                                                                            \
    for (int i = 0; i < LANES; i++)                                                                              \
        if (!(i & STEP)) {                                                                                       \
            lanes a = v[i], b = v[i + STEP];                                                                     \
            v[i] = SHUFFLE(a, b, FIRST);                                                                         \
            v[i + STEP] = SHUFFLE(a, b, SECOND);                                                                 \
        }
#define LIST(...) __VA_ARGS__

INLINE void transpose(lanes v[LANES]) {
    EXCHANGE(8, LIST(0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23),
             LIST(8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31))
    EXCHANGE(4, LIST(0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27),
             LIST(4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31))
    EXCHANGE(2, LIST(0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29),
             LIST(2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31))
    EXCHANGE(1, LIST(0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30),
             LIST(1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31))
}

INLINE void transpose_pairs(pair v[LANES]) {
    lanes part[LANES];
    for (int i = 0; i < LANES; i++) part[i] = v[i].re;
    transpose(part);
    for (int i = 0; i < LANES; i++) {
        v[i].re = part[i];
        part[i] = v[i].im;
    }
    transpose(part);
    for (int i = 0; i < LANES; i++) v[i].im = part[i];
}

/* One pass over a leaf: four times four groups, `apart` from each other. */
#define LEAF_PASS(ACT, READ, APART, TABLE, STRIDE)                                                               \
    for (int block = 0; block < 4; block++) {                                                                    \
        lanes s[TURNS];                                                                                          \
        READ((TABLE) + block * (STRIDE), s);                                                                     \
        for (int at = 0; at < (APART == 4 ? 4 : 1); at++) {                                                      \
            pair *from = APART == 4 ? v + at : v + 4 * block, four[4];                                           \
            for (int i = 0; i < 4; i++) four[i] = from[i * APART];                                               \
            ACT(four, s);                                                                                        \
            for (int i = 0; i < 4; i++) from[i * APART] = four[i];                                               \
        }                                                                                                        \
        if (APART == 4) break;                                                                                   \
    }

static void transform_leaf(NUMBER *z, const NUMBER *table) {
    pair v[LANES];
    const NUMBER *by_lane = table + LEAF_SCALARS;
    for (int i = 0; i < LANES; i++) v[i] = load_pair(z + i * PAIR);
    LEAF_PASS(split, constants, 4, table, 0)
    LEAF_PASS(split, constants, 1, table + TURNS, TURNS)
    transpose_pairs(v);
    LEAF_PASS(split, vectors, 4, by_lane, 0)
    LEAF_PASS(split, vectors, 1, by_lane + TURNS * LANES, TURNS * LANES)
    for (int i = 0; i < LANES; i++) store_pair(z + i * PAIR, v[i]);
}

static void invert_leaf(NUMBER *z, const NUMBER *table) {
    pair v[LANES];
    const NUMBER *by_lane = table + LEAF_SCALARS;
    for (int i = 0; i < LANES; i++) v[i] = load_pair(z + i * PAIR);
    LEAF_PASS(join, vectors, 1, by_lane + TURNS * LANES, TURNS * LANES)
    LEAF_PASS(join, vectors, 4, by_lane, 0)
    transpose_pairs(v);
    LEAF_PASS(join, constants, 1, table + TURNS, TURNS)
    LEAF_PASS(join, constants, 4, table, 0)
    for (int i = 0; i < LANES; i++) store_pair(z + i * PAIR, v[i]);
}

#define MIDDLE_PASS(ACT)                                                                                         \
    lanes s[TURNS];                                                                                              \
    constants(turns + block * TURNS, s);                                                                         \
    for (int64_t at = 0; at < size / 4; at += LANES) {                                                           \
        pair four[4];                                                                                            \
        for (int i = 0; i < 4; i++) four[i] = load_pair(z + 2 * (at + i * (size / 4)));                          \
        ACT(four, s);                                                                                            \
        for (int i = 0; i < 4; i++) store_pair(z + 2 * (at + i * (size / 4)), four[i]);                          \
    }

/* Factor `block` of `blocks` that have `size` coefficients each; depth first, so that it stays in the cache. */
static void transform_factor(const row_transform *p, NUMBER *z, int64_t size, const NUMBER *turns, int64_t block,
                             int64_t blocks) {
    if (size == LEAF) {
        transform_leaf(z, p->leaves + block * LEAF_TABLE);
        return;
    }
    MIDDLE_PASS(split)
    for (int64_t i = 0; i < 4; i++)
        transform_factor(p, z + 2 * i * (size / 4), size / 4, turns + blocks * TURNS, 4 * block + i, 4 * blocks);
}

static void invert_factor(const row_transform *p, NUMBER *z, int64_t size, const NUMBER *turns, int64_t block,
                          int64_t blocks) {
    if (size == LEAF) {
        invert_leaf(z, p->leaves + block * LEAF_TABLE);
        return;
    }
    for (int64_t i = 0; i < 4; i++)
        invert_factor(p, z + 2 * i * (size / 4), size / 4, turns + blocks * TURNS, 4 * block + i, 4 * blocks);
    MIDDLE_PASS(join)
}

/* `parts` stretches of a row, the last one cut off at its end, at all roots of the first pass. */
INLINE void read_top(const row_transform *p, const NUMBER *row, int64_t length, NUMBER *z, const int top,
                     const int parts) {
    for (int64_t at = 0; at < p->height; at += LANES) {
        lanes x[2 * MOST_TOP];
        for (int q = 0; q < parts - 1; q++) x[q] = load_lanes(row + q * p->height + at);
        x[parts - 1] = load_until(row, (parts - 1) * p->height + at, length);
        for (int k = 0; k < top; k++) {
            const NUMBER *w = p->weights + k * 4 * top;
            pair sum = {x[0], {0}};
            for (int q = 1; q < parts; q++) {
                sum.re += x[q] * w[2 * q];
                sum.im += x[q] * w[2 * q + 1];
            }
            store_pair(z + 2 * (k * p->height + at), sum);
        }
    }
}

INLINE void write_top(const row_transform *p, const NUMBER *z, NUMBER *row, int64_t length, const int top,
                      const int parts) {
    const NUMBER scale = (NUMBER)1 / (NUMBER)p->points;
    for (int64_t at = 0; at < p->height; at += LANES) {
        pair v[MOST_TOP];
        for (int k = 0; k < top; k++) v[k] = load_pair(z + 2 * (k * p->height + at));
        for (int q = 0; q < parts; q++) {
            lanes sum = {0};
            for (int k = 0; k < top; k++) {
                const NUMBER *w = p->weights + 2 * (k * 2 * top + q);
                sum += v[k].re * w[0] + v[k].im * w[1];
            }
            store_until(row, q * p->height + at, length, sum * scale);
        }
    }
}

/* The usual case, a row that fills half of n, with its loops unrolled. */
#define EACH_TOP(ACT, ...)                                                                                       \
    switch (parts == p->top ? p->top : 0) {                                                                      \
    case 4: ACT(__VA_ARGS__, 4, 4); break;                                                                       \
    case 5: ACT(__VA_ARGS__, 5, 5); break;                                                                       \
    case 6: ACT(__VA_ARGS__, 6, 6); break;                                                                       \
    case 7: ACT(__VA_ARGS__, 7, 7); break;                                                                       \
    case 8: ACT(__VA_ARGS__, 8, 8); break;                                                                       \
    default: ACT(__VA_ARGS__, (int)p->top, parts);                                                               \
    }

/* A row of `length` <= 2 m numbers at all roots. */
static void transform_row(const row_transform *p, const NUMBER *row, int64_t length, NUMBER *z) {
    const int parts = (int)((length + p->height - 1) / p->height);
    EACH_TOP(read_top, p, row, length, z)
    for (int64_t k = 0; k < p->top; k++)
        transform_factor(p, z + 2 * k * p->height, p->height, p->turns, k, p->top);
}

/* The first `length` numbers of the row that has these values; they are overwritten. */
static void invert_row(const row_transform *p, NUMBER *z, NUMBER *row, int64_t length) {
    const int parts = (int)((length + p->height - 1) / p->height);
    for (int64_t k = 0; k < p->top; k++)
        invert_factor(p, z + 2 * k * p->height, p->height, p->turns, k, p->top);
    EACH_TOP(write_top, p, z, row, length)
}

static void turn_of(double angle, int power, NUMBER *re, NUMBER *im) {
    *re = (NUMBER)cos(TURN * angle * power);
    *im = (NUMBER)sin(TURN * angle * power);
}

/* What splits the factor X^size - exp(2 pi i angle), one number every `stride`. */
static void fill_turns(double angle, NUMBER *to, int64_t stride) {
    for (int power = 1; power <= 3; power++)
        turn_of(angle / 4, power, to + (2 * power - 2) * stride, to + (2 * power - 1) * stride);
}

static void fill_leaf(double angle, NUMBER *to) {
    fill_turns(angle, to, 1);
    for (int i = 0; i < 4; i++) fill_turns((angle + i) / 4, to + (1 + i) * TURNS, 1);
    for (int lane = 0; lane < LANES; lane++) {
        double own = ((angle + lane / 4) / 4 + lane % 4) / 4;
        NUMBER *by_lane = to + LEAF_SCALARS + lane;
        fill_turns(own, by_lane, LANES);
        for (int i = 0; i < 4; i++) fill_turns((own + i) / 4, by_lane + (1 + i) * TURNS * LANES, LANES);
    }
}

/* Factor `block` of `blocks`, and all that it splits into. */
static void fill_factor(double angle, int64_t size, NUMBER *turns, NUMBER *leaves, int64_t block, int64_t blocks) {
    if (size == LEAF) {
        fill_leaf(angle, leaves + block * LEAF_TABLE);
        return;
    }
    fill_turns(angle, turns + block * TURNS, 1);
    for (int64_t i = 0; i < 4; i++)
        fill_factor((angle + (double)i) / 4, size / 4, turns + blocks * TURNS, leaves, 4 * block + i, 4 * blocks);
}

/* The tables of a transform of top * height points, in the order in which `row_transform` lists them. */
static void fill_tables(int64_t top, int64_t height, NUMBER *weights, NUMBER *turns, NUMBER *leaves) {
    for (int64_t k = 0; k < top; k++) {
        double angle = ((double)k + 0.25) / (double)top;
        for (int q = 0; q < 2 * top; q++)
            turn_of(angle, q, weights + 2 * (k * 2 * top + q), weights + 2 * (k * 2 * top + q) + 1);
        fill_factor(angle, height, turns, leaves, k, top);
    }
}
