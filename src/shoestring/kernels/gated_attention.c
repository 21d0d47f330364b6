/* What stands around the products of a gated attention unit over blocks of a sequence:
       z, r, v = split(silu(x)),  q, k = turn(z gain + offset),  out = (softmax(scale q k^T) v) silu(x_r),
   forward and backward. The products themselves are the caller's, a batch of blocks at a time.

   Samples follow one another in q, k and v, each filled up to whole blocks; `before` and `after` blocks of zeros
   stand at the ends of k and v, so that the keys beside a block are a stretch of memory that overlaps with that of
   the next block. A row of scores knows the range of columns that it sees: what belongs to a neighbouring sample or
   lies outside of the window gets the weight 0. A thread takes whole rows, and what a tile of rows adds to the
   gradients of gain and offset is stored on its own: results do not depend on the number of threads. */

#include "activations.h"

enum { TILE = 64 };

typedef struct {
    int64_t batch, length, d_qk, d_hidden;
    int64_t block, count, before, after, reach, is_causal; /* count: blocks of a sample */
    int64_t threads;
    double scale;
    const float *x;                        /* (batch, length, d_qk + 2 d_hidden), parts in the order z, r, v */
    const float *gain, *offset;            /* (2, d_qk), of queries and of keys */
    const float *cosines, *sines;          /* (places, d_qk / 2), or NULL */
    const int64_t *places;                 /* (batch, length): rows of the two tables */
    const uint8_t *filled;                 /* (batch, length): keys that are there, or NULL for all */
    float *q, *k, *v;                      /* q: scaled */
    float *weights;                        /* (batch, count, block, span): of scores, in place */
    const float *h;                        /* (batch, count block, d_hidden): weights v */
    float *out;                            /* (batch, length, d_hidden) */
    const float *grad_out;
    float *grad_h, *grad_weights;          /* as h, weights; the second becomes the gradient of the scores */
    const float *grad_q, *grad_k, *grad_v; /* (batch, count, block | span | span, d) */
    float *grad_x, *grad_maps;             /* as x; (tiles, gain | offset, 2, d_qk) */
} gated_attention;

INLINE int width_at(int64_t first, int64_t end) { return (int)(end - first < LANES ? end - first : LANES); }

INLINE lanes take(const float *from, int count) {
    return count == LANES ? load_lanes(from) : load_some(from, 0, count, FLOAT32);
}

INLINE void put(float *to, lanes value, int count) {
    if (count == LANES) store_lanes(to, value);
    else memcpy(to, &value, (size_t)count * sizeof(float));
}

INLINE lanes silu(lanes x) { return x * quick_sigmoid_lanes(x); }

INLINE lanes silu_slope(lanes x) {
    lanes gate = quick_sigmoid_lanes(x);
    return gate * (1.0f + x * (1.0f - gate));
}

/* Where a row of q lies in its sample, and what that sample holds. */
typedef struct {
    int64_t sample, step, token; /* token: in the batch */
    int exists;
} place;

INLINE place place_of(const gated_attention *s, int64_t row) {
    place p;
    p.sample = row / (s->count * s->block);
    p.step = row % (s->count * s->block);
    p.token = p.sample * s->length + p.step;
    p.exists = p.step < s->length;
    return p;
}

INLINE int64_t rows_of(const gated_attention *s) { return s->batch * s->count * s->block; }
INLINE int64_t span_of(const gated_attention *s) { return (s->before + 1 + s->after) * s->block; }
INLINE int64_t width_of(const gated_attention *s) { return s->d_qk + 2 * s->d_hidden; }

/* Coordinates i and i + half turn by one angle; `way` -1 turns back. */
INLINE void turn(const gated_attention *s, int64_t token, float *x, const float way) {
    const int64_t half = s->d_qk / 2;
    const float *cosines = s->cosines + s->places[token] * half, *sines = s->sines + s->places[token] * half;
    for (int64_t i = 0; i < half; i += LANES) {
        int count = width_at(i, half);
        lanes a = take(x + i, count), b = take(x + half + i, count);
        lanes c = take(cosines + i, count), t = way * take(sines + i, count);
        put(x + i, a * c - b * t, count);
        put(x + half + i, b * c + a * t, count);
    }
}

