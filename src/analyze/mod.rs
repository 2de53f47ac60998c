//! Reads run folders and judges them.
//! Knows records and topologies, nothing of GPUs, processes or clocks; hides which steps count and how intervals are made.
//! Never drops a sample without listing it in `Analysis::dropped`.

mod agreement;
mod check;
mod events;
mod flags;
mod gather;
mod point;
mod sample;
mod telemetry;
mod verdict;

#[cfg(test)]
mod calibration;
#[cfg(test)]
pub(crate) mod synthetic;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use crate::record::{
    Analysis, Arm, Dropped, Field, Finding, Grade, Origin, Point, RunFiles, RunHead, SCHEMA, Transport,
};
use crate::stats::bonferroni;

use gather::Ran;
use sample::Sample;

/// The error that all looks of one qualification may make together: 5 %, half of it on either side.
const ERROR: f64 = 0.05;

/// Rounds of the bootstrap: the 2.5 % quantile of 2,000 rounds varies by about 6 % of the interval's half width.
const RESAMPLES: usize = 2_000;

/// Why a run folder cannot be analyzed, though each of its files reads well.
#[derive(Debug, Error, PartialEq)]
pub enum AnalyzeError {
    /// Nothing was planned.
    #[error("the plan of {run} names no trial")]
    NoTrials {
        /// Run folder.
        run: String,
    },
    /// The target is no efficiency.
    #[error("the plan of {run} asks for an efficiency of {target}; it must lie between 0 and 2")]
    Target {
        /// Run folder.
        run: String,
        /// As found.
        target: f64,
    },
    /// A number of the plan is none that a plan can hold.
    #[error("field `{field}` of the plan of {run} is {found}; it must be {expected}")]
    Field {
        /// Run folder.
        run: String,
        /// Field, as it is spelled in `plan.yaml`.
        field: String,
        /// As found.
        found: String,
        /// What would be right.
        expected: String,
    },
    /// A trial of the plan cannot be carried out.
    #[error("trial {trial} of the plan {what}")]
    Plan {
        /// Trial.
        trial: String,
        /// What is wrong with it.
        what: String,
    },
    /// A rank file belongs elsewhere.
    #[error("rank {rank} of trial {trial} says {what}, which the plan does not")]
    Stranger {
        /// Trial.
        trial: String,
        /// Rank.
        rank: usize,
        /// What its first line says.
        what: String,
    },
    /// A step without duration or work.
    #[error("step {step} of rank {rank} in trial {trial}: {what}")]
    Step {
        /// Trial.
        trial: String,
        /// Rank.
        rank: usize,
        /// Index of the step.
        step: usize,
        /// Which field, and its value.
        what: String,
    },
}

/// The analysis of a run: a pure function, so that the same files give the same bytes.
///
/// # Errors
/// The files contradict each other: see [`AnalyzeError`]. Missing files and broken trials are no error: they are
/// flagged, and the verdict says what they forbid.
pub fn analyze(files: &RunFiles) -> Result<Analysis, AnalyzeError> {
    analyze_with(files, RESAMPLES)
}

fn analyze_with(files: &RunFiles, resamples: usize) -> Result<Analysis, AnalyzeError> {
    let plan = &files.plan;
    let mut gathered = gather::gather(files)?;
    let origin = origin(files);
    let gradeable = origin == Origin::Measured && plan.grade != Grade::Ungraded;
    let level = Level { confidence: confidence(plan.extension), resamples, seed: plan.order_seed };
    let cells = sample::cells(plan, &gathered.ran);
    let telemetry = telemetry::telemetry(files, &gathered.ran);
    let mut points: Vec<Point> = cells
        .iter()
        .filter(|cell| !cell.samples.is_empty())
        .map(|cell| point::point(plan, cell, gradeable, level))
        .collect();
    for (cell, point) in cells.iter().filter(|cell| !cell.samples.is_empty()).zip(&mut points) {
        telemetry.complete(cell, point);
    }
    gathered.dropped.extend(unpaired(&cells, &gathered.ran));
    let mut flags = std::mem::take(&mut gathered.flags);
    flags.extend(flags::flags(files, &gathered, &cells, &points, &telemetry));
    let verdict = verdict::verdict(files, &verdict::Evidence { origin, cells: &cells, points: &points, flags: &flags });
    Ok(Analysis {
        schema: SCHEMA,
        rigscale: env!("CARGO_PKG_VERSION").into(),
        run: files.name.clone(),
        created: plan.created,
        origin,
        device: plan.device,
        grade: verdict::grade(plan),
        verdict,
        target: plan.target,
        timeline: cells.iter().rev().find_map(events::timeline),
        points,
        gpus: telemetry.rows(),
        skipped: plan.skipped.clone(),
        flags,
        findings: gravest_first(&files.findings),
        dropped: gathered.dropped,
        identity: identity(files),
        fields: plan.fields.clone(),
        config: plan.config.clone(),
        why: plan.why.clone(),
        gradient_bytes: plan.gradient_bytes,
        flops_per_step: plan.flops_per_step,
        shares: plan.shares.clone(),
    })
}

