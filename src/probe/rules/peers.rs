//! Rules about what one GPU may do to the memory of another, and what lies in the way.

use crate::topology::{Bridge, Gpu, PathClass, PciAddress, PeerAccess, PeerStatus, Topology, Why};

use super::{Breach, addresses};

/// A GPU that NVIDIA sells for games: its driver withholds peer access on PCIe.
fn is_geforce(gpu: &Gpu) -> bool {
    gpu.name().contains("GeForce")
}

/// What was answered to reading and to writing.
fn answers(peer: &PeerAccess) -> impl Iterator<Item = PeerStatus> {
    [&peer.read, &peer.write].into_iter().filter_map(|status| status.as_ref().ok().copied())
}

/// True where the refusal is a decision about the product, which nothing in this machine can change.
fn by_product(topology: &Topology, peer: &PeerAccess) -> bool {
    let geforce = [peer.from, peer.to].iter().any(|at| topology.gpu(*at).is_some_and(is_geforce));
    let refused: Vec<PeerStatus> = answers(peer).filter(|status| *status != PeerStatus::Ok).collect();
    let product = |status: &PeerStatus| match status {
        PeerStatus::GpuNotSupported => true,
        PeerStatus::ChipsetNotSupported | PeerStatus::NotSupported => geforce,
        _ => false,
    };
    !refused.is_empty() && refused.iter().all(product)
}

/// True where a refusal may be about the product, and the product is unknown, as in a grid of grants alone.
fn may_be_product(topology: &Topology, peer: &PeerAccess) -> bool {
    let unnamed = |gpu: &Gpu| gpu.id.is_err() && gpu.nvml.as_ref().is_none_or(|state| state.name.is_err());
    let product = |status| matches!(status, PeerStatus::ChipsetNotSupported | PeerStatus::NotSupported);
    [peer.from, peer.to].iter().any(|at| topology.gpu(*at).is_some_and(unnamed)) && answers(peer).any(product)
}

/// One breach for all ordered pairs that `refuses` names, with the answers of the driver.
fn refusal(topology: &Topology, expected: &str, refuses: impl Fn(&PeerAccess) -> bool) -> Vec<Breach> {
    let refused: Vec<&PeerAccess> = topology.peers.iter().filter(|peer| refuses(peer)).collect();
    if refused.is_empty() {
        return Vec::new();
    }
    let mut words: Vec<PeerStatus> = refused.iter().flat_map(|peer| answers(peer)).collect();
    words.retain(|status| *status != PeerStatus::Ok);
    words.sort_unstable();
    words.dedup();
    let words: Vec<&str> = words.into_iter().map(PeerStatus::letters).collect();
    let mut gpus: Vec<PciAddress> = refused.iter().flat_map(|peer| [peer.from, peer.to]).collect();
    gpus.sort_unstable();
    gpus.dedup();
    vec![Breach {
        addresses: gpus.iter().map(ToString::to_string).collect(),
        seen: format!(
            "the driver answers {} to {} of {} ordered pairs (nvmlDeviceGetP2PStatus, as `nvidia-smi topo -p2p`)",
            words.join(", "),
            refused.len(),
            topology.peers.len()
        ),
        expected: expected.to_owned(),
    }]
}

pub(super) fn refused_product(topology: &Topology) -> Vec<Breach> {
    let expected = "OK on a product with peer access; this one exchanges through the host's memory";
    refusal(topology, expected, |peer| by_product(topology, peer))
}

pub(super) fn refused(topology: &Topology) -> Vec<Breach> {
    refusal(topology, "OK for reading and writing, which this product offers", |peer| {
        let other = |status| !matches!(status, PeerStatus::Ok | PeerStatus::DisabledByRegistry);
        answers(peer).any(other) && !by_product(topology, peer) && !may_be_product(topology, peer)
    })
}

pub(super) fn disabled(topology: &Topology) -> Vec<Breach> {
    refusal(topology, "OK: no setting of the driver against it", |peer| {
        answers(peer).any(|status| status == PeerStatus::DisabledByRegistry)
    })
}

pub(super) fn one_way(topology: &Topology) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for there in topology.peers.iter().filter(|peer| peer.from < peer.to) {
        let back = topology.peers.iter().find(|peer| (peer.from, peer.to) == (there.to, there.from));
        let Some(back) = back else { continue };
        for (what, one, other) in [("read", &there.read, &back.read), ("write", &there.write, &back.write)] {
            match (one, other) {
                (Ok(one), Ok(other)) if one != other => breaches.push(Breach {
                    addresses: vec![there.from.to_string(), there.to.to_string()],
                    seen: format!("to {what}: {one} from {} to {}, {other} back", there.from, there.to),
                    expected: "the same answer in both directions".to_owned(),
                }),
                _ => {}
            }
        }
    }
    breaches
}

