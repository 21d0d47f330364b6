/* Causal convolutions of rows, forward and backward, each row start to end in the cache of its core.

   A thread takes some channels whole, all samples and copies of them, so that sums over samples have one order
   and results do not depend on the number of threads. Rows whose steps lie apart (features beside each other, as
   linear maps want them) are taken GROUP channels at a time and turned on the way in and out. */

#include "row_transform.h"

enum { GROUP = LANES, AHEAD = 2 * LANES };

/* Where a number of (batch, copy, channel, step) lies; either steps or channels are neighbours. */
typedef struct {
    NUMBER *base;
    int64_t batch, copy, channel, step;
} rows;

typedef struct {
    int64_t batch, copies, channels, length, lags, to_lags, is_by_step, threads, room_numbers;
    row_transform transform;
    rows u, y, grad, to_u; /* y, grad: with copies */
    const NUMBER *kernel, *skip, *spectrum; /* (copies, channels), each of lags, 1, 2 points */
    NUMBER *to_kernel; /* to_lags each */
    NUMBER *room;   /* threads times room_numbers */
    int64_t is_bad; /* set where u is not finite */
} fft_convolution;

/* One group more than a row needs: rows at a distance of a power of two would fall on one set of the cache. */
INLINE int64_t row_numbers(const fft_convolution *c) { return (c->length + LANES - 1) / LANES * LANES + LANES; }

/* The number `count` of the rooms of one thread. */
INLINE NUMBER *spectrum_room(const fft_convolution *c, NUMBER *room, int64_t count) {
    return room + count * 2 * c->transform.points;
}

/* Sixteen channels of steps that lie beside each other become rows, or back; `count` of them exist. */
static void gather_rows(const fft_convolution *c, const NUMBER *from, int64_t step, int64_t count, NUMBER *to) {
    const int64_t width = row_numbers(c);
    for (int64_t t = 0; t < c->length; t += LANES) {
        lanes v[LANES];
        for (int64_t i = 0; i < LANES; i++) /* the processor foresees no such steps */
            __builtin_prefetch(from + (t + i + AHEAD) * step);
        for (int64_t i = 0; i < LANES; i++)
            v[i] = t + i < c->length ? load_until(from + (t + i) * step, 0, count) : (lanes){0};
        transpose(v);
        for (int64_t i = 0; i < count; i++) store_lanes(to + i * width + t, v[i]);
    }
}

static void scatter_rows(const fft_convolution *c, const NUMBER *from, int64_t step, int64_t count, NUMBER *to) {
    const int64_t width = row_numbers(c);
    for (int64_t t = 0; t < c->length; t += LANES) {
        lanes v[LANES];
        for (int64_t i = 0; i < LANES; i++) v[i] = i < count ? load_lanes(from + i * width + t) : (lanes){0};
        transpose(v);
        for (int64_t i = 0; i < LANES && t + i < c->length; i++) store_until(to + (t + i) * step, 0, count, v[i]);
    }
}

/* z = a b, or a times the conjugate of b; `adds` to what is in z. */
INLINE void product(const fft_convolution *c, const NUMBER *a, const NUMBER *b, NUMBER *z, const int conjugates,
                    const int adds) {
    for (int64_t at = 0; at < 2 * c->transform.points; at += PAIR) {
        pair first = load_pair(a + at), second = load_pair(b + at);
        pair found = conjugates ? turned_back(first, second.re, second.im) : turned(first, second.re, second.im);
        store_pair(z + at, adds ? plus(load_pair(z + at), found) : found);
    }
}

/* The transform of a kernel; what goes straight through is one more tap at lag 0. */
static void kernel_row(const fft_convolution *c, int64_t copy, int64_t channel, NUMBER *z) {
    const int64_t row = copy * c->channels + channel;
    const int64_t numbers = 2 * c->transform.points;
    if (c->spectrum) memcpy(z, c->spectrum + row * numbers, sizeof(NUMBER) * (size_t)numbers);
    else transform_row(&c->transform, c->kernel + row * c->lags, c->lags, z);
    if (!c->skip) return;
    for (int64_t at = 0; at < numbers; at += PAIR)
        store_lanes(z + at, load_lanes(z + at) + c->skip[row]);
}

INLINE NUMBER *row_of(const rows *r, int64_t sample, int64_t copy, int64_t channel) {
    return r->base + sample * r->batch + copy * r->copy + channel * r->channel;
}

/* A value that is not finite is in all of a spectrum; so is an overflow of its sums. */
INLINE int is_finite(const NUMBER *z) {
    NUMBER sum = 0;
    for (int i = 0; i < PAIR; i++) sum += z[i] * 0;
    return sum == 0;
}

/* Rows of u and, after them, of every copy, where steps lie apart. */
INLINE NUMBER *rows_room(const fft_convolution *c, NUMBER *rows, int64_t copy, int64_t channel) {
    return rows + ((copy + 1) * GROUP + channel) * row_numbers(c);
}

INLINE NUMBER *here(const fft_convolution *c, const rows *r, int64_t sample, int64_t copy, int64_t channel,
                    int64_t first, NUMBER *turned) {
    return c->is_by_step ? row_of(r, sample, copy, first + channel) : turned;
}

/* Spectra are kept from sample to sample, so one sample needs those of one channel only. */
INLINE int64_t slot(const fft_convolution *c, int64_t channel, int64_t copy) {
    return (c->batch > 1 ? channel : 0) * c->copies + copy;
}

INLINE int64_t slots(const fft_convolution *c, int64_t count) { return (c->batch > 1 ? count : 1) * c->copies; }

