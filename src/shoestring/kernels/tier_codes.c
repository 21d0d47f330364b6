/* Tokens of a cache into codes of few bits: keys on a grid for each channel, values on one for each token.

   Tokens are sorted into groups of a width each. Codes of a channel or token are packed from the lowest bit of a
   byte on. Nothing is fused, so that codes are those of plain torch. All groups are made by one team of threads:
   of a long prompt it is the waking and meeting of threads that costs, not the codes. */

#include <omp.h>

#include "cache_rows.h"

typedef struct {
    const float *x; /* (heads, tokens, head_dim) */
    int64_t heads, head_dim, head, row; /* head, row: from one to the next, in floats */
} tier_tokens;

/* k_codes: (channels, bytes), k_grids: (channels, 2); v_codes: (count, bytes), v_grids: (count, 2). */
typedef struct {
    const int64_t *index; /* of `count` tokens */
    int64_t count, bits;
    uint8_t *k_codes, *v_codes;
    uint16_t *k_grids, *v_grids;
} tier_group;

typedef struct {
    float lowest, scale; /* as they are stored */
    int fits;
} code_grid;

/* Token i of a group; without an index, of all. */
INLINE const float *token_of(const tier_tokens *tokens, const int64_t *index, int64_t head, int64_t i) {
    return tokens->x + head * tokens->head + (index ? index[i] : i) * tokens->row;
}

INLINE lanes load_width(const float *from, int64_t width) {
    return width == LANES ? load_lanes(from) : load_some(from, 0, width, FLOAT32);
}

static int64_t packed_bytes(int64_t count, int64_t bits) { return (count * bits + 7) / 8; }

/* The lowest value is rounded down first, the scale then up: no value is off by more than half a scale. */
static code_grid make_grid(float least, float most, int64_t bits, uint16_t *stored) {
    stored[1] = half_below(least);
    float lowest = half_to_float(stored[1]);
    stored[0] = half_above((most - lowest) / (float)((1 << bits) - 1));
    float scale = half_to_float(stored[0]);
    return (code_grid){lowest, scale == 0.0f ? 1.0f : scale, fabsf(least) <= 65504.0f && !isinf(scale)};
}

INLINE int_lanes codes_of(lanes x, lanes lowest, lanes scale, int64_t bits) {
    const float rounder = 12582912.0f;
    lanes steps = (((x - lowest) / scale) + rounder) - rounder, highest = all((float)((1 << bits) - 1));
    return __builtin_convertvector(choose(steps > highest, highest, steps), int_lanes);
}

INLINE int is_finite(lanes sum) { return sum_lanes(0.0f * sum) == 0.0f; }

/* Up to 64 channels of a head, in vectors: as much of every token as a cache line or four hold is read at once. */
enum { STRIP = 4 };

typedef struct {
    int64_t head, first, width; /* channels first … first + width − 1 */
    int vectors;
} channel_strip;

static int64_t strips_of(const tier_tokens *tokens) {
    return tokens->heads * ((tokens->head_dim + STRIP * LANES - 1) / (STRIP * LANES));
}

static channel_strip find_strip(const tier_tokens *tokens, int64_t i) {
    int64_t each = strips_of(tokens) / tokens->heads, first = i % each * STRIP * LANES, left = tokens->head_dim - first;
    int64_t width = left < STRIP * LANES ? left : STRIP * LANES;
    return (channel_strip){i / each, first, width, (int)((width + LANES - 1) / LANES)};
}

INLINE lanes load_part(const channel_strip *strip, const float *from, int j) {
    int64_t left = strip->width - j * LANES;
    return load_width(from + j * LANES, left < LANES ? left : LANES);
}

typedef struct {
    float least[STRIP * LANES], most[STRIP * LANES];
    int finite;
} strip_range;

typedef struct {
    float lowest[STRIP * LANES], scale[STRIP * LANES];
} strip_grid;

/* The extremes of each channel of a strip over tokens [begin, end) of a group. */
INLINE void find_range_of(const tier_tokens *tokens, const int64_t *index, const channel_strip *strip, int64_t begin,
                          int64_t end, int vectors, strip_range *range) {
    lanes least[STRIP], most[STRIP], sum = {0};
    for (int j = 0; j < STRIP; j++) least[j] = all(INFINITY), most[j] = -least[j];
    for (int64_t i = begin; i < end; i++) {
        const float *from = token_of(tokens, index, strip->head, i) + strip->first;
        for (int j = 0; j < vectors; j++) {
            lanes x = vectors == STRIP ? load_lanes(from + j * LANES) : load_part(strip, from, j);
            most[j] = larger(most[j], x), least[j] = -larger(-least[j], -x), sum += 0.0f * x;
        }
    }
    for (int j = 0; j < STRIP; j++) {
        store_lanes(range->least + j * LANES, least[j]);
        store_lanes(range->most + j * LANES, most[j]);
    }
    range->finite = is_finite(sum);
}

