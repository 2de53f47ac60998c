// RMSNorm (Zhang and Sennrich, 2019) of rows of WIDTH, and its gradient fused with that of the residual stream.
//
// Macros: WIDTH, a multiple of 8, up to 12288 (a row of sums in 48 KiB of shared memory).
// TEAMS = 256 / TEAM rows of a block, with TEAM the smallest of 32, 64 and 128 that is not below W / 32, else 256.
// A team of TEAM threads holds a row in registers and goes on to the row that is as many rows further as there are
// teams in the grid, so any grid is right. Forward, a team for each row is fastest; backward, the blocks that a
// multiprocessor holds at once, 2.

constexpr float NORM_EPSILON = 1e-5f;

constexpr int VECTORS = WIDTH / 8;
constexpr int TEAM = team_of(VECTORS);
constexpr int TEAMS = BLOCK / TEAM;
// Vectors of a row that one thread holds: those at `member + step * TEAM`.
constexpr int HELD = divided_up(VECTORS, TEAM);
constexpr int FORWARD_BLOCKS = HELD <= 4 ? 4 : 1;
constexpr int BACKWARD_BLOCKS = HELD <= 4 ? 2 : 1;

__device__ __forceinline__ int member() { return threadIdx.x % TEAM; }
__device__ __forceinline__ int team() { return threadIdx.x / TEAM; }
__device__ __forceinline__ int column(int step) { return 8 * (member() + step * TEAM); }
__device__ __forceinline__ bool holds(int step) { return (step + 1) * TEAM <= VECTORS || column(step) < WIDTH; }

// The sum over a team, the same bits in each thread. `turn` differs between one call and the next, so that a thread
// may write its next sum while another still reads the last one: one barrier a row is enough. It is a barrier of the
// team alone, since teams of a block may differ by a row; racecheck counts barriers for the block as a whole and reports
// `write_partial` there, across whose `__syncthreads` no access moves.
__device__ __forceinline__ float team_sum(float value, int turn) {
    value = warp_sum(value);
    if constexpr (LANES < TEAM) {
        __shared__ float sums[2][BLOCK / LANES];
        constexpr int WARPS = TEAM / LANES;
        if (threadIdx.x % LANES == 0) { sums[turn & 1][threadIdx.x / LANES] = value; }
        asm volatile("bar.sync %0, %1;" : : "r"(team() + 1), "n"(TEAM) : "memory");
        value = 0.0f;
#pragma unroll
        for (int warp = 0; warp < WARPS; ++warp) { value += sums[turn & 1][team() * WARPS + warp]; }
    }
    return value;
}

// This thread's part of a row; zeros beyond its end.
__device__ __forceinline__ void load_row(Eight (&row)[HELD], const bf16* from) {
#pragma unroll
    for (int step = 0; step < HELD; ++step) {
        row[step] = holds(step) ? load(from + column(step)) : Eight{{0, 0, 0, 0}};
    }
}

// This thread's part of the gain, which all rows share.
__device__ __forceinline__ void load_gain(Eight (&gains)[HELD], const bf16* gain) {
#pragma unroll
    for (int step = 0; step < HELD; ++step) {
        gains[step] = holds(step) ? load_anew(gain + column(step)) : Eight{{0, 0, 0, 0}};
    }
}

// `h = x · rstd · gain` of one row, and its `rstd`.
__device__ __forceinline__ void normalize(
    bf16* h, float* rstd, const Eight (&x)[HELD], const bf16* gain, int turn
) {
    Eight gains[HELD];
    load_gain(gains, gain);
    float squares = 0.0f;
#pragma unroll
    for (int step = 0; step < HELD; ++step) {
        float values[8];
        unpack(values, x[step]);
#pragma unroll
        for (float value : values) { squares += value * value; }
    }
    const float scale = 1.0f / sqrtf(team_sum(squares, turn) * (1.0f / WIDTH) + NORM_EPSILON);
    if (member() == 0) { *rstd = scale; }
#pragma unroll
    for (int step = 0; step < HELD; ++step) {
        float values[8], weights[8];
        unpack_again(values, x[step]);
        unpack(weights, gains[step]);
#pragma unroll
        for (int i = 0; i < 8; ++i) { values[i] *= scale * weights[i]; }
        if (holds(step)) { store(h + column(step), packed(values)); }
    }
}

