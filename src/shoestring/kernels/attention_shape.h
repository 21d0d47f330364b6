/* What attention over a cache is about: sizes, and where keys and values are.

   A cache is blocks of `capacity` slots; a sequence names its own, in the order of its slots. One that has a cache
   to itself has a single block.
   Source: Kwon et al. 2023, "PagedAttention", section 4.3. */

#ifndef SHOESTRING_ATTENTION_SHAPE_H
#define SHOESTRING_ATTENTION_SHAPE_H

#include "cache_rows.h"

typedef struct {
    int64_t heads, kv_heads, head_dim, tokens, start, window; /* window 0: all */
    int64_t capacity;                                         /* slots of a block: between two of its heads */
    const int32_t *blocks;                                    /* NULL: block 0 holds all slots */
    float scale;
    cache_rows keys, values;
    int64_t rounded; /* whether a prompt may round what it multiplies to bfloat16 */
} attention_shape;

/* Slots of one head that are neighbours in memory: the row of the first, and how many they are. */
typedef struct {
    int64_t index, slots;
} row_run;

/* Slot `slot` and those of the `slots` from it on that follow it in its block. */
INLINE row_run find_rows(const attention_shape *shape, int64_t head, int64_t slot, int64_t slots) {
    int64_t capacity = shape->capacity;
    if (!shape->blocks) return (row_run){head * capacity + slot, slots};
    int64_t within = slot % capacity, left = capacity - within;
    int64_t block = shape->blocks[slot / capacity];
    return (row_run){(block * shape->kv_heads + head) * capacity + within, slots < left ? slots : left};
}

#endif
