//! `plan.yaml`: what will be launched, in which order, and why.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::{Bytes, Seconds};

use super::{Arm, Device, NcclSettings, Share, TrainConfig, Tuned};

/// Everything that the launcher needs to know. It makes no choices of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Schema of the file.
    pub schema: u32,
    /// Version of rigscale that wrote it.
    pub rigscale: String,
    /// UTC time of the plan.
    #[schemars(with = "String")]
    pub created: jiff::Timestamp,
    /// What computes.
    pub device: Device,
    /// What the verdict may be called: see [`Grade`].
    pub grade: Grade,
    /// Efficiency that has to be reached.
    pub target: f64,
    /// World sizes that are launched, ascending.
    pub worlds: Vec<usize>,
    /// World sizes that were asked for and do not fit, with the reason.
    pub skipped: Vec<SkippedWorld>,
    /// Shares of the largest world; a trial names those it uses by index.
    pub shares: Vec<Share>,
    /// The training, the same in every trial.
    pub config: TrainConfig,
    /// What NCCL is told, the same in every trial.
    #[serde(default, skip_serializing_if = "NcclSettings::is_empty")]
    pub nccl: NcclSettings,
    /// Whether ranks share one GPU: a laboratory, never graded.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub share_gpu: bool,
    /// How the workload was chosen, in sentences.
    pub why: Vec<String>,
    /// Gradient bytes that each rank contributes to one step.
    pub gradient_bytes: Bytes,
    /// Floating-point operations of one step on one rank.
    pub flops_per_step: f64,
    /// Duration of one step on one share, measured before the plan was fixed.
    pub step_estimate_s: Seconds,
    /// Launches of each arm, fixed beforehand.
    pub launches: u32,
    /// Launches that may be added once if the first look is inconclusive; the error is split over both looks. 0: none.
    pub extension: u32,
    /// Steps at the start of each trial that count as heating and are never graded, beside what change points cut.
    pub heating_steps: usize,
    /// Seed of the random order of trials.
    pub order_seed: u64,
    /// Trials in the order in which they run.
    pub trials: Vec<Trial>,
    /// Everything that waits has a limit.
    pub limits: Limits,
    /// Lines for the sheet, as given with `--field key=value`.
    #[serde(default)]
    pub fields: Vec<Field>,
    /// Where the tuner wrote this plan: what it found, and what that is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tuned: Option<Tuned>,
}

/// What a verdict of this plan may be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Grade {
    /// A short qualification: the verdict is titled provisional.
    Provisional,
    /// At least 5 launches after a soak.
    Signed,
    /// Ranks on CPU cores: says nothing about GPUs.
    CpuRanks,
    /// Not a qualification: nothing is judged.
    Ungraded,
}

/// A world size that the machine cannot hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SkippedWorld {
    /// Ranks that were asked for.
    pub world: usize,
    /// Why they do not fit.
    pub why: String,
}

/// One trial: one start of `shares.len()` rank processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Trial {
    /// Name, and folder under `runs/`: `launch-1_ddp-2`, `launch-1_solo-share-0`.
    pub name: String,
    /// Launch, from 1.
    pub launch: u32,
    /// Arm.
    pub arm: Arm,
    /// Indices of the shares in use; rank `r` owns `shares[r]`.
    pub shares: Vec<usize>,
}

/// Limits on everything that waits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Ranks must have met by then.
    pub meet_s: Seconds,
    /// A rank that makes no step for so long is stuck.
    pub step_s: Seconds,
    /// A trial must have ended by then.
    pub trial_s: Seconds,
    /// A rank that was told to stop gets so long before it is killed.
    pub stop_s: Seconds,
}

/// One line of the sheet that the user fills in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Field {
    /// Name.
    pub key: String,
    /// Text.
    pub value: String,
}
