/* Many sequences through all layers in one call: of each one token, or a run of its prompt. Linear layers meet all
   rows at once, so weights are read once for all; attention is each sequence's own, over its blocks. */

#ifndef SHOESTRING_DECODE_BATCH_H
#define SHOESTRING_DECODE_BATCH_H

#include "paged_attention.h"

typedef struct {
    const decode_model *model;
    const paged_memory *memory;
    const batch_sequence *sequences;
    const int32_t *owners; /* the sequence of every row */
    int64_t n_sequences, rows;
    paged_shape shape;
    atomic_int refused; /* whether numbers came up that have no codes */
} batch;

/* Norm and rotation of this thread's heads; keys and values go to their blocks. */
static void place_rows(batch *b, const decode_layer *layer, const paged_layer *paged, const shared_room *room, int thread,
                       int n_threads) {
    const decode_model *m = b->model;
    int64_t n = m->head_dim, heads = m->heads + m->kv_heads, all_heads = b->rows * heads;
    for (int64_t one = all_heads * thread / n_threads; one < all_heads * (thread + 1) / n_threads; one++) {
        int64_t row = one / heads, head = one % heads;
        const batch_sequence *sequence = b->sequences + b->owners[row];
        int64_t position = sequence->start + row - sequence->first_row;
        int is_key = head >= m->heads;
        head -= is_key ? m->heads : 0;
        float *x = is_key ? room->k + (row * m->kv_heads + head) * n : room->q + (row * m->heads + head) * n;
        const float *gain = is_key ? layer->k_norm : layer->q_norm;
        if (gain) normalise(x, gain, m->epsilon, n, x);
        rotate(x, layer->cosines + position * n, layer->sines + position * n, n);
        if (!is_key) continue;
        int64_t slots = b->memory->slots, block = sequence->blocks[position / slots];
        int64_t place = paged_row(b->memory, m->kv_heads, block, head, position % slots);
        if (!write_row(x, n, &paged->keys, place) ||
            !write_row(room->v + (row * m->kv_heads + head) * n, n, &paged->values, place))
            atomic_store(&b->refused, 1);
    }
}

static void paged_block(batch *b, int64_t number, const shared_room *room, const own_room *own, float *attention_room,
                        const row_share *share, team_barrier *barrier) {
    const decode_model *m = b->model;
    const decode_layer *layer = m->layers + number;
    const paged_layer *paged = b->memory->layers + number;
    paged_shape shape = b->shape;
    shape.window = layer->window;
    normalise_rows(own->stream, layer->before_attention, m->epsilon, share->count, m->hidden, own->input);
    multiply(&layer->q, (float *const[]){room->q, room->k, room->v}, 3, own->input, share, own);
    meet(barrier);
    place_rows(b, layer, paged, room, share->thread, share->n_threads);
    meet(barrier);
    paged_attend(room->q, b->memory, paged, b->sequences, b->n_sequences, &shape, attention_room, share->thread,
                 share->n_threads);
    meet(barrier);
    multiply(&layer->o, &room->attended, 1, room->q + share->first * m->heads * m->head_dim, share, own);
    meet_for(share, barrier);
    add_output(own->stream, room->attended + share->first * m->hidden, layer->after_attention, m->epsilon,
               share->count, m->hidden, own->input);
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
        normalise(last, m->final_norm, m->epsilon, m->hidden, own->input + wanted++ * m->hidden);
    }
    return wanted;
}

static paged_shape shape_of(const decode_model *m) {
    return (paged_shape){m->heads, m->kv_heads, m->head_dim, 0, m->scale};
}

/* Bytes of the room, to be 64-byte aligned, that a call of `rows` rows on `threads` threads needs. */
int64_t decode_batch_room(const decode_model *model, int64_t rows, int threads) {
    shared_room shared;
    paged_shape shape = shape_of(model);
    return lay_out_shared(model, rows, 0, NULL, &shared) +
           own_bytes(model, rows, rows, threads, aligned(4 * paged_room_floats(&shape)));
}

/* x: (rows, hidden) embeddings; logits: (sequences that want them, vocabulary), in order of the sequences.
   1 where keys or values have no codes, and what the blocks hold for these rows is worth nothing; else 0. */
int decode_batch(const decode_model *model, const paged_memory *memory, const float *x, const batch_sequence *sequences,
                 int64_t n_sequences, const int32_t *owners, int64_t rows, float *logits, char *room, int threads) {
    team_barrier barrier = {0};
    shared_room shared;
    batch b = {model, memory, sequences, owners, n_sequences, rows, shape_of(model), 0};
    int64_t offset = lay_out_shared(model, rows, 0, room, &shared);
    int64_t attention_bytes = aligned(4 * paged_room_floats(&b.shape));
#pragma omp parallel num_threads(threads)
    {
        own_room own;
#pragma omp single
        barrier.size = omp_get_num_threads();
        int thread = omp_get_thread_num(), n_threads = barrier.size;
        row_share share = share_of(rows, thread, n_threads);
        int64_t size = lay_out_thread(model, rows, rows, n_threads, NULL, &own) + attention_bytes;
        char *mine = room + offset + thread * size;
        lay_out_thread(model, rows, rows, n_threads, mine, &own);
        float *attention_room = (float *)(mine + size - attention_bytes);
        memcpy(own.stream, x + share.first * model->hidden, (size_t)(share.count * model->hidden) * 4);
        for (int64_t l = 0; l < model->n_layers; l++) {
            paged_block(&b, l, &shared, &own, attention_room, &share, &barrier);
            feed_forward_block(model, model->layers + l, &shared, &own, &share, &barrier);
        }
        int64_t wanted = wanted_rows(&b, &shared, &own, &share, &barrier);
        if (wanted) model->head->run(model->head, own.input, logits, wanted, thread, n_threads, own.scratch);
    }
    return b.refused;
}

#endif
