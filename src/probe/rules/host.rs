//! Rules about sockets, NUMA nodes, isolation, limits and virtualisation.

use std::collections::BTreeMap;

use crate::topology::{Gpu, IommuDomain, Limit, Topology};
use crate::units::Bytes;

use super::Breach;

/// What Docker gives a container that asks for nothing else.
const SHM_SMALL: Bytes = Bytes(64 << 20);

fn addresses<'a>(gpus: impl IntoIterator<Item = &'a Gpu>) -> Vec<String> {
    gpus.into_iter().map(|gpu| gpu.address.to_string()).collect()
}

/// A breach that is about the whole machine.
fn of_machine(seen: String, expected: String) -> Vec<Breach> {
    vec![Breach { addresses: Vec::new(), seen, expected }]
}

pub(super) fn numa_unknown(topology: &Topology) -> Vec<Breach> {
    let nodes = topology.nodes().len();
    let lost: Vec<(&Gpu, String)> = topology
        .nvidia_gpus()
        .filter_map(|gpu| gpu.numa_node.as_ref().err().map(|missing| (gpu, missing.to_string())))
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
