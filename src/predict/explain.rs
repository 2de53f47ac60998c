//! Why a run was slower or faster than predicted: the gap, cause by cause, with what no cause explains named.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::record::{Arm, Bucket, Point, RankFile, RunFiles};
use crate::stats::median;
use crate::topology::shares_of;
use crate::units::{BytesPerSecond, Seconds};

use super::PredictError;
use super::board::Board;
use super::calibration::Calibration;
use super::forecast::{Forecast, Training, forecast};
use super::nccl::Transport;
use super::ring::{Exchange, P2p, Ring};
use super::solo::Solo;
use super::step::{Overlap, Work};

/// The most that a bucket may take of the speed of compute beside it.
const CONTENTION_MAX: f64 = 0.98;

/// At most this share of the time of reductions is latency: the rest moves bytes.
const LATENCY_SHARE_MAX: f64 = 0.9;

/// Why steps differ. The order is that in which measured values replace predicted ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// A GPU alone is slower or faster than predicted.
    Compute,
    /// All GPUs at once slow each other: power, heat, clocks, host.
    Silicon,
    /// Waiting for the slowest rank.
    Stragglers,
    /// Data go through host memory where peers were predicted, or the other way round.
    Staging,
    /// The bus is slower or faster than predicted for this transport.
    Bandwidth,
    /// A reduction takes longer before its first byte.
    Latency,
    /// Compute beside a reduction is slowed more or less than predicted.
    Contention,
    /// What none of these explains.
    Unexplained,
}

/// A step, and what it makes of the efficiency.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Side {
    /// Step of a card of mean rate alone.
    pub ideal_s: Seconds,
    /// Step with gradients exchanged.
    pub step_s: Seconds,
    /// `ideal_s` over `step_s`.
    pub efficiency: f64,
}

impl Cause {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Compute => "compute",
            Self::Silicon => "silicon",
            Self::Stragglers => "stragglers",
            Self::Staging => "staging",
            Self::Bandwidth => "bandwidth",
            Self::Latency => "latency",
            Self::Contention => "contention",
            Self::Unexplained => "unexplained",
        }
    }
}

impl Side {
    fn of(ideal_s: Seconds, step_s: Seconds) -> Self {
        Self { ideal_s, step_s, efficiency: ideal_s / step_s }
    }
}

/// What one cause adds to the predicted step, and to the efficiency.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Part {
    /// The cause.
    pub cause: Cause,
    /// By how much it makes the step longer; negative: shorter.
    pub step_s: Seconds,
    /// By how much it changes the efficiency, 0.01 to the point.
    pub efficiency: f64,
    /// What was predicted and what was measured, in words; or why that is not known.
    pub what: String,
}

/// One world size explained.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    /// Ranks.
    pub world: usize,
    /// As predicted.
    pub predicted: Side,
    /// As measured.
    pub measured: Side,
    /// Every cause, in order. Their sum is the measured side less the predicted one.
    pub parts: Vec<Part>,
}

/// What the model is told at some point between prediction and measurement.
#[derive(Clone)]
struct State {
    work: Work,
    ring: Ring,
    overlap: Overlap,
    ideal: Seconds,
    silicon: Seconds,
    stragglers: Seconds,
    /// Slow-down of the optimizer.
    optimizer: Seconds,
}

impl State {
    fn side(&self) -> Side {
        let scale = (self.ideal + self.silicon) / self.ideal;
        let work =
            Work { forward: self.work.forward * scale, backward: self.work.backward * scale, ..self.work.clone() };
        let time = work.step(&self.ring, &self.overlap);
        let waits = time.exposed + time.slowdown + self.optimizer;
        Side::of(self.ideal, self.ideal + self.silicon + self.stragglers + waits)
    }

    fn slowdown(&self, contention: f64) -> Seconds {
        self.work.step(&self.ring, &Overlap { contention, ..self.overlap }).slowdown
    }
}

/// Reductions of one size.
struct Reduction {
    count: f64,
    bytes: f64,
    /// Median, in seconds.
    time: f64,
}

