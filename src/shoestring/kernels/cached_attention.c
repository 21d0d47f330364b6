/* Attention over a cache by itself: what the decode step does between its linear layers. */

#include <omp.h>

#include "attention.h"

/* Of the shared room first, then of every thread's own; each starts on 64 bytes. */
static int64_t shared_bytes(const attention_shape *shape) {
    int64_t tokens = is_prompt(shape->tokens, shape->heads, shape->kv_heads) ? 0 : shape->tokens;
    return (4 * partial_results_floats(shape->heads, shape->head_dim, tokens) + 63) / 64 * 64;
}

static int64_t own_bytes(const attention_shape *shape) {
    int64_t rows = is_prompt(shape->tokens, shape->heads, shape->kv_heads) ? 0 : shape->tokens;
    return (4 * attention_own_floats(shape->heads, shape->head_dim, shape->tokens, rows) + 63) / 64 * 64;
}

int64_t cached_attention_room(const attention_shape *shape, int threads) {
    return shared_bytes(shape) + threads * own_bytes(shape);
}

/* Stores `count` rows of x (kv_heads, count, head_dim) from slot `first` on; 0 where float16 holds no grid. */
int store_rows(const cache_rows *to, const float *x, int64_t kv_heads, int64_t capacity, int64_t first, int64_t count,
               int64_t head_dim) {
    int stored = 1;
    for (int64_t head = 0; head < kv_heads; head++)
        for (int64_t row = 0; row < count; row++)
            stored &= store_row(x + (head * count + row) * head_dim, head_dim, to, head * capacity + first + row);
    return stored;
}

/* One layer after the other, all of the same sizes; q (layers, tokens, heads, head_dim) is overwritten, out has
   its shape. The room is that of one layer. */
void cached_attention(const attention_shape *shapes, int64_t layers, float *q, char *room, float *out, int threads) {
    team_barrier barrier = {0};
    int64_t rows = shapes->tokens * shapes->heads, n = shapes->head_dim;
#pragma omp parallel num_threads(threads)
    {
#pragma omp single
        barrier.size = omp_get_num_threads();
        int thread = omp_get_thread_num(), n_threads = barrier.size;
        int64_t begin = rows * thread / n_threads, end = rows * (thread + 1) / n_threads;
        float *own = (float *)(room + shared_bytes(shapes) + thread * own_bytes(shapes));
        for (int64_t l = 0; l < layers; l++) {
            const attention_shape *shape = shapes + l;
            float *here = q + l * rows * n;
            for (int64_t row = begin; row < end; row++) to_row_order(here + row * n, n, (int)shape->keys.kind);
            /* By then everybody has read what the layer before left in the shared room. */
            meet(&barrier);
            const float *found = attend(here, shape, (float *)room, own, thread, n_threads, &barrier);
            memcpy(out + (l * rows + begin) * n, found + begin * n, (size_t)((end - begin) * n) * 4);
        }
    }
}
