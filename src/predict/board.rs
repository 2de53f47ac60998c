//! A machine as the model sees it: a tree of links below each socket, and GPUs in its slots.

use serde::{Deserialize, Serialize};

use crate::topology::{Generation, Lanes, Width};
use crate::units::BytesPerSecond;

use super::card::Card;
use super::cpu::CpuGeneration;
use super::platform::Verified;

/// What a node of the tree is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeKind {
    /// A processor with its memory, or a NUMA node of one.
    Socket,
    /// A root complex, or the quadrant of an I/O die that several root ports share.
    Root,
    /// A PCIe switch, or one partition of it.
    Switch,
    /// The chipset, whose uplink everything behind it shares.
    Chipset,
    /// Where a GPU goes.
    Slot,
}

/// One node.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Its name in the file.
    pub name: String,
    /// What it is.
    pub kind: NodeKind,
    /// The link above it; none for a socket, and for what hangs in the air.
    pub above: Option<Link>,
    /// The processor that a NUMA node is part of, where a machine told; none: a processor of its own.
    pub package: Option<u32>,
}

/// A link of the tree.
#[derive(Debug, Clone, PartialEq)]
pub struct Link {
    /// Index of the node nearer to the processor.
    pub parent: usize,
    /// Speed and lanes, where it is a PCIe link.
    pub lanes: Option<Lanes>,
    /// A rate that was measured or stated, in each direction; it holds beside what the lanes give.
    pub rate: Option<BytesPerSecond>,
    /// Where it was read.
    pub source: String,
    /// How far it was checked.
    pub verified: Verified,
}

/// A link between two sockets, in each direction.
#[derive(Debug, Clone, PartialEq)]
pub struct Across {
    /// Index of one socket.
    pub a: usize,
    /// Index of the other.
    pub b: usize,
    /// All lanes together, in one direction.
    pub rate: BytesPerSecond,
    /// Where it was read.
    pub source: String,
    /// How far it was checked.
    pub verified: Verified,
}

/// A GPU in its slot.
#[derive(Debug, Clone, PartialEq)]
pub struct Seat {
    /// Index of the slot.
    pub node: usize,
    /// The model.
    pub card: Card,
    /// What the driver said of its peers on a real machine; none: as the catalogue says of the stock driver.
    pub peer: Option<bool>,
}

/// Two GPUs joined by an NVLink bridge.
#[derive(Debug, Clone, PartialEq)]
pub struct Bridged {
    /// Index of one seat, the lower.
    pub a: usize,
    /// Index of the other.
    pub b: usize,
    /// Where it was read.
    pub source: String,
    /// How far it was checked.
    pub verified: Verified,
}

/// A machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Board {
    /// Short name.
    pub name: String,
    /// What it is.
    pub title: String,
    /// Generation of its processors.
    pub cpu: CpuGeneration,
    /// Memory rate of one socket node, as its channels add up.
    pub memory: BytesPerSecond,
    /// True inside a virtual machine.
    pub virtual_machine: bool,
    /// True where the IOMMU translates each address.
    pub translating: bool,
    /// What a reader should know of the description.
    pub notes: Vec<String>,
    /// Nodes in the order of the file.
    pub nodes: Vec<Node>,
    /// Links between sockets.
    pub across: Vec<Across>,
    /// GPUs, in the order in which they are filled.
    pub seats: Vec<Seat>,
    /// NVLink bridges.
    pub bridges: Vec<Bridged>,
}

/// What NCCL takes for a link (`src/graph/topo.cc`, l. 545–556: 100 Mb/s per lane by generation, over 80): Gen4 x16 is
/// 24 GB/s. The rates of Gen6 and Gen7 double on.
#[must_use]
pub fn nccl_link(lanes: Lanes) -> BytesPerSecond {
    let by_generation = [15.0, 30.0, 60.0, 120.0, 240.0, 480.0, 960.0];
    let generation = u64::from(lanes.generation) as usize;
    BytesPerSecond(u64::from(lanes.width) as f64 * by_generation[generation - 1] / 80.0 * 1e9)
}

/// What a copy over a link gives in one direction: the payload after packet headers at 256 bytes, with what is measured
/// of it (55 to 57 GB/s of 63 on Gen5 x16, 25 to 26 of 31.5 on Gen4, 12 to 13 of 15.75 on Gen3: nvbandwidth figures of
/// B1, B11, B12 in the data).
#[must_use]
pub fn copy_rate(lanes: Lanes) -> BytesPerSecond {
    let share = match u64::from(lanes.generation) {
        ..=4 => 0.81,
        _ => 0.89,
    };
    lanes.rate() * share
}

