/* What attention over a cache is about: sizes, and where keys and values are. */

#ifndef SHOESTRING_ATTENTION_SHAPE_H
#define SHOESTRING_ATTENTION_SHAPE_H

#include "cache_rows.h"

typedef struct {
    int64_t heads, kv_heads, head_dim, tokens, start, window; /* window 0: all */
    int64_t capacity;                                         /* slots between two heads of the cache */
    float scale;
    cache_rows keys, values;
} attention_shape;

#endif
