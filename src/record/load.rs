//! What the analysis says of the GPUs while they trained: part of `analysis.json`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::topology::ThrottleReasons;
use crate::units::{Bytes, Celsius, Hertz, Joules, Seconds, Tokens, Watts};

use super::Arm;

/// One GPU in one arm at one world size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GpuUnderLoad {
    /// Ranks of the trials.
    pub world: usize,
    /// Arm.
    pub arm: Arm,
    /// PCI address, as the shares name it.
    pub gpu: String,
    /// Over all its trials.
    pub load: GpuLoad,
    /// Each trial by itself, in the order of the plan.
    pub trials: Vec<TrialLoad>,
}

/// One GPU in one trial.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrialLoad {
    /// Trial.
    pub trial: String,
    /// What it did.
    pub load: GpuLoad,
}

/// What a GPU did in the measured windows of trials: from the begin of the first step that counts to the end of the
/// last. What was not told, or not for long enough, is left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GpuLoad {
    /// Length of the windows.
    pub window_s: Seconds,
    /// Samples in them.
    pub samples: usize,
    /// Tokens that the GPU trained on in them.
    pub tokens: Tokens,
    /// Mean power of the whole card.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_w: Option<Watts>,
    /// Energy of the whole card.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy_j: Option<Joules>,
    /// How power and energy are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy_from: Option<EnergySource>,
    /// Tokens trained with one joule of the card.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_joule: Option<f64>,
    /// Mean clock of the multiprocessors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sm_clock_hz: Option<Hertz>,
    /// Lowest clock of the multiprocessors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sm_clock_min_hz: Option<Hertz>,
    /// Highest temperature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature_max_c: Option<Celsius>,
    /// Every reason that was ever seen to hold the clocks, but for idleness and chosen clocks: NVML's bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttle_reasons: Option<ThrottleReasons>,
    /// The same by name, each with the share of samples in which it was seen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub throttle: Vec<ThrottleShare>,
    /// Share of samples in which heat, or hardware that protects itself, held the clocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slowdown_share: Option<f64>,
    /// Lowest PCIe generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pcie_gen_min: Option<u32>,
    /// Fewest PCIe lanes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pcie_width_min: Option<u32>,
    /// Packets that the link sent again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pcie_replays: Option<u64>,
    /// Most memory in use, by all processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_max_bytes: Option<Bytes>,
}

/// Where an energy comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EnergySource {
    /// The difference of the card's own counter.
    Counter,
    /// The sum of its power readings over time, in some trial at least.
    Power,
}

/// A reason that held the clocks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ThrottleShare {
    /// What people call it.
    pub reason: String,
    /// Share of samples, 0 to 1.
    pub share: f64,
}
