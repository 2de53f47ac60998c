//! What a rule needs to know: the facts that it judges by and that are missing, so that silence is never taken for "in
//! order".

use std::collections::BTreeMap;

use crate::topology::{Gpu, GpuState, LinkEnd, Missing, PciAddress, PcieState, PeerAccess, Reading, Topology, Why};

use super::Lost;
use super::errors::states;
use super::pcie::nvidia_hops;

/// True for an absence that leaves a question open. A file that is not there and a feature that a device does not offer
/// are answers; what NVML and CUDA could not say is none, and what an imported text or an older capture cannot hold is
/// told elsewhere.
fn is_open(missing: &Missing) -> bool {
    match missing.why {
        Why::Denied | Why::Garbled => true,
        Why::Absent => missing.detail.starts_with("NVML:") || missing.detail.starts_with("CUDA:"),
        Why::Unsupported | Why::NotAsked | Why::Untold => false,
    }
}

/// Why no device has counters: firmware that keeps AER to itself, a hypervisor, or a kernel without it.
const UNCOUNTED: &str = "the kernel counts no errors of PCIe links here";

fn lost<T>(at: Option<String>, fact: &Reading<T>) -> Option<Lost> {
    fact.as_ref().err().filter(|missing| is_open(missing)).map(|missing| (at, missing.clone()))
}

/// For rules that speak of what is unknown themselves, or need nothing that can be missing.
pub(super) fn nothing(_: &Topology) -> Vec<Lost> {
    Vec::new()
}

/// A fact of the whole machine. One without an NVIDIA GPU is asked for it all the same.
pub(super) fn machine<T>(fact: &Reading<T>) -> Vec<Lost> {
    lost(None, fact).into_iter().collect()
}

/// A fact of each NVIDIA GPU.
pub(super) fn gpus<T>(topology: &Topology, fact: impl Fn(&Gpu) -> &Reading<T>) -> Vec<Lost> {
    topology.nvidia_gpus().filter_map(|gpu| lost(Some(gpu.address.to_string()), fact(gpu))).collect()
}

/// A fact that the driver tells of each NVIDIA GPU.
pub(super) fn states_of<T>(topology: &Topology, fact: impl Fn(&GpuState) -> &Reading<T>) -> Vec<Lost> {
    let of = |gpu: &Gpu| lost(Some(gpu.address.to_string()), fact(gpu.nvml.as_ref()?));
    topology.nvidia_gpus().filter_map(of).collect()
}

/// A fact of each NVIDIA GPU and of each bridge above one.
pub(super) fn functions<T>(topology: &Topology, fact: impl Fn(&PcieState) -> &Reading<T>) -> Vec<Lost> {
    states(topology).into_iter().filter_map(|(address, state)| lost(Some(address.to_string()), fact(state))).collect()
}

/// A count of link errors of each NVIDIA GPU and of each bridge above one. Where one of them has it, others that lack it
/// cannot count; where none has it, the kernel was not given the errors (`_OSC` without AER), and nobody knows.
pub(super) fn counters(topology: &Topology, count: impl Fn(&PcieState) -> &Reading<u64>) -> Vec<Lost> {
    let all = states(topology);
    let nowhere = all.iter().all(|(_, state)| count(state).as_ref().is_err_and(|missing| missing.why == Why::Absent));
    let open = |(address, state): (PciAddress, &PcieState)| match nowhere {
        true => Some((Some(address.to_string()), Missing::new(Why::Absent, UNCOUNTED))),
        false => lost(Some(address.to_string()), count(state)),
    };
    all.into_iter().filter_map(open).collect()
}

/// A fact of both ends of each link above an NVIDIA GPU.
pub(super) fn links<T>(topology: &Topology, fact: impl Fn(&LinkEnd) -> &Reading<T>) -> Vec<Lost> {
    let ends = nvidia_hops(topology).into_values().flat_map(|(hop, _)| {
        [(hop.upper, hop.upper_end), (hop.lower, hop.lower_end)].map(|(at, end)| (at, end.clone()))
    });
    ends.filter_map(|(at, end)| lost(Some(at.to_string()), fact(&end))).collect()
}

/// A fact of each ordered pair. Where there are several GPUs and nobody was asked, the list is empty.
pub(super) fn peers<T>(topology: &Topology, fact: impl Fn(&PeerAccess) -> &Reading<T>) -> Vec<Lost> {
    topology.peers.iter().filter_map(|peer| lost(Some(peer.from.to_string()), fact(peer))).collect()
}

/// What was lost, by reason: the devices, each once.
pub(super) fn by_reason(lost: Vec<Lost>) -> (Vec<String>, Vec<String>) {
    let (mut addresses, mut reasons) = (Vec::new(), BTreeMap::<String, ()>::new());
    for (at, missing) in lost {
        addresses.extend(at);
        reasons.insert(reason(&missing), ());
    }
    addresses.sort();
    addresses.dedup();
    (addresses, reasons.into_keys().collect())
}

/// The reason without the name of a single file: one denial is like another.
fn reason(missing: &Missing) -> String {
    let detail = match missing.detail.split_once(": ") {
        Some((path, _)) if path.starts_with('/') => "files of sysfs or procfs",
        _ if missing.detail.starts_with('/') => "files of sysfs or procfs",
        _ => missing.detail.as_str(),
    };
    match detail.is_empty() {
        true => missing.why.to_string(),
        false => format!("{}: {detail}", missing.why),
    }
}
