// Causal grouped-query attention, forward and backward, on the tensor cores: mma.sync.m16n8k16
// with bf16 operands and f32 sums, which every architecture from sm_80 to sm_120 has.
//
// The forward pass is the tiled online softmax of Dao, "FlashAttention-2" (arXiv 2307.08691),
// section 3.1; the backward pass its section 3.2, split in two kernels so that every sum has one
// owner and one order: two runs give the same bits, and no atomics are needed. The price is two of
// seven matrix products done twice.
//
// Macros: HEAD_SIZE (D, 64 or 128), HEADS (H, query heads), KV_HEADS (K, H % K == 0) and
// WARP_QUERIES (W, 32 or 16; 32 if absent): the query rows of a warp, forward and in the queries'
// backward pass. 32 reads shared memory least and is the faster on an H100, by a quarter to a half.
// 16 puts eight warps instead of four in a block: for trial where a multiprocessor's shared memory
// holds only one block and its tensor cores are slow, as at D = 128 on sm_86, sm_89 and sm_120.
//
// qkv, dqkv  bf16 [B, T, H + 2K, D]  per token H query heads, K key heads, K value heads
// att, datt  bf16 [B, T, H, D]
// lse        f32  [B, H, T]          natural logarithm of the sum of exponentials of scaled scores
// delta      f32  [B, H, T]          workspace of the backward pass: att · datt per row
//
// Scores are q · k / √D. T is any length from 1; rows past T are read as zeros and never written.
// Every kernel's grid is one axis; shared memory above 48 KiB needs the opt-in attribute.
//
//                              grid                     block     dynamic shared bytes, D = 64, 128
// attention_forward            B · H · ⌈T / 128⌉        4096 / W  49152, 65536
// attention_delta              ⌈B · T · H · D / 2048⌉   256       0
// attention_backward_keys      B · K · ⌈T / 128⌉        256       100352, 99328
// attention_backward_queries   B · H · ⌈T / 128⌉        4096 / W  65536, 98304
//
// The backward pass is attention_delta, then the other two in either order.

#ifndef WARP_QUERIES
#define WARP_QUERIES 32
#endif

namespace attention_detail {

typedef unsigned short bf16_bits;

constexpr int D = HEAD_SIZE;
constexpr int H = HEADS;
constexpr int K = KV_HEADS;
constexpr int GROUP = H / K;
static_assert(D == 64 || D == 128, "head size");
static_assert(H % K == 0, "query heads per key head");
static_assert(WARP_QUERIES == 16 || WARP_QUERIES == 32, "query rows of a warp");

constexpr int QKV_STRIDE = (H + 2 * K) * D;  // elements from one token to the next
constexpr int ATT_STRIDE = H * D;
constexpr int ROW_BYTES = D * 2;             // of a tile in shared memory
constexpr int DEPTH = D / 16;                // k-steps of a product over the head's columns
constexpr int WIDTH = D / 8;                 // n-tiles of a product that yields the head's columns

constexpr int QUERIES = 128;                 // query rows of a block, forward and queries' backward
constexpr int QUERY_TILES = WARP_QUERIES / 16;
constexpr int QUERY_THREADS = QUERIES / WARP_QUERIES * 32;
constexpr int QUERY_BLOCKS = WARP_QUERIES == 32 ? 2 : 1;  // on a multiprocessor: registers for these
constexpr int FORWARD_KEYS = D == 64 ? 64 : 32;  // key rows of a stage; as many scores are held per row
constexpr int BACKWARD_KEYS = D == 64 ? 64 : 32;
constexpr int CHUNK = 32;                    // scores a warp holds per row, backward

// Keys' backward pass: eight warps. At D = 64 a warp keeps 32 keys, and two warps with the same
// keys take the two halves of a stage's queries; at D = 128 its sums leave room for 16 keys.
constexpr int KEYS = 128;
constexpr int KEY_TILES = D == 64 ? 2 : 1;   // m16 tiles of keys of a warp
constexpr int KEY_WARPS = KEYS / (16 * KEY_TILES);
constexpr int HALVES = 8 / KEY_WARPS;
constexpr int STAGE_QUERIES = D == 64 ? 128 : 64;
constexpr int HALF_QUERIES = STAGE_QUERIES / HALVES;

constexpr float SCALE = D == 64 ? 0.125f : 0.08838834764831845f;  // 1 / √D
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;
constexpr float SCALE_2 = SCALE * LOG2_E;    // exp(x · SCALE) = exp2(x · SCALE_2)

// What the blocks of one section read again and again should stay in the second-level cache:
// 40 MiB on an A100, 50 on an H100, 72 on a 4090.
constexpr int SECTION_BYTES = 16 << 20;

// ---- instructions ------------------------------------------------------------------------------

__device__ __forceinline__ unsigned shared_address(const void* pointer) {
    return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// Copies 16 bytes, or writes 16 zero bytes where `valid` is false.
__device__ __forceinline__ void copy_16(unsigned to, const void* from, bool valid) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(to),
                 "l"(__cvta_generic_to_global(from)), "r"(valid ? 16 : 0)
                 : "memory");
}

