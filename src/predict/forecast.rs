//! A prediction: efficiency with its interval, where the step goes, and hazards by name.

use serde::Serialize;

use crate::model::{BucketLayout, MemoryDemand, MemoryPlan, Role, Shape};
use crate::record::{Interval, Precision};
use crate::units::{Bytes, Seconds, TokensPerSecond};

use super::PredictError;
use super::board::Board;
use super::calibration::Calibration;
use super::card::Card;
use super::hazard::{Hazard, hazards};
use super::ring::{Exchange, Ring, ring};
use super::solo::Solo;
use super::step::{BucketWork, Framework, Overlap, StepTime, Work};

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
    /// Arithmetic, and so the size of a gradient.
    pub precision: Precision,
    /// What is known of the step of one GPU alone.
    pub alone: Alone,
    /// Who trains.
    pub framework: Framework,
    /// What gradients are summed in, where it is not what they are kept in.
    pub reduced: Option<Precision>,
    /// Whether blocks are computed again in the backward pass.
    pub recompute: bool,
}

/// What is known of the step of one GPU alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Alone {
    /// Nothing but its data sheet: the interval is wide.
    Catalogue,
    /// How long it takes; its phases are assumed.
    Step(Seconds),
    /// Its phases, from a run.
    Phases(Solo),
}

/// Share of its matrix rate that a card reaches in training, and the ends that are believed possible: 0.35 to 0.65 for
/// decoders of this class in bf16 (PaLM, appendix B, and what this repository measured on one H200).
const UTILISATION: [f64; 3] = [0.35, 0.5, 0.65];
/// Bytes that one update of AdamW moves for a parameter: see ARCHITECTURE.md on master weights.
const UPDATE_BYTES: f64 = 26.0;
/// Share of its memory rate that an update reaches.
const UPDATE_SHARE: f64 = 0.8;
/// An efficiency is above this, so that a step has an end.
const LEAST: f64 = 1e-3;
/// Both tails of 5 %.
const Z: f64 = 1.645;

/// What a machine should reach with so many GPUs. Intervals are of 90 %.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Forecast {
    /// Ranks over all hosts.
    pub world: usize,
    /// Mean rate of a card together over its mean rate alone.
    pub efficiency: Interval,
    /// Step of a card of mean rate alone: that of every card, where all are equal.
    #[serde(rename = "ideal_s")]
    pub ideal: Seconds,
    /// Where the step goes.
    #[serde(flatten)]
    pub time: StepTime,
    /// The all-reduce.
    pub ring: Ring,
    /// Gradient bytes of one rank.
    pub gradient_bytes: Bytes,
    /// Tokens of all ranks in a second.
    #[serde(rename = "tokens_per_s")]
    pub rate: TokensPerSecond,
    /// The same, with its 90 % interval.
    pub tokens_per_s_interval: Interval,
    /// 90 % interval of the step, in seconds.
    pub step_s_interval: Interval,
    /// 90 % interval of the bus bandwidth, in bytes per second; none for one GPU.
    pub bus_interval: Option<Interval>,
    /// True where the step alone comes from the catalogue.
    pub catalogue: bool,
    /// What cannot be interpolated.
    pub hazards: Vec<Hazard>,
    /// What each rank computes and hands over.
    #[serde(skip)]
    pub work: Work,
    /// Step of each GPU of a host alone.
    #[serde(skip)]
    pub solo: Vec<Seconds>,
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
    let outlooks = UTILISATION.map(|utilisation| {
        let (work, solo) = (training.work(board, utilisation), training.solo(board, utilisation));
        let rates: f64 = solo.iter().map(|step| solo[0] / *step).sum();
        (work, solo[0] * (solo.len() as f64 / rates), solo)
    });
    let efficiency =
        efficiency(&outlooks.each_ref().map(|(work, ideal, _)| (work, *ideal)), &ring, training.framework, calibration);
    let steps = outlooks.each_ref().map(|(_, ideal, _)| *ideal);
    let [_, (work, ideal, solo), _] = outlooks;
    let time = work.step(&ring, &training.framework.overlap());
    let away = (Z * ring.spread).exp();
    let bus = ring.bus.0;
    let bus_interval = (1 < ring.ranks).then(|| Interval { estimate: bus, low: bus / away, high: bus * away });
    // what is alone uncertain and what is of the exchange: the ends of both
    let (longest, shortest) = (steps[0], steps[2]);
    let step_s_interval = Interval {
        estimate: time.step.0,
        low: shortest.0 / efficiency.high.max(efficiency.estimate),
        high: longest.0 / efficiency.low.max(LEAST),
    };
    let tokens = (ring.ranks * training.batch * training.context * training.accumulate) as f64;
    Ok(Forecast {
        world: ring.ranks,
        efficiency,
        ideal,
        rate: TokensPerSecond(tokens / time.step.0),
        tokens_per_s_interval: Interval {
            estimate: tokens / time.step.0,
            low: tokens / step_s_interval.high,
            high: tokens / step_s_interval.low,
        },
        step_s_interval,
        bus_interval,
        gradient_bytes: work.bytes(),
        catalogue: training.alone == Alone::Catalogue,
        hazards: hazards(board, exchange, &ring, training.memory()),
        time,
        ring,
        work,
        solo,
    })
}

