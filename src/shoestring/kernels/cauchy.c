/* The spectrum of a diagonal plus low rank state space: sums over poles, then a correction. cauchy.py has the
   equation. With c and s the cosine and sine of half the angle of a frequency, and one scale of each pole,
       x = 4 c^2 |l|^2 - 16 s^2,  y = 16 s c Re l,  scale = 1 / (x^2 + y^2),
   every sum is  c sum_n (a c^2 + b s^2) scale + i s sum_n (a' c^2 + b' s^2) scale  of real coefficients, so one
   reciprocal serves all four sums.

   A lane is a frequency. A thread takes whole items, one channel of one feature, so results do not depend on
   the number of threads. All is float64, whatever is stored: near a resonance sums and correction cancel. For
   the gradient nothing is kept: scales are computed again. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define WIDE 8
#define INLINE static inline __attribute__((always_inline))
typedef double wide __attribute__((vector_size(64)));
typedef struct {
    wide re, im;
} complex_wide;

enum { SUMS = 4, EACH = 4, COEFFICIENTS = SUMS * EACH, BLOCK = 16, GRADIENTS = COEFFICIENTS + 2 };

typedef struct {
    int64_t items, features, poles, frequencies, single, threads; /* single: complex64 in memory */
    const double *sin, *cos;                 /* of half the angles, filled up to whole vectors */
    const double *output;                    /* (items, poles), complex as all that follow in pairs */
    const double *poles_of, *low_rank, *input; /* (features, poles) */
    const double *step;                      /* (features) */
    double *coefficients;                    /* room: (items, poles, sums, each): a, b, a', b' */
    double *trace, *square;                  /* room: (items, poles): Re l, |l|^2, where l has its step */
    const void *grad;                        /* (items, frequencies) */
    void *spectrum;                          /* (items, frequencies) */
    double *to_output, *to_poles, *to_low_rank, *to_input, *to_step; /* of each item */
} cauchy;

typedef struct {
    double re, im;
} number;

/* What one pole of one item is made of: C, B, P, l, dt, and the four products that are summed. */
typedef struct {
    number output, input, low_rank, pole, scaled, products[SUMS];
    double step, slope[SUMS], offset[SUMS];
} ingredients;

/* What depends on the frequency alone. */
typedef struct {
    wide sin, cos, sin2, cos2, x_square, x_offset, y_trace;
} circle;

INLINE wide load_wide(const double *from) {
    wide value;
    memcpy(&value, from, sizeof value);
    return value;
}

INLINE circle circle_at(const cauchy *p, int64_t first) {
    circle k = {.sin = load_wide(p->sin + first), .cos = load_wide(p->cos + first)};
    k.sin2 = k.sin * k.sin;
    k.cos2 = k.cos * k.cos;
    k.x_square = 4.0 * k.cos2;
    k.x_offset = -16.0 * k.sin2;
    k.y_trace = 16.0 * k.sin * k.cos;
    return k;
}

INLINE number number_at(const double *from, int64_t at) { return (number){from[2 * at], from[2 * at + 1]}; }

INLINE void store_number(double *to, int64_t at, number value) {
    to[2 * at] = value.re;
    to[2 * at + 1] = value.im;
}

INLINE number times(number a, number b) { return (number){a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re}; }

/* a times the conjugate of b. */
INLINE number over(number a, number b) { return (number){a.re * b.re + a.im * b.im, a.im * b.re - a.re * b.im}; }

INLINE number sum(number a, number b) { return (number){a.re + b.re, a.im + b.im}; }

INLINE number stretched(double by, number a) { return (number){by * a.re, by * a.im}; }

