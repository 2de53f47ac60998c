//! Weights and gradients, a flat buffer for each bucket.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::comm::Shard;
use crate::device::Clock;
use crate::model::{BucketLayout, Parameter, Place, Role};
use crate::record::{Collective, TrainConfig};

use super::error::{ExchangeError, ShareError};
use super::ops::{Kind, Ops, Stretch, Write};
use super::reducer::{HandingOver, Reducer, Timed};

/// Every parameter and its place in the buckets.
#[derive(Debug)]
pub struct Places {
    /// Parameters in the order of the forward pass.
    pub parameters: Vec<Parameter>,
    /// Buckets in the order of the backward pass.
    pub layout: BucketLayout,
    by_role: BTreeMap<Role, usize>,
}

impl Places {
    /// The places under `config`.
    #[must_use]
    pub fn of(config: &TrainConfig) -> Self {
        let parameters = config.shape.parameters();
        let layout = config.bucket_layout();
        let by_role = parameters.iter().enumerate().map(|(index, parameter)| (parameter.role, index)).collect();
        Self { parameters, layout, by_role }
    }

    /// Elements of each bucket.
    #[must_use]
    pub fn lengths(&self) -> Vec<usize> {
        self.layout.buckets.iter().map(|bucket| bucket.elements).collect()
    }

    fn place(&self, role: Role) -> Place {
        self.layout.places[self.by_role[&role]]
    }

    /// Where a parameter lies in its bucket: the bucket, and the elements.
    #[must_use]
    pub fn range(&self, role: Role) -> (usize, Range<usize>) {
        let Place { bucket, offset, elements } = self.place(role);
        (bucket, offset..offset + elements)
    }

    /// The ranges of a bucket that hold gains of norms, ascending.
    #[must_use]
    pub fn gains(&self, bucket: usize) -> Vec<Range<usize>> {
        let plan = &self.layout.buckets[bucket];
        let gains = plan.parameters.iter().filter(|index| !self.parameters[**index].is_matrix());
        gains.map(|index| self.range(self.parameters[*index].role).1).collect()
    }
}

/// The parameters of a model.
#[derive(Debug)]
pub struct Weights<O: Ops> {
    places: Arc<Places>,
    /// None while other ranks send their parts of a bucket.
    buckets: Vec<Option<O::Buf>>,
    /// Where on the device the parts of other ranks will have come, for each bucket that is on its way.
    arriving: Vec<Option<O::Mark>>,
    /// Whether the forward pass waits for one bucket after another, and is cut there.
    pub(super) cuts: bool,
    /// How far that pass is: the first bucket that it has waited for.
    reached: usize,
}

impl<O: Ops> Weights<O> {
    /// Zeros.
    ///
    /// # Errors
    /// The device has no memory left.
    pub fn zeros(ops: &mut O, places: &Arc<Places>) -> Result<Self, O::Error> {
        let buckets = places.lengths().into_iter().map(|len| ops.zeros(len, Kind::Working));
        Ok(Self::new(places, buckets.collect::<Result<_, _>>()?))
    }

    /// Weights in `buckets`, which have the lengths of `places`.
    #[must_use]
    pub fn new(places: &Arc<Places>, buckets: Vec<O::Buf>) -> Self {
        let arriving = buckets.iter().map(|_| None).collect();
        let buckets = buckets.into_iter().map(Some).collect();
        Self { places: Arc::clone(places), buckets, arriving, cuts: false, reached: 0 }
    }

    /// The places of the parameters.
    #[must_use]
    pub fn places(&self) -> &Arc<Places> {
        &self.places
    }

    /// A bucket, to read.
    ///
    /// # Panics
    /// If it has not come back from other ranks: a bug of the caller.
    #[must_use]
    pub fn bucket(&self, index: usize) -> &O::Buf {
        self.buckets[index].as_ref().expect("weights are read only after all buckets are back")
    }

    /// A bucket, to write.
    ///
    /// # Panics
    /// As [`Weights::bucket`].
    pub fn bucket_mut(&mut self, index: usize) -> &mut O::Buf {
        self.buckets[index].as_mut().expect("weights are written only after all buckets are back")
    }

    /// A bucket, to send to other ranks.
    ///
    /// # Panics
    /// As [`Weights::bucket`].
    pub(super) fn take(&mut self, index: usize) -> O::Buf {
        self.buckets[index].take().expect("a bucket is sent once")
    }

    /// The bucket is back.
    pub(super) fn put(&mut self, index: usize, bucket: O::Buf) {
        self.buckets[index] = Some(bucket);
    }

