//! `analysis.json`: what the runs say, with the evidence.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::{Bytes, BytesPerSecond, Seconds, TokensPerSecond, Watts};

use super::{Arm, Bucket, Device, Field, Finding, GpuUnderLoad, Grade, Origin, Share, SkippedWorld, TrainConfig};

/// The analysis of one run folder. It is a pure function of the other files there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Analysis {
    /// Schema of the file.
    pub schema: u32,
    /// Version of rigscale that wrote it.
    pub rigscale: String,
    /// Name of the run folder.
    pub run: String,
    /// UTC time at which the plan was made.
    #[schemars(with = "String")]
    pub created: jiff::Timestamp,
    /// Where the numbers come from.
    pub origin: Origin,
    /// What computed.
    pub device: Device,
    /// What the verdict may be called.
    pub grade: Grade,
    /// The verdict and the sentences that explain it.
    pub verdict: Verdict,
    /// Efficiency that has to be reached.
    pub target: f64,
    /// One point per world size, ascending.
    pub points: Vec<Point>,
    /// World sizes that were asked for and did not fit.
    pub skipped: Vec<SkippedWorld>,
    /// Conditions that a reader must know before trusting the numbers.
    pub flags: Vec<Flag>,
    /// Findings of the probe, the measurements and the launches, gravest first.
    pub findings: Vec<Finding>,
    /// Samples that do not count, listed.
    pub dropped: Vec<Dropped>,
    /// Facts of machine and software for the sheet, in reading order.
    pub identity: Vec<Field>,
    /// What the user gave with `--field`.
    pub fields: Vec<Field>,
    /// The training.
    pub config: TrainConfig,
    /// How the workload was chosen, from the plan.
    pub why: Vec<String>,
    /// Gradient bytes that each rank contributes to one step.
    pub gradient_bytes: Bytes,
    /// Floating-point operations of one step on one rank.
    pub flops_per_step: f64,
    /// Shares of the largest world.
    pub shares: Vec<Share>,
    /// Buckets of one step in the middle of a ddp trial at the largest world size, all ranks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<Timeline>,
    /// What the GPUs did in the measured windows, by world size, arm and address; empty on CPUs, and where no
    /// telemetry was kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<GpuUnderLoad>,
}

/// An estimate with its 95 % interval; where the plan announces an extension the error is split over both looks, and
/// the interval is one of 97.5 %. A single launch shows no scatter: then nothing is known but that `low` is at least 0
/// and `high` at most `f64::MAX`, see [`Interval::is_known`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Interval {
    /// Point estimate.
    pub estimate: f64,
    /// Lower bound.
    pub low: f64,
    /// Upper bound.
    pub high: f64,
}

impl Interval {
    /// True if there were launches enough for an interval: at least 2.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.high < f64::MAX
    }
}

/// The verdict and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    /// The outcome.
    pub outcome: Outcome,
    /// One line: what a person reads first.
    pub headline: String,
    /// The reasons, a sentence each.
    pub reasons: Vec<String>,
    /// Launches more that would settle an inconclusive verdict at the scatter seen; none where launches cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launches_needed: Option<u32>,
}

/// The outcome of a run. The exit code follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The lower bound reaches the target at every graded world size.
    Pass,
    /// The upper bound is below the target at some graded world size.
    Fail,
    /// The interval holds the target, or something forbids to trust it.
    Inconclusive,
    /// Nothing could be graded: one share, shared GPU, simulated.
    NotGraded,
    /// A fault of the machine, or a rank that died, or ranks that disagree.
    Fault,
    /// A hang or time limit.
    Hang,
    /// The user stopped it.
    Interrupted,
}