/* Room of a thread: spectra of the kernels of its channels, two more, then rows. */
static int convolve_group(const fft_convolution *c, int64_t first, int64_t count, NUMBER *room) {
    NUMBER *signal = spectrum_room(c, room, slots(c, count)), *result = spectrum_room(c, signal, 1);
    NUMBER *rows = spectrum_room(c, result, 1);
    int fine = 1;
    for (int64_t sample = 0; sample < c->batch; sample++) {
        if (!c->is_by_step)
            gather_rows(c, row_of(&c->u, sample, 0, first), c->u.step, count, rows_room(c, rows, -1, 0));
        for (int64_t channel = 0; channel < count; channel++) {
            transform_row(&c->transform, here(c, &c->u, sample, 0, channel, first, rows_room(c, rows, -1, channel)),
                          c->length, signal);
            fine &= is_finite(signal);
            for (int64_t copy = 0; copy < c->copies; copy++) {
                NUMBER *kernel = spectrum_room(c, room, slot(c, channel, copy));
                if (sample == 0) kernel_row(c, copy, first + channel, kernel);
                product(c, signal, kernel, result, 0, 0);
                invert_row(&c->transform, result,
                           here(c, &c->y, sample, copy, channel, first, rows_room(c, rows, copy, channel)), c->length);
            }
        }
        for (int64_t copy = 0; copy < c->copies && !c->is_by_step; copy++)
            scatter_rows(c, rows_room(c, rows, copy, 0), c->y.step, count, row_of(&c->y, sample, copy, first));
    }
    return fine;
}

/* Gradients of one channel of one sample. Room: spectra of kernels, their gradients, three more, then rows. */
INLINE void backward_channel(const fft_convolution *c, int64_t sample, int64_t channel, int64_t first, int64_t count,
                             NUMBER *room) {
    NUMBER *sums = spectrum_room(c, room, slots(c, count)), *signal = spectrum_room(c, sums, slots(c, count));
    NUMBER *grad = spectrum_room(c, signal, 1), *result = spectrum_room(c, grad, 1);
    NUMBER *rows = spectrum_room(c, result, 1), *u = rows_room(c, rows, -1, channel);
    const int to_u = c->to_u.base != NULL, to_kernel = c->to_kernel != NULL;
    if (to_kernel) transform_row(&c->transform, here(c, &c->u, sample, 0, channel, first, u), c->length, signal);
    for (int64_t copy = 0; copy < c->copies; copy++) {
        NUMBER *kernel = spectrum_room(c, room, slot(c, channel, copy));
        NUMBER *sum = spectrum_room(c, sums, slot(c, channel, copy));
        transform_row(&c->transform,
                      here(c, &c->grad, sample, copy, channel, first, rows_room(c, rows, copy, channel)), c->length,
                      grad);
        if (to_u && sample == 0) kernel_row(c, copy, first + channel, kernel);
        if (to_u && copy == 0) product(c, grad, kernel, result, 1, 0);
        else if (to_u) product(c, grad, kernel, result, 1, 1);
        if (to_kernel && sample == 0) product(c, grad, signal, sum, 1, 0);
        else if (to_kernel) product(c, grad, signal, sum, 1, 1);
        if (to_kernel && sample == c->batch - 1)
            invert_row(&c->transform, sum, c->to_kernel + (copy * c->channels + first + channel) * c->to_lags, c->to_lags);
    }
    if (to_u) invert_row(&c->transform, result, here(c, &c->to_u, sample, 0, channel, first, u), c->length);
}

static void backward_group(const fft_convolution *c, int64_t first, int64_t count, NUMBER *room) {
    NUMBER *rows = spectrum_room(c, room, 2 * slots(c, count) + 3);
    for (int64_t sample = 0; sample < c->batch; sample++) {
        if (!c->is_by_step && c->to_kernel)
            gather_rows(c, row_of(&c->u, sample, 0, first), c->u.step, count, rows_room(c, rows, -1, 0));
        for (int64_t copy = 0; copy < c->copies && !c->is_by_step; copy++)
            gather_rows(c, row_of(&c->grad, sample, copy, first), c->grad.step, count, rows_room(c, rows, copy, 0));
        for (int64_t channel = 0; channel < count; channel++) backward_channel(c, sample, channel, first, count, room);
        if (!c->is_by_step && c->to_u.base) /* where u was */
            scatter_rows(c, rows_room(c, rows, -1, 0), c->to_u.step, count, row_of(&c->to_u, sample, 0, first));
    }
}

#define EACH_GROUP                                                                                               \
    const int64_t group = c->is_by_step ? 1 : GROUP;                                                             \
    _Pragma("omp parallel for schedule(static) num_threads((int)c->threads)")                                    \
    for (int64_t thread = 0; thread < c->threads; thread++)                                                      \
        for (int64_t first = thread * group; first < c->channels; first += c->threads * group)

#define COUNT (c->channels - first < group ? c->channels - first : group)

void fft_convolution_forward(fft_convolution *c) {
    EACH_GROUP {
        if (!convolve_group(c, first, COUNT, c->room + thread * c->room_numbers)) {
#pragma omp atomic write
            c->is_bad = 1;
        }
    }
}

void fft_convolution_backward(fft_convolution *c) {
    EACH_GROUP backward_group(c, first, COUNT, c->room + thread * c->room_numbers);
}

void fft_convolution_spectrum(fft_convolution *c, NUMBER *to) {
#pragma omp parallel for schedule(static) num_threads((int)c->threads)
    for (int64_t row = 0; row < c->copies * c->channels; row++)
        kernel_row(c, row / c->channels, row % c->channels, spectrum_room(c, to, row));
}

void fft_convolution_tables(int64_t top, int64_t height, NUMBER *weights, NUMBER *turns, NUMBER *leaves) {
    fill_tables(top, height, weights, turns, leaves);
}
