// What measures links: filling, moving and checking memory, and waiting for one another.
//
// No macros. Ranges begin at multiples of 16 bytes, hold whole vectors of 4 words and may pass 2^32 words. Sources and
// destinations may lie in the memory of another GPU or of the host.

__device__ __forceinline__ unsigned long long nanoseconds() {
    unsigned long long now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    return now;
}

// Word `index` of the pattern `key` (finalizer of MurmurHash3, A. Appleby, public domain).
__device__ __forceinline__ unsigned word_of(unsigned long long index, unsigned key) {
    unsigned word = unsigned(index) * 0x9e3779b1u ^ unsigned(index >> 32) ^ key;
    word = (word ^ word >> 16) * 0x85ebca6bu;
    word = (word ^ word >> 13) * 0xc2b2ae35u;
    return word ^ word >> 16;
}

// Keeps its stream until the host writes to `gate`, and at most for `limit` nanoseconds.
// Grid: 1; block: 1.
extern "C" __global__ void hold(const volatile unsigned* gate, unsigned long long limit) {
    const unsigned long long begin = nanoseconds();
    while (*gate == 0 && nanoseconds() - begin < limit) { __nanosleep(200); }
}

// Fills `out[vectors]` with the pattern `key`.
// Grid: any; block: 256. Moves 16·vectors bytes.
extern "C" __global__ void __launch_bounds__(BLOCK) paint(uint4* out, long long vectors, unsigned key) {
    for (long long at = (long long)blockIdx.x * BLOCK + threadIdx.x; at < vectors; at += (long long)gridDim.x * BLOCK) {
        const unsigned long long index = 4ull * at;
        out[at] = make_uint4(word_of(index, key), word_of(index + 1, key), word_of(index + 2, key), word_of(index + 3, key));
    }
}

// Counts in `report` the words of `data[vectors]` that are not the pattern `key`, and those of them that still are the
// pattern `before`. Reads past every cache that another device could have left behind.
// Grid: any; block: 256. Moves 16·vectors bytes.
extern "C" __global__ void __launch_bounds__(BLOCK)
compare(unsigned long long* report, const uint4* data, long long vectors, unsigned key, unsigned before) {
    unsigned wrong = 0, untouched = 0;
    for (long long at = (long long)blockIdx.x * BLOCK + threadIdx.x; at < vectors; at += (long long)gridDim.x * BLOCK) {
        uint4 taken;
        asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(taken.x), "=r"(taken.y), "=r"(taken.z), "=r"(taken.w) : "l"(data + at));
        const unsigned words[4] = {taken.x, taken.y, taken.z, taken.w};
#pragma unroll
        for (int word = 0; word < 4; ++word) {
            const unsigned long long index = 4ull * at + word;
            const bool bad = words[word] != word_of(index, key);
            wrong += bad;
            untouched += bad && words[word] == word_of(index, before);
        }
    }
    if (wrong != 0) {
        atomicAdd(report, (unsigned long long)wrong);
        atomicAdd(report + 1, (unsigned long long)untouched);
    }
}

// Copies `vectors` by the multiprocessors, four vectors a thread at a time.
// Grid: any; block: 256. Moves 32·vectors bytes.
extern "C" __global__ void __launch_bounds__(BLOCK) carry(uint4* out, const uint4* in, long long vectors) {
    constexpr int TAKEN = 4;
    for (long long base = (long long)blockIdx.x * (TAKEN * BLOCK) + threadIdx.x; base < vectors;
         base += (long long)gridDim.x * (TAKEN * BLOCK)) {
        uint4 taken[TAKEN];
#pragma unroll
        for (int step = 0; step < TAKEN; ++step) {
            const long long at = base + step * BLOCK;
            if (at < vectors) { taken[step] = in[at]; }
        }
#pragma unroll
        for (int step = 0; step < TAKEN; ++step) {
            const long long at = base + step * BLOCK;
            if (at < vectors) { out[at] = taken[step]; }
        }
    }
}

// Follows `hops` indices from word 0 of `chain` on, each load waiting for the one before; leaves the last in `end`.
// Grid: 1; block: 1.
extern "C" __global__ void chase(unsigned* end, const unsigned* chain, unsigned hops) {
    unsigned at = 0;
    for (unsigned hop = 0; hop < hops; ++hop) {
        asm volatile("ld.volatile.global.u32 %0, [%1];" : "=r"(at) : "l"(chain + at));
    }
    *end = at;
}
