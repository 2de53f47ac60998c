//! `nvidia-smi topo -p2p r|w|n|a|p`: what the driver grants from each GPU to each other.
//!
//! The text does not say which capability was asked for, unless the command stands above it, as in most reports. Without
//! the command every capability is missing, and the reason says what the grid does.

use std::collections::BTreeMap;

use crate::topology::{Missing, PciAddress, PeerAccess, PeerStatus, Reading, Topology, WrongPlace};

use super::grid::{Cell, Grid, HELP, grant};
use super::{Kind, Source, topo_m};

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
    let mut seen: Vec<Option<Capability>> = Vec::new();
    let mut peers: BTreeMap<(PciAddress, PciAddress), PeerAccess> = BTreeMap::new();
    for grid in grids {
        if grid.gpus.len() != topology.gpus.len() {
            let problem = format!("a grid of {} GPUs after one of {}", grid.gpus.len(), topology.gpus.len());
            return Err(source.wrong(grid.at, problem, HELP));
        }
        let capability = asked(source, grid.at);
        if seen.contains(&capability) {
            return Err(source.wrong(grid.at, "a second grid for the same capability", HELP));
        }
        seen.push(capability);
        let addresses = grid.addresses();
        for (from, row) in addresses.iter().zip(&grid.rows) {
            for (cell, to) in row.cells.iter().zip(&addresses) {
                let Cell::Word(word) = cell else { continue };
                let Some(status) = grant(word) else {
                    let shown: String = word.chars().take(20).collect();
                    let problem = format!("`{shown}`: expected OK, CNS, GNS, TNS, DR, NS or U");
                    return Err(source.wrong(row.at, problem, HELP));
                };
                let untold = || PeerAccess::untold(*from, *to, &Kind::TopoP2p.to_string());
                let peer = peers.entry((*from, *to)).or_insert_with(untold);
                match capability {
                    Some(capability) => *capability.of(peer) = Ok(status),
                    None => unnamed(peer, status),
                }
            }
        }
    }
    topology.peers = peers.into_values().collect();
    Ok(())
}

/// A letter of `nvidia-smi topo -p2p`: `nvmlGpuP2PCapsIndex_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Capability {
    Read,
    Write,
    Nvlink,
    Atomics,
    Pcie,
}

impl Capability {
    const ALL: [Self; 5] = [Self::Read, Self::Write, Self::Nvlink, Self::Atomics, Self::Pcie];

    /// What a pair says of it.
    fn of(self, peer: &mut PeerAccess) -> &mut Reading<PeerStatus> {
        match self {
            Self::Read => &mut peer.read,
            Self::Write => &mut peer.write,
            Self::Nvlink => &mut peer.nvlink,
            Self::Atomics => &mut peer.atomics,
            Self::Pcie => &mut peer.pcie,
        }
    }
}

/// Keeps a status of which the capability is not told as the reason why each is missing.
fn unnamed(peer: &mut PeerAccess, status: PeerStatus) {
    let why = Missing::untold(&format!("{} without its letter, which says {status}", Kind::TopoP2p));
    for capability in Capability::ALL {
        let told = capability.of(peer);
        if told.is_err() {
            *told = Err(why.clone());
        }
    }
}

/// The letter of the last command above a grid: `nvidia-smi topo -p2p r`. A command that belongs to an earlier grid
/// does not count.
fn asked(source: Source<'_>, at: usize) -> Option<Capability> {
    let above = source.text.get(..at).unwrap_or_default().lines().rev().take_while(|line| !ends_grid(line));
    let letter = above.filter_map(|line| line.split_once("-p2p")).find_map(|(_, rest)| rest.split_whitespace().next());
    match letter.map(|letter| letter.trim_end_matches([':', '`', ')'])) {
        Some("r") => Some(Capability::Read),
        Some("w") => Some(Capability::Write),
        Some("n") => Some(Capability::Nvlink),
        Some("a") => Some(Capability::Atomics),
        Some("p") => Some(Capability::Pcie),
        _ => None,
    }
}

/// True for a row of a grid: beyond it, a command is that of another grid.
fn ends_grid(line: &str) -> bool {
    line.trim_start().starts_with("GPU") && line.split_whitespace().any(|word| word == "X")
}