    /// Whether no bucket is away on the host's ways.
    pub(super) fn are_whole(&self) -> bool {
        self.buckets.iter().all(Option::is_some)
    }

    /// After a failed exchange: zeros where buckets were lost, which say nothing, but can be read.
    pub(super) fn replace_lost(&mut self, ops: &mut O) {
        let lengths = self.places.lengths();
        for (bucket, len) in self.buckets.iter_mut().zip(lengths).filter(|(bucket, _)| bucket.is_none()) {
            *bucket = ops.zeros(len, Kind::Working).ok();
        }
    }

    /// Notes where the parts of other ranks will have come.
    pub(super) fn arrives(&mut self, index: usize, end: O::Mark) {
        self.arriving[index] = Some(end);
    }

    /// What the device is asked for from here on waits for the parts of other ranks of bucket `index`.
    fn follow(&mut self, ops: &mut O, index: usize) -> Result<(), O::Error> {
        self.arriving[index].take().map_or(Ok(()), |end| ops.follow(&end))
    }

    /// The same for all buckets.
    ///
    /// # Errors
    /// The device failed.
    pub fn follow_all(&mut self, ops: &mut O) -> Result<(), O::Error> {
        (0..self.buckets.len()).try_for_each(|index| self.follow(ops, index))
    }

    /// Begins a forward pass: it reads the last bucket first.
    pub(super) fn begin(&mut self, ops: &mut O) -> Result<(), O::Error> {
        self.reached = self.buckets.len() - 1;
        if self.cuts { self.follow(ops, self.reached) } else { Ok(()) }
    }

    /// Cuts the forward pass where it comes to the weight of `role`, if that lies in a bucket that it has not waited for.
    pub(super) fn reach(&mut self, ops: &mut O, role: Role) -> Result<(), O::Error> {
        let (bucket, _) = self.places.range(role);
        while self.cuts && bucket < self.reached {
            ops.cut()?;
            self.reached -= 1;
            self.follow(ops, self.reached)?;
            ops.resume()?;
        }
        Ok(())
    }

    /// The forward pass from its record, piece by piece: one with each bucket, the last first.
    pub(super) fn replay(&mut self, ops: &mut O, stretch: Stretch) -> Result<(), O::Error> {
        for piece in 0..self.buckets.len() {
            self.follow(ops, self.buckets.len() - 1 - piece)?;
            ops.replay(stretch, piece)?;
        }
        Ok(())
    }

    /// One parameter, to read.
    #[must_use]
    pub fn view(&self, role: Role) -> O::View<'_> {
        let (bucket, range) = self.places.range(role);
        O::view(self.bucket(bucket), range)
    }

    /// One parameter, to write.
    pub fn view_mut(&mut self, role: Role) -> O::ViewMut<'_> {
        let (bucket, range) = self.places.range(role);
        O::view_mut(self.bucket_mut(bucket), range)
    }
}

/// One micro-step among those of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pass {
    /// The first overwrites gradients, the others add to them.
    pub write: Write,
    /// In the last, buckets leave as they fill.
    pub last: bool,
    /// Whether moments of the exchange are wanted.
    pub timed: bool,
}

/// The gradients of one step. During the last micro-step each bucket leaves as soon as it is full.
#[derive(Debug)]
pub struct Gradients<O: Ops> {
    places: Arc<Places>,
    /// None while the reducer has the bucket.
    buckets: Vec<Option<O::Buf>>,
    /// Gradients that are not yet written in this pass, for each bucket.
    missing: Vec<usize>,
    pass: Pass,
    clock: Clock,
    reducer: Reducer<O>,
    /// The part of every bucket whose sum this rank needs.
    shard: Shard,
    /// Where ranks that need parts say what the squares of theirs sum to.
    norms: Option<O::Buf>,
    /// Why a bucket could not be handed over.
    failed: Option<ExchangeError>,
}

impl<O: Ops> Gradients<O> {
    /// Gradients in `buckets`, which have the lengths of `places`, exchanged by `reducer`. Where `shard` is a part, each
    /// rank gets the sum of its part only, and `norms` is there for [`Ops::put_squares`].
    #[must_use]
    pub fn new(
        places: &Arc<Places>,
        buckets: Vec<O::Buf>,
        reducer: Reducer<O>,
        (shard, norms): (Shard, Option<O::Buf>),
    ) -> Self {
        Self {
            places: Arc::clone(places),
            missing: vec![0; buckets.len()],
            buckets: buckets.into_iter().map(Some).collect(),
            pass: Pass { write: Write::Overwrite, last: true, timed: false },
            clock: Clock::starting_now(),
            reducer,
            shard,
            norms,
            failed: None,
        }
    }

