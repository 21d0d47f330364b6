/* One token, or a few, through all layers of a decoder of the Llama family, in one call.

   The threads of a team share out the outputs of every linear layer and the pieces of attention, and meet
   between stages. What is cheap (norms, residual stream, activation, merging) every thread does for itself: a
   barrier costs more than a second copy of the work. No sum depends on the number of threads. */

#include <omp.h>

#include "attention.h"
#include "decode_team.h"
#include "head_placement.h"
#include "lanes.h"
#include "linear_kernel.h"

enum activation { SILU = 0, GELU_TANH = 1 };

/* The same fields in the same order as `DecodeLayer` and `DecodeModel` of decode_step.py. Norms are gains as
   they are multiplied (an offset is added already), NULL where there is none. */
typedef struct {
    const linear_kernel *q, *k, *v, *o, *gate, *up, *down;
    const float *before_attention, *after_attention, *before_mlp, *after_mlp, *q_norm, *k_norm;
    const float *cosines, *sines; /* (positions, head_dim): the sines signed for the half-split order */
    cache_rows keys, values;
    int32_t *positions; /* (capacity) what the cache notes beside each slot */
    int64_t capacity, window;
} decode_layer;

typedef struct {
    int64_t hidden, intermediate, heads, kv_heads, head_dim, n_layers, activation;
    float epsilon, scale;
    const decode_layer *layers;
    const float *final_norm;
    const linear_kernel *head;
} decode_model;

/* What one call works on. The first block is shared, the second belongs to one thread. */
typedef struct {
    float *q, *k, *v, *pieces, *attended, *gate, *up, *down;
    int64_t *refused; /* 1 + a layer whose keys or values could not be stored, else 0 */
} shared_room;

typedef struct {
    float *stream, *input, *attention, *gated;
    void *scratch;
} own_room;

INLINE int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

/* Cut `floats` numbers off the room; with no room, only count. */
static float *cut(char **room, int64_t *used, int64_t floats) {
    float *here = *room ? (float *)(*room + *used) : NULL;
    *used += aligned(4 * floats);
    return here;
}

static int64_t scratch_bytes(const decode_model *model, int64_t tokens) {
    int64_t most = model->head->scratch_bytes(model->head, tokens);
    for (int64_t l = 0; l < model->n_layers; l++) {
        const linear_kernel *const *kernels = &model->layers[l].q;
        for (int i = 0; i < 7; i++) {
            int64_t bytes = kernels[i]->scratch_bytes(kernels[i], tokens);
            most = bytes > most ? bytes : most;
        }
    }
    return aligned(most);
}

static int64_t lay_out_shared(const decode_model *m, int64_t tokens, int64_t slots, char *room, shared_room *to) {
    int64_t used = 0, inner = m->heads * m->head_dim, shared = m->kv_heads * m->head_dim;
    to->q = cut(&room, &used, tokens * inner);
    to->k = cut(&room, &used, tokens * shared);
    to->v = cut(&room, &used, tokens * shared);
    to->attended = cut(&room, &used, tokens * m->hidden);
    to->gate = cut(&room, &used, tokens * m->intermediate);
    to->up = cut(&room, &used, tokens * m->intermediate);
    to->down = cut(&room, &used, tokens * m->hidden);
    to->pieces = cut(&room, &used, attention_floats(m->heads, m->kv_heads, m->head_dim, tokens, slots));
    to->refused = (int64_t *)cut(&room, &used, 2);
    return used;
}

static int64_t lay_out_own(const decode_model *m, int64_t tokens, int64_t scratch, char *room, own_room *to) {
    int64_t used = 0;
    to->stream = cut(&room, &used, tokens * m->hidden);
    to->input = cut(&room, &used, tokens * m->hidden);
    to->attention = cut(&room, &used, attention_own_floats(m->heads, m->kv_heads, m->head_dim, tokens));
    to->gated = cut(&room, &used, tokens * m->intermediate);
    to->scratch = cut(&room, &used, scratch / 4);
    return used;
}

/* Bytes of the room, to be 64-byte aligned, that a call of `tokens` tokens on `threads` threads needs where
   the cache will hold `slots` slots. */
int64_t decode_room(const decode_model *model, int64_t tokens, int64_t slots, int threads) {
    shared_room shared;
    own_room own;
    return lay_out_shared(model, tokens, slots, NULL, &shared) +
           threads * lay_out_own(model, tokens, scratch_bytes(model, tokens), NULL, &own);
}

static void normalise_rows(const float *x, const float *gain, float epsilon, int64_t rows, int64_t n, float *out) {
    for (int64_t r = 0; r < rows; r++) normalise(x + r * n, gain, epsilon, n, out + r * n);
}

/* stream += y, or its norm; `room` is as large as y. */
static void add_output(float *stream, const float *y, const float *gain, float epsilon, int64_t rows, int64_t n,
                       float *room) {
    if (gain) {
        normalise_rows(y, gain, epsilon, rows, n, room);
        y = room;
    }
    for (int64_t i = 0; i < rows * n; i++) stream[i] += y[i];
}