void gated_attention_prepare(const gated_attention *s) {
    const int64_t rows = rows_of(s), ahead = s->before * s->block, behind = s->after * s->block;
    const float scale = (float)s->scale;
    memset(s->k, 0, sizeof(float) * (size_t)(ahead * s->d_qk));
    memset(s->v, 0, sizeof(float) * (size_t)(ahead * s->d_hidden));
    memset(s->k + (ahead + rows) * s->d_qk, 0, sizeof(float) * (size_t)(behind * s->d_qk));
    memset(s->v + (ahead + rows) * s->d_hidden, 0, sizeof(float) * (size_t)(behind * s->d_hidden));
#pragma omp parallel for schedule(static) num_threads((int)s->threads)
    for (int64_t row = 0; row < rows; row++) {
        const place p = place_of(s, row);
        float *q = s->q + row * s->d_qk, *k = s->k + (ahead + row) * s->d_qk, *v = s->v + (ahead + row) * s->d_hidden;
        if (!p.exists) {
            memset(q, 0, sizeof(float) * (size_t)s->d_qk);
            memset(k, 0, sizeof(float) * (size_t)s->d_qk);
            memset(v, 0, sizeof(float) * (size_t)s->d_hidden);
            continue;
        }
        const float *x = s->x + p.token * width_of(s), *x_v = x + s->d_qk + s->d_hidden;
        for (int64_t i = 0; i < s->d_qk; i += LANES) {
            int count = width_at(i, s->d_qk);
            lanes z = silu(take(x + i, count));
            put(q + i, scale * (z * take(s->gain + i, count) + take(s->offset + i, count)), count);
            put(k + i, z * take(s->gain + s->d_qk + i, count) + take(s->offset + s->d_qk + i, count), count);
        }
        if (s->cosines) {
            turn(s, p.token, q, 1.0f);
            turn(s, p.token, k, 1.0f);
        }
        for (int64_t i = 0; i < s->d_hidden; i += LANES) {
            int count = width_at(i, s->d_hidden);
            put(v + i, silu(take(x_v + i, count)), count);
        }
    }
}

/* The columns that a row of scores may see, [first, end), and the step of column 0 in its sample. */
typedef struct {
    int64_t start, first, end;
} range;

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

INLINE range range_of(const gated_attention *s, const place *p) {
    const int64_t start = (p->step / s->block - s->before) * s->block;
    const int64_t first = most(most(start, 0), p->step - s->reach);
    const int64_t end = least(least(start + span_of(s), s->length), p->step + (s->is_causal ? 0 : s->reach) + 1);
    return (range){start, first - start, end - start};
}

INLINE int_lanes seen_at(const gated_attention *s, const place *p, const range *r, int64_t column) {
    int_lanes seen;
    for (int i = 0; i < LANES; i++) seen[i] = (int32_t)column + i;
    seen = (seen >= (int32_t)r->first) & (seen < (int32_t)r->end);
    if (s->filled) {
        const uint8_t *filled = s->filled + p->sample * s->length + r->start;
        for (int i = 0; i < LANES; i++)
            if (seen[i] && !filled[column + i]) seen[i] = 0;
    }
    return seen;
}

static void softmax_row(const gated_attention *s, const place *p, float *w) {
    const range r = range_of(s, p);
    const int64_t span = span_of(s), first = r.first / LANES * LANES;
    lanes largest = all(-INFINITY), sum = all(0.0f);
    for (int64_t c = first; c < r.end; c += LANES)
        largest = larger(largest, choose(seen_at(s, p, &r, c), take(w + c, width_at(c, span)), all(-INFINITY)));
    const float highest = largest_lane(largest);
    memset(w, 0, sizeof(float) * (size_t)first);
    for (int64_t c = first; c < r.end; c += LANES) {
        int count = width_at(c, span);
        lanes e = choose(seen_at(s, p, &r, c), exp2_lanes(1.44269504f * (take(w + c, count) - highest)), all(0.0f));
        sum += e;
        put(w + c, e, count);
    }
    const float total = sum_lanes(sum), share = total > 0.0f ? 1.0f / total : 0.0f;
    const int64_t last = least(r.first < r.end ? (r.end + LANES - 1) / LANES * LANES : first, span);
    for (int64_t c = first; c < last; c += LANES) put(w + c, share * take(w + c, width_at(c, span)), width_at(c, span));
    memset(w + last, 0, sizeof(float) * (size_t)(span - last));
}

void gated_attention_weigh(const gated_attention *s) {
#pragma omp parallel for schedule(static) num_threads((int)s->threads)
    for (int64_t row = 0; row < rows_of(s); row++) {
        const place p = place_of(s, row);
        float *w = s->weights + row * span_of(s);
        if (p.exists) softmax_row(s, &p, w);
        else memset(w, 0, sizeof(float) * (size_t)span_of(s));
    }
}

void gated_attention_gate(const gated_attention *s) {
#pragma omp parallel for schedule(static) num_threads((int)s->threads)
    for (int64_t token = 0; token < s->batch * s->length; token++) {
        const int64_t row = token / s->length * s->count * s->block + token % s->length;
        const float *r = s->x + token * width_of(s) + s->d_qk, *h = s->h + row * s->d_hidden;
        for (int64_t i = 0; i < s->d_hidden; i += LANES) {
            int count = width_at(i, s->d_hidden);
            put(s->out + token * s->d_hidden + i, take(h + i, count) * silu(take(r + i, count)), count);
        }
    }
}

