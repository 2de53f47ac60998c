//! What is wrong with a machine, as a table. A rule speaks only of what is certain: what is missing is never "fine"
//! and never a fault, and the speed of a link at rest means nothing.

mod host;
mod pcie;

use serde::Serialize;

use crate::record::{Finding, Severity};
use crate::topology::Topology;

/// One row of the table.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Rule {
    /// Stable code.
    pub code: &'static str,
    /// How grave a breach is.
    pub severity: Severity,
    /// What the rule asks.
    pub question: &'static str,
    /// What a technician can do about a breach.
    pub remedy: &'static str,
    /// Finds the breaches.
    #[serde(skip)]
    pub check: fn(&Topology) -> Vec<Breach>,
}

/// One breach of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breach {
    /// PCI addresses or NUMA nodes that it is about; none for the whole machine.
    pub addresses: Vec<String>,
    /// What was seen: the question and its answer.
    pub seen: String,
    /// What was expected, and from where.
    pub expected: String,
}

/// All rules, in the order in which they are printed.
pub const RULES: &[Rule] = &[
    Rule {
        code: "nvidia-driver-missing",
        severity: Severity::Fault,
        question: "Does the NVIDIA driver hold each NVIDIA GPU?",
        remedy: "Install the NVIDIA driver and load it (`modprobe nvidia`). If another driver holds the GPU, take nouveau \
                 out (modprobe.d: `blacklist nouveau`) or release the GPU from vfio-pci, then restart.",
        check: pcie::driver_missing,
    },
    Rule {
        code: "pcie-slow-under-load",
        severity: Severity::Fault,
        question: "Does each link reach its full speed while the GPU copies?",
        remedy: "Reseat the card and its riser; set the slot to its full speed in the BIOS instead of Auto; update the \
                 BIOS; look for PCIe errors in `dmesg`. A riser that is not made for the speed must go.",
        check: pcie::slow_under_load,
    },
    Rule {
        code: "pcie-narrow-link",
        severity: Severity::Warning,
        question: "Does each link use all lanes that both of its ends offer?",
        remedy: "Look in the board's manual whether the slot is wired for fewer lanes, or shares them with M.2 or another \
                 slot. If not: reseat the card, clean its contacts, try another riser, check the slot's bifurcation in \
                 the BIOS.",
        check: pcie::narrow_link,
    },
    Rule {
        code: "pcie-chipset-slot",
        severity: Severity::Warning,
        question: "Is each GPU in a slot of the CPU, not of the chipset?",
        remedy: "Move the card to a slot that the board's manual lists as driven by the CPU.",
        check: pcie::chipset_slot,
    },
    Rule {
        code: "pcie-narrow-uplink",
        severity: Severity::Warning,
        question: "Does every link above a GPU's own carry as much as that one?",
        remedy: "Move the card to a slot with a wider path to the CPU; check the BIOS for a speed or width limit of the \
                 port above the switch.",
        check: pcie::narrow_uplink,
    },
    Rule {
        code: "pcie-slot-below-card",
        severity: Severity::Note,
        question: "Does each slot offer what its card can do?",
        remedy: "Nothing is broken. If a faster or wider slot is free, use it; if the BIOS limits this one, lift the limit.",
        check: pcie::slot_below_card,
    },
    Rule {
        code: "pcie-shared-uplink",
        severity: Severity::Note,
        question: "Has each GPU a link to the CPU of its own?",
        remedy: "Nothing is broken: GPUs behind one switch reach each other well, but share its uplink to memory and to all \
                 other GPUs. Spread them over switches if host traffic limits the training.",
        check: pcie::shared_uplink,
    },
    Rule {
        code: "pcie-link-unknown",
        severity: Severity::Note,
        question: "Do both ends of every link to an NVIDIA GPU tell what they can do?",
        remedy: "Probe as root, outside of the container or virtual machine, so that no link stays unjudged.",
        check: pcie::link_unknown,
    },
    Rule {
        code: "pci-unreadable",
        severity: Severity::Warning,
        question: "Could every PCI function be read, so that no GPU is overlooked?",
        remedy: "Probe as root, with /sys mounted whole: a GPU may be hidden among what could not be read.",
        check: pcie::unreadable,
    },
    Rule {
        code: "numa-unknown",
        severity: Severity::Warning,
        question: "On a machine of several NUMA nodes, is each GPU's node known?",
        remedy: "Update the BIOS; enable NUMA (ACPI SRAT, on AMD `NUMA nodes per socket`) so that it names a node for \
                 each slot. Until then ranks cannot be pinned beside their GPU.",
        check: host::numa_unknown,
    },
    Rule {
        code: "gpus-across-sockets",
        severity: Severity::Note,
        question: "Are all NVIDIA GPUs on one socket?",
        remedy: "Nothing is broken. Traffic between these GPUs crosses the sockets: train on GPUs of one socket where \
                 that is enough, and judge pairs across sockets by measurement.",
        check: host::across_sockets,
    },
    Rule {
        code: "iommu-translating",
        severity: Severity::Warning,
        question: "Does the IOMMU pass the addresses of GPUs unchanged?",
        remedy: "Start the kernel with `iommu=pt`, or switch the IOMMU off in the BIOS, unless virtual machines need it.",
        check: host::iommu_translating,
    },
    Rule {
        code: "shm-small",
        severity: Severity::Warning,
        question: "With several NVIDIA GPUs, is /dev/shm larger than the 64 MiB of a container's default?",
        remedy: "Start the container with `--shm-size=1g` (or more) or `--ipc=host`; NCCL stages data there.",
        check: host::shm_small,
    },
    Rule {
        code: "cpu-quota",
        severity: Severity::Warning,
        question: "May the process use all the time of the CPUs that it may run on?",
        remedy: "Raise or lift the CPU limit of the container or service (`--cpus`, `CPUQuota=`, `limits.cpu`), or pin it \
                 to as many CPUs as its quota pays for.",
        check: host::cpu_quota,
    },
    Rule {
        code: "cpu-governor",
        severity: Severity::Note,
        question: "Are the CPUs governed for performance?",
        remedy: "For the time of a measurement: `cpupower frequency-set -g performance`.",
        check: host::governor,
    },
    Rule {
        code: "virtual-machine",
        severity: Severity::Note,
        question: "Does the machine run on bare metal?",
        remedy: "Qualify on the host: inside a virtual machine the PCIe tree, NUMA nodes and isolation are what the \
                 hypervisor shows, and link widths and speeds are not judged.",
        check: host::virtual_machine,
    },
];

/// Holds `topology` against every rule. The gravest findings come first.
#[must_use]
pub fn judge(topology: &Topology) -> Vec<Finding> {
    let finding = |rule: &Rule, breach: Breach| Finding {
        code: rule.code.to_owned(),
        severity: rule.severity,
        addresses: breach.addresses,
        seen: breach.seen,
        expected: breach.expected,
        remedy: rule.remedy.to_owned(),
    };
    let of = |rule: &'static Rule| (rule.check)(topology).into_iter().map(move |breach| finding(rule, breach));
    let mut findings: Vec<Finding> = RULES.iter().flat_map(of).collect();
    findings.sort_by_key(|finding| finding.severity);
    findings
}
