//! What the driver grants between GPUs, and NVLinks, in a line each.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::topology::{PciAddress, PeerCapability, PeerStatus, Topology};

use super::{shown, wrapped};

/// Writes what is known of grants and NVLinks.
pub(super) fn list(out: &mut fmt::Formatter<'_>, topology: &Topology) -> fmt::Result {
    let mut grants: BTreeMap<Option<PeerCapability>, BTreeMap<PeerStatus, usize>> = BTreeMap::new();
    for peer in topology.peers.iter().flatten() {
        let capability = peer.capability.as_ref().ok().copied();
        *grants.entry(capability).or_default().entry(peer.status).or_default() += 1;
    }
    for (capability, counts) in grants {
        let counts: Vec<String> =
            counts.iter().map(|(status, count)| format!("{count} × {}", status_name(*status))).collect();
        let label = format!("{:19}", format!("P2P {}", capability.map_or("of unknown kind", capability_name)));
        out.write_str(&wrapped(&label, &format!("{} (ordered pairs; a grant is not delivery)", counts.join(", "))))?;
    }
    let mut links: BTreeMap<PciAddress, (u64, BTreeSet<String>)> = BTreeMap::new();
    for link in topology.nvlinks.iter().flatten() {
        let (count, neighbours) = links.entry(link.gpu).or_default();
        *count += u64::from(link.count);
        neighbours.insert(link.target.as_ref().map_or_else(|_| "a hidden switch".to_owned(), |target| shown(*target)));
    }
    for (gpu, (count, neighbours)) in links {
        let to = match neighbours.len() {
            1 => neighbours.into_iter().next().unwrap_or_default(),
            several => format!("{several} neighbours"),
        };
        out.write_str(&wrapped(&format!("{:19}", "NVLink"), &format!("{}: {count} to {to}", shown(gpu))))?;
    }
    Ok(())
}

fn capability_name(capability: PeerCapability) -> &'static str {
    match capability {
        PeerCapability::Read => "read",
        PeerCapability::Write => "write",
        PeerCapability::Nvlink => "over NVLink",
        PeerCapability::Atomics => "atomics",
        PeerCapability::Pcie => "over PCIe",
    }
}

fn status_name(status: PeerStatus) -> &'static str {
    match status {
        PeerStatus::Ok => "granted",
        PeerStatus::ChipsetNotSupported => "refused for the chipset",
        PeerStatus::GpuNotSupported => "refused for the GPU",
        PeerStatus::TopologyNotSupported => "refused for the topology",
        PeerStatus::DisabledByRegistry => "switched off by a registry key",
        PeerStatus::NotSupported => "not supported",
        PeerStatus::Unknown => "unknown",
    }
}
