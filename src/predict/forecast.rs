//! A prediction: efficiency with its interval, where the step goes, and hazards by name.

use serde::Serialize;

use crate::model::{BucketLayout, Role, Shape};
use crate::record::Interval;
use crate::units::{Bytes, Seconds, TokensPerSecond};

use super::PredictError;
use super::board::Board;
use super::calibration::Calibration;
use super::hazard::{Hazard, hazards};
use super::ring::{Exchange, Ring, ring};
use super::step::{BucketWork, CONTENTION, Overlap, StepTime, Work};

/// What is trained, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Training {
    /// Sizes of the model.
    pub shape: Shape,
    /// Sequences per rank and micro-step.
    pub batch: usize,
    /// Tokens per sequence.
    pub context: usize,
    /// Micro-steps per optimizer step.
    pub accumulate: usize,
    /// Size at which a bucket is closed.
    pub bucket: Bytes,
    /// The same for the first bucket.
    pub first_bucket: Bytes,
    /// A step of one GPU alone, measured; none: from the catalogue, and the interval is wider.
    pub measured_step: Option<Seconds>,
}

/// Share of its matrix rate that a card reaches in training, and the ends that are believed possible: 0.35 to 0.65 for
/// decoders of this class in bf16 (PaLM, appendix B, and what this repository measured on one H200).
const UTILISATION: [f64; 3] = [0.35, 0.5, 0.65];
/// Bytes that one update of AdamW moves for a parameter: see ARCHITECTURE.md on master weights.
const UPDATE_BYTES: f64 = 26.0;
/// Share of its memory rate that an update reaches.
const UPDATE_SHARE: f64 = 0.8;
/// Gradients are bf16.
const ELEMENT: Bytes = Bytes(2);
/// Both tails of 5 %.
const Z: f64 = 1.645;

/// What a machine should reach with so many GPUs. Intervals are of 90 %.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Forecast {
    /// Ranks over all hosts.
    pub world: usize,
    /// Step alone over step together.
    pub efficiency: Interval,
    /// Where the step goes.
    #[serde(flatten)]
    pub time: StepTime,
    /// The all-reduce.
    pub ring: Ring,
    /// Gradient bytes of one rank.
    pub gradient_bytes: Bytes,
    /// Tokens of all ranks in a second.
    pub rate: TokensPerSecond,
    /// True where the step alone comes from the catalogue.
    pub catalogue: bool,
    /// What cannot be interpolated.
    pub hazards: Vec<Hazard>,
}

/// Predicts training on every GPU of `board`.
///
/// # Errors
/// Several hosts without a network, or a GPU without a path.
pub fn forecast(
    board: &Board,
    training: &Training,
    exchange: &Exchange,
    calibration: &Calibration,
) -> Result<Forecast, PredictError> {
    let ring = ring(board, exchange, calibration)?;
    let step = |ring: &Ring, utilisation: f64, contention: f64| {
        let overlap = Overlap { contention, ..Overlap::default() };
        training.work(board, utilisation).step(ring, &overlap)
    };
    let time = step(&ring, UTILISATION[1], CONTENTION[1]);
    let estimate = time.efficiency();
    let end = |sign: f64, contention: f64, utilisation: f64| {
        let bus = ring.at(ring.bus * (sign * Z * ring.spread).exp());
        let parts = [
            step(&bus, UTILISATION[1], CONTENTION[1]),
            step(&ring, UTILISATION[1], contention),
            step(&ring, utilisation, CONTENTION[1]),
        ];
        let squares = parts.iter().map(|part| (part.efficiency() - estimate).powi(2)).sum::<f64>();
        (squares + (Z * calibration.spread_step).powi(2)).sqrt()
    };
    let efficiency = match ring.ranks {
        ..2 => Interval { estimate, low: estimate, high: estimate },
        _ => Interval {
            estimate,
            low: (estimate - end(-1.0, CONTENTION[2], UTILISATION[2])).max(0.0),
            high: (estimate + end(1.0, CONTENTION[0], UTILISATION[0])).min(1.0),
        },
    };
    let tokens = (ring.ranks * training.batch * training.context * training.accumulate) as f64;
    Ok(Forecast {
        world: ring.ranks,
        efficiency,
        rate: TokensPerSecond(tokens / time.step.0),
        gradient_bytes: training.work(board, UTILISATION[1]).bytes(),
        catalogue: training.measured_step.is_none(),
        hazards: hazards(board, exchange, &ring),
        time,
        ring,
    })
}

