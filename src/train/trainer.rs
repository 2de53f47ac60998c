//! One step of one rank, and everything that it needs from step to step.

use std::collections::VecDeque;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::device::{Clock, Floats, host_memory};
use crate::model::Role;
use crate::record::{self, Device, TrainConfig};
use crate::units::{Bytes, Seconds, Tokens};

use super::buckets::{Gradients, Pass, Places};
use super::check::{check, fits_host};
use super::cpu::Cpu;
use super::data::{Batch, Data, DataShare};
use super::decoder::Decoder;
use super::error::{ExchangeError, TrainError};
use super::ops::{self, Ops, Write};
use super::optimizer::AdamW;
use super::reducer::{Moments, Reducer, Timed};

/// A training on one rank.
#[derive(Debug)]
pub struct Trainer<O: Ops = Cpu> {
    pub(super) config: TrainConfig,
    pub(super) ops: O,
    data: Data,
    batch: Batch,
    pub(super) model: Decoder<O>,
    pub(super) gradients: Gradients<O>,
    adamw: AdamW<O>,
    index: usize,
    /// Steps that the device may not have finished.
    pending: VecDeque<Pending<O>>,
    /// Where the last step that was asked for ended.
    ended: Option<O::Mark>,
    /// When the last step of which a record was made ended, on the host's monotonic clock.
    recorded: Seconds,
}

/// A step that the device was asked for.
#[derive(Debug)]
struct Pending<O: Ops> {
    index: usize,
    begin: O::Mark,
    laps: Vec<(Phase, O::Mark)>,
    outcome: O::Outcome,
    moments: Vec<Timed<O>>,
    /// Zero of its moments.
    clock: Clock,
}

/// Between two marks of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Reading the batch.
    Data,
    /// The forward pass.
    Forward,
    /// The backward pass.
    Backward,
    /// Waiting for the exchange of gradients after the backward pass.
    Exchange,
    /// The optimizer.
    Update,
}

/// What one step leaves for the rank file.
#[derive(Debug, Clone, PartialEq)]
pub struct StepRecord {
    /// The step.
    pub step: record::Step,
    /// Its bucket events; empty where the step is not sampled or nothing is exchanged.
    pub buckets: Vec<record::Bucket>,
}

/// Elements of each gradient bucket under `config` on the CPU, in the order in which they fill: what [`Trainer::new`] takes.
///
/// # Errors
/// The configuration cannot be trained.
pub fn gradient_bucket_lengths(config: &TrainConfig) -> Result<Vec<usize>, TrainError> {
    check(config, Device::Cpu)?;
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
        reducer: Reducer,
        gradient_buckets: Vec<Floats>,
    ) -> Result<Self, TrainError> {
        check(config, Device::Cpu)?;
        fits_host(config, share, host_memory())?;
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
    ///
    /// # Panics
    /// Never: a step on the CPU has ended when its last operation returns.
    pub fn step(&mut self, clock: &Clock) -> Result<StepRecord, TrainError> {
        let pool = self.ops.pool();
        Ok(pool.install(|| self.advance(clock))?.expect("the CPU does not run ahead"))
    }
}

impl<O: Ops> Trainer<O> {
    /// A training on `ops` whose gradients lie in `gradient_buckets`.
    pub(super) fn on(
        mut ops: O,
        config: &TrainConfig,
        share: DataShare,
        reducer: Reducer<O>,
        gradient_buckets: Vec<O::Buf>,
    ) -> Result<Self, TrainError> {
        let failed = device::<O>("make the model");
        let tokens = ops::Sequences { batch: config.batch, context: config.context };
        let places = Arc::new(Places::of(config));
        let model = Decoder::new(&mut ops, &config.shape, tokens, &places, config.seed, config.recompute);
        Ok(Self {
            data: Data::open(config, share)?,
            batch: Batch::new(tokens),
            model: model.map_err(failed)?,
            adamw: AdamW::new(&mut ops, config, &places).map_err(failed)?,
            gradients: Gradients::new(&places, gradient_buckets, reducer),
            config: config.clone(),
            ops,
            index: 0,
            pending: VecDeque::new(),
            ended: None,
            recorded: Seconds(0.0),
        })
    }

    /// Runs everything that a step runs, once, on the first batch, and changes nothing: libraries load their code and
    /// choose among it here, alone, and not in a step in which other ranks take part.
    ///
    /// # Errors
    /// The device failed, or the data cannot be read.
    pub(super) fn warm_up(&mut self) -> Result<(), TrainError> {
        let failed = device::<O>("run for the first time");
        self.data.fill(0, 0, &mut self.batch)?;
        self.ops.begin_totals().map_err(failed)?;
        self.model.forward(&mut self.ops, &self.batch, 0.0).map_err(failed)?;
        self.gradients.begin(Pass { write: Write::Overwrite, last: false, timed: false }, &Clock::starting_now());
        self.model.backward(&mut self.ops, &mut self.gradients).map_err(failed)?;
        self.adamw.rehearse(&mut self.ops, &mut self.model.weights, &self.gradients).map_err(failed)?;
        self.adamw.add_checksum(&mut self.ops, &self.model.weights).map_err(failed)?;
        let outcome = self.ops.outcome().map_err(failed)?;
        self.ops.totals(outcome).map_err(failed)?;
        Ok(())
    }

