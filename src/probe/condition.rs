//! The state of PCIe functions and of GPUs, and what the driver grants pairs of them.

use crate::device::{GpuFact, PeerFact};
use crate::topology::{
    ComputeMode, Gpu, GpuCondition, Missing, PciAddress, PcieState, PeerAccess, PeerStatus, Reading, ThrottleReasons,
    ThrottleTimes, Why,
};

use super::ask::{file, garbled, parsed, text};
use super::config::ConfigSpace;
use super::{AskError, Machine, Question};

/// What a PCIe function tells beyond its link.
pub(super) fn pcie_state(machine: &dyn Machine, address: PciAddress, folder: &str) -> Result<PcieState, AskError> {
    let space = text(machine, Question::Config(address))?;
    let state = match space.map(|text| ConfigSpace::parse(&text).ok_or_else(|| garbled("configuration space", &text))) {
        Ok(Ok(space)) => space.state(),
        Ok(Err(missing)) | Err(missing) => PcieState::unknown(&missing),
    };
    Ok(PcieState {
        correctable_errors: errors(machine, folder, "correctable", "TOTAL_ERR_COR")?,
        nonfatal_errors: errors(machine, folder, "nonfatal", "TOTAL_ERR_NONFATAL")?,
        fatal_errors: errors(machine, folder, "fatal", "TOTAL_ERR_FATAL")?,
        ..state
    })
}

/// The last line of a file of error counters: `TOTAL_ERR_COR 3` (the kernel's
/// Documentation/ABI/testing/sysfs-bus-pci-devices-aer). The files are absent where the firmware keeps the errors.
fn errors(machine: &dyn Machine, folder: &str, kind: &str, total: &str) -> Result<Reading<u64>, AskError> {
    let path = format!("{folder}/aer_dev_{kind}");
    let text = file(machine, path.as_str())?;
    Ok(text.and_then(|text| {
        let count = text.lines().find_map(|line| line.strip_prefix(total)).map(str::trim);
        count.and_then(|count| count.parse().ok()).ok_or_else(|| garbled(&path, &text))
    }))
}

/// The state that one GPU is in.
pub(super) fn condition(machine: &dyn Machine, at: PciAddress) -> Result<GpuCondition, AskError> {
    let ask = |fact| text(machine, Question::Gpu { at, fact });
    let switch = |fact| Ok(parsed::<bool>(ask(fact)?, "NVML"));
    let count = |fact| Ok(parsed::<u64>(ask(fact)?, "NVML"));
    let number = |fact| Ok(parsed::<u32>(ask(fact)?, "NVML"));
    Ok(GpuCondition {
        throttle: count(GpuFact::Throttle)?.map(ThrottleReasons),
        throttled: ThrottleTimes {
            power_cap_us: count(GpuFact::PowerCapUs)?,
            thermal_us: count(GpuFact::ThermalUs)?,
            hardware_thermal_us: count(GpuFact::HardwareThermalUs)?,
            power_brake_us: count(GpuFact::PowerBrakeUs)?,
        },
        mig_instances: number(GpuFact::MigInstances)?,
        ecc: switch(GpuFact::Ecc)?,
        ecc_next: switch(GpuFact::EccNext)?,
        ecc_uncorrected: count(GpuFact::EccUncorrected)?,
        rows_corrected: count(GpuFact::RowsCorrected)?,
        rows_uncorrected: count(GpuFact::RowsUncorrected)?,
        rows_pending: switch(GpuFact::RowsPending)?,
        rows_failed: switch(GpuFact::RowsFailed)?,
        compute_mode: ask(GpuFact::ComputeMode)?.and_then(|text| match text.as_str() {
            "default" => Ok(ComputeMode::Default),
            "exclusive_thread" => Ok(ComputeMode::ExclusiveThread),
            "exclusive_process" => Ok(ComputeMode::ExclusiveProcess),
            "prohibited" => Ok(ComputeMode::Prohibited),
            _ => Err(garbled("NVML", &text)),
        }),
        compute_processes: number(GpuFact::ComputeProcesses)?,
        display_active: switch(GpuFact::DisplayActive)?,
        pcie_replays: number(GpuFact::PcieReplays)?,
        nvlinks_up: number(GpuFact::NvlinksUp)?,
        nvlinks_down: number(GpuFact::NvlinksDown)?,
    })
}

/// What the driver grants each NVIDIA GPU to do to each other. An older capture gives an empty list.
pub(super) fn peers(machine: &dyn Machine, gpus: &[Gpu]) -> Result<Vec<PeerAccess>, AskError> {
    let of_nvidia: Vec<PciAddress> = gpus.iter().filter(|gpu| gpu.is_nvidia()).map(|gpu| gpu.address).collect();
    let mut peers = Vec::new();
    for from in of_nvidia.iter().copied() {
        for to in of_nvidia.iter().copied().filter(|to| *to != from) {
            let grant = |fact| -> Result<Reading<PeerStatus>, AskError> {
                Ok(text(machine, Question::Peer { from, to, fact })?.and_then(|text| status(&text)))
            };
            let read = grant(PeerFact::Read)?;
            if matches!(&read, Err(Missing { why: Why::NotAsked, .. })) {
                return Ok(Vec::new());
            }
            let (write, atomics, nvlink) =
                (grant(PeerFact::Write)?, grant(PeerFact::Atomics)?, grant(PeerFact::Nvlink)?);
            let cuda = parsed(text(machine, Question::Peer { from, to, fact: PeerFact::Cuda })?, "CUDA");
            peers.push(PeerAccess { from, to, read, write, atomics, nvlink, pcie: Err(Missing::not_asked()), cuda });
        }
    }
    Ok(peers)
}

fn status(text: &str) -> Reading<PeerStatus> {
    match text {
        "ok" => Ok(PeerStatus::Ok),
        "chipset_not_supported" => Ok(PeerStatus::ChipsetNotSupported),
        "gpu_not_supported" => Ok(PeerStatus::GpuNotSupported),
        "topology_not_supported" => Ok(PeerStatus::TopologyNotSupported),
        "disabled_by_registry" => Ok(PeerStatus::DisabledByRegistry),
        "not_supported" => Ok(PeerStatus::NotSupported),
        "unknown" => Ok(PeerStatus::Unknown),
        _ => Err(garbled("NVML", text)),
    }
}
