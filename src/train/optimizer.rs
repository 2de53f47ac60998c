//! AdamW over buckets, with clipping by the global norm.

use crate::record::TrainConfig;

use super::buckets::{Gradients, Weights};
use super::ops::{AdamWUpdate, Ops};

/// Decay of the first moment; this and the next two as Llama was trained (Touvron et al., 2023, section 2.3).
const BETA1: f64 = 0.9;
/// Decay of the second moment.
const BETA2: f64 = 0.95;
/// Added to the root of the second moment.
const EPSILON: f64 = 1e-8;

/// Moments and settings of AdamW.
#[derive(Debug)]
pub struct AdamW<O: Ops> {
    m: Vec<O::Buf>,
    v: Vec<O::Buf>,
    updates: i32,
    learning_rate: f64,
    weight_decay: f64,
    clip_norm: Option<f64>,
}

impl<O: Ops> AdamW<O> {
    /// Moments of zero.
    ///
    /// # Errors
    /// The device has no memory left.
    pub fn new(ops: &mut O, config: &TrainConfig, lengths: &[usize]) -> Result<Self, O::Error> {
        let mut zeros = || lengths.iter().map(|&len| ops.zeros(len)).collect::<Result<Vec<_>, _>>();
        let TrainConfig { learning_rate, weight_decay, clip_norm, .. } = *config;
        Ok(Self { m: zeros()?, v: zeros()?, updates: 0, learning_rate, weight_decay, clip_norm })
    }

    /// Updates `weights` from `mean` times the gradients; returns the norm of that mean gradient, before clipping.
    /// Where the norm is no finite number, nothing is updated.
    ///
    /// # Errors
    /// The device failed.
    pub fn update(
        &mut self,
        ops: &mut O,
        weights: &mut Weights<O>,
        gradients: &Gradients<O>,
        mean: f64,
    ) -> Result<f64, O::Error> {
        let mut squares = 0.0;
        for bucket in 0..self.m.len() {
            squares += ops.sum_of_squares(gradients.bucket(bucket))?;
        }
        let norm = mean * squares.sqrt();
        if !norm.is_finite() {
            return Ok(norm);
        }
        self.updates = self.updates.saturating_add(1);
        let matrix = self.scalars(mean * self.clipping(norm));
        let gain = AdamWUpdate { weight_decay: 0.0, ..matrix };
        let places = std::sync::Arc::clone(weights.places());
        for (bucket, plan) in places.layout.buckets.iter().enumerate() {
            for &parameter in &plan.parameters {
                let place = places.layout.places[parameter];
                let range = place.offset..place.offset + place.elements;
                let update = if places.parameters[parameter].is_matrix() { matrix } else { gain };
                ops.adamw(
                    update,
                    O::view_mut(&mut weights.buckets[bucket], range.clone()),
                    O::view_mut(&mut self.m[bucket], range.clone()),
                    O::view_mut(&mut self.v[bucket], range.clone()),
                    O::view(gradients.bucket(bucket), range),
                )?;
            }
        }
        Ok(norm)
    }

    /// The factor that brings `norm` down to the limit; 1 where there is none or it holds.
    fn clipping(&self, norm: f64) -> f64 {
        self.clip_norm.map_or(1.0, |limit| (limit / (norm + 1e-6)).min(1.0))
    }

    fn scalars(&self, gradient_scale: f64) -> AdamWUpdate {
        AdamWUpdate {
            learning_rate: self.learning_rate as f32,
            weight_decay: self.weight_decay as f32,
            beta1: BETA1 as f32,
            beta2: BETA2 as f32,
            epsilon: EPSILON as f32,
            bias1: (1.0 - BETA1.powi(self.updates)) as f32,
            bias2: (1.0 - BETA2.powi(self.updates)) as f32,
            gradient_scale: gradient_scale as f32,
        }
    }
}