/// Everything about one world size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// Ranks.
    pub world: usize,
    /// False at N = 1, where ddp/solo is the cost of the machinery.
    pub graded: bool,
    /// E = D / S over launches, 95 % (Student's t on the log of paired launches).
    pub efficiency: Interval,
    /// The same interval by a hierarchical bootstrap over launches and blocks of steps, as a check.
    pub bootstrap: Interval,
    /// G / S: power, heat, clocks, host.
    pub silicon: Interval,
    /// M / G: a slow rank, and jitter.
    pub straggler: Interval,
    /// The part of `straggler` that is jitter: M over the rate of the slowest rank's mean step.
    pub jitter: Interval,
    /// D / M: communication.
    pub comm: Interval,
    /// Where the loss of `comm` goes, per step of the rank that arrives last.
    pub loss: CommLoss,
    /// Sum of the solo rates of the shares, S.
    pub solo_rate: TokensPerSecond,
    /// Sum of the rates together, G.
    pub together_rate: TokensPerSecond,
    /// Rate that a free exchange would give, M.
    pub free_rate: TokensPerSecond,
    /// Rate with gradients reduced, D.
    pub ddp_rate: TokensPerSecond,
    /// Sequences per second with gradients reduced.
    pub samples_per_s: f64,
    /// Mean step of the ddp arm.
    pub step_s: Seconds,
    /// Share of communication time that was hidden behind the backward pass, 0 to 1; none without bucket events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlap: Option<f64>,
    /// Bus bandwidth of the gradient all-reduce while it ran, 2(N−1)/N · bytes / time; none without bucket events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bus_bandwidth: Option<BytesPerSecond>,
    /// Largest resident memory of any rank.
    pub peak_memory_bytes: Bytes,
    /// Tokens of one optimizer step over all ranks.
    pub global_batch_tokens: u64,
    /// Loss at the end of the ddp arm, mean of its last tenth of steps; none where none of them is finite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub final_loss: Option<f64>,
    /// Mean power of all GPUs of the ddp arm together; none on CPUs, and where some trial's is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_power_w: Option<Watts>,
    /// Tokens that the ddp arm trained with one joule of its GPUs; none as above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_joule: Option<f64>,
    /// Each launch's own numbers.
    pub launches: Vec<LaunchPoint>,
    /// Mean time of a step by phase, for each arm.
    pub phases: BTreeMap<Arm, Phases>,
    /// Distribution of step times, for each arm.
    pub distribution: BTreeMap<Arm, Distribution>,
}

/// The loss of E_comm, in seconds of one step; the three sum to ddp's step minus the free step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CommLoss {
    /// ddp's step minus the step of a free exchange.
    pub total_s: Seconds,
    /// Communication that overlap did not hide.
    pub exposed_s: Seconds,
    /// Slow-down of forward and backward beside communication.
    pub slowdown_s: Seconds,
    /// Slow-down of the optimizer, which all ranks run at once when the last sum is there.
    #[serde(default)]
    pub optimizer_s: Seconds,
    /// What is left.
    pub remainder_s: Seconds,
    /// `remainder_s` as a share of ddp's step; flagged above 0.02.
    pub remainder_share: f64,
}

/// One launch at one world size.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LaunchPoint {
    /// Launch, from 1.
    pub launch: u32,
    /// E of this launch.
    pub efficiency: f64,
    /// G / S.
    pub silicon: f64,
    /// M / G.
    pub straggler: f64,
    /// D / M.
    pub comm: f64,
    /// D.
    pub ddp_rate: TokensPerSecond,
    /// S.
    pub solo_rate: TokensPerSecond,
}

/// Mean time of a step by phase.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Phases {
    /// Forward.
    pub forward_s: Seconds,
    /// Backward.
    pub backward_s: Seconds,
    /// Waiting for gradients.
    pub exposed_s: Seconds,
    /// Optimizer.
    pub optimizer_s: Seconds,
    /// The rest of the step.
    pub other_s: Seconds,
}

/// Distribution of step times of one arm over all its launches and ranks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Distribution {
    /// Steps counted.
    pub steps: usize,
    /// Quantiles 0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.
    pub quantiles_s: [Seconds; 7],
    /// Counts in `bins.len()` equal bins from the smallest to the largest value.
    pub bins: Vec<usize>,
}

/// Buckets of one step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Timeline {
    /// Trial.
    pub trial: String,
    /// Step.
    pub step: usize,
    /// One lane per rank.
    pub lanes: Vec<Lane>,
}

/// One rank's part of the timeline; moments relative to the earliest begin of the step on any rank.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Lane {
    /// Rank.
    pub rank: usize,
    /// Begin of the step.
    pub start_s: Seconds,
    /// Its phases, one after another from `start_s`.
    pub phases: Phases,
    /// Its buckets.
    pub buckets: Vec<Bucket>,
}

/// A condition that a reader must know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Flag {
    /// Stable code, such as `superlinear`, `not-synchronised`, `stolen-time`, `unsettled`.
    pub code: String,
    /// True if it forbids a pass or fail.
    pub blocks: bool,
    /// What was seen, with its number.
    pub text: String,
}

/// Samples that do not count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Dropped {
    /// Trial.
    pub trial: String,
    /// Rank; none: all ranks of the trial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// How many steps.
    pub steps: usize,
    /// Why.
    pub why: String,
}