/// What a run says of one world size.
struct Measured<'a> {
    point: &'a Point,
    solo: Solo,
    accumulate: usize,
    /// Steps, as the rates of the sheet give them: alone, all at once, and with a free exchange.
    ideal: Seconds,
    together: Seconds,
    free: Seconds,
    /// Whether gradients went through host memory; none where the run does not say.
    staged: Option<bool>,
    /// Reductions by size; empty without bucket events.
    reductions: Vec<Reduction>,
}

/// Explains each world size of a run that exchanged gradients, on the machine that `board` is said to be.
///
/// The causes telescope: each replaces one predicted value by the measured one and is charged with what the model's step
/// changes, so that the order above is part of the answer.
///
/// # Errors
/// The run exchanged nothing, no rank ran alone, or the board has too few slots.
pub fn explain(
    board: &Board,
    (training, exchange, calibration): (&Training, &Exchange, &Calibration),
    files: &RunFiles,
    points: &[Point],
) -> Result<Vec<Explanation>, PredictError> {
    let solo = Solo::of(files)?;
    let hosts = exchange.hosts.max(1);
    modelled(files)?;
    let mut explained = Vec::new();
    for point in points.iter().filter(|point| 1 < point.world) {
        let board = seated(board, files, point.world, hosts)?;
        let predicted = forecast(&board, training, exchange, calibration)?;
        let measured = Measured::of(files, point, solo);
        let other = measured.other_transport(&predicted.ring).map(|p2p| Exchange { p2p, ..*exchange });
        let instead = match other {
            Some(other) => Some(forecast(&board, training, &other, calibration)?.ring),
            None => None,
        };
        explained.push(measured.explain(&predicted, training.framework.overlap(), instead));
    }
    if explained.is_empty() {
        let problem = "no world size of at least 2 ranks was run with all its arms".to_owned();
        return Err(PredictError::Run { run: files.name.clone(), problem });
    }
    Ok(explained)
}

/// What the model does not hold is refused.
fn modelled(files: &RunFiles) -> Result<(), PredictError> {
    let config = &files.plan.config;
    let not = |problem: &str| PredictError::NotModelled { run: files.name.clone(), problem: problem.to_owned() };
    if 0 < config.zero {
        return Err(not(
            "it shares the optimizer's state (--zero 1): sums are scattered and weights gathered, and the \
                        model knows all-reduces only; run it with --zero 0",
        ));
    }
    Ok(())
}

/// The board with the GPUs that a world of the run used: those at the run's addresses; on a board that does not know them,
/// the places that a launcher gives to a world of that size.
fn seated(board: &Board, files: &RunFiles, world: usize, hosts: usize) -> Result<Board, PredictError> {
    let own = files.plan.shares.len() / hosts;
    let largest = if own <= board.seats.len() { own } else { world / hosts };
    let too_many = |slots| PredictError::TooMany { asked: largest.max(1), board: board.name.clone(), slots };
    let used = shares_of(world / hosts, largest.max(world / hosts));
    let names: Option<Vec<&str>> =
        used.iter().map(|share| files.plan.shares.get(*share).and_then(|share| share.gpu.as_deref())).collect();
    let known = names.and_then(|names| board.seats_in(&names).ok()).filter(|seats| seats.len() == used.len());
    match known {
        Some(seats) => Ok(board.with_seats(&seats)),
        None => Ok(board.with_gpus(largest.max(1)).map_err(too_many)?.with_seats(&used)),
    }
}

impl<'a> Measured<'a> {
    fn of(files: &RunFiles, point: &'a Point, solo: Solo) -> Self {
        let tokens = point.step_s.0 * point.ddp_rate.0;
        let ddp: Vec<&BTreeMap<usize, RankFile>> = files
            .trials
            .values()
            .filter(|ranks| ranks.len() == point.world && ranks.values().all(|file| file.head.arm == Arm::Ddp))
            .collect();
        Self {
            point,
            solo,
            accumulate: files.plan.config.accumulate,
            ideal: Seconds(tokens / point.solo_rate.0),
            together: Seconds(tokens / point.together_rate.0),
            free: Seconds(tokens / point.free_rate.0),
            staged: staged(&ddp),
            reductions: reductions(&ddp, files.plan.heating_steps),
        }
    }

