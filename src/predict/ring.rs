//! The ring of an all-reduce on a machine: transport of each hop, NCCL's own search, and the rate that it reaches.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::Serialize;

use crate::units::{Bytes, BytesPerSecond, Seconds};

use super::PredictError;
use super::board::{Board, NodeKind, copy_rate, nccl_link};
use super::calibration::Calibration;
use super::cpu::CpuGeneration;
use super::flow::{Flow, max_min};
use super::nccl::{NcclVersion, Protocol, RingGraph, RingProblem, Transport, ring_latency};

/// Peer access over PCIe: what NCCL decides, or what the user forces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum P2p {
    /// As NCCL decides by itself.
    #[default]
    Auto,
    /// `NCCL_P2P_LEVEL=SYS`, with a driver that grants it also where the stock one does not.
    On,
    /// `NCCL_P2P_DISABLE=1`.
    Off,
}

impl FromStr for P2p {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            _ => Err(format!("`{text}` is none of auto, on, off")),
        }
    }
}

/// A network between hosts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Network {
    /// Rate of one host in one direction.
    pub rate: BytesPerSecond,
    /// Latency of one message.
    pub latency: Seconds,
}

/// How gradients travel.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Exchange {
    /// Version of NCCL.
    pub nccl: NcclVersion,
    /// Peer access.
    pub p2p: P2p,
    /// `NCCL_MIN_CTAS`, where it is set.
    pub min_channels: Option<u32>,
    /// Hosts, each like the board.
    pub hosts: usize,
    /// The network between them; needed from two hosts on.
    pub network: Option<Network>,
}

impl Default for Exchange {
    fn default() -> Self {
        Self { nccl: NcclVersion::MODELLED, p2p: P2p::Auto, min_channels: None, hosts: 1, network: None }
    }
}

/// What lies between two GPUs, as NCCL classes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    /// Below one switch or several.
    Switch,
    /// A host bridge.
    Host,
    /// Between sockets.
    Across,
}

/// An all-reduce over all GPUs of a machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ring {
    /// Ranks over all hosts.
    pub ranks: usize,
    /// Bus bandwidth: `2(N−1)/N · bytes / time` for large messages.
    #[serde(rename = "bus_bytes_per_s")]
    pub bus: BytesPerSecond,
    /// What an all-reduce takes without a byte.
    #[serde(rename = "latency_s")]
    pub latency: Seconds,
    /// Transport of each hop of one host's part of the ring.
    pub transports: Vec<Transport>,
    /// What limits the bus bandwidth.
    pub limit: String,
    /// The node whose link, port or memory that is, where it is one of them.
    #[serde(skip)]
    pub limiting: Option<usize>,
    /// What NCCL's search finds; its own estimate, not what is reached.
    pub graph: RingGraph,
    /// Spread of the bus bandwidth: standard deviation of its logarithm.
    pub spread: f64,
}

impl Ring {
    /// Time of an all-reduce.
    #[must_use]
    pub fn time(&self, bytes: Bytes) -> Seconds {
        if self.ranks < 2 {
            return Seconds(0.0);
        }
        self.latency + Seconds(bytes.0 as f64 * self.factor() / self.bus.0)
    }

    /// `2(N−1)/N`: bytes on the bus for one byte of the buffer.
    #[must_use]
    pub fn factor(&self) -> f64 {
        2.0 * (self.ranks as f64 - 1.0) / self.ranks as f64
    }

    /// The same ring at another bus bandwidth.
    #[must_use]
    pub fn at(&self, bus: BytesPerSecond) -> Self {
        Self { bus, ..self.clone() }
    }

    /// True where some hop is of this kind.
    #[must_use]
    pub fn has(&self, transport: Transport) -> bool {
        self.transports.contains(&transport)
    }
}

