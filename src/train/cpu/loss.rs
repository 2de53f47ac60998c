//! Cross-entropy with its gradient.

use rayon::prelude::*;

use crate::device::vectorised;
use crate::train::ops::Logits;

use super::math::{exp_in_place, max};
use super::part_rows;

/// `losses[N]`, and in place of `logits[N, V]` their gradient for the mean loss of the `N` tokens.
pub(super) fn cross_entropy(dims: Logits, losses: &mut [f32], logits: &mut [f32], targets: &[u32]) {
    let Logits { rows, vocabulary } = dims;
    let part = part_rows(vocabulary);
    let parts = logits[..rows * vocabulary].par_chunks_mut(part * vocabulary);
    let parts = parts.zip(losses[..rows].par_chunks_mut(part)).zip(targets.par_chunks(part));
    parts.for_each(|((logits, losses), targets)| {
        vectorised(
            #[inline(always)]
            || {
                for ((logits, loss), &target) in logits.chunks_exact_mut(vocabulary).zip(losses).zip(targets) {
                    *loss = row(logits, target as usize, rows as f32);
                }
            },
        );
    });
}

/// One token: its logits become their gradient divided by `rows`; returns its loss.
#[inline(always)]
fn row(logits: &mut [f32], target: usize, rows: f32) -> f32 {
    let shift = max(logits);
    let aimed = logits[target];
    let sum = exp_in_place(logits, 1.0, shift);
    let scale = 1.0 / (sum * rows);
    logits.iter_mut().for_each(|value| *value *= scale);
    logits[target] -= 1.0 / rows;
    sum.ln() + shift - aimed
}