    /// The setting that makes the model take the transport that was measured, where it takes another.
    fn other_transport(&self, ring: &Ring) -> Option<P2p> {
        match (self.staged?, ring.has(Transport::Staged)) {
            (true, false) => Some(P2p::Off),
            (false, true) => Some(P2p::On),
            _ => None,
        }
    }

    fn explain(&self, forecast: &Forecast, overlap: Overlap, instead: Option<Ring>) -> Explanation {
        let predicted = Side::of(forecast.ideal, forecast.time.step);
        let measured = Side::of(self.ideal, self.point.step_s);
        let mut state = State {
            work: forecast.work.clone(),
            ring: forecast.ring.clone(),
            overlap: Overlap { straggle: 0.0, ..overlap },
            ideal: forecast.ideal,
            silicon: Seconds(0.0),
            stragglers: forecast.time.straggler + forecast.time.alone - forecast.ideal,
            optimizer: Seconds(0.0),
        };
        let mut telescope = Telescope { at: predicted, parts: Vec::new() };
        self.replace_compute(&mut state, &mut telescope, forecast);
        self.replace_exchange(&mut state, &mut telescope, instead);
        telescope.rest(measured);
        Explanation { world: self.point.world, predicted, measured, parts: telescope.parts }
    }

    /// What ranks do without exchange.
    fn replace_compute(&self, state: &mut State, telescope: &mut Telescope, forecast: &Forecast) {
        let micro_steps = self.accumulate as f64;
        // the phases of the run, at the rate of the shares that took part
        let scale = self.ideal / self.solo.step(self.accumulate);
        let waits = state.stragglers * (self.ideal / state.ideal);
        state.work.forward = self.solo.forward * scale;
        state.work.backward = self.solo.backward * scale;
        state.work.optimizer = self.ideal - (state.work.forward + state.work.backward) * micro_steps;
        (state.ideal, state.stragglers) = (self.ideal, waits);
        let from = if forecast.catalogue { "the catalogue" } else { "--step" };
        let what = format!("a card alone: {} by {from}, {} measured", forecast.ideal, self.ideal);
        telescope.reach(Cause::Compute, state, what);
        state.silicon = self.together - self.ideal;
        let what = format!("all cards at once: {} predicted, {} measured", state.ideal, self.together);
        telescope.reach(Cause::Silicon, state, what);
        let late = self.free - self.together;
        let what = format!("waiting for the slowest: {} predicted, {late} measured", state.stragglers);
        state.stragglers = late;
        telescope.reach(Cause::Stragglers, state, what);
    }

    /// What exchange does.
    fn replace_exchange(&self, state: &mut State, telescope: &mut Telescope, instead: Option<Ring>) {
        let way = |staged: bool| if staged { "host memory" } else { "peers" };
        let predicted = way(state.ring.has(Transport::Staged));
        let what = match self.staged {
            Some(staged) => format!("gradients go by {predicted} as predicted, by {} as measured", way(staged)),
            None => format!("gradients go by {predicted} as predicted; the run does not say"),
        };
        state.ring = instead.unwrap_or_else(|| state.ring.clone());
        telescope.reach(Cause::Staging, state, what);
        let (own, travel) = (state.ring.clone(), self.travel(&state.ring));
        state.ring.bus = travel.map_or(own.bus, |(bus, _)| bus);
        let unknown = "the run holds no bucket events";
        let what = match travel {
            Some((bus, _)) => format!("bus bandwidth: {} predicted for this transport, {bus} measured", own.bus),
            None => unknown.to_owned(),
        };
        telescope.reach(Cause::Bandwidth, state, what);
        state.ring.latency = travel.map_or(own.latency, |(_, latency)| latency);
        let what = match travel {
            Some(_) if self.reductions.len() < 2 => "buckets of one size do not tell latency from bandwidth".to_owned(),
            Some((_, latency)) => format!("a reduction without a byte: {} predicted, {latency} measured", own.latency),
            None => unknown.to_owned(),
        };
        telescope.reach(Cause::Latency, state, what);
        let loss = &self.point.loss;
        let before = state.slowdown(state.overlap.contention);
        state.overlap.contention = contention(state, loss.slowdown_s);
        state.optimizer = loss.optimizer_s;
        let measured = loss.slowdown_s + loss.optimizer_s;
        let what = format!("compute beside buckets is slower by {before} as predicted, by {measured} as measured");
        telescope.reach(Cause::Contention, state, what);
    }