static void find_range(const tier_tokens *tokens, const int64_t *index, const channel_strip *strip, int64_t begin,
                       int64_t end, strip_range *range) {
    if (strip->width == STRIP * LANES) find_range_of(tokens, index, strip, begin, end, STRIP, range);
    else find_range_of(tokens, index, strip, begin, end, strip->vectors, range);
}

/* Bytes [begin, end) of the codes of every channel of a strip of keys. */
INLINE void encode_strip_of(const tier_tokens *tokens, const tier_group *group, const channel_strip *strip,
                            const strip_grid *grid, int64_t begin, int64_t end, int whole, int bits) {
    int64_t channel = strip->head * tokens->head_dim + strip->first;
    int64_t bytes = packed_bytes(group->count, bits), per_byte = 8 / bits;
    int vectors = whole ? STRIP : strip->vectors;
    for (int64_t byte = begin; byte < end; byte++) {
        int_lanes packed[STRIP] = {{0}};
        for (int64_t part = 0; part < per_byte && byte * per_byte + part < group->count; part++) {
            const float *from = token_of(tokens, group->index, strip->head, byte * per_byte + part) + strip->first;
            for (int j = 0; j < vectors; j++) {
                lanes x = whole ? load_lanes(from + j * LANES) : load_part(strip, from, j);
                lanes lowest = load_lanes(grid->lowest + j * LANES), scale = load_lanes(grid->scale + j * LANES);
                packed[j] |= codes_of(x, lowest, scale, bits) << (int32_t)(part * bits);
            }
        }
        uint8_t *to = group->k_codes + channel * bytes + byte;
        for (int j = 0; j < vectors; j++) {
            byte_lanes narrow = __builtin_convertvector(packed[j], byte_lanes);
            int64_t left = strip->width - j * LANES, lanes_used = whole || left > LANES ? LANES : left;
            for (int64_t lane = 0; lane < lanes_used; lane++) to[(j * LANES + lane) * bytes] = narrow[lane];
        }
    }
}

INLINE void encode_strip_in(const tier_tokens *tokens, const tier_group *group, const channel_strip *strip,
                            const strip_grid *grid, int64_t begin, int64_t end, int bits) {
    if (strip->width == STRIP * LANES) encode_strip_of(tokens, group, strip, grid, begin, end, 1, bits);
    else encode_strip_of(tokens, group, strip, grid, begin, end, 0, bits);
}

static void encode_strip(const tier_tokens *tokens, const tier_group *group, const channel_strip *strip,
                         const strip_grid *grid, int64_t begin, int64_t end) {
    switch (group->bits) {
    case 8: encode_strip_in(tokens, group, strip, grid, begin, end, 8); break;
    case 4: encode_strip_in(tokens, group, strip, grid, begin, end, 4); break;
    default: encode_strip_in(tokens, group, strip, grid, begin, end, 2);
    }
}

/* Codes, a byte each, into `bytes` bytes. */
static void pack_codes(const uint8_t *codes, int64_t bytes, int64_t bits, uint8_t *to) {
    if (bits == 8) {
        memcpy(to, codes, (size_t)bytes);
    } else if (bits == 4) {
        for (int64_t i = 0; i < bytes; i++) to[i] = (uint8_t)(codes[2 * i] | codes[2 * i + 1] << 4);
    } else {
        for (int64_t i = 0; i < bytes; i++) {
            uint32_t four;
            memcpy(&four, codes + 4 * i, 4);
            to[i] = (uint8_t)(four | four >> 6 | four >> 12 | four >> 18);
        }
    }
}