__device__ __forceinline__ void copy_4(unsigned to, const void* from, bool valid) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(to),
                 "l"(__cvta_generic_to_global(from)), "r"(valid ? 4 : 0)
                 : "memory");
}

// Every copy this block has started is in shared memory, for all its threads.
__device__ __forceinline__ void arrive() {
    asm volatile("cp.async.wait_all;\n" ::: "memory");
    __syncthreads();
}

__device__ __forceinline__ void load_matrices(unsigned (&to)[4], unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}

__device__ __forceinline__ void load_transposed(unsigned (&to)[4], unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}

__device__ __forceinline__ float2 load_pair(unsigned address) {
    float2 pair;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];\n"
                 : "=f"(pair.x), "=f"(pair.y)
                 : "r"(address)
                 : "memory");
    return pair;
}

__device__ __forceinline__ void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ float minus_infinity() { return __int_as_float(0xff800000); }

__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float log2_fast(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}

// Two bf16, the first in the low half, each rounded to nearest even.
__device__ __forceinline__ unsigned pack(float low, float high) {
    unsigned both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

__device__ __forceinline__ float low_half(unsigned both) { return __uint_as_float(both << 16); }
__device__ __forceinline__ float high_half(unsigned both) { return __uint_as_float(both & 0xffff0000u); }

// This warp's index in the block, by a broadcast, which tells the compiler that all lanes agree: it
// then keeps branches on it whole, without a barrier of the warp at each shuffle.
__device__ __forceinline__ int warp_index() { return __shfl_sync(0xffffffffu, threadIdx.x / 32, 0); }

// ---- tiles in shared memory --------------------------------------------------------------------
//
// A tile is rows of D bf16. Its 16-byte pieces are permuted within each row: piece p of row r lies
// at p ^ (r % 8), so that the eight rows an ldmatrix reads lie in different banks. A lane's address
// for k-step s is its address for step 0 with s << 5 exclusive-ored in, since tiles start at
// multiples of ROW_BYTES and every row offset used is a multiple of 8.

// This lane's offset for a 16 × 16 operand read by rows (A), or transposed as B.
__device__ __forceinline__ unsigned lane_offset_a(int lane) {
    return (lane & 15) * ROW_BYTES + (((lane >> 4) ^ (lane & 7)) << 4);
}

// This lane's offset for two 8-column B operands whose columns are rows of the tile.
__device__ __forceinline__ unsigned lane_offset_b(int lane) {
    return ((lane & 7) + ((lane >> 4) << 3)) * ROW_BYTES + ((((lane >> 3) & 1) ^ (lane & 7)) << 4);
}

// Starts the copy of rows first .. first + ROWS of a [T, stride] matrix into a tile.
template <int ROWS, int THREADS>
__device__ __forceinline__ void copy_rows(unsigned tile, const bf16_bits* rows, int first, int context,
                                          int stride) {
    constexpr int PIECES = D / 8;
    constexpr int PASS = THREADS / PIECES;
    const int row = threadIdx.x / PIECES;
    const int piece = threadIdx.x % PIECES;
    const unsigned to = tile + row * ROW_BYTES + ((piece ^ (row & 7)) << 4);
    const bf16_bits* from = rows + piece * 8;
#pragma unroll
    for (int pass = 0; pass < ROWS; pass += PASS) {
        const int at = first + pass + row;
        const bool valid = at < context;
        copy_16(to + pass * ROW_BYTES, from + static_cast<long long>(valid ? at : 0) * stride, valid);
    }
}

// Writes a warp's sums, rounded to bf16, to rows first .. first + 16 M of a [T, stride] matrix.
// `rows` are 16 M rows of shared memory that no other warp uses now: they make the stores whole.
template <int M>
__device__ __forceinline__ void store_rows(bf16_bits* matrix, const float (&sums)[M][WIDTH][4],
                                           unsigned rows, int first, int context, int stride) {
    constexpr int PIECES = D / 8;
    const int lane = threadIdx.x & 31;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int n = 0; n < WIDTH; ++n) {
            const unsigned to = rows + (m * 16 + (lane >> 2)) * ROW_BYTES + ((n ^ (lane >> 2)) << 4) +
                                ((lane & 3) << 2);
            asm volatile("st.shared.u32 [%0], %1;\n" ::"r"(to), "r"(pack(sums[m][n][0], sums[m][n][1]))
                         : "memory");
            asm volatile("st.shared.u32 [%0], %1;\n" ::"r"(to + 8 * ROW_BYTES),
                         "r"(pack(sums[m][n][2], sums[m][n][3]))
                         : "memory");
        }
    }
    __syncwarp();
    const int piece = lane % PIECES;
