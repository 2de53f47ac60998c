//! AdamW over buckets, with clipping by the global norm.

use std::ops::Range;

use crate::comm::Shard;
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

/// Moments and settings of AdamW, for this rank's part of every bucket.
#[derive(Debug)]
pub struct AdamW<O: Ops> {
    shard: Shard,
    pub(super) states: Vec<O::State>,
    updates: i32,
    learning_rate: f64,
    weight_decay: f64,
    clip_norm: Option<f64>,
}

impl<O: Ops> AdamW<O> {
    /// Moments of zero for the part of each bucket of `places` that `shard` names.
    ///
    /// # Errors
    /// The device has no memory left.
    pub fn new(ops: &mut O, config: &TrainConfig, places: &Places, shard: Shard) -> Result<Self, O::Error> {
        let state = |(bucket, len)| {
            let part = shard.of(len);
            let inside = |gain: Range<usize>| {
                let within = gain.start.max(part.start)..gain.end.min(part.end);
                (within.start < within.end).then(|| within.start - part.start..within.end - part.start)
            };
            ops.state(part.len(), places.gains(bucket).into_iter().filter_map(inside).collect())
        };
        let states = places.lengths().into_iter().enumerate().map(state).collect::<Result<_, _>>()?;
        let TrainConfig { learning_rate, weight_decay, clip_norm, .. } = *config;
        Ok(Self { shard, states, updates: 0, learning_rate, weight_decay, clip_norm })
    }

    /// Whether an update scales gradients by what only the norm of all of them tells.
    #[must_use]
    pub fn clips(&self) -> bool {
        self.clip_norm.is_some()
    }

    /// The next update, from `mean` times the gradients.
    pub fn begin_update(&mut self, mean: f64) -> AdamWUpdate {
        self.updates = self.updates.saturating_add(1);
        self.rule(mean)
    }

    /// An update that changes nothing: the norm of the gradient is no number.
    #[must_use]
    pub fn rehearsal(&self) -> AdamWUpdate {
        self.rule(f64::NAN)
    }

    fn rule(&self, mean: f64) -> AdamWUpdate {
        AdamWUpdate {
            learning_rate: self.learning_rate as f32,
            weight_decay: self.weight_decay as f32,
            beta1: BETA1 as f32,
            beta2: BETA2 as f32,
            epsilon: EPSILON as f32,
            bias1: (1.0 - BETA1.powi(self.updates)) as f32,
            bias2: (1.0 - BETA2.powi(self.updates)) as f32,
            mean,
            clip_norm: self.clip_norm,
        }
    }

    /// Updates this rank's part of one bucket of `weights`, once the totals of the step hold the squares of its gradients, and
    /// of all where AdamW clips. Where their sum is no finite number, nothing is updated.
    ///
    /// # Errors
    /// The device failed.
    pub fn update(
        &mut self,
        ops: &mut O,
        update: &AdamWUpdate,
        weights: &mut Weights<O>,
        gradients: &Gradients<O>,
        bucket: usize,
    ) -> Result<(), O::Error> {
        let weights = weights.bucket_mut(bucket);
        let part = self.shard.of(O::len(weights));
        ops.adamw(update, O::view_mut(weights, part), &mut self.states[bucket], gradients.part(bucket))
    }

    /// Adds all weights to the checksum of the step: as this rank keeps them, and where it keeps a part, as the model
    /// computes with them.
    ///
    /// # Errors
    /// The device failed.
    pub fn add_checksum(&self, ops: &mut O, weights: &Weights<O>) -> Result<(), O::Error> {
        let mut first = 0;
        for (index, state) in self.states.iter().enumerate() {
            let bucket = weights.bucket(index);
            let len = O::len(bucket);
            let rest = if self.keeps_all() { O::rest(state, 0..len) } else { None };
            ops.add_checksum(O::view(bucket, 0..len), rest, first)?;
            first += len;
        }
        Ok(())
    }

    /// False where other ranks keep the rest.
    fn keeps_all(&self) -> bool {
        self.shard == Shard::WHOLE
    }

    /// Whether there is anything of the weights beyond what the model computes with.
    #[must_use]
    pub fn keeps_rests(&self) -> bool {
        self.states.first().is_some_and(|state| O::rest(state, 0..0).is_some())
    }

    /// Copies the rests of this rank's part of a bucket to where its gradients were.
    ///
    /// # Errors
    /// The device failed.
    pub fn put_rest(&self, ops: &mut O, gradients: &mut Gradients<O>, bucket: usize) -> Result<(), O::Error> {
        let (len, to) = gradients.part_mut(bucket);
        O::rest(&self.states[bucket], 0..len).map_or(Ok(()), |rest| ops.copy(to, rest))
    }

    /// The weight of `role` as AdamW keeps it, in `f32`. Where other ranks keep a part, `gathered` holds the rests of all;
    /// without them the weight is what the model computes with.
    ///
    /// # Errors
    /// The device failed.
    pub fn master(
        &self,
        ops: &mut O,
        weights: &Weights<O>,
        gathered: Option<&Gradients<O>>,
        role: Role,
    ) -> Result<Vec<f32>, O::Error> {
        let mut host = vec![0.0; weights.places().range(role).1.len()];
        ops.master(&mut host, weights.view(role), self.rest(weights, gathered, role))?;
        Ok(host)
    }

    /// What stands for the weight of `role`, as [`AdamW::master`] has it, in a hash.
    ///
    /// # Errors
    /// The device failed.
    pub fn fingerprint(
        &self,
        ops: &mut O,
        weights: &Weights<O>,
        gathered: Option<&Gradients<O>>,
        role: Role,
    ) -> Result<Vec<u8>, O::Error> {
        ops.fingerprint(weights.view(role), self.rest(weights, gathered, role))
    }

    fn rest<'a>(&'a self, weights: &Weights<O>, gathered: Option<&'a Gradients<O>>, role: Role) -> Option<O::View<'a>> {
        let (bucket, range) = weights.places().range(role);
        let state = &self.states[bucket];
        if self.keeps_all() { O::rest(state, range) } else { gathered.map(|all| all.view(role)) }
    }
}
