//! What the driver grants between GPUs, and NVLinks, in a line each.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::topology::{PciAddress, PeerAccess, PeerStatus, Reading, Topology, Why};

use super::{shown, wrapped};

/// Writes what is known of grants and NVLinks.
pub(super) fn list(out: &mut fmt::Formatter<'_>, topology: &Topology) -> fmt::Result {
    for (name, told) in CAPABILITIES {
        grant(
            out,
            name,
            topology.peers.iter().filter_map(|peer| match told(peer) {
                Ok(status) => Some(granted(*status).to_owned()),
                // What nobody told has no line; what could not be found out has.
                Err(missing) if matches!(missing.why, Why::Untold | Why::NotAsked | Why::Unsupported) => None,
                Err(missing) => Some(format!("unknown ({missing})")),
            }),
        )?;
    }
    let unnamed = topology.peers.iter().filter(|peer| CAPABILITIES.iter().all(|(_, told)| told(peer).is_err()));
    grant(
        out,
        "of some kind",
        unnamed
            .filter_map(|peer| peer.read.as_ref().err().filter(|missing| missing.is_untold()).map(ToString::to_string)),
    )?;
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

/// What of a pair is told under which name.
type Told = fn(&PeerAccess) -> &Reading<PeerStatus>;

const CAPABILITIES: [(&str, Told); 5] = [
    ("read", |peer| &peer.read),
    ("write", |peer| &peer.write),
    ("atomics", |peer| &peer.atomics),
    ("over NVLink", |peer| &peer.nvlink),
    ("over PCIe", |peer| &peer.pcie),
];

/// Writes how many ordered pairs say what of one capability; nothing where none says anything.
fn grant<T: Ord + fmt::Display>(
    out: &mut fmt::Formatter<'_>,
    name: &str,
    answers: impl Iterator<Item = T>,
) -> fmt::Result {
    let mut counts: BTreeMap<T, usize> = BTreeMap::new();
    for answer in answers {
        *counts.entry(answer).or_default() += 1;
    }
    if counts.is_empty() {
        return Ok(());
    }
    let counts: Vec<String> = counts.iter().map(|(answer, count)| format!("{count} × {answer}")).collect();
    let label = format!("{:19}", format!("P2P {name}"));
    out.write_str(&wrapped(&label, &format!("{} (ordered pairs; a grant is not delivery)", counts.join(", "))))
}

fn granted(status: PeerStatus) -> &'static str {
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
