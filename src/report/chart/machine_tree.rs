//! What the picture of a machine shows: hosts, root ports, switches and GPUs, as a tree of texts.

use std::collections::BTreeSet;

use crate::report::sketch::{SketchKind, SketchLink, SketchPart};
use crate::report::text::printable_text;
use crate::topology::{Gpu, Hop, Lanes, LinkEnd, PciAddress, Reading, Topology};
use crate::units::BytesPerSecond;

/// What a box is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Host,
    Port,
    Switch,
    Chipset,
    Gpu,
}

/// One box, and what hangs below it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Part {
    pub(super) kind: Kind,
    /// What stands in it, the most important first.
    pub(super) lines: Vec<String>,
    /// The link above it, where there is one.
    pub(super) link: Option<LinkText>,
    pub(super) below: Vec<Part>,
    /// Socket of a host.
    pub(super) socket: Option<u32>,
    /// What joins this host's socket to others, in words.
    pub(super) across: Option<String>,
    address: Option<PciAddress>,
}

/// A link in words.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LinkText {
    /// `Gen4 x16`.
    pub(super) name: String,
    /// One direction; none where the link is unknown.
    pub(super) rate: Option<BytesPerSecond>,
    /// What its device could do, where the link is narrower or slower; or that it limits the ring.
    pub(super) short: Option<String>,
    /// Drawn dashed: short of its device, or not checked.
    pub(super) dashed: bool,
}

impl LinkText {
    fn of(lanes: Reading<Lanes>, device: &LinkEnd) -> Self {
        let Ok(lanes) = lanes else {
            return Self { name: "link unknown".into(), rate: None, short: None, dashed: true };
        };
        let most = device.max().ok();
        let short = most.filter(|most| lanes.width < most.width || lanes.generation < most.generation);
        let (rate, dashed) = (Some(lanes.rate()), short.is_some());
        Self { name: lanes.to_string(), rate, short: short.map(|most| format!("of {most}")), dashed }
    }

    fn sketched(link: &SketchLink) -> Self {
        let short = link.limits.then(|| "the limit".to_owned());
        Self { name: printable_text(&link.name), rate: link.rate, short, dashed: !link.checked }
    }

    /// `! Gen4 x8 of Gen4 x16, 15.8 GB/s`
    pub(super) fn in_a_line(&self) -> String {
        let rate = self.rate.map(|rate| format!(", {rate}")).unwrap_or_default();
        match &self.short {
            Some(short) => format!("! {} {short}{rate}", self.name),
            None => format!("{}{rate}", self.name),
        }
    }
}

impl Part {
    fn new(kind: Kind, lines: Vec<String>) -> Self {
        let lines = lines.iter().map(|line| printable_text(line)).collect();
        Self { kind, lines, link: None, below: Vec::new(), socket: None, across: None, address: None }
    }

    /// A described part, with all below it.
    pub(super) fn sketched(part: &SketchPart, socket: u32) -> Self {
        let kind = match part.kind {
            SketchKind::Host => Kind::Host,
            SketchKind::Port => Kind::Port,
            SketchKind::Switch => Kind::Switch,
            SketchKind::Chipset => Kind::Chipset,
            SketchKind::Slot => Kind::Gpu,
        };
        Self {
            link: part.link.as_ref().map(LinkText::sketched),
            below: part.below.iter().map(|below| Self::sketched(below, socket)).collect(),
            socket: Some(socket),
            across: part.across.as_deref().map(printable_text),
            ..Self::new(kind, part.lines.clone())
        }
    }

    /// Boxes on the longest way down.
    pub(super) fn levels(&self) -> usize {
        1 + self.below.iter().map(Self::levels).max().unwrap_or(0)
    }

    pub(super) fn has_gpu(&self) -> bool {
        self.kind == Kind::Gpu || self.below.iter().any(Self::has_gpu)
    }

    /// The part at this address below this one, made if it is new.
    fn at(&mut self, address: PciAddress, make: impl FnOnce() -> Self) -> &mut Self {
        let place = self.below.iter().position(|part| part.address == Some(address));
        let place = place.unwrap_or_else(|| {
            self.below.push(Self { address: Some(address), ..make() });
            self.below.len() - 1
        });
        &mut self.below[place]
    }
}

/// The hosts (sockets, or NUMA nodes of one) with all GPUs of NVIDIA below them.
pub(super) fn parts(topology: &Topology) -> Vec<Part> {
    let mut hosts = hosts(topology);
    for gpu in topology.nvidia_gpus() {
        let node = gpu.numa_node.as_ref().ok().copied();
        let place = hosts.iter().position(|(own, _)| *own == node).or((hosts.len() == 1).then_some(0));
        let place = place.unwrap_or_else(|| {
            let name = node.map_or_else(|| "unknown".to_owned(), |node| node.to_string());
            hosts.push((node, Part::new(Kind::Host, vec!["host".into(), format!("NUMA node {name}")])));
            hosts.len() - 1
        });
        add(topology, gpu, &mut hosts[place].1);
    }
    hosts.into_iter().map(|(_, host)| host).collect()
}