    /// Asks the device for one more step, and gives the record of the last one that it has finished: that of the step
    /// itself where the device does not run ahead, otherwise none at first.
    ///
    /// # Errors
    /// As [`Trainer::step`], perhaps of an earlier step.
    pub fn advance(&mut self, clock: &Clock) -> Result<Option<StepRecord>, TrainError> {
        self.enqueue(clock)?;
        if self.pending.len() > O::AHEAD { self.finish() } else { Ok(None) }
    }

    /// The record of the oldest step of which none was given yet; waits for it. None once there is none.
    ///
    /// # Errors
    /// The device failed, or training diverged.
    pub fn finish(&mut self) -> Result<Option<StepRecord>, TrainError> {
        let Some(pending) = self.pending.pop_front() else { return Ok(None) };
        let failed = device::<O>("finish a step");
        let Pending { index, begin, laps, outcome, moments, clock } = pending;
        if let Some((_, end)) = laps.last() {
            self.gradients.wait(end).map_err(|source| TrainError::Exchange { step: index, source })?;
        }
        let totals = self.ops.totals(outcome).map_err(failed)?;
        let loss = totals.loss;
        let grad_norm = self.mean() * totals.squares.sqrt();
        if !(loss.is_finite() && grad_norm.is_finite()) {
            let first = self.locate(index, &clock)?;
            return Err(TrainError::Diverged { step: index, loss, grad_norm, first });
        }
        let mut spent = [Seconds(0.0); 5];
        let mut earlier = &begin;
        for (phase, mark) in &laps {
            spent[*phase as usize] += self.ops.between(earlier, mark).map_err(failed)?;
            earlier = mark;
        }
        let step_s = spent.iter().copied().sum();
        let start_s = self.recorded - clock.epoch();
        self.recorded += step_s;
        let step = record::Step {
            index,
            tokens: Tokens((self.config.accumulate * self.config.batch * self.config.context) as u64),
            start_s,
            step_s,
            forward_s: spent[Phase::Forward as usize],
            backward_s: spent[Phase::Backward as usize],
            exposed_s: spent[Phase::Exchange as usize],
            optimizer_s: spent[Phase::Update as usize],
            loss,
            grad_norm,
            checksum: self.takes_checksum(index).then(|| format!("{:016x}", totals.checksum)),
        };
        let buckets = self.events(&step, &begin, &moments).map_err(failed)?;
        Ok(Some(StepRecord { step, buckets }))
    }

    /// Where the first number that is not finite stands in step `index`: computes its micro-steps again, one by one, as
    /// the device may be ahead. No gradient leaves this rank.
    fn locate(&mut self, index: usize, clock: &Clock) -> Result<Option<String>, TrainError> {
        let failed = device::<O>("look for the number that is not finite");
        self.pending.clear();
        for micro in 0..self.config.accumulate {
            self.data.fill(index, micro, &mut self.batch)?;
            self.model.forward(&mut self.ops, &self.batch, 0.0).map_err(failed)?;
            self.gradients.begin(Pass { last: false, ..self.pass(index, micro) }, clock);
            self.model.backward(&mut self.ops, &mut self.gradients).map_err(failed)?;
            let first = self.model.first_not_finite(&mut self.ops, &self.gradients).map_err(failed)?;
            if first.is_some() {
                return Ok(first);
            }
        }
        Ok(None)
    }

    /// Asks for a step. Nothing here waits for the device, but the exchange of gradients may.
    fn enqueue(&mut self, clock: &Clock) -> Result<(), TrainError> {
        if !self.gradients.are_whole() {
            return Err(TrainError::Exchange { step: self.index, source: ExchangeError::Lost });
        }
        let failed = device::<O>("begin a step");
        let begin = self.begin().map_err(failed)?;
        self.ops.begin_totals().map_err(failed)?;
        let mut laps = Vec::with_capacity(3 * self.config.accumulate + 2);
        for micro in 0..self.config.accumulate {
            self.data.fill(self.index, micro, &mut self.batch)?;
            self.lap(&mut laps, Phase::Data)?;
            let weight = 1.0 / self.config.accumulate as f64;
            let done = self.model.forward(&mut self.ops, &self.batch, weight);
            done.map_err(device::<O>("run the forward pass"))?;
            self.lap(&mut laps, Phase::Forward)?;
            self.gradients.begin(self.pass(self.index, micro), clock);
            let done = self.model.backward(&mut self.ops, &mut self.gradients);
            done.map_err(device::<O>("run the backward pass"))?;
            self.lap(&mut laps, Phase::Backward)?;
        }
        let mut moments = Vec::new();
        let exchanged = self.gradients.finish(&mut self.ops, &mut moments);
        exchanged.map_err(|source| TrainError::Exchange { step: self.index, source })?;
        self.lap(&mut laps, Phase::Exchange)?;
        let mean = self.mean();
        let updated = self.adamw.update(&mut self.ops, &mut self.model.weights, &self.gradients, mean);
        updated.map_err(device::<O>("update the weights"))?;
        if self.takes_checksum(self.index) {
            let summed = self.adamw.add_checksum(&mut self.ops, &self.model.weights);
            summed.map_err(device::<O>("take the checksum of the weights"))?;
        }
        let outcome = self.ops.outcome().map_err(device::<O>("update the weights"))?;
        self.lap(&mut laps, Phase::Update)?;
        self.ended = laps.last().map(|(_, mark)| mark.clone());
        self.pending.push_back(Pending { index: self.index, begin, laps, outcome, moments, clock: *clock });
        self.index += 1;
        Ok(())
    }

