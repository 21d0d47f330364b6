/* Depthwise causal convolution along time, with a bias and optionally SiLU:
       y[t, e] = act(bias[e] + sum over k of w[k, e] x[t - width + 1 + k, e]),
   or its mirror image in time. Rows hold the channels, so that memory is read in order. A thread takes tiles of
   TILE positions; what a tile adds to the gradient of the weights is stored on its own and summed by the caller, so
   that results do not depend on the number of threads. */

#include "activations.h"

enum { TILE = 64, MOST_WIDTH = 64 };

typedef struct {
    int64_t batch, seq, channels, width, row; /* row: floats of x from a position to the next */
    int64_t silu, reverse, threads;
    const float *x, *weight, *bias;           /* weight: (width, channels) */
    float *y;
    const float *grad_y;
    float *grad_x, *grad_weight, *grad_bias;  /* the last two: (tiles, width, channels), (tiles, channels) */
} causal_conv1d;

INLINE lanes take(const float *from, int count) {
    return count == LANES ? load_lanes(from) : load_some(from, 0, count, FLOAT32);
}

INLINE void put(float *to, lanes value, int count) {
    if (count == LANES) store_lanes(to, value);
    else memcpy(to, &value, (size_t)count * sizeof(float));
}

INLINE int64_t position(const causal_conv1d *s, int64_t step) { return s->reverse ? s->seq - 1 - step : step; }

/* Before the activation, of `count` channels from `first`. */
INLINE lanes convolve(const causal_conv1d *s, const float *x, int64_t step, int64_t first, int count, const int width) {
    lanes sum = s->bias ? take(s->bias + first, count) : all(0.0f);
    for (int k = 0; k < width; k++) {
        int64_t from = step - width + 1 + k;
        if (from >= 0)
            sum += take(s->weight + k * s->channels + first, count) * take(x + position(s, from) * s->row + first, count);
    }
    return sum;
}

INLINE void forward_tile(const causal_conv1d *s, int64_t sequence, int64_t tile, const int width) {
    const float *x = s->x + sequence * s->seq * s->row;
    float *y = s->y + sequence * s->seq * s->channels;
    int64_t end = (tile + 1) * TILE < s->seq ? (tile + 1) * TILE : s->seq;
    for (int64_t step = tile * TILE; step < end; step++)
        for (int64_t first = 0; first < s->channels; first += LANES) {
            int count = (int)(s->channels - first < LANES ? s->channels - first : LANES);
            lanes sum = convolve(s, x, step, first, count, width);
            if (s->silu) sum *= sigmoid_lanes(sum);
            put(y + position(s, step) * s->channels + first, sum, count);
        }
}

INLINE lanes grad_of_sum(const causal_conv1d *s, const float *x, const float *grad_y, int64_t step, int64_t first,
                         int count, const int width) {
    lanes grad = take(grad_y + position(s, step) * s->channels + first, count);
    if (!s->silu) return grad;
    lanes sum = convolve(s, x, step, first, count, width), gate = sigmoid_lanes(sum);
    return grad * gate * (1.0f + sum * (1.0f - gate));
}

/* Positions of a tile from the last: `later[j]` is the gradient of the sum at position step + j. */
INLINE void backward_tile(const causal_conv1d *s, int64_t sequence, int64_t tile, int64_t item, const int width) {
    const float *x = s->x + sequence * s->seq * s->row, *grad_y = s->grad_y + sequence * s->seq * s->channels;
    float *grad_x = s->grad_x + sequence * s->seq * s->channels;
    int64_t start = tile * TILE, end = start + TILE < s->seq ? start + TILE : s->seq;
    for (int64_t first = 0; first < s->channels; first += LANES) {
        int count = (int)(s->channels - first < LANES ? s->channels - first : LANES);
        lanes later[MOST_WIDTH], weight[MOST_WIDTH], grad_weight[MOST_WIDTH], grad_bias = all(0.0f);
        for (int k = 0; k < width; k++) {
            weight[k] = take(s->weight + k * s->channels + first, count);
            grad_weight[k] = later[k] = all(0.0f);
        }
        for (int64_t step = end + width - 2; step >= start; step--) {
            for (int k = width - 1; k > 0; k--) later[k] = later[k - 1];
            later[0] = step < s->seq ? grad_of_sum(s, x, grad_y, step, first, count, width) : all(0.0f);
            if (step >= end) continue; /* of the next tile: here only for what it hands back to this one */
            lanes sum = all(0.0f);
            for (int k = 0; k < width; k++) {
                sum += weight[width - 1 - k] * later[k];
                int64_t from = step - width + 1 + k;
                if (from >= 0) grad_weight[k] += later[0] * take(x + position(s, from) * s->row + first, count);
            }
            grad_bias += later[0];
            put(grad_x + position(s, step) * s->channels + first, sum, count);
        }
        for (int k = 0; k < width; k++)
            put(s->grad_weight + (item * width + k) * s->channels + first, grad_weight[k], count);
        put(s->grad_bias + item * s->channels + first, grad_bias, count);
    }
}

void causal_conv1d_forward(const causal_conv1d *s) {
    int64_t tiles = (s->seq + TILE - 1) / TILE;
#pragma omp parallel for num_threads((int)s->threads)
    for (int64_t item = 0; item < s->batch * tiles; item++) {
        if (s->width == 4) forward_tile(s, item / tiles, item % tiles, 4);
        else forward_tile(s, item / tiles, item % tiles, (int)s->width);
    }
}

void causal_conv1d_backward(const causal_conv1d *s) {
    int64_t tiles = (s->seq + TILE - 1) / TILE;
#pragma omp parallel for num_threads((int)s->threads)
    for (int64_t item = 0; item < s->batch * tiles; item++) {
        if (s->width == 4) backward_tile(s, item / tiles, item % tiles, item, 4);
        else backward_tile(s, item / tiles, item % tiles, item, (int)s->width);
    }
}
