// Token embedding of rows of WIDTH and its gradient.
//
// Macros: WIDTH, a multiple of 8.
// TEAMS = 256 / TEAM, with TEAM the smallest of 32, 64 and 128 that is not below W / 32, else 256.
// The gradient adds the rows of each id in the order of the batch, whatever the scheduling. The host sorts the rows by
// id first: those of `id` are `order[starts[id]..starts[id + 1]]`, ascending. Text repeats some ids thousands of times,
// too long a chain for one team: an id of more than CHUNK rows is added by chunks of the sorted order in parallel
// (`embed_chunks`), and the chunks in order after that (`embed_backward`).

constexpr int VECTORS = WIDTH / 8;
constexpr int TEAM = team_of(VECTORS);
constexpr int TEAMS = BLOCK / TEAM;
constexpr int HELD = divided_up(VECTORS, TEAM);
// Sorted rows of a chunk.
constexpr int CHUNK = LANES;
// Rows, or chunks, that one thread has on their way to it at a time, and the blocks that find room for them.
constexpr int AHEAD = HELD <= 4 ? 4 : 2;
constexpr int BLOCKS_AT_ONCE = HELD <= 4 ? 2 : 1;
// Ids that a team takes, one after the other, a fourth of the vocabulary apart: frequent ids lie together.
constexpr int TAKEN_IDS = 4;

__device__ __forceinline__ int member() { return threadIdx.x % TEAM; }
__device__ __forceinline__ int team() { return threadIdx.x / TEAM; }
__device__ __forceinline__ int column(int step) { return 8 * (member() + step * TEAM); }
__device__ __forceinline__ bool holds(int step) { return (step + 1) * TEAM <= VECTORS || column(step) < WIDTH; }

// `x[N, W] = table[ids[N], W]`.
// Grid: `⌈N·W / 8192⌉`; block: 256; no dynamic shared memory. Moves 4·N·W bytes.
extern "C" __global__ void __launch_bounds__(BLOCK)
embed(bf16* x, const bf16* table, const unsigned* ids, int rows) {
    constexpr int TAKEN = 4;
    const long long first = (long long)blockIdx.x * (TAKEN * BLOCK) + threadIdx.x;
    const long long vectors = (long long)rows * VECTORS;
    unsigned id[TAKEN];
    Eight taken[TAKEN];
#pragma unroll
    for (int step = 0; step < TAKEN; ++step) {
        const long long vector = first + step * BLOCK;
        id[step] = vector < vectors ? ids[vector / VECTORS] : 0;
    }
#pragma unroll
    for (int step = 0; step < TAKEN; ++step) {
        const long long vector = first + step * BLOCK;
        taken[step] = load_if(vector < vectors, table + (long long)id[step] * WIDTH + 8 * (vector % VECTORS));
    }
#pragma unroll
    for (int step = 0; step < TAKEN; ++step) {
        const long long vector = first + step * BLOCK;
        if (vector < vectors) { store(x + 8 * vector, taken[step]); }
    }
}

// Adds the rows of `dx` that `order[from..to]` names, in that order. A warp looks up 32 rows at once.
__device__ __forceinline__ void add_rows(
    float (&sums)[HELD][8], const bf16* dx, const unsigned* order, unsigned from, unsigned to
) {
    for (unsigned begin = from; begin < to; begin += LANES) {
        const unsigned lane = threadIdx.x % LANES, count = min(to - begin, LANES);
        const unsigned named = lane < count ? order[begin + lane] : 0;
        for (unsigned at = 0; at < count; at += AHEAD) {
            Eight rows[AHEAD][HELD];
#pragma unroll
            for (int next = 0; next < AHEAD; ++next) {
                const long long row = __shfl_sync(ALL_LANES, named, at + next);
#pragma unroll
                for (int step = 0; step < HELD; ++step) {
                    rows[next][step] = load_if(at + next < count && holds(step), dx + row * WIDTH + column(step));
                }
            }
#pragma unroll
            for (int next = 0; next < AHEAD; ++next) {
#pragma unroll
                for (int step = 0; step < HELD; ++step) {
                    float values[8];
                    unpack(values, rows[next][step]);
#pragma unroll
                    for (int i = 0; i < 8; ++i) { sums[step][i] += values[i]; }
                }
            }
        }
    }
}

