// Initial weights, and two sums that tell weights apart.
//
// No macros. Ranges begin at multiples of 8 elements.

// The output function of SplitMix64 (Steele, Lea and Flood, 2014): each bit of the result depends on all of `x`.
__device__ __forceinline__ unsigned long long mixed(unsigned long long x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

// 2^64 divided by the golden ratio: the step between the states of SplitMix64.
constexpr unsigned long long STEP = 0x9e3779b97f4a7c15ull;

// Normal numbers of mean 0 (Box and Muller, 1958), two from each state `key + pair · STEP`: its upper 24 bits give the
// radius, its lower 24 the angle. The host computes the same numbers in f64.
// Grid: any, `min(⌈n / 2048⌉, 16 blocks a multiprocessor)`; block: 256; no dynamic shared memory. Moves 2·n bytes.
extern "C" __global__ void __launch_bounds__(BLOCK)
initial(bf16* out, long long n, unsigned long long key, float deviation) {
    const long long first = (long long)blockIdx.x * BLOCK + threadIdx.x, all = (long long)gridDim.x * BLOCK;
    for (long long vector = first; 8 * vector < n; vector += all) {
        float values[8];
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) {
            const unsigned long long bits = mixed(key + (unsigned long long)(4 * vector + pair) * STEP);
            const float share = float(unsigned(bits >> 40) + 1u) * 0x1p-24f, turn = float(unsigned(bits & 0xffffffu)) * 0x1p-24f;
            const float radius = deviation * sqrtf(-2.0f * logf(share));
            float sine, cosine;
            sincospif(2.0f * turn, &sine, &cosine);
            values[2 * pair] = radius * cosine;
            values[2 * pair + 1] = radius * sine;
        }
        if (8 * vector + 7 < n) {
            store(out + 8 * vector, packed(values));
        } else {
            for (int index = 0; 8 * vector + index < n; ++index) {
                out[8 * vector + index] = bf16(paired(values[index], 0.0f));
            }
        }
    }
}

// `*sum += Σ mixed(index · STEP ^ bits)` over the masters of `weight[n]` and `remainder[n]`, modulo 2^64: changes with
// each bit and each place. Lower halves are 0 where `remainder` is null. A sum of integers is the same in any order.
// Grid: any, `min(⌈n / 2048⌉, 16 blocks a multiprocessor)`; block: 256; no dynamic shared memory. Moves 4·n bytes.
extern "C" __global__ void __launch_bounds__(BLOCK)
fingerprint(unsigned long long* sum, const bf16* weight, const unsigned short* remainder, long long n) {
    const long long first = (long long)blockIdx.x * BLOCK + threadIdx.x, all = (long long)gridDim.x * BLOCK;
    unsigned long long mine = 0;
    for (long long at = first; at < n; at += all) {
        const unsigned high = weight[at], low = remainder == nullptr ? 0u : remainder[at];
        mine += mixed((unsigned long long)at * STEP ^ ((unsigned long long)high << 16 | low));
    }
    mine = block_sum<BLOCK>(mine);
    if (threadIdx.x == 0) { atomicAdd(sum, mine); }
}

// `*sum += Σ bits · (2·(first + index) + 1)` over the masters of `weight[n]` and `remainder[n]`, modulo 2^64, with the
// bits of `weight` in the upper half: changes with any one weight. Lower halves are 0 where `remainder` is null. A sum of integers is the same in any order.
// Grid: any, `min(⌈n / 2048⌉, 16 blocks a multiprocessor)`; block: 256; no dynamic shared memory. Moves 4·n bytes.
extern "C" __global__ void __launch_bounds__(BLOCK)
checksum(
    unsigned long long* sum, const bf16* weight, const unsigned short* remainder, long long n, unsigned long long first
) {
    const long long begin = (long long)blockIdx.x * BLOCK + threadIdx.x, all = (long long)gridDim.x * BLOCK;
    unsigned long long mine = 0;
    const auto add = [&](unsigned long long at, unsigned high, unsigned low) {
        mine += (unsigned long long)(high << 16 | low) * (2 * (first + at) + 1);
    };
    for (long long vector = begin; 8 * vector + 7 < n; vector += all) {
        const Eight high = load(weight + 8 * vector);
        const Eight low = remainder == nullptr ? Eight{{0, 0, 0, 0}} : load(remainder + 8 * vector);
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) {
            const unsigned long long at = 8 * vector + 2 * pair;
            add(at, high.pairs[pair] & 0xffffu, low.pairs[pair] & 0xffffu);
            add(at + 1, high.pairs[pair] >> 16, low.pairs[pair] >> 16);
        }
    }
    const long long rest = n / 8 * 8 + begin;
    if (rest < n) { add(rest, weight[rest], remainder == nullptr ? 0u : remainder[rest]); }
    mine = block_sum<BLOCK>(mine);
    if (threadIdx.x == 0) { atomicAdd(sum, mine); }
}
