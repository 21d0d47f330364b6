/* Many sequences through all layers in one call: of each one token, or a run of its prompt. Linear layers meet all
   rows at once, so weights are read once for all; attention is each sequence's own, over its blocks. */

#ifndef SHOESTRING_DECODE_BATCH_H
#define SHOESTRING_DECODE_BATCH_H

#include "attention.h"

/* The fields of these in the order of decode_batch.py.
   Of one sequence: rows first_row … first_row + tokens − 1 of x go to positions and slots start … */
typedef struct {
    int64_t first_row, tokens, start, wants_logits; /* of its last row */
    const int32_t *blocks;                          /* those of its slots, in order */
    int64_t sample;                                 /* whose states are its own, where mixers keep some */
} batch_sequence;

typedef struct {
    cache_rows keys, values; /* (blocks, kv_heads, slots) rows */
    mamba_states states;     /* of a mixer, instead */
} paged_layer;

typedef struct {
    const paged_layer *layers;
    int64_t slots; /* of a block */
} paged_memory;

typedef struct {
    const decode_model *model;
    const paged_memory *memory;
    const batch_sequence *sequences;
    const int32_t *owners; /* the sequence of every row */
    int64_t n_sequences, rows;
    atomic_int refused; /* whether numbers came up that have no codes */
} batch;

/* Attention of one sequence in one layer. */
INLINE attention_shape sequence_shape(const batch *b, int64_t layer, const batch_sequence *sequence) {
    const decode_model *m = b->model;
    const paged_layer *paged = b->memory->layers + layer;
    return (attention_shape){m->heads, m->kv_heads, m->head_dim, sequence->tokens, sequence->start,
                             m->layers[layer].window, b->memory->slots, sequence->blocks, m->scale, paged->keys,
                             paged->values, m->rounded};
}

/* Norm and rotation of this thread's heads; keys and values go to their blocks. */
static void place_rows(batch *b, int64_t number, const shared_room *room, int thread, int n_threads) {
    const decode_model *m = b->model;
    const decode_layer *layer = m->layers + number;
    int64_t n = m->head_dim, heads = m->heads + m->kv_heads, all_heads = b->rows * heads;
    for (int64_t one = all_heads * thread / n_threads; one < all_heads * (thread + 1) / n_threads; one++) {
        int64_t row = one / heads, head = one % heads;
        const batch_sequence *sequence = b->sequences + b->owners[row];
        attention_shape shape = sequence_shape(b, number, sequence);
        int64_t position = sequence->start + row - sequence->first_row;
        int is_key = head >= m->heads;
        head -= is_key ? m->heads : 0;
        float *x = is_key ? room->k + (row * m->kv_heads + head) * n : room->q + (row * m->heads + head) * n;
        const float *gain = is_key ? layer->k_norm : layer->q_norm;
        if (gain) normalise(x, gain, m->epsilon, n, x);
        rotate(x, layer->cosines + position * n, layer->sines + position * n, n);
        if (!is_key) {
            to_row_order(x, n, (int)shape.keys.kind);
            continue;
        }
        int64_t place = find_rows(&shape, head, position, 1).index;
        const float *v = room->v + (row * m->kv_heads + head) * n;
        if (!store_row(x, n, &shape.keys, place) || !store_row(v, n, &shape.values, place))
            atomic_store(&b->refused, 1);
    }
}

/* How many of `parts` equal parts of the work from `before` to `before` + `work` begin before `mark`. */
INLINE int64_t parts_until(int64_t mark, int64_t before, int64_t work, int64_t parts) {
    if (mark <= before) return 0;
    return mark >= before + work ? parts : (mark - before) * parts / work;
}

/* This thread's parts of all sequences: neighbours, with about its share of all slots that rows see. */
static void attend_batch(const batch *b, int64_t layer, const shared_room *room, float *own, int thread,
                         int n_threads) {
    const decode_model *m = b->model;
    int64_t all_work = 0, before = 0;
    for (int64_t i = 0; i < b->n_sequences; i++)
        all_work += b->sequences[i].tokens * (b->sequences[i].start + b->sequences[i].tokens);
    int64_t from = all_work * thread / n_threads, until = all_work * (thread + 1) / n_threads;
    for (int64_t i = 0; i < b->n_sequences; i++) {
        const batch_sequence *sequence = b->sequences + i;
        attention_shape shape = sequence_shape(b, layer, sequence);
        int64_t work = sequence->tokens * (sequence->start + sequence->tokens), parts = attention_parts(&shape);
        int64_t begin = parts_until(from, before, work, parts), end = parts_until(until, before, work, parts);
        int64_t row = sequence->first_row;
        attend_parts(room->q + row * m->heads * m->head_dim, &shape,
                     room->pieces + partial_results_floats(m->heads, m->head_dim, row), own, begin, end);
        before += work;
    }
}

