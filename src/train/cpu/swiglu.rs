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

/// `dgate_up[N, 2F]` from `dact[N, F]`: with `s = σ(gate)`, `dup = dact · gate · s` and
/// `dgate = dact · up · s · (1 + gate · (1 − s))`.
pub(super) fn backward(dims: Gated, dgate_up: &mut [f32], dact: &[f32], gate_up: &[f32]) {
    let Gated { rows, ffn } = dims;
    let part = part_rows(2 * ffn);
    let parts = dgate_up[..rows * 2 * ffn].par_chunks_mut(part * 2 * ffn).zip(dact.par_chunks(part * ffn));
    parts.zip(gate_up.par_chunks(part * 2 * ffn)).for_each(|((dgate_up, dact), gate_up)| {
        vectorised(
            #[inline(always)]
            || {
                let rows = dgate_up.chunks_exact_mut(2 * ffn).zip(dact.chunks_exact(ffn));
                for ((dgate_up, dact), gate_up) in rows.zip(gate_up.chunks_exact(2 * ffn)) {
                    let (dgate, dup) = dgate_up.split_at_mut(ffn);
                    let (gate, up) = gate_up.split_at(ffn);
                    let gradients = dgate.iter_mut().zip(dup).zip(dact);
                    for (((dgate, dup), &dact), (&gate, &up)) in gradients.zip(gate.iter().zip(up)) {
                        let s = sigmoid(gate);
                        *dup = dact * gate * s;
                        *dgate = dact * up * s * (1.0 + gate * (1.0 - s));
                    }
                }
            },
        );
    });
}