/// The ring over every GPU of `board`.
///
/// # Errors
/// Several hosts without a network, or a GPU without a path.
pub fn ring(board: &Board, exchange: &Exchange, calibration: &Calibration) -> Result<Ring, PredictError> {
    let count = board.seats.len();
    let hosts = exchange.hosts.max(1);
    if 1 < hosts && exchange.network.is_none() {
        return Err(PredictError::NoNetwork { hosts });
    }
    let mut builder = Builder { board, exchange, calibration, wires: Vec::new(), index: BTreeMap::new() };
    let hops = builder.hops(hosts)?;
    let transports: Vec<Transport> = hops.iter().map(|(_, _, transport)| *transport).collect();
    let graph = builder.nccl(&hops)?;
    let (bus, limit, limiting) = builder.rate(&hops, &graph)?;
    let staged = transports.contains(&Transport::Staged);
    let unknown = exchange.nccl < NcclVersion::AFTER_CONTAINERS && !builder.by_port();
    let odd = board.virtual_machine || board.translating || graph.fallback || unknown;
    let spread = match (odd && (staged || graph.fallback), staged) {
        (true, _) => calibration.spread_odd,
        (_, true) => calibration.spread_staged,
        _ => calibration.spread_peer,
    };
    let ranks = count * hosts;
    Ok(Ring {
        ranks,
        bus,
        latency: latency(&transports, ranks, exchange, calibration),
        transports,
        limit,
        limiting,
        graph,
        spread,
    })
}

/// What NCCL takes for an NVLink, over the rate of its data sheet: `src/graph/topo.h`, `SM80_NVLINK_BW` 20.0 of 25 GB/s,
/// `SM86_NVLINK_BW` 12.0 of 14.1, `SM90_NVLINK_BW` 20.6 of 25; other cards as SM80.
fn nccl_nvlink_share(sm: u32) -> f64 {
    match sm {
        86..=89 => 12.0 / 14.0625,
        90..=99 => 20.6 / 25.0,
        _ => 20.0 / 25.0,
    }
}

/// LL's base, and what `2(N−1)` steps take: each step waits for its slowest hop's neighbours, so hops count with their
/// mean.
fn latency(transports: &[Transport], ranks: usize, exchange: &Exchange, calibration: &Calibration) -> Seconds {
    if ranks < 2 {
        return Seconds(0.0);
    }
    let of = |transport: &Transport| match transport {
        Transport::Nvlink => 0.6e-6, // NCCL, tuning.cc hwLat NVLINK, LL
        Transport::Peer => calibration.peer_hop.0,
        Transport::Staged => calibration.staged_hop.0,
        Transport::Network => exchange.network.map_or(0.0, |network| network.latency.0),
    };
    let mean = transports.iter().map(of).sum::<f64>() / transports.len().max(1) as f64;
    let base = ring_latency(Protocol::LL, 1, 1).0;
    Seconds(base + 2.0 * (ranks as f64 - 1.0) * mean)
}

/// What a resource is; the name is for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Wire {
    Up(usize),
    Down(usize),
    Both(usize),
    Port(usize),
    Memory(usize),
    Across(usize, usize),
}

/// A bus bandwidth, what limits it, and the node of that.
type Limited = (BytesPerSecond, String, Option<usize>);

/// A hop: from, to (indices of seats), transport.
type Hop = (usize, usize, Transport);

struct Builder<'a> {
    board: &'a Board,
    exchange: &'a Exchange,
    calibration: &'a Calibration,
    wires: Vec<(Wire, f64)>,
    index: BTreeMap<Wire, usize>,
}

