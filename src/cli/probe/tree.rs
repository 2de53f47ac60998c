//! The tree from sockets to GPUs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::topology::{Bridge, Gpu, LinkEnd, NumaNode, PciAddress, Reading, Topology};

use super::{COLUMNS, cut, shown};

/// Columns that the text of a link takes: `Gen1 x16 (max Gen5 x16)`.
const LINK_COLUMNS: usize = 23;

/// A line of the tree, and what hangs below it.
struct Branch {
    text: String,
    link: String,
    below: Vec<Branch>,
}

impl Branch {
    fn new(text: String, below: Vec<Self>) -> Self {
        Self { text, link: String::new(), below }
    }
}

/// Draws the tree.
pub(super) fn draw(out: &mut fmt::Formatter<'_>, topology: &Topology) -> fmt::Result {
    let branches = sockets(topology);
    lines(out, &branches, "")?;
    let at_rest =
        topology.gpus.iter().any(|gpu| gpu.link.phase.is_at_rest() && !untold(gpu) && gpu.link.now() != gpu.link.max());
    if at_rest {
        writeln!(out, "Read at rest: an idle GPU slows its link down, which is no fault.")?;
    }
    Ok(())
}

/// True where an imported text does not hold what a link does.
fn untold(gpu: &Gpu) -> bool {
    gpu.link.now().is_err_and(|missing| missing.is_untold())
}

fn lines(out: &mut fmt::Formatter<'_>, branches: &[Branch], before: &str) -> fmt::Result {
    for (index, branch) in branches.iter().enumerate() {
        let last = index + 1 == branches.len();
        let head = format!("{before}{}", if last { "└─ " } else { "├─ " });
        if branch.link.is_empty() {
            writeln!(out, "{}", cut(&format!("{head}{}", branch.text), COLUMNS))?;
        } else {
            // A short link leaves its room to the name.
            let link = cut(&branch.link, LINK_COLUMNS);
            let (column, most) = (COLUMNS - LINK_COLUMNS - 1, COLUMNS - link.chars().count() - 1);
            let text = cut(&format!("{head}{}", branch.text), most);
            writeln!(out, "{text:column$} {link}")?;
        }
        lines(out, &branch.below, &format!("{before}{}", if last { "   " } else { "│  " }))?;
    }
    Ok(())
}

/// Sockets with their NUMA nodes; nodes of no known socket, and GPUs of no known node, after them.
fn sockets(topology: &Topology) -> Vec<Branch> {
    let mut by_socket: BTreeMap<Option<u32>, Vec<Branch>> = BTreeMap::new();
    for node in topology.nodes() {
        let first = node.cpus.as_ref().ok().and_then(|cpus| cpus.cpus().first());
        let socket = first.and_then(|cpu| topology.socket_of_cpu(*cpu));
        by_socket.entry(socket).or_default().push(node_branch(topology, node));
    }
    let mut branches = Vec::new();
    let homeless = by_socket.remove(&None).unwrap_or_default();
    for socket in topology.cpu.sockets.iter().flatten() {
        let text = format!("socket {} · {} cores", socket.socket, socket.cores.len());
        branches.push(Branch::new(text, by_socket.remove(&Some(socket.socket)).unwrap_or_default()));
    }
    branches.extend(homeless);
    let nodes: BTreeSet<u32> = topology.nodes().iter().map(|node| node.node).collect();
    let lost: Vec<&Gpu> =
        topology.gpus.iter().filter(|gpu| !gpu.numa_node.as_ref().is_ok_and(|node| nodes.contains(node))).collect();
    let mut by_node: BTreeMap<Option<u32>, Vec<&Gpu>> = BTreeMap::new();
    for gpu in lost {
        by_node.entry(gpu.numa_node.as_ref().ok().copied()).or_default().push(gpu);
    }
    for (node, gpus) in by_node {
        let name = node.map_or_else(|| "unknown".to_owned(), |node| node.to_string());
        branches.push(Branch::new(format!("NUMA node {name}"), devices(topology, &gpus)));
    }
    branches
}

fn node_branch(topology: &Topology, node: &NumaNode) -> Branch {
    let cpus = node.cpus.as_ref().map_or_else(|missing| missing.why.to_string(), ToString::to_string);
    let memory = node.memory_bytes.as_ref().map_or_else(|missing| missing.why.to_string(), ToString::to_string);
    let gpus: Vec<&Gpu> = topology.gpus.iter().filter(|gpu| gpu.numa_node == Ok(node.node)).collect();
    Branch::new(format!("NUMA node {} · CPUs {cpus} · {memory}", node.node), devices(topology, &gpus))
}

/// The trees of bridges above `gpus`, from the root ports down.
fn devices(topology: &Topology, gpus: &[&Gpu]) -> Vec<Branch> {
    let mut shown: BTreeSet<PciAddress> = BTreeSet::new();
    for gpu in gpus {
        shown.extend(topology.chain(gpu).iter().map(|bridge| bridge.address));
    }
    let bridges: Vec<&Bridge> = topology.bridges.iter().filter(|bridge| shown.contains(&bridge.address)).collect();
    below(topology, None, &bridges, gpus)
}

fn below(topology: &Topology, parent: Option<PciAddress>, bridges: &[&Bridge], gpus: &[&Gpu]) -> Vec<Branch> {
    let mut branches = Vec::new();
    for bridge in bridges.iter().filter(|bridge| bridge.parent == parent) {
        let name =
            bridge.id.as_ref().map_or_else(|_| "bridge".to_owned(), |id| id.name().map_or(id.to_string(), Into::into));
        let inside = below(topology, Some(bridge.address), bridges, gpus);
        let text = format!("{} {name}", bridge.address);
        branches.push(Branch { text, link: hop(topology, bridge.address), below: inside });
    }
    for gpu in gpus.iter().filter(|gpu| gpu.parent == parent) {
        let link = match (hop(topology, gpu.address), gpu.link.now()) {
            (hop, Ok(own)) if hop.is_empty() => format!("{own} (its own end)"),
            (hop, Err(_)) if hop.is_empty() => "link unknown".to_owned(),
            (hop, _) => hop,
        };
        branches.push(Branch {
            text: format!("{} {}", shown(gpu.address), gpu.name().trim_start_matches("NVIDIA ")),
            link,
            below: Vec::new(),
        });
    }
    branches
}

/// The link above the device at `lower`; nothing where there is none, as above a root port or inside of a switch.
fn hop(topology: &Topology, lower: PciAddress) -> String {
    let mut hops = topology.gpus.iter().flat_map(|gpu| topology.hops(gpu));
    hops.find(|hop| hop.lower == lower).map_or_else(String::new, |hop| link(hop.lower_end, &hop.max()))
}

/// `Gen4 x16 (max Gen5 x16)`, or `Gen5 x16` for a link at its most.
pub(super) fn link(end: &LinkEnd, max: &Reading<crate::topology::Lanes>) -> String {
    match (end.now(), max) {
        (Ok(now), Ok(max)) if now == *max => now.to_string(),
        (Ok(now), Ok(max)) => format!("{now} (max {max})"),
        (Ok(now), Err(_)) => format!("{now} (max unknown)"),
        (Err(_), Ok(max)) => format!("unknown (max {max})"),
        (Err(missing), Err(_)) => format!("unknown: {}", missing.why),
    }
}
