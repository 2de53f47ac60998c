//! Rules about sockets, NUMA nodes, isolation, limits and virtualisation.

use std::collections::{BTreeMap, BTreeSet};

use crate::topology::{ContainerKind, CpuSet, Gpu, IommuDomain, Limit, NumaNode, Topology, Why};
use crate::units::Bytes;

use super::peers::no_peers_by_product;
use super::{Breach, addresses};

/// What Docker gives a container that asks for nothing else.
const SHM_SMALL: Bytes = Bytes(64 << 20);

/// A breach that is about the whole machine.
fn of_machine(seen: String, expected: String) -> Vec<Breach> {
    vec![Breach { addresses: Vec::new(), seen, expected }]
}

pub(super) fn numa_unknown(topology: &Topology) -> Vec<Breach> {
    let nodes = topology.nodes().len();
    let lost: Vec<(&Gpu, String)> = topology
        .nvidia_gpus()
        .filter_map(|gpu| {
            let missing = gpu.numa_node.as_ref().err().filter(|missing| !missing.is_untold())?;
            Some((gpu, missing.to_string()))
        })
        .collect();
    match lost.first() {
        Some((_, why)) if 1 < nodes => vec![Breach {
            addresses: addresses(lost.iter().map(|(gpu, _)| *gpu)),
            seen: why.clone(),
            expected: format!("one of the machine's {nodes} NUMA nodes"),
        }],
        _ => Vec::new(),
    }
}

pub(super) fn across_sockets(topology: &Topology) -> Vec<Breach> {
    let mut sockets: BTreeMap<u32, Vec<&Gpu>> = BTreeMap::new();
    for gpu in topology.nvidia_gpus() {
        let node = topology.nodes().iter().find(|node| gpu.numa_node == Ok(node.node));
        let cpu = node.and_then(|node| node.cpus.as_ref().ok()).and_then(|cpus| cpus.cpus().first());
        if let Some(socket) = cpu.and_then(|cpu| topology.socket_of_cpu(*cpu)) {
            sockets.entry(socket).or_default().push(gpu);
        }
    }
    if sockets.len() < 2 {
        return Vec::new();
    }
    let counts: Vec<String> =
        sockets.iter().map(|(socket, gpus)| format!("{} on socket {socket}", gpus.len())).collect();
    vec![Breach {
        addresses: addresses(sockets.into_values().flatten()),
        seen: format!("GPUs on several sockets: {}", counts.join(", ")),
        expected: "all on one socket, so that no exchange crosses the link between sockets".to_owned(),
    }]
}

pub(super) fn iommu_translating(topology: &Topology) -> Vec<Breach> {
    if no_peers_by_product(topology) { Vec::new() } else { translating(topology) }
}

pub(super) fn iommu_translating_unused(topology: &Topology) -> Vec<Breach> {
    if no_peers_by_product(topology) { translating(topology) } else { Vec::new() }
}

fn translating(topology: &Topology) -> Vec<Breach> {
    let translated = |gpu: &&Gpu| matches!(gpu.iommu_domain, Ok(IommuDomain::Dma | IommuDomain::DmaFq));
    let gpus: Vec<&Gpu> = topology.nvidia_gpus().filter(translated).collect();
    let Some(Ok(domain)) = gpus.first().map(|gpu| &gpu.iommu_domain) else { return Vec::new() };
    let kernel_word = if *domain == IommuDomain::Dma { "DMA" } else { "DMA-FQ" };
    vec![Breach {
        addresses: addresses(gpus),
        seen: format!("the type of the GPUs' IOMMU group is {kernel_word}: each address is translated"),
        expected: "identity, or no IOMMU: translation sends traffic between GPUs through the CPU".to_owned(),
    }]
}

pub(super) fn shm_small(topology: &Topology) -> Vec<Breach> {
    match topology.container.shm_bytes {
        Ok(size) if size <= SHM_SMALL && 1 < topology.nvidia_gpus().count() => {
            of_machine(format!("/dev/shm holds {size}"), "more than 64.0 MiB: 1 GiB is ample for NCCL".to_owned())
        }
        _ => Vec::new(),
    }
}

pub(super) fn cpu_quota(topology: &Topology) -> Vec<Breach> {
    match (&topology.container.cpu_quota, &topology.cpu.allowed) {
        (Ok(Limit::AtMost(quota)), Ok(allowed)) if *quota < allowed.len() as f64 => of_machine(
            format!("the control group pays for {quota} CPUs, the process may run on {}", allowed.len()),
            "a quota of at least the CPUs allowed: beyond it the kernel stops every thread until the next period"
                .to_owned(),
        ),
        _ => Vec::new(),
    }
}

