//! Conditions that a reader must know before trusting the numbers.

use std::collections::{BTreeMap, BTreeSet};

use crate::record::{Arm, EndReason, Flag, Point, RankFile, RunFiles};

use super::agreement;
use super::gather::{Gathered, Ran, STEPS_FEW};
use super::sample::{Cell, Sample};
use super::telemetry::Telemetry;

/// The code that says that ranks disagree about the parameters: a fault.
pub(super) const NOT_SYNCHRONISED: &str = "not-synchronised";

/// More than the sum of the parts: something is wrong with the measurement.
const SUPERLINEAR: f64 = 1.03;

/// What communication may leave unexplained, as a share of the step.
const REMAINDER_MAX: f64 = 0.02;

/// The bootstrap disagrees if its interval is so many times as wide as Student's.
const BOOTSTRAP_WIDER: f64 = 2.0;

/// Differences between intervals below this do not matter to anyone.
const BOOTSTRAP_APART: f64 = 0.001;

/// Norms of one sum of gradients differ by the order in which cards of different size add, far below this.
const NORM_APART: f64 = 1e-9;

/// Every flag but those about lost trials.
pub(super) fn flags(
    files: &RunFiles,
    gathered: &Gathered<'_>,
    cells: &[Cell<'_>],
    points: &[Point],
    telemetry: &Telemetry<'_>,
) -> Vec<Flag> {
    let graded: BTreeSet<&str> = cells
        .iter()
        .filter(|cell| cell.world > 1)
        .flat_map(|cell| &cell.samples)
        .flat_map(Sample::trials)
        .map(|ran| ran.trial.name.as_str())
        .collect();
    let mut flags = not_synchronised(files);
    flags.extend(about_trials(&gathered.ran, &graded));
    flags.extend(telemetry.flags(&graded));
    flags.extend(agreement::host(files, &graded));
    flags.extend(agreement::evidence(files));
    flags.extend(agreement::training(files));
    flags.extend(agreement::plan(&files.plan));
    flags.extend(points.iter().flat_map(about_point));
    flags
}

pub(super) fn flag(code: &str, blocks: bool, text: String) -> Flag {
    Flag { code: code.into(), blocks, text }
}

/// The first of several, and how many more there are.
pub(super) fn and_more(first: &str, count: usize) -> String {
    if count > 1 { format!("{first} and {} more", count - 1) } else { first.into() }
}

pub(super) fn rank_files(files: &RunFiles) -> impl Iterator<Item = (&str, usize, &RankFile)> {
    files.trials.iter().flat_map(|(trial, ranks)| ranks.iter().map(move |(rank, file)| (trial.as_str(), *rank, file)))
}

/// Ranks of a ddp trial that held different parameters after some step or at the end, or saw different sums of gradients
/// in some step, did not train one model.
fn not_synchronised(files: &RunFiles) -> Vec<Flag> {
    let ddp = files.plan.trials.iter().filter(|trial| trial.arm == Arm::Ddp);
    let ran: Vec<(&str, &BTreeMap<usize, RankFile>)> =
        ddp.filter_map(|trial| Some((trial.name.as_str(), files.trials.get(&trial.name)?))).collect();
    let parameters = ran.iter().filter(|(_, ranks)| ended_apart(ranks)).map(|(trial, _)| *trial).collect::<Vec<_>>();
    let steps = |apart: fn(&BTreeMap<usize, RankFile>) -> Option<usize>| -> Vec<(&str, usize)> {
        ran.iter().filter_map(|(trial, ranks)| Some((*trial, apart(ranks)?))).collect()
    };
    let mut flags = Vec::new();
    if let Some(first) = parameters.first() {
        let text = format!("the ranks of {} ended with different parameters", and_more(first, parameters.len()));
        flags.push(flag(NOT_SYNCHRONISED, true, text));
    }
    let by_step = [
        (steps(summed_apart), "summed different gradients, first at step"),
        (steps(held_apart), "held different parameters, first seen after step"),
    ];
    for (apart, what) in by_step {
        if let Some((trial, step)) = apart.first() {
            let text = format!("the ranks of {} {what} {step}", and_more(trial, apart.len()));
            flags.push(flag(NOT_SYNCHRONISED, true, text));
        }
    }
    flags
}

/// Ranks that were interrupted may have ended in the middle of a sum: they say nothing.
fn ended_apart(ranks: &BTreeMap<usize, RankFile>) -> bool {
    let ends = ranks.values().filter_map(|file| file.end.as_ref());
    let completed = ends.filter(|end| end.reason == EndReason::Completed);
    completed.filter_map(|end| end.parameters_sha256.as_deref()).collect::<BTreeSet<_>>().len() > 1
}

/// The first step after which ranks had gradients of different norms: each takes it of the same sum.
fn summed_apart(ranks: &BTreeMap<usize, RankFile>) -> Option<usize> {
    let (_, first) = ranks.first_key_value()?;
    let norms = |file: &RankFile| file.steps.iter().map(|step| step.grad_norm).collect::<Vec<_>>();
    let wanted = norms(first);
    let apart = |file: &RankFile| {
        norms(file).iter().zip(&wanted).position(|(one, other)| (one - other).abs() > NORM_APART * other.abs())
    };
    ranks.values().filter_map(apart).min()
}

/// The first step after which ranks that took a checksum of their parameters took different ones.
fn held_apart(ranks: &BTreeMap<usize, RankFile>) -> Option<usize> {
    let mut first: BTreeMap<usize, &str> = BTreeMap::new();
    let steps = ranks.values().flat_map(|file| &file.steps);
    let taken = steps.filter_map(|step| Some((step.index, step.checksum.as_deref()?)));
    taken.filter(|(step, checksum)| *first.entry(*step).or_insert(checksum) != *checksum).map(|(step, _)| step).min()
}

fn about_trials(ran: &[Ran<'_>], graded: &BTreeSet<&str>) -> Vec<Flag> {
    let mut flags = Vec::new();
    let mut about = |code: &str, may_block: bool, says: &str, is: &dyn Fn(&Ran<'_>) -> bool| {
        let trials: Vec<&str> = ran.iter().filter(|ran| is(ran)).map(|ran| ran.trial.name.as_str()).collect();
        if let Some(first) = trials.first() {
            let blocks = may_block && trials.iter().any(|trial| graded.contains(trial));
            flags.push(flag(code, blocks, format!("{}: {says}", and_more(first, trials.len()))));
        }
    };
    let is_short = |ran: &Ran<'_>| ran.aligned.len() < STEPS_FEW;
    about("unsettled", true, "the step time never became steady", &|ran| !ran.settled && !is_short(ran));
    let few = format!(
        "fewer than {STEPS_FEW} steps count, too few to tell whether they are steady; a longer --budget gives more"
    );
    about("short-run", true, &few, &is_short);
    about("loss-not-finite", true, "the loss became infinite or undefined", &|ran| {
        ran.files
            .iter()
            .any(|file| file.steps.iter().any(|step| !(step.loss.is_finite() && step.grad_norm.is_finite())))
    });
    flags
}

fn about_point(point: &Point) -> Vec<Flag> {
    let mut flags = Vec::new();
    let world = point.world;
    let efficiency = point.efficiency;
    if efficiency.estimate > SUPERLINEAR {
        let text = format!("the efficiency at N = {world} is {:.3}, above {SUPERLINEAR}", efficiency.estimate);
        flags.push(flag("superlinear", point.graded, text));
    }
    let share = point.loss.remainder_share;
    if share.abs() > REMAINDER_MAX {
        let text = format!(
            "at N = {world} communication leaves {:.1} % of the step ({}) unexplained",
            share * 100.0,
            point.loss.remainder_s
        );
        flags.push(flag("remainder", false, text));
    }
    let bootstrap = point.bootstrap;
    let (wide, usual) = (bootstrap.high - bootstrap.low, efficiency.high - efficiency.low);
    let apart = (efficiency.low - bootstrap.high).max(bootstrap.low - efficiency.high) > BOOTSTRAP_APART;
    if efficiency.is_known() && (apart || wide > BOOTSTRAP_WIDER * usual + BOOTSTRAP_APART) {
        let text = format!(
            "at N = {world} the bootstrap says {:.3} to {:.3}, Student's t {:.3} to {:.3}: steps vary more than launches show",
            bootstrap.low, bootstrap.high, efficiency.low, efficiency.high
        );
        flags.push(flag("bootstrap-disagrees", false, text));
    }
    flags
}
