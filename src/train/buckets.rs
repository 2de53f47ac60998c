//! Weights and gradients, a flat buffer for each bucket.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::device::Clock;
use crate::model::{BucketLayout, Parameter, Place, Role};
use crate::record::TrainConfig;

use super::error::ExchangeError;
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
    /// A buffer for each bucket.
    pub buckets: Vec<O::Buf>,
}

impl<O: Ops> Weights<O> {
    /// Zeros.
    ///
    /// # Errors
    /// The device has no memory left.
    pub fn zeros(ops: &mut O, places: &Arc<Places>) -> Result<Self, O::Error> {
        let buckets =
            places.lengths().into_iter().map(|len| ops.zeros(len, Kind::Working)).collect::<Result<_, _>>()?;
        Ok(Self { places: Arc::clone(places), buckets })
    }

    /// The places of the parameters.
    #[must_use]
    pub fn places(&self) -> &Arc<Places> {
        &self.places
    }

    /// One parameter, to read.
    #[must_use]
    pub fn view(&self, role: Role) -> O::View<'_> {
        let (bucket, range) = self.places.range(role);
        O::view(&self.buckets[bucket], range)
    }

    /// One parameter, to write.
    pub fn view_mut(&mut self, role: Role) -> O::ViewMut<'_> {
        let (bucket, range) = self.places.range(role);
        O::view_mut(&mut self.buckets[bucket], range)
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
    /// Why a bucket could not be handed over.
    failed: Option<ExchangeError>,
}

impl<O: Ops> Gradients<O> {
    /// Gradients in `buckets`, which have the lengths of `places`, exchanged by `reducer`.
    #[must_use]
    pub fn new(places: &Arc<Places>, buckets: Vec<O::Buf>, reducer: Reducer<O>) -> Self {
        Self {
            places: Arc::clone(places),
            missing: vec![0; buckets.len()],
            buckets: buckets.into_iter().map(Some).collect(),
            pass: Pass { write: Write::Overwrite, last: true, timed: false },
            clock: Clock::starting_now(),
            reducer,
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
        if let Some(bucket) = self.buckets[index].take()
            && let Err(error) = self.reducer.launch(ops, index, bucket, &self.clock, self.pass.timed)
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
        ops.replay(stretch, 0)
    }

    /// Waits until all buckets are back, summed over all ranks, or lets the device wait; `moments` gets those of each
    /// exchange.
    ///
    /// # Errors
    /// The exchange failed.
    pub fn finish(&mut self, ops: &mut O, moments: &mut Vec<Timed<O>>) -> Result<(), ExchangeError> {
        moments.clear();
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let buckets = &mut self.buckets;
        self.reducer.finish(ops, &self.clock, |index, bucket, times| {
            buckets[index] = Some(bucket);
            moments.extend(times);
        })
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
