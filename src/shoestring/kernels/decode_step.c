/* One token, or a few, through all layers of a decoder of the Llama family, in one call.

   The threads of a team share out the outputs of every linear layer and the pieces of attention, and meet
   between stages. What is cheap (norms, residual stream, activation, merging) every thread does for itself: a
   barrier costs more than a second copy of the work. From LEAST_MANY tokens on, each thread has rows of its own
   instead, from the norm to the residual stream, and threads meet for attention only. No sum depends on the
   number of threads. */

#include <omp.h>

#include "attention.h"
#include "decode_mamba.h"
#include "decode_team.h"
#include "head_placement.h"
#include "lanes.h"
#include "linear_rows.h"

enum activation { SILU = 0, GELU_TANH = 1 };
enum { MOST_LOGITS = 8 };

/* The same fields in the same order as `DecodeLayer` and `DecodeModel` of decode_step.py. Norms are gains as
   they are multiplied (an offset is added already), NULL where there is none. */
typedef struct {
    /* Of a mixer q, k and o project to z, x, B and C, to the input of its step sizes, and back; v is NULL. */
    const linear_kernel *q, *k, *v, *o, *gate, *up, *down;
    const float *before_attention, *after_attention, *before_mlp, *after_mlp, *q_norm, *k_norm;
    const float *cosines, *sines; /* (positions, head_dim): the sines signed for the half-split order */
    cache_rows keys, values;
    int32_t *positions; /* (capacity) what the cache notes beside each slot */
    int64_t capacity, window;
    const mamba_mixer *mamba; /* NULL: attention; else what follows counts, not keys and values */
    mamba_states states;
} decode_layer;

typedef struct {
    int64_t hidden, intermediate, heads, kv_heads, head_dim, n_layers, activation;
    float epsilon, scale;
    const decode_layer *layers;
    const float *final_norm; /* NULL: what the last layer gives goes to the head as it is */
    const linear_kernel *head;
    int64_t shift; /* of `decode_step`: by how much positions run ahead of slots, whose tokens were evicted */
    const uint8_t *tapped; /* (n_layers + 1) after which layers, and after the final norm, the last row is copied */
    float *taps;           /* (those marked, hidden); both NULL where none is */
    int64_t rounded;       /* whether attention of prompts may round what it multiplies to bfloat16 */
} decode_model;

/* What one call works on. The first block is shared, the second belongs to one thread. */
typedef struct {
    float *q, *k, *v, *pieces, *attended, *gate, *up, *down, *mixed, *low;
    int64_t *refused; /* 1 + a layer whose keys or values could not be stored, else 0 */
} shared_room;

typedef struct {
    float *stream, *input, *attention, *gated;
    void *prepared, *scratch;
} own_room;

/* The rows that a thread normalises, activates and adds up: all of them, or, `by_rows`, its share. */
typedef struct {
    int64_t tokens, first, count;
    int by_rows, thread, n_threads;
} row_share;

static row_share share_of(int64_t tokens, int thread, int n_threads) {
    if (tokens < LEAST_MANY) return (row_share){tokens, 0, tokens, 0, thread, n_threads};
    int64_t first = tokens * thread / n_threads;
    return (row_share){tokens, first, tokens * (thread + 1) / n_threads - first, 1, thread, n_threads};
}

/* The most rows in a share. */
static int64_t share_rows(int64_t tokens, int n_threads) {
    return tokens < LEAST_MANY ? tokens : (tokens + n_threads - 1) / n_threads;
}

INLINE int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

/* Cut `floats` numbers off the room; with no room, only count. */
static float *cut(char **room, int64_t *used, int64_t floats) {
    float *here = *room ? (float *)(*room + *used) : NULL;
    *used += aligned(4 * floats);
    return here;
}

typedef struct {
    int64_t prepared, scratch;
} kernel_bytes;

static void need_for(const linear_kernel *kernel, int64_t tokens, int64_t rows, kernel_bytes *needed) {
    int by_rows = tokens >= LEAST_MANY;
    int64_t prepared = by_rows ? prepared_bytes(kernel, rows) : 0;
    int64_t scratch = by_rows ? rows_scratch_bytes(kernel, rows) : whole_lines(kernel->scratch_bytes(kernel, tokens));
    if (prepared > needed->prepared) needed->prepared = prepared;
    if (scratch > needed->scratch) needed->scratch = scratch;
}

/* What the kernels of a model need of one thread; the head runs by columns however many its rows are. */
static kernel_bytes bytes_of_kernels(const decode_model *model, int64_t tokens, int64_t rows, int64_t logit_rows) {
    kernel_bytes needed = {0, whole_lines(model->head->scratch_bytes(model->head, logit_rows))};
    for (int64_t l = 0; l < model->n_layers; l++)
        for (int i = 0; i < 7; i++) {
            const linear_kernel *kernel = (&model->layers[l].q)[i];
            if (kernel) need_for(kernel, tokens, rows, &needed);
        }
    return needed;
}

