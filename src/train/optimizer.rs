//! AdamW over buckets, with clipping by the global norm.

use crate::model::Role;
use crate::record::TrainConfig;

use super::buckets::{Gradients, Places, Weights};
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
    states: Vec<O::State>,
    updates: i32,
    learning_rate: f64,
    weight_decay: f64,
    clip_norm: Option<f64>,
}

impl<O: Ops> AdamW<O> {
    /// Moments of zero for each bucket of `places`.
    ///
    /// # Errors
    /// The device has no memory left.
    pub fn new(ops: &mut O, config: &TrainConfig, places: &Places) -> Result<Self, O::Error> {
        let lengths = places.lengths().into_iter().enumerate();
        let states = lengths.map(|(bucket, len)| ops.state(len, places.gains(bucket))).collect::<Result<_, _>>()?;
        let TrainConfig { learning_rate, weight_decay, clip_norm, .. } = *config;
        Ok(Self { states, updates: 0, learning_rate, weight_decay, clip_norm })
    }

    /// Updates `weights` from `mean` times the gradients, and leaves the sum of their squares in the totals of the step.
    /// Where that is no finite number, nothing is updated.
    ///
    /// # Errors
    /// The device failed.
    pub fn update(
        &mut self,
        ops: &mut O,
        weights: &mut Weights<O>,
        gradients: &Gradients<O>,
        mean: f64,
    ) -> Result<(), O::Error> {
        self.updates = self.updates.saturating_add(1);
        self.apply(ops, weights, gradients, mean)
    }

    /// All operations of [`AdamW::update`], of which none changes anything: the norm of the gradient is no number.
    ///
    /// # Errors
    /// The device failed.
    pub fn rehearse(
        &mut self,
        ops: &mut O,
        weights: &mut Weights<O>,
        gradients: &Gradients<O>,
    ) -> Result<(), O::Error> {
        self.apply(ops, weights, gradients, f64::NAN)
    }

    fn apply(
        &mut self,
        ops: &mut O,
        weights: &mut Weights<O>,
        gradients: &Gradients<O>,
        mean: f64,
    ) -> Result<(), O::Error> {
        for bucket in 0..self.states.len() {
            ops.add_squares(gradients.bucket(bucket))?;
        }
        let update = AdamWUpdate {
            learning_rate: self.learning_rate as f32,
            weight_decay: self.weight_decay as f32,
            beta1: BETA1 as f32,
            beta2: BETA2 as f32,
            epsilon: EPSILON as f32,
            bias1: (1.0 - BETA1.powi(self.updates)) as f32,
            bias2: (1.0 - BETA2.powi(self.updates)) as f32,
            mean,
            clip_norm: self.clip_norm,
        };
        for (bucket, state) in self.states.iter_mut().enumerate() {
            ops.adamw(&update, &mut weights.buckets[bucket], state, gradients.bucket(bucket))?;
        }
        Ok(())
    }

    /// Adds all weights to the checksum of the step.
    ///
    /// # Errors
    /// The device failed.
    pub fn add_checksum(&self, ops: &mut O, weights: &Weights<O>) -> Result<(), O::Error> {
        let mut first = 0;
        for (bucket, state) in weights.buckets.iter().zip(&self.states) {
            ops.add_checksum(bucket, state, first)?;
            first += O::len(bucket);
        }
        Ok(())
    }

    /// The weight of `role` as AdamW keeps it, in `f32`.
    ///
    /// # Errors
    /// The device failed.
    pub fn master(&self, ops: &mut O, weights: &Weights<O>, role: Role) -> Result<Vec<f32>, O::Error> {
        let (bucket, range) = weights.places().range(role);
        let mut host = vec![0.0; range.len()];
        ops.master(&mut host, &weights.buckets[bucket], &self.states[bucket], range)?;
        Ok(host)
    }

    /// What stands for the weight of `role` in a hash.
    ///
    /// # Errors
    /// The device failed.
    pub fn fingerprint(&self, ops: &mut O, weights: &Weights<O>, role: Role) -> Result<Vec<u8>, O::Error> {
        let (bucket, range) = weights.places().range(role);
        ops.fingerprint(&weights.buckets[bucket], &self.states[bucket], range)
    }
}
