//! RMSNorm and its gradient.

use rayon::prelude::*;

use crate::device::vectorised;
use crate::train::ops::{NORM_EPSILON, Norm, Write};

use super::math::sum2;
use super::{part_rows, room};

/// What the backward pass reads.
#[derive(Clone, Copy)]
pub(super) struct Saved<'a> {
    /// `dh[N, W]`
    pub(super) dh: &'a [f32],
    /// `x[N, W]`
    pub(super) x: &'a [f32],
    /// `rstd[N]`
    pub(super) rstd: &'a [f32],
    /// `gain[W]`
    pub(super) gain: &'a [f32],
}

/// `h[N, W] = x · rstd · gain`, `rstd[N]`.
pub(super) fn forward(dims: Norm, h: &mut [f32], rstd: &mut [f32], x: &[f32], gain: &[f32]) {
    let Norm { rows, width } = dims;
    let part = part_rows(width);
    let parts = h[..rows * width].par_chunks_mut(part * width).zip(rstd[..rows].par_chunks_mut(part));
    parts.zip(x.par_chunks(part * width)).for_each(|((h, rstd), x)| {
        vectorised(
            #[inline(always)]
            || {
                for ((h, rstd), x) in h.chunks_exact_mut(width).zip(rstd).zip(x.chunks_exact(width)) {
                    *rstd = normalize(h, x, gain);
                }
            },
        );
    });
}

/// One row of the norm; returns its `rstd`.
#[inline(always)]
fn normalize(h: &mut [f32], x: &[f32], gain: &[f32]) -> f32 {
    let mean_square = sum2(x, x, |a, b| a * b) / x.len() as f32;
    let rstd = 1.0 / (mean_square + NORM_EPSILON).sqrt();
    for ((h, x), gain) in h.iter_mut().zip(x).zip(gain) {
        *h = x * rstd * gain;
    }
    rstd
}

/// `dx (+)= rstd · (g − x · rstd² · mean(g · x))` with `g = dh · gain`; `dgain (+)= Σ_N dh · x · rstd`, summed within
/// parts of rows first, then over the parts in order.
pub(super) fn backward(
    dims: Norm,
    (dx, stream): (&mut [f32], Write),
    (dgain, write): (&mut [f32], Write),
    saved: Saved<'_>,
    partial: &mut Vec<f32>,
) {
    let Norm { rows, width } = dims;
    let part = part_rows(width);
    let partial = room(partial, rows.div_ceil(part) * width);
    let parts = dx[..rows * width].par_chunks_mut(part * width).zip(partial.par_chunks_mut(width)).enumerate();
    parts.for_each(|(index, (dx, partial))| {
        vectorised(
            #[inline(always)]
            || {
                partial.fill(0.0);
                for (row, dx) in (index * part..).zip(dx.chunks_exact_mut(width)) {
                    backward_row(row, dx, stream, partial, saved);
                }
            },
        );
    });
    if write == Write::Overwrite {
        dgain.fill(0.0);
    }
    for partial in partial.chunks_exact(width) {
        for (sum, term) in dgain.iter_mut().zip(partial) {
            *sum += term;
        }
    }
}

/// One row of the backward pass.
#[inline(always)]
fn backward_row(row: usize, dx: &mut [f32], stream: Write, partial: &mut [f32], saved: Saved<'_>) {
    let width = dx.len();
    let range = row * width..(row + 1) * width;
    let (dh, x, rstd, gain) = (&saved.dh[range.clone()], &saved.x[range], saved.rstd[row], &saved.gain[..width]);
    for ((sum, dh), x) in partial.iter_mut().zip(dh).zip(x) {
        *sum += dh * x * rstd;
    }
    let mut dot = [0.0_f32; super::math::LANES];
    for ((dh, x), gain) in dh.chunks(dot.len()).zip(x.chunks(dot.len())).zip(gain.chunks(dot.len())) {
        for (((sum, dh), x), gain) in dot.iter_mut().zip(dh).zip(x).zip(gain) {
            *sum += dh * gain * x;
        }
    }
    let mean = dot.iter().sum::<f32>() / width as f32;
    let back = rstd * rstd * mean;
    let terms = dh.iter().zip(x).zip(gain).map(|((dh, x), gain)| rstd * (dh * gain - x * back));
    match stream {
        Write::Overwrite => dx.iter_mut().zip(terms).for_each(|(dx, term)| *dx = term),
        Write::Accumulate => dx.iter_mut().zip(terms).for_each(|(dx, term)| *dx += term),
    }
}
