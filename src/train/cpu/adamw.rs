//! AdamW's update and the sum of squares that its clipping needs.

use rayon::prelude::*;

use crate::device::vectorised;
use crate::train::ops::AdamWUpdate;

use super::math::sum2;
use super::{PART, room};

/// One update of `weight`, `m` and `v` from `gradient`, all of one length.
pub(super) fn update(update: &AdamWUpdate, gradient_scale: f32, [weight, m, v]: [&mut [f32]; 3], gradient: &[f32]) {
    let AdamWUpdate { learning_rate, weight_decay, beta1, beta2, epsilon, bias1, bias2, .. } = *update;
    let keep = 1.0 - learning_rate * weight_decay;
    let rate = learning_rate / bias1;
    let root_scale = 1.0 / bias2.sqrt();
    let parts = weight.par_chunks_mut(PART).zip(m.par_chunks_mut(PART));
    parts.zip(v.par_chunks_mut(PART)).zip(gradient.par_chunks(PART)).for_each(|(((weight, m), v), gradient)| {
        vectorised(
            #[inline(always)]
            || {
                for (((weight, m), v), &gradient) in weight.iter_mut().zip(m).zip(v).zip(gradient) {
                    let gradient = gradient * gradient_scale;
                    *m = beta1 * *m + (1.0 - beta1) * gradient;
                    *v = beta2 * *v + (1.0 - beta2) * gradient * gradient;
                    *weight = *weight * keep - rate * *m / ((*v).sqrt() * root_scale + epsilon);
                }
            },
        );
    });
}

/// `Σ value²`: in f32 within parts of fixed size, in f64 over the parts in order.
pub(super) fn sum_of_squares(values: &[f32], partial: &mut Vec<f64>) -> f64 {
    let partial = room(partial, values.len().div_ceil(PART));
    partial.par_iter_mut().zip(values.par_chunks(PART)).for_each(|(sum, values)| {
        *sum = vectorised(
            #[inline(always)]
            || f64::from(sum2(values, values, |a, b| a * b)),
        );
    });
    partial.iter().sum()
}