/// Efficiency with its 90 % interval. `steps` are what a rank computes, and the step of a card of mean rate alone: at the
/// longest step that is believed possible, the most likely, the shortest. Where the step was measured all three are the
/// same. Doubts of the bus bandwidth, of contention, of the step and of the model are independent, so their squares add.
#[must_use]
pub fn efficiency(
    steps: &[(&Work, Seconds); 3],
    ring: &Ring,
    framework: Framework,
    calibration: &Calibration,
) -> Interval {
    let [slow, usual, fast] = *steps;
    let overlap = framework.overlap();
    let of = |(work, ideal): (&Work, Seconds), ring: &Ring, contention: f64| {
        ideal / work.step(ring, &Overlap { contention, ..overlap }).step
    };
    let estimate = of(usual, ring, overlap.contention);
    if ring.ranks < 2 {
        return Interval { estimate, low: estimate, high: estimate };
    }
    let [least, _, most] = framework.contention();
    let away = |sign: f64, contention: f64, step: (&Work, Seconds)| {
        let bus = ring.at(ring.bus * (sign * Z * ring.spread).exp());
        let ends =
            [of(usual, &bus, overlap.contention), of(usual, ring, contention), of(step, ring, overlap.contention)];
        let squares: f64 = ends.iter().map(|end| (end - estimate).powi(2)).sum();
        (squares + (Z * calibration.spread_step).powi(2)).sqrt()
    };
    Interval {
        estimate,
        low: (estimate - away(-1.0, most, fast)).max(0.0),
        high: (estimate + away(1.0, least, slow)).min(1.0),
    }
}

/// Phases of a measured step of one card, where only its length is known: one update of AdamW, and a backward pass that
/// takes twice as long as the forward pass.
#[must_use]
pub fn phases(step: Seconds, parameters: u64, card: &Card, accumulate: usize) -> Solo {
    let micro_steps = accumulate as f64;
    let passes = ((step - update(parameters, card)).0 / micro_steps).max(step.0 * 0.5 / micro_steps);
    split(Seconds(passes), step - Seconds(passes * micro_steps))
}

fn split(passes: Seconds, optimizer: Seconds) -> Solo {
    Solo { forward: passes / 3.0, backward: passes * (2.0 / 3.0), optimizer }
}

/// One update of AdamW.
fn update(parameters: u64, card: &Card) -> Seconds {
    Seconds(parameters as f64 * UPDATE_BYTES / (card.memory_rate.0 * UPDATE_SHARE))
}

