//! One step of one rank, and everything that it needs from step to step.

use std::collections::VecDeque;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::comm::Shard;
use crate::device::{Clock, Floats, host_memory};
use crate::model::Role;
use crate::record::{self, Collective, Device, TrainConfig};
use crate::units::{Bytes, Seconds, Tokens};

use super::buckets::{Gradients, Pass, Places, Weights};
use super::check::{check, fits_host};
use super::cpu::Cpu;
use super::data::{Batch, Data, DataShare};
use super::decoder::Decoder;
use super::error::{ExchangeError, ShareError, TrainError};
use super::ops::{self, AdamWUpdate, NORM_ROOM, Ops, Write};
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
    pub(super) adamw: AdamW<O>,
    index: usize,
    /// Steps that the device may not have finished.
    pending: VecDeque<Pending<O>>,
    /// Where the last step that was asked for ended.
    ended: Option<O::Mark>,
    /// When the last step of which a record was made ended, on the host's monotonic clock.
    recorded: Seconds,
    /// Whether gradients hold what other ranks keep of the weights.
    complete: bool,
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

/// Elements of each buffer that `world` ranks exchange under `config` on the CPU: what [`Trainer::new`] takes. Gradient
/// buckets in the order in which they fill; and where ranks share the optimizer's state, as many of weights, and what the
/// norm of the gradient is added up in.
///
/// # Errors
/// The configuration cannot be trained.
pub fn exchanged_lengths(config: &TrainConfig, world: usize) -> Result<Vec<usize>, TrainError> {
    check(config, Device::Cpu)?;
    let mut lengths = Places::of(config).lengths();
    if config.shares_state(world) {
        lengths.extend(lengths.clone());
        lengths.push(world * NORM_ROOM);
    }
    Ok(lengths)
}

/// The memory of what ranks exchange.
#[derive(Debug)]
pub(super) struct Exchanged<O: Ops> {
    /// A buffer for each bucket.
    pub(super) gradients: Vec<O::Buf>,
    /// The same, where ranks exchange weights too; else they lie wherever the device has room.
    pub(super) weights: Option<Vec<O::Buf>>,
    /// [`Ops::norms`], where each rank has the sum of a part of the gradients only.
    pub(super) norms: Option<O::Buf>,
}