#pragma unroll
    for (int row = lane / PIECES; row < 16 * M; row += 32 / PIECES) {
        uint4 piece_bits;
        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];\n"
                     : "=r"(piece_bits.x), "=r"(piece_bits.y), "=r"(piece_bits.z), "=r"(piece_bits.w)
                     : "r"(rows + row * ROW_BYTES + ((piece ^ (row & 7)) << 4))
                     : "memory");
        if (first + row < context) {
            bf16_bits* to = matrix + static_cast<long long>(first + row) * stride + piece * 8;
            *reinterpret_cast<uint4*>(to) = piece_bits;
        }
    }
}

// ---- products of a warp ------------------------------------------------------------------------

// c[16 M, 8 N] += a[16 M, D] · b[8 N, D]ᵀ, both by rows in shared memory.
template <int M, int N>
__device__ __forceinline__ void multiply(float (&c)[M][N][4], unsigned a_rows, unsigned b_rows) {
#pragma unroll
    for (int k = 0; k < DEPTH; ++k) {
        unsigned a[M][4];
#pragma unroll
        for (int m = 0; m < M; ++m) load_matrices(a[m], (a_rows ^ (k << 5)) + m * 16 * ROW_BYTES);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            unsigned b[4];
            load_matrices(b, (b_rows ^ (k << 5)) + n * 8 * ROW_BYTES);
#pragma unroll
            for (int m = 0; m < M; ++m) {
                mma(c[m][n], a[m], b[0], b[1]);
                mma(c[m][n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

// The left operand of `multiply`, held in registers by warps that have room.
template <int M>
__device__ __forceinline__ void hold(unsigned (&a)[DEPTH][M][4], unsigned a_rows) {
#pragma unroll
    for (int k = 0; k < DEPTH; ++k) {
#pragma unroll
        for (int m = 0; m < M; ++m) load_matrices(a[k][m], (a_rows ^ (k << 5)) + m * 16 * ROW_BYTES);
    }
}

template <int M, int N>
__device__ __forceinline__ void multiply(float (&c)[M][N][4], const unsigned (&a)[DEPTH][M][4],
                                         unsigned b_rows) {
#pragma unroll
    for (int k = 0; k < DEPTH; ++k) {
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            unsigned b[4];
            load_matrices(b, (b_rows ^ (k << 5)) + n * 8 * ROW_BYTES);
#pragma unroll
            for (int m = 0; m < M; ++m) {
                mma(c[m][n], a[k][m], b[0], b[1]);
                mma(c[m][n + 1], a[k][m], b[2], b[3]);
            }
        }
    }
}

// c[16 M, D] += a[16 M, 16] · b[16, D]: `a` in registers, `b` by rows in shared memory.
template <int M>
__device__ __forceinline__ void accumulate(float (&c)[M][WIDTH][4], const unsigned (&a)[M][4],
                                           unsigned b_rows) {
#pragma unroll
    for (int n = 0; n < WIDTH; n += 2) {
        unsigned b[4];
        load_transposed(b, b_rows ^ (n << 4));
#pragma unroll
        for (int m = 0; m < M; ++m) {
            mma(c[m][n], a[m], b[0], b[1]);
            mma(c[m][n + 1], a[m], b[2], b[3]);
        }
    }
}

// Columns 16 j .. 16 j + 16 of a product, as the left operand of the next one.
template <int M, int N>
__device__ __forceinline__ void operand(unsigned (&a)[M][4], const float (&c)[M][N][4], int j) {
#pragma unroll
    for (int m = 0; m < M; ++m) {
        a[m][0] = pack(c[m][2 * j][0], c[m][2 * j][1]);
        a[m][1] = pack(c[m][2 * j][2], c[m][2 * j][3]);
        a[m][2] = pack(c[m][2 * j + 1][0], c[m][2 * j + 1][1]);
        a[m][3] = pack(c[m][2 * j + 1][2], c[m][2 * j + 1][3]);
    }
}

template <int M, int N>
__device__ __forceinline__ void clear(float (&c)[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) c[m][n][e] = 0.0f;
        }
    }
}

template <int M, int N>
__device__ __forceinline__ void scale(float (&c)[M][N][4], float factor) {
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) c[m][n][e] *= factor;
        }
    }
}

// Scores of keys after their query become −∞. Rows are queries and columns keys, or, transposed, the
// other way round; `row` and `column` are the positions of c's first.
template <bool TRANSPOSED, int M, int N>
__device__ __forceinline__ void mask(float (&c)[M][N][4], int row, int column) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int r = row + m * 16 + (lane >> 2) + (e >> 1) * 8;
                const int s = column + n * 8 + (lane & 3) * 2 + (e & 1);
                if (TRANSPOSED ? r > s : s > r) c[m][n][e] = minus_infinity();
            }
        }
    }
}

