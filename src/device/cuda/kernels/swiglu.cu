// SwiGLU (Shazeer, 2020) of `gate_up[N, 2F]`, which holds `gate[F]`, then `up[F]`.
//
// Macros: FFN, a multiple of 8.
// A thread takes vectors of 8 that are a block apart. It reads all of an element's inputs before it writes any of its
// outputs, so destinations may be their sources' memory, element by element.

constexpr int VECTORS = FFN / 8;
// Vectors that a thread takes.
constexpr int TAKEN = 2;

// Where in `gate_up` the gates of a thread's vector are, and where in `act`; whether there is such a vector.
struct Place {
    long long gate, act;
    bool inside;
};

__device__ __forceinline__ Place place(int step, int rows) {
    // Division by a constant in 32 bits: only the block's first vector may be far from its row's first.
    const long long base = (long long)blockIdx.x * (TAKEN * BLOCK);
    const unsigned vector = unsigned(base % VECTORS) + step * BLOCK + threadIdx.x;
    const long long row = base / VECTORS + vector / VECTORS;
    const int column = 8 * (vector % VECTORS);
    return {row * (2 * FFN) + column, row * FFN + column, row < rows};
}

// `act[N, F] = gate · σ(gate) · up`.
// Grid: `⌈N·F / 4096⌉`; block: 256; no dynamic shared memory. Moves 6·N·F bytes.
extern "C" __global__ void __launch_bounds__(BLOCK)
swiglu(bf16* act, const bf16* gate_up, int rows) {
    Place places[TAKEN];
    Eight gate[TAKEN], up[TAKEN];
#pragma unroll
    for (int step = 0; step < TAKEN; ++step) {
        places[step] = place(step, rows);
        if (places[step].inside) {
            gate[step] = load(gate_up + places[step].gate);
            up[step] = load(gate_up + places[step].gate + FFN);
        }
    }
#pragma unroll
    for (int step = 0; step < TAKEN; ++step) {
        if (!places[step].inside) { continue; }
        float gates[8], ups[8];
        unpack(gates, gate[step]);
        unpack(ups, up[step]);
#pragma unroll
        for (int i = 0; i < 8; ++i) { ups[i] *= gates[i] * sigmoid(gates[i]); }
        store(act + places[step].act, packed(ups));
    }
}

// With `s = σ(gate)`: `dgate = dact · up · s · (1 + gate · (1 − s))` and `dup = dact · gate · s` into
// `dgate_up[N, 2F]`, and `act[N, F] = gate · s · up` once more. `dgate_up` may be `gate_up`, `act` may be `dact`.
// Grid: `⌈N·F / 4096⌉`; block: 256; no dynamic shared memory. Moves 12·N·F bytes.
extern "C" __global__ void __launch_bounds__(BLOCK)
swiglu_backward(bf16* dgate_up, bf16* act, const bf16* dact, const bf16* gate_up, int rows) {
    Place places[TAKEN];
    Eight gate[TAKEN], up[TAKEN], gradient[TAKEN];
#pragma unroll
    for (int step = 0; step < TAKEN; ++step) {
        places[step] = place(step, rows);
        if (places[step].inside) {
            gate[step] = load(gate_up + places[step].gate);
            up[step] = load(gate_up + places[step].gate + FFN);
            gradient[step] = load(dact + places[step].act);
        }
    }
#pragma unroll
    for (int step = 0; step < TAKEN; ++step) {
        if (!places[step].inside) { continue; }
        float gates[8], ups[8], gradients[8], acts[8];
        unpack(gates, gate[step]);
        unpack(ups, up[step]);
        unpack(gradients, gradient[step]);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const float s = sigmoid(gates[i]), silu = gates[i] * s;
            acts[i] = silu * ups[i];
            // s · (1 + gate · (1 − s)) = s + silu · (1 − s)
            gates[i] = gradients[i] * ups[i] * (s + silu * (1.0f - s));
            ups[i] = gradients[i] * silu;
        }
        store(dgate_up + places[step].gate, packed(gates));
        store(dgate_up + places[step].gate + FFN, packed(ups));
        store(act + places[step].act, packed(acts));
    }
}