    /// From here on, `reducer` sums gradients; none may be away.
    pub(super) fn exchange_by(&mut self, reducer: Reducer<O>) {
        debug_assert!(self.are_whole(), "another reducer while gradients are away");
        self.reducer = reducer;
    }

    /// Ranks over which gradients are summed.
    #[must_use]
    pub fn world(&self) -> usize {
        self.reducer.world()
    }

    /// False once an exchange has failed and buckets were lost with it.
    #[must_use]
    pub fn are_whole(&self) -> bool {
        self.buckets.iter().all(Option::is_some)
    }

    /// Begins a micro-step; moments are taken on `clock`.
    pub fn begin(&mut self, pass: Pass, clock: &Clock) {
        self.pass = pass;
        self.clock = *clock;
        for (missing, bucket) in self.missing.iter_mut().zip(&self.places.layout.buckets) {
            *missing = bucket.parameters.len();
        }
    }

    /// Which stretch of the step the backward pass is; none where the host hands buckets over while it runs.
    #[must_use]
    pub fn stretch(&self) -> Option<Stretch> {
        let Pass { write, last, .. } = self.pass;
        match self.reducer.handing_over() {
            HandingOver::Waits => None,
            HandingOver::Nothing => Some(Stretch::Backward { write, cut: false }),
            HandingOver::Cuts => Some(Stretch::Backward { write, cut: last }),
        }
    }

    /// Lets `work` write the gradient of one parameter, once in each micro-step. A bucket that is full then leaves.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn write(
        &mut self,
        ops: &mut O,
        role: Role,
        work: impl FnOnce(&mut O, O::ViewMut<'_>, Write) -> Result<(), O::Error>,
    ) -> Result<(), O::Error> {
        let (index, range) = self.places.range(role);
        let bucket = self.buckets[index].as_mut();
        // after a bucket was lost the step is lost too, and `finish` says so
        let Some(bucket) = bucket else {
            assert!(self.failed.is_some(), "a bucket was handed over before its last gradient was written");
            return Ok(());
        };
        work(ops, O::view_mut(bucket, range), self.pass.write)?;
        self.missing[index] -= 1;
        if self.missing[index] == 0 && self.pass.last {
            debug_assert!(self.missing[..index].iter().all(|missing| *missing == 0), "buckets fill in their order");
            let cuts = self.reducer.handing_over() == HandingOver::Cuts;
            if cuts {
                ops.cut()?;
            }
            self.hand_over(ops, index);
            if cuts && index + 1 < self.buckets.len() {
                ops.resume()?;
            }
        }
        Ok(())
    }

    /// Gives bucket `index`, which is full, to the reducer.
    fn hand_over(&mut self, ops: &mut O, index: usize) {
        let collective = if self.is_shared() { Collective::ReduceScatter } else { Collective::AllReduce };
        if let Some(bucket) = self.buckets[index].take()
            && let Err(error) = self.reducer.launch(ops, (index, bucket), collective, &self.clock, self.pass.timed)
        {
            self.failed.get_or_insert(error);
        }
    }

    /// The backward pass from its record, piece by piece: buckets fill in their order, one with each piece.
    ///
    /// # Errors
    /// The device failed.
    pub fn replay(&mut self, ops: &mut O, stretch: Stretch) -> Result<(), O::Error> {
        if stretch == (Stretch::Backward { write: self.pass.write, cut: true }) {
            for index in 0..self.buckets.len() {
                ops.replay(stretch, index)?;
                self.hand_over(ops, index);
            }
            return Ok(());
        }
        ops.replay(stretch, 0)?;
        if self.pass.last {
            (0..self.buckets.len()).for_each(|index| self.hand_over(ops, index));
        }
        Ok(())
    }

    /// Whether full buckets leave, so that their return may have to be waited for.
    #[must_use]
    pub fn leave(&self) -> bool {
        self.reducer.handing_over() != HandingOver::Nothing
    }

