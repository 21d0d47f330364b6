extern "C" __global__ void __launch_bounds__(64)
pipelined_matmul_u4_f16(const int m, const int n, const int k, uint16_t *a, uint8_t *packed, uint16_t *scales, uint16_t *c, int32_t *semaphores) {
    extern __shared__ __align__(128) unsigned char shared[];
    const int thread = threadIdx.x;
    int block_x = 0;
    int block_y = 0;
    int block_z = 0;
    int count = 0;
    int first = 0;
    float t_total[16]; /* f32[16, 64] local(1, 2).spatial(1, 2).column_local(2, 2).spatial(8, 4).local(1, 2) */
    uint32_t r0[8]; /* f16[16, 32] replicate(2).column_local(2, 4).spatial(8, 4).local(1, 2) */
    uint32_t r1[4]; /* u8[2, 4, 128] local(2, 2, 1).spatial(1, 2, 32).local(1, 1, 4) */
    uint32_t r2[2]; /* f16[1, 64] local(1, 2).spatial(1, 2).local(1, 2).spatial(1, 8).replicate(4) */
    uint32_t r4[16]; /* f16[32, 64] local(1, 2).spatial(1, 2).column_local(4, 2).column_spatial(4, 8).local(2, 1) */
    uint32_t r5[16]; /* f16[32, 64] local(1, 2).spatial(1, 2).column_local(4, 2).column_spatial(4, 8).local(2, 1) */
    uint32_t r6[8]; /* f16[16, 64] local(1, 2).spatial(1, 2).column_local(2, 2).spatial(8, 4).local(1, 2) */
    uint32_t r7[8]; /* f16[16, 64] local(2, 1).spatial(8, 8).local(1, 8) */
    uint32_t r8[8]; /* f16[16, 64] local(2, 1).spatial(8, 8).local(1, 8) */
    /* BlockIndices(variables=[block_x, block_y, block_z]) */
    int place = blockIdx.x;
    block_z = place % (2);
    place /= 2;
    block_y = place % (((n + 63) / 64));
    place /= ((n + 63) / 64);
    block_x = place % (((m + 15) / 16));
    place /= ((m + 15) / 16);
    /* ViewGlobal(out=a_view, pointer=a) */
    uint16_t *const a_view = a;
    /* ViewGlobal(out=packed_view, pointer=packed) */
    uint8_t *const packed_view = packed;
    /* ViewGlobal(out=scales_view, pointer=scales) */
    uint16_t *const scales_view = scales;
    /* ViewGlobal(out=c_view, pointer=c) */
    uint16_t *const c_view = c;
    /* ViewGlobal(out=semaphores_view, pointer=semaphores) */
    int32_t *const semaphores_view = semaphores;
    /* AllocateShared(out=shared_a) */
    uint16_t *const shared_a = (uint16_t *)(shared + 0);
    /* AllocateShared(out=shared_w) */
    uint8_t *const shared_w = (uint8_t *)(shared + 3072);
    /* AllocateShared(out=shared_s) */
    uint16_t *const shared_s = (uint16_t *)(shared + 6144);
    /* AllocateRegister(out=total, init=0.0) */
    t_total[0] = __uint_as_float(0x0u);
    t_total[1] = __uint_as_float(0x0u);
    t_total[2] = __uint_as_float(0x0u);
    t_total[3] = __uint_as_float(0x0u);
    t_total[4] = __uint_as_float(0x0u);
    t_total[5] = __uint_as_float(0x0u);
    t_total[6] = __uint_as_float(0x0u);
    t_total[7] = __uint_as_float(0x0u);
    t_total[8] = __uint_as_float(0x0u);
    t_total[9] = __uint_as_float(0x0u);
    t_total[10] = __uint_as_float(0x0u);
    t_total[11] = __uint_as_float(0x0u);
    t_total[12] = __uint_as_float(0x0u);
    t_total[13] = __uint_as_float(0x0u);
    t_total[14] = __uint_as_float(0x0u);
    t_total[15] = __uint_as_float(0x0u);
    /* SetScalar(variable=first, value=min((block_z * ((((k + 31) // 32) + 1) // 2)), ((k + 31) // 32))) */
    first = least((block_z * ((((k + 31) / 32) + 1) / 2)), ((k + 31) / 32));
    /* SetScalar(variable=count, value=min(((((k + 31) // 32) + 1) // 2), (((k + 31) // 32) - first))) */
    count = least(((((k + 31) / 32) + 1) / 2), (((k + 31) / 32) - first));
    /* CopyAsync(out=shared_a[0, 0, 0], source=a_view[(block_x * 16), (first * 32)], shape=[16, 32]) */
    #pragma unroll
    for (int unit = thread; unit < 64; unit += 64) {
        const int t_i1 = unit / 4 % 16;
        const int t_i2 = (unit % 4) * 8;
        const bool inside = (unsigned)((block_x * 16) + t_i1) < (unsigned)(m) && (unsigned)((first * 32) + t_i2) < (unsigned)(k);
        copy_later<16>(shared_a + swizzled((0) * 512 + (0 + t_i1) * 32 + (0 + t_i2), 192, 3), a_view + (inside ? (int64_t)((block_x * 16) + t_i1) * k + (int64_t)((first * 32) + t_i2) : 0), inside ? 16 : 0);
    }
    /* CopyAsync(out=shared_w[0, 0, 0, 0], source=packed_view[(first * 2), (block_y * 4), 0], shape=[2, 4, 128]) */
    #pragma unroll
    for (int unit = thread; unit < 64; unit += 64) {
        const int t_i3 = unit / 32 % 2;
        const int t_i4 = unit / 8 % 4;
        const int t_i5 = (unit % 8) * 16;
        const bool inside = (unsigned)((first * 2) + t_i3) < (unsigned)((((k + 31) / 32) * 2)) && (unsigned)((block_y * 4) + t_i4) < (unsigned)((((n + 63) / 64) * 4)) && (unsigned)(0 + t_i5) < (unsigned)(128);
        copy_later<16>(shared_w + (0) * 1024 + (0 + t_i3) * 512 + (0 + t_i4) * 128 + (0 + t_i5), packed_view + (inside ? (int64_t)((first * 2) + t_i3) * (((n + 63) / 64) * 512) + (int64_t)((block_y * 4) + t_i4) * 128 + (int64_t)(0 + t_i5) : 0), inside ? 16 : 0);
    }
    /* CopyAsync(out=shared_s[0, 0, 0], source=scales_view[((first * 32) // 64), (block_y * 64)], shape=[1, 64]) */
    #pragma unroll
    for (int unit = thread; unit < 8; unit += 64) {
        const int t_i6 = unit / 8 % 1;
        const int t_i7 = (unit % 8) * 8;
        const bool inside = (unsigned)(((first * 32) / 64) + t_i6) < (unsigned)(((k + 63) / 64)) && (unsigned)((block_y * 64) + t_i7) < (unsigned)(n);
        copy_later<16>(shared_s + (0) * 64 + (0 + t_i6) * 64 + (0 + t_i7), scales_view + (inside ? (int64_t)(((first * 32) / 64) + t_i6) * n + (int64_t)((block_y * 64) + t_i7) : 0), inside ? 16 : 0);
    }
    /* CopyAsyncCommitGroup() */
    commit_copies();
    /* CopyAsync(out=shared_a[1, 0, 0], source=a_view[(block_x * 16), ((first + 1) * 32)], shape=[16, 32]) */
    #pragma unroll
    for (int unit = thread; unit < 64; unit += 64) {
        const int t_i8 = unit / 4 % 16;
        const int t_i9 = (unit % 4) * 8;
        const bool inside = (unsigned)((block_x * 16) + t_i8) < (unsigned)(m) && (unsigned)(((first + 1) * 32) + t_i9) < (unsigned)(k);
        copy_later<16>(shared_a + swizzled((1) * 512 + (0 + t_i8) * 32 + (0 + t_i9), 192, 3), a_view + (inside ? (int64_t)((block_x * 16) + t_i8) * k + (int64_t)(((first + 1) * 32) + t_i9) : 0), inside ? 16 : 0);
    }
    /* CopyAsync(out=shared_w[1, 0, 0, 0], source=packed_view[((first + 1) * 2), (block_y * 4), 0], shape=[2, 4, 128]) */
    #pragma unroll
    for (int unit = thread; unit < 64; unit += 64) {
        const int t_i10 = unit / 32 % 2;
        const int t_i11 = unit / 8 % 4;
        const int t_i12 = (unit % 8) * 16;
        const bool inside = (unsigned)(((first + 1) * 2) + t_i10) < (unsigned)((((k + 31) / 32) * 2)) && (unsigned)((block_y * 4) + t_i11) < (unsigned)((((n + 63) / 64) * 4)) && (unsigned)(0 + t_i12) < (unsigned)(128);
        copy_later<16>(shared_w + (1) * 1024 + (0 + t_i10) * 512 + (0 + t_i11) * 128 + (0 + t_i12), packed_view + (inside ? (int64_t)(((first + 1) * 2) + t_i10) * (((n + 63) / 64) * 512) + (int64_t)((block_y * 4) + t_i11) * 128 + (int64_t)(0 + t_i12) : 0), inside ? 16 : 0);
    }
    /* CopyAsync(out=shared_s[1, 0, 0], source=scales_view[(((first + 1) * 32) // 64), (block_y * 64)], shape=[1, 64]) */
    #pragma unroll
    for (int unit = thread; unit < 8; unit += 64) {
        const int t_i13 = unit / 8 % 1;
        const int t_i14 = (unit % 8) * 8;
        const bool inside = (unsigned)((((first + 1) * 32) / 64) + t_i13) < (unsigned)(((k + 63) / 64)) && (unsigned)((block_y * 64) + t_i14) < (unsigned)(n);
        copy_later<16>(shared_s + (1) * 64 + (0 + t_i13) * 64 + (0 + t_i14), scales_view + (inside ? (int64_t)((((first + 1) * 32) / 64) + t_i13) * n + (int64_t)((block_y * 64) + t_i14) : 0), inside ? 16 : 0);
    }
    /* CopyAsyncCommitGroup() */
    commit_copies();
    /* CopyAsyncWaitGroup(pending=1) */
    wait_copies<1>();
    /* Synchronize() */
    __syncthreads();
    const int t_end15 = count;
    for (int step = 0; step < t_end15; step++) {
        /* LoadShared(out=r0, source=shared_a[(step % 3), 0, 0]) */
        {
            {
                const int t_at16 = (step % 3);
                const int t_at17 = 0 + ((0 + thread % 32 / 8 % 4) % 2) * 8 + thread % 8;
                const int t_at18 = 0 + ((0 + thread % 32 / 8 % 4) / 2 % 4) * 8;
                load_matrices(r0[0], r0[1], r0[2], r0[3], shared_a + swizzled((t_at16) * 512 + (t_at17) * 32 + (t_at18), 192, 3));
            }
            {
                const int t_at19 = (step % 3);
                const int t_at20 = 0 + ((4 + thread % 32 / 8 % 4) % 2) * 8 + thread % 8;
                const int t_at21 = 0 + ((4 + thread % 32 / 8 % 4) / 2 % 4) * 8;
                load_matrices(r0[4], r0[5], r0[6], r0[7], shared_a + swizzled((t_at19) * 512 + (t_at20) * 32 + (t_at21), 192, 3));
            }
        }
        /* LoadShared(out=r1, source=shared_w[(step % 3), 0, 0, 0]) */
        {
            const int t_at22 = (step % 3);
            const int t_at23 = 0;
            const int t_at24 = 0 + thread / 32 % 2;
            const int t_at25 = 0 + (thread % 32) * 4;
            {
                const uint32_t *from = (const uint32_t *)(shared_w + (t_at22) * 1024 + (t_at23) * 512 + (t_at24) * 128 + (t_at25));
                const uint32_t t_u26 = from[0];
                r1[0] = t_u26;
            }
            {
                const uint32_t *from = (const uint32_t *)(shared_w + (t_at22) * 1024 + (t_at23) * 512 + (t_at24 + 2) * 128 + (t_at25));
                const uint32_t t_u27 = from[0];
                r1[1] = t_u27;
            }
            {
                const uint32_t *from = (const uint32_t *)(shared_w + (t_at22) * 1024 + (t_at23 + 1) * 512 + (t_at24) * 128 + (t_at25));
                const uint32_t t_u28 = from[0];
                r1[2] = t_u28;
            }
            {
                const uint32_t *from = (const uint32_t *)(shared_w + (t_at22) * 1024 + (t_at23 + 1) * 512 + (t_at24 + 2) * 128 + (t_at25));
                const uint32_t t_u29 = from[0];
                r1[3] = t_u29;
            }
        }
        /* LoadShared(out=r2, source=shared_s[(step % 3), 0, 0]) */
        {
            const int t_at30 = (step % 3);
            const int t_at31 = 0;
            const int t_at32 = 0 + thread / 4 % 8 + (thread / 32 % 2) * 16;
            r2[0] = 0;
            r2[1] = 0;
            {
                const uint16_t *from = (const uint16_t *)(shared_s + (t_at30) * 64 + (t_at31) * 64 + (t_at32));
                const uint16_t t_u33 = from[0];
                r2[0] |= (uint32_t)t_u33 << 0;
            }
            {
                const uint16_t *from = (const uint16_t *)(shared_s + (t_at30) * 64 + (t_at31) * 64 + (t_at32 + 8));
                const uint16_t t_u34 = from[0];
                r2[0] |= (uint32_t)t_u34 << 16;
            }
            {
                const uint16_t *from = (const uint16_t *)(shared_s + (t_at30) * 64 + (t_at31) * 64 + (t_at32 + 32));
                const uint16_t t_u35 = from[0];
                r2[1] |= (uint32_t)t_u35 << 0;
            }
            {
                const uint16_t *from = (const uint16_t *)(shared_s + (t_at30) * 64 + (t_at31) * 64 + (t_at32 + 40));
                const uint16_t t_u36 = from[0];
                r2[1] |= (uint32_t)t_u36 << 16;
            }
        }
        /* View(out=r3, source=r1) */
        /* r3 = r1 as u4 local(2, 2).spatial(1, 2).column_local(2, 2).column_spatial(4, 8).local(2, 1) */
        /* Cast(out=r4, source=r3) */
        r4[0] = sub_f16((((r1[0]) & 0xfu) | ((r1[0] >> 4) & 0xfu) << 16) ^ 0x64006400u, 0x64006400u);
        r4[1] = sub_f16((((r1[0] >> 8) & 0xfu) | ((r1[0] >> 12) & 0xfu) << 16) ^ 0x64006400u, 0x64006400u);
        r4[2] = sub_f16((((r1[2]) & 0xfu) | ((r1[2] >> 4) & 0xfu) << 16) ^ 0x64006400u, 0x64006400u);
        r4[3] = sub_f16((((r1[2] >> 8) & 0xfu) | ((r1[2] >> 12) & 0xfu) << 16) ^ 0x64006400u, 0x64006400u);
        r4[4] = sub_f16((((r1[0] >> 16) & 0xfu) | ((r1[0] >> 20) & 0xfu) << 16) ^ 0x64006400u, 0x64006400u);
        r4[5] = sub_f16((((r1[0] >> 24) & 0xfu) | (r1[0] >> 28) << 16) ^ 0x64006400u, 0x64006400u);
        r4[6] = sub_f16((((r1[2] >> 16) & 0xfu) | ((r1[2] >> 20) & 0xfu) << 16) ^ 0x64006400u, 0x64006400u);
        r4[7] = sub_f16((((r1[2] >> 24) & 0xfu) | (r1[2] >> 28) << 16) ^ 0x64006400u, 0x64006400u);
        r4[8] = sub_f16((((r1[1]) & 0xfu) | ((r1[1] >> 4) & 0xfu) << 16) ^ 0x64006400u, 0x64006400u);
        r4[9] = sub_f16((((r1[1] >> 8) & 0xfu) | ((r1[1] >> 12) & 0xfu) << 16) ^ 0x64006400u, 0x64006400u);
        r4[10] = sub_f16((((r1[3]) & 0xfu) | ((r1[3] >> 4) & 0xfu) << 16) ^ 0x64006400u, 0x64006400u);
        r4[11] = sub_f16((((r1[3] >> 8) & 0xfu) | ((r1[3] >> 12) & 0xfu) << 16) ^ 0x64006400u, 0x64006400u);
        r4[12] = sub_f16((((r1[1] >> 16) & 0xfu) | ((r1[1] >> 20) & 0xfu) << 16) ^ 0x64006400u, 0x64006400u);
        r4[13] = sub_f16((((r1[1] >> 24) & 0xfu) | (r1[1] >> 28) << 16) ^ 0x64006400u, 0x64006400u);
        r4[14] = sub_f16((((r1[3] >> 16) & 0xfu) | ((r1[3] >> 20) & 0xfu) << 16) ^ 0x64006400u, 0x64006400u);
        r4[15] = sub_f16((((r1[3] >> 24) & 0xfu) | (r1[3] >> 28) << 16) ^ 0x64006400u, 0x64006400u);
        /* Elementwise(out=r5, op=mul, a=r4, b=r2) */
        r5[0] = mul_f16(r4[0], twice_low(r2[0]));
        r5[1] = mul_f16(r4[1], twice_low(r2[0]));
        r5[2] = mul_f16(r4[2], twice_low(r2[0]));
        r5[3] = mul_f16(r4[3], twice_low(r2[0]));
        r5[4] = mul_f16(r4[4], twice_high(r2[0]));
        r5[5] = mul_f16(r4[5], twice_high(r2[0]));
        r5[6] = mul_f16(r4[6], twice_high(r2[0]));
        r5[7] = mul_f16(r4[7], twice_high(r2[0]));
        r5[8] = mul_f16(r4[8], twice_low(r2[1]));
        r5[9] = mul_f16(r4[9], twice_low(r2[1]));
        r5[10] = mul_f16(r4[10], twice_low(r2[1]));
        r5[11] = mul_f16(r4[11], twice_low(r2[1]));
        r5[12] = mul_f16(r4[12], twice_high(r2[1]));
        r5[13] = mul_f16(r4[13], twice_high(r2[1]));
        r5[14] = mul_f16(r4[14], twice_high(r2[1]));
        r5[15] = mul_f16(r4[15], twice_high(r2[1]));
        /* Dot(out=total, a=r0, b=r5, c=total) */
        multiply_f16(t_total + 0, r0 + 0, r5 + 0);
        multiply_f16(t_total + 4, r0 + 0, r5 + 4);
        multiply_f16(t_total + 8, r0 + 0, r5 + 8);
        multiply_f16(t_total + 12, r0 + 0, r5 + 12);
        multiply_f16(t_total + 0, r0 + 4, r5 + 2);
        multiply_f16(t_total + 4, r0 + 4, r5 + 6);
        multiply_f16(t_total + 8, r0 + 4, r5 + 10);
        multiply_f16(t_total + 12, r0 + 4, r5 + 14);
        if (((step + 2) < count)) {
            /* CopyAsync(out=shared_a[((step + 2) % 3), 0, 0], source=a_view[(block_x * 16), ((first + (step + 2)) * 32)], shape=[16, 32]) */
            #pragma unroll
            for (int unit = thread; unit < 64; unit += 64) {
                const int t_i37 = unit / 4 % 16;
                const int t_i38 = (unit % 4) * 8;
                const bool inside = (unsigned)((block_x * 16) + t_i37) < (unsigned)(m) && (unsigned)(((first + (step + 2)) * 32) + t_i38) < (unsigned)(k);
                copy_later<16>(shared_a + swizzled((((step + 2) % 3)) * 512 + (0 + t_i37) * 32 + (0 + t_i38), 192, 3), a_view + (inside ? (int64_t)((block_x * 16) + t_i37) * k + (int64_t)(((first + (step + 2)) * 32) + t_i38) : 0), inside ? 16 : 0);
            }
            /* CopyAsync(out=shared_w[((step + 2) % 3), 0, 0, 0], source=packed_view[((first + (step + 2)) * 2), (block_y * 4), 0], shape=[2, 4, 128]) */
            #pragma unroll
            for (int unit = thread; unit < 64; unit += 64) {
                const int t_i39 = unit / 32 % 2;
                const int t_i40 = unit / 8 % 4;
                const int t_i41 = (unit % 8) * 16;
                const bool inside = (unsigned)(((first + (step + 2)) * 2) + t_i39) < (unsigned)((((k + 31) / 32) * 2)) && (unsigned)((block_y * 4) + t_i40) < (unsigned)((((n + 63) / 64) * 4)) && (unsigned)(0 + t_i41) < (unsigned)(128);
                copy_later<16>(shared_w + (((step + 2) % 3)) * 1024 + (0 + t_i39) * 512 + (0 + t_i40) * 128 + (0 + t_i41), packed_view + (inside ? (int64_t)(((first + (step + 2)) * 2) + t_i39) * (((n + 63) / 64) * 512) + (int64_t)((block_y * 4) + t_i40) * 128 + (int64_t)(0 + t_i41) : 0), inside ? 16 : 0);
            }
            /* CopyAsync(out=shared_s[((step + 2) % 3), 0, 0], source=scales_view[(((first + (step + 2)) * 32) // 64), (block_y * 64)], shape=[1, 64]) */
            #pragma unroll
            for (int unit = thread; unit < 8; unit += 64) {
                const int t_i42 = unit / 8 % 1;
                const int t_i43 = (unit % 8) * 8;
                const bool inside = (unsigned)((((first + (step + 2)) * 32) / 64) + t_i42) < (unsigned)(((k + 63) / 64)) && (unsigned)((block_y * 64) + t_i43) < (unsigned)(n);
                copy_later<16>(shared_s + (((step + 2) % 3)) * 64 + (0 + t_i42) * 64 + (0 + t_i43), scales_view + (inside ? (int64_t)((((first + (step + 2)) * 32) / 64) + t_i42) * n + (int64_t)((block_y * 64) + t_i43) : 0), inside ? 16 : 0);
            }
        }
        /* CopyAsyncCommitGroup() */
        commit_copies();
        /* CopyAsyncWaitGroup(pending=1) */
        wait_copies<1>();
        /* Synchronize() */
        __syncthreads();
    }
    /* CopyAsyncWaitGroup(pending=0) */
    wait_copies<0>();
    /* Synchronize() */
    __syncthreads();
    /* AllocateShared(out=shared_c) */
    uint16_t *const shared_c = (uint16_t *)(shared + 0);
    /* Cast(out=r6, source=total) */
    r6[0] = to_f16(t_total[0]) | to_f16(t_total[1]) << 16;
    r6[1] = to_f16(t_total[2]) | to_f16(t_total[3]) << 16;
    r6[2] = to_f16(t_total[4]) | to_f16(t_total[5]) << 16;
    r6[3] = to_f16(t_total[6]) | to_f16(t_total[7]) << 16;
    r6[4] = to_f16(t_total[8]) | to_f16(t_total[9]) << 16;
    r6[5] = to_f16(t_total[10]) | to_f16(t_total[11]) << 16;
    r6[6] = to_f16(t_total[12]) | to_f16(t_total[13]) << 16;
    r6[7] = to_f16(t_total[14]) | to_f16(t_total[15]) << 16;
    /* StoreShared(out=shared_c[0, 0], source=r6) */
    {
        const int t_at44 = 0 + thread / 4 % 8;
        const int t_at45 = 0 + (thread % 4) * 2 + (thread / 32 % 2) * 16;
        {
            uint32_t *to = (uint32_t *)(shared_c + (t_at44) * 64 + (t_at45));
            to[0] = r6[0];
        }
        {
            uint32_t *to = (uint32_t *)(shared_c + (t_at44 + 8) * 64 + (t_at45));
            to[0] = r6[1];
        }
        {
            uint32_t *to = (uint32_t *)(shared_c + (t_at44) * 64 + (t_at45 + 8));
            to[0] = r6[2];
        }
        {
            uint32_t *to = (uint32_t *)(shared_c + (t_at44 + 8) * 64 + (t_at45 + 8));
            to[0] = r6[3];
        }
        {
            uint32_t *to = (uint32_t *)(shared_c + (t_at44) * 64 + (t_at45 + 32));
            to[0] = r6[4];
        }
        {
            uint32_t *to = (uint32_t *)(shared_c + (t_at44 + 8) * 64 + (t_at45 + 32));
            to[0] = r6[5];
        }
        {
            uint32_t *to = (uint32_t *)(shared_c + (t_at44) * 64 + (t_at45 + 40));
            to[0] = r6[6];
        }
        {
            uint32_t *to = (uint32_t *)(shared_c + (t_at44 + 8) * 64 + (t_at45 + 40));
            to[0] = r6[7];
        }
    }
    /* Synchronize() */
    __syncthreads();
    /* LoadShared(out=r7, source=shared_c[0, 0]) */
    {
        const int t_at46 = 0 + thread / 8 % 8;
        const int t_at47 = 0 + (thread % 8) * 8;
        {
            const uint4 *from = (const uint4 *)(shared_c + (t_at46) * 64 + (t_at47));
            const uint4 t_u48 = from[0];
            r7[0] = t_u48.x;
            r7[1] = t_u48.y;
            r7[2] = t_u48.z;
            r7[3] = t_u48.w;
        }
        {
            const uint4 *from = (const uint4 *)(shared_c + (t_at46 + 8) * 64 + (t_at47));
            const uint4 t_u49 = from[0];
            r7[4] = t_u49.x;
            r7[5] = t_u49.y;
            r7[6] = t_u49.z;
            r7[7] = t_u49.w;
        }
    }
    /* LockSemaphore(at=semaphores_view[block_x, block_y], value=block_z) */
    wait_for(semaphores_view + (int64_t)(block_x) * ((n + 63) / 64) + (int64_t)(block_y), block_z);
    if ((0 < block_z)) {
        /* LoadGlobal(out=r8, source=c_view[(block_x * 16), (block_y * 64)]) */
        {
            const int t_at50 = (block_x * 16) + thread / 8 % 8;
            const int t_at51 = (block_y * 64) + (thread % 8) * 8;
            {
                const uint4 *from = (const uint4 *)(c_view + (int64_t)(t_at50) * n + (int64_t)(t_at51));
                const bool inside = (unsigned)(t_at50) < (unsigned)(m) && (unsigned)(t_at51) < (unsigned)(n);
                const uint4 t_u52 = inside ? from[0] : make_uint4(0, 0, 0, 0);
                r8[0] = t_u52.x;
                r8[1] = t_u52.y;
                r8[2] = t_u52.z;
                r8[3] = t_u52.w;
            }
            {
                const uint4 *from = (const uint4 *)(c_view + (int64_t)(t_at50 + 8) * n + (int64_t)(t_at51));
                const bool inside = (unsigned)(t_at50 + 8) < (unsigned)(m) && (unsigned)(t_at51) < (unsigned)(n);
                const uint4 t_u53 = inside ? from[0] : make_uint4(0, 0, 0, 0);
                r8[4] = t_u53.x;
                r8[5] = t_u53.y;
                r8[6] = t_u53.z;
                r8[7] = t_u53.w;
            }
        }
        /* Elementwise(out=r7, op=add, a=r7, b=r8) */
        r7[0] = add_f16(r7[0], r8[0]);
        r7[1] = add_f16(r7[1], r8[1]);
        r7[2] = add_f16(r7[2], r8[2]);
        r7[3] = add_f16(r7[3], r8[3]);
        r7[4] = add_f16(r7[4], r8[4]);
        r7[5] = add_f16(r7[5], r8[5]);
        r7[6] = add_f16(r7[6], r8[6]);
        r7[7] = add_f16(r7[7], r8[7]);
    }
    /* StoreGlobal(out=c_view[(block_x * 16), (block_y * 64)], source=r7) */
    {
        const int t_at54 = (block_x * 16) + thread / 8 % 8;
        const int t_at55 = (block_y * 64) + (thread % 8) * 8;
        if ((unsigned)(t_at54) < (unsigned)(m) && (unsigned)(t_at55) < (unsigned)(n)) {
            uint4 *to = (uint4 *)(c_view + (int64_t)(t_at54) * n + (int64_t)(t_at55));
            to[0] = make_uint4(r7[0], r7[1], r7[2], r7[3]);
        }
        if ((unsigned)(t_at54 + 8) < (unsigned)(m) && (unsigned)(t_at55) < (unsigned)(n)) {
            uint4 *to = (uint4 *)(c_view + (int64_t)(t_at54 + 8) * n + (int64_t)(t_at55));
            to[0] = make_uint4(r7[4], r7[5], r7[6], r7[7]);
        }
    }
    /* ReleaseSemaphore(at=semaphores_view[block_x, block_y], value=((block_z + 1) % 2)) */
    release(semaphores_view + (int64_t)(block_x) * ((n + 63) / 64) + (int64_t)(block_y), ((block_z + 1) % 2));
}
