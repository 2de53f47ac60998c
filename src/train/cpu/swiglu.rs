//! SwiGLU.

use rayon::prelude::*;

use crate::device::vectorised;
use crate::train::ops::Gated;

use super::math::sigmoid;
use super::part_rows;

/// `act[N, F] = gate · σ(gate) · up`.
pub(super) fn forward(dims: Gated, act: &mut [f32], gate_up: &[f32]) {
    let Gated { rows, ffn } = dims;
    let part = part_rows(2 * ffn);
    let parts = act[..rows * ffn].par_chunks_mut(part * ffn).zip(gate_up.par_chunks(part * 2 * ffn));
    parts.for_each(|(act, gate_up)| {
        vectorised(
            #[inline(always)]
            || {
                for (act, gate_up) in act.chunks_exact_mut(ffn).zip(gate_up.chunks_exact(2 * ffn)) {
                    let (gate, up) = gate_up.split_at(ffn);
                    for ((act, &gate), &up) in act.iter_mut().zip(gate).zip(up) {
                        *act = gate * sigmoid(gate) * up;
                    }
                }
            },
        );
    });
}

/// `gate_up[N, 2F]` becomes its gradient, and `dact[N, F]` becomes `act`: with `s = σ(gate)`, `dup = dact · gate · s`
/// and `dgate = dact · up · s · (1 + gate · (1 − s))`.
pub(super) fn backward(dims: Gated, gate_up: &mut [f32], dact: &mut [f32]) {
    let Gated { rows, ffn } = dims;
    let part = part_rows(2 * ffn);
    let parts = gate_up[..rows * 2 * ffn].par_chunks_mut(part * 2 * ffn).zip(dact.par_chunks_mut(part * ffn));
    parts.for_each(|(gate_up, dact)| {
        vectorised(
            #[inline(always)]
            || {
                for (gate_up, dact) in gate_up.chunks_exact_mut(2 * ffn).zip(dact.chunks_exact_mut(ffn)) {
                    let (gate, up) = gate_up.split_at_mut(ffn);
                    backward_row(gate, up, dact);
                }
            },
        );
    });
}

/// One row of the backward pass. A function of its own tells the compiler that its slices do not overlap, without
/// which it gives up on vectors.
#[inline(always)]
fn backward_row(gates: &mut [f32], ups: &mut [f32], dact: &mut [f32]) {
    let len = dact.len();
    let (gates, ups) = (&mut gates[..len], &mut ups[..len]);
    for index in 0..len {
        let (gate, up, d) = (gates[index], ups[index], dact[index]);
        let s = sigmoid(gate);
        ups[index] = d * gate * s;
        gates[index] = d * up * s * (1.0 + gate * (1.0 - s));
        dact[index] = gate * s * up;
    }
}