// ---- the order of blocks -----------------------------------------------------------------------

struct Work {
    int head;  // over batch and heads: b · heads + h
    int tile;  // 0 has the most to do
};

// Blocks start in the order of their index. Within a section of (batch, key head) pairs whose
// tensors fit the cache, those with most to do start first, so that the last to end are short.
__device__ __forceinline__ Work work(int units, int heads_per_unit, int tiles, int context) {
    const int bytes = context * D * 4;  // keys and values, or queries and datt, of one head
    const int section_units = max(1, min(units, SECTION_BYTES / bytes));
    const int section = blockIdx.x / (section_units * heads_per_unit * tiles);
    const int rest = blockIdx.x - section * section_units * heads_per_unit * tiles;
    const int heads = min(section_units, units - section * section_units) * heads_per_unit;
    return {section * section_units * heads_per_unit + rest % heads, rest / heads};
}

// dS = P ∘ (dP − delta), with P and dP given by the same positions.
__device__ __forceinline__ float score_gradient(float p, float dp, float delta) { return p * (dp - delta); }

// ---- kernels -----------------------------------------------------------------------------------

// att[b, t, h, :] = Σ_s softmax_s(q[b, t, h] · k[b, s, h / GROUP] / √D) v[b, s, h / GROUP], s ≤ t.
// Writes att and lse. One block per (batch, head, 128 queries), longest rows first; a warp keeps its
// queries' outputs in registers while keys and values pass through two stages of shared memory.
// Moves 2 D (H + 2 K) bytes in and 2 D H + 4 H out per token, if keys stay in the cache.
extern "C" __global__ void __launch_bounds__(QUERY_THREADS, QUERY_BLOCKS)
    attention_forward(unsigned short* __restrict__ att, float* __restrict__ lse,
                      const unsigned short* __restrict__ qkv, int batch, int context) {
    constexpr int M = QUERY_TILES;
    constexpr int N = FORWARD_KEYS / 8;
    constexpr unsigned TILE = FORWARD_KEYS * ROW_BYTES;
    constexpr unsigned STAGE = 2 * TILE;
    extern __shared__ __align__(1024) unsigned char attention_shared[];

    const int tiles = (context + QUERIES - 1) / QUERIES;
    const Work block = work(batch * K, GROUP, tiles, context);
    const int b = block.head / H;
    const int h = block.head % H;
    const int first_query = (tiles - 1 - block.tile) * QUERIES;
    const unsigned short* tokens = qkv + static_cast<long long>(b) * context * QKV_STRIDE;
    const unsigned short* queries = tokens + h * D;
    const unsigned short* keys = tokens + (H + h / GROUP) * D;
    const unsigned short* values = keys + K * D;

    const int warp = warp_index();
    const int lane = threadIdx.x % 32;
    const int row = first_query + warp * WARP_QUERIES;  // this warp's first query
    const unsigned query_tile = shared_address(attention_shared);
    const unsigned stages = query_tile + QUERIES * ROW_BYTES;
    const unsigned query_rows = query_tile + warp * WARP_QUERIES * ROW_BYTES;
    const unsigned key_rows = stages + lane_offset_b(lane);
    const unsigned value_rows = stages + TILE + lane_offset_a(lane);

    const auto copy_stage = [&](unsigned stage, int first) {
        copy_rows<FORWARD_KEYS, QUERY_THREADS>(stages + stage, keys, first, context, QKV_STRIDE);
        copy_rows<FORWARD_KEYS, QUERY_THREADS>(stages + stage + TILE, values, first, context, QKV_STRIDE);
    };
    copy_rows<QUERIES, QUERY_THREADS>(query_tile, queries, first_query, context, QKV_STRIDE);
    copy_stage(0, 0);

    float out[M][WIDTH][4];
    float top[M][2], sum[M][2];  // of rows lane / 4 + 8 i of m16 tile m; `sum` of this lane's columns
    clear(out);
#pragma unroll
    for (int m = 0; m < M; ++m) {
        top[m][0] = top[m][1] = minus_infinity();
        sum[m][0] = sum[m][1] = 0.0f;
    }
#if HEAD_SIZE == 64
    unsigned held[DEPTH][M][4];
    arrive();
    hold(held, query_rows + lane_offset_a(lane));
#endif

    const int end = min(first_query + QUERIES, context);
    unsigned stage = 0;
#pragma unroll 1
    for (int key = 0; key < end; key += FORWARD_KEYS) {
        arrive();  // and nobody reads the other stage any more
        if (key + FORWARD_KEYS < end) copy_stage(stage ^ STAGE, key + FORWARD_KEYS);
        if (key <= row + WARP_QUERIES - 1) {
            float s[M][N][4];
            clear(s);
#if HEAD_SIZE == 64
            multiply(s, held, key_rows + stage);
#else
            multiply(s, query_rows + lane_offset_a(lane), key_rows + stage);
#endif
            if (key + FORWARD_KEYS - 1 > row) mask<false>(s, row, key);
            // Key 0 is in the first stage and open to every query, so `top` is finite from there on.
            float shift[M][2];
            bool moved = false;
#pragma unroll
            for (int m = 0; m < M; ++m) {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    float high = top[m][i];
#pragma unroll
                    for (int n = 0; n < N; ++n)
                        high = fmaxf(high, fmaxf(s[m][n][2 * i], s[m][n][2 * i + 1]));
                    high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 1));
                    high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 2));
                    shift[m][i] = exp2_fast((top[m][i] - high) * SCALE_2);
                    moved |= high != top[m][i];
                    top[m][i] = high;
                    sum[m][i] *= shift[m][i];
                }
            }
            // A vote and a skip save time at D = 128 only, where a row has twice the outputs.
            if (D == 64 || __any_sync(0xffffffffu, moved)) {
#pragma unroll
                for (int m = 0; m < M; ++m) {
#pragma unroll
                    for (int n = 0; n < WIDTH; ++n) {
#pragma unroll
                        for (int e = 0; e < 4; ++e) out[m][n][e] *= shift[m][e >> 1];
                    }
                }
            }
