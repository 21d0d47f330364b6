/* Matrix tiles of a processor (AMX): whether this process may use them, and how they are shaped.

   Source: Intel Architecture Instruction Set Extensions Programming Reference, chapter 3 (AMX). */

#ifndef SHOESTRING_MATRIX_TILES_H
#define SHOESTRING_MATRIX_TILES_H

enum { MATRIX_ROWS = 16, MATRIX_ROW_BYTES = 64 }; /* of a whole tile */

#if defined(__AMX_INT8__) && defined(__AMX_BF16__) && defined(__AVX512F__) && defined(__linux__)
#define HAS_MATRIX_TILES 1

#include <immintrin.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_shapes;

/* What is at `where` has been written: compilers do not know that instructions on tiles read memory. */
static inline void settle(const void *where) { __asm__ volatile("" : : "r"(where) : "memory"); }

/* Tiles 0 to 3 are sums, 4 and 5 the left operand, rows of `bytes` bytes, 6 and 7 the right one. */
static void shape_tiles(int64_t bytes) {
    tile_shapes shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        shapes.row_bytes[i] = (uint16_t)(i == 4 || i == 5 ? bytes : MATRIX_ROW_BYTES);
        shapes.rows[i] = (uint8_t)(i >= 6 ? bytes / 4 : MATRIX_ROWS);
    }
    settle(&shapes);
    _tile_loadconfig(&shapes);
}

static void release_tiles(void) { _tile_release(); }

/* One product, in a child: a virtual machine may announce tiles that it does not have. */
static void try_tiles(void) {
    _Alignas(64) int8_t ones[MATRIX_ROWS * MATRIX_ROW_BYTES];
    _Alignas(64) int32_t sums[MATRIX_ROWS * MATRIX_ROWS];
    memset(ones, 1, sizeof ones);
    settle(ones);
    shape_tiles(MATRIX_ROW_BYTES);
    _tile_loadd(4, ones, 64);
    _tile_loadd(6, ones, 64);
    _tile_zero(0);
    _tile_dpbsud(0, 4, 6);
    _tile_stored(0, sums, 64);
    _tile_release();
    for (int i = 0; i < MATRIX_ROWS * MATRIX_ROWS; i++)
        if (sums[i] != MATRIX_ROW_BYTES) _exit(1);
    _exit(0);
}

static int ask_for_tiles(void) {
    if (syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)) return 0;
    pid_t child = fork();
    if (child == 0) try_tiles();
    int status = 1;
    return child > 0 && waitpid(child, &status, 0) == child && status == 0;
}

/* Whether this process may use tiles, and they work: asked once. */
static int has_tiles(void) {
    static atomic_int known; /* 0: not yet; else 1 + the answer */
    int answer = atomic_load(&known);
    if (!answer) atomic_store(&known, answer = 1 + ask_for_tiles());
    return answer - 1;
}

#else
#define HAS_MATRIX_TILES 0

static inline int has_tiles(void) { return 0; }

#endif

#endif