/* A token over all its channels, each divided by c. room: 5 bytes for each channel and 64 more. */
static int encode_token(const tier_tokens *tokens, const tier_group *group, int64_t i, const float *c, char *room) {
    int64_t n = tokens->heads * tokens->head_dim, padded = (n + LANES - 1) / LANES * LANES;
    float *x = (float *)room;
    uint8_t *wide = (uint8_t *)(x + padded);
    lanes least = all(INFINITY), most = -least, sum = {0};
    for (int64_t head = 0; head < tokens->heads; head++)
        memcpy(x + head * tokens->head_dim, token_of(tokens, group->index, head, i), (size_t)tokens->head_dim * 4);
    /* What fills up the last vector is no new extreme. */
    for (int64_t k = n; k < padded; k++) x[k] = x[0] / c[0];
    for (int64_t k = 0; k < padded; k += LANES) {
        lanes by = load_width(c + k, n - k < LANES ? n - k : LANES);
        lanes y = load_lanes(x + k) / choose(by == (lanes){0}, all(1.0f), by);
        most = larger(most, y), least = -larger(-least, -y), sum += 0.0f * y;
        store_lanes(x + k, y);
    }
    if (!is_finite(sum)) return 0;
    code_grid found = make_grid(-largest_lane(-least), largest_lane(most), group->bits, group->v_grids + 2 * i);
    for (int64_t k = 0; k < padded; k += LANES) {
        int_lanes here = codes_of(load_lanes(x + k), all(found.lowest), all(found.scale), group->bits);
        byte_lanes narrow = __builtin_convertvector(here, byte_lanes);
        memcpy(wide + k, &narrow, sizeof narrow);
    }
    memset(wide + n, 0, (size_t)(padded - n));
    int64_t bytes = packed_bytes(n, group->bits);
    pack_codes(wide, bytes, group->bits, group->v_codes + i * bytes);
    return found.fits;
}

/* Tokens are shared out in runs of so many, whose codes fill whole bytes. */
enum { RUN = 128 };

static int64_t runs_of(int64_t count) { return (count + RUN - 1) / RUN; }

static int64_t end_of(int64_t begin, int64_t step, int64_t end) { return begin + step < end ? begin + step : end; }

/* The extremes of one run of one strip. */
static void find_run(const tier_tokens *tokens, const int64_t *index, int64_t count, int64_t i, strip_range *ranges) {
    channel_strip strip = find_strip(tokens, i / runs_of(count));
    int64_t begin = i % runs_of(count) * RUN;
    find_range(tokens, index, &strip, begin, end_of(begin, RUN, count), ranges + i);
}

/* Those of all runs of a strip. */
static strip_range join_runs(const strip_range *from, int64_t runs) {
    strip_range joined = *from;
    for (int64_t i = 1; i < runs; i++) {
        joined.finite &= from[i].finite;
        for (int k = 0; k < STRIP * LANES; k++) {
            joined.most[k] = from[i].most[k] > joined.most[k] ? from[i].most[k] : joined.most[k];
            joined.least[k] = from[i].least[k] < joined.least[k] ? from[i].least[k] : joined.least[k];
        }
    }
    return joined;
}

/* The grids of the channels of a strip of keys. */
static int make_grids(const tier_tokens *k, const tier_group *group, int64_t i, const strip_range *ranges,
                      strip_grid *grid) {
    int64_t runs = runs_of(group->count);
    channel_strip strip = find_strip(k, i);
    strip_range joined = join_runs(ranges + i * runs, runs);
    int fit = joined.finite;
    for (int64_t lane = 0; lane < strip.width && joined.finite; lane++) {
        uint16_t *stored = group->k_grids + 2 * (strip.head * k->head_dim + strip.first + lane);
        code_grid found = make_grid(joined.least[lane], joined.most[lane], group->bits, stored);
        grid->lowest[lane] = found.lowest, grid->scale[lane] = found.scale, fit &= found.fits;
    }
    return fit;
}

/* c of the channels of a strip of values, and as it is stored; 1 where that is 0. */
static int scale_channels(const tier_tokens *v, int64_t count, int64_t i, const strip_range *ranges, float *c,
                          uint16_t *stored) {
    channel_strip strip = find_strip(v, i);
    strip_range joined = join_runs(ranges + i * runs_of(count), runs_of(count));
    for (int64_t lane = 0; lane < strip.width && joined.finite; lane++) {
        float most = fabsf(joined.most[lane]), least = fabsf(joined.least[lane]);
        int64_t channel = strip.head * v->head_dim + strip.first + lane;
        store_number(stored, channel, sqrtf(most > least ? most : least), FLOAT16);
        if (!stored[channel]) stored[channel] = 0x3C00;
        c[channel] = half_to_float(stored[channel]);
        joined.finite &= !isinf(c[channel]);
    }
    return joined.finite;
}

