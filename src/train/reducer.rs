//! Exchanges buckets between ranks while the device computes: on a thread of its own, or in the order of the device's own
//! work.

use std::collections::VecDeque;
use std::fmt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use crate::comm::{CommError, Communicator, Shard};
use crate::device::Clock;
use crate::record::{self, Collective, TrainConfig};
use crate::units::{Bytes, Seconds};

use super::buckets::Weights;
use super::cpu::Cpu;
use super::error::{ExchangeError, TrainError};
use super::ops::Ops;

/// Takes buckets as they fill and gives them back exchanged with all ranks.
///
/// A bucket is owned by one side at a time: it moves to the thread of the communicator and back.
#[derive(Debug)]
pub struct Reducer<O: Ops = Cpu> {
    /// This rank among those that exchange.
    place: Shard,
    route: Route<O>,
}

/// A bucket whose exchange a device was asked for.
#[derive(Debug)]
struct Away<O: Ops> {
    index: usize,
    bucket: O::Buf,
    /// Where its exchange ends.
    end: O::Mark,
    times: Option<Timed<O>>,
}

/// A bucket that came back, and when it was where, if there was an exchange.
type Back<O> = (usize, <O as Ops>::Buf, Option<Timed<O>>);

#[derive(Debug)]
enum Route<O: Ops> {
    /// Gradients stay as they are.
    Local(VecDeque<(usize, O::Buf)>),
    Threaded(Exchange<O::Buf>),
    Queued {
        queue: O::Queue,
        away: VecDeque<Away<O>>,
    },
}

/// Where on a device a bucket was ready, where its exchange began, and where it ended.
pub(super) type Marks<O> = [<O as Ops>::Mark; 3];

/// An exchange that a device does in the order of its own work, so that nobody on the host waits for it.
pub trait Queue<O: Ops + ?Sized>: fmt::Debug {
    /// This rank among those that exchange.
    fn place(&self) -> Shard;

    /// Exchanges `bucket` with all ranks, after what the device was asked for so far and beside what it is asked for next.
    /// If `timed`, marks where the bucket was ready and where its exchange began.
    ///
    /// # Errors
    /// The exchange failed or was broken off.
    fn exchange(
        &mut self,
        ops: &mut O,
        bucket: &mut O::Buf,
        collective: Collective,
        timed: bool,
    ) -> Result<Asked<O>, ExchangeError>;

    /// What the device is asked for from here on waits for the exchange that ends at `end`.
    ///
    /// # Errors
    /// The device failed.
    fn follow(&mut self, ops: &mut O, end: &O::Mark) -> Result<(), ExchangeError>;

    /// Returns once the device has passed `mark`; does not wait forever for ranks that are gone.
    ///
    /// # Errors
    /// The exchange failed, was broken off, or did not end within its limit; it is ended then.
    fn wait(&mut self, mark: &O::Mark) -> Result<(), ExchangeError>;
}

/// An exchange that a device was asked for.
#[derive(Debug)]
pub struct Asked<O: Ops + ?Sized> {
    /// Where the bucket was ready, and where the exchange began, if that was wanted.
    pub(super) begin: Option<[O::Mark; 2]>,
    /// Where it ends.
    pub(super) end: O::Mark,
}

impl<O: Ops> Asked<O> {
    fn timed(self, index: usize, collective: Collective) -> Option<Timed<O>> {
        let [ready, start] = self.begin?;
        Some(Timed::Device(index, collective, [ready, start, self.end]))
    }
}

/// The thread that owns the communicator, and the two queues that lead to it and back. Neither grows beyond the
/// number of buckets.
#[derive(Debug)]
struct Exchange<B> {
    /// None only while the reducer is dropped.
    jobs: Option<Sender<Job<B>>>,
    results: Receiver<Result<Reduced<B>, CommError>>,
    thread: Option<JoinHandle<()>>,
    /// Buckets that are with it.
    away: usize,
}

