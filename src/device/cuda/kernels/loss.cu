// Cross-entropy over VOCABULARY logits with its gradient, and the mean of losses.
//
// Macros: VOCABULARY, a multiple of 8; STAGED_MAX, optional: vectors of a thread that may lie in shared memory, 8 KiB of
// a block each. 5 needs no opt-in; 14 is what two blocks find in the 228 KiB of sm_90 and sm_100.
// A block takes a row, and two share a multiprocessor: one loads while the other computes. As much of the row as fits
// stays there between the pass that sums exponentials and the pass that writes the gradient: the first vectors of a
// thread in registers, the next in shared memory; only what is left is read a second time, mostly from the
// second-level cache, where the first pass has just put it.

constexpr int VECTORS = VOCABULARY / 8;
constexpr int THREADS = 512;
constexpr int WARPS = THREADS / LANES;

#ifndef STAGED_MAX
#define STAGED_MAX 5
#endif
// A thread's vectors of a row, `index · THREADS + thread`: in registers, in shared memory, and read again.
constexpr int ALL = divided_up(VECTORS, THREADS);
constexpr int KEPT = ALL < 8 ? ALL : 8;
constexpr int STAGED = ALL - KEPT < STAGED_MAX ? ALL - KEPT : STAGED_MAX;
constexpr int AGAIN = ALL - KEPT - STAGED;
// Vectors on their way at a time among those that are read again.
constexpr int BATCH = 4;

__device__ __forceinline__ bool inside(int index) {
    return (index + 1) * THREADS <= VECTORS || index * THREADS + int(threadIdx.x) < VECTORS;
}

// An online softmax: the largest value so far, and the sum of exp(value − largest). The start is far below any logit,
// and finite, so that a thread without logits adds nothing and makes no NaN.
struct Sum {
    float largest = -1e38f;
    float sum = 0.0f;
};

// The larger of each half; a NaN loses, so `finite_zero` must look for it.
__device__ __forceinline__ unsigned larger(unsigned a, unsigned b) {
    unsigned pair;
    asm("max.bf16x2 %0, %1, %2;" : "=r"(pair) : "r"(a), "r"(b));
    return pair;
}

// `zero` in each half, NaN from the first value on that is not finite.
__device__ __forceinline__ unsigned finite_zero(unsigned values, unsigned zero) {
    unsigned pair;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(pair) : "r"(values), "r"(0u), "r"(zero));
    return pair;
}

// Takes `vectors`, those of `first` and on that are inside the row, into the sum.
template <int COUNT>
__device__ __forceinline__ void absorb(Sum& so_far, const Eight (&vectors)[COUNT], int first) {
    unsigned largest = 0xff80ff80u, zero = 0;
#pragma unroll
    for (int index = 0; index < COUNT; ++index) {
        if (!inside(first + index)) { continue; }
#pragma unroll
        for (unsigned pair : vectors[index].pairs) {
            largest = larger(largest, pair);
            zero = finite_zero(pair, zero);
        }
    }
    const float shift = fmaxf(so_far.largest, fmaxf(lower(largest), upper(largest)));
    const float scaled_shift = shift * LOG2_OF_E;
    float sum = so_far.sum * power_of_2((so_far.largest - shift) * LOG2_OF_E) + (lower(zero) + upper(zero));
#pragma unroll
    for (int index = 0; index < COUNT; ++index) {
        if (!inside(first + index)) { continue; }
#pragma unroll
        for (unsigned pair : vectors[index].pairs) {
            sum += power_of_2(lower(pair) * LOG2_OF_E - scaled_shift);
            sum += power_of_2(upper(pair) * LOG2_OF_E - scaled_shift);
        }
    }
    so_far.largest = shift;
    so_far.sum = sum;
}

// The sum over a warp, the same bits in each lane.
__device__ __forceinline__ Sum warp_total(Sum mine) {
    Sum total;
    total.largest = warp_max(mine.largest);
    total.sum = warp_sum(mine.sum * power_of_2((mine.largest - total.largest) * LOG2_OF_E));
    return total;
}

// The sum over the block, the same bits in each thread.
__device__ __forceinline__ Sum block_total(Sum mine) {
    __shared__ float largest[WARPS], sums[WARPS];
    const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    mine = warp_total(mine);
    if (lane == 0) { largest[warp] = mine.largest, sums[warp] = mine.sum; }
    __syncthreads();
    Sum other;
    if (lane < WARPS) { other.largest = largest[lane], other.sum = sums[lane]; }
    return warp_total(other);
}

