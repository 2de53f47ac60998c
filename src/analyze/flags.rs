//! Conditions that a reader must know before trusting the numbers.

use std::collections::{BTreeMap, BTreeSet};

use crate::record::{Arm, Flag, Point, RankFile, RunFiles, RunHead, TrainConfig};

use super::gather::{Gathered, Ran, STEPS_FEW};
use super::sample::{Cell, Sample};

/// The code that says that ranks disagree about the parameters: a fault.
pub(super) const NOT_SYNCHRONISED: &str = "not-synchronised";

/// More than the sum of the parts: something is wrong with the measurement.
const SUPERLINEAR: f64 = 1.03;

/// CPU time taken by a hypervisor beyond this share makes rates meaningless.
const STOLEN_MAX: f64 = 0.02;

/// What communication may leave unexplained, as a share of the step.
const REMAINDER_MAX: f64 = 0.02;

/// The bootstrap disagrees if its interval is so many times as wide as Student's.
const BOOTSTRAP_WIDER: f64 = 2.0;

/// Differences between intervals below this do not matter to anyone.
const BOOTSTRAP_APART: f64 = 0.001;

/// Every flag but those about lost trials.
pub(super) fn flags(files: &RunFiles, gathered: &Gathered<'_>, cells: &[Cell<'_>], points: &[Point]) -> Vec<Flag> {
    let graded: BTreeSet<&str> = cells
        .iter()
        .filter(|cell| cell.world > 1)
        .flat_map(|cell| &cell.samples)
        .flat_map(Sample::trials)
        .map(|ran| ran.trial.name.as_str())
        .collect();
    let mut flags = not_synchronised(files);
    flags.extend(about_trials(&gathered.ran, &graded));
    flags.extend(stolen_time(files, &graded));
    flags.extend(unequal(files));
    flags.extend(points.iter().flat_map(about_point));
    flags
}

fn flag(code: &str, blocks: bool, text: String) -> Flag {
    Flag { code: code.into(), blocks, text }
}

/// The first of several, and how many more there are.
fn and_more(first: &str, count: usize) -> String {
    if count > 1 { format!("{first} and {} more", count - 1) } else { first.into() }
}

fn rank_files(files: &RunFiles) -> impl Iterator<Item = (&str, usize, &RankFile)> {
    files.trials.iter().flat_map(|(trial, ranks)| ranks.iter().map(move |(rank, file)| (trial.as_str(), *rank, file)))
}

/// Ranks of a ddp trial that ended with different parameters did not train one model.
fn not_synchronised(files: &RunFiles) -> Vec<Flag> {
    let ddp = files.plan.trials.iter().filter(|trial| trial.arm == Arm::Ddp);
    let disagree = |ranks: &BTreeMap<usize, RankFile>| {
        let hashes = ranks.values().filter_map(|file| file.end.as_ref()).map(|end| end.parameters_sha256.as_str());
        hashes.collect::<BTreeSet<_>>().len() > 1
    };
    let trials: Vec<&str> = ddp
        .filter(|trial| files.trials.get(&trial.name).is_some_and(disagree))
        .map(|trial| trial.name.as_str())
        .collect();
    let Some(first) = trials.first() else { return Vec::new() };
    let text = format!("the ranks of {} ended with different parameters", and_more(first, trials.len()));
    vec![flag(NOT_SYNCHRONISED, true, text)]
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
    about("unsettled", true, "the step time never became steady", &|ran| !ran.settled);
    let few = format!("fewer than {STEPS_FEW} steps count: a single slow one moves their mean");
    about("short-run", false, &few, &|ran| ran.aligned.len() < STEPS_FEW);
    about("loss-not-finite", true, "the loss became infinite or undefined", &|ran| {
        ran.files
            .iter()
            .any(|file| file.steps.iter().any(|step| !(step.loss.is_finite() && step.grad_norm.is_finite())))
    });
    flags
}

fn stolen_time(files: &RunFiles, graded: &BTreeSet<&str>) -> Option<Flag> {
    let stolen = |file: &RankFile| file.end.as_ref().and_then(|end| end.stolen).unwrap_or(0.0);
    let above: Vec<(&str, f64)> = rank_files(files)
        .map(|(trial, _, file)| (trial, stolen(file)))
        .filter(|(_, stolen)| *stolen > STOLEN_MAX)
        .collect();
    let (trial, most) = above.iter().max_by(|one, other| one.1.total_cmp(&other.1))?;
    let trials = above.iter().map(|(trial, _)| *trial).collect::<BTreeSet<_>>();
    let text = format!(
        "a hypervisor took up to {:.1} % of the CPU time ({trial}; {} of {} trials above {:.0} %)",
        most * 100.0,
        trials.len(),
        files.trials.len(),
        STOLEN_MAX * 100.0,
    );
    Some(flag("stolen-time", trials.iter().any(|trial| graded.contains(trial)), text))
}

/// Ranks must run the same software, the planned training, and the planned shares.
fn unequal(files: &RunFiles) -> Vec<Flag> {
    let mut flags = Vec::new();
    let heads: Vec<_> = rank_files(files).map(|(_, _, file)| &file.head).collect();
    let keys: BTreeSet<&str> = heads.iter().flat_map(|head| head.software.keys().map(String::as_str)).collect();
    for key in keys {
        let values: BTreeSet<&str> =
            heads.iter().map(|head| head.software.get(key).map_or("not named", String::as_str)).collect();
        if values.len() > 1 {
            let list = values.into_iter().collect::<Vec<_>>().join(", ");
            flags.push(flag("unequal-hosts", true, format!("{key} is not the same on all ranks and trials: {list}")));
        }
    }
    let plan = &files.plan;
    let trained = |config: &TrainConfig| {
        (config.shape, config.batch, config.context, config.accumulate, config.precision, config.data.clone())
    };
    if let Some(head) = heads.iter().find(|head| trained(&head.config) != trained(&plan.config)) {
        let text = format!("rank {} of {} trained something else than the plan says", head.rank, head.trial);
        flags.push(flag("unequal-training", true, text));
    }
    let planned = |head: &RunHead| {
        let trial = plan.trials.iter().find(|trial| trial.name == head.trial)?;
        plan.shares.get(*trial.shares.get(head.rank)?)
    };
    if let Some(head) = heads.iter().find(|head| planned(head).is_some_and(|share| *share != head.share)) {
        let text = format!("rank {} of {} did not run on the share that the plan gave it", head.rank, head.trial);
        flags.push(flag("unequal-shares", true, text));
    }
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
