//! One step of one rank, and everything that it needs from step to step.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::device::{Clock, Floats, host_memory};
use crate::record::{self, TrainConfig};
use crate::units::{Bytes, Seconds, Tokens};

use super::buckets::{Gradients, Pass, Places};
use super::check::check;
use super::cpu::Cpu;
use super::data::{Batch, Data, DataShare};
use super::decoder::Decoder;
use super::error::{ExchangeError, TrainError};
use super::ops::{self, Ops, Write};
use super::optimizer::AdamW;
use super::reducer::{Moments, Reducer};

/// A training on one rank.
#[derive(Debug)]
pub struct Trainer<O: Ops = Cpu> {
    config: TrainConfig,
    ops: O,
    data: Data,
    batch: Batch,
    model: Decoder<O>,
    gradients: Gradients<O>,
    adamw: AdamW<O>,
    index: usize,
    moments: Vec<Moments>,
    /// When the last step ended, on the host's monotonic clock.
    ended: Option<Seconds>,
}

/// What one step leaves for the rank file.
#[derive(Debug, Clone, PartialEq)]
pub struct StepRecord {
    /// The step.
    pub step: record::Step,
    /// Its bucket events; empty where the step is not sampled or nothing is exchanged.
    pub buckets: Vec<record::Bucket>,
}

/// Elements of each gradient bucket under `config`, in the order in which they fill: what [`Trainer::new`] takes.
///
/// # Errors
/// The configuration cannot be trained.
pub fn gradient_bucket_lengths(config: &TrainConfig) -> Result<Vec<usize>, TrainError> {
    check(config, DataShare { rank: 0, world: 1 }, Bytes(u64::MAX))?;
    Ok(Places::of(config).lengths())
}

impl Trainer<Cpu> {
    /// A training that is ready for its first step, on `threads` threads that inherit the caller's affinity.
    /// `gradient_buckets` have the lengths of [`gradient_bucket_lengths`]; their content is not read.
    ///
    /// # Errors
    /// The configuration cannot be trained, the data cannot be read, or a thread cannot be started.
    ///
    /// # Panics
    /// If the buckets have other lengths: a bug of the caller.
    pub fn new(
        config: &TrainConfig,
        share: DataShare,
        threads: usize,
        reducer: Reducer<Floats>,
        gradient_buckets: Vec<Floats>,
    ) -> Result<Self, TrainError> {
        check(config, share, host_memory())?;
        let ops = Cpu::new(threads).map_err(|source| TrainError::Threads { threads, source })?;
        let lengths: Vec<usize> = gradient_buckets.iter().map(|bucket| bucket.len()).collect();
        assert_eq!(lengths, Places::of(config).lengths(), "gradient buckets of other lengths than the model's");
        Self::on(ops, config, share, reducer, gradient_buckets)
    }

    /// One step: reads its batch, computes gradients, exchanges them and updates the weights. Moments are taken on
    /// `clock`. A step begins where the one before ended, so that what the caller does between two counts in the
    /// second.
    ///
    /// # Errors
    /// The data holds a bad id, gradients could not be exchanged, or training diverged. Nothing more can be trained
    /// then.
    pub fn step(&mut self, clock: &Clock) -> Result<StepRecord, TrainError> {
        let pool = self.ops.pool();
        pool.install(|| self.run_step(clock))
    }
}

impl<O: Ops> Trainer<O> {
    fn on(
        mut ops: O,
        config: &TrainConfig,
        share: DataShare,
        reducer: Reducer<O::Buf>,
        gradient_buckets: Vec<O::Buf>,
    ) -> Result<Self, TrainError> {
        let failed = device::<O>("make the model");
        let tokens = ops::Sequences { batch: config.batch, context: config.context };
        let places = Arc::new(Places::of(config));
        Ok(Self {
            data: Data::open(config, share)?,
            batch: Batch::new(tokens),
            model: Decoder::new(&mut ops, &config.shape, tokens, &places, config.seed).map_err(failed)?,
            adamw: AdamW::new(&mut ops, config, &places.lengths()).map_err(failed)?,
            gradients: Gradients::new(&places, gradient_buckets, reducer),
            config: config.clone(),
            ops,
            index: 0,
            moments: Vec::new(),
            ended: None,
        })
    }

