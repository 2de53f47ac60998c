// Rotary positions (Su et al., 2021) on packed queries, keys and values; the halves of a head form the pairs.
//
// Macros: HEADS, KV_HEADS, HEAD_SIZE, the last a multiple of 8.

constexpr int HALF = HEAD_SIZE / 2;
constexpr int TURNED = HEADS + KV_HEADS;
constexpr long long STRIDE = (long long)(HEADS + 2 * KV_HEADS) * HEAD_SIZE;
// Pairs that a thread turns at a time: 16 bytes of either half where halves allow it, else 8.
constexpr int PAIRS = HALF % 8 == 0 ? 8 : 4;
// Pieces of a half, and of a row.
constexpr int PIECES = HALF / PAIRS;
constexpr int ROW_PIECES = TURNED * PIECES;
// Pieces that a thread has on their way to it at a time.
constexpr int TAKEN = divided_up(ROW_PIECES, LANES) < 5 ? divided_up(ROW_PIECES, LANES) : 5;
// A lane meets the same piece of each of its heads: it loads the angles once.
constexpr bool SAME_ANGLES = LANES % PIECES == 0;
constexpr int TEAMS = BLOCK / LANES;

// PAIRS bf16, two to a word, moved by one access.
struct alignas(2 * PAIRS) Piece {
    unsigned words[PAIRS / 2];
};

template <int WORDS>
struct Access {
    using Type = uint4;
};
template <>
struct Access<2> {
    using Type = uint2;
};
using Words = Access<PAIRS / 2>::Type;

__device__ __forceinline__ Piece load_piece(const bf16* at) {
    Piece piece;
    *reinterpret_cast<Words*>(piece.words) = *reinterpret_cast<const Words*>(at);
    return piece;
}

__device__ __forceinline__ void store_piece(bf16* at, const Piece& piece) {
    *reinterpret_cast<Words*>(at) = *reinterpret_cast<const Words*>(piece.words);
}

struct Angles {
    float cos[PAIRS], sin[PAIRS];
};

// The angles of one position, `turns[D]`, for a piece of the half.
__device__ __forceinline__ Angles load_angles(const float* turns, int piece, float way) {
    Angles angles;
#pragma unroll
    for (int i = 0; i < PAIRS; i += 4) {
        const float4 cos = *reinterpret_cast<const float4*>(turns + piece * PAIRS + i);
        const float4 sin = *reinterpret_cast<const float4*>(turns + HALF + piece * PAIRS + i);
        angles.cos[i] = cos.x, angles.cos[i + 1] = cos.y, angles.cos[i + 2] = cos.z, angles.cos[i + 3] = cos.w;
        angles.sin[i] = way * sin.x, angles.sin[i + 1] = way * sin.y;
        angles.sin[i + 2] = way * sin.z, angles.sin[i + 3] = way * sin.w;
    }
    return angles;
}

// `(a, b) → (a·cos − b·sin, b·cos + a·sin)`.
__device__ __forceinline__ void turn(Piece& low, Piece& high, const Angles& angles) {
#pragma unroll
    for (int word = 0; word < PAIRS / 2; ++word) {
        const float a0 = lower(low.words[word]), a1 = upper(low.words[word]);
        const float b0 = lower(high.words[word]), b1 = upper(high.words[word]);
        const float cos0 = angles.cos[2 * word], cos1 = angles.cos[2 * word + 1];
        const float sin0 = angles.sin[2 * word], sin1 = angles.sin[2 * word + 1];
        low.words[word] = paired(a0 * cos0 - b0 * sin0, a1 * cos1 - b1 * sin1);
        high.words[word] = paired(b0 * cos0 + a0 * sin0, b1 * cos1 + a1 * sin1);
    }
}

// Turns queries and keys of `qkv[B, T, H + 2K, D]` in place by `turns[T, D]`, f32: `cos[D/2]`, then `sin[D/2]`; the
// other way where `back` is not 0. Values are neither read nor written. A warp takes a row.
// Grid: `⌈B·T / 8⌉`; block: 256; no dynamic shared memory. Moves 4·B·T·(H + K)·D bytes, and 4·T·D of angles.
extern "C" __global__ void __launch_bounds__(BLOCK)
rotary(bf16* qkv, const float* turns, int batch, int context, int back) {
    const unsigned row = blockIdx.x * TEAMS + threadIdx.x / LANES;
    if (unsigned(batch) * unsigned(context) <= row) { return; }
    const int lane = threadIdx.x % LANES;
    const float way = back ? -1.0f : 1.0f;
    bf16* heads = qkv + row * STRIDE;
    const float* position = turns + (long long)(row % context) * HEAD_SIZE;
    Angles angles;
    if constexpr (SAME_ANGLES) { angles = load_angles(position, lane % PIECES, way); }
#pragma unroll 1
    for (int first = lane; first < ROW_PIECES; first += TAKEN * LANES) {
        Piece low[TAKEN], high[TAKEN];
#pragma unroll
        for (int step = 0; step < TAKEN; ++step) {
            const int piece = first + step * LANES;
            if (piece < ROW_PIECES) {
                const bf16* at = heads + piece / PIECES * HEAD_SIZE + piece % PIECES * PAIRS;
                low[step] = load_piece(at);
                high[step] = load_piece(at + HALF);
            }
        }
#pragma unroll
        for (int step = 0; step < TAKEN; ++step) {
            const int piece = first + step * LANES;
            if (piece < ROW_PIECES) {
                if constexpr (!SAME_ANGLES) { angles = load_angles(position, piece % PIECES, way); }
                turn(low[step], high[step], angles);
                bf16* at = heads + piece / PIECES * HEAD_SIZE + piece % PIECES * PAIRS;
                store_piece(at, low[step]);
                store_piece(at + HALF, high[step]);
            }
        }
    }
}
