/* A barrier for a few threads that are never long in coming: they spin, and give the processor away only when
   somebody is late (another process has it). */

#ifndef SHOESTRING_DECODE_TEAM_H
#define SHOESTRING_DECODE_TEAM_H

#include <sched.h>
#include <stdatomic.h>

enum { PATIENCE = 1 << 10 };

typedef struct {
    _Alignas(64) atomic_int arrived;
    _Alignas(64) atomic_int phase;
    int size;
} team_barrier;

static inline void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static inline void meet(team_barrier *barrier) {
    int phase = atomic_load_explicit(&barrier->phase, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&barrier->arrived, 1, memory_order_acq_rel) == barrier->size - 1) {
        atomic_store_explicit(&barrier->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&barrier->phase, phase + 1, memory_order_release);
        return;
    }
    for (int waited = 1; atomic_load_explicit(&barrier->phase, memory_order_acquire) == phase; waited++)
        if (waited % PATIENCE) pause_briefly();
        else sched_yield();
}

#endif
