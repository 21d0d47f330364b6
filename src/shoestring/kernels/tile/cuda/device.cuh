/* What only a GPU can do: asynchronous copies, matrix instructions, 16-bit arithmetic, waiting for other blocks. */
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

__device__ __forceinline__ uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

/* Copies of 4, 8 or 16 bytes that land later; `bytes` of them are read, the rest is 0. */
template <int SIZE> __device__ __forceinline__ void copy_later(void *to, const void *from, int bytes) {
    if constexpr (SIZE == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(to)), "l"(from), "r"(bytes));
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;\n" ::"r"(shared_address(to)), "l"(from), "r"(bytes), "n"(SIZE));
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
template <int PENDING> __device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(PENDING) : "memory");
}

/* Matrices of 8 rows of 16 bytes; lane l names row l % 8 of matrix l / 8. */
__device__ __forceinline__ void load_matrix(uint32_t &a, const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];\n" : "=r"(a) : "r"(shared_address(row)) : "memory");
}
__device__ __forceinline__ void load_matrices(uint32_t &a, uint32_t &b, const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];\n"
                 : "=r"(a), "=r"(b) : "r"(shared_address(row)) : "memory");
}
__device__ __forceinline__ void load_matrices(uint32_t &a, uint32_t &b, uint32_t &c, uint32_t &d, const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(a), "=r"(b), "=r"(c), "=r"(d) : "r"(shared_address(row)) : "memory");
}

/* c (16, 8) += a (16, 16) · b (16, 8) */
__device__ __forceinline__ void multiply_f16(float *c, const uint32_t *a, const uint32_t *b) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void multiply_bf16(float *c, const uint32_t *a, const uint32_t *b) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Pairs of 16-bit floats in one word. */
#define PAIRWISE(name, type, from, op)                                                        \
    __device__ __forceinline__ uint32_t name(uint32_t a, uint32_t b) {                        \
        type x = *reinterpret_cast<type *>(&a), y = *reinterpret_cast<type *>(&b), z = op(x, y); \
        return *reinterpret_cast<uint32_t *>(&z);                                             \
    }
PAIRWISE(add_f16, __half2, half, __hadd2)
PAIRWISE(sub_f16, __half2, half, __hsub2)
PAIRWISE(mul_f16, __half2, half, __hmul2)
PAIRWISE(add_bf16, __nv_bfloat162, bf16, __hadd2)
PAIRWISE(sub_bf16, __nv_bfloat162, bf16, __hsub2)
PAIRWISE(mul_bf16, __nv_bfloat162, bf16, __hmul2)
__device__ __forceinline__ float from_f16(uint32_t code) { return __half2float(__ushort_as_half((uint16_t)code)); }
__device__ __forceinline__ float from_bf16(uint32_t code) { return __uint_as_float(code << 16); }
__device__ __forceinline__ uint32_t to_f16(float x) { return __half_as_ushort(__float2half_rn(x)); }
__device__ __forceinline__ uint32_t to_bf16(float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); }

/* One thread waits for *at == value, the block for that thread; what others stored before is visible then. */
__device__ __forceinline__ void wait_for(const int32_t *at, int32_t value) {
    if (threadIdx.x == 0) {
        int32_t seen;
        do asm volatile("ld.acquire.gpu.global.s32 %0, [%1];\n" : "=r"(seen) : "l"(at) : "memory");
        while (seen != value);
    }
    __syncthreads();
}
__device__ __forceinline__ void release(int32_t *at, int32_t value) {
    __syncthreads();
    if (threadIdx.x == 0) asm volatile("st.release.gpu.global.s32 [%0], %1;\n" ::"l"(at), "r"(value) : "memory");
}
