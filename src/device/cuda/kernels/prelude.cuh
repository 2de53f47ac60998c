// What every kernel file starts from: the host puts this text before it and compiles both as one, without any header.
// A bf16 is the upper half of an f32, so reading one is a shift; writing one rounds to nearest even.
// Nothing here uses an atomic on a float: the same input gives the same bits.

using bf16 = unsigned short;

constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr int LANES = 32;
// Threads of a block wherever a comment does not say otherwise.
constexpr int BLOCK = 256;
constexpr float LOG2_OF_E = 1.4426950408889634f;

__device__ constexpr int divided_up(int amount, int part) { return (amount + part - 1) / part; }

// Eight bf16 in the order of memory, two to a word: 16 bytes, the widest access there is.
struct alignas(16) Eight {
    unsigned pairs[4];
};

__device__ __forceinline__ Eight load(const bf16* at) {
    const uint4 words = *reinterpret_cast<const uint4*>(at);
    return {{words.x, words.y, words.z, words.w}};
}

// [`load`] of what lies in the nearest cache, each time anew: the compiler would load it once before a loop, unpack it
// there and hold that.
__device__ __forceinline__ Eight load_anew(const bf16* at) {
    Eight eight;
    asm volatile(
        "ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(eight.pairs[0]), "=r"(eight.pairs[1]), "=r"(eight.pairs[2]), "=r"(eight.pairs[3]) : "l"(at)
    );
    return eight;
}

// [`load`], or zeros and no access where `inside` is false. Without a branch around it, so that loads of several rows
// leave together.
__device__ __forceinline__ Eight load_if(bool inside, const bf16* at) {
    Eight eight;
    asm volatile(
        "{\n\t.reg .pred inside;\n\tsetp.ne.u32 inside, %5, 0;\n\t"
        "mov.u32 %0, 0;\n\tmov.u32 %1, 0;\n\tmov.u32 %2, 0;\n\tmov.u32 %3, 0;\n\t"
        "@inside ld.global.v4.u32 {%0, %1, %2, %3}, [%4];\n\t}"
        : "=&r"(eight.pairs[0]), "=&r"(eight.pairs[1]), "=&r"(eight.pairs[2]), "=&r"(eight.pairs[3])
        : "l"(at), "r"(unsigned(inside))
    );
    return eight;
}

// Stores are spelt out: the compiler splits some of the assigned vectors into words.
__device__ __forceinline__ void store(bf16* at, const Eight& value) {
    asm volatile(
        "st.global.v4.u32 [%0], {%1, %2, %3, %4};" :
        : "l"(at), "r"(value.pairs[0]), "r"(value.pairs[1]), "r"(value.pairs[2]), "r"(value.pairs[3]) : "memory"
    );
}

__device__ __forceinline__ void store(unsigned short* at, uint2 value) {
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" : : "l"(at), "r"(value.x), "r"(value.y) : "memory");
}

__device__ __forceinline__ void store(float* at, float4 value) {
    asm volatile(
        "st.global.v4.f32 [%0], {%1, %2, %3, %4};" : : "l"(at), "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w)
        : "memory"
    );
}

__device__ __forceinline__ float widened(bf16 value) { return __uint_as_float(unsigned(value) << 16); }
__device__ __forceinline__ float lower(unsigned pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float upper(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }

// Two f32 rounded to nearest even; NaN stays NaN.
__device__ __forceinline__ unsigned paired(float low, float high) {
    unsigned pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

__device__ __forceinline__ void unpack(float (&values)[8], const Eight& eight) {
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
        values[2 * pair] = lower(eight.pairs[pair]);
        values[2 * pair + 1] = upper(eight.pairs[pair]);
    }
}

__device__ __forceinline__ Eight packed(const float (&values)[8]) {
    Eight eight;
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) { eight.pairs[pair] = paired(values[2 * pair], values[2 * pair + 1]); }
    return eight;
}

// [`unpack`] by other instructions: a second pass over packed values spelt the same way would make the assembler keep
// what the first one unpacked, at twice the registers.
__device__ __forceinline__ void unpack_again(float (&values)[8], const Eight& eight) {
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
        values[2 * pair] = __uint_as_float(__byte_perm(eight.pairs[pair], 0, 0x1044));
        values[2 * pair + 1] = __uint_as_float(__byte_perm(eight.pairs[pair], 0, 0x3244));
    }
}

// 2 to the power of `x` and 1 / `x`, each within 2 units of the last place (PTX ISA, ex2.approx and rcp.approx).
__device__ __forceinline__ float power_of_2(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}

__device__ __forceinline__ float reciprocal(float x) {
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(x));
    return inverse;
}

// 1 / (1 + exp(-x)); 0 where exp(-x) overflows.
__device__ __forceinline__ float sigmoid(float x) { return reciprocal(1.0f + power_of_2(-LOG2_OF_E * x)); }

// The sum over a warp, the same bits in each lane: a + b and b + a are equal.
template <typename Number>
__device__ __forceinline__ Number warp_sum(Number value) {
#pragma unroll
    for (int apart = LANES / 2; 0 < apart; apart /= 2) { value += __shfl_xor_sync(ALL_LANES, value, apart); }
    return value;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (int apart = LANES / 2; 0 < apart; apart /= 2) {
        value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, apart));
    }
    return value;
}

// The sum over a block of `THREADS` threads in each of them: warps in order. Called once in a kernel.
template <int THREADS, typename Number>
__device__ __forceinline__ Number block_sum(Number value) {
    __shared__ Number sums[THREADS / LANES];
    const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    value = warp_sum(value);
    if (lane == 0) { sums[warp] = value; }
    __syncthreads();
    return warp_sum(lane < THREADS / LANES ? sums[lane] : Number(0));
}

// Threads of a block that share a row of so many vectors of eight: whole warps, few enough that a row keeps each busy
// and enough that one's part of it fits its registers.
__device__ constexpr int team_of(int vectors) {
    int team = LANES;
    while (team < BLOCK && 4 * team < vectors) { team *= 2; }
    return team;
}
