//! Sums gradient buckets over ranks on a thread of its own, while the backward pass goes on.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use crate::comm::{CommError, Communicator};
use crate::device::{Clock, Floats};
use crate::record;
use crate::units::{Bytes, Seconds};

use super::error::{ExchangeError, TrainError};

/// Takes gradient buckets as they fill and gives them back summed over all ranks.
///
/// A bucket is owned by one side at a time: it moves to the thread of the communicator and back.
#[derive(Debug)]
pub struct Reducer<B = Floats> {
    world: usize,
    route: Route<B>,
    away: usize,
}

#[derive(Debug)]
enum Route<B> {
    /// Gradients stay as they are.
    Local(Vec<(usize, B)>),
    Threaded(Exchange<B>),
}

/// The thread that owns the communicator, and the two queues that lead to it and back. Neither grows beyond the
/// number of buckets.
#[derive(Debug)]
struct Exchange<B> {
    /// None only while the reducer is dropped.
    jobs: Option<Sender<Job<B>>>,
    results: Receiver<Result<Reduced<B>, CommError>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Job<B> {
    index: usize,
    bucket: B,
    ready_s: Seconds,
    clock: Clock,
}

/// A bucket that came back.
#[derive(Debug)]
struct Reduced<B> {
    index: usize,
    bucket: B,
    moments: Moments,
}

/// When a bucket was full, and when its reduction began and ended, since the epoch of the step's clock.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moments {
    /// The bucket.
    pub index: usize,
    /// Its last gradient was written.
    pub ready_s: Seconds,
    /// Its reduction began.
    pub start_s: Seconds,
    /// Its reduction ended.
    pub end_s: Seconds,
}

impl Moments {
    /// The line for the rank file of a bucket of `bytes` in `step`.
    #[must_use]
    pub fn record(&self, step: usize, bytes: Bytes) -> record::Bucket {
        let Self { index, ready_s, start_s, end_s } = *self;
        record::Bucket { step, index, bytes, ready_s, start_s, end_s }
    }
}

impl<B: Send + 'static> Reducer<B> {
    /// No exchange: a rank alone, or ranks together that do not talk.
    #[must_use]
    pub fn none() -> Self {
        Self { world: 1, route: Route::Local(Vec::new()), away: 0 }
    }

    /// Exchanges through `communicator`, which moves to a thread of its own.
    ///
    /// # Errors
    /// The system refused to start the thread.
    pub fn threaded(communicator: impl Communicator<Buf = B> + 'static) -> Result<Self, TrainError> {
        let world = communicator.world();
        let (jobs, inbox) = channel();
        let (outbox, results) = channel();
        let thread = thread::Builder::new()
            .name("reduce".into())
            .spawn(move || exchange(communicator, &inbox, &outbox))
            .map_err(|source| TrainError::ReducerStart { source })?;
        let exchange = Exchange { jobs: Some(jobs), results, thread: Some(thread) };
        Ok(Self { world, route: Route::Threaded(exchange), away: 0 })
    }

    /// Ranks over which gradients are summed.
    #[must_use]
    pub fn world(&self) -> usize {
        self.world
    }

    /// True where buckets stay with this rank.
    #[must_use]
    pub fn is_local(&self) -> bool {
        matches!(self.route, Route::Local(_))
    }

    /// Takes bucket `index`, whose last gradient has been written. The same order on every rank.
    pub(super) fn launch(&mut self, index: usize, bucket: B, clock: &Clock) {
        self.away += 1;
        match &mut self.route {
            Route::Local(kept) => kept.push((index, bucket)),
            Route::Threaded(exchange) => {
                let job = Job { index, bucket, ready_s: clock.now(), clock: *clock };
                // if the thread has ended, `finish` says so: it waits for one more result than will come
                let _ended = exchange.jobs.as_ref().map(|jobs| jobs.send(job));
            }
        }
    }

    /// Waits until every bucket is back and gives each to `put`, with its moments where there was an exchange.
    ///
    /// # Errors
    /// The communicator failed, or its thread is gone. Buckets that are not back then are lost.
    pub(super) fn finish(
        &mut self,
        clock: &Clock,
        mut put: impl FnMut(usize, B, Option<Moments>),
    ) -> Result<(), ExchangeError> {
        let begin = clock.now();
        let away = std::mem::take(&mut self.away);
        match &mut self.route {
            Route::Local(kept) => kept.drain(..).for_each(|(index, bucket)| put(index, bucket, None)),
            Route::Threaded(exchange) => {
                for _ in 0..away {
                    let reduced = exchange.results.recv();
                    let Reduced { index, bucket, moments } =
                        reduced.map_err(|_| ExchangeError::Ended { after: clock.now() - begin })??;
                    put(index, bucket, Some(moments));
                }
            }
        }
        Ok(())
    }
}

/// The life of the thread: reduces what comes until the reducer is dropped or the communicator fails. Its limits are
/// those of the communicator.
fn exchange<C: Communicator>(
    mut communicator: C,
    inbox: &Receiver<Job<C::Buf>>,
    outbox: &Sender<Result<Reduced<C::Buf>, CommError>>,
) {
    for Job { index, mut bucket, ready_s, clock } in inbox {
        let start_s = clock.now();
        let summed = communicator.all_reduce_sum(&mut [&mut bucket]).and_then(|()| communicator.wait());
        let moments = Moments { index, ready_s, start_s, end_s: clock.now() };
        let failed = summed.is_err();
        let unheard = outbox.send(summed.map(|()| Reduced { index, bucket, moments })).is_err();
        if failed || unheard {
            return;
        }
    }
}

impl<B> Drop for Exchange<B> {
    /// Ends the thread; waits no longer than the communicator's own limit for a reduction that is under way.
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}
