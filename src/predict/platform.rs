//! A platform as a person describes it: sockets, roots, switches, slots and the links between them, in YAML.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::topology::{Generation, Lanes, Width, WrongPlace, parse_yaml, place_in};
use crate::units::BytesPerSecond;

use super::PredictError;
use super::board::{Across, Board, Bridged, Link, Node, NodeKind, Seat};
use super::card::{cards, unknown};
use super::cpu::CpuGeneration;
use super::quantity::{read_rate, read_some_rate};

/// The schema of platform files that this version reads.
pub const PLATFORM_SCHEMA: u32 = 1;

const HELP: &str = "`topologies/` of the repository holds platforms to start from; each link names `from` (nearer to the \
                    processor), `to`, `gen` and `width` or `rate`, `source` and `verified`";

/// How far a figure was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verified {
    /// Read in a manual, a data sheet or a block diagram.
    Manual,
    /// Read on such a machine.
    Lspci,
    /// Measured on such a machine.
    Measured,
    /// Written down without the source at hand.
    Memory,
}

impl fmt::Display for Verified {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::Manual => "manual",
            Self::Lspci => "lspci",
            Self::Measured => "measured",
            Self::Memory => "memory",
        })
    }
}

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Platform {
    schema: u32,
    name: String,
    title: String,
    cpu: CpuGeneration,
    /// Memory rate of one socket.
    #[serde(deserialize_with = "read_rate")]
    memory: BytesPerSecond,
    #[serde(default)]
    virtual_machine: bool,
    #[serde(default)]
    notes: Vec<String>,
    nodes: Vec<NodeLine>,
    links: Vec<LinkLine>,
    gpus: Vec<SeatLine>,
    #[serde(default)]
    nvlinks: Vec<NvLine>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeLine {
    name: String,
    kind: NodeKind,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct LinkLine {
    from: String,
    to: String,
    #[serde(default, rename = "gen")]
    generation: Option<Generation>,
    #[serde(default)]
    width: Option<Width>,
    #[serde(default, deserialize_with = "read_some_rate")]
    rate: Option<BytesPerSecond>,
    source: String,
    verified: Verified,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct SeatLine {
    slot: String,
    card: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct NvLine {
    slots: [String; 2],
    source: String,
    verified: Verified,
}

/// A problem and where it stands: the `index`-th `key` after the line that begins with `section`.
struct Problem {
    section: &'static str,
    key: &'static str,
    index: usize,
    text: String,
}

/// Reads a platform; `file` is the name for errors. The GPUs come in the order of the file, which is the order in which
/// they are filled.
///
/// # Errors
/// No YAML, unknown keys, units missing, a width that no link has, a ring, two parents, a GPU without a path, an unknown
/// card: with file, line and what would be right.
pub fn parse_platform(text: &str, file: &str) -> Result<Board, PredictError> {
    let platform: Platform = parse_yaml(text, file, HELP).map_err(PredictError::Platform)?;
    if PLATFORM_SCHEMA < platform.schema {
        return Err(PredictError::Newer { file: file.to_owned(), found: platform.schema });
    }
    build(&platform).map_err(|problem| PredictError::Platform(located(text, file, problem)))
}

fn located(text: &str, file: &str, problem: Problem) -> Box<WrongPlace> {
    let start = text.match_indices(problem.section).find(|(at, _)| *at == 0 || text.as_bytes()[at - 1] == b'\n');
    let start = start.map_or(0, |(at, _)| at);
    let at = text[start..].match_indices(problem.key).nth(problem.index).map_or(0, |(at, _)| at);
    Box::new(place_in(text, file, start + at, problem.text, HELP))
}

fn build(platform: &Platform) -> Result<Board, Problem> {
    let mut index: BTreeMap<&str, usize> = BTreeMap::new();
    let mut nodes = Vec::new();
    for (at, line) in platform.nodes.iter().enumerate() {
        if index.insert(&line.name, at).is_some() {
            let text = format!("`{}` stands here twice: every node needs its own name", line.name);
            return Err(Problem { section: "nodes:", key: "name:", index: at, text });
        }
        nodes.push(Node { name: line.name.clone(), kind: line.kind, above: None, package: None });
    }
    let mut across = Vec::new();
    for (at, line) in platform.links.iter().enumerate() {
        join(line, &index, &mut nodes, &mut across).map_err(|text| in_links(at, text))?;
    }
    no_ring(platform, &nodes)?;
    let mut board = Board {
        name: platform.name.clone(),
        title: platform.title.clone(),
        cpu: platform.cpu,
        memory: platform.memory,
        virtual_machine: platform.virtual_machine,
        translating: false,
        notes: platform.notes.clone(),
        nodes,
        across,
        seats: Vec::new(),
        bridges: Vec::new(),
    };
    seat_all(platform, &index, &mut board)?;
    bridge_all(platform, &mut board)?;
    Ok(board)
}

fn in_links(index: usize, text: String) -> Problem {
    Problem { section: "links:", key: "from:", index, text }
}

/// Adds one link to the tree, or between two sockets.
fn join(
    line: &LinkLine,
    index: &BTreeMap<&str, usize>,
    nodes: &mut [Node],
    across: &mut Vec<Across>,
) -> Result<(), String> {
    let find = |name: &str| index.get(name).copied().ok_or_else(|| format!("`{name}` is not among the nodes"));
    let (from, to) = (find(&line.from)?, find(&line.to)?);
    if line.source.trim().is_empty() {
        return Err("`source` is empty: say where the link was read".to_owned());
    }
    let lanes = match (line.generation, line.width) {
        (Some(generation), Some(width)) => Some(Lanes { generation, width }),
        (None, None) => None,
        _ => return Err("`gen` and `width` come together".to_owned()),
    };
    let sockets = (nodes[from].kind == NodeKind::Socket, nodes[to].kind == NodeKind::Socket);
    if sockets == (true, true) && from != to {
        let Some(rate) = line.rate else {
            return Err("a link between sockets needs `rate`, such as 48 GB/s".to_owned());
        };
        across.push(Across { a: from, b: to, rate, source: line.source.clone(), verified: line.verified });
        return Ok(());
    }
    if sockets.1 {
        return Err(format!("`{}` is a socket: only sockets are above it; exchange `from` and `to`", line.to));
    }
    if lanes.is_none() && line.rate.is_none() {
        return Err("the link has neither `gen` and `width` nor a `rate` such as 48 GB/s".to_owned());
    }
    if let Some(above) = &nodes[to].above {
        let first = &nodes[above.parent].name;
        return Err(format!("`{}` has two parents, `{first}` and `{}`: keep one link to it", line.to, line.from));
    }
    nodes[to].above =
        Some(Link { parent: from, lanes, rate: line.rate, source: line.source.clone(), verified: line.verified });
    Ok(())
}

/// Every chain of links must end at a socket.
fn no_ring(platform: &Platform, nodes: &[Node]) -> Result<(), Problem> {
    for (at, line) in platform.links.iter().enumerate() {
        let mut seen = BTreeSet::new();
        let mut here = nodes.iter().position(|node| node.name == line.to);
        while let Some(node) = here {
            if !seen.insert(node) {
                let text = format!("the links above `{}` form a ring: one of them must come from a socket", line.to);
                return Err(in_links(at, text));
            }
            here = nodes[node].above.as_ref().map(|link| link.parent);
        }
    }
    Ok(())
}

fn seat_all(platform: &Platform, index: &BTreeMap<&str, usize>, board: &mut Board) -> Result<(), Problem> {
    let mut taken = BTreeSet::new();
    for (at, line) in platform.gpus.iter().enumerate() {
        let wrong = |key, text| Problem { section: "gpus:", key, index: at, text };
        let Some(node) = index.get(line.slot.as_str()).copied() else {
            return Err(wrong("slot:", format!("`{}` is not among the nodes", line.slot)));
        };
        if board.nodes[node].kind != NodeKind::Slot {
            return Err(wrong("slot:", format!("`{}` is no slot: give its node `kind: slot`", line.slot)));
        }
        if !taken.insert(node) {
            return Err(wrong("slot:", format!("`{}` already holds a GPU", line.slot)));
        }
        if board.socket_of(node).is_none() {
            let text = format!("the GPU in `{}` has no path to a socket: add the link to `{}`", line.slot, line.slot);
            return Err(wrong("slot:", text));
        }
        let Some(card) = cards().get(&line.card) else {
            return Err(wrong("card:", unknown(&line.card).to_string()));
        };
        board.seats.push(Seat { node, card: card.clone(), peer: None });
    }
    if board.seats.is_empty() {
        let text = "no slot holds a GPU: list at least one under `gpus`".to_owned();
        return Err(Problem { section: "gpus:", key: "gpus:", index: 0, text });
    }
    Ok(())
}

fn bridge_all(platform: &Platform, board: &mut Board) -> Result<(), Problem> {
    for (at, line) in platform.nvlinks.iter().enumerate() {
        let wrong = |text| Problem { section: "nvlinks:", key: "slots:", index: at, text };
        let seat = |slot: &str| board.seats.iter().position(|seat| board.nodes[seat.node].name == slot);
        let (Some(a), Some(b)) = (seat(&line.slots[0]), seat(&line.slots[1])) else {
            return Err(wrong(format!("`{}` and `{}` must both hold a GPU", line.slots[0], line.slots[1])));
        };
        if a == b {
            return Err(wrong(format!("`{}` is bridged to itself: name two slots", line.slots[0])));
        }
        for seat in [a, b] {
            let card = &board.seats[seat].card;
            if card.nvlink.is_none() {
                let text = format!("`{}` takes no NVLink bridge: leave it out, or seat other cards", card.name);
                return Err(wrong(text));
            }
        }
        let (source, verified) = (line.source.clone(), line.verified);
        board.bridges.push(Bridged { a: a.min(b), b: a.max(b), source, verified });
    }
    Ok(())
}