/// Each NUMA node, by socket; one host where none is known.
fn hosts(topology: &Topology) -> Vec<(Option<u32>, Part)> {
    let maker = topology.cpu.model.as_deref().unwrap_or_default();
    let across = match maker {
        _ if maker.contains("AMD") => "xGMI between sockets, rate not told",
        _ if maker.contains("Intel") => "UPI between sockets, rate not told",
        _ => "link between sockets, rate not told",
    };
    let sockets: BTreeSet<u32> = topology.cpu.sockets.iter().flatten().map(|socket| socket.socket).collect();
    let mut hosts: Vec<(Option<u32>, Part)> = Vec::new();
    for node in topology.nodes() {
        let first = node.cpus.as_ref().ok().and_then(|cpus| cpus.cpus().first());
        let socket = first.and_then(|cpu| topology.socket_of_cpu(*cpu));
        let cores = topology.cpu.sockets.iter().flatten().find(|one| Some(one.socket) == socket);
        let title = socket.map_or_else(|| "memory".to_owned(), |socket| format!("socket {socket}"));
        let mut lines = vec![title, format!("NUMA node {}", node.node)];
        lines.extend(cores.map(|socket| format!("{} cores", socket.cores.len())));
        let mut part = Part::new(Kind::Host, lines);
        (part.socket, part.across) = (socket, (1 < sockets.len()).then(|| across.to_owned()));
        hosts.push((Some(node.node), part));
    }
    hosts.sort_by_key(|(node, part)| (part.socket.is_none(), part.socket, *node));
    if hosts.is_empty() {
        hosts.push((None, Part::new(Kind::Host, vec!["host".into(), "NUMA unknown".into()])));
    }
    hosts
}

/// Adds a GPU and what lies above it.
fn add(topology: &Topology, gpu: &Gpu, host: &mut Part) {
    let hops = topology.hops(gpu);
    let mut above = host;
    if let Some(first) = hops.first() {
        let port = || Part::new(Kind::Port, vec!["root port".into(), first.upper.to_string()]);
        above = above.at(first.upper, port);
    }
    for hop in hops.iter().filter(|hop| hop.lower != gpu.address) {
        above = above.at(hop.lower, || between(topology, hop));
    }
    let name = gpu.name();
    let name = name.trim_start_matches("NVIDIA ").trim_start_matches("GeForce ").to_owned();
    let mut lines = vec![name, gpu.address.to_string()];
    lines.extend(bridged(topology, gpu.address).map(|other| format!("NVLink to {other}")));
    let link = match hops.last().filter(|hop| hop.lower == gpu.address) {
        Some(hop) => LinkText::of(lanes(hop), &gpu.link),
        None => LinkText::of(gpu.link.max(), &gpu.link),
    };
    above.at(gpu.address, || Part { link: Some(link), ..Part::new(Kind::Gpu, lines) });
}

/// A switch or a chipset, by its upstream port.
fn between(topology: &Topology, hop: &Hop<'_>) -> Part {
    let id = topology.bridge(hop.lower).and_then(|bridge| bridge.id.as_ref().ok());
    let kind = if id.is_some_and(|id| id.is_chipset()) { Kind::Chipset } else { Kind::Switch };
    let word = if kind == Kind::Chipset { "chipset" } else { "switch" };
    let mut lines = vec![word.to_owned(), hop.lower.to_string()];
    // the link says the generation
    let name = id.and_then(|id| id.name()).map(|name| name.trim_end_matches(" switch"));
    lines.extend(name.map(|name| name.split(" Gen").next().unwrap_or(name).to_owned()));
    Part { link: Some(LinkText::of(lanes(hop), hop.lower_end)), ..Part::new(kind, lines) }
}

/// What a link gives: as read where the GPUs were at work, else as it is when awake.
fn lanes(hop: &Hop<'_>) -> Reading<Lanes> {
    match hop.lower_end.phase.is_at_rest() {
        true => hop.awake(),
        false => hop.lower_end.now().or_else(|_| hop.awake()),
    }
}

/// The GPU at the other end of an NVLink bridge.
fn bridged(topology: &Topology, gpu: PciAddress) -> Option<PciAddress> {
    let links = topology.nvlinks.iter().flatten().filter(|link| link.gpu == gpu);
    links.filter_map(|link| link.target.as_ref().ok().copied()).find(|target| topology.gpu(*target).is_some())
}
