//! One world size as text, and several runs side by side.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::record::{Analysis, Arm, Distribution, Interval, LaunchPoint, Phases, Point};
use crate::units::{Seconds, Tokens, grouped};

use super::page::{Line, OutcomeText, Standing, count, interval, ratio};

/// One world size.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct World {
    world: usize,
    standing: &'static str,
    class: &'static str,
    efficiency: Estimate,
    bootstrap: Estimate,
    silicon: Estimate,
    straggler: Estimate,
    jitter: Estimate,
    comm: Estimate,
    tokens_per_s: String,
    step: String,
    numbers: Vec<Line>,
    loss: Vec<Line>,
    launches: Vec<Launch>,
    phases: Vec<PhaseRow>,
    distribution: Vec<DistributionRow>,
}

/// An estimate and its interval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Estimate {
    value: String,
    interval: String,
}

impl From<Interval> for Estimate {
    fn from(of: Interval) -> Self {
        Self { value: ratio(of.estimate), interval: interval(of) }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Launch {
    launch: u32,
    efficiency: String,
    silicon: String,
    straggler: String,
    comm: String,
    ddp: String,
    solo: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct PhaseRow {
    arm: &'static str,
    times: [String; 5],
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct DistributionRow {
    arm: &'static str,
    steps: String,
    quantiles: Vec<String>,
}

pub(super) fn arm_name(arm: Arm) -> &'static str {
    match arm {
        Arm::Solo => "solo",
        Arm::Together => "together",
        Arm::Ddp => "ddp",
    }
}

/// A share of a whole as a percentage.
pub(super) fn percent(share: f64) -> String {
    if share.abs() < 100.0 { format!("{:.1} %", share * 100.0) } else { format!("{:.1e} %", share * 100.0) }
}

impl World {
    pub(super) fn of(run: &Analysis, point: &Point) -> Self {
        let standing = Standing::of(run, point);
        Self {
            world: point.world,
            standing: standing.word(),
            class: standing.class(),
            efficiency: point.efficiency.into(),
            bootstrap: point.bootstrap.into(),
            silicon: point.silicon.into(),
            straggler: point.straggler.into(),
            jitter: point.jitter.into(),
            comm: point.comm.into(),
            tokens_per_s: grouped(point.ddp_rate.0),
            step: point.step_s.to_string(),
            numbers: numbers(point),
            loss: loss(point),
            launches: point.launches.iter().map(launch).collect(),
            phases: point.phases.iter().map(|(arm, phases)| phase_row(*arm, phases)).collect(),
            distribution: point.distribution.iter().map(|(arm, times)| distribution_row(*arm, times)).collect(),
        }
    }
}

fn numbers(point: &Point) -> Vec<Line> {
    let unknown = || "no bucket events".to_owned();
    let mut lines = vec![
        Line::new("Solo rates summed, S", point.solo_rate.to_string()),
        Line::new("Together, G", point.together_rate.to_string()),
        Line::new("Free exchange, M", point.free_rate.to_string()),
        Line::new("With gradients reduced, D", point.ddp_rate.to_string()),
        Line::new("Sequences", format!("{}/s", grouped(point.samples_per_s))),
        Line::new("Step with gradients reduced", point.step_s.to_string()),
        Line::new("Tokens per optimizer step", Tokens(point.global_batch_tokens).to_string()),
        Line::new("Communication hidden", point.overlap.map_or_else(unknown, percent)),
        Line::new("Bus bandwidth", point.bus_bandwidth.map_or_else(unknown, |rate| rate.to_string())),
        Line::new("Peak memory of a rank", point.peak_memory_bytes.to_string()),
        Line::new(
            "Final loss",
            point.final_loss.map_or_else(|| "–".into(), |loss| format!("{} nats/token", ratio(loss))),
        ),
    ];
    lines.extend(point.gpu_power_w.map(|power| Line::new("Power of all GPUs", power.to_string())));
    lines.extend(point.tokens_per_joule.map(|tokens| Line::new("Tokens per joule of the GPUs", grouped(tokens))));
    lines
}

/// Where the loss of E_comm goes, per step.
fn loss(point: &Point) -> Vec<Line> {
    let loss = &point.loss;
    vec![
        Line::new("Step lost to exchange", loss.total_s.to_string()),
        Line::new("of it exposed communication", loss.exposed_s.to_string()),
        Line::new("of it slower compute", loss.slowdown_s.to_string()),
        Line::new("of it slower optimizer", loss.optimizer_s.to_string()),
        Line::new("of it unexplained", format!("{}, {} of the step", loss.remainder_s, percent(loss.remainder_share))),
    ]
}

fn launch(launch: &LaunchPoint) -> Launch {
    Launch {
        launch: launch.launch,
        efficiency: ratio(launch.efficiency),
        silicon: ratio(launch.silicon),
        straggler: ratio(launch.straggler),
        comm: ratio(launch.comm),
        ddp: grouped(launch.ddp_rate.0),
        solo: grouped(launch.solo_rate.0),
    }
}

fn phase_row(arm: Arm, phases: &Phases) -> PhaseRow {
    let times = [phases.forward_s, phases.backward_s, phases.exposed_s, phases.optimizer_s, phases.other_s];
    PhaseRow { arm: arm_name(arm), times: times.map(|time| time.to_string()) }
}

fn distribution_row(arm: Arm, times: &Distribution) -> DistributionRow {
    DistributionRow {
        arm: arm_name(arm),
        steps: count(times.steps),
        quantiles: times.quantiles_s.iter().map(Seconds::to_string).collect(),
    }
}

/// Several runs side by side.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Comparison {
    worlds: Vec<usize>,
    rows: Vec<ComparedRun>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct ComparedRun {
    run: String,
    outcome: OutcomeText,
    model: String,
    /// One for each world size of the comparison; `–` where the run has none.
    cells: Vec<Estimate>,
}

impl Comparison {
    /// A row for each run, the main one first; none if it is alone.
    pub(super) fn of(runs: &[&Analysis]) -> Option<Self> {
        if runs.len() < 2 {
            return None;
        }
        let worlds: BTreeSet<usize> = runs.iter().flat_map(|run| &run.points).map(|point| point.world).collect();
        let cell = |run: &Analysis, world: usize| {
            let point = run.points.iter().find(|point| point.world == world);
            point.map_or(Estimate { value: "–".into(), interval: String::new() }, |point| point.efficiency.into())
        };
        let row = |run: &&Analysis| ComparedRun {
            run: run.run.clone(),
            outcome: OutcomeText::of(run.verdict.outcome),
            model: run.config.model.clone(),
            cells: worlds.iter().map(|world| cell(run, *world)).collect(),
        };
        Some(Self { rows: runs.iter().map(row).collect(), worlds: worlds.into_iter().collect() })
    }
}
