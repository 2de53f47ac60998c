//! `nvidia-smi topo -p2p r|w|n|a|p`: what the driver grants from each GPU to each other.
//!
//! The text does not say which capability was asked for, unless the command stands above it, as in most reports.

use crate::topology::{Peer, PeerCapability, Reading, Topology, WrongPlace};

use super::grid::{Cell, Grid, HELP, grant};
use super::{Kind, Source, topo_m, untold};

/// Reads every grid of grants.
pub(super) fn read(source: Source<'_>) -> Result<Topology, Box<WrongPlace>> {
    let grids = Grid::all(source)?;
    let Some(first) = grids.first() else {
        return Err(source.wrong(0, "no grid of grants", HELP));
    };
    let mut topology = topo_m::gpus(first.addresses(), Kind::TopoP2p);
    add(source, &mut topology, &grids)?;
    Ok(topology)
}

/// Adds the grants of grids to a topology of the same GPUs.
pub(super) fn add(source: Source<'_>, topology: &mut Topology, grids: &[Grid<'_>]) -> Result<(), Box<WrongPlace>> {
    let mut peers: Vec<Peer> = Vec::new();
    for grid in grids {
        if grid.gpus.len() != topology.gpus.len() {
            let problem = format!("a grid of {} GPUs after one of {}", grid.gpus.len(), topology.gpus.len());
            return Err(source.wrong(grid.at, problem, HELP));
        }
        let capability = asked(source, grid.at);
        if peers.iter().any(|peer| peer.capability == capability) {
            return Err(source.wrong(grid.at, "a second grid for the same capability", HELP));
        }
        let addresses = grid.addresses();
        for (from, row) in addresses.iter().zip(&grid.rows) {
            for (cell, to) in row.cells.iter().zip(&addresses) {
                let Cell::Word(word) = cell else { continue };
                let Some(status) = grant(word) else {
                    let shown: String = word.chars().take(20).collect();
                    let problem = format!("`{shown}`: expected OK, CNS, GNS, TNS, DR, NS or U");
                    return Err(source.wrong(row.at, problem, HELP));
                };
                peers.push(Peer { from: *from, to: *to, capability: capability.clone(), status });
            }
        }
    }
    if !grids.is_empty() {
        topology.peers = Some(peers);
    }
    Ok(())
}

/// The letter of the last command above a grid: `nvidia-smi topo -p2p r`. A command that belongs to an earlier grid
/// does not count.
fn asked(source: Source<'_>, at: usize) -> Reading<PeerCapability> {
    let above = source.text.get(..at).unwrap_or_default().lines().rev().take_while(|line| !ends_grid(line));
    let letter = above.filter_map(|line| line.split_once("-p2p")).find_map(|(_, rest)| rest.split_whitespace().next());
    match letter.map(|letter| letter.trim_end_matches([':', '`', ')'])) {
        Some("r") => Ok(PeerCapability::Read),
        Some("w") => Ok(PeerCapability::Write),
        Some("n") => Ok(PeerCapability::Nvlink),
        Some("a") => Ok(PeerCapability::Atomics),
        Some("p") => Ok(PeerCapability::Pcie),
        _ => Err(untold(Kind::TopoP2p)),
    }
}

/// True for a row of a grid: beyond it, a command is that of another grid.
fn ends_grid(line: &str) -> bool {
    line.trim_start().starts_with("GPU") && line.split_whitespace().any(|word| word == "X")
}