#[derive(Debug)]
struct Job<B> {
    index: usize,
    bucket: B,
    collective: Collective,
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

/// When a bucket was full, and when its exchange began and ended, since the epoch of the step's clock.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moments {
    /// The bucket.
    pub index: usize,
    /// Its last gradient or weight was written.
    pub ready_s: Seconds,
    /// Its exchange began.
    pub start_s: Seconds,
    /// Its exchange ended.
    pub end_s: Seconds,
    /// What was done with it.
    pub collective: Collective,
}

impl Moments {
    /// The line for the rank file of a bucket of `bytes` in `step`.
    #[must_use]
    pub fn record(&self, step: usize, bytes: Bytes) -> record::Bucket {
        let Self { index, ready_s, start_s, end_s, collective } = *self;
        record::Bucket { step, index, bytes, ready_s, start_s, end_s, collective }
    }
}

/// The same on whichever clock knows it.
#[derive(Debug)]
pub enum Timed<O: Ops> {
    /// The host's.
    Host(Moments),
    /// The device's: the bucket, what was done with it, and where it was ready, began and ended.
    Device(usize, Collective, Marks<O>),
}

impl<O: Ops> Reducer<O> {
    /// No exchange: a rank alone, or ranks together that do not talk.
    #[must_use]
    pub fn none() -> Self {
        Self { place: Shard::WHOLE, route: Route::Local(VecDeque::new()) }
    }

    /// Exchanges through `communicator`, which moves to a thread of its own.
    ///
    /// # Errors
    /// The system refused to start the thread.
    pub fn threaded(communicator: impl Communicator<Buf = O::Buf> + Send + 'static) -> Result<Self, TrainError> {
        let place = Shard { rank: communicator.rank(), world: communicator.world() };
        let (jobs, inbox) = channel();
        let (outbox, results) = channel();
        let thread = thread::Builder::new()
            .name("reduce".into())
            .spawn(move || exchange(communicator, &inbox, &outbox))
            .map_err(|source| TrainError::ReducerStart { source })?;
        let exchange = Exchange { jobs: Some(jobs), results, thread: Some(thread), away: 0 };
        Ok(Self { place, route: Route::Threaded(exchange) })
    }

    /// Exchanges in the order of the device's work.
    #[must_use]
    pub fn queued(queue: O::Queue) -> Self {
        Self { place: queue.place(), route: Route::Queued { queue, away: VecDeque::new() } }
    }

    /// Ranks over which gradients are summed.
    #[must_use]
    pub fn world(&self) -> usize {
        self.place.world
    }

    /// The part of every bucket whose optimizer's state this rank keeps.
    #[must_use]
    pub fn shard(&self, config: &TrainConfig) -> Shard {
        if config.shares_state(self.place.world) { self.place } else { Shard::WHOLE }
    }

    /// What handing a bucket over means for the order of the device's work.
    #[must_use]
    pub(super) fn handing_over(&self) -> HandingOver {
        match self.route {
            Route::Local(_) => HandingOver::Nothing,
            Route::Threaded(_) => HandingOver::Waits,
            Route::Queued { .. } => HandingOver::Cuts,
        }
    }

    /// Takes bucket `index`, whose last element has been written. The same order on every rank.
    ///
    /// # Errors
    /// The exchange failed or was broken off; the bucket is lost then.
    pub(super) fn launch(
        &mut self,
        ops: &mut O,
        (index, mut bucket): (usize, O::Buf),
        collective: Collective,
        clock: &Clock,
        timed: bool,
    ) -> Result<(), ExchangeError> {
        match &mut self.route {
            Route::Local(kept) => kept.push_back((index, bucket)),
            Route::Queued { queue, away } => {
                let asked = queue.exchange(ops, &mut bucket, collective, timed)?;
                let end = asked.end.clone();
                away.push_back(Away { index, bucket, end, times: asked.timed(index, collective) });
            }
            Route::Threaded(exchange) => {
                exchange.away += 1;
                let job = Job { index, bucket, collective, ready_s: clock.now(), clock: *clock };
                // if the thread has ended, `next` says so: it waits for one more result than will come
                let _ended = exchange.jobs.as_ref().map(|jobs| jobs.send(job));
            }
        }
        Ok(())
    }