#pragma unroll
            for (int j = 0; j < N / 2; ++j) {
#pragma unroll
                for (int m = 0; m < M; ++m) {
#pragma unroll
                    for (int n = 2 * j; n < 2 * j + 2; ++n) {
#pragma unroll
                        for (int e = 0; e < 4; ++e) {
                            s[m][n][e] = exp2_fast(s[m][n][e] * SCALE_2 - top[m][e >> 1] * SCALE_2);
                            sum[m][e >> 1] += s[m][n][e];
                        }
                    }
                }
                unsigned p[M][4];
                operand(p, s, j);
                accumulate(out, p, value_rows + stage + j * 16 * ROW_BYTES);
            }
        }
        stage ^= STAGE;
    }

#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float total = sum[m][i];
            total += __shfl_xor_sync(0xffffffffu, total, 1);
            total += __shfl_xor_sync(0xffffffffu, total, 2);
            const float inverse = __fdividef(1.0f, total);
#pragma unroll
            for (int n = 0; n < WIDTH; ++n) {
                out[m][n][2 * i] *= inverse;
                out[m][n][2 * i + 1] *= inverse;
            }
            const int query = row + m * 16 + (lane >> 2) + i * 8;
            if ((lane & 3) == 0 && query < context) {
                lse[static_cast<long long>(block.head) * context + query] =
                    top[m][i] * SCALE + log2_fast(total) * LN_2;
            }
        }
    }
    store_rows(att + (static_cast<long long>(b) * context * H + h) * D, out, query_rows, row, context,
               ATT_STRIDE);
}

// delta[b, h, t] = Σ_d att[b, t, h, d] datt[b, t, h, d], in f32. Eight columns per thread.
// Grid ⌈B · T · H · D / 2048⌉, block 256. Moves 4 D + 4 bytes per row.
extern "C" __global__ void __launch_bounds__(256)
    attention_delta(float* __restrict__ delta, const unsigned short* __restrict__ att,
                    const unsigned short* __restrict__ datt, int batch, int context) {
    constexpr int LANES = D / 8;
    const long long row = static_cast<long long>(blockIdx.x) * (256 / LANES) + threadIdx.x / LANES;
    const bool valid = row < static_cast<long long>(batch) * context * H;
    const long long at = (valid ? row : 0) * D + (threadIdx.x % LANES) * 8;
    const uint4 x = *reinterpret_cast<const uint4*>(att + at);
    const uint4 y = *reinterpret_cast<const uint4*>(datt + at);
    float sum = low_half(x.x) * low_half(y.x) + high_half(x.x) * high_half(y.x);
    sum += low_half(x.y) * low_half(y.y) + high_half(x.y) * high_half(y.y);
    sum += low_half(x.z) * low_half(y.z) + high_half(x.z) * high_half(y.z);
    sum += low_half(x.w) * low_half(y.w) + high_half(x.w) * high_half(y.w);
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (valid && threadIdx.x % LANES == 0) {
        const long long token = row / H;  // b · T + t
        const long long b = token / context;
        delta[(b * H + row % H) * context + (token - b * context)] = sum;
    }
}