impl Board {
    /// The chain of nodes from `node` up to its socket, both included; none where it hangs in the air.
    #[must_use]
    pub fn chain(&self, node: usize) -> Option<Vec<usize>> {
        let mut chain = vec![node];
        while let Some(link) = &self.nodes[chain[chain.len() - 1]].above {
            if self.nodes.len() < chain.len() {
                return None;
            }
            chain.push(link.parent);
        }
        (self.nodes[chain[chain.len() - 1]].kind == NodeKind::Socket).then_some(chain)
    }

    /// The socket above a node.
    #[must_use]
    pub fn socket_of(&self, node: usize) -> Option<usize> {
        self.chain(node).and_then(|chain| chain.last().copied())
    }

    /// Lanes of the link above a node; a card in a slot takes no more than both can.
    #[must_use]
    pub fn lanes(&self, node: usize) -> Option<Lanes> {
        let lanes = self.nodes[node].above.as_ref()?.lanes?;
        let card = self.seats.iter().find(|seat| seat.node == node).map(|seat| seat.card.lanes());
        Some(card.map_or(lanes, |card| lanes.common(card)))
    }

    /// NCCL's rate of the link above a node. It knows nothing of rates that were measured.
    #[must_use]
    pub fn nccl_rate(&self, node: usize) -> Option<BytesPerSecond> {
        self.lanes(node).map(nccl_link)
    }

    /// The node whose link leaves the processor on the way to `node`: its root port. Staged data of all GPUs below it
    /// pass there.
    #[must_use]
    pub fn root_port(&self, node: usize) -> Option<usize> {
        let chain = self.chain(node)?;
        let below = |at: &&usize| !matches!(self.nodes[**at].kind, NodeKind::Socket | NodeKind::Root);
        chain.iter().rev().find(below).copied()
    }

    /// True where two GPUs are joined by a bridge.
    #[must_use]
    pub fn bridged(&self, a: usize, b: usize) -> bool {
        self.bridges.iter().any(|bridge| (bridge.a, bridge.b) == (a.min(b), a.max(b)))
    }

    /// Puts a card into every slot. What a driver said of the old ones is forgotten, and a bridge that the new ones cannot
    /// take falls away; returns how many did.
    pub fn fill(&mut self, card: &Card) -> usize {
        self.seats.iter_mut().for_each(|seat| (seat.card, seat.peer) = (card.clone(), None));
        let before = self.bridges.len();
        if card.nvlink.is_none() {
            self.bridges.clear();
        }
        before - self.bridges.len()
    }

    /// True where two nodes are different processors, not NUMA nodes of one.
    #[must_use]
    pub fn apart(&self, a: usize, b: usize) -> bool {
        let (one, other) = (self.nodes[a].package, self.nodes[b].package);
        a != b && (one.is_none() || one != other)
    }

    /// The first `count` seats, in the order of the bus: the machine with only those filled.
    ///
    /// # Errors
    /// How many there are, where there are fewer.
    pub fn with_gpus(&self, count: usize) -> Result<Self, usize> {
        if count == 0 || self.seats.len() < count {
            return Err(self.seats.len());
        }
        Ok(self.with_seats(&(0..count).collect::<Vec<_>>()))
    }

    /// The machine with only these seats filled, given by their place in [`Board::seats`], ascending.
    ///
    /// # Panics
    /// There is no such seat.
    #[must_use]
    pub fn with_seats(&self, kept: &[usize]) -> Self {
        let place = |seat: usize| kept.iter().position(|one| *one == seat);
        let bridges = self
            .bridges
            .iter()
            .filter_map(|bridge| Some(Bridged { a: place(bridge.a)?, b: place(bridge.b)?, ..bridge.clone() }));
        let seats = kept.iter().map(|seat| self.seats[*seat].clone());
        Self { bridges: bridges.collect(), seats: seats.collect(), ..self.clone() }
    }

    /// The seats in these slots, ascending.
    ///
    /// # Errors
    /// The first that holds no GPU.
    pub fn seats_in<'a>(&self, slots: &[&'a str]) -> Result<Vec<usize>, &'a str> {
        let seat = |name: &&'a str| self.seats.iter().position(|seat| self.nodes[seat.node].name == *name).ok_or(*name);
        let mut seats = slots.iter().map(seat).collect::<Result<Vec<_>, _>>()?;
        seats.sort_unstable();
        seats.dedup();
        Ok(seats)
    }

    /// Sets the width of the link above a node; false where there is no PCIe link.
    pub fn set_width(&mut self, node: usize, width: Width) -> bool {
        let lanes = self.nodes[node].above.as_mut().and_then(|link| link.lanes.as_mut());
        lanes.map(|lanes| lanes.width = width).is_some()
    }

    /// Sets the generation of the link above a node; false where there is no PCIe link.
    pub fn set_generation(&mut self, node: usize, generation: Generation) -> bool {
        let lanes = self.nodes[node].above.as_mut().and_then(|link| link.lanes.as_mut());
        lanes.map(|lanes| lanes.generation = generation).is_some()
    }
}
