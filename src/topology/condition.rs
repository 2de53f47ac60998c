//! The state that a GPU is in, and what the driver lets one GPU do to another.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Fact, Missing, PciAddress, Reading, ThrottleReasons};

/// What the NVIDIA driver says about the state that one GPU is in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GpuCondition {
    /// Why its clocks are held, at the moment of asking.
    #[serde(with = "Fact::<ThrottleReasons>")]
    pub throttle: Reading<ThrottleReasons>,
    /// How long its clocks were held so far, and why.
    #[serde(default = "ThrottleTimes::not_asked", skip_serializing_if = "ThrottleTimes::was_not_asked")]
    pub throttled: ThrottleTimes,
    /// True when errors of its memory are corrected (ECC).
    #[serde(with = "Fact::<bool>")]
    pub ecc: Reading<bool>,
    /// True when they will be after the next restart.
    #[serde(with = "Fact::<bool>")]
    pub ecc_next: Reading<bool>,
    /// Memory errors that could not be corrected, since the driver was loaded.
    #[serde(with = "Fact::<u64>")]
    pub ecc_uncorrected: Reading<u64>,
    /// Memory rows replaced after errors that were corrected.
    #[serde(with = "Fact::<u64>")]
    pub rows_corrected: Reading<u64>,
    /// Memory rows replaced after errors that were not.
    #[serde(with = "Fact::<u64>")]
    pub rows_uncorrected: Reading<u64>,
    /// True when a row waits for the next reset to be replaced.
    #[serde(with = "Fact::<bool>")]
    pub rows_pending: Reading<bool>,
    /// True when a row could not be replaced.
    #[serde(with = "Fact::<bool>")]
    pub rows_failed: Reading<bool>,
    /// Who may compute on it.
    #[serde(with = "Fact::<ComputeMode>")]
    pub compute_mode: Reading<ComputeMode>,
    /// Processes that compute on it.
    #[serde(with = "Fact::<u32>")]
    pub compute_processes: Reading<u32>,
    /// True when it drives a display.
    #[serde(with = "Fact::<bool>")]
    pub display_active: Reading<bool>,
    /// Packets that its link sent again since the driver was loaded.
    #[serde(with = "Fact::<u32>")]
    pub pcie_replays: Reading<u32>,
    /// Instances that it is divided into (MIG).
    #[serde(default = "not_asked", skip_serializing_if = "was_not_asked", with = "Fact::<u32>")]
    pub mig_instances: Reading<u32>,
    /// NVLinks that are up.
    #[serde(with = "Fact::<u32>")]
    pub nvlinks_up: Reading<u32>,
    /// NVLinks that are down.
    #[serde(with = "Fact::<u32>")]
    pub nvlinks_down: Reading<u32>,
}

impl GpuCondition {
    /// Of a file that is older than the questions.
    #[must_use]
    pub fn not_asked() -> Self {
        Self::unknown(&Missing::not_asked())
    }

    /// Nothing is known, for one reason.
    #[must_use]
    pub fn unknown(why: &Missing) -> Self {
        Self {
            throttle: Err(why.clone()),
            throttled: ThrottleTimes::unknown(why),
            ecc: Err(why.clone()),
            ecc_next: Err(why.clone()),
            ecc_uncorrected: Err(why.clone()),
            rows_corrected: Err(why.clone()),
            rows_uncorrected: Err(why.clone()),
            rows_pending: Err(why.clone()),
            rows_failed: Err(why.clone()),
            compute_mode: Err(why.clone()),
            compute_processes: Err(why.clone()),
            display_active: Err(why.clone()),
            pcie_replays: Err(why.clone()),
            mig_instances: Err(why.clone()),
            nvlinks_up: Err(why.clone()),
            nvlinks_down: Err(why.clone()),
        }
    }
}

/// Microseconds for which a GPU's clocks were held since the driver was loaded, by reason (`Clocks Event Reasons
/// Counters` of nvidia-smi).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ThrottleTimes {
    /// At the power limit.
    #[serde(with = "Fact::<u64>")]
    pub power_cap_us: Reading<u64>,
    /// Too hot, as the driver decides.
    #[serde(with = "Fact::<u64>")]
    pub thermal_us: Reading<u64>,
    /// Too hot, as the card decides.
    #[serde(with = "Fact::<u64>")]
    pub hardware_thermal_us: Reading<u64>,
    /// Asked from outside to draw less.
    #[serde(with = "Fact::<u64>")]
    pub power_brake_us: Reading<u64>,
}