// Writes `softmax · inverse`, and `inverse` less at the target: `exp(x) · inverse / Σ exp = 2^(x · log2(e) − shift)`.
__device__ __forceinline__ void write_gradient(
    bf16* row, const Eight& logits, int index, float shift, unsigned target, float inverse
) {
    const unsigned vector = index * THREADS + threadIdx.x;
    float values[8];
    unpack_again(values, logits);
#pragma unroll
    for (float& value : values) { value = power_of_2(value * LOG2_OF_E - shift); }
    if (vector == target / 8) {
#pragma unroll
        for (int i = 0; i < 8; ++i) { values[i] -= i == target % 8 ? inverse : 0.0f; }
    }
    store(row + 8 * vector, packed(values));
}

// Sixteen bytes from global to shared memory without passing through registers.
__device__ __forceinline__ void stage(Eight* to, const bf16* from) {
    asm volatile(
        "cp.async.cg.shared.global [%0], [%1], 16;" : : "r"(unsigned(__cvta_generic_to_shared(to))), "l"(from) : "memory"
    );
}

// `losses[N] = −ln softmax(logits)[target]`, f32, in nats, and in place of `logits[N, V]` their gradient
// `(softmax(logits) − one_hot(target)) · inverse`. Targets are below V. Where a logit is not finite, the loss is NaN and
// so is the gradient of its row.
// Grid: N; block: 512; dynamic shared memory: 8192 · min(STAGED_MAX, ⌈V / 4096⌉ − 8) bytes, none where that is less
// than 0. Moves 4·N·V bytes, and reads again what is neither in registers nor in shared memory.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
cross_entropy(float* losses, bf16* logits, const unsigned* targets, float inverse) {
    extern __shared__ uint4 dynamic[];
    Eight* staged = reinterpret_cast<Eight*>(dynamic);
    bf16* row = logits + (long long)blockIdx.x * VOCABULARY;
    bf16* mine = row + 8 * threadIdx.x;
    const unsigned target = targets[blockIdx.x];
    Eight kept[KEPT];
#pragma unroll
    for (int index = 0; index < KEPT; ++index) {
        if (inside(index)) { kept[index] = load(mine + index * (8 * THREADS)); }
    }
#pragma unroll
    for (int index = 0; index < STAGED; ++index) {
        if (inside(KEPT + index)) {
            stage(staged + index * THREADS + threadIdx.x, mine + (KEPT + index) * (8 * THREADS));
        }
    }
    const float aimed = widened(row[target]);

    Sum sum;
    absorb(sum, kept, 0);
#pragma unroll 1
    for (int first = ALL - AGAIN; first < ALL; first += BATCH) {
        Eight batch[BATCH];
#pragma unroll
        for (int index = 0; index < BATCH; ++index) {
            if (inside(first + index)) { batch[index] = load(mine + (first + index) * (8 * THREADS)); }
        }
        absorb(sum, batch, first);
    }
    if constexpr (0 < STAGED) {
        // A thread reads only what it asked for itself: its own wait is enough.
        asm volatile("cp.async.wait_all;" : : : "memory");
#pragma unroll
        for (int index = 0; index < STAGED; ++index) {
            const Eight one[1] = {staged[index * THREADS + threadIdx.x]};
            absorb(sum, one, KEPT + index);
        }
    }
    sum = block_total(sum);

    if (threadIdx.x == 0) { losses[blockIdx.x] = logf(sum.sum) + (sum.largest - aimed); }
    const float shift = sum.largest * LOG2_OF_E + (log2f(sum.sum) - log2f(inverse));
#pragma unroll
    for (int index = 0; index < KEPT; ++index) {
        if (inside(index)) { write_gradient(row, kept[index], index, shift, target, inverse); }
    }
#pragma unroll
    for (int index = 0; index < STAGED; ++index) {
        if (inside(KEPT + index)) {
            write_gradient(row, staged[index * THREADS + threadIdx.x], KEPT + index, shift, target, inverse);
        }
    }
#pragma unroll BATCH
    for (int index = ALL - AGAIN; index < ALL; ++index) {
        if (inside(index)) {
            write_gradient(row, load(mine + index * (8 * THREADS)), index, shift, target, inverse);
        }
    }
}

// `total (+)= weight · Σ losses[n] / n` in f64.
// Grid: 1; block: 1024; no dynamic shared memory. Moves 4·n bytes.
extern "C" __global__ void __launch_bounds__(1024)
mean(double* total, const float* losses, long long n, double weight, int accumulate) {
    double sum = 0.0;
    const long long quads = n / 4;
#pragma unroll 8
    for (long long quad = threadIdx.x; quad < quads; quad += 1024) {
        const float4 four = reinterpret_cast<const float4*>(losses)[quad];
        sum += (double(four.x) + double(four.y)) + (double(four.z) + double(four.w));
    }
    const long long rest = 4 * quads + threadIdx.x;
    if (rest < n) { sum += double(losses[rest]); }
    sum = block_sum<1024>(sum);
    if (threadIdx.x == 0) { *total = (accumulate ? *total : 0.0) + weight * (sum / double(n)); }
}