/* Norm and rotation of this thread's heads of queries and keys; keys and values go to the cache. */
static void place_heads(const decode_model *m, const decode_layer *layer, const shared_room *room, int64_t tokens,
                        int64_t start, int thread, int n_threads) {
    int64_t n = m->head_dim, heads = m->heads + m->kv_heads;
    for (int64_t one = tokens * heads * thread / n_threads; one < tokens * heads * (thread + 1) / n_threads; one++) {
        int64_t row = one / heads, head = one % heads, slot = start + row;
        int is_key = head >= m->heads;
        head -= is_key ? m->heads : 0;
        float *x = is_key ? room->k + (row * m->kv_heads + head) * n : room->q + (row * m->heads + head) * n;
        const float *gain = is_key ? layer->k_norm : layer->q_norm;
        if (gain) normalise(x, gain, m->epsilon, n, x);
        rotate(x, layer->cosines + slot * n, layer->sines + slot * n, n);
        if (!is_key) {
            to_row_order(x, n, (int)layer->keys.kind);
            continue;
        }
        int64_t index = head * layer->capacity + slot;
        const float *v = room->v + (row * m->kv_heads + head) * n;
        if (!store_row(x, n, &layer->keys, index) || !store_row(v, n, &layer->values, index))
            __atomic_store_n(room->refused, 1 + (layer - m->layers), __ATOMIC_RELAXED);
        if (head == 0) layer->positions[slot] = (int32_t)slot;
    }
}

static void activate(const float *gate, const float *up, int64_t n, int64_t activation, float *out) {
    for (int64_t i = 0; i < n; i += LANES) {
        int64_t count = n - i < LANES ? n - i : LANES;
        lanes g = load_some(gate, i, count, FLOAT32), exponent = -g;
        /* GELU with tanh is g · sigmoid(2u). */
        if (activation == GELU_TANH) exponent = -2.0f * 0.797884561f * (g + 0.044715f * g * g * g);
        lanes value = g / (1.0f + exp_lanes(exponent)) * load_some(up, i, count, FLOAT32);
        memcpy(out + i, &value, (size_t)count * 4);
    }
}

static void multiply(const linear_kernel *kernel, const float *x, float *y, int64_t tokens, int thread, int n_threads,
                     void *scratch) {
    kernel->run(kernel, x, y, tokens, thread, n_threads, scratch);
}

static void attention_block(const decode_model *m, const decode_layer *layer, const shared_room *room,
                            const own_room *own, int64_t tokens, int64_t start, int thread, int n_threads,
                            team_barrier *barrier) {
    attention_shape shape = {m->heads, m->kv_heads, m->head_dim, tokens, start, layer->window, layer->capacity,
                             m->scale, layer->keys, layer->values};
    normalise_rows(own->stream, layer->before_attention, m->epsilon, tokens, m->hidden, own->input);
    multiply(layer->q, own->input, room->q, tokens, thread, n_threads, own->scratch);
    multiply(layer->k, own->input, room->k, tokens, thread, n_threads, own->scratch);
    multiply(layer->v, own->input, room->v, tokens, thread, n_threads, own->scratch);
    meet(barrier);
    place_heads(m, layer, room, tokens, start, thread, n_threads);
    meet(barrier);
    const float *seen = attend(room->q, &shape, room->pieces, own->attention, thread, n_threads, barrier);
    multiply(layer->o, seen, room->attended, tokens, thread, n_threads, own->scratch);
    meet(barrier);
    add_output(own->stream, room->attended, layer->after_attention, m->epsilon, tokens, m->hidden, own->input);
}

static void feed_forward_block(const decode_model *m, const decode_layer *layer, const shared_room *room,
                               const own_room *own, int64_t tokens, int thread, int n_threads,
                               team_barrier *barrier) {
    normalise_rows(own->stream, layer->before_mlp, m->epsilon, tokens, m->hidden, own->input);
    multiply(layer->gate, own->input, room->gate, tokens, thread, n_threads, own->scratch);
    multiply(layer->up, own->input, room->up, tokens, thread, n_threads, own->scratch);
    meet(barrier);
    activate(room->gate, room->up, tokens * m->intermediate, m->activation, own->gated);
    multiply(layer->down, own->gated, room->down, tokens, thread, n_threads, own->scratch);
    meet(barrier);
    add_output(own->stream, room->down, layer->after_mlp, m->epsilon, tokens, m->hidden, own->input);
}

/* x: (tokens, hidden) embeddings of the tokens that go to slots and positions start, start + 1, …
   logits: (logit_rows, vocabulary) of the last so many tokens; 0 rows fill the cache only.
   room: `decode_room` bytes, 64-byte aligned. Returns 0, or 1 + a layer that the cache could not store. */
int64_t decode_step(const decode_model *model, const float *x, int64_t tokens, int64_t start, float *logits,
                 int64_t logit_rows, char *room, int threads) {
    team_barrier barrier = {0};
    shared_room shared;
    int64_t scratch = scratch_bytes(model, tokens), offset = lay_out_shared(model, tokens, start + tokens, room, &shared);
    *shared.refused = 0;
#pragma omp parallel num_threads(threads)
    {
        own_room own;
#pragma omp single
        barrier.size = omp_get_num_threads();
        int thread = omp_get_thread_num(), n_threads = barrier.size;
        int64_t size = lay_out_own(model, tokens, scratch, NULL, &own);
        lay_out_own(model, tokens, scratch, room + offset + thread * size, &own);
        memcpy(own.stream, x, (size_t)(tokens * model->hidden) * 4);
        for (int64_t l = 0; l < model->n_layers; l++) {
            attention_block(model, model->layers + l, &shared, &own, tokens, start, thread, n_threads, &barrier);
            feed_forward_block(model, model->layers + l, &shared, &own, tokens, thread, n_threads, &barrier);
        }
        if (logit_rows) {
            const float *last = own.stream + (tokens - logit_rows) * model->hidden;
            normalise_rows(last, model->final_norm, model->epsilon, logit_rows, model->hidden, own.input);
            multiply(model->head, own.input, logits, logit_rows, thread, n_threads, own.scratch);
        }
    }
    return *shared.refused;
}

#include "decode_batch.h"
