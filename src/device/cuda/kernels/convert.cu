// Gradients in bf16, widened to f32 to be summed over ranks, and their sums narrowed again.
//
// No macros. Ranges begin at multiples of 8 elements.

// `wide[n] = narrow[n]`.
// Grid: any, `min(⌈n / 2048⌉, 16 blocks a multiprocessor)`; block: 256; no dynamic shared memory. Moves 6·n bytes.
extern "C" __global__ void __launch_bounds__(BLOCK)
widen(float* wide, const bf16* narrow, long long n) {
    const long long begin = (long long)blockIdx.x * BLOCK + threadIdx.x, all = (long long)gridDim.x * BLOCK;
    for (long long vector = begin; 8 * vector + 7 < n; vector += all) {
        float values[8];
        unpack(values, load(narrow + 8 * vector));
        store(wide + 8 * vector, make_float4(values[0], values[1], values[2], values[3]));
        store(wide + 8 * vector + 4, make_float4(values[4], values[5], values[6], values[7]));
    }
    const long long rest = n / 8 * 8 + begin;
    if (rest < n) { wide[rest] = widened(narrow[rest]); }
}

// `narrow[n] = wide[n]`, rounded to nearest even; NaN stays NaN.
// Grid: any, `min(⌈n / 2048⌉, 16 blocks a multiprocessor)`; block: 256; no dynamic shared memory. Moves 6·n bytes.
extern "C" __global__ void __launch_bounds__(BLOCK)
narrow(bf16* narrow, const float* wide, long long n) {
    const long long begin = (long long)blockIdx.x * BLOCK + threadIdx.x, all = (long long)gridDim.x * BLOCK;
    for (long long vector = begin; 8 * vector + 7 < n; vector += all) {
        const float4 front = *reinterpret_cast<const float4*>(wide + 8 * vector);
        const float4 back = *reinterpret_cast<const float4*>(wide + 8 * vector + 4);
        const float values[8] = {front.x, front.y, front.z, front.w, back.x, back.y, back.z, back.w};
        store(narrow + 8 * vector, packed(values));
    }
    const long long rest = n / 8 * 8 + begin;
    if (rest < n) { narrow[rest] = bf16(paired(wide[rest], 0.0f)); }
}