INLINE ingredients ingredients_of(const cauchy *p, int64_t item, int64_t n) {
    const int64_t feature = item % p->features, own = feature * p->poles + n;
    ingredients i = {.output = number_at(p->output, item * p->poles + n), .input = number_at(p->input, own),
                     .low_rank = number_at(p->low_rank, own), .pole = number_at(p->poles_of, own),
                     .step = p->step[feature]};
    i.scaled = stretched(i.step, i.pole);
    i.products[0] = times(i.output, i.input);
    i.products[1] = times(i.output, i.low_rank);
    i.products[2] = over(i.input, i.low_rank);
    i.products[3] = over(i.low_rank, i.low_rank);
    for (int j = 0; j < SUMS; j++) {
        i.slope[j] = 4 * i.step * i.products[j].re;
        i.offset[j] = 4 * i.step * over(i.products[j], i.scaled).re;
    }
    return i;
}

/* Coefficients of the moments of an item, in its part of the room. */
static void prepare(const cauchy *p, int64_t item) {
    for (int64_t n = 0; n < p->poles; n++) {
        const ingredients i = ingredients_of(p, item, n);
        const int64_t at = item * p->poles + n;
        const double trace = i.scaled.re, square = over(i.scaled, i.scaled).re;
        p->trace[at] = trace;
        p->square[at] = square;
        for (int j = 0; j < SUMS; j++) {
            double *to = p->coefficients + at * COEFFICIENTS + EACH * j;
            to[0] = -8 * i.offset[j] * square;
            to[1] = 32 * i.offset[j] - 64 * i.slope[j] * trace;
            to[2] = 16 * i.slope[j] * square - 32 * i.offset[j] * trace;
            to[3] = -64 * i.slope[j];
        }
    }
}

/* From gradients of what `prepare` made of a pole to those of its ingredients; returns that of the step. */
static double through_prepare(const cauchy *p, int64_t item, int64_t n, const double *to_moments, double to_trace,
                              double to_square) {
    const ingredients i = ingredients_of(p, item, n);
    const int64_t at = item * p->poles + n;
    const double trace = p->trace[at], square = p->square[at];
    number grads[SUMS], to_scaled = {0, 0};
    double to_step = 0;
    for (int j = 0; j < SUMS; j++) {
        const double *to = to_moments + EACH * j;
        double to_offset = -8 * square * to[0] + 32 * to[1] - 32 * trace * to[2];
        double to_slope = -64 * trace * to[1] + 16 * square * to[2] - 64 * to[3];
        to_square += -8 * i.offset[j] * to[0] + 16 * i.slope[j] * to[2];
        to_trace += -64 * i.slope[j] * to[1] - 32 * i.offset[j] * to[2];
        grads[j] = stretched(4 * i.step * to_offset, i.scaled);
        grads[j].re += 4 * i.step * to_slope;
        to_scaled = sum(to_scaled, stretched(4 * i.step * to_offset, i.products[j]));
        to_step += 4 * (i.products[j].re * to_slope + over(i.products[j], i.scaled).re * to_offset);
    }
    to_scaled = sum(to_scaled, stretched(2 * to_square, i.scaled));
    to_scaled.re += to_trace;
    store_number(p->to_output, at, sum(over(grads[0], i.input), over(grads[1], i.low_rank)));
    store_number(p->to_input, at, sum(over(grads[0], i.output), times(grads[2], i.low_rank)));
    store_number(p->to_low_rank, at, sum(sum(over(grads[1], i.output), over(i.input, grads[2])),
                                         stretched(2 * grads[3].re, i.low_rank)));
    store_number(p->to_poles, at, stretched(i.step, to_scaled));
    return to_step + over(to_scaled, i.pole).re;
}

INLINE complex_wide subtract(complex_wide a, complex_wide b) { return (complex_wide){a.re - b.re, a.im - b.im}; }