/* own->attention <- the output for the rows of this thread's share, when all parts are done. */
static void collect_rows(const batch *b, int64_t layer, const shared_room *room, const own_room *own,
                         const row_share *share) {
    const decode_model *m = b->model;
    int64_t inner = m->heads * m->head_dim;
    float *to = own->attention;
    for (int64_t row = share->first; row < share->first + share->count; row++, to += inner) {
        const float *partials = room->pieces + partial_results_floats(m->heads, m->head_dim, row);
        if (is_prompt(b->sequences[b->owners[row]].tokens, m->heads, m->kv_heads))
            memcpy(to, room->q + row * inner, (size_t)inner * 4);
        else
            merge_pieces(partials, m->heads, m->head_dim, (int)b->memory->layers[layer].values.kind, to);
    }
}

static void paged_block(batch *b, int64_t number, const shared_room *room, const own_room *own, const row_share *share,
                        team_barrier *barrier) {
    const decode_model *m = b->model;
    const decode_layer *layer = m->layers + number;
    project_rows(m, layer, room, own, share, barrier);
    place_rows(b, number, room, share->thread, share->n_threads);
    meet(barrier);
    attend_batch(b, number, room, own->attention, share->thread, share->n_threads);
    meet(barrier);
    collect_rows(b, number, room, own, share);
    add_attention(m, layer, own->attention, room, own, share, barrier);
}

/* own->input <- the last row of every sequence that wants logits, normalised; how many there are. */
static int64_t wanted_rows(const batch *b, const shared_room *room, const own_room *own, const row_share *share,
                           team_barrier *barrier) {
    const decode_model *m = b->model;
    const float *stream = last_rows(m, room, own, share, b->rows, barrier);
    int64_t wanted = 0;
    for (int64_t i = 0; i < b->n_sequences; i++) {
        const batch_sequence *sequence = b->sequences + i;
        if (!sequence->wants_logits) continue;
        const float *last = stream + (sequence->first_row + sequence->tokens - 1) * m->hidden;
        finish_rows(m, last, 1, own->input + wanted++ * m->hidden);
    }
    return wanted;
}

/* Bytes of the room, to be 64-byte aligned, that a call of `rows` rows on `threads` threads needs. */
int64_t decode_batch_room(const decode_model *model, int64_t rows, int threads) {
    shared_room shared;
    return lay_out_shared(model, rows, rows, NULL, &shared) + own_bytes(model, rows, rows, threads);
}

/* x: (rows, hidden) embeddings; logits: (sequences that want them, vocabulary), in order of the sequences.
   1 where keys or values have no codes, and what the blocks hold for these rows is worth nothing; else 0. */
int decode_batch(const decode_model *model, const paged_memory *memory, const float *x, const batch_sequence *sequences,
                 int64_t n_sequences, const int32_t *owners, int64_t rows, float *logits, char *room, int threads) {
    team_barrier barrier = {0};
    shared_room shared;
    batch b = {model, memory, sequences, owners, n_sequences, rows, 0};
    token_run runs[n_sequences];
    for (int64_t i = 0; i < n_sequences; i++)
        runs[i] = (token_run){sequences[i].first_row, sequences[i].tokens, sequences[i].sample};
    int64_t offset = lay_out_shared(model, rows, rows, room, &shared);
#pragma omp parallel num_threads(threads)
    {
        own_room own;
#pragma omp single
        barrier.size = omp_get_num_threads();
        int thread = omp_get_thread_num(), n_threads = barrier.size;
        row_share share = share_of(rows, thread, n_threads);
        int64_t size = lay_out_thread(model, rows, rows, n_threads, NULL, &own);
        lay_out_thread(model, rows, rows, n_threads, room + offset + thread * size, &own);
        memcpy(own.stream, x + share.first * model->hidden, (size_t)(share.count * model->hidden) * 4);
        for (int64_t l = 0; l < model->n_layers; l++) {
            const decode_layer *layer = model->layers + l;
            if (layer->mamba)
                mamba_block(model, layer, &memory->layers[l].states, runs, n_sequences, &shared, &own, &share, &barrier);
            else
                paged_block(&b, l, &shared, &own, &share, &barrier);
            feed_forward_block(model, layer, &shared, &own, &share, &barrier);
        }
        int64_t wanted = wanted_rows(&b, &shared, &own, &share, &barrier);
        if (wanted) model->head->run(model->head, own.input, logits, wanted, thread, n_threads, own.scratch);
    }
    return b.refused;
}

#endif