// `rstd[N] = 1 / √(mean(x²) + ε)`, `h[N, W] = x[N, W] · rstd · gain[W]`.
// Grid: `⌈N / TEAMS⌉`; block: 256; no dynamic shared memory. Moves 4·N·W bytes.
extern "C" __global__ void __launch_bounds__(BLOCK, FORWARD_BLOCKS)
norm_forward(bf16* h, float* rstd, const bf16* x, const bf16* gain, int rows) {
    int turn = 0;
    for (long long row = blockIdx.x * TEAMS + team(); row < rows; row += gridDim.x * TEAMS) {
        Eight held[HELD];
        load_row(held, x + row * WIDTH);
        normalize(h + row * WIDTH, rstd + row, held, gain, turn++);
    }
}

// The sums of a block's teams, added in their order.
__device__ __forceinline__ void write_partial(float* partial, const float (&sums)[HELD][8]) {
    __shared__ float total[WIDTH];
    for (int now = 0; now < TEAMS; ++now) {
        if (now == team()) {
#pragma unroll
            for (int step = 0; step < HELD; ++step) {
                if (!holds(step)) { continue; }
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    const int at = column(step) + i;
                    total[at] = now == 0 ? sums[step][i] : total[at] + sums[step][i];
                }
            }
        }
        __syncthreads();
    }
    for (int at = threadIdx.x; at < WIDTH; at += BLOCK) { partial[at] = total[at]; }
}

// With `g = dh · gain`: `dx[N, W] (+)= rstd · (g − x · rstd² · mean(g · x))`, added in f32 and rounded once where
// `accumulate` is not 0, and `partials[blocks, W]`, f32, whose sum over blocks is `Σ_N dh · x · rstd`.
// `dx` may be `dh` where nothing accumulates. The bits of `partials` depend on the number of blocks.
// Grid: `blocks`, 2 a multiprocessor; block: 256; no dynamic shared memory. Moves 6·N·W bytes, or 8·N·W where `dx`
// accumulates, and 4·blocks·W.
extern "C" __global__ void __launch_bounds__(BLOCK, BACKWARD_BLOCKS)
norm_backward(
    bf16* dx, int accumulate, float* partials, const bf16* dh, const bf16* x, const float* rstd, const bf16* gain, int rows
) {
    float sums[HELD][8] = {};
    int turn = 0;
    for (long long row = blockIdx.x * TEAMS + team(); row < rows; row += gridDim.x * TEAMS) {
        Eight stream[HELD] = {}, gradient[HELD], input[HELD], gains[HELD];
        load_row(gradient, dh + row * WIDTH);
        load_row(input, x + row * WIDTH);
        if (accumulate) { load_row(stream, dx + row * WIDTH); }
        const float scale = rstd[row];
        load_gain(gains, gain);
        float dot = 0.0f;
#pragma unroll
        for (int step = 0; step < HELD; ++step) {
            float gs[8], xs[8], weights[8];
            unpack(gs, gradient[step]);
            unpack(xs, input[step]);
            unpack(weights, gains[step]);
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const float product = gs[i] * xs[i];
                dot += product * weights[i];
                sums[step][i] += product * scale;
            }
        }
        const float back = scale * scale * (team_sum(dot, turn++) * (1.0f / WIDTH));
#pragma unroll
        for (int step = 0; step < HELD; ++step) {
            float gs[8], xs[8], weights[8], out[8];
            unpack_again(gs, gradient[step]);
            unpack_again(xs, input[step]);
            unpack_again(weights, gains[step]);
            unpack(out, stream[step]);
#pragma unroll
            for (int i = 0; i < 8; ++i) { out[i] += scale * (gs[i] * weights[i] - xs[i] * back); }
            if (holds(step)) { store(dx + row * WIDTH + column(step), packed(out)); }
        }
    }
    write_partial(partials + (long long)blockIdx.x * WIDTH, sums);
}

// `dgain[W] (+)= Σ_blocks partials[blocks, W]`, added in f32 in a fixed order and rounded once.
// Grid: `⌈W / 32⌉`; block: 512; no dynamic shared memory. Moves 4·blocks·W bytes.
extern "C" __global__ void __launch_bounds__(512)
norm_gain(bf16* dgain, int accumulate, const float* partials, int blocks) {
    constexpr int WARPS = 512 / LANES;
    __shared__ float sums[WARPS][LANES];
    const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    const int at = blockIdx.x * LANES + lane;
    float sum = 0.0f;
    if (at < WIDTH) {
#pragma unroll 8
        for (int block = warp; block < blocks; block += WARPS) { sum += partials[(long long)block * WIDTH + at]; }
    }
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && at < WIDTH) {
        float total = accumulate ? widened(dgain[at]) : 0.0f;
#pragma unroll
        for (int part = 0; part < WARPS; ++part) { total += sums[part][lane]; }
        dgain[at] = bf16(paired(total, 0.0f));
    }
}