impl Builder<'_> {
    fn hops(&self, hosts: usize) -> Result<Vec<Hop>, PredictError> {
        let count = self.board.seats.len();
        let mut hops = Vec::new();
        for from in 0..count {
            let to = (from + 1) % count;
            let last = from + 1 == count;
            if last && 1 < hosts {
                hops.push((from, to, Transport::Network));
            } else if 1 < count {
                hops.push((from, to, self.transport(from, to)?));
            }
        }
        Ok(hops)
    }

    fn chain(&self, seat: usize) -> Result<Vec<usize>, PredictError> {
        let node = self.board.seats[seat].node;
        let unconnected = || PredictError::NoPath { slot: self.board.nodes[node].name.clone() };
        self.board.chain(node).ok_or_else(unconnected)
    }

    /// The two chains up to, and without, the node where they meet; and how far apart they are. GPUs at two sockets meet
    /// nowhere: their chains end below the sockets.
    fn between(&self, from: usize, to: usize) -> Result<(Vec<usize>, Vec<usize>, Reach), PredictError> {
        let (mut a, mut b) = (self.chain(from)?, self.chain(to)?);
        let mut met = None;
        while let (Some(last), true) = (a.last().copied(), a.last() == b.last()) {
            met = Some(last);
            a.pop();
            b.pop();
        }
        let reach = match met.map(|node| self.board.nodes[node].kind) {
            None => {
                a.pop();
                b.pop();
                Reach::Across
            }
            Some(NodeKind::Socket | NodeKind::Root) => Reach::Host,
            Some(_) => Reach::Switch,
        };
        Ok((a, b, reach))
    }

    /// `paths.cc`, l. 284–420: peers where driver and level allow, host memory elsewhere.
    fn transport(&self, from: usize, to: usize) -> Result<Transport, PredictError> {
        let board = self.board;
        if board.bridged(from, to) {
            return Ok(Transport::Nvlink);
        }
        let granted = |seat: usize| board.seats[seat].peer.unwrap_or(board.seats[seat].card.peer);
        let (_, _, reach) = self.between(from, to)?;
        let level = match self.exchange.p2p {
            P2p::Off => return Ok(Transport::Staged),
            P2p::On => return Ok(Transport::Peer),
            P2p::Auto if self.exchange.nccl < NcclVersion::STAGES_ACROSS_BRIDGES => Reach::Across,
            P2p::Auto if board.cpu.is_amd() && board.seats.len() <= 2 => Reach::Across,
            P2p::Auto => Reach::Switch,
        };
        let peer = reach <= level && granted(from) && granted(to) && !board.virtual_machine;
        Ok(if peer { Transport::Peer } else { Transport::Staged })
    }

    fn wire(&mut self, wire: Wire) -> usize {
        if let Some(index) = self.index.get(&wire) {
            return *index;
        }
        let capacity = self.capacity(wire);
        self.wires.push((wire, capacity));
        self.index.insert(wire, self.wires.len() - 1);
        self.wires.len() - 1
    }

    /// Bytes per second.
    fn capacity(&self, wire: Wire) -> f64 {
        let (board, calibration) = (self.board, self.calibration);
        let stated = |node: usize| board.nodes[node].above.as_ref().and_then(|link| link.rate).map(|rate| rate.0);
        let translated = match board.virtual_machine || board.translating {
            true => calibration.translated_share,
            false => 1.0,
        };
        match wire {
            Wire::Up(node) | Wire::Down(node) => {
                let lanes = board.lanes(node).map(|lanes| nccl_link(lanes).0 * calibration.peer(self.exchange.nccl));
                lanes.into_iter().chain(stated(node)).fold(f64::INFINITY, f64::min)
            }
            Wire::Both(node) => {
                let lanes = board.lanes(node).map(|lanes| copy_rate(lanes).0 * calibration.staged_coupling);
                lanes.into_iter().chain(stated(node)).fold(f64::INFINITY, f64::min) * translated
            }
            Wire::Port(_) => calibration.staged_port.0 * translated,
            Wire::Memory(_) => board.memory.0 * calibration.memory_share,
            Wire::Across(a, b) => {
                let joins = |link: &&super::board::Across| [(a, b), (b, a)].contains(&(link.a, link.b));
                let rates = board.across.iter().filter(joins).map(|link| link.rate.0);
                let sum: f64 = rates.sum();
                if sum == 0.0 { calibration.across(board.cpu).0 } else { sum }
            }
        }
    }

    /// What one hop takes of the machine, and the most that it can use.
    fn flow(&mut self, (from, to, transport): Hop) -> Result<Flow, PredictError> {
        let calibration = self.calibration;
        let (mut up, mut down, reach) = self.between(from, to)?;
        let (source, target) = (self.board.seats[from].node, self.board.seats[to].node);
        let sockets = (self.board.socket_of(source), self.board.socket_of(target));
        let mut cap = f64::INFINITY;
        if transport == Transport::Nvlink {
            let rate = |seat: usize| self.board.seats[seat].card.nvlink.map_or(f64::INFINITY, |rate| rate.0);
            return Ok(Flow { uses: Vec::new(), cap: rate(from).min(rate(to)) * calibration.nvlink_share });
        }
        if transport != Transport::Peer {
            let below_socket = |chain: Vec<usize>| chain.into_iter().rev().skip(1).rev().collect::<Vec<_>>();
            (up, down) = (below_socket(self.chain(from)?), below_socket(self.chain(to)?));
        }
        let mut uses: Vec<(usize, f64)> = Vec::new();
        uses.extend(up.iter().map(|node| (self.wire(Wire::Up(*node)), 1.0)));
        uses.extend(down.iter().map(|node| (self.wire(Wire::Down(*node)), 1.0)));
        // between NUMA nodes of one processor its own fabric carries more than any known ring
        if let (Reach::Across, (Some(a), Some(b)), true) = (reach, sockets, transport != Transport::Network)
            && self.board.apart(a, b)
        {
            uses.push((self.wire(Wire::Across(a, b)), 1.0));
            if transport == Transport::Peer {
                cap = calibration.across(self.board.cpu).0;
            }
        }
        match transport {
            Transport::Staged => self.staged(&mut uses, (&up, &down), target, sockets),
            Transport::Network => {
                cap = self.exchange.network.map_or(cap, |network| network.rate.0 * calibration.network_share);
            }
            Transport::Nvlink | Transport::Peer => {}
        }
        Ok(Flow { uses, cap })
    }

    /// True where a root port's reads of host memory are known to limit staging: figures of old versions of NCCL are of
    /// Zen 2 and 3 only. Elsewhere they are predicted as newer ones are, and the interval is wide.
    fn by_port(&self) -> bool {
        self.exchange.nccl < NcclVersion::AFTER_CONTAINERS
            && matches!(self.board.cpu, CpuGeneration::Zen2 | CpuGeneration::Zen3)
    }

    /// Two crossings and memory: the buffer lies at the receiver (`NCCL_SHM_LOCALITY` 2).
    fn staged(
        &mut self,
        uses: &mut Vec<(usize, f64)>,
        (up, down): (&[usize], &[usize]),
        target: usize,
        sockets: (Option<usize>, Option<usize>),
    ) {
        if let Some(socket) = sockets.1 {
            uses.push((self.wire(Wire::Memory(socket)), 2.0));
        }
        if self.by_port() {
            let across = matches!(sockets, (Some(a), Some(b)) if self.board.apart(a, b));
            let far = if across { self.calibration.staged_far } else { 1.0 };
            if let Some(port) = self.board.root_port(target) {
                uses.push((self.wire(Wire::Port(port)), far));
            }
        } else {
            for node in up.iter().chain(down).copied().collect::<Vec<_>>() {
                uses.push((self.wire(Wire::Both(node)), 1.0));
            }
        }
    }

    /// NCCL's own search over its own rates.
    fn nccl(&self, hops: &[Hop]) -> Result<RingGraph, PredictError> {
        let board = self.board;
        let mut links: Vec<f64> = Vec::new();
        let mut index: BTreeMap<Wire, usize> = BTreeMap::new();
        let mut link = |wire: Wire, rate: f64| {
            *index.entry(wire).or_insert_with(|| {
                links.push(rate);
                links.len() - 1
            })
        };
        let mut charge = |from: usize, to: usize, transport: Transport| -> Result<Vec<(usize, f64)>, PredictError> {
            let (mut up, mut down, reach) = self.between(from, to)?;
            if transport == Transport::Nvlink {
                let rate = board.seats[from]
                    .card
                    .nvlink
                    .map_or(0.0, |rate| rate.0 / 1e9 * nccl_nvlink_share(board.seats[from].card.sm));
                return Ok(vec![(link(Wire::Both(from * 64 + to), rate), 1.0)]);
            }
            if transport == Transport::Staged || transport == Transport::Network {
                (up, down) = (self.chain(from)?, self.chain(to)?);
            }
            let through_cpu = transport != Transport::Peer || reach != Reach::Switch;
            let times = if !board.cpu.is_amd() && through_cpu { 1.2 } else { 1.0 };
            let mut uses = Vec::new();
            for (chain, wire) in [(&up, Wire::Up as fn(usize) -> Wire), (&down, Wire::Down as fn(usize) -> Wire)] {
                for node in chain {
                    if let Some(rate) = board.nccl_rate(*node) {
                        uses.push((link(wire(*node), rate.0 / 1e9), times));
                    }
                }
            }
            if reach == Reach::Across
                && let (Some(a), Some(b)) =
                    (board.socket_of(board.seats[from].node), board.socket_of(board.seats[to].node))
            {
                uses.push((link(Wire::Across(a, b), board.cpu.nccl_inter_socket().0 / 1e9), 1.0));
            }
            Ok(uses)
        };
        let forward = hops.iter().map(|hop| charge(hop.0, hop.1, hop.2)).collect::<Result<_, _>>()?;
        let backward = hops.iter().map(|hop| charge(hop.1, hop.0, hop.2)).collect::<Result<_, _>>()?;
        let own = board.seats.iter().map(|seat| {
            let pci = board.nccl_rate(seat.node).map_or(0.0, |rate| rate.0);
            let bridged = board.bridges.iter().any(|bridge| board.seats[bridge.a].node == seat.node);
            let nvlink =
                seat.card.nvlink.filter(|_| bridged).map_or(0.0, |rate| rate.0 * nccl_nvlink_share(seat.card.sm));
            pci.max(nvlink) / 1e9
        });
        let total = own.fold(0.0, f64::max);
        let sm = board.seats.iter().map(|seat| seat.card.sm).min().unwrap_or(0);
        Ok(RingProblem { links, forward, backward, total, sm }.search())
    }

    /// The bus bandwidth, and what limits it. Pairs with bridges make NCCL run rings in both directions, so that each
    /// GPU's link carries one of them.
    fn rate(&mut self, hops: &[Hop], graph: &RingGraph) -> Result<Limited, PredictError> {
        if hops.is_empty() {
            return Ok((BytesPerSecond(f64::INFINITY), "one GPU exchanges nothing".to_owned(), None));
        }
        let bridged = hops.iter().any(|hop| hop.2 == Transport::Nvlink) && 2 < self.board.seats.len();
        let mut flows = hops.iter().map(|hop| self.flow(*hop)).collect::<Result<Vec<_>, _>>()?;
        if bridged {
            let reversed = hops.iter().map(|hop| self.flow((hop.1, hop.0, hop.2)));
            flows.extend(reversed.collect::<Result<Vec<_>, _>>()?);
        }
        let capacities: Vec<f64> = self.wires.iter().map(|(_, capacity)| *capacity).collect();
        let rates = max_min(&capacities, &flows);
        let slowest = |rates: &[f64]| rates.iter().copied().fold(f64::INFINITY, f64::min);
        let bus: f64 = rates.chunks(hops.len()).map(slowest).sum();
        let channels = f64::from(self.exchange.min_channels.unwrap_or(2).max(2));
        let fallback = self.calibration.fallback_channel.0 * channels;
        if graph.fallback && fallback < bus {
            let limit = format!("{channels} channels of NCCL's fallback to simple order");
            return Ok((BytesPerSecond(fallback), limit, None));
        }
        let worst = rates.iter().enumerate().min_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(at, _)| at);
        let (limit, node) = self.limit(&flows, &rates, worst, hops[worst % hops.len()]);
        Ok((BytesPerSecond(bus), limit, node))
    }

    /// The fullest resource of the slowest flow, in words, and its node.
    fn limit(&self, flows: &[Flow], rates: &[f64], worst: usize, hop: Hop) -> (String, Option<usize>) {
        let load = |wire: usize| -> f64 {
            let taken = |(flow, rate): (&Flow, &f64)| -> f64 {
                flow.uses.iter().filter(|(at, _)| *at == wire).map(|(_, weight)| weight * rate).sum()
            };
            flows.iter().zip(rates).map(taken).sum::<f64>() / self.wires[wire].1
        };
        let name = |seat: usize| &self.board.nodes[self.board.seats[seat].node].name;
        let fullest = flows[worst].uses.iter().map(|(wire, _)| *wire).max_by(|a, b| load(*a).total_cmp(&load(*b)));
        let Some(wire) = fullest.filter(|wire| 0.999 < load(*wire)) else {
            return (format!("{} between {} and {}", hop.2, name(hop.0), name(hop.1)), None);
        };
        let node = |node: usize| &self.board.nodes[node].name;
        let wire = self.wires[wire].0;
        let at = match wire {
            Wire::Up(at) | Wire::Down(at) | Wire::Both(at) | Wire::Port(at) | Wire::Memory(at) => Some(at),
            Wire::Across(..) => None,
        };
        let words = match wire {
            Wire::Up(at) | Wire::Down(at) => match self.board.lanes(at) {
                Some(lanes) => format!("{lanes} link of {}", node(at)),
                None => format!("link of {}", node(at)),
            },
            Wire::Both(at) => format!("both directions of {}, staged", node(at)),
            Wire::Port(at) => format!("host memory read through the port of {}", node(at)),
            Wire::Memory(at) => format!("memory of {}", node(at)),
            Wire::Across(a, b) => format!("link between {} and {}", node(a), node(b)),
        };
        (words, at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predict::{card, platform};

    fn on(name: &str, count: usize, exchange: &Exchange) -> Ring {
        ring(&platform(name).unwrap().with_gpus(count).unwrap(), exchange, &Calibration::default()).unwrap()
    }

    #[test]
    fn the_published_graph_line_of_eight_4090_behind_two_switches_is_found() {
        // nccl-tests 307: `Pattern 4, crossNic 0, nChannels 1, bw 5.000000/5.000000, type SYS/PIX`
        let ring = on("dual-xeon-8x4090-switches", 8, &Exchange::default());
        assert_eq!((ring.graph.channels, ring.graph.bandwidth, ring.graph.fallback), (1, 5.0, false));
        assert!(ring.transports.iter().all(|transport| *transport == Transport::Staged));
    }

    #[test]
    fn nccl_stages_what_it_does_not_reach_by_itself() {
        let transport = |name, count, p2p, nccl| {
            let exchange = Exchange { p2p, nccl, ..Exchange::default() };
            on(name, count, &exchange).transports[0]
        };
        let (new, old) = (NcclVersion::MODELLED, NcclVersion(2, 22, 3));
        // section 2.4 of the notes: AMD with two GPUs takes peers, with four it stages, before 2.23.4 it does not
        assert_eq!(transport("asus-wrx90e-sage-se", 2, P2p::Auto, new), Transport::Peer);
        assert_eq!(transport("asus-wrx90e-sage-se", 4, P2p::Auto, new), Transport::Staged);
        assert_eq!(transport("asus-wrx90e-sage-se", 4, P2p::Auto, old), Transport::Peer);
        assert_eq!(transport("asus-w790e-sage-se", 2, P2p::Auto, new), Transport::Staged);
        assert_eq!(transport("wrx90-two-switches", 4, P2p::Auto, new), Transport::Peer);
        assert_eq!(transport("asrock-romed8-2t", 2, P2p::Auto, new), Transport::Staged);
        assert_eq!(transport("asrock-romed8-2t", 4, P2p::On, new), Transport::Peer);
        assert_eq!(transport("asus-wrx90e-sage-se", 2, P2p::Off, new), Transport::Staged);
    }

    #[test]
    fn narrow_links_chipsets_and_both_directions_limit_a_ring() {
        let peers = Exchange { p2p: P2p::On, ..Exchange::default() };
        let chipset = on("am5-chipset", 2, &peers);
        assert!(chipset.bus.0 < 6.6e9 && chipset.limit.contains("Gen4 x4"), "{chipset:?}");
        let (peer, staged) = (on("asrock-romed8-2t", 4, &peers), on("asrock-romed8-2t", 4, &Exchange::default()));
        assert!(peer.bus.0 / staged.bus.0 > 1.6 && staged.limit.contains("both directions"), "{staged:?}");
        let mut narrow = platform("asrock-romed8-2t").unwrap().with_gpus(4).unwrap();
        let slot = narrow.seats[2].node;
        assert!(narrow.set_width(slot, crate::topology::Width::new(8).unwrap()));
        let narrow = ring(&narrow, &peers, &Calibration::default()).unwrap();
        assert!((peer.bus / narrow.bus - 2.0).abs() < 1e-9, "{narrow:?}");
    }

    #[test]
    fn blackwell_across_amd_sockets_falls_back_and_more_channels_cure_it() {
        let mut exchange = Exchange { p2p: P2p::On, ..Exchange::default() };
        let trapped = on("turin2d24g-2l", 8, &exchange);
        assert!(trapped.graph.fallback && trapped.limit.contains("fallback"), "{trapped:?}");
        exchange.min_channels = Some(8);
        assert!(1.5 < on("turin2d24g-2l", 8, &exchange).bus / trapped.bus);
    }

    #[test]
    fn a_network_limits_hosts_and_must_be_given() {
        let mut exchange = Exchange { hosts: 2, ..Exchange::default() };
        let board = platform("asrock-romed8-2t").unwrap().with_gpus(2).unwrap();
        let error = ring(&board, &exchange, &Calibration::default()).unwrap_err().to_string();
        assert!(error.contains("--network"), "{error}");
        exchange.network = Some(Network { rate: BytesPerSecond(1.25e9), latency: Seconds(20e-6) });
        let ring = ring(&board, &exchange, &Calibration::default()).unwrap();
        assert!(ring.ranks == 4 && ring.bus.0 < 1.25e9 && ring.has(Transport::Network), "{ring:?}");
    }

    #[test]
    fn an_unconnected_card_is_named_and_a_mixed_pair_takes_the_slower() {
        let mut board = platform("asus-wrx90e-sage-se").unwrap().with_gpus(2).unwrap();
        board.seats[1].card = card("rtx-4090").unwrap().clone();
        let mixed = ring(&board, &Exchange::default(), &Calibration::default()).unwrap();
        assert!(mixed.has(Transport::Staged) && mixed.bus.0 < 14e9, "{mixed:?}");
    }
}
