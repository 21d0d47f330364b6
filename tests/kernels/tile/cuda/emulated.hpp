/* A GPU of one block at a time on the processor: every thread of the block is a thread, and what a warp does
   together goes through memory between two barriers. Stands in for device.cuh, so that the rest of a generated
   kernel runs as it is. */
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <pthread.h>

#define __device__
#define __global__
#define __forceinline__ inline
#define __constant__ static const
#define __shared__
#define __align__(n)
#define __launch_bounds__(n)
using std::max;
using std::min;

struct dim { int x; };
static thread_local dim threadIdx, blockIdx;
alignas(128) unsigned char shared[1 << 20];
static pthread_barrier_t block_barrier, warp_barrier[32];
static void __syncthreads() { pthread_barrier_wait(&block_barrier); }
static void meet_warp() { pthread_barrier_wait(&warp_barrier[threadIdx.x / 32]); }

struct uint2 { uint32_t x, y; };
struct uint4 { uint32_t x, y, z, w; };
static uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
static uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

static uint32_t __funnelshift_r(uint32_t low, uint32_t high, int by) {
    return (uint32_t)(((uint64_t)high << 32 | low) >> (by & 31));
}
static uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
    uint64_t both = (uint64_t)b << 32 | a;
    uint32_t out = 0;
    for (int i = 0; i < 4; i++) out |= (uint32_t)(both >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
    return out;
}
static uint32_t __float_as_uint(float x) { uint32_t u; memcpy(&u, &x, 4); return u; }
static float __uint_as_float(uint32_t u) { float x; memcpy(&x, &u, 4); return x; }
static int32_t __float2int_rn(float x) {
    if (x != x) return 0;
    return x >= 2147483648.0f ? 2147483647 : x < -2147483648.0f ? -2147483647 - 1 : (int32_t)nearbyintf(x);
}

static float from_f16(uint32_t code) { uint16_t c = (uint16_t)code; _Float16 h; memcpy(&h, &c, 2); return (float)h; }
static uint32_t to_f16(float x) { _Float16 h = (_Float16)x; uint16_t c; memcpy(&c, &h, 2); return c; }
static float from_bf16(uint32_t code) { return __uint_as_float(code << 16); }
static uint32_t to_bf16(float x) {
    uint32_t u = __float_as_uint(x);
    return x != x ? u >> 16 | 0x40 : (u + 0x7fff + (u >> 16 & 1)) >> 16;
}
#define PAIRWISE(name, kind, op)                                                                            \
    static uint32_t name##_##kind(uint32_t a, uint32_t b) {                                                 \
        return to_##kind(from_##kind(a & 0xffff) op from_##kind(b & 0xffff)) |                              \
               to_##kind(from_##kind(a >> 16) op from_##kind(b >> 16)) << 16;                               \
    }
PAIRWISE(add, f16, +) PAIRWISE(sub, f16, -) PAIRWISE(mul, f16, *)
PAIRWISE(add, bf16, +) PAIRWISE(sub, bf16, -) PAIRWISE(mul, bf16, *)

/* Copies land when their group is waited for, not before: who reads too early finds old bytes. */
struct pending_copy { void *to; unsigned char bytes[16]; int size, group; };
static thread_local pending_copy copies[4096];
static thread_local int n_copies, groups_begun;
static bool aligned_to(const void *p, int size) { return (uintptr_t)p % size == 0; }
static int misaligned;
template <int SIZE> static void copy_later(void *to, const void *from, int bytes) {
    pending_copy *copy = &copies[n_copies++];
    if (!aligned_to(to, SIZE) || (bytes && !aligned_to(from, SIZE))) misaligned = 1;
    memset(copy->bytes, 0, 16);
    memcpy(copy->bytes, from, bytes);
    copy->to = to, copy->size = SIZE, copy->group = groups_begun;
}
static void commit_copies() { groups_begun++; }
template <int PENDING> static void wait_copies() {
    int kept = 0;
    for (int i = 0; i < n_copies; i++) {
        if (copies[i].group < groups_begun - PENDING) memcpy(copies[i].to, copies[i].bytes, copies[i].size);
        else copies[kept++] = copies[i];
    }
    n_copies = kept;
}

