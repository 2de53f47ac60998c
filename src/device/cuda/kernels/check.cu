// Looks for numbers that are none.
//
// No macros.
// `first` must be ~0 before: it becomes the smallest index among it and those of elements that are NaN or infinite. An
// atomic minimum of integers is the same in any order. Ranges begin at multiples of 16 bytes and may pass 2^32 elements.

// A number is infinite or NaN where all bits of its exponent are set: adding the lowest of them then carries into the
// place of the sign.
__device__ __forceinline__ unsigned not_finite_halves(unsigned pair) {
    return ((pair & 0x7f807f80u) + 0x00800080u) & 0x80008000u;
}

__device__ __forceinline__ unsigned not_finite_word(unsigned word) {
    return ((word & 0x7f800000u) + 0x00800000u) & 0x80000000u;
}

// Looks through 16-byte vectors of words, four a thread at a time, and through the rest a number at a time.
// PER_WORD numbers are in a word; `found` has a bit set for each that is not finite, in the number's top bit.
template <int PER_WORD, typename Number, typename Found>
__device__ __forceinline__ void look(unsigned long long* first, const Number* data, long long n, Found found) {
    constexpr int TAKEN = 4, PER_VECTOR = 4 * PER_WORD;
    const long long vectors = n / PER_VECTOR;
    long long mine = -1;
    for (long long base = (long long)blockIdx.x * (TAKEN * BLOCK) + threadIdx.x; base < vectors && mine < 0;
         base += (long long)gridDim.x * (TAKEN * BLOCK)) {
        uint4 taken[TAKEN];
#pragma unroll
        for (int step = 0; step < TAKEN; ++step) {
            const long long vector = base + step * BLOCK;
            taken[step] = vector < vectors ? reinterpret_cast<const uint4*>(data)[vector] : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int step = TAKEN - 1; 0 <= step; --step) {
            const unsigned words[4] = {taken[step].x, taken[step].y, taken[step].z, taken[step].w};
#pragma unroll
            for (int word = 3; 0 <= word; --word) {
                const unsigned bits = found(words[word]);
                if (bits != 0) {
                    const int within = PER_WORD == 2 && (bits & 0x8000u) == 0 ? 1 : 0;
                    mine = (base + step * BLOCK) * PER_VECTOR + word * PER_WORD + within;
                }
            }
        }
    }
    const long long rest = vectors * PER_VECTOR + threadIdx.x;
    if (mine < 0 && blockIdx.x == 0 && rest < n && found(unsigned(data[rest])) != 0) { mine = rest; }
    if (0 <= mine) { atomicMin(first, (unsigned long long)mine); }
}

// The smallest index of a bf16 that is NaN or infinite among `data[n]`.
// Grid: any, 8 blocks a multiprocessor; block: 256; no dynamic shared memory. Moves 2·n bytes.
extern "C" __global__ void __launch_bounds__(BLOCK)
first_not_finite_bf16(unsigned long long* first, const bf16* data, long long n) {
    look<2>(first, data, n, not_finite_halves);
}

// The smallest index of an f32 that is NaN or infinite among `data[n]`, read as words.
// Grid: any, 8 blocks a multiprocessor; block: 256; no dynamic shared memory. Moves 4·n bytes.
extern "C" __global__ void __launch_bounds__(BLOCK)
first_not_finite_f32(unsigned long long* first, const unsigned* data, long long n) {
    look<1>(first, data, n, not_finite_word);
}