impl Training {
    /// What a rank computes on the slowest card of `board`.
    fn work(&self, board: &Board, utilisation: f64) -> Work {
        let phases = board.seats.iter().map(|seat| self.phases(&seat.card, utilisation));
        let longest = |one: &Solo, other: &Solo| one.step(self.accumulate).0.total_cmp(&other.step(self.accumulate).0);
        let Solo { forward, backward, optimizer } = phases.max_by(longest).unwrap_or_default();
        Work { forward, backward, optimizer, accumulate: self.accumulate, buckets: self.buckets() }
    }

    /// Step of each card of `board` alone.
    fn solo(&self, board: &Board, utilisation: f64) -> Vec<Seconds> {
        board.seats.iter().map(|seat| self.phases(&seat.card, utilisation).step(self.accumulate)).collect()
    }

    /// The step of one card alone.
    fn phases(&self, card: &Card, utilisation: f64) -> Solo {
        let parameters = self.shape.parameter_count();
        match self.alone {
            Alone::Phases(solo) => solo,
            Alone::Step(step) => phases(step, parameters, card, self.accumulate),
            Alone::Catalogue => {
                let tokens = (self.batch * self.context) as f64;
                // a forward pass is a third of all, and recomputation runs it again
                let again = if self.recompute { 4.0 / 3.0 } else { 1.0 };
                let passes = self.shape.flops_per_token(self.context) * tokens * again / (card.bf16.0 * utilisation);
                split(Seconds(passes), update(parameters, card))
            }
        }
    }

    /// What a rank takes of its GPU's memory, trained by rigscale in bf16; none where the model does not know.
    fn memory(&self) -> Option<Bytes> {
        let demand = MemoryDemand {
            batch: self.batch,
            context: self.context,
            recompute: self.recompute,
            widens: self.reduced.is_some_and(|reduced| self.precision.element_bytes() < reduced.element_bytes()),
            sharers: 1,
        };
        let known = self.precision == Precision::Bf16 && self.framework == Framework::Rigscale;
        known.then(|| MemoryPlan::on_cuda(&self.shape, demand).total_bytes)
    }

    /// The buckets. The backward pass runs the parameters in reverse; each takes time as its matrix is large.
    #[must_use]
    pub fn buckets(&self) -> Vec<BucketWork> {
        let (parameters, element) = (self.shape.parameters(), self.precision.element_bytes());
        let sent = self.reduced.unwrap_or(self.precision).element_bytes();
        let layout = BucketLayout::new(&parameters, self.first_bucket, self.bucket, element);
        let weight = |index: usize| match parameters[index].role {
            Role::Embedding => 0.0,
            _ => parameters[index].elements() as f64,
        };
        let whole: f64 = (0..parameters.len()).map(weight).sum();
        let mut done = 0.0;
        let buckets = layout.buckets.iter().map(|bucket| {
            done += bucket.parameters.iter().map(|index| weight(*index)).sum::<f64>();
            BucketWork { bytes: Bytes(bucket.elements as u64 * sent.0), ready: done / whole }
        });
        buckets.collect()
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
            precision: Precision::Bf16,
            alone: Alone::Catalogue,
            framework: Framework::Rigscale,
            reduced: None,
            recompute: false,
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
                for Interval { estimate, low, high } in [it.step_s_interval, it.tokens_per_s_interval] {
                    assert!(
                        0.0 < low && low <= estimate && estimate <= high,
                        "{name} {count}: {low} {estimate} {high}"
                    );
                }
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
        let measured = Training { alone: Alone::Step(base.time.alone), ..training() };
        let measured = on("asrock-romed8-2t", 4, &measured, &Exchange::default());
        assert!(!measured.catalogue && (measured.time.alone / base.time.alone - 1.0).abs() < 1e-9);
        let width = |it: &Forecast| it.efficiency.high - it.efficiency.low;
        assert!(width(&measured) < width(&base), "a measured step narrows the interval");
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
        let mixed = forecast(&board, &training(), &Exchange::default(), &Calibration::default()).unwrap();
        assert!(mixed.ideal < mixed.time.alone && mixed.efficiency.estimate < mixed.time.efficiency());
    }
}
