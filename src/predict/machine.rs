//! A probed machine as a board.

use std::collections::BTreeMap;

use crate::topology::{Gpu, IommuMode, NumaNode, PeerStatus, Topology};

use super::PredictError;
use super::board::{Board, Bridged, Link, Node, NodeKind, Seat};
use super::card::{Card, card_called};
use super::cpu::CpuGeneration;
use super::platform::Verified;

/// What a probed machine lacks, and `--gpu` gives: the card that stands in where the catalogue has none of that name.
pub type StandIn<'a> = Option<&'a Card>;

/// The board of a probed machine, with its NVIDIA GPUs by address. Links count as they are when awake.
///
/// # Errors
/// The processor, a link or a GPU model is unknown: the fact that is missing.
pub fn from_topology(topology: &Topology, name: &str) -> Result<Board, PredictError> {
    from_topology_with(topology, name, None)
}

/// The same, with a card that stands in for those that the catalogue does not know.
///
/// # Errors
/// As [`from_topology`], but for a GPU model.
pub fn from_topology_with(topology: &Topology, name: &str, stand_in: StandIn<'_>) -> Result<Board, PredictError> {
    let model = topology.cpu.model.as_deref().unwrap_or_default();
    let cpu = topology.cpu.signature.as_ref().and_then(CpuGeneration::of).or_else(|| CpuGeneration::named(model));
    let cpu = cpu.ok_or_else(|| PredictError::Unknown {
        what: "the generation of the processor".to_owned(),
        remedy: "probe the machine itself, or describe it as a platform with `cpu:` (see topologies/)".to_owned(),
    })?;
    let (memory, words) = cpu.memory_assumed(model);
    let mut board = Board {
        name: name.to_owned(),
        title: topology.machine.product.as_deref().unwrap_or(name).to_owned(),
        cpu,
        memory: memory / nodes_of_a_socket(topology) as f64,
        virtual_machine: topology.system.virtual_machine == Ok(true),
        translating: topology.iommu.mode == Ok(IommuMode::Translating),
        notes: vec![format!("memory of each socket is assumed: {words}")],
        nodes: Vec::new(),
        across: Vec::new(),
        seats: Vec::new(),
        bridges: Vec::new(),
    };
    let mut index: BTreeMap<String, usize> = BTreeMap::new();
    for gpu in topology.nvidia_gpus() {
        add(topology, gpu, stand_in, (&mut board, &mut index))?;
    }
    if board.seats.is_empty() {
        let remedy = "predict a platform of `rigscale predict --list` instead".to_owned();
        return Err(PredictError::Unknown { what: "any NVIDIA GPU".to_owned(), remedy });
    }
    let nodes: Vec<&Node> = board.nodes.iter().filter(|node| node.kind == NodeKind::Socket).collect();
    if 1 < nodes.len() && nodes.iter().any(|node| node.package.is_none()) {
        board.notes.push("the machine does not say which NUMA nodes are one processor: each counts as one".to_owned());
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

/// NUMA nodes of the socket that has most of them; at least 1.
fn nodes_of_a_socket(topology: &Topology) -> usize {
    let mut nodes: BTreeMap<u32, usize> = BTreeMap::new();
    topology
        .nodes()
        .iter()
        .filter_map(|node| package(topology, node))
        .for_each(|own| *nodes.entry(own).or_default() += 1);
    nodes.into_values().max().unwrap_or(1)
}

/// The processor that a NUMA node is part of.
fn package(topology: &Topology, node: &NumaNode) -> Option<u32> {
    let first = node.cpus.as_ref().ok().and_then(|cpus| cpus.cpus().first().copied());
    first.and_then(|cpu| topology.socket_of_cpu(cpu))
}

/// How a link that this probe does not know can be told.
fn remedy(topology: &Topology) -> &'static str {
    match (&topology.system.virtual_machine, &topology.settings.root) {
        (Ok(true), _) => "a virtual machine shows no ports above its GPUs: probe the host itself",
        (_, Ok(true)) => "the kernel shows no port above it: give the text of `lspci -vvvnn` with --from",
        _ => "probe again as root, which may read every link: `sudo rigscale probe -o DIR`",
    }
}

/// Adds a GPU and what lies above it.
fn add(
    topology: &Topology,
    gpu: &Gpu,
    stand_in: StandIn<'_>,
    (board, index): (&mut Board, &mut BTreeMap<String, usize>),
) -> Result<(), PredictError> {
    let link = |address: String| PredictError::Unknown {
        what: format!("the link of {address}"),
        remedy: remedy(topology).to_owned(),
    };
    let number = gpu.numa_node.as_ref().map_or(0, |node| *node);
    let socket = format!("node-{number}");
    let mut parent = node(board, index, &socket, NodeKind::Socket, None);
    for hop in topology.hops(gpu) {
        let lanes = hop.awake().map_err(|missing| link(format!("{} ({missing})", hop.lower)))?;
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
        return Err(link(gpu.address.to_string()));
    }
    let own = topology.nodes().iter().find(|node| node.node == number);
    if let Some(socket) = board.socket_of(parent) {
        board.nodes[socket].package = own.and_then(|node| package(topology, node));
    }
    let card = card_called(&gpu.name()).or(stand_in).ok_or_else(|| PredictError::Unknown {
        what: format!("the model {:?} in the catalogue of GPUs", gpu.name()),
        remedy: "name the card that comes nearest, such as --gpu rtx-4090".to_owned(),
    })?;
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
        board.nodes.push(Node { name: name.to_owned(), kind, above, package: None });
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
        let mut machine = whole.clone();
        for gpu in &mut machine.gpus {
            gpu.nvml.as_mut().unwrap().name = Ok("NVIDIA GeForce RTX 9999".to_owned());
        }
        let error = from_topology(&machine, "x").unwrap_err().to_string();
        assert!(error.contains("--gpu"), "{error}");
        let board = from_topology_with(&machine, "x", Some(crate::predict::card("rtx-4090").unwrap())).unwrap();
        assert!(board.seats.iter().all(|seat| seat.card.name == "rtx-4090"));
        let mut machine = whole.clone();
        machine.bridges.clear();
        for (virtual_machine, root, way) in [
            (true, true, "probe the host itself"),
            (false, true, "lspci -vvvnn"),
            (false, false, "sudo rigscale probe"),
        ] {
            (machine.system.virtual_machine, machine.settings.root) = (Ok(virtual_machine), Ok(root));
            let error = from_topology(&machine, "x").unwrap_err().to_string();
            assert!(error.contains(way), "{error}");
        }
        let mut machine = whole;
        machine.gpus.clear();
        let error = from_topology(&machine, "x").unwrap_err().to_string();
        assert!(error.contains("NVIDIA GPU"), "{error}");
    }
}