    /// Bus bandwidth and latency with which the buckets took as long as they did.
    fn travel(&self, ring: &Ring) -> Option<(BytesPerSecond, Seconds)> {
        let effective = self.point.bus_bandwidth?;
        let all = &self.reductions;
        let count: f64 = all.iter().map(|row| row.count).sum();
        let mean = |of: fn(&Reduction) -> f64| all.iter().map(|row| of(row) * row.count).sum::<f64>() / count;
        let (bytes, time) = (mean(|row| row.bytes), mean(|row| row.time));
        let spread: f64 = all.iter().map(|row| (row.bytes - bytes).powi(2) * row.count).sum();
        let joint: f64 = all.iter().map(|row| (row.bytes - bytes) * (row.time - time) * row.count).sum();
        let moved = bytes * ring.factor();
        // one size alone says nothing of latency
        let latency = if self.reductions.len() < 2 { ring.latency.0 } else { time - bytes * joint / spread };
        let most = moved / effective.0 * LATENCY_SHARE_MAX;
        let latency = latency.clamp(0.0, most);
        // bytes over bus, and latency, are the time that the sheet's bandwidth says
        Some((BytesPerSecond(moved / (moved / effective.0 - latency)), Seconds(latency)))
    }
}

/// The contention with which compute is slowed as much as measured.
fn contention(state: &State, slowdown: Seconds) -> f64 {
    let (mut low, mut high) = (0.0, CONTENTION_MAX);
    for _ in 0..50 {
        let middle = f64::midpoint(low, high);
        if state.slowdown(middle) < slowdown { low = middle } else { high = middle }
    }
    f64::midpoint(low, high)
}

/// The step on its way from predicted to measured.
struct Telescope {
    at: Side,
    parts: Vec<Part>,
}

impl Telescope {
    fn reach(&mut self, cause: Cause, state: &State, what: String) {
        self.move_to(cause, state.side(), what);
    }

    fn move_to(&mut self, cause: Cause, to: Side, what: String) {
        let (step_s, efficiency) = (to.step_s - self.at.step_s, to.efficiency - self.at.efficiency);
        self.parts.push(Part { cause, step_s, efficiency, what });
        self.at = to;
    }

    /// What is left up to the measured step.
    fn rest(&mut self, measured: Side) {
        let (at, run) = (self.at.step_s, measured.step_s);
        let what = format!("the model with every measured value above makes a step of {at}, the run one of {run}");
        self.move_to(Cause::Unexplained, measured, what);
    }
}

/// Whether any rank sent through host memory, in the words of NCCL's log.
fn staged(ddp: &[&BTreeMap<usize, RankFile>]) -> Option<bool> {
    let heads = ddp.iter().flat_map(|ranks| ranks.values()).filter_map(|file| file.head.transport.as_ref());
    let ways: Vec<&str> = heads.flat_map(|transport| transport.via.values()).map(String::as_str).collect();
    (!ways.is_empty()).then(|| ways.iter().any(|way| way.starts_with("SHM")))
}

/// The reductions of each size. One lasts from when the last rank brings its bucket to when the last has
/// the sum.
fn reductions(ddp: &[&BTreeMap<usize, RankFile>], heating: usize) -> Vec<Reduction> {
    let mut times: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for ranks in ddp {
        let mut spans: BTreeMap<(usize, usize), (u64, f64, f64)> = BTreeMap::new();
        for bucket in ranks.values().flat_map(|file| &file.buckets).filter(|bucket| heating <= bucket.step) {
            let Bucket { step, index, bytes, start_s, end_s, .. } = bucket;
            let span = spans.entry((*step, *index)).or_insert((bytes.0, f64::NEG_INFINITY, f64::NEG_INFINITY));
            (span.1, span.2) = (span.1.max(start_s.0), span.2.max(end_s.0));
        }
        for (bytes, start, end) in spans.into_values() {
            times.entry(bytes).or_default().push(end - start);
        }
    }
    let of = |(bytes, times): (u64, Vec<f64>)| Reduction {
        count: times.len() as f64,
        bytes: bytes as f64,
        time: median(&times),
    };
    times.into_iter().map(of).collect()
}