/* The most floats of a token that mixers need for z, x, B and C, and for the input of the step sizes. */
static void mixer_floats(const decode_model *m, int64_t *mixed, int64_t *low) {
    *mixed = *low = 0;
    for (int64_t l = 0; l < m->n_layers; l++) {
        const mamba_mixer *mixer = m->layers[l].mamba;
        if (!mixer) continue;
        if (mixed_width(mixer) > *mixed) *mixed = mixed_width(mixer);
        if (mixer->rank > *low) *low = mixer->rank;
    }
}

/* few: tokens that are not of a prompt, at most. */
static int64_t lay_out_shared(const decode_model *m, int64_t tokens, int64_t few, char *room, shared_room *to) {
    int64_t used = 0, inner = m->heads * m->head_dim, shared = m->kv_heads * m->head_dim;
    to->q = cut(&room, &used, tokens * inner);
    to->k = cut(&room, &used, tokens * shared);
    to->v = cut(&room, &used, tokens * shared);
    to->attended = cut(&room, &used, tokens * m->hidden);
    to->gate = cut(&room, &used, tokens * m->intermediate);
    to->up = cut(&room, &used, tokens * m->intermediate);
    to->down = cut(&room, &used, tokens * m->hidden);
    to->pieces = cut(&room, &used, partial_results_floats(m->heads, m->head_dim, few));
    to->refused = (int64_t *)cut(&room, &used, 2);
    int64_t mixed, low;
    mixer_floats(m, &mixed, &low);
    to->mixed = cut(&room, &used, tokens * mixed);
    to->low = cut(&room, &used, tokens * low);
    return used;
}

static int64_t lay_out_own(const decode_model *m, int64_t tokens, int64_t rows, int64_t logit_rows,
                           kernel_bytes kernels, char *room, own_room *to) {
    int64_t used = 0, normalised = rows > logit_rows ? rows : logit_rows;
    to->stream = cut(&room, &used, rows * m->hidden);
    to->input = cut(&room, &used, normalised * m->hidden);
    to->attention = cut(&room, &used, attention_own_floats(m->heads, m->head_dim, tokens, rows));
    to->gated = cut(&room, &used, rows * m->intermediate);
    to->prepared = cut(&room, &used, kernels.prepared / 4);
    to->scratch = cut(&room, &used, kernels.scratch / 4);
    return used;
}

/* With a room, to it; without one, to nowhere: the bytes of one thread. */
static int64_t lay_out_thread(const decode_model *m, int64_t tokens, int64_t logit_rows, int n_threads, char *room,
                              own_room *to) {
    int64_t rows = share_rows(tokens, n_threads);
    return lay_out_own(m, tokens, rows, logit_rows, bytes_of_kernels(m, tokens, rows, logit_rows), room, to);
}

/* The most that any team of up to `threads` threads needs for its own rooms. */
static int64_t own_bytes(const decode_model *m, int64_t tokens, int64_t logit_rows, int threads) {
    own_room own;
    int64_t most = 0;
    for (int team = 1; team <= threads; team++) {
        int64_t bytes = team * lay_out_thread(m, tokens, logit_rows, team, NULL, &own);
        most = bytes > most ? bytes : most;
    }
    return most;
}

static int64_t few_tokens(const decode_model *m, int64_t tokens) {
    return is_prompt(tokens, m->heads, m->kv_heads) ? 0 : tokens;
}

/* Bytes of the room, to be 64-byte aligned, that a call of `tokens` tokens on `threads` threads, or on fewer if
   no more are to be had, needs. */
int64_t decode_room(const decode_model *model, int64_t tokens, int threads) {
    shared_room shared;
    int64_t bytes = lay_out_shared(model, tokens, few_tokens(model, tokens), NULL, &shared);
    return bytes + own_bytes(model, tokens, MOST_LOGITS, threads);
}

static void normalise_rows(const float *x, const float *gain, float epsilon, int64_t rows, int64_t n, float *out) {
    for (int64_t r = 0; r < rows; r++) normalise(x + r * n, gain, epsilon, n, out + r * n);
}

/* Rows as the head takes them. */
static void finish_rows(const decode_model *m, const float *x, int64_t rows, float *out) {
    if (m->final_norm)
        normalise_rows(x, m->final_norm, m->epsilon, rows, m->hidden, out);
    else
        memcpy(out, x, (size_t)(rows * m->hidden) * 4);
}

