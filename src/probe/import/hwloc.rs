//! XML of lstopo, hwloc 2 and 3: sockets, cores, NUMA nodes, and the PCI tree.
//!
//! Of a link it holds the product of speed and width at rest (`pci_link_speed`), from which neither follows.

use std::borrow::Cow;

use crate::topology::{
    Bridge, ClassCode, CpuSet, CpuSignature, Gpu, GpuState, LinkEnd, Missing, NumaNode, PciAddress, PciId, Reading,
    RootComplex, Socket, Topology, Why, WrongPlace, Xml, XmlNode, place_in,
};
use crate::units::Bytes;

use super::{GPUS_MAX, Kind, untold};

const KIND: Kind = Kind::Hwloc;
const HELP: &str = "give the file that `lstopo --of xml FILE` of hwloc 2 or 3 wrote: <topology version=\"2.0\"> with an <object> \
                    for each part";
/// Machine, group, package, die, three caches, core, thread and as many bridges as a topology may nest.
const DEPTH_MAX: usize = 64;
/// No machine has more.
const NODES_MAX: usize = 1024;
const BRIDGES_MAX: usize = 4096;
/// As many words of 32 bits as a [`CpuSet`] holds.
const WORDS_MAX: usize = 2048;

/// Reads a machine; `file` is the name for errors.
pub(super) fn read(text: &str, file: &str) -> Result<Topology, Box<WrongPlace>> {
    let plain = without_doctype(text, file)?;
    let (xml, document) = Xml::parse(&plain, file, HELP)?;
    let root = document.root_element();
    if !root.has_tag_name("topology") {
        return Err(xml.wrong(root, format!("<{}> is no topology of hwloc", root.tag_name().name())));
    }
    let version = root.attribute("version").unwrap_or("1");
    if !["2.", "3."].iter().any(|known| version.starts_with(known)) {
        let start: String = version.chars().take(20).collect();
        return Err(xml.wrong(root, format!("version {start} of hwloc's XML; expected 2.0 or 3.0")));
    }
    let machine = root.children().find(|node| node.has_tag_name("object"));
    let machine = machine.ok_or_else(|| xml.wrong(root, "it holds no <object>"))?;
    let topology = Topology::untold(&KIND.to_string());
    let mut reader = Reader { xml, topology, nodes: Vec::new(), sockets: Vec::new(), bridges: 0 };
    reader.whole(machine);
    reader.object(machine, &Place { nodes: "", root: None, bridges: &[], depth: 0, socket: None })?;
    Ok(reader.finish())
}

/// lstopo names its DTD, which is not read: blanks take its place, so that lines and columns stay. A DTD inside of the
/// file is refused.
fn without_doctype<'a>(text: &'a str, file: &str) -> Result<Cow<'a, str>, Box<WrongPlace>> {
    let Some(start) = text.find("<!DOCTYPE") else { return Ok(Cow::Borrowed(text)) };
    let end = text[start..].find(['>', '[']).map(|end| start + end);
    match end.filter(|end| text[*end..].starts_with('>')) {
        Some(end) => {
            let blank: String = text[start..=end].bytes().map(|byte| if byte == b'\n' { '\n' } else { ' ' }).collect();
            Ok(Cow::Owned([&text[..start], &blank, &text[end + 1..]].concat()))
        }
        None => Err(Box::new(place_in(text, file, start, "a document type inside of the file".to_owned(), HELP))),
    }
}

/// Where in the tree of objects a reader is.
struct Place<'a> {
    /// The NUMA nodes of the nearest object that names them, as a mask.
    nodes: &'a str,
    root: Option<RootComplex>,
    bridges: &'a [Bridge],
    depth: usize,
    /// Index of the socket.
    socket: Option<usize>,
}

struct Reader<'a> {
    xml: Xml<'a>,
    topology: Topology,
    nodes: Vec<NumaNode>,
    sockets: Vec<Socket>,
    /// Bridges met so far.
    bridges: usize,
}

