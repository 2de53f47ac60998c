//! What several tests of this room share: a tiny configuration and ranks that are threads.

use std::sync::{Arc, Barrier, Mutex};

use crate::comm::{CommError, Communicator};
use crate::device::{Clock, Floats};
use crate::model::Shape;
use crate::record::{DataSource, Precision, TrainConfig};
use crate::units::Bytes;

use super::{DataShare, Reducer, StepRecord, Trainer, gradient_bucket_lengths};

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
        bucket_events_every: 2,
    }
}

/// A trainer without exchange on one thread.
pub(super) fn alone(config: &TrainConfig) -> Trainer {
    trainer(config, DataShare { rank: 0, world: 1 }, 1, Reducer::none())
}

/// A trainer whose gradient buckets begin as NaN.
pub(super) fn trainer(config: &TrainConfig, share: DataShare, threads: usize, reducer: Reducer) -> Trainer {
    let poisoned = |len| {
        let mut floats = Floats::zeros(len);
        floats.fill(f32::NAN);
        floats
    };
    let buckets = gradient_bucket_lengths(config).unwrap().into_iter().map(poisoned).collect();
    Trainer::new(config, share, threads, reducer, buckets).unwrap()
}

/// Steps until `config.steps` are done.
pub(super) fn run(trainer: &mut Trainer, config: &TrainConfig) -> Vec<StepRecord> {
    let clock = Clock::starting_now();
    (0..config.steps).map(|_| trainer.step(&clock).unwrap()).collect()
}

/// Ranks of one training as threads of one process; sums in the order of ranks.
#[derive(Debug, Clone)]
pub(super) struct Threads {
    rank: usize,
    world: usize,
    shared: Arc<Shared>,
    /// The reduction, from 0, at which this rank pretends that its peer died.
    pub(super) fails_at: Option<usize>,
    done: usize,
}

#[derive(Debug)]
struct Shared {
    contributions: Mutex<Vec<Vec<f32>>>,
    barrier: Barrier,
}

impl Threads {
    /// The communicators of `world` ranks.
    pub(super) fn ranks(world: usize) -> Vec<Self> {
        let shared =
            Arc::new(Shared { contributions: Mutex::new(vec![Vec::new(); world]), barrier: Barrier::new(world) });
        (0..world).map(|rank| Self { rank, world, shared: Arc::clone(&shared), fails_at: None, done: 0 }).collect()
    }
}

impl Communicator for Threads {
    type Buf = Floats;

    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.world
    }

    fn all_reduce_sum(&mut self, buffers: &mut [&mut Floats]) -> Result<(), CommError> {
        if self.fails_at == Some(self.done) {
            return Err(CommError::PeerDied { rank: self.rank, peer: (self.rank + 1) % self.world });
        }
        self.done += 1;
        for buffer in buffers {
            self.shared.contributions.lock().unwrap()[self.rank] = buffer.to_vec();
            self.shared.barrier.wait();
            {
                let contributions = self.shared.contributions.lock().unwrap();
                for (index, sum) in buffer.iter_mut().enumerate() {
                    *sum = contributions.iter().map(|rank| rank[index]).sum();
                }
            }
            self.shared.barrier.wait();
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<(), CommError> {
        Ok(())
    }

    fn barrier(&mut self) -> Result<(), CommError> {
        self.shared.barrier.wait();
        Ok(())
    }
}
