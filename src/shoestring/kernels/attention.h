/* Attention of new tokens over a cache that holds them already, a few of them or many.

   q: (tokens, heads, head_dim), every head in the order of rows of keys (`to_row_order`).
   shared: `attention_floats`; own: `attention_own_floats` of each thread. */

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

INLINE int64_t attention_floats(int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t tokens, int64_t slots) {
    if (is_prompt(tokens, heads, kv_heads)) return tokens * heads * head_dim;
    return tokens * heads * chunks_until(slots) * partial_floats(head_dim);
}

INLINE int64_t attention_own_floats(int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t tokens) {
    return is_prompt(tokens, heads, kv_heads) ? prompt_floats(head_dim) : tokens * heads * head_dim;
}

/* The output, (tokens, heads, head_dim), somewhere in the rooms; all threads meet inside. */
static const float *attend(const float *q, const attention_shape *shape, float *shared, float *own, int thread,
                           int n_threads, team_barrier *barrier) {
    if (is_prompt(shape->tokens, shape->heads, shape->kv_heads)) {
        attend_blocks(q, shape, own, shared, thread, n_threads);
        meet(barrier);
        return shared;
    }
    attend_share(q, shape, shared, thread, n_threads);
    meet(barrier);
    merge_pieces(shared, shape, own);
    return own;
}

#endif