/* Copy a row to its place among the taps where `at` is marked: layers count from 0, n_layers is the final norm. */
static void tap(const decode_model *m, int64_t at, const float *row) {
    if (!m->tapped || !m->tapped[at]) return;
    int64_t place = 0;
    for (int64_t i = 0; i < at; i++) place += m->tapped[i];
    memcpy(m->taps + place * m->hidden, row, (size_t)m->hidden * 4);
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
        int64_t position = slot + m->shift;
        rotate(x, layer->cosines + position * n, layer->sines + position * n, n);
        if (!is_key) {
            to_row_order(x, n, (int)layer->keys.kind);
            continue;
        }
        int64_t index = head * layer->capacity + slot;
        const float *v = room->v + (row * m->kv_heads + head) * n;
        if (!store_row(x, n, &layer->keys, index) || !store_row(v, n, &layer->values, index))
            __atomic_store_n(room->refused, 1 + (layer - m->layers), __ATOMIC_RELAXED);
        if (head == 0) layer->positions[slot] = (int32_t)position;
    }
}

INLINE lanes activated(lanes g, lanes up, int64_t activation) {
    lanes exponent = -g;
    /* GELU with tanh is g · sigmoid(2u). */
    if (activation == GELU_TANH) exponent = -2.0f * 0.797884561f * (g + 0.044715f * g * g * g);
    return g / (1.0f + exp_lanes(exponent)) * up;
}

static void activate(const float *gate, const float *up, int64_t n, int64_t activation, float *out) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        store_lanes(out + i, activated(load_lanes(gate + i), load_lanes(up + i), activation));
    if (i < n) {
        lanes value = activated(load_some(gate, i, n - i, FLOAT32), load_some(up, i, n - i, FLOAT32), activation);
        memcpy(out + i, &value, (size_t)(n - i) * 4);
    }
}

/* Up to three layers of one input x, the rows of this thread's share, to the same rows of each of ys. */
static void multiply(const linear_kernel *const *kernels, float *const *ys, int count, const float *x,
                     const row_share *share, const own_room *own) {
    float *rows[3];
    for (int i = 0; i < count; i++) rows[i] = ys[i] + share->first * kernels[i]->outputs;
    if (share->by_rows) {
        multiply_rows(kernels, rows, count, x, share->count, own->prepared, own->scratch);
        return;
    }
    for (int i = 0; i < count; i++)
        kernels[i]->run(kernels[i], x, ys[i], share->tokens, share->thread, share->n_threads, own->scratch);
}

/* Rows of a linear layer are whole when their own thread has them, or everybody has come so far. */
static void meet_for(const row_share *share, team_barrier *barrier) {
    if (!share->by_rows) meet(barrier);
}

/* The rows of this thread's share become queries, keys and values; all of them are there when it returns. */
static void project_rows(const decode_model *m, const decode_layer *layer, const shared_room *room,
                         const own_room *own, const row_share *share, team_barrier *barrier) {
    normalise_rows(own->stream, layer->before_attention, m->epsilon, share->count, m->hidden, own->input);
    multiply(&layer->q, (float *const[]){room->q, room->k, room->v}, 3, own->input, share, own);
    meet(barrier);
}

/* What attention gave the rows of this thread's share goes through its last layer to the residual stream. */
static void add_attention(const decode_model *m, const decode_layer *layer, const float *seen, const shared_room *room,
                          const own_room *own, const row_share *share, team_barrier *barrier) {
    multiply(&layer->o, &room->attended, 1, seen, share, own);
    meet_for(share, barrier);
    add_output(own->stream, room->attended + share->first * m->hidden, layer->after_attention, m->epsilon,
               share->count, m->hidden, own->input);
}

static void attention_block(const decode_model *m, const decode_layer *layer, const shared_room *room,
                            const own_room *own, const row_share *share, int64_t start,
                            team_barrier *barrier) {
    attention_shape shape = {m->heads, m->kv_heads, m->head_dim, share->tokens, start, layer->window, layer->capacity,
                             NULL, m->scale, layer->keys, layer->values, m->rounded};
    project_rows(m, layer, room, own, share, barrier);
    place_heads(m, layer, room, share->tokens, start, share->thread, share->n_threads);
    meet(barrier);
    const float *seen =
        attend(room->q, &shape, room->pieces, own->attention, share->thread, share->n_threads, barrier);
    add_attention(m, layer, seen + share->first * m->heads * m->head_dim, room, own, share, barrier);
}

/* The mixer of a Mamba layer, over runs of rows that follow what `states` has seen. */
static void mamba_block(const decode_model *m, const decode_layer *layer, const mamba_states *states,
                        const token_run *runs, int64_t n_runs, const shared_room *room, const own_room *own,
                        const row_share *share, team_barrier *barrier) {
    const mamba_mixer *mixer = layer->mamba;
    normalise_rows(own->stream, layer->before_attention, m->epsilon, share->count, m->hidden, own->input);
    multiply(&layer->q, (float *const[]){room->mixed, room->low}, 2, own->input, share, own);
    meet(barrier);
    scan_runs(mixer, states, room->mixed, room->low, room->q, runs, n_runs, share->thread, share->n_threads);
    meet(barrier);
    add_attention(m, layer, room->q + share->first * mixer->inner, room, own, share, barrier);
}