/// How intervals are made.
#[derive(Debug, Clone, Copy)]
struct Level {
    confidence: f64,
    resamples: usize,
    seed: u64,
}

/// The confidence of each look: 95 %, or 97.5 % where an extension was announced and both looks share the error.
fn confidence(extension: u32) -> f64 {
    1.0 - bonferroni(ERROR, if extension > 0 { 2 } else { 1 })
}

/// The least trustworthy origin of any rank; `measured` where nothing ran.
fn origin(files: &RunFiles) -> Origin {
    let all: Vec<Origin> =
        files.trials.values().flat_map(|ranks| ranks.values().map(|file| file.head.origin)).collect();
    [Origin::Simulated, Origin::SharedGpu].into_iter().find(|origin| all.contains(origin)).unwrap_or(Origin::Measured)
}

fn gravest_first(findings: &[Finding]) -> Vec<Finding> {
    let mut findings = findings.to_vec();
    findings.sort_by_key(|finding| finding.severity);
    findings
}

/// The machine's facts, then versions and the way of exchange that ranks reported and the machine's facts lack.
fn identity(files: &RunFiles) -> Vec<Field> {
    let mut identity = files.identity.clone();
    let mut add = |key: &str, value: &str| {
        if !identity.iter().any(|field| field.key.eq_ignore_ascii_case(key)) {
            identity.push(Field { key: key.into(), value: value.into() });
        }
    };
    let heads: Vec<_> = files.trials.values().flat_map(|ranks| ranks.values().map(|file| &file.head)).collect();
    let exchanges: BTreeSet<&str> = heads
        .iter()
        .filter(|head| head.arm == Arm::Ddp && head.world > 1)
        .map(|head| head.communicator.as_str())
        .collect();
    if !exchanges.is_empty() {
        add("exchange", &exchanges.into_iter().collect::<Vec<_>>().join(", "));
    }
    for (key, value) in way(&heads) {
        add(key, &value);
    }
    for (key, value) in heads.iter().flat_map(|head| &head.software) {
        add(key, value);
    }
    identity
}

/// The way of gradients between GPUs at the largest world, in NCCL's words, and what NCCL was told.
fn way(heads: &[&RunHead]) -> Vec<(&'static str, String)> {
    let world = heads.iter().filter(|head| head.transport.is_some()).map(|head| head.world).max();
    let of_world = heads.iter().filter(|head| Some(head.world) == world);
    let told: Vec<(usize, &Transport)> =
        of_world.filter_map(|head| Some((head.rank, head.transport.as_ref()?))).collect();
    let mut ranks_via: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (rank, transport) in &told {
        for (peer, via) in &transport.via {
            ranks_via.entry(via).or_default().insert(format!("{rank} → {peer}"));
        }
    }
    let mut way = Vec::new();
    if !ranks_via.is_empty() {
        let of = |(via, pairs): (&&str, &BTreeSet<String>)| {
            format!("{via}: {}", pairs.iter().map(String::as_str).collect::<Vec<_>>().join(", "))
        };
        way.push(("NCCL transport", ranks_via.iter().map(of).collect::<Vec<_>>().join("; ")));
    }
    let Some((_, first)) = told.first() else { return way };
    if let Some(channels) = first.channels {
        let search = first.search.as_ref().map(|search| format!(" (its search found {search})")).unwrap_or_default();
        way.push(("NCCL channels", format!("{channels}{search}")));
    }
    if !first.environment.is_empty() {
        let settings: Vec<String> = first.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
        way.push(("NCCL environment", settings.join(" ")));
    }
    way
}

/// Trials that ran well and yet count nowhere, because their launch lacks a counterpart.
fn unpaired(cells: &[sample::Cell<'_>], ran: &[Ran<'_>]) -> Vec<Dropped> {
    let used: BTreeSet<&str> = cells
        .iter()
        .flat_map(|cell| &cell.samples)
        .flat_map(Sample::trials)
        .map(|ran| ran.trial.name.as_str())
        .collect();
    ran.iter()
        .filter(|ran| !used.contains(ran.trial.name.as_str()))
        .map(|ran| ran.dropped(None, ran.counted_steps(), "its launch lacks the other arms on these shares"))
        .collect()
}