impl Training {
    /// What a rank computes on the slowest card of `board`.
    fn work(&self, board: &Board, utilisation: f64) -> Work {
        let parameters = self.shape.parameters();
        let count = self.shape.parameter_count() as f64;
        let tokens = (self.batch * self.context) as f64;
        let flops = self.shape.flops_per_token(self.context) * tokens;
        let slowest = |rate: fn(&super::Card) -> f64| {
            board.seats.iter().map(|seat| rate(&seat.card)).fold(f64::INFINITY, f64::min)
        };
        let optimizer = count * UPDATE_BYTES / (slowest(|card| card.memory_rate.0) * UPDATE_SHARE);
        let passes = match self.measured_step {
            Some(step) => ((step.0 - optimizer) / self.accumulate as f64).max(step.0 * 0.5 / self.accumulate as f64),
            None => flops / (slowest(|card| card.bf16.0) * utilisation),
        };
        let optimizer = self.measured_step.map_or(optimizer, |step| step.0 - passes * self.accumulate as f64);
        let layout = BucketLayout::new(&parameters, self.first_bucket, self.bucket, ELEMENT);
        // the backward pass runs the parameters in reverse; each takes time as its matrix is large
        let weight = |index: usize| match parameters[index].role {
            Role::Embedding => 0.0,
            _ => parameters[index].elements() as f64,
        };
        let whole: f64 = (0..parameters.len()).map(weight).sum();
        let mut done = 0.0;
        let buckets = layout.buckets.iter().map(|bucket| {
            done += bucket.parameters.iter().map(|index| weight(*index)).sum::<f64>();
            BucketWork { bytes: Bytes(bucket.elements as u64 * ELEMENT.0), ready: done / whole }
        });
        Work {
            buckets: buckets.collect(),
            forward: Seconds(passes / 3.0),
            backward: Seconds(passes * 2.0 / 3.0),
            optimizer: Seconds(optimizer),
            accumulate: self.accumulate,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::preset;
    use crate::predict::{P2p, card, platform};

    fn training() -> Training {
        Training {
            shape: preset("llama-1b").unwrap().shape,
            batch: 4,
            context: 2048,
            accumulate: 1,
            bucket: Bytes::mebi(25.0),
            first_bucket: Bytes::mebi(1.0),
            measured_step: None,
        }
    }

    fn on(name: &str, count: usize, training: &Training, exchange: &Exchange) -> Forecast {
        let board = platform(name).unwrap().with_gpus(count).unwrap();
        forecast(&board, training, exchange, &Calibration::default()).unwrap()
    }

    #[test]
    fn parts_of_a_step_sum_to_it_and_the_estimate_lies_in_its_interval() {
        for name in crate::predict::platform_names() {
            for count in 1..=platform(name).unwrap().seats.len() {
                let it = on(name, count, &training(), &Exchange::default());
                let sum = it.time.alone + it.time.exposed + it.time.slowdown + it.time.straggler;
                assert!((sum.0 - it.time.step.0).abs() < 1e-9, "{name} {count}");
                let Interval { estimate, low, high } = it.efficiency;
                assert!(0.0 <= low && low <= estimate && estimate <= high && high <= 1.0, "{name} {count}");
                assert!(it.gradient_bytes.0 == 2 * training().shape.parameter_count());
            }
        }
    }

    #[test]
    fn what_helps_on_paper_helps_here() {
        let base = on("asrock-romed8-2t", 4, &training(), &Exchange::default());
        let peers = Exchange { p2p: P2p::On, ..Exchange::default() };
        assert!(base.efficiency.estimate < on("asrock-romed8-2t", 4, &training(), &peers).efficiency.estimate);
        let four = Training { accumulate: 4, ..training() };
        let diluted = on("asrock-romed8-2t", 4, &four, &Exchange::default());
        assert!(base.efficiency.estimate < diluted.efficiency.estimate && base.time.alone < diluted.time.alone);
        let measured = Training { measured_step: Some(Seconds(0.6)), ..training() };
        let measured = on("asrock-romed8-2t", 4, &measured, &Exchange::default());
        assert!(!measured.catalogue && (measured.time.alone.0 - 0.6).abs() < 1e-9);
    }

    #[test]
    fn a_slow_card_among_fast_ones_sets_the_pace() {
        let mut board = platform("asrock-romed8-2t").unwrap().with_gpus(2).unwrap();
        let alone = |board: &Board| {
            forecast(board, &training(), &Exchange::default(), &Calibration::default()).unwrap().time.alone
        };
        let fast = alone(&board);
        board.seats[1].card = card("rtx-3070").unwrap().clone();
        assert!(fast < alone(&board));
    }
}
