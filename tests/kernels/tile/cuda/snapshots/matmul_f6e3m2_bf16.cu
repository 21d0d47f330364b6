extern "C" __global__ void __launch_bounds__(32)
pipelined_matmul_f6e3m2_bf16(const int m, const int n, const int k, uint16_t *a, uint8_t *packed, uint16_t *scales, uint16_t *c, int32_t *semaphores) {
    extern __shared__ __align__(128) unsigned char shared[];
    const int thread = threadIdx.x;
    int block_x = 0;
    int block_y = 0;
    int block_z = 0;
    int count = 0;
    int first = 0;
    float t_total[8]; /* f32[16, 16] column_local(2, 2).spatial(8, 4).local(1, 2) */
    uint32_t r0[4]; /* bf16[16, 16] column_local(2, 2).spatial(8, 4).local(1, 2) */
    uint32_t r1[2]; /* u8[1, 1, 192] local(1, 1, 3).spatial(1, 1, 32).local(1, 1, 2) */
    uint32_t r2[1]; /* bf16[1, 16] local(1, 2).spatial(1, 8).replicate(4) */
    uint32_t r4[4]; /* bf16[16, 16] column_local(2, 2).column_spatial(4, 8).local(2, 1) */
    uint32_t r5[4]; /* bf16[16, 16] column_local(2, 2).column_spatial(4, 8).local(2, 1) */
    uint32_t r6[4]; /* bf16[16, 16] column_local(2, 2).spatial(8, 4).local(1, 2) */
    uint32_t r7[4]; /* bf16[16, 16] spatial(16, 2).local(1, 8) */
    /* BlockIndices(variables=[block_x, block_y, block_z]) */
    int place = blockIdx.x;
    block_z = place % (1);
    place /= 1;
    block_y = place % (((n + 15) / 16));
    place /= ((n + 15) / 16);
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
    uint8_t *const shared_w = (uint8_t *)(shared + 1024);
    /* AllocateShared(out=shared_s) */
    uint16_t *const shared_s = (uint16_t *)(shared + 1408);
    /* AllocateRegister(out=total, init=0.0) */
    t_total[0] = __uint_as_float(0x0u);
    t_total[1] = __uint_as_float(0x0u);
    t_total[2] = __uint_as_float(0x0u);
    t_total[3] = __uint_as_float(0x0u);
    t_total[4] = __uint_as_float(0x0u);
    t_total[5] = __uint_as_float(0x0u);
    t_total[6] = __uint_as_float(0x0u);
    t_total[7] = __uint_as_float(0x0u);
    /* SetScalar(variable=first, value=min((block_z * ((k + 15) // 16)), ((k + 15) // 16))) */
    first = least((block_z * ((k + 15) / 16)), ((k + 15) / 16));
    /* SetScalar(variable=count, value=min(((k + 15) // 16), (((k + 15) // 16) - first))) */
    count = least(((k + 15) / 16), (((k + 15) / 16) - first));
    /* CopyAsync(out=shared_a[0, 0, 0], source=a_view[(block_x * 16), (first * 16)], shape=[16, 16]) */
    #pragma unroll
    for (int unit = thread; unit < 32; unit += 32) {
        const int t_i1 = unit / 2 % 16;
        const int t_i2 = (unit % 2) * 8;
        const bool inside = (unsigned)((block_x * 16) + t_i1) < (unsigned)(m) && (unsigned)((first * 16) + t_i2) < (unsigned)(k);
        copy_later<16>(shared_a + swizzled((0) * 256 + (0 + t_i1) * 16 + (0 + t_i2), 64, 3), a_view + (inside ? (int64_t)((block_x * 16) + t_i1) * k + (int64_t)((first * 16) + t_i2) : 0), inside ? 16 : 0);
    }
    /* CopyAsync(out=shared_w[0, 0, 0, 0], source=packed_view[first, block_y, 0], shape=[1, 1, 192]) */
    #pragma unroll
    for (int unit = thread; unit < 12; unit += 32) {
        const int t_i3 = unit / 12 % 1;
        const int t_i4 = unit / 12 % 1;
        const int t_i5 = (unit % 12) * 16;
        const bool inside = (unsigned)(first + t_i3) < (unsigned)(((k + 15) / 16)) && (unsigned)(block_y + t_i4) < (unsigned)(((n + 15) / 16)) && (unsigned)(0 + t_i5) < (unsigned)(192);
        copy_later<16>(shared_w + (0) * 192 + (0 + t_i3) * 192 + (0 + t_i4) * 192 + (0 + t_i5), packed_view + (inside ? (int64_t)(first + t_i3) * (((n + 15) / 16) * 192) + (int64_t)(block_y + t_i4) * 192 + (int64_t)(0 + t_i5) : 0), inside ? 16 : 0);
    }
    /* CopyAsync(out=shared_s[0, 0, 0], source=scales_view[((first * 16) // 64), (block_y * 16)], shape=[1, 16]) */
    #pragma unroll
    for (int unit = thread; unit < 2; unit += 32) {
        const int t_i6 = unit / 2 % 1;
        const int t_i7 = (unit % 2) * 8;
        const bool inside = (unsigned)(((first * 16) / 64) + t_i6) < (unsigned)(((k + 63) / 64)) && (unsigned)((block_y * 16) + t_i7) < (unsigned)(n);
        copy_later<16>(shared_s + (0) * 16 + (0 + t_i6) * 16 + (0 + t_i7), scales_view + (inside ? (int64_t)(((first * 16) / 64) + t_i6) * n + (int64_t)((block_y * 16) + t_i7) : 0), inside ? 16 : 0);
    }
    /* CopyAsyncCommitGroup() */
    commit_copies();
    /* CopyAsyncWaitGroup(pending=0) */
    wait_copies<0>();
    /* Synchronize() */
    __syncthreads();
    const int t_end8 = count;
    for (int step = 0; step < t_end8; step++) {
        /* LoadShared(out=r0, source=shared_a[(step % 2), 0, 0]) */
        {
            {
                const int t_at9 = (step % 2);
                const int t_at10 = 0 + ((0 + thread % 32 / 8 % 4) % 2) * 8 + thread % 8;
                const int t_at11 = 0 + ((0 + thread % 32 / 8 % 4) / 2 % 2) * 8;
                load_matrices(r0[0], r0[1], r0[2], r0[3], shared_a + swizzled((t_at9) * 256 + (t_at10) * 16 + (t_at11), 64, 3));
            }
        }
        /* LoadShared(out=r1, source=shared_w[(step % 2), 0, 0, 0]) */
        {
            const int t_at12 = (step % 2);
            const int t_at13 = 0;
            const int t_at14 = 0;
            const int t_at15 = 0 + (thread % 32) * 2;
            r1[0] = 0;
            r1[1] = 0;
            {
                const uint16_t *from = (const uint16_t *)(shared_w + (t_at12) * 192 + (t_at13) * 192 + (t_at14) * 192 + (t_at15));
                const uint16_t t_u16 = from[0];
                r1[0] |= (uint32_t)t_u16 << 0;
            }
            {
                const uint16_t *from = (const uint16_t *)(shared_w + (t_at12) * 192 + (t_at13) * 192 + (t_at14) * 192 + (t_at15 + 64));
                const uint16_t t_u17 = from[0];
                r1[0] |= (uint32_t)t_u17 << 16;
            }
            {
                const uint16_t *from = (const uint16_t *)(shared_w + (t_at12) * 192 + (t_at13) * 192 + (t_at14) * 192 + (t_at15 + 128));
                const uint16_t t_u18 = from[0];
                r1[1] |= (uint32_t)t_u18 << 0;
            }
        }
        /* LoadShared(out=r2, source=shared_s[(step % 2), 0, 0]) */
        {
            const int t_at19 = (step % 2);
            const int t_at20 = 0;
            const int t_at21 = 0 + thread / 4 % 8;
            r2[0] = 0;
            {
                const uint16_t *from = (const uint16_t *)(shared_s + (t_at19) * 16 + (t_at20) * 16 + (t_at21));
                const uint16_t t_u22 = from[0];
                r2[0] |= (uint32_t)t_u22 << 0;
            }
            {
                const uint16_t *from = (const uint16_t *)(shared_s + (t_at19) * 16 + (t_at20) * 16 + (t_at21 + 8));
                const uint16_t t_u23 = from[0];
                r2[0] |= (uint32_t)t_u23 << 16;
            }
        }
        /* View(out=r3, source=r1) */
        /* r3 = r1 as f6e3m2 column_local(2, 2).column_spatial(4, 8).local(2, 1) */
        /* Cast(out=r4, source=r3) */
        r4[0] = to_bf16(__uint_as_float(placed(((r1[0]) & 0x3fu), 0x20u, 26, 0x1fu, 21)) * 0x1.0000000000000p+124f) | to_bf16(__uint_as_float(placed(((r1[0] >> 6) & 0x3fu), 0x20u, 26, 0x1fu, 21)) * 0x1.0000000000000p+124f) << 16;
        r4[1] = to_bf16(__uint_as_float(placed(((r1[0] >> 12) & 0x3fu), 0x20u, 26, 0x1fu, 21)) * 0x1.0000000000000p+124f) | to_bf16(__uint_as_float(placed(((r1[0] >> 18) & 0x3fu), 0x20u, 26, 0x1fu, 21)) * 0x1.0000000000000p+124f) << 16;
        r4[2] = to_bf16(__uint_as_float(placed(((r1[0] >> 24) & 0x3fu), 0x20u, 26, 0x1fu, 21)) * 0x1.0000000000000p+124f) | to_bf16(__uint_as_float(placed((__funnelshift_r(r1[0], r1[1], 30) & 0x3fu), 0x20u, 26, 0x1fu, 21)) * 0x1.0000000000000p+124f) << 16;
        r4[3] = to_bf16(__uint_as_float(placed(((r1[1] >> 4) & 0x3fu), 0x20u, 26, 0x1fu, 21)) * 0x1.0000000000000p+124f) | to_bf16(__uint_as_float(placed(((r1[1] >> 10) & 0x3fu), 0x20u, 26, 0x1fu, 21)) * 0x1.0000000000000p+124f) << 16;
        /* Elementwise(out=r5, op=mul, a=r4, b=r2) */
        r5[0] = mul_bf16(r4[0], twice_low(r2[0]));
        r5[1] = mul_bf16(r4[1], twice_low(r2[0]));
        r5[2] = mul_bf16(r4[2], twice_high(r2[0]));
        r5[3] = mul_bf16(r4[3], twice_high(r2[0]));
        /* Dot(out=total, a=r0, b=r5, c=total) */
        multiply_bf16(t_total + 0, r0 + 0, r5 + 0);
        multiply_bf16(t_total + 4, r0 + 0, r5 + 2);
        if (((step + 1) < count)) {
            /* CopyAsync(out=shared_a[((step + 1) % 2), 0, 0], source=a_view[(block_x * 16), ((first + (step + 1)) * 16)], shape=[16, 16]) */
            #pragma unroll
            for (int unit = thread; unit < 32; unit += 32) {
                const int t_i24 = unit / 2 % 16;
                const int t_i25 = (unit % 2) * 8;
                const bool inside = (unsigned)((block_x * 16) + t_i24) < (unsigned)(m) && (unsigned)(((first + (step + 1)) * 16) + t_i25) < (unsigned)(k);
                copy_later<16>(shared_a + swizzled((((step + 1) % 2)) * 256 + (0 + t_i24) * 16 + (0 + t_i25), 64, 3), a_view + (inside ? (int64_t)((block_x * 16) + t_i24) * k + (int64_t)(((first + (step + 1)) * 16) + t_i25) : 0), inside ? 16 : 0);
            }
            /* CopyAsync(out=shared_w[((step + 1) % 2), 0, 0, 0], source=packed_view[(first + (step + 1)), block_y, 0], shape=[1, 1, 192]) */
            #pragma unroll
            for (int unit = thread; unit < 12; unit += 32) {
                const int t_i26 = unit / 12 % 1;
                const int t_i27 = unit / 12 % 1;
                const int t_i28 = (unit % 12) * 16;
                const bool inside = (unsigned)((first + (step + 1)) + t_i26) < (unsigned)(((k + 15) / 16)) && (unsigned)(block_y + t_i27) < (unsigned)(((n + 15) / 16)) && (unsigned)(0 + t_i28) < (unsigned)(192);
                copy_later<16>(shared_w + (((step + 1) % 2)) * 192 + (0 + t_i26) * 192 + (0 + t_i27) * 192 + (0 + t_i28), packed_view + (inside ? (int64_t)((first + (step + 1)) + t_i26) * (((n + 15) / 16) * 192) + (int64_t)(block_y + t_i27) * 192 + (int64_t)(0 + t_i28) : 0), inside ? 16 : 0);
            }
            /* CopyAsync(out=shared_s[((step + 1) % 2), 0, 0], source=scales_view[(((first + (step + 1)) * 16) // 64), (block_y * 16)], shape=[1, 16]) */
            #pragma unroll
            for (int unit = thread; unit < 2; unit += 32) {
                const int t_i29 = unit / 2 % 1;
                const int t_i30 = (unit % 2) * 8;
                const bool inside = (unsigned)((((first + (step + 1)) * 16) / 64) + t_i29) < (unsigned)(((k + 63) / 64)) && (unsigned)((block_y * 16) + t_i30) < (unsigned)(n);
                copy_later<16>(shared_s + (((step + 1) % 2)) * 16 + (0 + t_i29) * 16 + (0 + t_i30), scales_view + (inside ? (int64_t)((((first + (step + 1)) * 16) / 64) + t_i29) * n + (int64_t)((block_y * 16) + t_i30) : 0), inside ? 16 : 0);
            }
        }
        /* CopyAsyncCommitGroup() */
        commit_copies();
        /* CopyAsyncWaitGroup(pending=0) */
        wait_copies<0>();
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
    r6[0] = to_bf16(t_total[0]) | to_bf16(t_total[1]) << 16;
    r6[1] = to_bf16(t_total[2]) | to_bf16(t_total[3]) << 16;
    r6[2] = to_bf16(t_total[4]) | to_bf16(t_total[5]) << 16;
    r6[3] = to_bf16(t_total[6]) | to_bf16(t_total[7]) << 16;
    /* StoreShared(out=shared_c[0, 0], source=r6) */
    {
        const int t_at31 = 0 + thread / 4 % 8;
        const int t_at32 = 0 + (thread % 4) * 2;
        {
            uint32_t *to = (uint32_t *)(shared_c + (t_at31) * 16 + (t_at32));
            to[0] = r6[0];
        }
        {
            uint32_t *to = (uint32_t *)(shared_c + (t_at31 + 8) * 16 + (t_at32));
            to[0] = r6[1];
        }
        {
            uint32_t *to = (uint32_t *)(shared_c + (t_at31) * 16 + (t_at32 + 8));
            to[0] = r6[2];
        }
        {
            uint32_t *to = (uint32_t *)(shared_c + (t_at31 + 8) * 16 + (t_at32 + 8));
            to[0] = r6[3];
        }
    }
    /* Synchronize() */
    __syncthreads();
    /* LoadShared(out=r7, source=shared_c[0, 0]) */
    {
        const int t_at33 = 0 + thread / 2 % 16;
        const int t_at34 = 0 + (thread % 2) * 8;
        {
            const uint4 *from = (const uint4 *)(shared_c + (t_at33) * 16 + (t_at34));
            const uint4 t_u35 = from[0];
            r7[0] = t_u35.x;
            r7[1] = t_u35.y;
            r7[2] = t_u35.z;
            r7[3] = t_u35.w;
        }
    }
    /* StoreGlobal(out=c_view[(block_x * 16), (block_y * 16)], source=r7) */
    {
        const int t_at36 = (block_x * 16) + thread / 2 % 16;
        const int t_at37 = (block_y * 16) + (thread % 2) * 8;
        if ((unsigned)(t_at36) < (unsigned)(m) && (unsigned)(t_at37) < (unsigned)(n)) {
            uint4 *to = (uint4 *)(c_view + (int64_t)(t_at36) * n + (int64_t)(t_at37));
            to[0] = make_uint4(r7[0], r7[1], r7[2], r7[3]);
        }
    }
}
