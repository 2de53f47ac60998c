//! What several tests of this room share: a tiny configuration and ranks that are threads.

use crate::comm::{CommError, Communicator, Shm};
use crate::device::{Clock, Floats};
use crate::model::Shape;
use crate::record::{DataSource, Precision, TrainConfig};
use crate::units::{Bytes, Seconds};

use super::{DataShare, Reducer, StepRecord, Trainer, exchanged_lengths};

/// The one tolerance rule: `|a − b| <= abs + rel · |b|`, named in the message when it does not hold.
#[track_caller]
pub(super) fn close(what: &str, a: f64, b: f64, abs: f64, rel: f64) {
    assert!((a - b).abs() <= abs + rel * b.abs(), "{what}: {a} is not {b} within {abs} + {rel} relative");
}

/// A model that trains in milliseconds: two query heads share a key and value head, odd sizes, several buckets.
pub(super) fn tiny() -> TrainConfig {
    TrainConfig {
        model: "test".into(),
        shape: Shape { layers: 2, width: 24, heads: 4, kv_heads: 2, ffn: 19, vocabulary: 53 },
        batch: 2,
        context: 13,
        accumulate: 1,
        recompute: false,
        deterministic: false,
        steps: 10,
        precision: Precision::F32,
        data: DataSource::Synthetic,
        seed: 7,
        learning_rate: 3e-3,
        weight_decay: 0.1,
        clip_norm: Some(1.0),
        bucket_bytes: Bytes(6000),
        first_bucket_bytes: Bytes(1000),
        reduce_dtype: None,
        zero: 0,
        bucket_events_every: 2,
        checksum_every: 2,
    }
}

/// A trainer without exchange on one thread.
pub(super) fn alone(config: &TrainConfig) -> Trainer {
    trainer(config, DataShare { rank: 0, world: 1 }, 1, Reducer::none())
}

/// A trainer whose gradient buckets begin as NaN.
pub(super) fn trainer(config: &TrainConfig, share: DataShare, threads: usize, reducer: Reducer) -> Trainer {
    let mut buckets: Vec<Floats> = exchanged_lengths(config, 1).unwrap().into_iter().map(Floats::zeros).collect();
    buckets.iter_mut().for_each(|bucket| bucket.fill(f32::NAN));
    Trainer::new(config, share, threads, reducer, buckets).unwrap()
}

/// Runs `role` as each of `world` ranks, in threads of this process that sum in shared memory; what each gave.
pub(super) fn ranks<T: Send>(config: &TrainConfig, world: usize, role: impl Fn(usize, Trainer) -> T + Sync) -> Vec<T> {
    let lengths = exchanged_lengths(config, world).unwrap();
    let memory = Shm::create(world, &lengths).unwrap();
    let rank = |rank| {
        let (shm, mut buckets) = Shm::join(memory.raw_fd(), rank, world, &lengths, Seconds(60.0)).unwrap();
        buckets.iter_mut().for_each(|bucket| bucket.fill(f32::NAN));
        let reducer = Reducer::threaded(shm).unwrap();
        role(rank, Trainer::new(config, DataShare { rank, world }, 1, reducer, buckets).unwrap())
    };
    let rank = &rank;
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..world).map(|number| scope.spawn(move || rank(number))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// Steps until `config.steps` are done.
pub(super) fn run(trainer: &mut Trainer, config: &TrainConfig) -> Vec<StepRecord> {
    let clock = Clock::starting_now();
    (0..config.steps).map(|_| trainer.step(&clock).unwrap()).collect()
}

/// A rank alone whose peer is said to have died at sum number `fails_at`, from 0.
#[derive(Debug)]
pub(super) struct Failing {
    pub(super) fails_at: usize,
}

impl Communicator for Failing {
    type Buf = Floats;

    fn rank(&self) -> usize {
        0
    }

    fn world(&self) -> usize {
        1
    }

    fn all_reduce_sum(&mut self, _buffers: &mut [&mut Floats]) -> Result<(), CommError> {
        let left = self.fails_at.checked_sub(1);
        self.fails_at = left.ok_or(CommError::PeerDied { rank: 0, peer: 0 })?;
        Ok(())
    }

    fn reduce_scatter_sum(&mut self, buffers: &mut [&mut Floats]) -> Result<(), CommError> {
        self.all_reduce_sum(buffers)
    }

    fn all_gather(&mut self, buffers: &mut [&mut Floats]) -> Result<(), CommError> {
        self.all_reduce_sum(buffers)
    }

    fn wait(&mut self) -> Result<(), CommError> {
        Ok(())
    }

    fn barrier(&mut self) -> Result<(), CommError> {
        Ok(())
    }
}
