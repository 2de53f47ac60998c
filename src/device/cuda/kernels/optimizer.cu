// AdamW (Loshchilov and Hutter, 2019, algorithm 2) on bf16 weights whose master is exact, and what it needs.
//
// No macros.
// A master weight is an f32 kept as two halves: `weight`, its bf16, rounded half away from zero as
// `high = (bits + 0x8000) >> 16`, which the model computes with; and `remainder`, `low = bits & 0xffff`. Rounding
// carried into `high` exactly where the top bit of `low` is set, so `bits = (high − (low >> 15)) << 16 | low`.
// Counts are 64 bits wide: a bucket may pass 2^32 elements. Ranges begin at multiples of 8 elements, 16 bytes of bf16.

__device__ __forceinline__ float joined(unsigned high, unsigned low) {
    return __uint_as_float(((high - (low >> 15)) << 16) | low);
}

// The upper and the lower halves of two masters, a word each.
struct Halves {
    unsigned high, low;
};

__device__ __forceinline__ Halves halves(float first, float second) {
    const unsigned a = __float_as_uint(first), b = __float_as_uint(second);
    // The selectors pick bytes: 0 to 3 of the first word, 4 to 7 of the second.
    return {__byte_perm(a + 0x8000u, b + 0x8000u, 0x7632), __byte_perm(a, b, 0x5410)};
}

// Four elements at a time: 8 bytes of bf16 and 16 of f32, so that each access of a warp is one contiguous range.
__device__ __forceinline__ uint2 four_halves(const unsigned short* at) { return *reinterpret_cast<const uint2*>(at); }
__device__ __forceinline__ float4 four(const float* at) { return *reinterpret_cast<const float4*>(at); }

__device__ __forceinline__ float4 four_joined(uint2 high, uint2 low) {
    return make_float4(
        joined(high.x & 0xffffu, low.x & 0xffffu), joined(high.x >> 16, low.x >> 16),
        joined(high.y & 0xffffu, low.y & 0xffffu), joined(high.y >> 16, low.y >> 16)
    );
}

// What gradients are multiplied by first, as `AdamWUpdate::gradient_scale`; false where the norm is no finite number.
__device__ __forceinline__ bool gradient_scale(float& scale, double mean, double clip, const double* squares) {
    double clipping = 1.0;
    if (squares != nullptr) {
        const double norm = mean * sqrt(*squares);
        if (!isfinite(norm)) { return false; }
        if (0.0 < clip) { clipping = fmin(clip / (norm + 1e-6), 1.0); }
    }
    scale = float(mean * clipping);
    return true;
}

// Whether a tile meets a range of `gains`, `[begin, end)` pairs; the answer is the same in each lane.
__device__ __forceinline__ bool meets(
    const unsigned long long* gains, int count, unsigned long long begin, unsigned long long end
) {
    bool met = false;
    for (int range = threadIdx.x % LANES; range < count; range += LANES) {
        met |= gains[2 * range] < end && begin < gains[2 * range + 1];
    }
    return __any_sync(ALL_LANES, met);
}

__device__ __forceinline__ bool is_gain(const unsigned long long* gains, int count, unsigned long long at) {
    bool inside = false;
#pragma unroll 1
    for (int range = 0; range < count; ++range) { inside |= gains[2 * range] <= at && at < gains[2 * range + 1]; }
    return inside;
}

struct Rule {
    float scale, keep, rate, root_scale, beta1, beta2, epsilon;
};

// One element; returns the new master.
__device__ __forceinline__ float updated(float master, float& m, float& v, float gradient, float keep, const Rule& rule) {
    const float scaled = gradient * rule.scale;
    m = rule.beta1 * m + (1.0f - rule.beta1) * scaled;
    v = rule.beta2 * v + (1.0f - rule.beta2) * scaled * scaled;
    return master * keep - rule.rate * m / (sqrtf(v) * rule.root_scale + rule.epsilon);
}

// Groups of four elements that a thread takes from a tile.
constexpr int GROUPS = 2;
constexpr int TILE = GROUPS * 4 * BLOCK;