pub(super) fn governor(topology: &Topology) -> Vec<Breach> {
    match &topology.cpu.governors {
        Ok(governors) if governors.iter().any(|governor| governor != "performance") => {
            of_machine(format!("scaling_governor: {}", governors.join(", ")), "performance on every core".to_owned())
        }
        _ => Vec::new(),
    }
}

pub(super) fn virtual_machine(topology: &Topology) -> Vec<Breach> {
    match topology.system.virtual_machine {
        Ok(true) => {
            let names = [&topology.machine.vendor, &topology.machine.product];
            let product: Vec<&str> = names.iter().filter_map(|name| name.as_deref().ok()).collect();
            let by = if product.is_empty() { String::new() } else { format!(" ({})", product.join(" ")) };
            of_machine(format!("the CPU flag `hypervisor` is set{by}"), "bare metal".to_owned())
        }
        _ => Vec::new(),
    }
}

/// The NUMA node of a GPU, where the machine lists it.
fn node_of<'a>(topology: &'a Topology, gpu: &Gpu) -> Option<&'a NumaNode> {
    topology.nodes().iter().find(|node| gpu.numa_node == Ok(node.node))
}

pub(super) fn across_nodes(topology: &Topology) -> Vec<Breach> {
    let mut sockets: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    for node in topology.nvidia_gpus().filter_map(|gpu| node_of(topology, gpu)) {
        let cpu = node.cpus.as_ref().ok().and_then(|cpus| cpus.cpus().first());
        if let Some(socket) = cpu.and_then(|cpu| topology.socket_of_cpu(*cpu)) {
            sockets.entry(socket).or_default().insert(node.node);
        }
    }
    let split = sockets.into_iter().filter(|(_, nodes)| 1 < nodes.len());
    let breach = |(socket, nodes): (u32, BTreeSet<u32>)| Breach {
        addresses: addresses(
            topology.nvidia_gpus().filter(|gpu| gpu.numa_node.as_ref().is_ok_and(|node| nodes.contains(node))),
        ),
        seen: format!("socket {socket} is split: its GPUs are on {} NUMA nodes", nodes.len()),
        expected: "one NUMA node per socket, so that NCCL counts no crossing between them".to_owned(),
    };
    split.map(breach).collect()
}

pub(super) fn node_without_memory(topology: &Topology) -> Vec<Breach> {
    let empty = |gpu: &&Gpu| node_of(topology, gpu).is_some_and(|node| node.memory_bytes == Ok(Bytes(0)));
    let gpus: Vec<&Gpu> = topology.nvidia_gpus().filter(empty).collect();
    if gpus.is_empty() {
        return Vec::new();
    }
    vec![Breach {
        addresses: addresses(gpus),
        seen: "the NUMA node of these GPUs has no memory (MemTotal 0)".to_owned(),
        expected: "memory at the node of each GPU: what a GPU sends through the host would cross nodes".to_owned(),
    }]
}

pub(super) fn memory_uneven(topology: &Topology) -> Vec<Breach> {
    let with_cpus = topology.nodes().iter().filter(|node| node.cpus.as_ref().is_ok_and(|cpus| !cpus.is_empty()));
    let sizes: Option<Vec<u64>> = with_cpus.map(|node| node.memory_bytes.as_ref().ok().map(|bytes| bytes.0)).collect();
    let sizes = sizes.unwrap_or_default();
    match (sizes.iter().min(), sizes.iter().max()) {
        // A tenth is more than what firmware keeps for itself at one node.
        (Some(least), Some(most)) if topology.has_nvidia_gpu() && *least < most - most / 10 => of_machine(
            format!("NUMA nodes hold from {} to {}", Bytes(*least), Bytes(*most)),
            "the same at every node, with each memory channel populated".to_owned(),
        ),
        _ => Vec::new(),
    }
}

/// Channels as the firmware names them. Where it names none, no place says to which channel it belongs.
pub(super) fn channels_empty(topology: &Topology) -> Vec<Breach> {
    let Ok(slots) = &topology.system.memory_slots else { return Vec::new() };
    let named = slots.iter().filter(|slot| slot.channel.to_ascii_uppercase().contains("CHANNEL"));
    let mut channels: BTreeMap<&str, bool> = BTreeMap::new();
    for slot in named {
        *channels.entry(slot.channel.as_str()).or_default() |= slot.bytes.is_some();
    }
    let empty: Vec<&str> = channels.iter().filter(|(_, filled)| !**filled).map(|(channel, _)| *channel).collect();
    match topology.has_nvidia_gpu() && !empty.is_empty() {
        true => of_machine(
            format!("{} of {} memory channels are empty: {}", empty.len(), channels.len(), empty.join(", ")),
            "a module in every channel: each empty one takes its share of the memory bandwidth".to_owned(),
        ),
        false => Vec::new(),
    }
}