/// NCCL's own rule (2.30.7, `ncclTopoCheckP2p` in src/graph/paths.cc): no peer access beyond PXB, but for two GPUs at
/// most on AMD.
pub(super) fn host_staged(topology: &Topology) -> Vec<Breach> {
    let amd = topology.cpu.model.as_ref().is_ok_and(|model| model.starts_with("AMD"));
    if topology.cpu.model.is_err() || (amd && topology.nvidia_gpus().count() <= 2) {
        return Vec::new();
    }
    let granted = |from, to| {
        let of_pair = |peer: &&PeerAccess| (peer.from, peer.to) == (from, to);
        let peer = topology.peers.iter().find(of_pair);
        peer.is_some_and(|peer| peer.read == Ok(PeerStatus::Ok) && peer.write == Ok(PeerStatus::Ok))
    };
    let bridged = |from, to| {
        let over = |peer: &PeerAccess| peer.nvlink == Ok(PeerStatus::Ok) && (peer.from, peer.to) == (from, to);
        topology.peers.iter().any(over)
    };
    let far: Vec<_> = topology
        .pairs
        .iter()
        .filter(|pair| pair.path.as_ref().is_ok_and(|path| PathClass::Pxb < *path))
        .filter(|pair| granted(pair.a, pair.b) && granted(pair.b, pair.a) && !bridged(pair.a, pair.b))
        .collect();
    let Some(farthest) = far.iter().filter_map(|pair| pair.path.clone().ok()).max() else { return Vec::new() };
    vec![Breach {
        addresses: addresses(
            topology.nvidia_gpus().filter(|gpu| far.iter().any(|pair| [pair.a, pair.b].contains(&gpu.address))),
        ),
        seen: format!(
            "{} pair(s) have peer access and lie {farthest} apart or nearer: beyond PXB, NCCL's default, it goes through \
             the host's memory",
            far.len()
        ),
        expected: "peer access in use where the driver grants it (NCCL 2.30.7, src/graph/paths.cc)".to_owned(),
    }]
}

/// The bridges above NVIDIA GPUs, where there are several of these.
fn bridges_of_peers(topology: &Topology) -> Vec<&Bridge> {
    if topology.nvidia_gpus().count() < 2 {
        return Vec::new();
    }
    let above = |bridge: &&Bridge| {
        topology.nvidia_gpus().any(|gpu| topology.chain(gpu).iter().any(|one| one.address == bridge.address))
    };
    topology.bridges.iter().filter(above).collect()
}

pub(super) fn redirected(topology: &Topology) -> Vec<Breach> {
    let redirects = |bridge: &Bridge| bridge.pcie.acs.clone().map(|acs| acs.redirects()).unwrap_or_default();
    let mut bridges = bridges_of_peers(topology);
    bridges.retain(|bridge| !redirects(bridge).is_empty());
    let Some(first) = bridges.first() else { return Vec::new() };
    vec![Breach {
        addresses: bridges.iter().map(|bridge| bridge.address.to_string()).collect(),
        seen: format!(
            "{} port(s) above GPUs redirect what peers send each other: {}",
            bridges.len(),
            redirects(first).join(", ")
        ),
        expected: "ReqRedir-, CmpltRedir- and EgressCtrl- in ACSCtl (NCCL, GPU troubleshooting: PCI access control \
                   services); SrcValid+ does no harm"
            .to_owned(),
    }]
}

pub(super) fn config_denied(topology: &Topology) -> Vec<Breach> {
    let gpus = topology.nvidia_gpus().map(|gpu| (gpu.address, &gpu.pcie));
    let bridges = bridges_of_peers(topology).into_iter().map(|bridge| (bridge.address, &bridge.pcie));
    let hidden = gpus.chain(bridges).filter(|(_, state)| {
        [state.acs.as_ref().err(), state.aspm.as_ref().err()]
            .into_iter()
            .flatten()
            .any(|missing| missing.why == Why::Denied)
    });
    let hidden: Vec<String> = hidden.map(|(address, _)| address.to_string()).collect();
    match hidden.len() {
        0 => Vec::new(),
        count => vec![Breach {
            addresses: hidden,
            seen: format!("of {count} function(s) only the head of configuration space is shown"),
            expected: "all of it, as root reads it: ACS, ASPM and packet sizes are unknown (needs root)".to_owned(),
        }],
    }
}
