//! What may be asked of a machine, and what it may answer. The set is closed and read-only.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::device::cuda::LibraryFact;
use crate::device::{DriverFact, GpuFact, PeerFact};
use crate::topology::{Fact, PciAddress, Phase, Reading};

/// One question. Nothing else can be asked of a machine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Question {
    /// The text of a file, at most 64 KiB of it.
    File(String),
    /// The first 4 KiB of a longer file.
    Start(String),
    /// The names in a folder, sorted.
    Folder(String),
    /// Where a symbolic link points.
    Link(String),
    /// Whether a file is there: the text `true`, or absent.
    Exists(String),
    /// A file of the control group that this process is in, so many levels up; where groups lie is not told.
    Cgroup {
        /// Which file.
        file: CgroupFile,
        /// Levels above the group of this process.
        up: u8,
    },
    /// A fact about the host.
    Host(HostFact),
    /// A fact about the NVIDIA driver.
    Driver(DriverFact),
    /// A fact about one NVIDIA GPU.
    Gpu {
        /// Which GPU.
        at: PciAddress,
        /// What about it.
        fact: GpuFact,
    },
    /// What the NVIDIA driver grants one GPU to do to the memory of another.
    Peer {
        /// The GPU that reads and writes.
        from: PciAddress,
        /// The GPU whose memory it is.
        to: PciAddress,
        /// What to do.
        fact: PeerFact,
    },
    /// The version of one of CUDA's libraries, where a program finds it.
    Library(LibraryFact),
    /// The configuration space of a PCI function, in rows of sixteen bytes: `000: de 10 …`. Rows of zeros are left out,
    /// but for the last.
    Config(PciAddress),
}

/// Files that captures of schema 1 were not asked for, by the end of their path.
const FILES_OF_SCHEMA_2: [&str; 7] = [
    "/resource",
    "/aer_dev_correctable",
    "/aer_dev_nonfatal",
    "/aer_dev_fatal",
    "/proc/uptime",
    "/proc/sys/kernel/numa_balancing",
    "/etc/nccl.conf",
];

/// The topology that a hypervisor hands to NCCL, which reads it by default (NCCL's documentation, `NCCL_TOPO_FILE`).
pub(super) const VIRTUAL_TOPOLOGY: &str = "/run/nvidia-topologyd/virtualTopology.xml";

impl Question {
    /// The schema of captures that first asked it: one of an older schema does not hold it, and that is no flaw.
    #[must_use]
    pub fn since(&self) -> u32 {
        let third = match self {
            Self::Library(_) => true,
            // The facts of schema 3 stand last in their lists.
            Self::Host(fact) => HostFact::MemorySlots <= *fact,
            Self::Gpu { fact, .. } => GpuFact::PowerCapUs <= *fact,
            Self::Peer { fact, .. } => *fact == PeerFact::Cuda,
            _ => false,
        };
        if third {
            return 3;
        }
        let second = match self {
            Self::File(path) => FILES_OF_SCHEMA_2.iter().any(|end| path.ends_with(end)),
            Self::Exists(path) => path == VIRTUAL_TOPOLOGY,
            Self::Host(fact) => HostFact::Root <= *fact,
            // The facts of schema 2 stand last in the list.
            Self::Gpu { fact, .. } => GpuFact::Throttle <= *fact,
            Self::Peer { .. } | Self::Config(_) | Self::Library(_) => true,
            Self::Start(_) | Self::Folder(_) | Self::Link(_) | Self::Cgroup { .. } | Self::Driver(_) => false,
        };
        if second { 2 } else { 1 }
    }
}

/// Files of a control group that limit CPU time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum CgroupFile {
    /// Version 2: `quota period` in microseconds, or `max period`.
    #[serde(rename = "cpu.max")]
    CpuMax,
    /// Version 1: microseconds in a period, or -1.
    #[serde(rename = "cpu.cfs_quota_us")]
    QuotaUs,
    /// Version 1: microseconds of a period.
    #[serde(rename = "cpu.cfs_period_us")]
    PeriodUs,
}

impl CgroupFile {
    /// Its name in the folder of the group.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::CpuMax => "cpu.max",
            Self::QuotaUs => "cpu.cfs_quota_us",
            Self::PeriodUs => "cpu.cfs_period_us",
        }
    }
}

/// Facts that come from system calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HostFact {
    /// CPUs that this process may use, as a list (`sched_getaffinity`).
    AllowedCpus,
    /// Size of the file system at `/dev/shm` in bytes (`statvfs`).
    ShmBytes,
    /// Bytes that a process may lock in memory, or `unlimited` (`getrlimit`).
    MemlockBytes,
    /// Whether root asks, to whom the kernel shows all of configuration space (`geteuid`).
    Root,
    /// The places for memory modules, a line for each: place, channel or bank, MiB (0 where it is empty), mega-transfers
    /// per second, with `|` between them (SMBIOS, structures of type 17). Serial numbers are not told.
    MemorySlots,
    /// `NCCL_*` of this process's environment, a line for each.
    NcclEnvironment,
    /// What NCCL reads before `/etc/nccl.conf`: the file that `NCCL_CONF_FILE` names, else `.nccl.conf` at home. Where it
    /// lies is not told.
    NcclUserConf,
}

impl fmt::Display for Question {
    /// As in a transcript: `{"file":"/proc/cmdline"}`.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

/// What a machine answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Value {
    /// The text of a file, where a link points, or a fact.
    Text(String),
    /// The names in a folder.
    Names(Vec<String>),
}

/// An answer: a value or why there is none, and when it was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// What the GPUs were doing.
    #[serde(default, skip_serializing_if = "Phase::is_at_rest")]
    pub phase: Phase,
    /// The value.
    #[serde(with = "Fact::<Value>")]
    pub answer: Reading<Value>,
}

/// Why a machine could not be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// A capture does not hold the question: it is older than this version of rigscale, or was edited.
    #[error("the capture was never asked {question}: capture the machine again with this version of rigscale")]
    NeverAsked {
        /// The question.
        question: Question,
    },
}

/// A machine that can be asked: the one at hand, or a transcript of another.
pub trait Machine {
    /// Answers one question; an absence is an answer.
    ///
    /// # Errors
    /// Only where the question cannot be put: see [`AskError`].
    fn ask(&self, question: &Question) -> Result<Answer, AskError>;
}