static void feed_forward_block(const decode_model *m, const decode_layer *layer, const shared_room *room,
                               const own_room *own, const row_share *share, team_barrier *barrier) {
    int64_t wide = share->first * m->intermediate;
    normalise_rows(own->stream, layer->before_mlp, m->epsilon, share->count, m->hidden, own->input);
    multiply(&layer->gate, (float *const[]){room->gate, room->up}, 2, own->input, share, own);
    meet_for(share, barrier);
    activate(room->gate + wide, room->up + wide, share->count * m->intermediate, m->activation, own->gated);
    multiply(&layer->down, &room->down, 1, own->gated, share, own);
    meet_for(share, barrier);
    add_output(own->stream, room->down + share->first * m->hidden, layer->after_mlp, m->epsilon, share->count,
               m->hidden, own->input);
}

/* The last `rows` rows of the stream, of which every thread may have some: its own, or gathered in `room->down`. */
static const float *last_rows(const decode_model *m, const shared_room *room, const own_room *own,
                              const row_share *share, int64_t rows, team_barrier *barrier) {
    int64_t n = m->hidden, from = share->tokens - rows;
    if (!share->by_rows) return own->stream + from * n;
    int64_t first = share->first > from ? share->first : from, end = share->first + share->count;
    if (first < end)
        memcpy(room->down + first * n, own->stream + (first - share->first) * n, (size_t)((end - first) * n) * 4);
    meet(barrier);
    return room->down + from * n;
}

/* What one thread of a team does in `decode_step`; whether the cache could store everything, and the logits, are
   known once all have met. */
static void run_step(const decode_model *model, const float *x, int64_t tokens, int64_t start, float *logits,
                     int64_t logit_rows, char *room, int thread, int n_threads, team_barrier *barrier) {
    shared_room shared;
    own_room own;
    const token_run run = {0, tokens, 0};
    int64_t offset = lay_out_shared(model, tokens, few_tokens(model, tokens), room, &shared);
    row_share share = share_of(tokens, thread, n_threads);
    int64_t size = lay_out_thread(model, tokens, MOST_LOGITS, n_threads, NULL, &own);
    lay_out_thread(model, tokens, MOST_LOGITS, n_threads, room + offset + thread * size, &own);
    /* Nobody stores anything before all have met. */
    if (thread == 0) *shared.refused = 0;
    memcpy(own.stream, x + share.first * model->hidden, (size_t)(share.count * model->hidden) * 4);
    /* The thread that copies the last row: of those that have it, one. */
    int has_last = share.by_rows ? share.count && share.first + share.count == tokens : thread == 0;
    for (int64_t l = 0; l < model->n_layers; l++) {
        const decode_layer *layer = model->layers + l;
        if (layer->mamba)
            mamba_block(model, layer, &layer->states, &run, 1, &shared, &own, &share, barrier);
        else
            attention_block(model, layer, &shared, &own, &share, start, barrier);
        feed_forward_block(model, layer, &shared, &own, &share, barrier);
        if (has_last) tap(model, l, own.stream + (share.count - 1) * model->hidden);
    }
    if (!logit_rows) return;
    const float *last = last_rows(model, &shared, &own, &share, logit_rows, barrier);
    finish_rows(model, last, logit_rows, own.input);
    if (has_last) tap(model, model->n_layers, own.input + (logit_rows - 1) * model->hidden);
    model->head->run(model->head, own.input, logits, logit_rows, thread, n_threads, own.scratch);
}

/* After `run_step` of all threads: 0, or 1 + a layer that the cache could not store. */
static int64_t refused_layer(const decode_model *model, int64_t tokens, char *room) {
    shared_room shared;
    lay_out_shared(model, tokens, few_tokens(model, tokens), room, &shared);
    return *shared.refused;
}

/* x: (tokens, hidden) embeddings of the tokens that go to slots start, start + 1, …, at positions `shift` later.
   logits: (logit_rows, vocabulary) of the last so many tokens; 0 rows fill the cache only.
   room: `decode_room` bytes, 64-byte aligned. Returns 0, or 1 + a layer that the cache could not store. */
int64_t decode_step(const decode_model *model, const float *x, int64_t tokens, int64_t start, float *logits,
                    int64_t logit_rows, char *room, int threads) {
    team_barrier barrier = {0};
#pragma omp parallel num_threads(threads)
    {
#pragma omp single
        barrier.size = omp_get_num_threads();
        run_step(model, x, tokens, start, logits, logit_rows, room, omp_get_thread_num(), barrier.size, &barrier);
    }
    return refused_layer(model, tokens, room);
}

#include "decode_batch.h"
#include "decode_group.h"
