extern "C" __global__ void __launch_bounds__(32)
restore_layout_u5(const int rows, const int cols, uint8_t *packed, uint8_t *codes) {
    extern __shared__ __align__(128) unsigned char shared[];
    const int thread = threadIdx.x;
    int block_x = 0;
    int block_y = 0;
    uint32_t r0[3]; /* u8[320] local(5).spatial(32).local(2) */
    uint32_t r2[4]; /* u8[8, 64] local(4, 2).spatial(1, 32).local(2, 1) */
    /* BlockIndices(variables=[block_x, block_y]) */
    int place = blockIdx.x;
    block_y = place % ((cols / 64));
    place /= (cols / 64);
    block_x = place % ((rows / 8));
    place /= (rows / 8);
    /* ViewGlobal(out=packed_view, pointer=packed) */
    uint8_t *const packed_view = packed;
    /* ViewGlobal(out=codes_view, pointer=codes) */
    uint8_t *const codes_view = codes;
    /* LoadGlobal(out=r0, source=packed_view[block_x, block_y, 0]) */
    {
        const int t_at1 = block_x;
        const int t_at2 = block_y;
        const int t_at3 = 0 + (thread % 32) * 2;
        r0[0] = 0;
        r0[1] = 0;
        r0[2] = 0;
        {
            const uint16_t *from = (const uint16_t *)(packed_view + (int64_t)(t_at1) * ((cols / 64) * 320) + (int64_t)(t_at2) * 320 + (int64_t)(t_at3));
            const bool inside = (unsigned)(t_at1) < (unsigned)((rows / 8)) && (unsigned)(t_at2) < (unsigned)((cols / 64)) && (unsigned)(t_at3) < (unsigned)(320);
            const uint16_t t_u4 = inside ? from[0] : 0;
            r0[0] |= (uint32_t)t_u4 << 0;
        }
        {
            const uint16_t *from = (const uint16_t *)(packed_view + (int64_t)(t_at1) * ((cols / 64) * 320) + (int64_t)(t_at2) * 320 + (int64_t)(t_at3 + 64));
            const bool inside = (unsigned)(t_at1) < (unsigned)((rows / 8)) && (unsigned)(t_at2) < (unsigned)((cols / 64)) && (unsigned)(t_at3 + 64) < (unsigned)(320);
            const uint16_t t_u5 = inside ? from[0] : 0;
            r0[0] |= (uint32_t)t_u5 << 16;
        }
        {
            const uint16_t *from = (const uint16_t *)(packed_view + (int64_t)(t_at1) * ((cols / 64) * 320) + (int64_t)(t_at2) * 320 + (int64_t)(t_at3 + 128));
            const bool inside = (unsigned)(t_at1) < (unsigned)((rows / 8)) && (unsigned)(t_at2) < (unsigned)((cols / 64)) && (unsigned)(t_at3 + 128) < (unsigned)(320);
            const uint16_t t_u6 = inside ? from[0] : 0;
            r0[1] |= (uint32_t)t_u6 << 0;
        }
        {
            const uint16_t *from = (const uint16_t *)(packed_view + (int64_t)(t_at1) * ((cols / 64) * 320) + (int64_t)(t_at2) * 320 + (int64_t)(t_at3 + 192));
            const bool inside = (unsigned)(t_at1) < (unsigned)((rows / 8)) && (unsigned)(t_at2) < (unsigned)((cols / 64)) && (unsigned)(t_at3 + 192) < (unsigned)(320);
            const uint16_t t_u7 = inside ? from[0] : 0;
            r0[1] |= (uint32_t)t_u7 << 16;
        }
        {
            const uint16_t *from = (const uint16_t *)(packed_view + (int64_t)(t_at1) * ((cols / 64) * 320) + (int64_t)(t_at2) * 320 + (int64_t)(t_at3 + 256));
            const bool inside = (unsigned)(t_at1) < (unsigned)((rows / 8)) && (unsigned)(t_at2) < (unsigned)((cols / 64)) && (unsigned)(t_at3 + 256) < (unsigned)(320);
            const uint16_t t_u8 = inside ? from[0] : 0;
            r0[2] |= (uint32_t)t_u8 << 0;
        }
    }
    /* View(out=r1, source=r0) */
    /* r1 = r0 as u5 local(4, 2).spatial(1, 32).local(2, 1) */
    /* Cast(out=r2, source=r1) */
    r2[0] = 0;
    r2[1] = 0;
    r2[2] = 0;
    r2[3] = 0;
    r2[0] |= ((r0[0]) & 0x1fu) << 0;
    r2[0] |= ((r0[0] >> 5) & 0x1fu) << 8;
    r2[0] |= ((r0[0] >> 10) & 0x1fu) << 16;
    r2[0] |= ((r0[0] >> 15) & 0x1fu) << 24;
    r2[1] |= ((r0[0] >> 20) & 0x1fu) << 0;
    r2[1] |= ((r0[0] >> 25) & 0x1fu) << 8;
    r2[1] |= (__funnelshift_r(r0[0], r0[1], 30) & 0x1fu) << 16;
    r2[1] |= ((r0[1] >> 3) & 0x1fu) << 24;
    r2[2] |= ((r0[1] >> 8) & 0x1fu) << 0;
    r2[2] |= ((r0[1] >> 13) & 0x1fu) << 8;
    r2[2] |= ((r0[1] >> 18) & 0x1fu) << 16;
    r2[2] |= ((r0[1] >> 23) & 0x1fu) << 24;
    r2[3] |= (__funnelshift_r(r0[1], r0[2], 28) & 0x1fu) << 0;
    r2[3] |= ((r0[2] >> 1) & 0x1fu) << 8;
    r2[3] |= ((r0[2] >> 6) & 0x1fu) << 16;
    r2[3] |= ((r0[2] >> 11) & 0x1fu) << 24;
    /* StoreGlobal(out=codes_view[(block_x * 8), (block_y * 64)], source=r2) */
    {
        const int t_at9 = (block_x * 8);
        const int t_at10 = (block_y * 64) + thread % 32;
        if ((unsigned)(t_at9) < (unsigned)(rows) && (unsigned)(t_at10) < (unsigned)(cols)) {
            uint8_t *to = (uint8_t *)(codes_view + (int64_t)(t_at9) * cols + (int64_t)(t_at10));
            to[0] = (uint8_t)(r2[0] >> 0);
        }
        if ((unsigned)(t_at9 + 1) < (unsigned)(rows) && (unsigned)(t_at10) < (unsigned)(cols)) {
            uint8_t *to = (uint8_t *)(codes_view + (int64_t)(t_at9 + 1) * cols + (int64_t)(t_at10));
            to[0] = (uint8_t)(r2[0] >> 8);
        }
        if ((unsigned)(t_at9) < (unsigned)(rows) && (unsigned)(t_at10 + 32) < (unsigned)(cols)) {
            uint8_t *to = (uint8_t *)(codes_view + (int64_t)(t_at9) * cols + (int64_t)(t_at10 + 32));
            to[0] = (uint8_t)(r2[0] >> 16);
        }
        if ((unsigned)(t_at9 + 1) < (unsigned)(rows) && (unsigned)(t_at10 + 32) < (unsigned)(cols)) {
            uint8_t *to = (uint8_t *)(codes_view + (int64_t)(t_at9 + 1) * cols + (int64_t)(t_at10 + 32));
            to[0] = (uint8_t)(r2[0] >> 24);
        }
        if ((unsigned)(t_at9 + 2) < (unsigned)(rows) && (unsigned)(t_at10) < (unsigned)(cols)) {
            uint8_t *to = (uint8_t *)(codes_view + (int64_t)(t_at9 + 2) * cols + (int64_t)(t_at10));
            to[0] = (uint8_t)(r2[1] >> 0);
        }
        if ((unsigned)(t_at9 + 3) < (unsigned)(rows) && (unsigned)(t_at10) < (unsigned)(cols)) {
            uint8_t *to = (uint8_t *)(codes_view + (int64_t)(t_at9 + 3) * cols + (int64_t)(t_at10));
            to[0] = (uint8_t)(r2[1] >> 8);
        }
        if ((unsigned)(t_at9 + 2) < (unsigned)(rows) && (unsigned)(t_at10 + 32) < (unsigned)(cols)) {
            uint8_t *to = (uint8_t *)(codes_view + (int64_t)(t_at9 + 2) * cols + (int64_t)(t_at10 + 32));
            to[0] = (uint8_t)(r2[1] >> 16);
        }
        if ((unsigned)(t_at9 + 3) < (unsigned)(rows) && (unsigned)(t_at10 + 32) < (unsigned)(cols)) {
            uint8_t *to = (uint8_t *)(codes_view + (int64_t)(t_at9 + 3) * cols + (int64_t)(t_at10 + 32));
            to[0] = (uint8_t)(r2[1] >> 24);
        }
        if ((unsigned)(t_at9 + 4) < (unsigned)(rows) && (unsigned)(t_at10) < (unsigned)(cols)) {
            uint8_t *to = (uint8_t *)(codes_view + (int64_t)(t_at9 + 4) * cols + (int64_t)(t_at10));
            to[0] = (uint8_t)(r2[2] >> 0);
        }
        if ((unsigned)(t_at9 + 5) < (unsigned)(rows) && (unsigned)(t_at10) < (unsigned)(cols)) {
            uint8_t *to = (uint8_t *)(codes_view + (int64_t)(t_at9 + 5) * cols + (int64_t)(t_at10));
            to[0] = (uint8_t)(r2[2] >> 8);
        }
        if ((unsigned)(t_at9 + 4) < (unsigned)(rows) && (unsigned)(t_at10 + 32) < (unsigned)(cols)) {
            uint8_t *to = (uint8_t *)(codes_view + (int64_t)(t_at9 + 4) * cols + (int64_t)(t_at10 + 32));
            to[0] = (uint8_t)(r2[2] >> 16);
        }
        if ((unsigned)(t_at9 + 5) < (unsigned)(rows) && (unsigned)(t_at10 + 32) < (unsigned)(cols)) {
            uint8_t *to = (uint8_t *)(codes_view + (int64_t)(t_at9 + 5) * cols + (int64_t)(t_at10 + 32));
            to[0] = (uint8_t)(r2[2] >> 24);
        }
        if ((unsigned)(t_at9 + 6) < (unsigned)(rows) && (unsigned)(t_at10) < (unsigned)(cols)) {
            uint8_t *to = (uint8_t *)(codes_view + (int64_t)(t_at9 + 6) * cols + (int64_t)(t_at10));
            to[0] = (uint8_t)(r2[3] >> 0);
        }
        if ((unsigned)(t_at9 + 7) < (unsigned)(rows) && (unsigned)(t_at10) < (unsigned)(cols)) {
            uint8_t *to = (uint8_t *)(codes_view + (int64_t)(t_at9 + 7) * cols + (int64_t)(t_at10));
            to[0] = (uint8_t)(r2[3] >> 8);
        }
        if ((unsigned)(t_at9 + 6) < (unsigned)(rows) && (unsigned)(t_at10 + 32) < (unsigned)(cols)) {
            uint8_t *to = (uint8_t *)(codes_view + (int64_t)(t_at9 + 6) * cols + (int64_t)(t_at10 + 32));
            to[0] = (uint8_t)(r2[3] >> 16);
        }
        if ((unsigned)(t_at9 + 7) < (unsigned)(rows) && (unsigned)(t_at10 + 32) < (unsigned)(cols)) {
            uint8_t *to = (uint8_t *)(codes_view + (int64_t)(t_at9 + 7) * cols + (int64_t)(t_at10 + 32));
            to[0] = (uint8_t)(r2[3] >> 24);
        }
    }
}