    /// Waits until one more bucket is back, summed over all ranks, or lets the device wait for it; gives its index, or none
    /// once all are back. They come in the order in which they left; `moments` gets those of the exchange.
    ///
    /// # Errors
    /// The exchange failed.
    pub fn next(&mut self, ops: &mut O, moments: &mut Vec<Timed<O>>) -> Result<Option<usize>, ExchangeError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let Some((index, bucket, times)) = self.reducer.next(ops, &self.clock)? else { return Ok(None) };
        self.buckets[index] = Some(bucket);
        moments.extend(times);
        Ok(Some(index))
    }

    /// The same for all buckets.
    ///
    /// # Errors
    /// The exchange failed.
    pub fn finish(&mut self, ops: &mut O, moments: &mut Vec<Timed<O>>) -> Result<(), ExchangeError> {
        while self.next(ops, moments)?.is_some() {}
        Ok(())
    }

    /// Whether ranks need the sums of parts only.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.norms.is_some()
    }

    /// The part of one bucket whose sum this rank has, once [`Gradients::next`] gave its index.
    #[must_use]
    pub fn part(&self, index: usize) -> O::View<'_> {
        let bucket = self.bucket(index);
        O::view(bucket, self.shard.of(O::len(bucket)))
    }

    /// The same, to write, with its elements.
    pub(super) fn part_mut(&mut self, index: usize) -> (usize, O::ViewMut<'_>) {
        let bucket = self.buckets[index].as_mut().expect("gradients are written only after all buckets are back");
        let part = self.shard.of(O::len(bucket));
        (part.len(), O::view_mut(bucket, part))
    }

    /// Fills the other parts of every bucket with what ranks have in theirs.
    ///
    /// # Errors
    /// The exchange failed.
    pub(super) fn gather(&mut self, ops: &mut O) -> Result<(), ExchangeError> {
        for index in 0..self.buckets.len() {
            if let Some(bucket) = self.buckets[index].take() {
                self.reducer.launch(ops, (index, bucket), Collective::AllGather, &self.clock, false)?;
            }
        }
        self.finish(ops, &mut Vec::new())
    }

    /// Replaces the squares of this rank's parts in the totals of the step by those of all parts, where ranks have parts.
    ///
    /// # Errors
    /// The exchange or the device failed.
    pub fn share_squares(&mut self, ops: &mut O) -> Result<(), ShareError<O>> {
        let Some(mut norms) = self.norms.take() else { return Ok(()) };
        ops.put_squares(&mut norms, self.shard.rank).map_err(ShareError::Device)?;
        self.reducer.launch(ops, (0, norms), Collective::AllGather, &self.clock, false)?;
        self.norms = self.reducer.next(ops, &self.clock)?.map(|(_, norms, _)| norms);
        self.norms.as_ref().map_or(Ok(()), |norms| ops.take_squares(norms)).map_err(ShareError::Device)
    }

    /// Sends bucket `index` of `weights`, of which this rank has updated its part, to all ranks, where ranks have parts;
    /// `moments` gets those that the device knows.
    ///
    /// # Errors
    /// The exchange failed.
    pub fn spread(
        &mut self,
        ops: &mut O,
        weights: &mut Weights<O>,
        index: usize,
        moments: &mut Vec<Timed<O>>,
    ) -> Result<(), ExchangeError> {
        if self.is_shared() {
            moments.extend(self.reducer.spread(ops, index, weights, &self.clock, self.pass.timed)?);
        }
        Ok(())
    }

    /// Waits until all buckets of `weights` are back, if they are away.
    ///
    /// # Errors
    /// The exchange failed: weights that were away then are zeros.
    pub fn gathered(
        &mut self,
        ops: &mut O,
        weights: &mut Weights<O>,
        moments: &mut Vec<Timed<O>>,
    ) -> Result<(), ExchangeError> {
        if weights.are_whole() {
            return Ok(());
        }
        let done = loop {
            match self.reducer.next(ops, &self.clock) {
                Ok(Some((index, bucket, times))) => {
                    weights.put(index, bucket);
                    moments.extend(times);
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        weights.replace_lost(ops);
        done
    }

    /// Returns once the device has passed `mark`, which stands behind an exchange.
    ///
    /// # Errors
    /// The exchange failed, was broken off, or did not end within its limit.
    pub fn wait(&mut self, mark: &O::Mark) -> Result<(), ExchangeError> {
        self.reducer.wait(mark)
    }

    /// The gradients of one bucket, after [`Gradients::finish`].
    ///
    /// # Panics
    /// If the bucket has not come back: a bug of the caller.
    #[must_use]
    pub fn bucket(&self, index: usize) -> &O::Buf {
        self.buckets[index].as_ref().expect("gradients are read only after all buckets are back")
    }

    /// The gradient of one parameter, after [`Gradients::finish`].
    #[must_use]
    pub fn view(&self, role: Role) -> O::View<'_> {
        let (bucket, range) = self.places.range(role);
        O::view(self.bucket(bucket), range)
    }
}