INLINE complex_wide multiply(complex_wide a, complex_wide b) {
    return (complex_wide){a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}

INLINE complex_wide scaled(wide by, complex_wide a) { return (complex_wide){by * a.re, by * a.im}; }

INLINE complex_wide conjugate(complex_wide a) { return (complex_wide){a.re, -a.im}; }

INLINE complex_wide inverse(complex_wide a) { return scaled(1.0 / (a.re * a.re + a.im * a.im), conjugate(a)); }

/* Moments sum_n coefficient scale, then the four sums. */
INLINE void four_sums(const cauchy *p, int64_t item, const circle *k, complex_wide sums[SUMS]) {
    const double *coefficients = p->coefficients + item * p->poles * COEFFICIENTS;
    const double *trace = p->trace + item * p->poles, *square = p->square + item * p->poles;
    wide moments[COEFFICIENTS] = {{0}};
    for (int64_t n = 0; n < p->poles; n++) {
        wide x = k->x_square * square[n] + k->x_offset, y = k->y_trace * trace[n];
        wide scale = 1.0 / (x * x + y * y);
#pragma GCC unroll 16
        for (int j = 0; j < COEFFICIENTS; j++) moments[j] += scale * coefficients[n * COEFFICIENTS + j];
    }
#pragma GCC unroll 4
    for (int j = 0; j < SUMS; j++) {
        const wide *m = moments + EACH * j;
        sums[j].re = k->cos * (m[0] * k->cos2 + m[1] * k->sin2);
        sums[j].im = k->sin * (m[2] * k->cos2 + m[3] * k->sin2);
    }
}

INLINE void store_complex(const cauchy *p, int64_t item, int64_t first, complex_wide value) {
    int64_t count = p->frequencies - first < WIDE ? p->frequencies - first : WIDE;
    int64_t at = 2 * (item * p->frequencies + first);
    for (int64_t i = 0; i < count; i++) {
        if (p->single) {
            ((float *)p->spectrum)[at + 2 * i] = (float)value.re[i];
            ((float *)p->spectrum)[at + 2 * i + 1] = (float)value.im[i];
        } else {
            ((double *)p->spectrum)[at + 2 * i] = value.re[i];
            ((double *)p->spectrum)[at + 2 * i + 1] = value.im[i];
        }
    }
}

/* Zeros after the last frequency, so that what fills up a vector adds nothing to a gradient. */
INLINE complex_wide load_complex(const cauchy *p, int64_t item, int64_t first) {
    int64_t count = p->frequencies - first < WIDE ? p->frequencies - first : WIDE;
    int64_t at = 2 * (item * p->frequencies + first);
    complex_wide value = {{0}, {0}};
    for (int64_t i = 0; i < count; i++) {
        value.re[i] = p->single ? ((const float *)p->grad)[at + 2 * i] : ((const double *)p->grad)[at + 2 * i];
        value.im[i] =
            p->single ? ((const float *)p->grad)[at + 2 * i + 1] : ((const double *)p->grad)[at + 2 * i + 1];
    }
    return value;
}

void cauchy_forward(const cauchy *p) {
#pragma omp parallel for schedule(static) num_threads((int)p->threads)
    for (int64_t item = 0; item < p->items; item++) {
        prepare(p, item);
        for (int64_t first = 0; first < p->frequencies; first += WIDE) {
            circle k = circle_at(p, first);
            complex_wide s[SUMS], turn = {k.cos, k.sin};
            four_sums(p, item, &k, s);
            complex_wide below = scaled(k.cos, s[3]);
            below.re += 1.0;
            complex_wide correction = scaled(k.cos, multiply(multiply(s[1], s[2]), inverse(below)));
            store_complex(p, item, first, multiply(turn, subtract(s[0], correction)));
        }
    }
}

/* Gradients of the moments of one vector of frequencies. */
INLINE void through_sums(const cauchy *p, int64_t item, int64_t first, const circle *k, wide to[COEFFICIENTS]) {
    complex_wide s[SUMS], grads[SUMS], turn = {k->cos, k->sin};
    four_sums(p, item, k, s);
    complex_wide below = scaled(k->cos, s[3]);
    below.re += 1.0;
    complex_wide share = scaled(k->cos, inverse(below));
    complex_wide first_part = multiply(share, s[1]), second_part = multiply(share, s[2]);
    grads[0] = multiply(conjugate(turn), load_complex(p, item, first));
    grads[1] = multiply(scaled((wide){0} - 1.0, conjugate(second_part)), grads[0]);
    grads[2] = multiply(scaled((wide){0} - 1.0, conjugate(first_part)), grads[0]);
    grads[3] = multiply(conjugate(multiply(first_part, second_part)), grads[0]);
#pragma GCC unroll 4
    for (int j = 0; j < SUMS; j++) {
        wide re = k->cos * grads[j].re, im = k->sin * grads[j].im;
        to[EACH * j] = re * k->cos2;
        to[EACH * j + 1] = re * k->sin2;
        to[EACH * j + 2] = im * k->cos2;
        to[EACH * j + 3] = im * k->sin2;
    }
}

/* Adds what some vectors of frequencies give to the gradients of one pole, lane by lane. */
INLINE void through_pole(const double *coefficients, double trace, double square, int64_t count,
                         const circle k[BLOCK], wide to[BLOCK][COEFFICIENTS], wide room[GRADIENTS]) {
    wide sums[GRADIENTS];
    memcpy(sums, room, sizeof sums);
    for (int64_t f = 0; f < count; f++) {
        wide x = k[f].x_square * square + k[f].x_offset, y = k[f].y_trace * trace;
        wide scale = 1.0 / (x * x + y * y), to_scale = {0};
#pragma GCC unroll 16
        for (int j = 0; j < COEFFICIENTS; j++) {
            sums[j] += scale * to[f][j];
            to_scale += coefficients[j] * to[f][j];
        }
        wide common = -2.0 * scale * scale * to_scale;
        sums[COEFFICIENTS] += common * y * k[f].y_trace;
        sums[COEFFICIENTS + 1] += common * x * k[f].x_square;
    }
    memcpy(room, sums, sizeof sums);
}

INLINE double sum_wide(wide v) {
    return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7]));
}

