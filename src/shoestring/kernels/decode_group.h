/* All tokens of one group of a HAMburger in one call, each the likeliest: the group before goes merged through the
   base, whose logits give the first token; micro steps give the others, until the stop head ends the group.

   What is cheap every thread does for itself, here too: all see the same logits, so all choose alike. */

#ifndef SHOESTRING_DECODE_GROUP_H
#define SHOESTRING_DECODE_GROUP_H

/* The fields of these in the order of decode_group.py.
   The heads of both decoders give the vocabulary's logits, and then what the first map of the stop head gives.
   The base taps the features that a group begins with. */
typedef struct {
    const decode_model *base, *micro;
    const void *embedding; /* (vocabulary, hidden) */
    int64_t embedding_kind, vocabulary, features, most_tokens, merge_heads;
    const linear_kernel *merge_query, *merge_key_value, *merge_out; /* of a token, without its place */
    const float *merge_places;                                       /* (most_tokens, 2 hidden): what places add */
    const linear_kernel *stop_second, *stop_last;
} group_model;

typedef struct {
    const int64_t *fed, *ends; /* tokens: of the group before; that end an output */
    int64_t n_fed, n_ends, start, most;
    double confidence; /* a group ends where 1 − p_stop is below it; if it is negative, where p_stop > 1/2 */
    int64_t *tokens;   /* (most) */
    float *base_logits, *micro_logits;
    char *base_room, *micro_room; /* as of `decode_step`: 1 token of the base; 1, and features + 1, of the micro */
    char *room;                   /* `group_room` bytes, 64-byte aligned */
} group_call;

/* Instead of a number of tokens. From CANNOT_STORE on downwards: less a layer of the base. */
enum { NO_LOGITS = -1, NO_STOP = -2, MICRO_CANNOT_STORE = -3, CANNOT_STORE = -4 };
enum { GO_ON, STOP, STOP_IS_NAN };

typedef struct {
    float *query, *key_value, *merged, *stop, *stop_logit; /* shared */
    float *rows, *mean, *seen, *gated;                     /* of one thread */
} group_rooms;

static int64_t lay_out_group(const group_model *g, char *room, int thread, group_rooms *to) {
    int64_t used = 0, n = g->base->hidden;
    int64_t rows = g->features + 1 > g->most_tokens ? g->features + 1 : g->most_tokens;
    to->query = cut(&room, &used, n);
    to->key_value = cut(&room, &used, g->most_tokens * 2 * n);
    to->merged = cut(&room, &used, n);
    to->stop = cut(&room, &used, n);
    to->stop_logit = cut(&room, &used, 1);
    for (int i = 0; i <= thread; i++) {
        to->rows = cut(&room, &used, rows * n);
        to->mean = cut(&room, &used, n);
        to->seen = cut(&room, &used, n);
        to->gated = cut(&room, &used, n);
    }
    return used;
}

int64_t group_room(const group_model *group, int threads) {
    group_rooms rooms;
    return lay_out_group(group, NULL, threads - 1, &rooms);
}

static void embed_row(const group_model *g, int64_t token, float *to) {
    int64_t n = g->base->hidden, i = 0;
    int kind = (int)g->embedding_kind;
    for (; i + LANES <= n; i += LANES) store_lanes(to + i, load_stored(g->embedding, token * n + i, kind));
    if (i < n) {
        lanes rest = load_some(g->embedding, token * n + i, n - i, kind);
        memcpy(to + i, &rest, (size_t)(n - i) * 4);
    }
}

/* Attention of one query to what a group's tokens and their places give, head by head. */
static void attend_tokens(const group_model *g, const float *query, const float *key_value, int64_t tokens,
                          float *seen) {
    int64_t n = g->base->hidden, size = n / g->merge_heads;
    float scale = 1.0f / sqrtf((float)size), weights[tokens];
    for (int64_t head = 0; head < n; head += size) {
        float largest = -INFINITY, sum = 0.0f;
        for (int64_t t = 0; t < tokens; t++) {
            const float *key = key_value + t * 2 * n + head, *place = g->merge_places + t * 2 * n + head;
            float score = 0.0f;
            for (int64_t i = 0; i < size; i++) score += (key[i] + place[i]) * query[head + i];
            weights[t] = score * scale;
            largest = weights[t] > largest ? weights[t] : largest;
        }
        for (int64_t t = 0; t < tokens; t++) sum += weights[t] = expf(weights[t] - largest);
        for (int64_t i = 0; i < size; i++) seen[head + i] = 0.0f;
        for (int64_t t = 0; t < tokens; t++) {
            const float *value = key_value + t * 2 * n + n + head, *place = g->merge_places + t * 2 * n + n + head;
            for (int64_t i = 0; i < size; i++) seen[head + i] += weights[t] / sum * (value[i] + place[i]);
        }
    }
}