// Adds the parts of a long id, whose rows are `order[from..to]`, chunk by chunk.
__device__ __forceinline__ void add_parts(float (&sums)[HELD][8], const float* parts, unsigned from, unsigned to) {
    const unsigned chunks = (to - 1) / CHUNK + 1;
#pragma unroll AHEAD
    for (unsigned chunk = from / CHUNK; chunk < chunks; ++chunk) {
        // The id is the first of each chunk but the one in which it begins, where it does not begin with that.
        const float* part = parts + (2ll * chunk + (chunk * CHUNK < from)) * WIDTH;
#pragma unroll
        for (int step = 0; step < HELD; ++step) {
            if (!holds(step)) { continue; }
            const float4* quads = reinterpret_cast<const float4*>(part + column(step));
            const float4 low = quads[0], high = quads[1];
            const float values[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
            for (int i = 0; i < 8; ++i) { sums[step][i] += values[i]; }
        }
    }
}

// The parts of long ids in each chunk of the sorted order, f32 `parts[⌈N / 32⌉, 2, W]`: first of the id that the chunk
// begins with, second of the one that it ends with where that is another. No third long id has room in a chunk. Parts
// of other ids are neither written nor read.
// Grid: `⌈2·⌈N / 32⌉ / TEAMS⌉`; block: 256; no dynamic shared memory. Moves 2·W bytes for each row of a long id.
extern "C" __global__ void __launch_bounds__(BLOCK)
embed_chunks(
    float* parts, const bf16* dx, const unsigned* ids, const unsigned* order, const unsigned* starts, int rows
) {
    const unsigned item = blockIdx.x * TEAMS + team();
    const unsigned begin = item / 2 * CHUNK, end = min(begin + CHUNK, unsigned(rows));
    if (end <= begin) { return; }
    const unsigned first = ids[order[begin]], last = ids[order[end - 1]];
    const unsigned id = item % 2 == 0 ? first : last;
    const unsigned from = starts[id], to = starts[id + 1];
    if ((item % 2 == 1 && first == last) || to - from <= CHUNK) { return; }
    float sums[HELD][8] = {};
    add_rows(sums, dx, order, max(begin, from), min(end, to));
    float* part = parts + (long long)item * WIDTH;
#pragma unroll
    for (int step = 0; step < HELD; ++step) {
        if (!holds(step)) { continue; }
        const float* sum = sums[step];
        store(part + column(step), make_float4(sum[0], sum[1], sum[2], sum[3]));
        store(part + column(step) + 4, make_float4(sum[4], sum[5], sum[6], sum[7]));
    }
}

// `dtable[V, W] (+)= Σ dx[rows of the id]`, in f32, rounded once. Rows of absent ids become zero, or are kept where
// `accumulate` is not 0. After `embed_chunks` of the same batch.
// Grid: `⌈⌈V / 4⌉ / TEAMS⌉`; block: 256; no dynamic shared memory. Moves 2·V·W bytes and 2·N·W; where it accumulates,
// 4·W for each id that is present instead of 2·V·W.
extern "C" __global__ void __launch_bounds__(BLOCK, BLOCKS_AT_ONCE)
embed_backward(
    bf16* dtable, const bf16* dx, const unsigned* order, const unsigned* starts, const float* parts, int vocabulary,
    int accumulate
) {
    const unsigned first = blockIdx.x * TEAMS + team(), apart = (vocabulary + TAKEN_IDS - 1) / TAKEN_IDS;
    if (apart <= first) { return; }
    // Lanes look up where the rows of all these ids begin, then where they end.
    const unsigned lane = threadIdx.x % LANES;
    const unsigned sought = first + lane / 2 % TAKEN_IDS * apart + lane % 2;
    const unsigned bound = starts[min(sought, unsigned(vocabulary))];
#pragma unroll 1
    for (unsigned index = 0; index < TAKEN_IDS; ++index) {
        const unsigned id = first + index * apart;
        if (vocabulary <= id) { break; }
        const unsigned from = __shfl_sync(ALL_LANES, bound, 2 * index);
        const unsigned to = __shfl_sync(ALL_LANES, bound, 2 * index + 1);
        if (accumulate && from == to) { continue; }
        float sums[HELD][8] = {};
        if (CHUNK < to - from) {
            add_parts(sums, parts, from, to);
        } else {
            add_rows(sums, dx, order, from, to);
        }
        bf16* out = dtable + (long long)id * WIDTH;
#pragma unroll
        for (int step = 0; step < HELD; ++step) {
            if (!holds(step)) { continue; }
            if (accumulate) {
                float values[8];
                unpack(values, load(out + column(step)));
#pragma unroll
                for (int i = 0; i < 8; ++i) { sums[step][i] += values[i]; }
            }
            store(out + column(step), packed(sums[step]));
        }
    }
}