static void encode_run(const tier_tokens *k, const tier_group *group, int64_t i, const strip_grid *grids) {
    int64_t runs = runs_of(group->count), step = RUN * group->bits / 8, begin = i % runs * step;
    int64_t end = end_of(begin, step, packed_bytes(group->count, group->bits));
    channel_strip strip = find_strip(k, i / runs);
    encode_strip(k, group, &strip, grids + i / runs, begin, end);
}

static int64_t token_room(const tier_tokens *v) { return 5 * ((v->heads * v->head_dim + 63) / 64 * 64) + 64; }

static int encode_tokens(const tier_tokens *v, const tier_group *group, int64_t i, const float *c, char *room) {
    int fit = 1;
    int64_t begin = i * RUN, end = end_of(begin, RUN, group->count);
    for (int64_t t = begin; t < end; t++) fit &= encode_token(v, group, t, c, room);
    return fit;
}

typedef struct {
    strip_range *values, **keys; /* of the runs of every strip; of keys for each group */
    strip_grid **grids;
    float *c;
    char *tokens;
} tier_room;

/* Pieces of whole cache lines, one after the other; how many bytes they are. */
static int64_t cut_room(const tier_tokens *k, const tier_group *groups, int64_t count, int64_t tokens, int threads,
                        char *at, tier_room *room) {
    char *start = at;
    int64_t strips = strips_of(k), range = (int64_t)(sizeof(strip_range) + 63) / 64 * 64;
    room->keys = (strip_range **)at, room->grids = (strip_grid **)at + count;
    at += (2 * count * (int64_t)sizeof(void *) + 63) / 64 * 64;
    room->values = (strip_range *)at, at += strips * runs_of(tokens) * range;
    for (int64_t g = 0; g < count; g++) {
        if (start) room->keys[g] = (strip_range *)at;
        at += strips * runs_of(groups[g].count) * range;
        if (start) room->grids[g] = (strip_grid *)at;
        at += strips * (int64_t)sizeof(strip_grid);
    }
    room->c = (float *)at, at += (k->heads * k->head_dim + LANES - 1) / LANES * LANES * 4;
    room->tokens = at;
    return at - start + threads * ((token_room(k) + 63) / 64 * 64);
}

int64_t tier_codes_room(const tier_tokens *k, const tier_group *groups, int64_t count, int64_t tokens, int threads) {
    tier_room room;
    return cut_room(k, groups, count, tokens, threads, NULL, &room);
}

/* tokens: of values whose channels c is for; c: (channels), as stored. 0 where a value or grid is beyond float16. */
int encode_tiers(const tier_tokens *k, const tier_tokens *v, const tier_group *groups, int64_t count, int64_t tokens,
                 uint16_t *c, char *room, int threads) {
    int fit = 1;
    tier_room own;
    cut_room(k, groups, count, tokens, threads, room, &own);
    int64_t strips = strips_of(k);
#pragma omp parallel num_threads(threads) reduction(& : fit)
    {
        char *mine = own.tokens + omp_get_thread_num() * ((token_room(k) + 63) / 64 * 64);
#pragma omp for nowait
        for (int64_t i = 0; i < strips * runs_of(tokens); i++) find_run(v, NULL, tokens, i, own.values);
        for (int64_t g = 0; g < count; g++) {
#pragma omp for nowait
            for (int64_t i = 0; i < strips * runs_of(groups[g].count); i++)
                find_run(k, groups[g].index, groups[g].count, i, own.keys[g]);
        }
#pragma omp barrier
#pragma omp for nowait
        for (int64_t i = 0; i < strips; i++) fit &= scale_channels(v, tokens, i, own.values, own.c, c);
        for (int64_t g = 0; g < count; g++) {
#pragma omp for nowait
            for (int64_t i = 0; i < strips; i++) fit &= make_grids(k, groups + g, i, own.keys[g], own.grids[g] + i);
        }
#pragma omp barrier
        for (int64_t g = 0; g < count; g++) {
#pragma omp for nowait
            for (int64_t i = 0; i < runs_of(groups[g].count); i++)
                fit &= encode_tokens(v, groups + g, i, own.c, mine);
#pragma omp for nowait
            for (int64_t i = 0; i < strips * runs_of(groups[g].count); i++) encode_run(k, groups + g, i, own.grids[g]);
        }
    }
    return fit;
}