static const void *rows_of[32][32];
static void exchange_rows(uint32_t *const *out, int count, const void *row) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (!aligned_to(row, 16)) misaligned = 1;
    rows_of[warp][lane] = row;
    meet_warp();
    for (int i = 0; i < count; i++)
        memcpy(out[i], (const char *)rows_of[warp][8 * i + lane / 4] + lane % 4 * 4, 4);
    meet_warp();
}
static void load_matrix(uint32_t &a, const void *row) { uint32_t *out[] = {&a}; exchange_rows(out, 1, row); }
static void load_matrices(uint32_t &a, uint32_t &b, const void *row) {
    uint32_t *out[] = {&a, &b};
    exchange_rows(out, 2, row);
}
static void load_matrices(uint32_t &a, uint32_t &b, uint32_t &c, uint32_t &d, const void *row) {
    uint32_t *out[] = {&a, &b, &c, &d};
    exchange_rows(out, 4, row);
}

/* By the tables of the PTX manual for mma.m16n8k16, written out by row and column. */
static float full_a[32][16][16], full_b[32][16][8];
static void multiply(float *c, const uint32_t *a, const uint32_t *b, float (*from)(uint32_t)) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = lane / 4, column = lane % 4;
    for (int i = 0; i < 8; i++) {
        int m = row + 8 * (i / 2 % 2), k = column * 2 + i % 2 + 8 * (i / 4);
        full_a[warp][m][k] = from(a[i / 2] >> 16 * (i % 2) & 0xffff);
    }
    for (int i = 0; i < 4; i++) full_b[warp][column * 2 + i % 2 + 8 * (i / 2)][row] = from(b[i / 2] >> 16 * (i % 2) & 0xffff);
    meet_warp();
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 16; k++) c[i] += full_a[warp][row + 8 * (i / 2)][k] * full_b[warp][k][column * 2 + i % 2];
    meet_warp();
}
static void multiply_f16(float *c, const uint32_t *a, const uint32_t *b) { multiply(c, a, b, from_f16); }
static void multiply_bf16(float *c, const uint32_t *a, const uint32_t *b) { multiply(c, a, b, from_bf16); }

static int stuck;
static void wait_for(const int32_t *at, int32_t value) {
    if (threadIdx.x == 0 && *at != value) stuck = 1; /* blocks run in order: nobody else would release it */
    __syncthreads();
}
static void release(int32_t *at, int32_t value) {
    __syncthreads();
    if (threadIdx.x == 0) *at = value;
}

/* Runs all blocks of `threads` threads; 0, 1 for a misaligned access, 2 for a semaphore nobody releases. */
struct team_member { int thread, blocks; void (*body)(void *); void *arguments; };
static void *member(void *p) {
    team_member *me = (team_member *)p;
    threadIdx.x = me->thread;
    for (blockIdx.x = 0; blockIdx.x < me->blocks; blockIdx.x++) {
        n_copies = groups_begun = 0;
        me->body(me->arguments);
        __syncthreads();
    }
    return NULL;
}
static int run_blocks(int blocks, int threads, void (*body)(void *), void *arguments) {
    pthread_t handles[1024];
    static team_member members[1024];
    memset(shared, 0xff, sizeof shared);
    pthread_barrier_init(&block_barrier, NULL, threads);
    for (int w = 0; w < threads / 32; w++) pthread_barrier_init(&warp_barrier[w], NULL, 32);
    for (int t = 0; t < threads; t++) {
        members[t] = {t, blocks, body, arguments};
        pthread_create(&handles[t], NULL, member, &members[t]);
    }
    for (int t = 0; t < threads; t++) pthread_join(handles[t], NULL);
    return misaligned ? 1 : stuck ? 2 : 0;
}