// One update of a bucket of `n` weights, `n` a multiple of 8: `g = gradient · scale`, `m = β₁m + (1 − β₁)g`,
// `v = β₂v + (1 − β₂)g²`, `master = master · (1 − ηλ) − η · (m / bias₁) / (√(v / bias₂) + ε)`, where λ is 0 for the
// elements of `gains[gain_count, 2]`, sorted ranges `[begin, end)` that begin and end at multiples of 8.
// `scale = mean · min(1, clip / (mean · √squares + 1e-6))`; without clipping where `clip` is not above 0 or `squares`
// is null. Where the norm is no finite number nothing is changed.
// Grid: any, fastest with `⌈n / 2048⌉` (2^31 − 1 at most); block: 256; no dynamic shared memory. Moves 26·n bytes.
extern "C" __global__ void __launch_bounds__(BLOCK)
adamw(
    bf16* weight, unsigned short* remainder, float* m, float* v, const bf16* gradient, long long n,
    const unsigned long long* gains, int gain_count, float learning_rate, float weight_decay, float beta1, float beta2,
    float epsilon, float bias1, float bias2, double mean, double clip, const double* squares
) {
    __shared__ float shared_scale;
    // One thread computes in f64, of which small cards do little: -1 says that nothing may change.
    if (threadIdx.x == 0) {
        float scale;
        shared_scale = gradient_scale(scale, mean, clip, squares) ? scale : -1.0f;
    }
    __syncthreads();
    const float scale = shared_scale;
    if (scale < 0.0f) { return; }
    const float decayed = 1.0f - learning_rate * weight_decay;
    const Rule rule = {scale, decayed, learning_rate / bias1, 1.0f / sqrtf(bias2), beta1, beta2, epsilon};

    for (long long tile = (long long)blockIdx.x * TILE; tile < n; tile += (long long)gridDim.x * TILE) {
        uint2 high[GROUPS], low[GROUPS], gs[GROUPS];
        float4 ms[GROUPS], vs[GROUPS];
#pragma unroll
        for (int group = 0; group < GROUPS; ++group) {
            const long long at = tile + 4 * (group * BLOCK + threadIdx.x);
            if (at < n) {
                high[group] = four_halves(weight + at);
                low[group] = four_halves(remainder + at);
                gs[group] = four_halves(gradient + at);
                ms[group] = four(m + at);
                vs[group] = four(v + at);
            }
        }
        const bool some_gains = meets(gains, gain_count, tile, tile + TILE);
#pragma unroll
        for (int group = 0; group < GROUPS; ++group) {
            const long long at = tile + 4 * (group * BLOCK + threadIdx.x);
            if (n <= at) { continue; }
            const float keep = some_gains && is_gain(gains, gain_count, at) ? 1.0f : rule.keep;
            float4 master = four_joined(high[group], low[group]);
            float4 &first = ms[group], &second = vs[group];
            master.x = updated(master.x, first.x, second.x, lower(gs[group].x), keep, rule);
            master.y = updated(master.y, first.y, second.y, upper(gs[group].x), keep, rule);
            master.z = updated(master.z, first.z, second.z, lower(gs[group].y), keep, rule);
            master.w = updated(master.w, first.w, second.w, upper(gs[group].y), keep, rule);
            const Halves front = halves(master.x, master.y), back = halves(master.z, master.w);
            store(weight + at, make_uint2(front.high, back.high));
            store(remainder + at, make_uint2(front.low, back.low));
            store(m + at, first);
            store(v + at, second);
        }
    }
}

// `partials[blocks]`, f64, whose sum is `Σ values[n]²`: 32 squares at a time in f32, those in f64, in an order that the
// number of blocks fixes. A square above the range of f32 makes it infinite, and AdamW then changes nothing.
// Grid: `blocks`, 8 a multiprocessor; block: 256; no dynamic shared memory. Moves 2·n bytes.
extern "C" __global__ void __launch_bounds__(BLOCK)
sum_of_squares(double* partials, const bf16* values, long long n) {
    constexpr int TAKEN = 4;
    const long long vectors = n / 8;
    double total = 0.0;
    for (long long first = (long long)blockIdx.x * (TAKEN * BLOCK) + threadIdx.x; first < vectors;
         first += (long long)gridDim.x * (TAKEN * BLOCK)) {
        Eight taken[TAKEN];
#pragma unroll
        for (int step = 0; step < TAKEN; ++step) {
            const long long vector = first + step * BLOCK;
            taken[step] = vector < vectors ? load(values + 8 * vector) : Eight{{0, 0, 0, 0}};
        }
        float sum = 0.0f;
#pragma unroll
        for (const Eight& vector : taken) {
            float eight[8];
            unpack(eight, vector);
#pragma unroll
            for (float value : eight) { sum += value * value; }
        }
        total += double(sum);
    }
    if (blockIdx.x == 0 && threadIdx.x < n % 8) {
        const float value = widened(values[8 * vectors + threadIdx.x]);
        total += double(value) * double(value);
    }
    total = block_sum<BLOCK>(total);
    if (threadIdx.x == 0) { partials[blockIdx.x] = total; }
}

// `total (+)= Σ partials[blocks]` in f64 and a fixed order.
// Grid: 1; block: 256; no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(BLOCK)
finish_squares(double* total, const double* partials, int blocks, int accumulate) {
    double sum = 0.0;
#pragma unroll 4
    for (int block = threadIdx.x; block < blocks; block += BLOCK) { sum += partials[block]; }
    sum = block_sum<BLOCK>(sum);
    if (threadIdx.x == 0) { *total = (accumulate ? *total : 0.0) + sum; }
}