pub(super) fn numa_balancing(topology: &Topology) -> Vec<Breach> {
    match topology.settings.numa_balancing {
        Ok(true) if topology.has_nvidia_gpu() && 1 < topology.nodes().len() => of_machine(
            "the kernel moves memory between NUMA nodes (/proc/sys/kernel/numa_balancing)".to_owned(),
            "0 while a machine is measured: moving pages stops what uses them".to_owned(),
        ),
        _ => Vec::new(),
    }
}

/// True when the kernel was started with this parameter, or with one that begins so where it ends in `=`.
fn started_with(topology: &Topology, parameter: &str) -> bool {
    let matches = |word: &str| if parameter.ends_with('=') { word.starts_with(parameter) } else { word == parameter };
    topology.system.command_line.as_ref().is_ok_and(|line| line.split_whitespace().any(matches))
}

pub(super) fn numa_off(topology: &Topology) -> Vec<Breach> {
    let sockets = topology.cpu.sockets.as_ref().map_or(0, Vec::len);
    match started_with(topology, "numa=off") && 1 < sockets && topology.has_nvidia_gpu() {
        true => of_machine(
            format!("the kernel was started with numa=off on a machine of {sockets} sockets"),
            "NUMA nodes, so that ranks and their memory can be put beside their GPU".to_owned(),
        ),
        false => Vec::new(),
    }
}

pub(super) fn acs_override(topology: &Topology) -> Vec<Breach> {
    match started_with(topology, "pcie_acs_override=") && topology.has_nvidia_gpu() {
        true => of_machine(
            "the kernel was started with pcie_acs_override=".to_owned(),
            "a kernel without that patch: it claims isolation that is not there, and helps no transfer".to_owned(),
        ),
        false => Vec::new(),
    }
}

pub(super) fn cpus_far(topology: &Topology) -> Vec<Breach> {
    let Ok(allowed) = &topology.cpu.allowed else { return Vec::new() };
    let far = |gpu: &&Gpu| match node_of(topology, gpu).map(|node| &node.cpus) {
        Some(Ok(cpus)) if !cpus.is_empty() => !cpus.cpus().iter().any(|cpu| allowed.contains(*cpu)),
        _ => false,
    };
    let gpus: Vec<&Gpu> = topology.nvidia_gpus().filter(far).collect();
    if gpus.is_empty() {
        return Vec::new();
    }
    vec![Breach {
        addresses: addresses(gpus),
        seen: format!("this process may run on CPUs {allowed}, none of them at the NUMA node of these GPUs"),
        expected: "some CPUs beside each GPU".to_owned(),
    }]
}

pub(super) fn cpus_few(topology: &Topology) -> Vec<Breach> {
    let (cores, gpus) = (topology.cores().len(), topology.nvidia_gpus().count());
    // A process that may run on half a core only has no whole one; that is another matter.
    let allowed = topology.cpu.allowed.as_ref().map_or(0, CpuSet::len);
    match 0 < cores && cores < gpus && 0 < allowed {
        true => of_machine(
            format!("{cores} core(s) for {gpus} GPUs"),
            "a core of its own for the process of each GPU".to_owned(),
        ),
        false => Vec::new(),
    }
}

pub(super) fn memlock_small(topology: &Topology) -> Vec<Breach> {
    match (&topology.container.memlock_bytes, &topology.container.kind) {
        (Ok(Limit::AtMost(most)), Ok(kind)) if *kind != ContainerKind::None && 1 < topology.nvidia_gpus().count() => {
            of_machine(
                format!("a process in this container may lock {most} in memory"),
                "unlimited (NVIDIA, container documentation: `--ulimit memlock=-1`)".to_owned(),
            )
        }
        _ => Vec::new(),
    }
}

pub(super) fn virtual_topology(topology: &Topology) -> Vec<Breach> {
    match topology.settings.virtual_topology {
        Ok(true) => of_machine(
            "NCCL reads /run/nvidia-topologyd/virtualTopology.xml".to_owned(),
            "no such file: NCCL looks at the machine itself (NCCL documentation, NCCL_TOPO_FILE)".to_owned(),
        ),
        _ => Vec::new(),
    }
}

pub(super) fn never_asked(topology: &Topology) -> Vec<Breach> {
    match &topology.settings.root {
        _ if !topology.has_nvidia_gpu() => Vec::new(),
        Err(missing) if missing.why == Why::NotAsked => of_machine(
            "an older version wrote this: error counters, ACS, peer access and the state of the GPUs are unknown"
                .to_owned(),
            "every fact that this version asks for".to_owned(),
        ),
        _ if topology.software.nccl.as_ref().is_err_and(|missing| missing.why == Why::NotAsked) => of_machine(
            "an older version wrote this: versions of NCCL and CUDA's libraries, NCCL's environment and memory channels \
             are unknown"
                .to_owned(),
            "every fact that this version asks for".to_owned(),
        ),
        _ => Vec::new(),
    }
}
