//! Rules about errors of PCIe links, and about how links are set.

use crate::topology::{Aspm, Gpu, PciAddress, PcieState, Reading, Topology};

use super::Breach;
use super::pcie::{judged_hops, named, nvidia_hops};

/// What DCGM 4.6 lets pass: errors per minute that the link mended, for Gen5 x16 and for anything less.
const MENDED_PER_MINUTE: [u64; 2] = [32, 16];
/// What DCGM 4.6 lets pass: packets sent again (`max_pcie_replays`).
const REPLAYS_MAX: u32 = 80;
/// What a device starts with (PCI Express Base Specification 6.0, section 7.5.3.4).
const READ_REQUEST_BYTES: u32 = 512;

/// The state of every NVIDIA GPU and of every bridge above one, each once.
pub(super) fn states(topology: &Topology) -> Vec<(PciAddress, &PcieState)> {
    let gpus = topology.nvidia_gpus().map(|gpu| (gpu.address, &gpu.pcie));
    let bridges = topology.nvidia_gpus().flat_map(|gpu| topology.chain(gpu));
    let mut all: Vec<_> = gpus.chain(bridges.map(|bridge| (bridge.address, &bridge.pcie))).collect();
    all.sort_by_key(|(address, _)| *address);
    all.dedup_by_key(|(address, _)| *address);
    all
}

/// A breach for each function of which `check` says something.
fn each(topology: &Topology, expected: &str, check: impl Fn(&PcieState) -> Option<String>) -> Vec<Breach> {
    let breach = |(address, state): (PciAddress, &PcieState)| {
        Some(Breach {
            addresses: vec![address.to_string()],
            seen: format!("{}: {}", named(topology, address), check(state)?),
            expected: expected.to_owned(),
        })
    };
    states(topology).into_iter().filter_map(breach).collect()
}

/// A number that is known and not zero.
fn some(count: &Reading<u64>) -> Option<u64> {
    count.as_ref().ok().copied().filter(|count| 0 < *count)
}

pub(super) fn correctable(topology: &Topology) -> Vec<Breach> {
    let Ok(uptime_s) = topology.settings.uptime_s else { return Vec::new() };
    let wide = nvidia_hops(topology).into_values().all(|(hop, _)| hop.max().is_ok_and(|max| max.rate().0 > 60e9));
    let most = MENDED_PER_MINUTE[usize::from(!wide)];
    let expected = format!("at most {most} a minute (DCGM, PCIe plug-in)");
    each(topology, &expected, |state| {
        let count = some(&state.correctable_errors)?;
        let minutes = uptime_s.div_ceil(60).max(1);
        let text = || format!("errors mended: {count} in {minutes} min (aer_dev_correctable)");
        (most < count / minutes).then(text)
    })
}

pub(super) fn nonfatal(topology: &Topology) -> Vec<Breach> {
    each(topology, "none: each cost a packet", |state| {
        some(&state.nonfatal_errors).map(|count| format!("errors that were not mended: {count} (aer_dev_nonfatal)"))
    })
}

pub(super) fn fatal(topology: &Topology) -> Vec<Breach> {
    each(topology, "none: each cost the link", |state| {
        some(&state.fatal_errors).map(|count| format!("fatal errors: {count} (aer_dev_fatal)"))
    })
}

pub(super) fn remembered(topology: &Topology) -> Vec<Breach> {
    each(topology, "no bit set (UESta, CESta)", |state| {
        let seen = state.errors_seen.as_ref().ok().filter(|seen| !seen.is_empty())?;
        Some(format!("its error registers remember {}", seen.join(", ")))
    })
}

pub(super) fn replays(topology: &Topology) -> Vec<Breach> {
    let breach = |gpu: &Gpu| {
        let count = *gpu.nvml.as_ref()?.condition.pcie_replays.as_ref().ok()?;
        (REPLAYS_MAX < count).then(|| Breach {
            addresses: vec![gpu.address.to_string()],
            seen: format!("{}: {count} packets sent again (nvmlDeviceGetPcieReplayCounter)", gpu.name()),
            expected: format!("at most {REPLAYS_MAX} (DCGM, PCIe plug-in)"),
        })
    };
    topology.nvidia_gpus().filter_map(breach).collect()
}

/// The state of the function at `address`.
fn state(topology: &Topology, address: PciAddress) -> Option<&PcieState> {
    let of_bridge = || topology.bridge(address).map(|bridge| &bridge.pcie);
    topology.gpu(address).map(|gpu| &gpu.pcie).or_else(of_bridge)
}

pub(super) fn aspm(topology: &Topology) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for (upper, lower) in nvidia_hops(topology).into_values().map(|(hop, _)| (hop.upper, hop.lower)) {
        let modes = [upper, lower].map(|address| state(topology, address).and_then(|state| state.aspm.clone().ok()));
        if let Some(mode) = modes.into_iter().flatten().find(|mode| *mode != Aspm::Off) {
            breaches.push(Breach {
                addresses: vec![upper.to_string(), lower.to_string()],
                seen: format!("the link between {upper} and {lower} may sleep: ASPM {mode} (LnkCtl)"),
                expected: "ASPM off while a machine is measured: a link that wakes up delays what it carries"
                    .to_owned(),
            });
        }
    }
    breaches
}

pub(super) fn payload_mismatch(topology: &Topology) -> Vec<Breach> {
    let judged = nvidia_hops(topology).into_values().filter_map(|(hop, _)| {
        let (upper, lower) = (state(topology, hop.upper)?, state(topology, hop.lower)?);
        let (above, below) = (upper.max_payload_bytes.clone().ok()?, lower.max_payload_bytes.clone().ok()?);
        (above < below).then(|| Breach {
            addresses: vec![hop.upper.to_string(), hop.lower.to_string()],
            seen: format!(
                "{} sends up to {below} bytes in a packet, {} takes {above} (MaxPayload)",
                hop.lower, hop.upper
            ),
            expected: "a device that sends no more than the port above it takes (PCIe, section 7.5.3.4)".to_owned(),
        })
    });
    judged.collect()
}

pub(super) fn payload_small(topology: &Topology) -> Vec<Breach> {
    let judged = topology.nvidia_gpus().filter_map(|gpu| {
        let hops = judged_hops(topology, gpu);
        let ends: Vec<&PcieState> =
            hops.iter().flat_map(|hop| [hop.upper, hop.lower]).filter_map(|at| state(topology, at)).collect();
        let offered = ends.iter().map(|state| state.max_payload_offered_bytes.clone().ok());
        let offered = offered.collect::<Option<Vec<u32>>>()?.into_iter().min()?;
        let used = gpu.pcie.max_payload_bytes.clone().ok()?;
        (used < offered).then(|| Breach {
            addresses: vec![gpu.address.to_string()],
            seen: format!("{}: {used} bytes in a packet (MaxPayload in DevCtl)", gpu.name()),
            expected: format!("{offered}, which every port on its path takes (DevCap)"),
        })
    });
    judged.collect()
}

pub(super) fn read_request_small(topology: &Topology) -> Vec<Breach> {
    let judged = topology.nvidia_gpus().filter_map(|gpu| {
        let bytes = gpu.pcie.max_read_request_bytes.clone().ok()?;
        (bytes < READ_REQUEST_BYTES).then(|| Breach {
            addresses: vec![gpu.address.to_string()],
            seen: format!("{}: it asks for {bytes} bytes at once (MaxReadReq)", gpu.name()),
            expected: format!("{READ_REQUEST_BYTES}, what a device starts with (PCIe, section 7.5.3.4)"),
        })
    });
    judged.collect()
}
