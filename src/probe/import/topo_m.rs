//! `nvidia-smi topo -m`: what lies between two GPUs, and the CPUs and NUMA node near each.
//!
//! The text names GPUs by index only; each gets an address that stands for the index ([`PciAddress::of_index`]).

use std::collections::BTreeMap;

use crate::topology::{
    CpuSet, Gpu, GpuState, Missing, NumaNode, NvLink, Pair, PathClass, PciAddress, Reading, Topology, Why, WrongPlace,
};

use super::grid::{Cell, Grid, HELP, Row};
use super::{Kind, Source, topo_p2p, untold};

const KIND: Kind = Kind::TopoMatrix;

/// Reads every grid of the text: the first of paths, and those of grants.
pub(super) fn read(source: Source<'_>) -> Result<Topology, Box<WrongPlace>> {
    let grids = Grid::all(source)?;
    let (grants, paths): (Vec<_>, Vec<_>) = grids.into_iter().partition(Grid::holds_grants);
    let Some(grid) = paths.first() else {
        return Err(source.wrong(0, "no grid of paths", HELP));
    };
    let mut topology = gpus(grid.addresses(), KIND);
    topology.numa = nodes(&mut topology.gpus, &grid.rows);
    let mut links = Vec::new();
    for (index, row) in grid.rows.iter().enumerate() {
        pairs(source, grid, (index, row), &mut topology.pairs, &mut links)?;
    }
    topology.nvlinks = Some(links);
    topo_p2p::add(source, &mut topology, &grants)?;
    Ok(topology)
}

/// NVIDIA GPUs of which only their addresses are told.
pub(super) fn gpus(addresses: Vec<PciAddress>, kind: Kind) -> Topology {
    let name = kind.to_string();
    let gpu = |address| Gpu { nvml: Some(GpuState::untold(&name)), ..Gpu::untold(address, &name) };
    Topology { gpus: addresses.into_iter().map(gpu).collect(), ..Topology::untold(&name) }
}

/// Gives each GPU its node, and lists the nodes that GPUs are near. `NUMA Affinity` may name several or `N/A`.
fn nodes(gpus: &mut [Gpu], rows: &[Row<'_>]) -> Reading<Vec<NumaNode>> {
    let mut nodes: BTreeMap<u32, Reading<CpuSet>> = BTreeMap::new();
    for (gpu, row) in gpus.iter_mut().zip(rows) {
        // CPU affinity, NUMA affinity, GPU NUMA ID: the newest driver prints all, old ones the first only.
        let [cpus, node, ..] = row.rest.as_slice() else { continue };
        gpu.numa_node = match (*node, node.parse()) {
            (_, Ok(node)) => Ok(node),
            ("N/A", _) => Err(Missing::new(Why::Absent, "NUMA Affinity is N/A")),
            _ => Err(Missing::new(Why::Unsupported, "NUMA Affinity names several nodes")),
        };
        if let Ok(node) = gpu.numa_node {
            let garbled = || Missing::new(Why::Garbled, "CPU Affinity is no list of CPUs");
            nodes.entry(node).or_insert_with(|| cpus.parse().map_err(|_| garbled()));
        }
    }
    let none = || Err(untold(KIND));
    let node = |(node, cpus)| NumaNode { node, cpus, memory_bytes: none(), distances: Err(untold(KIND)) };
    match nodes.is_empty() {
        true => Err(untold(KIND)),
        false => Ok(nodes.into_iter().map(node).collect()),
    }
}

/// What lies between one GPU and the others.
fn pairs(
    source: Source<'_>,
    grid: &Grid<'_>,
    (index, row): (usize, &Row<'_>),
    pairs: &mut Vec<Pair>,
    links: &mut Vec<NvLink>,
) -> Result<(), Box<WrongPlace>> {
    let addresses = grid.addresses();
    let Some(gpu) = addresses.get(index).copied() else { return Ok(()) };
    for (column, (cell, other)) in row.cells.iter().zip(&addresses).enumerate() {
        let Cell::Word(word) = cell else { continue };
        let path = match (class(word), nvlinks(word)) {
            (Some(class), _) => Ok(class),
            (None, Some(count)) => {
                links.push(NvLink { gpu, target: Ok(*other), count, target_class: None });
                let detail = format!("{KIND}, which shows {word} in place of the PCIe path");
                Err(Missing::untold(&detail))
            }
            _ => {
                let shown: String = word.chars().take(20).collect();
                let problem =
                    format!("`{shown}` between GPU{index} and GPU{column}: expected PIX, PXB, PHB, NODE, SYS or NV#");
                return Err(source.wrong(row.at, problem, HELP));
            }
        };
        if gpu < *other {
            pairs.push(Pair { a: gpu, b: *other, path });
        }
    }
    Ok(())
}

fn class(word: &str) -> Option<PathClass> {
    match word {
        "PIX" => Some(PathClass::Pix),
        "PXB" => Some(PathClass::Pxb),
        "PHB" => Some(PathClass::Phb),
        "NODE" => Some(PathClass::Node),
        // Drivers before 384 wrote SOC.
        "SYS" | "SOC" => Some(PathClass::Sys),
        _ => None,
    }
}

/// `NV4`: four bonded links.
fn nvlinks(word: &str) -> Option<u32> {
    word.strip_prefix("NV").and_then(|count| count.parse().ok()).filter(|count| (1..=72).contains(count))
}