/* The embedding of the group that is fed: of one token its own, else its tokens' mean and what attention finds. */
static const float *merge_group(const group_model *g, const group_call *call, const group_rooms *rooms, int thread,
                                int n_threads, team_barrier *barrier) {
    int64_t n = g->base->hidden, tokens = call->n_fed;
    for (int64_t t = 0; t < tokens; t++) embed_row(g, call->fed[t], rooms->rows + t * n);
    if (tokens == 1) return rooms->rows;
    memcpy(rooms->mean, rooms->rows, (size_t)n * 4);
    for (int64_t i = n; i < tokens * n; i++) rooms->mean[i % n] += rooms->rows[i];
    for (int64_t i = 0; i < n; i++) rooms->mean[i] /= (float)tokens;
    g->merge_query->run(g->merge_query, rooms->mean, rooms->query, 1, thread, n_threads, NULL);
    g->merge_key_value->run(g->merge_key_value, rooms->rows, rooms->key_value, tokens, thread, n_threads, NULL);
    meet(barrier);
    attend_tokens(g, rooms->query, rooms->key_value, tokens, rooms->seen);
    g->merge_out->run(g->merge_out, rooms->seen, rooms->merged, 1, thread, n_threads, NULL);
    meet(barrier);
    for (int64_t i = 0; i < n; i++) rooms->mean[i] += rooms->merged[i];
    return rooms->mean;
}

/* The first of the largest; NO_LOGITS where one is NaN. */
static int64_t likeliest(const float *logits, int64_t n) {
    lanes most = all(-INFINITY);
    int_lanes wrong = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        lanes some = load_lanes(logits + i);
        wrong |= some != some;
        most = larger(most, some);
    }
    float largest = largest_lane(most);
    for (int l = 0; l < LANES; l++)
        if (wrong[l]) return NO_LOGITS;
    for (; i < n; i++) {
        if (isnan(logits[i])) return NO_LOGITS;
        largest = logits[i] > largest ? logits[i] : largest;
    }
    for (i = 0; i + LANES <= n; i += LANES) {
        int_lanes found = load_lanes(logits + i) == all(largest);
        for (int l = 0; l < LANES; l++)
            if (found[l]) return i + l;
    }
    while (logits[i] != largest) i++;
    return i;
}

static void silu(const float *x, int64_t n, float *out) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        lanes some = load_lanes(x + i);
        store_lanes(out + i, some / (1.0f + exp_lanes(-some)));
    }
    for (; i < n; i++) out[i] = x[i] / (1.0f + expf(-x[i]));
}

/* Whether a group ends after its last token, by what the first map of the stop head gave. */
static int group_stops(const group_model *g, const group_call *call, const float *first, const group_rooms *rooms,
                       int thread, int n_threads, team_barrier *barrier) {
    int64_t n = g->base->hidden;
    silu(first, n, rooms->gated);
    g->stop_second->run(g->stop_second, rooms->gated, rooms->stop, 1, thread, n_threads, NULL);
    meet(barrier);
    silu(rooms->stop, n, rooms->gated);
    g->stop_last->run(g->stop_last, rooms->gated, rooms->stop_logit, 1, thread, n_threads, NULL);
    meet(barrier);
    double logit = *rooms->stop_logit;
    if (isnan(logit)) return STOP_IS_NAN;
    if (call->confidence < 0) return logit > 0 ? STOP : GO_ON;
    /* 1 − sigmoid(x) = sigmoid(−x). */
    double trust = logit <= 0 ? 1 / (1 + exp(logit)) : exp(-logit) / (1 + exp(-logit));
    return trust < call->confidence ? STOP : GO_ON;
}

static int among(int64_t token, const int64_t *tokens, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (tokens[i] == token) return 1;
    return 0;
}

/* What one thread of a team does in `decode_group`; all return the same. */
static int64_t run_group(const group_model *g, const group_call *call, int thread, int n_threads,
                         team_barrier *barrier) {
    group_rooms rooms;
    lay_out_group(g, call->room, thread, &rooms);
    int64_t n = g->base->hidden, count = 0, places = 0, refused;
    const float *merged = merge_group(g, call, &rooms, thread, n_threads, barrier), *logits = call->base_logits;
    run_step(g->base, merged, 1, call->start, call->base_logits, 1, call->base_room, thread, n_threads, barrier);
    meet(barrier);
    if ((refused = refused_layer(g->base, 1, call->base_room))) return CANNOT_STORE - (refused - 1);
    for (;;) {
        int64_t token = likeliest(logits, g->vocabulary);
        if (token < 0) return NO_LOGITS;
        if (thread == 0) call->tokens[count] = token;
        count++;
        if (count == call->most || among(token, call->ends, call->n_ends)) return count;
        int stops = group_stops(g, call, logits + g->vocabulary, &rooms, thread, n_threads, barrier);
        if (stops != GO_ON) return stops == STOP ? count : NO_STOP;
        int64_t before = count == 1 ? g->features : 0;
        memcpy(rooms.rows, g->base->taps, (size_t)(before * n) * 4);
        embed_row(g, token, rooms.rows + before * n);
        logits = call->micro_logits;
        run_step(g->micro, rooms.rows, before + 1, places, call->micro_logits, 1, call->micro_room, thread, n_threads,
                 barrier);
        meet(barrier);
        if (refused_layer(g->micro, before + 1, call->micro_room)) return MICRO_CANNOT_STORE;
        places += before + 1;
    }
}

/* The tokens of a group, whose number is returned, or one of what stands instead. `base->shift` is of the group
   that is fed. */
int64_t decode_group(const group_model *group, const group_call *call, int threads) {
    team_barrier barrier = {0};
    int64_t count = 0;
#pragma omp parallel num_threads(threads)
    {
#pragma omp single
        barrier.size = omp_get_num_threads();
        int thread = omp_get_thread_num();
        int64_t found = run_group(group, call, thread, barrier.size, &barrier);
        if (thread == 0) count = found;
    }
    return count;
}

#endif
