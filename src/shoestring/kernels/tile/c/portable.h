/* The vector vocabulary of generated kernels for any processor: LANES lanes in the vector types that GCC and Clang
   have everywhere. */
typedef float vf __attribute__((vector_size(4 * LANES)));    /* floats */
typedef int32_t vi __attribute__((vector_size(4 * LANES)));  /* integers, or 32 bits of each lane's bit string */
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef struct { int low, high; } vm;                         /* lanes low .. high - 1 */

#define EACH_LANE for (int t = 0; t < LANES; t++)
#define MAP(type, name, parameters, expression)                     \
    static inline type name parameters {                            \
        type out;                                                   \
        EACH_LANE out[t] = (expression);                            \
        return out;                                                 \
    }
#define U(x) ((uint32_t)(x))

static inline vf vf_set1(float x) { return x - (vf){0}; }
static inline vi vi_set1_int(int32_t x) { return x - (vi){0}; }
#define vi_set1(x) vi_set1_int((int32_t)(x))
static inline vf vf_load(const void *p) { vf out; memcpy(&out, p, sizeof out); return out; }
static inline vi vi_load(const void *p) { vi out; memcpy(&out, p, sizeof out); return out; }
static inline void vf_store(void *p, vf x) { memcpy(p, &x, sizeof x); }
static inline void vi_store(void *p, vi x) { memcpy(p, &x, sizeof x); }
#define vf_first(x) ((x)[0])
#define vi_first(x) ((x)[0])
#define vf_bits(a) ((vi)(a))
#define vi_as_float(a) ((vf)(a))

static inline vm vm_between(int low, int high) { vm out = {low, high}; return out; }
MAP(vf, vf_load_masked, (const float *p, vm m), t >= m.low && t < m.high ? p[t] : 0.0f)
MAP(vi, vi_load_masked, (const int32_t *p, vm m), t >= m.low && t < m.high ? p[t] : 0)
static inline void vf_store_masked(float *p, vm m, vf x) { for (int t = m.low; t < m.high; t++) p[t] = x[t]; }
static inline void vi_store_masked(int32_t *p, vm m, vi x) { for (int t = m.low; t < m.high; t++) p[t] = x[t]; }

#define vf_add(a, b) ((a) + (b))
#define vf_sub(a, b) ((a) - (b))
#define vf_mul(a, b) ((a) * (b))
#define vf_div(a, b) ((a) / (b))
#define vf_fma(a, b, c) ((a) * (b) + (c))
MAP(vf, vf_max, (vf a, vf b), greater(a[t], b[t]))
MAP(vf, vf_min, (vf a, vf b), lesser(a[t], b[t]))
MAP(vf, vf_sqrt, (vf a), sqrtf(a[t]))
MAP(vf, vf_rsqrt, (vf a), 1.0f / sqrtf(a[t]))
#define vf_abs(a) vi_as_float(vi_and(vf_bits(a), vi_set1(0x7fffffff)))
#define vf_neg(a) (-(a))
#define vi_add(a, b) ((vi)((vu)(a) + (vu)(b)))
#define vi_sub(a, b) ((vi)((vu)(a) - (vu)(b)))
#define vi_mul(a, b) ((vi)((vu)(a) * (vu)(b)))
MAP(vi, vi_max, (vi a, vi b), larger(a[t], b[t]))
MAP(vi, vi_min, (vi a, vi b), smaller(a[t], b[t]))
MAP(vi, vi_abs, (vi a), magnitude_of(a[t]))
#define vi_neg(a) vi_sub((vi){0}, a)
#define vi_and(a, b) ((a) & (b))
#define vi_or(a, b) ((a) | (b))
#define vi_xor(a, b) ((a) ^ (b))
#define vi_shl(a, n) ((vi)((vu)(a) << (n)))
#define vi_shr(a, n) ((vi)((vu)(a) >> (n)))
#define vi_sar(a, n) ((a) >> (n))
MAP(vf, vf_from_int, (vi a), (float)a[t])
MAP(vi, vi_round, (vf a), (int32_t)round_saturated(a[t], -2147483648.0, 2147483647.0))
MAP(vi, vi_or_where, (vi a, vi x, int limit, int set), x[t] >= limit ? a[t] | set : a[t])
MAP(vf, vf_from_half, (vi a), half_to_float(U(a[t]) & 0xffffu))
MAP(vi, vi_half, (vf a), (int32_t)float_to_half(a[t]))
MAP(vi, vi_brain, (vf a), (int32_t)float_to_brain(a[t]))
MAP(vf, vf_swap, (vf a, int k), a[t ^ k])
MAP(vi, vi_swap, (vi a, int k), a[t ^ k])

#define ENTER_KERNEL (void)0
#define LEAVE_KERNEL (void)0