impl Trainer<Cpu> {
    /// A training that is ready for its first step, on `threads` threads that inherit the caller's affinity.
    /// `exchanged` have the lengths of [`exchanged_lengths`] for the reducer's world; their content is not read.
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
        mut exchanged: Vec<Floats>,
    ) -> Result<Self, TrainError> {
        let lengths = exchanged_lengths(config, reducer.world())?;
        assert!(exchanged.iter().map(|buffer| buffer.len()).eq(lengths), "buffers of other lengths than are exchanged");
        fits_host(config, share, reducer.world(), host_memory())?;
        let ops = Cpu::new(threads).map_err(|source| TrainError::Threads { threads, source })?;
        let mut others = exchanged.split_off(Places::of(config).lengths().len());
        let norms = others.pop();
        let weights = (!others.is_empty()).then_some(others);
        let shard = reducer.shard(config);
        let memory = Exchanged { gradients: exchanged, weights, norms };
        Self::on(ops, config, share, (reducer, shard), memory)
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
    /// A training on `ops` in `memory`, of whose optimizer's state this rank keeps `shard`.
    pub(super) fn on(
        mut ops: O,
        config: &TrainConfig,
        share: DataShare,
        (reducer, shard): (Reducer<O>, Shard),
        memory: Exchanged<O>,
    ) -> Result<Self, TrainError> {
        let failed = device::<O>("make the model");
        let tokens = ops::Sequences { batch: config.batch, context: config.context };
        let places = Arc::new(Places::of(config));
        let Exchanged { gradients, weights, norms } = memory;
        let mut weights = match weights {
            Some(buckets) => Weights::new(&places, buckets),
            None => Weights::zeros(&mut ops, &places).map_err(failed)?,
        };
        weights.cuts = norms.is_some();
        let model = Decoder::new(&mut ops, &config.shape, tokens, weights, config.seed, config.recompute);
        Ok(Self {
            data: Data::open(config, share)?,
            batch: Batch::new(tokens),
            model: model.map_err(failed)?,
            adamw: AdamW::new(&mut ops, config, &places, shard).map_err(failed)?,
            gradients: Gradients::new(&places, gradients, reducer, (shard, norms)),
            config: config.clone(),
            ops,
            index: 0,
            pending: VecDeque::new(),
            ended: None,
            recorded: Seconds(0.0),
            complete: false,
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
        let update = self.adamw.rehearsal();
        for bucket in 0..self.model.weights.places().layout.buckets.len() {
            let Self { ops, model, gradients, adamw, .. } = self;
            ops.add_squares(gradients.part(bucket)).map_err(failed)?;
            adamw.update(ops, &update, &mut model.weights, gradients, bucket).map_err(failed)?;
        }
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
        for timed in &moments {
            // weights arrive in the step after
            if let Timed::Device(_, Collective::AllGather, [_, _, end]) = timed {
                self.gradients.wait(end).map_err(|source| TrainError::Exchange { step: index, source })?;
            }
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
        self.update(&mut laps, &mut moments)?;
        if self.takes_checksum(self.index) {
            let whole = self.model.weights.follow_all(&mut self.ops);
            whole.map_err(device::<O>("gather the weights"))?;
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

    /// Updates the weights as gradients come back: a bucket at once where nothing is clipped, so that the sum of the last one
    /// is hidden behind the update of the others; else all once the norm is known.
    fn update(&mut self, laps: &mut Vec<(Phase, O::Mark)>, moments: &mut Vec<Timed<O>>) -> Result<(), TrainError> {
        let (failed, step) = (device::<O>("update the weights"), self.index);
        let waits = self.gradients.leave();
        let at_once = !self.adamw.clips() && !self.gradients.is_shared();
        let update = self.adamw.begin_update(self.mean());
        loop {
            let back = self.gradients.next(&mut self.ops, moments);
            let back = back.map_err(|source| TrainError::Exchange { step, source })?;
            if waits {
                self.lap(laps, Phase::Exchange)?;
            }
            let Some(bucket) = back else { break };
            let Self { ops, model: Decoder { weights, .. }, gradients, adamw, .. } = self;
            ops.add_squares(gradients.part(bucket)).map_err(failed)?;
            if at_once {
                adamw.update(ops, &update, weights, gradients, bucket).map_err(failed)?;
            }
            if waits {
                self.lap(laps, Phase::Update)?;
            }
        }
        if at_once { Ok(()) } else { self.update_all(&update, laps, moments) }
    }

    /// Updates the weights by all gradients. Where ranks share the optimizer's state, each updates its part and all exchange
    /// parts: the norm of the gradient first, then weights, those that the forward pass reads first before others.
    fn update_all(
        &mut self,
        update: &AdamWUpdate,
        laps: &mut Vec<(Phase, O::Mark)>,
        moments: &mut Vec<Timed<O>>,
    ) -> Result<(), TrainError> {
        let (failed, step) = (device::<O>("update the weights"), self.index);
        let unheard = |source| TrainError::Exchange { step, source };
        let shared = self.gradients.is_shared();
        if shared {
            self.gradients.share_squares(&mut self.ops).map_err(|error| match error {
                ShareError::Device(source) => failed(source),
                ShareError::Exchange(source) => unheard(source),
            })?;
            self.lap(laps, Phase::Exchange)?;
        }
        let Self { ops, model: Decoder { weights, .. }, gradients, adamw, .. } = self;
        for bucket in (0..weights.places().layout.buckets.len()).rev() {
            adamw.update(ops, update, weights, gradients, bucket).map_err(failed)?;
            gradients.spread(ops, weights, bucket, moments).map_err(unheard)?;
        }
        if shared {
            self.lap(laps, Phase::Update)?;
            let Self { ops, model: Decoder { weights, .. }, gradients, .. } = self;
            gradients.gathered(ops, weights, moments).map_err(unheard)?;
            self.lap(laps, Phase::Exchange)?;
        }
        Ok(())
    }

    /// Gathers what other ranks keep of the weights, so that [`Trainer::parameters_sha256`], [`Trainer::weight`] and a
    /// checkpoint have them as the optimizer keeps them. All ranks call it, after the last step; gradients are lost.
    ///
    /// # Errors
    /// The device or the exchange failed.
    pub fn complete(&mut self) -> Result<(), TrainError> {
        let Self { ops, gradients, adamw, .. } = self;
        if !gradients.is_shared() || !adamw.keeps_rests() {
            return Ok(());
        }
        for bucket in 0..self.model.weights.places().layout.buckets.len() {
            adamw.put_rest(ops, gradients, bucket).map_err(device::<O>("gather the weights"))?;
        }
        gradients.gather(ops).map_err(|source| TrainError::Exchange { step: self.index, source })?;
        let end = ops.mark().map_err(device::<O>("gather the weights"))?;
        gradients.wait(&end).map_err(|source| TrainError::Exchange { step: self.index, source })?;
        self.complete = true;
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
        let mut buckets = Vec::with_capacity(moments.len());
        for timed in moments {
            let moments = match timed {
                Timed::Host(moments) => *moments,
                Timed::Device(index, collective, [ready, start, end]) => {
                    let mut at = |mark| Ok(step.start_s + self.ops.between(begin, mark)?);
                    let (ready_s, start_s, end_s) = (at(ready)?, at(start)?, at(end)?);
                    Moments { index: *index, ready_s, start_s, end_s, collective: *collective }
                }
            };
            let element = match moments.collective {
                Collective::AllGather => self.config.precision.element_bytes(),
                Collective::AllReduce | Collective::ReduceScatter => self.config.reduced_bytes(),
            };
            let bytes = Bytes(places.layout.buckets[moments.index].elements as u64 * element.0);
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
    /// over all their bits. It does not depend on bucket sizes. Where other ranks keep parts and [`Trainer::complete`] was not
    /// called, it is over the weights that the model computes with.
    ///
    /// # Errors
    /// The device failed.
    pub fn parameters_sha256(&mut self) -> Result<String, TrainError> {
        let mut hash = Sha256::new();
        let places = Arc::clone(self.model.weights.places());
        let failed = device::<O>("read the weights");
        self.model.weights.follow_all(&mut self.ops).map_err(failed)?;
        let Self { ops, model, adamw, gradients, .. } = self;
        let gathered = self.complete.then_some(&*gradients);
        for parameter in &places.parameters {
            hash.update(adamw.fingerprint(ops, &model.weights, gathered, parameter.role).map_err(failed)?);
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// One weight as the optimizer keeps it, row by row.
    ///
    /// # Errors
    /// The device failed.
    pub fn weight(&mut self, role: Role) -> Result<Vec<f32>, TrainError> {
        let failed = device::<O>("read the weights");
        self.model.weights.follow_all(&mut self.ops).map_err(failed)?;
        let Self { ops, model, adamw, gradients, .. } = self;
        let gathered = self.complete.then_some(&*gradients);
        adamw.master(ops, &model.weights, gathered, role).map_err(failed)
    }
}

/// Makes an error of the device one of the training.
pub(super) fn device<O: Ops>(attempt: &'static str) -> impl Fn(O::Error) -> TrainError + Copy {
    move |source| TrainError::Device { attempt, source: Box::new(source) }
}