impl Reader<'_> {
    /// What is told of the machine as a whole.
    fn whole(&mut self, machine: XmlNode<'_, '_>) {
        let told = |name: &str| {
            let text = info(machine, name).map(str::trim).filter(|text| !text.is_empty());
            text.map(str::to_owned).ok_or_else(|| untold(KIND))
        };
        let topology = &mut self.topology;
        topology.machine.vendor = told("DMISysVendor");
        topology.machine.product = told("DMIProductName");
        topology.machine.board_vendor = told("DMIBoardVendor");
        topology.machine.board = told("DMIBoardName");
        topology.machine.bios_version = told("DMIBIOSVersion");
        topology.machine.bios_date = told("DMIBIOSDate");
        topology.system.kernel = told("OSRelease");
        topology.cpu.online = cpus(machine, "cpuset");
        topology.cpu.allowed = cpus(machine, "allowed_cpuset");
        let package = machine.descendants().find(|node| is_object(*node, "Package"));
        let of_cpu = |name: &str| package.and_then(|package| info(package, name)).or_else(|| info(machine, name));
        topology.cpu.model = of_cpu("CPUModel").map(str::to_owned).ok_or_else(|| untold(KIND));
        topology.cpu.signature = info(machine, "Architecture").map(|arch| CpuSignature {
            arch: match arch {
                "aarch64" => "arm64".to_owned(),
                "ppc64le" => "ppc64".to_owned(),
                _ => arch.to_owned(),
            },
            vendor: of_cpu("CPUVendor").map(str::to_owned),
            family: of_cpu("CPUFamilyNumber").and_then(|number| number.parse().ok()),
            model: of_cpu("CPUModelNumber").and_then(|number| number.parse().ok()),
        });
    }

    fn object(&mut self, object: XmlNode<'_, '_>, place: &Place<'_>) -> Result<(), Box<WrongPlace>> {
        if DEPTH_MAX <= place.depth {
            return Err(self.xml.wrong(object, format!("objects nest deeper than {DEPTH_MAX} levels")));
        }
        let mut inside =
            Place { nodes: object.attribute("nodeset").unwrap_or(place.nodes), depth: place.depth + 1, ..*place };
        match object.attribute("type") {
            Some("NUMANode") => self.node(object)?,
            Some("Package") => {
                let socket = self.xml.value(object, "os_index")?;
                self.sockets.push(Socket { socket, cores: Vec::new() });
                inside.socket = Some(self.sockets.len() - 1);
            }
            Some("Core") => self.core(object, place.socket),
            Some("Bridge") => match object.attribute("pci_busid") {
                // The host bridge: `0000:[00-08]`.
                None => inside.root = object.attribute("bridge_pci").and_then(host_bridge),
                Some(_) => {
                    let bridges = [place.bridges, &[self.bridge(object, &inside)?]].concat();
                    inside.bridges = &bridges;
                    return self.children(object, &inside);
                }
            },
            Some("PCIDev") => self.device(object, &inside)?,
            _ => {}
        }
        self.children(object, &inside)
    }

    fn children(&mut self, object: XmlNode<'_, '_>, inside: &Place<'_>) -> Result<(), Box<WrongPlace>> {
        let mut children = object.children().filter(|node| node.has_tag_name("object"));
        children.try_for_each(|child| self.object(child, inside))
    }

    fn node(&mut self, object: XmlNode<'_, '_>) -> Result<(), Box<WrongPlace>> {
        if NODES_MAX <= self.nodes.len() {
            return Err(self.xml.wrong(object, format!("more than {NODES_MAX} NUMA nodes")));
        }
        let memory = self.xml.optional::<u64>(object, "local_memory")?;
        self.nodes.push(NumaNode {
            node: self.xml.value(object, "os_index")?,
            cpus: cpus(object, "cpuset"),
            memory_bytes: memory.map(Bytes).ok_or_else(|| untold(KIND)),
            distances: Err(untold(KIND)),
        });
        Ok(())
    }

    fn core(&mut self, object: XmlNode<'_, '_>, socket: Option<usize>) {
        if let (Some(socket), Ok(cpus)) = (socket.and_then(|index| self.sockets.get_mut(index)), cpus(object, "cpuset"))
        {
            socket.cores.push(cpus);
        }
    }

    fn bridge(&mut self, object: XmlNode<'_, '_>, place: &Place<'_>) -> Result<Bridge, Box<WrongPlace>> {
        self.bridges += 1;
        if BRIDGES_MAX < self.bridges {
            return Err(self.xml.wrong(object, format!("more than {BRIDGES_MAX} bridges")));
        }
        let address: PciAddress = self.xml.value(object, "pci_busid")?;
        Ok(Bridge {
            root: place.root.ok_or_else(|| untold(KIND)),
            parent: place.bridges.last().map(|bridge| bridge.address),
            id: id(object),
            numa_node: numa_node(place.nodes),
            link: link(),
            ..Bridge::untold(address, &KIND.to_string())
        })
    }

    fn device(&mut self, object: XmlNode<'_, '_>, place: &Place<'_>) -> Result<(), Box<WrongPlace>> {
        // `0300 [10de:2684] [1043:889c] a1`: class, device, board, revision.
        let class = object.attribute("pci_type").and_then(|text| text.get(..4));
        let class = class.and_then(|digits| u32::from_str_radix(digits, 16).ok()).map(|class| ClassCode(class << 8));
        let Some(class) = class.filter(|class| class.is_display()) else { return Ok(()) };
        if GPUS_MAX <= self.topology.gpus.len() {
            return Err(self.xml.wrong(object, format!("more than {GPUS_MAX} GPUs")));
        }
        let address: PciAddress = self.xml.value(object, "pci_busid")?;
        let mut gpu = Gpu {
            root: place.root.ok_or_else(|| untold(KIND)),
            parent: place.bridges.last().map(|bridge| bridge.address),
            id: id(object),
            class,
            numa_node: numa_node(place.nodes),
            link: link(),
            ..Gpu::untold(address, &KIND.to_string())
        };
        if gpu.is_nvidia() {
            let mut state = GpuState::untold(&KIND.to_string());
            let model = object.descendants().find_map(|device| info(device, "GPUModel"));
            state.name = model.map(str::to_owned).ok_or_else(|| untold(KIND));
            gpu.nvml = Some(state);
        }
        for bridge in place.bridges {
            if !self.topology.bridges.contains(bridge) {
                self.topology.bridges.push(bridge.clone());
            }
        }
        self.topology.gpus.push(gpu);
        Ok(())
    }

    fn finish(mut self) -> Topology {
        self.nodes.sort_by_key(|node| node.node);
        self.nodes.dedup_by_key(|node| node.node);
        self.sockets.sort_by_key(|socket| socket.socket);
        let topology = &mut self.topology;
        topology.gpus.sort_by_key(|gpu| gpu.address);
        topology.bridges.sort_by_key(|bridge| bridge.address);
        let memory = self.nodes.iter().map(|node| node.memory_bytes.clone().map(|bytes| bytes.0));
        let total = memory.sum::<Reading<u64>>();
        topology.system.memory_bytes = if self.nodes.is_empty() { Err(untold(KIND)) } else { total.map(Bytes) };
        topology.numa = if self.nodes.is_empty() { Err(untold(KIND)) } else { Ok(self.nodes) };
        let cores = self.sockets.iter().any(|socket| !socket.cores.is_empty());
        topology.cpu.sockets = if cores { Ok(self.sockets) } else { Err(untold(KIND)) };
        self.topology
    }
}