// The key and value parts of dqkv, with P = exp(q · k / √D − lse) and dS = P ∘ (datt · v − delta):
// dv[s] = Σ_t P[t, s] datt[t], dk[s] = Σ_t dS[t, s] q[t] / √D over the group's heads and t ≥ s.
// One block per (batch, key head, 128 keys). Scores are made transposed, keys by queries, so that P
// and dS leave one product in the very registers where the next one wants them. The two halves' sums
// are added once at the end. Moves 2 D · 2 GROUP (T - s) bytes per key tile, most from the cache.
extern "C" __global__ void __launch_bounds__(256, 1)
    attention_backward_keys(unsigned short* __restrict__ dqkv, const unsigned short* __restrict__ datt,
                            const float* __restrict__ lse, const float* __restrict__ delta,
                            const unsigned short* __restrict__ qkv, int batch, int context) {
    constexpr int M = KEY_TILES;
    constexpr int N = CHUNK / 8;
    constexpr unsigned TILE = STAGE_QUERIES * ROW_BYTES;
    constexpr unsigned STAGE = 2 * TILE;
    extern __shared__ __align__(1024) unsigned char attention_shared[];

    const int tiles = (context + KEYS - 1) / KEYS;
    const Work block = work(batch * K, 1, tiles, context);
    const int b = block.head / K;
    const int kv = block.head % K;
    const int first_key = block.tile * KEYS;
    const long long token = static_cast<long long>(b) * context;
    const unsigned short* queries = qkv + token * QKV_STRIDE + kv * GROUP * D;
    const unsigned short* outputs = datt + token * ATT_STRIDE + kv * GROUP * D;
    const unsigned short* keys = qkv + token * QKV_STRIDE + (H + kv) * D;
    const float* head_lse = lse + (static_cast<long long>(b) * H + kv * GROUP) * context;
    const float* head_delta = delta + (static_cast<long long>(b) * H + kv * GROUP) * context;

    const int warp = warp_index();
    const int lane = threadIdx.x % 32;
    const int half = warp / KEY_WARPS;
    const int key_row = (warp % KEY_WARPS) * 16 * M;  // this warp's first key, in the block
    const int key = first_key + key_row;
    const unsigned shared = shared_address(attention_shared);
#if HEAD_SIZE == 64
    const unsigned key_tile = shared;
    const unsigned stages = shared + 2 * KEYS * ROW_BYTES;
    const unsigned statistics = stages + 2 * STAGE;  // [stage][lse, delta][STAGE_QUERIES]
#else
    const unsigned stages = shared;
    const unsigned key_tile = stages + STAGE;  // gives way to the second stage once held
    const unsigned statistics = key_tile + 2 * KEYS * ROW_BYTES;
#endif
    const unsigned value_tile = key_tile + KEYS * ROW_BYTES;
    const unsigned key_rows = key_tile + key_row * ROW_BYTES + lane_offset_a(lane);
    const unsigned value_rows = value_tile + key_row * ROW_BYTES + lane_offset_a(lane);

    // Starts the copy of one stage: queries, datt and the two statistics of one head's tile.
    const auto copy_stage = [&](int stage, int member, int first) {
        const unsigned to = stages + stage * STAGE;
        copy_rows<STAGE_QUERIES, 256>(to, queries + member * D, first, context, QKV_STRIDE);
        copy_rows<STAGE_QUERIES, 256>(to + TILE, outputs + member * D, first, context, ATT_STRIDE);
        if (threadIdx.x < 2 * STAGE_QUERIES) {
            const int column = threadIdx.x % STAGE_QUERIES;
            const float* from = threadIdx.x < STAGE_QUERIES ? head_lse : head_delta;
            const bool valid = first + column < context;
            copy_4(statistics + (stage * 2 * STAGE_QUERIES + threadIdx.x) * 4,
                   from + static_cast<long long>(member) * context + (valid ? first + column : 0), valid);
        }
    };

    copy_rows<KEYS, 256>(key_tile, keys, first_key, context, QKV_STRIDE);
    copy_rows<KEYS, 256>(value_tile, keys + K * D, first_key, context, QKV_STRIDE);
    copy_stage(0, 0, first_key);

    float dk[M][WIDTH][4], dv[M][WIDTH][4];
    clear(dk);
    clear(dv);

#if HEAD_SIZE == 128
    unsigned held_keys[DEPTH][M][4], held_values[DEPTH][M][4];
    arrive();
    hold(held_keys, key_rows);
    hold(held_values, value_rows);
#else
    const unsigned held_keys = key_rows, held_values = value_rows;  // read again for each chunk
#endif
    int member = 0;         // head of the group
    int first = first_key;  // first query of the stage
    int stage = 0;
#pragma unroll 1
    while (member < GROUP) {
        int next_member = member;
        int next_first = first + STAGE_QUERIES;
        if (next_first >= context) {
            next_first = first_key;
            next_member += 1;
        }
        arrive();  // and nobody reads the other stage any more
        if (next_member < GROUP) copy_stage(stage ^ 1, next_member, next_first);

        const unsigned query_tile = stages + stage * STAGE;
#pragma unroll 1
        for (int chunk = half * HALF_QUERIES; chunk < (half + 1) * HALF_QUERIES; chunk += CHUNK) {
            const int query = first + chunk;
            if (query + CHUNK <= key || query >= context) continue;
            const unsigned query_rows = query_tile + chunk * ROW_BYTES;
            const unsigned output_rows = query_rows + TILE;
            const unsigned columns =  // of this lane's two columns of the first n-tile
                statistics + (stage * 2 * STAGE_QUERIES + chunk + (lane & 3) * 2) * 4;

            float p[M][N][4], ds[M][N][4];
            clear(p);
            multiply(p, held_keys, query_rows + lane_offset_b(lane));
            if (query < key + 16 * M - 1) mask<true>(p, key, query);
            clear(ds);
            multiply(ds, held_values, output_rows + lane_offset_b(lane));
#pragma unroll
            for (int n = 0; n < N; ++n) {
                const float2 l = load_pair(columns + n * 32);
#pragma unroll
                for (int m = 0; m < M; ++m) {
#pragma unroll
                    for (int e = 0; e < 4; ++e)
                        p[m][n][e] = exp2_fast(p[m][n][e] * SCALE_2 - (e & 1 ? l.y : l.x) * LOG2_E);
                }
            }
#pragma unroll
            for (int j = 0; j < N / 2; ++j) {
                unsigned a[M][4];
                operand(a, p, j);
                accumulate(dv, a, output_rows + j * 16 * ROW_BYTES + lane_offset_a(lane));
            }
#pragma unroll
            for (int n = 0; n < N; ++n) {
                const float2 d = load_pair(columns + STAGE_QUERIES * 4 + n * 32);
#pragma unroll
                for (int m = 0; m < M; ++m) {
#pragma unroll
                    for (int e = 0; e < 4; ++e)
                        ds[m][n][e] = score_gradient(p[m][n][e], ds[m][n][e], e & 1 ? d.y : d.x);
                }
            }
#pragma unroll
            for (int j = 0; j < N / 2; ++j) {
                unsigned a[M][4];
                operand(a, ds, j);
                accumulate(dk, a, query_rows + j * 16 * ROW_BYTES + lane_offset_a(lane));
            }
        }
        member = next_member;
        first = next_first;
        stage ^= 1;
    }

    scale(dk, SCALE);
    unsigned short* to = dqkv + token * QKV_STRIDE + (H + kv) * D;
    const unsigned key_staging = key_tile + key_row * ROW_BYTES;
    const unsigned value_staging = value_tile + key_row * ROW_BYTES;
#if HEAD_SIZE == 64
    // The first half hands over its dk and finishes dv, the second the other way round.
    float* handed = reinterpret_cast<float*>(attention_shared + 2 * KEYS * ROW_BYTES) + threadIdx.x % 128;
    __syncthreads();
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int n = 0; n < WIDTH; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int slot = (m * WIDTH + n) * 4 + e;
                handed[(half * M * WIDTH * 4 + slot) * 128] = half == 0 ? dk[m][n][e] : dv[m][n][e];
            }
        }
    }
    __syncthreads();
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int n = 0; n < WIDTH; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int slot = (m * WIDTH + n) * 4 + e;
                const float own = half == 0 ? dv[m][n][e] : dk[m][n][e];
                dk[m][n][e] = own + handed[((1 - half) * M * WIDTH * 4 + slot) * 128];
            }
        }
    }
    store_rows(half == 0 ? to + K * D : to, dk, half == 0 ? value_staging : key_staging, key, context,
               QKV_STRIDE);