impl ThrottleTimes {
    /// Nothing is known, for one reason.
    #[must_use]
    pub fn unknown(why: &Missing) -> Self {
        let none = || Err(why.clone());
        Self { power_cap_us: none(), thermal_us: none(), hardware_thermal_us: none(), power_brake_us: none() }
    }

    fn not_asked() -> Self {
        Self::unknown(&Missing::not_asked())
    }

    fn was_not_asked(&self) -> bool {
        *self == Self::not_asked()
    }
}

/// Who may compute on a GPU (nvml.h, `nvmlComputeMode_t`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ComputeMode {
    /// Any number of processes.
    Default,
    /// One thread of one process; drivers no longer offer it.
    ExclusiveThread,
    /// One process.
    ExclusiveProcess,
    /// Nobody.
    Prohibited,
}

/// What the driver grants one GPU to do to the memory of another. A grant is no proof that data arrive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PeerAccess {
    /// The GPU that reads and writes.
    pub from: PciAddress,
    /// The GPU whose memory it is.
    pub to: PciAddress,
    /// To read it.
    #[serde(with = "Fact::<PeerStatus>")]
    pub read: Reading<PeerStatus>,
    /// To write it.
    #[serde(with = "Fact::<PeerStatus>")]
    pub write: Reading<PeerStatus>,
    /// To change it in one step that nothing can part.
    #[serde(with = "Fact::<PeerStatus>")]
    pub atomics: Reading<PeerStatus>,
    /// Any of these over NVLink.
    #[serde(with = "Fact::<PeerStatus>")]
    pub nvlink: Reading<PeerStatus>,
    /// Any of these over PCIe. The probe does not ask: `nvidia-smi topo -p2p p` tells.
    #[serde(default = "not_asked", skip_serializing_if = "was_not_asked", with = "Fact::<PeerStatus>")]
    pub pcie: Reading<PeerStatus>,
    /// True where CUDA lets the one reach the other (`cuDeviceCanAccessPeer`).
    #[serde(default = "not_asked", skip_serializing_if = "was_not_asked", with = "Fact::<bool>")]
    pub cuda: Reading<bool>,
}

fn not_asked<T>() -> Reading<T> {
    Err(Missing::not_asked())
}

fn was_not_asked<T>(reading: &Reading<T>) -> bool {
    reading.as_ref().is_err_and(|missing| *missing == Missing::not_asked())
}

impl PeerAccess {
    /// A pair of which a text of this kind has told nothing.
    #[must_use]
    pub fn untold(from: PciAddress, to: PciAddress, kind: &str) -> Self {
        let none = || Err(Missing::untold(kind));
        let untold = Err(Missing::untold(kind));
        Self { from, to, read: none(), write: none(), atomics: none(), nvlink: none(), pcie: none(), cuda: untold }
    }
}

/// Granted, or why not (nvml.h, `nvmlGpuP2PStatus_t`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PeerStatus {
    /// Granted.
    Ok,
    /// The host bridges between them are not on the driver's list.
    ChipsetNotSupported,
    /// The driver does not offer it on this product.
    GpuNotSupported,
    /// They hang off different I/O hubs.
    TopologyNotSupported,
    /// A setting of the driver forbids it.
    DisabledByRegistry,
    /// Not supported, without a reason.
    NotSupported,
    /// The driver does not know.
    Unknown,
}

impl PeerStatus {
    /// The letters of `nvidia-smi topo -p2p`.
    #[must_use]
    pub fn letters(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::ChipsetNotSupported => "CNS",
            Self::GpuNotSupported => "GNS",
            Self::TopologyNotSupported => "TNS",
            Self::DisabledByRegistry => "DR",
            Self::NotSupported => "NS",
            Self::Unknown => "U",
        }
    }
}

impl fmt::Display for PeerStatus {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.letters())
    }
}
