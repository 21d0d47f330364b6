/* Blocks of 48 queries of one key-value head, and what each of them sees. */

#ifndef SHOESTRING_PROMPT_BLOCKS_H
#define SHOESTRING_PROMPT_BLOCKS_H

#include "attention_shape.h"
#include "query_lanes.h"

enum { TILE = 64 /* slots that a block meets at once */ };

typedef struct {
    int_lanes first[WIDE], last[WIDE]; /* slots that each query sees, both included */
    lanes most[WIDE], total[WIDE];     /* of the scores so far: the largest, the sum of exponentials below it */
} block_state;

/* Queries first, first + 1, … of a head, counted (token, head of the group); what is missing at the end of the
   last block stands in as the last query. */
INLINE int64_t query_row(const attention_shape *shape, int64_t head, int64_t query) {
    int64_t group = shape->heads / shape->kv_heads, last = shape->tokens * group - 1;
    query = query < last ? query : last;
    return query / group * shape->heads + head * group + query % group;
}

/* Nothing is seen yet of what the queries from `first` on will see. */
INLINE void begin_state(const attention_shape *shape, int64_t head, int64_t first, block_state *state) {
    for (int64_t lane = 0; lane < QUERIES; lane++) {
        int64_t row = query_row(shape, head, first + lane), position = shape->start + row / shape->heads;
        int64_t begin = shape->window && position + 1 > shape->window ? position + 1 - shape->window : 0;
        state->first[lane / LANES][lane % LANES] = (int32_t)begin;
        state->last[lane / LANES][lane % LANES] = (int32_t)position;
    }
    for (int j = 0; j < WIDE; j++) state->most[j] = all(-INFINITY), state->total[j] = (lanes){0};
}

/* Slots from the first that any query sees to the last, and those that all of them see. */
typedef struct {
    int64_t begin, end, whole_from, whole_to;
} seen_slots;

INLINE seen_slots slots_seen(const block_state *state) {
    return (seen_slots){state->first[0][0], state->last[WIDE - 1][LANES - 1] + 1, state->first[WIDE - 1][LANES - 1],
                        state->last[0][0] + 1};
}

INLINE int seen_by_all(const seen_slots *seen, int64_t slot, int64_t slots) {
    return slot >= seen->whole_from && slot + slots <= seen->whole_to;
}

/* Scores of a tile that no query's `first` to `last` holds become −∞. */
INLINE void mask_scores(float *scores, int64_t slots, int64_t first, const block_state *state) {
    for (int64_t s = 0; s < slots; s++)
        for (int j = 0; j < WIDE; j++) {
            float *at = scores + s * QUERIES + j * LANES;
            int_lanes slot = (int32_t)(first + s) - (int_lanes){0};
            int_lanes seen = (slot >= state->first[j]) & (slot <= state->last[j]);
            store_lanes(at, choose(seen, load_lanes(at), all(-INFINITY)));
        }
}

#endif
