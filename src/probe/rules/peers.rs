//! Rules about what one GPU may do to the memory of another, and what lies in the way.

use crate::topology::{Bridge, Gpu, PciAddress, PeerAccess, PeerStatus, Topology, Why};

use super::Breach;

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

/// True where the driver grants no pair anything because of the product: then nothing can stand in the way of peers.
pub(super) fn no_peers_by_product(topology: &Topology) -> bool {
    !topology.peers.is_empty() && topology.peers.iter().all(|peer| by_product(topology, peer))
}

pub(super) fn redirected(topology: &Topology) -> Vec<Breach> {
    if no_peers_by_product(topology) { Vec::new() } else { redirecting(topology) }
}

pub(super) fn redirected_unused(topology: &Topology) -> Vec<Breach> {
    if no_peers_by_product(topology) { redirecting(topology) } else { Vec::new() }
}

pub(super) fn cuda_differs(topology: &Topology) -> Vec<Breach> {
    let told = topology.peers.iter().filter_map(|peer| Some((peer, *peer.cuda.as_ref().ok()?)));
    let unlike: Vec<&PeerAccess> = told
        .filter(|(peer, cuda)| {
            let granted = answers(peer).count() == 2 && answers(peer).all(|status| status == PeerStatus::Ok);
            let bridged = peer.nvlink == Ok(PeerStatus::Ok);
            answers(peer).count() == 2 && *cuda != (granted || bridged)
        })
        .map(|(peer, _)| peer)
        .collect();
    let Some(first) = unlike.first() else { return Vec::new() };
    let word = if first.cuda == Ok(true) { "yes" } else { "no" };
    let read = first.read.as_ref().map_or_else(ToString::to_string, ToString::to_string);
    let mut gpus: Vec<PciAddress> = unlike.iter().flat_map(|peer| [peer.from, peer.to]).collect();
    gpus.sort_unstable();
    gpus.dedup();
    vec![Breach {
        addresses: gpus.iter().map(ToString::to_string).collect(),
        seen: format!(
            "of {} ordered pair(s) CUDA says {word} (cuDeviceCanAccessPeer) where NVML says {read}",
            unlike.len()
        ),
        expected: "one answer from both".to_owned(),
    }]
}

fn redirecting(topology: &Topology) -> Vec<Breach> {
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