static void backward_item(const cauchy *p, int64_t item, wide (*room)[GRADIENTS]) {
    const double *coefficients = p->coefficients + item * p->poles * COEFFICIENTS;
    const int64_t own = item * p->poles;
    prepare(p, item);
    memset(room, 0, (size_t)p->poles * sizeof *room);
    for (int64_t first = 0; first < p->frequencies; first += BLOCK * WIDE) {
        circle k[BLOCK];
        wide to[BLOCK][COEFFICIENTS];
        int64_t count = 0;
        for (int64_t at = first; count < BLOCK && at < p->frequencies; at += WIDE, count++) {
            k[count] = circle_at(p, at);
            through_sums(p, item, at, &k[count], to[count]);
        }
        for (int64_t n = 0; n < p->poles; n++)
            through_pole(coefficients + n * COEFFICIENTS, p->trace[own + n], p->square[own + n], count, k, to,
                         room[n]);
    }
    double to_step = 0;
    for (int64_t n = 0; n < p->poles; n++) {
        double to_moments[COEFFICIENTS];
        for (int j = 0; j < COEFFICIENTS; j++) to_moments[j] = sum_wide(room[n][j]);
        to_step += through_prepare(p, item, n, to_moments, sum_wide(room[n][COEFFICIENTS]),
                                   sum_wide(room[n][COEFFICIENTS + 1]));
    }
    p->to_step[item] = to_step;
}

/* 1 where there was no memory. */
int cauchy_backward(const cauchy *p) {
    int failed = 0;
#pragma omp parallel num_threads((int)p->threads)
    {
        wide(*room)[GRADIENTS] = aligned_alloc(sizeof(wide), (size_t)p->poles * sizeof *room);
        if (!room) {
#pragma omp atomic write
            failed = 1;
        } else {
#pragma omp for schedule(static)
            for (int64_t item = 0; item < p->items; item++) backward_item(p, item, room);
        }
        free(room);
    }
    return failed;
}