    /// Gathers bucket `index` of the weights, of which this rank has updated its part: where the exchange is queued, it is
    /// noted there where it arrives; else the bucket is away until [`Reducer::next`].
    ///
    /// # Errors
    /// The exchange failed or was broken off.
    pub(super) fn spread(
        &mut self,
        ops: &mut O,
        index: usize,
        weights: &mut Weights<O>,
        clock: &Clock,
        timed: bool,
    ) -> Result<Option<Timed<O>>, ExchangeError> {
        if let Route::Queued { queue, .. } = &mut self.route {
            let asked = queue.exchange(ops, weights.bucket_mut(index), Collective::AllGather, timed)?;
            weights.arrives(index, asked.end.clone());
            return Ok(asked.timed(index, Collective::AllGather));
        }
        let bucket = weights.take(index);
        self.launch(ops, (index, bucket), Collective::AllGather, clock, timed)?;
        Ok(None)
    }

    /// Waits until the bucket that left first is back, and gives it, with its moments where there was an exchange; none once
    /// none is away. Where the exchange is queued, the device waits, not the caller.
    ///
    /// # Errors
    /// The communicator failed, or its thread is gone. Buckets that are not back then are lost.
    pub(super) fn next(&mut self, ops: &mut O, clock: &Clock) -> Result<Option<Back<O>>, ExchangeError> {
        match &mut self.route {
            Route::Local(kept) => Ok(kept.pop_front().map(|(index, bucket)| (index, bucket, None))),
            Route::Queued { queue, away } => {
                let Some(Away { index, bucket, end, times }) = away.pop_front() else { return Ok(None) };
                queue.follow(ops, &end)?;
                Ok(Some((index, bucket, times)))
            }
            Route::Threaded(exchange) => {
                if exchange.away == 0 {
                    return Ok(None);
                }
                exchange.away -= 1;
                let begin = clock.now();
                let reduced = exchange.results.recv();
                let Reduced { index, bucket, moments } =
                    reduced.map_err(|_| ExchangeError::Ended { after: clock.now() - begin })??;
                Ok(Some((index, bucket, Some(Timed::Host(moments)))))
            }
        }
    }

    /// Returns once the device has passed `mark`, which stands behind an exchange.
    ///
    /// # Errors
    /// The exchange failed, was broken off, or did not end within its limit.
    pub(super) fn wait(&mut self, mark: &O::Mark) -> Result<(), ExchangeError> {
        match &mut self.route {
            // the device alone knows when, and nothing on it waits for other ranks
            Route::Local(_) | Route::Threaded(_) => Ok(()),
            Route::Queued { queue, .. } => queue.wait(mark),
        }
    }
}

/// What handing a bucket over means for the order of the device's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HandingOver {
    /// Buckets stay: the backward pass is one stretch.
    Nothing,
    /// The host hands over what the device has finished.
    Waits,
    /// The device does the exchange between two pieces of the backward pass.
    Cuts,
}

/// The life of the thread: exchanges what comes until the reducer is dropped or the communicator fails. Its limits are
/// those of the communicator.
fn exchange<C: Communicator>(
    mut communicator: C,
    inbox: &Receiver<Job<C::Buf>>,
    outbox: &Sender<Result<Reduced<C::Buf>, CommError>>,
) {
    for Job { index, mut bucket, collective, ready_s, clock } in inbox {
        let start_s = clock.now();
        let asked = match collective {
            Collective::AllReduce => communicator.all_reduce_sum(&mut [&mut bucket]),
            Collective::ReduceScatter => communicator.reduce_scatter_sum(&mut [&mut bucket]),
            Collective::AllGather => communicator.all_gather(&mut [&mut bucket]),
        };
        let done = asked.and_then(|()| communicator.wait());
        let moments = Moments { index, ready_s, start_s, end_s: clock.now(), collective };
        let failed = done.is_err();
        let unheard = outbox.send(done.map(|()| Reduced { index, bucket, moments })).is_err();
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
