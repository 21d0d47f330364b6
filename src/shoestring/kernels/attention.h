/* Attention of new tokens over a cache that holds them already, a few of them or many.

   q: (tokens, heads, head_dim), every head in the order of rows of keys (`to_row_order`).
   partials: `partial_results_floats` that threads share; own: `attention_own_floats` of each thread. */

#ifndef SHOESTRING_ATTENTION_H
#define SHOESTRING_ATTENTION_H

#include "decode_attention.h"
#include "decode_team.h"
#include "prompt_attention.h"

/* From so many queries of a key-value head on, blocks of them are faster than one token after the other (measured:
   1.2 times at 24, 2.4 times at 500). Few tokens are cut by slots all the same, for as many threads as there are. */
enum { FEW_TOKENS = 8, MANY_QUERIES = 24 };

INLINE int is_prompt(int64_t tokens, int64_t heads, int64_t kv_heads) {
    return tokens > FEW_TOKENS && tokens * (heads / kv_heads) >= MANY_QUERIES;
}

/* For so many tokens, all of sequences that are no prompts. */
INLINE int64_t partial_results_floats(int64_t heads, int64_t head_dim, int64_t tokens) {
    return tokens * heads * SPANS * partial_floats(head_dim);
}

/* For prompts, and for the output of `rows` tokens. */
INLINE int64_t attention_own_floats(int64_t heads, int64_t head_dim, int64_t tokens, int64_t rows) {
    int64_t prompt = tokens > FEW_TOKENS ? prompt_floats(head_dim) : 0, output = rows * heads * head_dim;
    return prompt > output ? prompt : output;
}

/* Into how many parts the work on a sequence is cut, however many threads there are. */
INLINE int64_t attention_parts(const attention_shape *shape) {
    int prompt = is_prompt(shape->tokens, shape->heads, shape->kv_heads);
    return shape->kv_heads * (prompt ? query_blocks(shape) : SPANS);
}

/* Parts [begin, end): the output of a prompt takes the place of its queries, that of few tokens is for
   `merge_pieces` when all parts are done. */
static void attend_parts(float *q, const attention_shape *shape, float *partials, float *own, int64_t begin,
                         int64_t end) {
    if (is_prompt(shape->tokens, shape->heads, shape->kv_heads)) attend_blocks(q, shape, own, begin, end);
    else attend_pieces(q, shape, partials, begin, end);
}

/* The output, (tokens, heads, head_dim), in q or in `own`; all threads meet inside. */
static const float *attend(float *q, const attention_shape *shape, float *partials, float *own, int thread,
                           int n_threads, team_barrier *barrier) {
    int64_t parts = attention_parts(shape);
    attend_parts(q, shape, partials, own, parts * thread / n_threads, parts * (thread + 1) / n_threads);
    meet(barrier);
    if (is_prompt(shape->tokens, shape->heads, shape->kv_heads)) return q;
    merge_pieces(partials, shape->tokens * shape->heads, shape->head_dim, (int)shape->values.kind, own);
    return own;
}

#endif
