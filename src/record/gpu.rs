//! The lines of `runs/<trial>/gpu.jsonl`: what the GPUs of a trial did while it ran.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::topology::{Missing, ThrottleReasons};
use crate::units::{Bytes, Celsius, Hertz, Joules, Seconds, Watts};

/// One line: first the head, then samples and absences as they happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "line", rename_all = "snake_case", deny_unknown_fields)]
pub enum GpuLine {
    /// First line: what is watched.
    Gpus(GpuHead),
    /// One GPU at one moment.
    Sample(GpuSample),
    /// Something that cannot be sampled, said once.
    Absent(GpuAbsence),
}

/// What is watched: written before the first sample.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GpuHead {
    /// Schema of the file.
    pub schema: u32,
    /// Version of rigscale that wrote it.
    pub rigscale: String,
    /// The trial of the plan; also the name of its folder.
    pub trial: String,
    /// PCI addresses of the GPUs of the trial's shares, as the shares name them, each once.
    pub gpus: Vec<String>,
    /// Time from one sample of a GPU to the next, as meant; what happened stands in `at_s`.
    pub interval_s: Seconds,
    /// Zero of every `at_s`, on the host's monotonic clock; equal to that of the trial's rank files.
    pub epoch_s: Seconds,
}

/// One GPU at one moment. What the card does not offer is left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GpuSample {
    /// When, in seconds since the trial's epoch.
    pub at_s: Seconds,
    /// Which GPU.
    pub gpu: String,
    /// Power of the whole card; many cards average it over a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_w: Option<Watts>,
    /// Energy since the driver was loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy_j: Option<Joules>,
    /// Temperature of the chip.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature_c: Option<Celsius>,
    /// Clock of the multiprocessors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sm_clock_hz: Option<Hertz>,
    /// Clock of the memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_clock_hz: Option<Hertz>,
    /// Why the clocks are held: NVML's set of bits, all that were there; 0 where nothing holds them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttle_reasons: Option<ThrottleReasons>,
    /// PCIe generation in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pcie_gen: Option<u32>,
    /// PCIe lanes in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pcie_width: Option<u32>,
    /// Packets that the link sent again since the driver was loaded; wraps around at 2³².
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pcie_replays: Option<u32>,
    /// Memory in use, by all processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_used_bytes: Option<Bytes>,
    /// Of the driver's last period, the share in which some kernel ran, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub busy: Option<f64>,
}

/// Something that cannot be sampled, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GpuAbsence {
    /// When it was missed first, in seconds since the trial's epoch.
    pub at_s: Seconds,
    /// Which GPU.
    pub gpu: String,
    /// Field of a sample, as it is spelled there; none: the whole GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Why.
    pub reason: Missing,
}