#else
    __syncthreads();
    store_rows(to, dk, key_staging, key, context, QKV_STRIDE);
    store_rows(to + K * D, dv, value_staging, key, context, QKV_STRIDE);
#endif
}

// The query part of dqkv: dq[t] = Σ_s dS[t, s] k[s] / √D over s ≤ t, with dS as above.
// One block per (batch, head, 128 queries), longest rows first; a warp keeps 32 queries, while keys
// and values pass through two stages. Moves 2 D (2 H + 2 K) bytes in and 2 D H out per token, if keys
// stay in the cache.
extern "C" __global__ void __launch_bounds__(QUERY_THREADS, QUERY_BLOCKS)
    attention_backward_queries(unsigned short* __restrict__ dqkv, const unsigned short* __restrict__ datt,
                               const float* __restrict__ lse, const float* __restrict__ delta,
                               const unsigned short* __restrict__ qkv, int batch, int context) {
    constexpr int M = QUERY_TILES;
    constexpr int N = CHUNK / 8;
    constexpr unsigned TILE = BACKWARD_KEYS * ROW_BYTES;
    constexpr unsigned STAGE = 2 * TILE;
    extern __shared__ __align__(1024) unsigned char attention_shared[];

    const int tiles = (context + QUERIES - 1) / QUERIES;
    const Work block = work(batch * K, GROUP, tiles, context);
    const int b = block.head / H;
    const int h = block.head % H;
    const int first_query = (tiles - 1 - block.tile) * QUERIES;
    const long long token = static_cast<long long>(b) * context;
    const unsigned short* queries = qkv + token * QKV_STRIDE + h * D;
    const unsigned short* outputs = datt + token * ATT_STRIDE + h * D;
    const unsigned short* keys = qkv + token * QKV_STRIDE + (H + h / GROUP) * D;
    const unsigned short* values = keys + K * D;

    const int warp = warp_index();
    const int lane = threadIdx.x % 32;
    const int row = first_query + warp * WARP_QUERIES;  // this warp's first query
    const unsigned query_tile = shared_address(attention_shared);
    const unsigned output_tile = query_tile + QUERIES * ROW_BYTES;
    const unsigned stages = output_tile + QUERIES * ROW_BYTES;
    const unsigned query_rows = query_tile + warp * WARP_QUERIES * ROW_BYTES + lane_offset_a(lane);
    const unsigned output_rows = output_tile + warp * WARP_QUERIES * ROW_BYTES + lane_offset_a(lane);

    const auto copy_stage = [&](unsigned stage, int first) {
        copy_rows<BACKWARD_KEYS, QUERY_THREADS>(stages + stage, keys, first, context, QKV_STRIDE);
        copy_rows<BACKWARD_KEYS, QUERY_THREADS>(stages + stage + TILE, values, first, context, QKV_STRIDE);
    };
    copy_rows<QUERIES, QUERY_THREADS>(query_tile, queries, first_query, context, QKV_STRIDE);
    copy_rows<QUERIES, QUERY_THREADS>(output_tile, outputs, first_query, context, ATT_STRIDE);
    copy_stage(0, 0);

    float row_lse[M][2], row_delta[M][2];  // of rows lane / 4 + 8 i of m16 tile m, lse in base 2
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int query = row + m * 16 + (lane >> 2) + i * 8;
            const long long at = static_cast<long long>(block.head) * context + query;
            row_lse[m][i] = query < context ? lse[at] * LOG2_E : 0.0f;
            row_delta[m][i] = query < context ? delta[at] : 0.0f;
        }
    }