    /// Where this step begins: where the one before ended, or now.
    fn begin(&mut self) -> Result<O::Mark, O::Error> {
        if let Some(ended) = &self.ended {
            return Ok(ended.clone());
        }
        let mark = self.ops.mark()?;
        self.ops.wait(&mark)?;
        self.recorded = Clock::monotonic();
        Ok(mark)
    }

    fn lap(&mut self, laps: &mut Vec<(Phase, O::Mark)>, phase: Phase) -> Result<(), TrainError> {
        laps.push((phase, self.ops.mark().map_err(device::<O>("mark a moment"))?));
        Ok(())
    }

    /// From here on, `reducer` sums gradients.
    pub(super) fn exchange_by(&mut self, reducer: Reducer<O>) {
        self.gradients.exchange_by(reducer);
    }

    /// From the summed gradient to its mean.
    fn mean(&self) -> f64 {
        1.0 / (self.gradients.world() * self.config.accumulate) as f64
    }

    /// The bucket events of a sampled step that began at `begin`.
    fn events(
        &mut self,
        step: &record::Step,
        begin: &O::Mark,
        moments: &[Timed<O>],
    ) -> Result<Vec<record::Bucket>, O::Error> {
        if !self.samples(step.index) {
            return Ok(Vec::new());
        }
        let places = Arc::clone(self.model.weights.places());
        let element = self.config.reduced_bytes().0;
        let mut buckets = Vec::with_capacity(moments.len());
        for timed in moments {
            let moments = match timed {
                Timed::Host(moments) => *moments,
                Timed::Device(index, [ready, start, end]) => {
                    let mut at = |mark| Ok(step.start_s + self.ops.between(begin, mark)?);
                    Moments { index: *index, ready_s: at(ready)?, start_s: at(start)?, end_s: at(end)? }
                }
            };
            let bytes = Bytes(places.layout.buckets[moments.index].elements as u64 * element);
            buckets.push(moments.record(step.index, bytes));
        }
        Ok(buckets)
    }

    /// Whether bucket events of step `index` are wanted.
    fn samples(&self, index: usize) -> bool {
        let every = self.config.bucket_events_every;
        every != 0 && index.is_multiple_of(every)
    }

    /// Whether the checksum of the weights is wanted after step `index`.
    fn takes_checksum(&self, index: usize) -> bool {
        let every = self.config.checksum_every;
        every != 0 && (index + 1).is_multiple_of(every)
    }

    fn pass(&self, index: usize, micro: usize) -> Pass {
        let write = if micro == 0 { Write::Overwrite } else { Write::Accumulate };
        Pass { write, last: micro + 1 == self.config.accumulate, timed: self.samples(index) }
    }

    /// SHA-256, in hexadecimal, over the fingerprints of all parameters in the order of the forward pass: on the CPU
    /// over all their bits. It does not depend on bucket sizes.
    ///
    /// # Errors
    /// The device failed.
    pub fn parameters_sha256(&mut self) -> Result<String, TrainError> {
        let mut hash = Sha256::new();
        let places = Arc::clone(self.model.weights.places());
        for parameter in &places.parameters {
            let read = self.adamw.fingerprint(&mut self.ops, &self.model.weights, parameter.role);
            hash.update(read.map_err(device::<O>("read the weights"))?);
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// One weight as the optimizer keeps it, row by row.
    ///
    /// # Errors
    /// The device failed.
    pub fn weight(&mut self, role: Role) -> Result<Vec<f32>, TrainError> {
        let read = self.adamw.master(&mut self.ops, &self.model.weights, role);
        read.map_err(device::<O>("read the weights"))
    }
}

/// Makes an error of the device one of the training.
pub(super) fn device<O: Ops>(attempt: &'static str) -> impl Fn(O::Error) -> TrainError + Copy {
    move |source| TrainError::Device { attempt, source: Box::new(source) }
}