fn is_object(node: XmlNode<'_, '_>, kind: &str) -> bool {
    node.has_tag_name("object") && node.attribute("type") == Some(kind)
}

/// `<info name="CPUModel" value="…"/>` directly below an object.
fn info<'a>(object: XmlNode<'a, '_>, name: &str) -> Option<&'a str> {
    let infos = object.children().filter(|node| node.has_tag_name("info"));
    infos.into_iter().find(|node| node.attribute("name") == Some(name)).and_then(|node| node.attribute("value"))
}

/// `0000:[00-08]`: the buses below a host bridge; the first is the root complex.
fn host_bridge(buses: &str) -> Option<RootComplex> {
    let (domain, buses) = buses.split_once(":[")?;
    let (first, _) = buses.split_once('-')?;
    format!("{domain}:{first}").parse().ok()
}

/// The device of `0300 [10de:2684] [1043:889c] a1`.
fn id(object: XmlNode<'_, '_>) -> Reading<PciId> {
    let text = object.attribute("pci_type").unwrap_or_default();
    let id = text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).and_then(|(id, _)| id.parse().ok());
    id.ok_or_else(|| untold(KIND))
}

/// Speed and width are one product.
fn link() -> LinkEnd {
    LinkEnd::untold("lstopo XML, which holds the product of speed and width only")
}

/// The members of a mask of hwloc: `0x0000ffff,,0xffffffff`, the highest word first, an empty word is 0.
fn members(mask: &str) -> Option<Vec<usize>> {
    let words: Vec<&str> = mask.trim().split(',').collect();
    if mask.trim().is_empty() || WORDS_MAX < words.len() {
        return None;
    }
    let mut members = Vec::new();
    for (index, word) in words.iter().rev().enumerate() {
        let bits = match word.strip_prefix("0x") {
            Some(digits) if digits.len() <= 8 => u32::from_str_radix(digits, 16).ok()?,
            None if word.is_empty() => 0,
            _ => return None,
        };
        members.extend((0..32).filter(|bit| bits >> bit & 1 == 1).map(|bit| index * 32 + bit));
    }
    Some(members)
}

fn cpus(object: XmlNode<'_, '_>, name: &str) -> Reading<CpuSet> {
    let mask = object.attribute(name).ok_or_else(|| untold(KIND))?;
    let garbled = || {
        let start: String = mask.chars().take(40).collect();
        Missing::new(Why::Garbled, format!("{name} is `{start}`"))
    };
    members(mask).map(CpuSet::from_iter).ok_or_else(garbled)
}

/// The one node of the object that a PCI tree hangs off.
fn numa_node(mask: &str) -> Reading<u32> {
    match members(mask).as_deref() {
        Some([node]) => Ok(u32::try_from(*node).unwrap_or(u32::MAX)),
        Some(_) => Err(Missing::new(Why::Absent, "the PCI tree hangs off an object of several NUMA nodes")),
        None => Err(untold(KIND)),
    }
}
