//! Our view of a machine beside hwloc's, which reads the same kernel by other ways.

use crate::topology::{Gpu, PciAddress, Topology};

/// Where two views of one machine differ in NUMA nodes, their CPUs, cores, and the bridges above GPUs: a sentence for each.
/// What either does not tell is no difference.
#[must_use]
pub fn view_differences(ours: &Topology, theirs: &Topology) -> Vec<String> {
    let mut found = Vec::new();
    if let (Ok(our), Ok(their)) = (&ours.numa, &theirs.numa) {
        let numbers = |nodes: &[crate::topology::NumaNode]| nodes.iter().map(|node| node.node).collect::<Vec<_>>();
        if numbers(our) != numbers(their) {
            found.push(format!("NUMA nodes: {:?} here, {:?} there", numbers(our), numbers(their)));
        }
        for node in our {
            let Some(other) = their.iter().find(|other| other.node == node.node) else { continue };
            if let (Ok(here), Ok(there)) = (&node.cpus, &other.cpus)
                && here != there
            {
                found.push(format!("CPUs of NUMA node {}: {here} here, {there} there", node.node));
            }
        }
    }
    if let (Ok(here), Ok(there)) = (&ours.cpu.online, &theirs.cpu.online)
        && here != there
    {
        found.push(format!("CPUs that are online: {here} here, {there} there"));
    }
    if let (Ok(here), Ok(there)) = (&ours.cpu.sockets, &theirs.cpu.sockets) {
        let cores =
            |sockets: &[crate::topology::Socket]| sockets.iter().map(|socket| socket.cores.len()).collect::<Vec<_>>();
        if cores(here) != cores(there) {
            found.push(format!("cores of each socket: {:?} here, {:?} there", cores(here), cores(there)));
        }
    }
    for gpu in &ours.gpus {
        found.extend(of_gpu(ours, theirs, gpu));
    }
    let only = theirs.gpus.iter().filter(|gpu| ours.gpu(gpu.address).is_none());
    found.extend(only.map(|gpu| format!("the GPU at {} is not seen here", gpu.address)));
    found
}

fn of_gpu(ours: &Topology, theirs: &Topology, gpu: &Gpu) -> Vec<String> {
    let Some(other) = theirs.gpu(gpu.address) else {
        return vec![format!("the GPU at {} is not seen there", gpu.address)];
    };
    let chain = |topology: &Topology, gpu: &Gpu| -> Vec<PciAddress> {
        topology.chain(gpu).iter().map(|bridge| bridge.address).collect()
    };
    let (here, there) = (chain(ours, gpu), chain(theirs, other));
    let listed = |chain: &[PciAddress]| match chain.is_empty() {
        true => "none".to_owned(),
        false => chain.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
    };
    let mut found = Vec::new();
    if here != there {
        let (address, here, there) = (gpu.address, listed(&here), listed(&there));
        found.push(format!("bridges above {address}: {here} here, {there} there"));
    }
    if let (Ok(here), Ok(there)) = (gpu.numa_node.as_ref(), other.numa_node.as_ref())
        && here != there
    {
        found.push(format!("NUMA node of {}: {here} here, {there} there", gpu.address));
    }
    if let (Ok(here), Ok(there)) = (gpu.id.as_ref(), other.id.as_ref())
        && here != there
    {
        found.push(format!("model of {}: {here} here, {there} there", gpu.address));
    }
    found
}
