/* Attention of short sequences in which every row sees every present one, with the sum of each column of its
   probabilities. A lane is a query: its scores against all keys stay in the processor's cache until its sum of
   exponentials is known, so that probabilities are added up and meet the values while they are there.

   A thread takes whole heads of a sample, and every head has column sums of its own, so results do not depend on
   the number of threads. */

#include <stdlib.h>

#include "lanes.h"
#include "query_lanes.h"

typedef struct {
    int64_t samples, n, heads, dim, threads;
    int64_t q_row, k_row, v_row;    /* floats from one token to the next; (samples, n, heads · dim) */
    float scale;
    const float *q, *k, *v;
    const float *present;           /* (samples, n): 1, or 0 for a token that is not there; NULL: all are */
    float *out, *sums;              /* (samples, n, heads, dim), (samples, heads, n) */
} columns;

typedef struct {
    float *keys, *values, *queries, *weights, *mixed, *added; /* 2 × (n, dim), (dim, QUERIES), (n, QUERIES),
                                                                 (dim, QUERIES), (n, LANES) */
} head_room;

INLINE int64_t room_floats(const columns *p) {
    return 2 * p->n * p->dim + (2 * p->dim + p->n) * QUERIES + p->n * LANES;
}

INLINE head_room cut_room(float *from, const columns *p) {
    head_room room = {.keys = from};
    room.values = room.keys + p->n * p->dim;
    room.queries = room.values + p->n * p->dim;
    room.weights = room.queries + p->dim * QUERIES;
    room.mixed = room.weights + p->n * QUERIES;
    room.added = room.mixed + p->dim * QUERIES;
    return room;
}

/* Scores to exponentials below each query's largest; 1 / their sums. */
INLINE void weigh(const columns *p, const float *present, float *scores, lanes inverse[WIDE]) {
    lanes most[WIDE], total[WIDE] = {{0}};
    for (int j = 0; j < WIDE; j++) most[j] = all(-INFINITY);
    for (int64_t s = 0; s < p->n; s++)
        if (!present || present[s] != 0)
            for (int j = 0; j < WIDE; j++) most[j] = larger(load_lanes(scores + s * QUERIES + j * LANES), most[j]);
    for (int64_t s = 0; s < p->n; s++) {
        float counts = present ? present[s] : 1.0f;
        for (int j = 0; j < WIDE; j++) {
            float *at = scores + s * QUERIES + j * LANES;
            lanes weight = counts != 0 ? exp_lanes(load_lanes(at) - most[j]) : (lanes){0};
            total[j] += weight;
            store_lanes(at, weight);
        }
    }
    for (int j = 0; j < WIDE; j++) inverse[j] = 1.0f / total[j];
}

static void attend_queries(const columns *p, int64_t sample, int64_t head, int64_t first, const head_room *room) {
    const float *present = p->present ? p->present + sample * p->n : NULL;
    const float *q = p->q + sample * p->n * p->q_row + head * p->dim;
    const lanes nothing[WIDE] = {{0}};
    lanes inverse[WIDE], counted[WIDE] = {{0}};
    int64_t queries = p->n - first < QUERIES ? p->n - first : QUERIES;
    memset(room->queries, 0, (size_t)(p->dim * QUERIES) * 4);
    memset(room->weights, 0, (size_t)(p->n * QUERIES) * 4);
    memset(room->mixed, 0, (size_t)(p->dim * QUERIES) * 4);
    for (int64_t lane = 0; lane < queries; lane++) {
        counted[lane / LANES][lane % LANES] = present ? present[first + lane] : 1.0f;
        for (int64_t i = 0; i < p->dim; i++)
            room->queries[i * QUERIES + lane] = p->scale * q[(first + lane) * p->q_row + i];
    }
    multiply_tile(room->keys, p->dim, 1, room->queries, p->dim, p->n, nothing, room->weights);
    weigh(p, present, room->weights, inverse);
    for (int j = 0; j < WIDE; j++) counted[j] *= inverse[j];
    for (int64_t s = 0; s < p->n; s++) {
        lanes sum = load_lanes(room->added + s * LANES);
        for (int j = 0; j < WIDE; j++) sum += load_lanes(room->weights + s * QUERIES + j * LANES) * counted[j];
        store_lanes(room->added + s * LANES, sum);
    }
    multiply_tile(room->values, 1, p->dim, room->weights, p->n, p->dim, nothing, room->mixed);
    for (int64_t lane = 0; lane < queries; lane++) {
        float *out = p->out + ((sample * p->n + first + lane) * p->heads + head) * p->dim;
        float share = inverse[lane / LANES][lane % LANES];
        for (int64_t i = 0; i < p->dim; i++) out[i] = share * room->mixed[i * QUERIES + lane];
    }
}

static void attend_head(const columns *p, int64_t sample, int64_t head, const head_room *room) {
    for (int64_t s = 0; s < p->n; s++) {
        int64_t row = sample * p->n + s, channel = head * p->dim;
        memcpy(room->keys + s * p->dim, p->k + row * p->k_row + channel, (size_t)p->dim * 4);
        memcpy(room->values + s * p->dim, p->v + row * p->v_row + channel, (size_t)p->dim * 4);
    }
    memset(room->added, 0, (size_t)(p->n * LANES) * 4);
    for (int64_t first = 0; first < p->n; first += QUERIES) attend_queries(p, sample, head, first, room);
    for (int64_t s = 0; s < p->n; s++)
        p->sums[(sample * p->heads + head) * p->n + s] = sum_lanes(load_lanes(room->added + s * LANES));
}

/* 1 where there was no memory. */
int attention_columns(const columns *p) {
    int failed = 0;
#pragma omp parallel num_threads((int)p->threads)
    {
        float *own = malloc((size_t)room_floats(p) * 4);
        if (!own) {
#pragma omp atomic write
            failed = 1;
        }
        /* All threads take part in the loop, whether they have room or not. */
#pragma omp for schedule(static)
        for (int64_t item = 0; item < p->samples * p->heads; item++)
            if (own) {
                head_room room = cut_room(own, p);
                attend_head(p, item / p->heads, item % p->heads, &room);
            }
        free(own);
    }
    return failed;
}