/* From the gradient of the output to those of h and of the part of x that gates. */
void gated_attention_ungate(const gated_attention *s) {
#pragma omp parallel for schedule(static) num_threads((int)s->threads)
    for (int64_t row = 0; row < rows_of(s); row++) {
        const place p = place_of(s, row);
        float *grad_h = s->grad_h + row * s->d_hidden;
        if (!p.exists) {
            memset(grad_h, 0, sizeof(float) * (size_t)s->d_hidden);
            continue;
        }
        const int64_t at = p.token * width_of(s) + s->d_qk;
        const float *grad = s->grad_out + p.token * s->d_hidden, *h = s->h + row * s->d_hidden;
        for (int64_t i = 0; i < s->d_hidden; i += LANES) {
            int count = width_at(i, s->d_hidden);
            lanes g = take(grad + i, count), r = take(s->x + at + i, count), gate = quick_sigmoid_lanes(r);
            put(grad_h + i, g * r * gate, count);
            put(s->grad_x + at + i, g * take(h + i, count) * gate * (1.0f + r * (1.0f - gate)), count);
        }
    }
}

/* The gradient of the scores, w (grad − Σ w grad), in the place of that of the weights. */
void gated_attention_unweigh(const gated_attention *s) {
    const int64_t span = span_of(s);
#pragma omp parallel for schedule(static) num_threads((int)s->threads)
    for (int64_t row = 0; row < rows_of(s); row++) {
        const float *w = s->weights + row * span;
        float *grad = s->grad_weights + row * span;
        lanes sum = all(0.0f);
        for (int64_t c = 0; c < span; c += LANES) sum += take(w + c, width_at(c, span)) * take(grad + c, width_at(c, span));
        const float mean = sum_lanes(sum);
        for (int64_t c = 0; c < span; c += LANES) {
            int count = width_at(c, span);
            put(grad + c, take(w + c, count) * (take(grad + c, count) - mean), count);
        }
    }
}

/* The sum over the blocks that a key stands beside, `width` numbers from `first`. */
INLINE lanes sum_of_blocks(const gated_attention *s, const place *p, const float *grad, int64_t width, int64_t first) {
    const int64_t own = p->step / s->block;
    const int64_t from = most(own - s->after, 0), to = least(own + s->before, s->count - 1);
    lanes sum = all(0.0f);
    for (int64_t b = from; b <= to; b++) {
        const int64_t column = p->step - (b - s->before) * s->block;
        const int64_t row = (p->sample * s->count + b) * span_of(s) + column;
        sum += take(grad + row * width + first, width_at(first, width));
    }
    return sum;
}

/* turned: room for the gradients of a query and a key. */
static void prepare_back(const gated_attention *s, int64_t row, const place *p, float *turned, float *maps) {
    const int64_t d = s->d_qk;
    const float *x = s->x + p->token * width_of(s);
    float *grad_x = s->grad_x + p->token * width_of(s);
    for (int64_t i = 0; i < d; i += LANES) {
        int count = width_at(i, d);
        put(turned + i, (float)s->scale * take(s->grad_q + row * d + i, count), count);
        put(turned + d + i, sum_of_blocks(s, p, s->grad_k, d, i), count);
    }
    if (s->cosines) {
        turn(s, p->token, turned, -1.0f);
        turn(s, p->token, turned + d, -1.0f);
    }
    for (int64_t i = 0; i < d; i += LANES) {
        int count = width_at(i, d);
        lanes at = take(x + i, count), z = silu(at), grad_z = all(0.0f);
        for (int64_t which = 0; which < 2; which++) {
            lanes grad = take(turned + which * d + i, count);
            float *gain = maps + which * d + i, *offset = maps + (2 + which) * d + i;
            grad_z += grad * take(s->gain + which * d + i, count);
            put(gain, take(gain, count) + grad * z, count);
            put(offset, take(offset, count) + grad, count);
        }
        put(grad_x + i, grad_z * silu_slope(at), count);
    }
    const int64_t values = d + s->d_hidden;
    for (int64_t i = 0; i < s->d_hidden; i += LANES) {
        int count = width_at(i, s->d_hidden);
        lanes grad = sum_of_blocks(s, p, s->grad_v, s->d_hidden, i);
        put(grad_x + values + i, grad * silu_slope(take(x + values + i, count)), count);
    }
}

void gated_attention_unprepare(const gated_attention *s) {
    const int64_t rows = rows_of(s), tiles = (rows + TILE - 1) / TILE;
#pragma omp parallel for schedule(static) num_threads((int)s->threads)
    for (int64_t tile = 0; tile < tiles; tile++) {
        float *maps = s->grad_maps + tile * 4 * s->d_qk, turned[2 * s->d_qk];
        memset(maps, 0, sizeof(float) * (size_t)(4 * s->d_qk));
        for (int64_t row = tile * TILE; row < least((tile + 1) * TILE, rows); row++) {
            const place p = place_of(s, row);
            if (p.exists) prepare_back(s, row, &p, turned, maps);
        }
    }
}
