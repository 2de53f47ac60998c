//! Everything about one world size, from its launches.

use std::collections::BTreeMap;

use crate::record::{Arm, CommLoss, Distribution, Interval, Origin, Phases, Plan, Point, Step};
use crate::stats::{LogRatios, Resampler, Sorted, hierarchical, mean};
use crate::units::{Bytes, Seconds, TokensPerSecond};

use super::sample::{Cell, LastRank, Sample, last_rank, work};
use super::{Level, Ran, events};

/// Bins of a distribution of step times.
const BINS: usize = 40;

/// The point of a cell that has at least one launch. Rates are geometric means over launches, as efficiencies are, so
/// that their quotients on the sheet are the efficiencies on the sheet. Power comes from elsewhere, see
/// [`Telemetry::complete`](super::telemetry::Telemetry::complete).
pub(super) fn point<'a>(plan: &Plan, cell: &Cell<'a>, gradeable: bool, level: Level) -> Point {
    let samples = &cell.samples;
    let over = |of: fn(&Sample<'a>) -> f64| interval(&ratios(samples, of), level.confidence);
    let rate = |of: fn(&Sample<'a>) -> f64| TokensPerSecond(ratios(samples, of).estimate());
    let (free_rate, ddp_rate) = (rate(|sample| sample.free_rate), rate(|sample| sample.ddp_rate));
    let tokens = work(samples[0].ddp);
    let step_s = Seconds(tokens / ddp_rate.0);
    let efficiency = over(Sample::efficiency);
    Point {
        world: cell.world,
        graded: gradeable && cell.world > 1,
        efficiency,
        bootstrap: bootstrap(samples, efficiency.estimate, level),
        silicon: over(Sample::silicon),
        straggler: over(Sample::straggler),
        jitter: over(|sample| sample.jitter),
        comm: over(Sample::comm),
        loss: loss(samples, step_s, Seconds(tokens / free_rate.0)),
        solo_rate: rate(|sample| sample.solo_rate),
        together_rate: rate(|sample| sample.together_rate),
        free_rate,
        ddp_rate,
        samples_per_s: ddp_rate.0 / plan.config.context.max(1) as f64,
        step_s,
        overlap: events::overlap(cell),
        bus_bandwidth: events::bus_bandwidth(cell),
        peak_memory_bytes: peak_memory(samples),
        global_batch_tokens: tokens.round() as u64,
        final_loss: final_loss(samples),
        gpu_power_w: None,
        tokens_per_joule: None,
        launches: samples.iter().map(Sample::launch_point).collect(),
        phases: by_arm(samples, phases),
        distribution: by_arm(samples, distribution),
    }
}

/// The logarithms of one number of each launch.
pub(super) fn ratios<'a>(samples: &[Sample<'a>], of: impl Fn(&Sample<'a>) -> f64) -> LogRatios {
    LogRatios::of(&samples.iter().map(of).collect::<Vec<_>>())
}

fn interval(ratios: &LogRatios, confidence: f64) -> Interval {
    let (low, high) = ratios.interval(confidence).unwrap_or((0.0, f64::MAX));
    Interval { estimate: ratios.estimate(), low, high: high.min(f64::MAX) }
}

/// The interval of a bootstrap over launches and, inside each, over blocks of steps.
fn bootstrap(samples: &[Sample<'_>], estimate: f64, level: Level) -> Interval {
    let launches: Vec<(Vec<_>, Vec<Vec<_>>)> = samples
        .iter()
        .map(|sample| (step_blocks(sample.ddp), sample.solo.iter().map(|ran| step_blocks(ran)).collect()))
        .collect();
    let mut resampler = Resampler::new(level.seed);
    let (low, high) =
        hierarchical(launches.len(), level.resamples, level.confidence, &mut resampler, |draw, launch| {
            let (ddp, solo) = &launches[launch];
            let ddp_rate = draw.ratio_of_sums(ddp);
            let solo_rate: f64 = solo.iter().map(|blocks| draw.ratio_of_sums(blocks)).sum();
            (ddp_rate / solo_rate).ln()
        });
    Interval { estimate, low: low.exp(), high: high.exp() }
}

/// Tokens of all ranks and seconds of about √n successive blocks of steps: long enough to hold what correlation there
/// is between neighbours, numerous enough to be drawn from.
fn step_blocks(ran: &Ran<'_>) -> Vec<(f64, f64)> {
    let count = ran.aligned.len();
    let blocks = count.isqrt().clamp(1, 32);
    let at = |block: usize| ran.aligned.start + block * count / blocks;
    let sums = |block: usize| {
        let steps = || ran.files.iter().flat_map(|file| &file.steps[at(block)..at(block + 1)]);
        let tokens: u64 = steps().map(|step| step.tokens.0).sum();
        let seconds: f64 = steps().map(|step| step.step_s.0).sum();
        (tokens as f64, seconds / ran.files.len() as f64)
    };
    (0..blocks).map(sums).collect()
}

/// Where the time between the free step and ddp's goes. Means over launches, weighted as [`weights`] says; the remainder
/// makes the sum exact.
fn loss(samples: &[Sample<'_>], step_s: Seconds, free_step_s: Seconds) -> CommLoss {
    let ddp: Vec<LastRank> = samples.iter().map(|sample| last_rank(sample.ddp)).collect();
    let free: Vec<LastRank> = samples.iter().map(|sample| last_rank(sample.undisturbed())).collect();
    let (of_ddp, of_free) = (weights(samples, |sample| sample.ddp_rate), weights(samples, |sample| sample.free_rate));
    let over = |all: &[LastRank], weights: &[f64], of: fn(&LastRank) -> f64| -> f64 {
        all.iter().zip(weights).map(|(last, weight)| of(last) * weight).sum()
    };
    let exposed_s = Seconds(over(&ddp, &of_ddp, |last| last.exposed_s));
    let slower = |of: fn(&LastRank) -> f64| Seconds(over(&ddp, &of_ddp, of) - over(&free, &of_free, of));
    let (slowdown_s, optimizer_s) = (slower(|last| last.compute_s), slower(|last| last.optimizer_s));
    let total_s = step_s - free_step_s;
    let remainder_s = total_s - exposed_s - slowdown_s - optimizer_s;
    CommLoss { total_s, exposed_s, slowdown_s, optimizer_s, remainder_s, remainder_share: remainder_s / step_s }
}

/// Weights of launches, 1 in sum, with which the arithmetic mean of their steps is the geometric mean that the sheet
/// shows: inversely as the logarithmic mean of each step and the geometric one (Ang, "Decomposition analysis for
/// policymaking in energy", 2004). They are nearly equal where launches are.
fn weights<'a>(samples: &[Sample<'a>], rate: fn(&Sample<'a>) -> f64) -> Vec<f64> {
    let middle = ratios(samples, rate).estimate();
    // the quotient of a difference and of its logarithm, for steps in units of the middle one
    let weight = |sample: &Sample<'a>| {
        let step = middle / rate(sample);
        if (step - 1.0).abs() < 1e-6 { 1.0 } else { step.ln() / (step - 1.0) }
    };
    let all: Vec<f64> = samples.iter().map(weight).collect();
    let sum: f64 = all.iter().sum();
    all.into_iter().map(|weight| weight / sum).collect()
}

fn peak_memory(samples: &[Sample<'_>]) -> Bytes {
    let ends = samples.iter().flat_map(Sample::trials).flat_map(|ran| &ran.files).filter_map(|file| file.end.as_ref());
    ends.map(|end| end.peak_memory_bytes).max().unwrap_or_default()
}

/// Mean over ranks and launches of the last tenth of steps; what is not finite is flagged and left out. None if none
/// is finite, or if nothing was trained.
fn final_loss(samples: &[Sample<'_>]) -> Option<f64> {
    let tail = |steps: &'_ [Step]| steps.len() - steps.len().div_ceil(10);
    let losses: Vec<f64> = samples
        .iter()
        .flat_map(|sample| &sample.ddp.files)
        .filter(|file| file.head.origin != Origin::Simulated)
        .flat_map(|file| &file.steps[tail(&file.steps)..])
        .map(|step| step.loss)
        .filter(|loss| loss.is_finite())
        .collect();
    (!losses.is_empty()).then(|| mean(&losses)).filter(|loss| loss.is_finite())
}

/// One value for each arm that ran, from its counted steps in all launches and on all ranks.
fn by_arm<T>(samples: &[Sample<'_>], of: fn(&[&[Step]]) -> T) -> BTreeMap<Arm, T> {
    let mut steps: BTreeMap<Arm, Vec<&[Step]>> = BTreeMap::new();
    for ran in samples.iter().flat_map(Sample::trials) {
        steps.entry(ran.trial.arm).or_default().extend(ran.ranks().map(|rank| ran.steps(rank)));
    }
    steps.into_iter().map(|(arm, steps)| (arm, of(&steps))).collect()
}

/// The phases of one step and the rest of it.
pub(super) fn phases_of(step: &Step) -> Phases {
    let known_s = step.forward_s + step.backward_s + step.exposed_s + step.optimizer_s;
    Phases {
        forward_s: step.forward_s,
        backward_s: step.backward_s,
        exposed_s: step.exposed_s,
        optimizer_s: step.optimizer_s,
        other_s: step.step_s - known_s,
    }
}

fn phases(stretches: &[&[Step]]) -> Phases {
    let mut sum = Phases::default();
    let mut count = 0.0;
    for step in stretches.iter().copied().flatten() {
        let phases = phases_of(step);
        sum.forward_s += phases.forward_s;
        sum.backward_s += phases.backward_s;
        sum.exposed_s += phases.exposed_s;
        sum.optimizer_s += phases.optimizer_s;
        sum.other_s += phases.other_s;
        count += 1.0;
    }
    Phases {
        forward_s: sum.forward_s / count,
        backward_s: sum.backward_s / count,
        exposed_s: sum.exposed_s / count,
        optimizer_s: sum.optimizer_s / count,
        other_s: sum.other_s / count,
    }
}

fn distribution(stretches: &[&[Step]]) -> Distribution {
    let sorted = Sorted::of(stretches.iter().copied().flatten().map(|step| step.step_s.0).collect());
    Distribution {
        steps: sorted.values().len(),
        quantiles_s: [0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0].map(|share| Seconds(sorted.quantile(share))),
        bins: sorted.histogram(BINS),
    }
}
