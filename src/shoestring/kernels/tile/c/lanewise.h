/* What no vector instruction does, lane by lane. */
#define LANEWISE(name, call)                                          \
    static inline vf vf_##name##_lanes(vf a) {                        \
        float x[LANES];                                               \
        vf_store(x, a);                                               \
        for (int t = 0; t < LANES; t++) x[t] = call(x[t]);            \
        return vf_load(x);                                            \
    }
LANEWISE(exp, expf)
LANEWISE(exp2, exp2f)
LANEWISE(log, logf)
LANEWISE(tanh, tanhf)
static inline vf vf_mod_lanes(vf a, vf b) {
    float x[LANES], y[LANES];
    vf_store(x, a);
    vf_store(y, b);
    for (int t = 0; t < LANES; t++) x[t] = fmodf(x[t], y[t]);
    return vf_load(x);
}
static inline vi vi_mod_lanes(vi a, vi b) {
    int32_t x[LANES], y[LANES];
    vi_store(x, a);
    vi_store(y, b);
    for (int t = 0; t < LANES; t++) x[t] = remainder_of(x[t], y[t]);
    return vi_load(x);
}
