//! A probed machine as a board.

use std::collections::BTreeMap;

use crate::topology::{Gpu, IommuMode, PeerStatus, Topology};
use crate::units::BytesPerSecond;

use super::PredictError;
use super::board::{Board, Bridged, Link, Node, NodeKind, Seat};
use super::card::card_called;
use super::cpu::CpuGeneration;
use super::platform::Verified;

/// Memory rate of a socket, where nobody measured it: eight channels of DDR4-3200. It limits no known ring.
const MEMORY_ASSUMED: BytesPerSecond = BytesPerSecond(204.8e9);

/// The board of a probed machine, with its NVIDIA GPUs by address. Links count as they are when awake.
///
/// # Errors
/// The processor, a link or a GPU model is unknown: the fact that is missing.
pub fn from_topology(topology: &Topology, name: &str) -> Result<Board, PredictError> {
    let by_name = || topology.cpu.model.as_deref().ok().and_then(CpuGeneration::named);
    let cpu = topology.cpu.signature.as_ref().and_then(CpuGeneration::of).or_else(by_name);
    let mut board = Board {
        name: name.to_owned(),
        title: topology.machine.product.as_deref().unwrap_or(name).to_owned(),
        cpu: cpu.ok_or_else(|| unknown("the generation of the processor"))?,
        memory: MEMORY_ASSUMED,
        virtual_machine: topology.system.virtual_machine == Ok(true),
        translating: topology.iommu.mode == Ok(IommuMode::Translating),
        notes: vec!["memory rate assumed: 204.8 GB/s for each socket".to_owned()],
        nodes: Vec::new(),
        across: Vec::new(),
        seats: Vec::new(),
        bridges: Vec::new(),
    };
    let mut index: BTreeMap<String, usize> = BTreeMap::new();
    for gpu in topology.nvidia_gpus() {
        add(topology, gpu, &mut board, &mut index)?;
    }
    if board.seats.is_empty() {
        return Err(unknown("any NVIDIA GPU"));
    }
    let told = topology.nvlinks.iter().flatten().filter_map(|link| Some((link.gpu, *link.target.as_ref().ok()?)));
    let granted = topology.peers.iter().filter(|peer| peer.nvlink == Ok(PeerStatus::Ok));
    for (from, to) in told.chain(granted.map(|peer| (peer.from, peer.to))) {
        let seat = |name: String| board.seats.iter().position(|seat| board.nodes[seat.node].name == name);
        if let (Some(a), Some(b)) = (seat(from.to_string()), seat(to.to_string()))
            && a < b
            && !board.bridged(a, b)
        {
            board.bridges.push(Bridged { a, b, source: "the driver".to_owned(), verified: Verified::Lspci });
        }
    }
    Ok(board)
}

fn unknown(what: &str) -> PredictError {
    PredictError::Unknown { what: what.to_owned() }
}

/// Adds a GPU and what lies above it.
fn add(
    topology: &Topology,
    gpu: &Gpu,
    board: &mut Board,
    index: &mut BTreeMap<String, usize>,
) -> Result<(), PredictError> {
    let socket = format!("node-{}", gpu.numa_node.as_ref().map_or(0, |node| *node));
    let mut parent = node(board, index, &socket, NodeKind::Socket, None);
    for hop in topology.hops(gpu) {
        let lanes = hop.awake().map_err(|missing| unknown(&format!("the link of {} ({missing})", hop.lower)))?;
        let chipset =
            topology.bridge(hop.upper).is_some_and(|bridge| bridge.id.as_ref().is_ok_and(|id| id.is_chipset()));
        let kind = match hop.lower == gpu.address {
            true => NodeKind::Slot,
            false if chipset => NodeKind::Chipset,
            false => NodeKind::Switch,
        };
        let (source, verified) = ("the machine itself".to_owned(), Verified::Lspci);
        let link = Link { parent, lanes: Some(lanes), rate: None, source, verified };
        parent = node(board, index, &hop.lower.to_string(), kind, Some(link));
    }
    if board.nodes[parent].kind != NodeKind::Slot {
        return Err(unknown(&format!("the link of {}", gpu.address)));
    }
    let card =
        card_called(&gpu.name()).ok_or_else(|| unknown(&format!("the model {} in the catalogue", gpu.name())))?;
    let told: Vec<bool> = topology
        .peers
        .iter()
        .filter(|peer| peer.from == gpu.address)
        .filter_map(|peer| peer.read.as_ref().ok().map(|status| *status == PeerStatus::Ok))
        .collect();
    let peer = (!told.is_empty()).then(|| told.iter().all(|granted| *granted));
    board.seats.push(Seat { node: parent, card: card.clone(), peer });
    Ok(())
}

fn node(
    board: &mut Board,
    index: &mut BTreeMap<String, usize>,
    name: &str,
    kind: NodeKind,
    above: Option<Link>,
) -> usize {
    *index.entry(name.to_owned()).or_insert_with(|| {
        board.nodes.push(Node { name: name.to_owned(), kind, above });
        board.nodes.len() - 1
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predict::{Calibration, Exchange, Transport, ring};
    use crate::topology::from_yaml;

    fn recorded(name: &str) -> Result<Board, PredictError> {
        let path = format!("{}/tests/machines/{name}/topology.yaml", env!("CARGO_MANIFEST_DIR"));
        from_topology(&from_yaml(&std::fs::read_to_string(path).unwrap(), name).unwrap(), name)
    }

    #[test]
    fn recorded_machines_become_boards_with_rings() {
        let server = recorded("server-8gpu").unwrap();
        assert_eq!((server.seats.len(), server.cpu), (8, CpuGeneration::Zen5));
        assert!(server.nodes.iter().any(|node| node.kind == NodeKind::Switch));
        let whole = ring(&server, &Exchange::default(), &Calibration::default()).unwrap();
        assert_eq!(whole.ranks, 8);
        let (narrow, wide) = (recorded("narrow-link").unwrap(), recorded("threadripper-4gpu").unwrap());
        let bus = |board: &Board| ring(board, &Exchange::default(), &Calibration::default()).unwrap().bus;
        assert!(bus(&narrow) < bus(&wide), "{} and {}", bus(&narrow), bus(&wide));
        let bridged = recorded("nvlink-bridge").unwrap();
        assert!(ring(&bridged, &Exchange::default(), &Calibration::default()).unwrap().has(Transport::Nvlink));
    }

    #[test]
    fn what_is_unknown_is_named() {
        let path = format!("{}/tests/machines/narrow-link/topology.yaml", env!("CARGO_MANIFEST_DIR"));
        let whole = from_yaml(&std::fs::read_to_string(path).unwrap(), "narrow-link").unwrap();
        let mut machine = whole.clone();
        (machine.cpu.signature, machine.cpu.model) = (None, Ok("a board".to_owned()));
        let error = from_topology(&machine, "x").unwrap_err().to_string();
        assert!(error.contains("generation of the processor"), "{error}");
        let mut machine = whole;
        machine.gpus.clear();
        let error = from_topology(&machine, "x").unwrap_err().to_string();
        assert!(error.contains("NVIDIA GPU"), "{error}");
    }
}