#if HEAD_SIZE == 64
    unsigned held_queries[DEPTH][M][4], held_outputs[DEPTH][M][4];
    arrive();
    hold(held_queries, query_rows);
    hold(held_outputs, output_rows);
#else
    const unsigned held_queries = query_rows, held_outputs = output_rows;  // read again for each chunk
#endif
    float dq[M][WIDTH][4];
    clear(dq);

    const int end = min(first_query + QUERIES, context);
    unsigned stage = 0;
#pragma unroll 1
    for (int first = 0; first < end; first += BACKWARD_KEYS) {
        arrive();  // and nobody reads the other stage any more
        if (first + BACKWARD_KEYS < end) copy_stage(stage ^ STAGE, first + BACKWARD_KEYS);
#pragma unroll 1
        for (int chunk = 0; chunk < BACKWARD_KEYS; chunk += CHUNK) {
            const int key = first + chunk;
            if (key > row + WARP_QUERIES - 1) break;
            const unsigned key_rows = stages + stage + chunk * ROW_BYTES;
            const unsigned value_rows = key_rows + TILE;

            float p[M][N][4], ds[M][N][4];
            clear(p);
            multiply(p, held_queries, key_rows + lane_offset_b(lane));
            if (key + CHUNK - 1 > row) mask<false>(p, row, key);
            clear(ds);
            multiply(ds, held_outputs, value_rows + lane_offset_b(lane));
#pragma unroll
            for (int m = 0; m < M; ++m) {
#pragma unroll
                for (int n = 0; n < N; ++n) {
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        p[m][n][e] = exp2_fast(p[m][n][e] * SCALE_2 - row_lse[m][e >> 1]);
                        ds[m][n][e] = score_gradient(p[m][n][e], ds[m][n][e], row_delta[m][e >> 1]);
                    }
                }
            }
#pragma unroll
            for (int j = 0; j < N / 2; ++j) {
                unsigned a[M][4];
                operand(a, ds, j);
                accumulate(dq, a, key_rows + j * 16 * ROW_BYTES + lane_offset_a(lane));
            }
        }
        stage ^= STAGE;
    }

    scale(dq, SCALE);
    store_rows(dqkv + token * QKV_STRIDE + h * D, dq, query_tile + warp * WARP_QUERIES * ROW_BYTES, row,
               context, QKV_STRIDE);
}

}  // namespace attention_detail
