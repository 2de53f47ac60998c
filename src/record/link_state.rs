//! Lines of `links.jsonl` that are no timings: links while copies ran, error counters before and after, and stages that
//! did not come to their end.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::topology::{Fact, Lanes, PciAddress, Reading, ThrottleReasons};
use crate::units::Seconds;

use super::SumArm;

/// A link while its GPU copied, beside what it was at rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadLine {
    /// Whose.
    pub gpu: PciAddress,
    /// Generation and width before anything ran: idle links slow down, so that this is never a fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_rest: Option<Lanes>,
    /// The least that NVML showed while the GPU copied and was awake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub least: Option<Lanes>,
    /// The most of the same.
    #[serde(default, alias = "lanes", skip_serializing_if = "Option::is_none")]
    pub most: Option<Lanes>,
    /// The last of the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Lanes>,
    /// Looks at the link while the GPU copied and was awake.
    #[serde(default)]
    pub samples: u32,
    /// The slowest performance state in which the GPU copied, 0 the fastest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p_state: Option<u32>,
    /// Every reason that was seen to hold its clocks while it copied: NVML's bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttle: Option<ThrottleReasons>,
    /// Packets that were sent again during the whole measurement, by NVML's counter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replays: Option<u64>,
}

/// A link between ports above GPUs while GPUs below it copied to and from the host, as the kernel showed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UplinkLine {
    /// The port at the side of the root complex.
    pub upper: PciAddress,
    /// The port at the other side: of a switch, as a rule.
    pub lower: PciAddress,
    /// The GPUs below it that were measured.
    pub gpus: Vec<PciAddress>,
    /// Generation and width before anything ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_rest: Option<Lanes>,
    /// The least that was seen while a GPU below it copied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub least: Option<Lanes>,
    /// The most of the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most: Option<Lanes>,
    /// The last of the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Lanes>,
    /// Looks at the link while a GPU below it copied.
    #[serde(default)]
    pub samples: u32,
}

/// A counter of errors before the measurement and after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CounterLine {
    /// The GPU, or a port above it.
    pub at: PciAddress,
    /// Which.
    pub counter: ErrorCounter,
    /// Its value before, or why there is none.
    #[serde(with = "Fact::<u64>")]
    pub before: Reading<u64>,
    /// Its value after.
    #[serde(with = "Fact::<u64>")]
    pub after: Reading<u64>,
}

impl CounterLine {
    /// How much was counted in between; none where it is not known, or where the counter began anew.
    #[must_use]
    pub fn counted(&self) -> Option<u64> {
        self.after.as_ref().ok()?.checked_sub(*self.before.as_ref().ok()?)
    }
}

/// What is counted: PCIe's advanced error reporting (the kernel's `aer_dev_*`), and errors of a GPU's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCounter {
    /// Errors that the link mended by itself.
    AerCorrectable,
    /// Transactions that were lost.
    AerNonFatal,
    /// Errors after which the link is not to be trusted.
    AerFatal,
    /// Memory errors of the GPU that could not be corrected.
    EccUncorrected,
}

impl fmt::Display for ErrorCounter {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::AerCorrectable => "correctable PCIe errors",
            Self::AerNonFatal => "non-fatal PCIe errors",
            Self::AerFatal => "fatal PCIe errors",
            Self::EccUncorrected => "uncorrected memory errors",
        })
    }
}

/// A stage that did not come to its end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BrokenLine {
    /// What was measured.
    pub stage: LinkStage,
    /// How it ended.
    pub ending: StageEnding,
}

/// What one set of processes measures together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum LinkStage {
    /// Copies between the host and each GPU.
    Host {
        /// The GPUs.
        gpus: Vec<PciAddress>,
    },
    /// Copies from one GPU to another.
    Pair {
        /// Whence.
        from: PciAddress,
        /// Where to.
        to: PciAddress,
    },
    /// Copies between all GPUs at once.
    Together {
        /// The GPUs.
        gpus: Vec<PciAddress>,
    },
    /// All-reduces.
    Sums {
        /// The GPU of each rank.
        ranks: Vec<PciAddress>,
        /// What NCCL was told.
        arm: SumArm,
    },
}

impl fmt::Display for LinkStage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host { .. } => out.write_str("copies to and from the host"),
            Self::Pair { from, to } => write!(out, "copies from {from} to {to}"),
            Self::Together { .. } => out.write_str("copies between all GPUs at once"),
            Self::Sums { ranks, arm } => write!(out, "all-reduce of {} ranks, {arm}", ranks.len()),
        }
    }
}

/// How a stage ended that did not come to its end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "how", rename_all = "kebab-case", deny_unknown_fields)]
pub enum StageEnding {
    /// Nothing was heard for so long.
    Hang {
        /// The limit.
        limit_s: Seconds,
    },
    /// Ranks waited for each other in vain.
    Unmet {
        /// Who said so first.
        rank: usize,
        /// In its words.
        text: String,
    },
    /// A process gave up, or died; others that only waited for it are not named.
    Failed {
        /// Which.
        rank: usize,
        /// Why.
        text: String,
    },
}

impl StageEnding {
    /// True where nobody failed and nothing ended.
    #[must_use]
    pub fn is_hang(&self) -> bool {
        matches!(self, Self::Hang { .. } | Self::Unmet { .. })
    }
}

impl fmt::Display for StageEnding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hang { limit_s } => write!(out, "nothing was heard for {limit_s}"),
            Self::Unmet { rank, text } | Self::Failed { rank, text } => write!(out, "process {rank}: {text}"),
        }
    }
}