    fn run_step(&mut self, clock: &Clock) -> Result<StepRecord, TrainError> {
        if !self.gradients.are_whole() {
            return Err(TrainError::Exchange { step: self.index, source: ExchangeError::Lost });
        }
        let mut laps = Laps::start(clock, self.ended);
        let (mut forward, mut backward) = (Seconds(0.0), Seconds(0.0));
        let mut loss = 0.0;
        for micro in 0..self.config.accumulate {
            self.data.fill(self.index, micro, &mut self.batch)?;
            laps.lap();
            loss += self.model.forward(&mut self.ops, &self.batch).map_err(device::<O>("run the forward pass"))?;
            forward += laps.lap();
            self.gradients.begin(self.pass(micro), clock);
            let done = self.model.backward(&mut self.ops, &mut self.gradients);
            done.map_err(device::<O>("run the backward pass"))?;
            backward += laps.lap();
        }
        let exchanged = self.gradients.finish(&mut self.moments);
        exchanged.map_err(|source| TrainError::Exchange { step: self.index, source })?;
        let exposed = laps.lap();
        let mean = 1.0 / (self.gradients.world() * self.config.accumulate) as f64;
        let updated = self.adamw.update(&mut self.ops, &mut self.model.weights, &self.gradients, mean);
        let grad_norm = updated.map_err(device::<O>("update the weights"))?;
        let optimizer = laps.lap();
        let step = record::Step {
            index: self.index,
            tokens: Tokens((self.config.accumulate * self.config.batch * self.config.context) as u64),
            start_s: laps.start,
            step_s: laps.last - laps.start,
            forward_s: forward,
            backward_s: backward,
            exposed_s: exposed,
            optimizer_s: optimizer,
            loss: loss / self.config.accumulate as f64,
            grad_norm,
        };
        self.ended = Some(clock.epoch() + laps.last);
        self.close(step)
    }

    /// Refuses what is no number, and gathers the bucket events of a sampled step.
    fn close(&mut self, step: record::Step) -> Result<StepRecord, TrainError> {
        let record::Step { loss, grad_norm, index, .. } = step;
        if !(loss.is_finite() && grad_norm.is_finite()) {
            return Err(TrainError::Diverged { step: index, loss, grad_norm });
        }
        let every = self.config.bucket_events_every;
        let sampled = every != 0 && index % every == 0;
        let layout = &self.model.weights.places().layout;
        let bytes = |moments: &Moments| Bytes(layout.buckets[moments.index].elements as u64 * 4);
        let events = self.moments.iter().filter(|_| sampled);
        let buckets = events.map(|moments| moments.record(index, bytes(moments))).collect();
        self.index += 1;
        Ok(StepRecord { step, buckets })
    }

    fn pass(&self, micro: usize) -> Pass {
        let write = if micro == 0 { Write::Overwrite } else { Write::Accumulate };
        Pass { write, last: micro + 1 == self.config.accumulate }
    }

    /// SHA-256 over all parameters in the order of the forward pass, little-endian, in hexadecimal. It does not
    /// depend on bucket sizes.
    ///
    /// # Errors
    /// The device failed.
    pub fn parameters_sha256(&mut self) -> Result<String, TrainError> {
        let mut hash = Sha256::new();
        let places = Arc::clone(self.model.weights.places());
        for parameter in &places.parameters {
            let mut host = vec![0.0_f32; parameter.elements()];
            let read = self.ops.download(&mut host, self.model.weights.view(parameter.role));
            read.map_err(device::<O>("read the weights"))?;
            host.iter_mut().for_each(|value| *value = f32::from_bits(value.to_bits().to_le()));
            hash.update(bytemuck::cast_slice::<f32, u8>(&host));
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// Makes an error of the device one of the training.
fn device<O: Ops>(attempt: &'static str) -> impl Fn(O::Error) -> TrainError + Copy {
    move |source| TrainError::Device { attempt, source: Box::new(source) }
}

/// Time from one point of a step to the next.
#[derive(Debug)]
struct Laps<'a> {
    clock: &'a Clock,
    start: Seconds,
    last: Seconds,
}

impl<'a> Laps<'a> {
    /// Begins now, or where the step before ended.
    fn start(clock: &'a Clock, ended: Option<Seconds>) -> Self {
        let start = ended.map_or_else(|| clock.now(), |ended| ended - clock.epoch());
        Self { clock, start, last: start }
    }

    /// Time since the last call.
    fn lap(&mut self) -> Seconds {
        let now = self.clock.now();
        let lap = now - self.last;
        self.last = now;
        lap
    }
}
