//! NCCL's topology XML, as `NCCL_TOPO_DUMP_FILE` writes it and `NCCL_TOPO_FILE` reads it, in and out.
//!
//! The grammar is that of NCCL 2.30.7, `src/graph/xml.cc` and `topo.cc`: `<system version="1">` holds a `<cpu>` for each
//! NUMA node, a cpu `<pci>` devices, a `<pci>` further ones or a `<gpu>` with its `<nvlink>`s. Each `<pci>` stands for a
//! link: its device is the lower end, and speed and width are what both ends offer. Root ports and the downstream ports
//! of switches are left out; reading gives them an address that no machine has, so that links keep two ends.
//!
//! NCCL writes what both ends offer, but NCCL 2.30.7 writes for a GPU what was in use: a dump of an idle machine may
//! hold Gen1. Network cards, NVSwitches and NVLink-C2C are not read.

use std::collections::BTreeMap;

use super::xml::{Xml, XmlNode};
use super::{
    Bridge, ClassCode, CpuSet, CpuSignature, Generation, Gpu, GpuState, Hop, LinkEnd, Missing, NumaNode, NvLink,
    PciAddress, PciId, Reading, Topology, Why, Width, WrongPlace,
};

mod write;

pub use write::to_nccl_xml;

const KIND: &str = "NCCL topology XML";
const HELP: &str = "give the file that NCCL wrote with NCCL_TOPO_DUMP_FILE: <system version=\"1\"> with a <cpu> for each \
                    NUMA node and a <pci> with a <gpu> for each GPU";

/// The version that every NCCL so far writes, and the only one that it reads (`NCCL_TOPO_XML_VERSION`).
const VERSION: &str = "1";
/// RCCL, NCCL for AMD GPUs, writes the same elements under this one (its `tools/topo_expl/models`).
const VERSION_RCCL: &str = "2";
/// How deep `<pci>` may nest: each level is two bridges of a topology.
const PCI_DEPTH_MAX: usize = 15;
/// The largest PCIe boxes hold 20 GPUs.
const GPUS_MAX: usize = 64;
/// What stands in place of an NVSwitch that a virtual machine does not see.
const HIDDEN_TARGET: &str = "fffffff:ffff:ff";
/// How every such word begins: NCCL 2.28 under driver 580 writes `fffffff:ff:ff.0`.
const HIDDEN: &str = "fffffff:ff";

/// Reads a topology; `file` is the name for errors.
///
/// # Errors
/// The text is too long, no XML, or no NCCL topology: with line and column.
pub fn from_nccl_xml(text: &str, file: &str) -> Result<Topology, Box<WrongPlace>> {
    let (xml, document) = Xml::parse(text, file, HELP)?;
    let system = document.root_element();
    if !system.has_tag_name("system") {
        return Err(xml.wrong(system, format!("<{}> is no NCCL topology", system.tag_name().name())));
    }
    let version = xml.required(system, "version")?;
    if ![VERSION, VERSION_RCCL].contains(&version) {
        return Err(xml.wrong(system, format!("version {version} of NCCL's topology XML; expected {VERSION}")));
    }
    let mut reader = Reader { xml, topology: Topology::untold(KIND), nodes: BTreeMap::new(), nvlinks: Vec::new() };
    for cpu in elements(system, "cpu") {
        reader.cpu(cpu)?;
    }
    let topology = reader.finish();
    match topology.flaw() {
        Some((_, problem)) => Err(xml.wrong(system, problem)),
        None => Ok(topology.derived()),
    }
}

fn elements<'a, 'b>(parent: XmlNode<'a, 'b>, name: &'static str) -> impl Iterator<Item = XmlNode<'a, 'b>> {
    parent.children().filter(move |node| node.has_tag_name(name))
}

/// A `<pci>` above others, and the port above it.
type Above = [Bridge; 2];

struct Reader<'a> {
    xml: Xml<'a>,
    topology: Topology,
    nodes: BTreeMap<i64, NumaNode>,
    nvlinks: Vec<NvLink>,
}

impl Reader<'_> {
    fn cpu(&mut self, cpu: XmlNode<'_, '_>) -> Result<(), Box<WrongPlace>> {
        let number: i64 = self.xml.value(cpu, "numaid")?;
        let node = match u32::try_from(number) {
            Ok(node) => Ok(node),
            Err(_) => Err(Missing::new(Why::Absent, "numaid is -1: the firmware names no node")),
        };
        if self.nodes.contains_key(&number) {
            let problem = format!("a second <cpu> with numaid {number}: a topology of several hosts is not read");
            return Err(self.xml.wrong(cpu, problem));
        }
        let cpus = match cpu.attribute("affinity") {
            Some(words) => cpus_of(words).ok_or_else(|| {
                self.xml.wrong(cpu, "the affinity is no CPU mask: expected hex words such as 00000000,ffffffff")
            })?,
            None => Err(Missing::untold(KIND)),
        };
        let numa = NumaNode {
            node: node.as_ref().copied().unwrap_or_default(),
            cpus,
            memory_bytes: Err(Missing::untold(KIND)),
            distances: Err(Missing::untold(KIND)),
        };
        self.nodes.insert(number, numa);
        if self.topology.cpu.signature.is_none() {
            self.topology.cpu.signature = self.signature(cpu)?;
        }
        elements(cpu, "pci").try_for_each(|pci| self.pci(pci, &node, &mut Vec::new()))
    }

    fn signature(&self, cpu: XmlNode<'_, '_>) -> Result<Option<CpuSignature>, Box<WrongPlace>> {
        let Some(arch) = cpu.attribute("arch") else { return Ok(None) };
        let family = self.xml.optional::<u32>(cpu, "familyid")?.map(linux_family);
        let vendor = cpu.attribute("vendor").map(str::to_owned);
        Ok(Some(CpuSignature { arch: arch.to_owned(), vendor, family, model: self.xml.optional(cpu, "modelid")? }))
    }

    fn pci(
        &mut self,
        pci: XmlNode<'_, '_>,
        node: &Reading<u32>,
        above: &mut Vec<Above>,
    ) -> Result<(), Box<WrongPlace>> {
        let address: PciAddress = self.xml.value(pci, "busid")?;
        let class: ClassCode = self.xml.value(pci, "class")?;
        let holds_others = elements(pci, "pci").next().is_some();
        if !class.is_display() && !holds_others {
            return Ok(());
        }
        if PCI_DEPTH_MAX <= above.len() {
            return Err(self.xml.wrong(pci, format!("<pci> nests deeper than {PCI_DEPTH_MAX} levels")));
        }
        let port = address.port_above().ok_or_else(|| {
            self.xml.wrong(pci, format!("the domain of {address} has more than four digits, which NCCL does not write"))
        })?;
        let (link, id) = (link(pci), id(self.xml, pci)?);
        let parent = above.last().map(|[_, lower]| lower.address);
        let bridge = |address, parent, id: &Reading<PciId>| Bridge {
            parent,
            id: id.clone(),
            numa_node: node.clone(),
            link: link.clone(),
            ..Bridge::untold(address, KIND)
        };
        let port = bridge(port, parent, &Err(Missing::untold(KIND)));
        if class.is_display() {
            let gpu = Gpu {
                parent: Some(port.address),
                class,
                numa_node: node.clone(),
                link,
                id,
                ..Gpu::untold(address, KIND)
            };
            return self.gpu(pci, gpu, above, port);
        }
        let lower = bridge(address, Some(port.address), &id);
        above.push([port, lower]);
        elements(pci, "pci").try_for_each(|pci| self.pci(pci, node, above))?;
        above.pop();
        Ok(())
    }

    fn gpu(
        &mut self,
        pci: XmlNode<'_, '_>,
        mut gpu: Gpu,
        above: &[Above],
        port: Bridge,
    ) -> Result<(), Box<WrongPlace>> {
        if GPUS_MAX <= self.topology.gpus.len() {
            return Err(self.xml.wrong(pci, format!("more than {GPUS_MAX} GPUs")));
        }
        let inside = elements(pci, "gpu").next();
        if gpu.is_nvidia() || (gpu.id.is_err() && inside.is_some_and(|gpu| gpu.attribute("gcn").is_none())) {
            gpu.nvml = Some(GpuState::untold(KIND));
        }
        if let (Some(inside), Some(state)) = (inside, &mut gpu.nvml) {
            if let Some(sm) = self.xml.optional::<u32>(inside, "sm")?.filter(|sm| 10 <= *sm) {
                state.compute_capability = Ok(format!("{}.{}", sm / 10, sm % 10));
            }
            for nvlink in elements(inside, "nvlink") {
                self.nvlink(gpu.address, nvlink)?;
            }
        }
        for bridge in above.iter().flatten().chain([&port]) {
            let known = self.topology.bridges.iter().any(|known| known == bridge);
            if !known {
                self.topology.bridges.push(bridge.clone());
            }
        }
        self.topology.gpus.push(gpu);
        Ok(())
    }

    fn nvlink(&mut self, gpu: PciAddress, nvlink: XmlNode<'_, '_>) -> Result<(), Box<WrongPlace>> {
        let target = match self.xml.required(nvlink, "target")? {
            hidden if hidden.starts_with(HIDDEN) => {
                Err(Missing::new(Why::Unsupported, "a switch that the virtual machine does not see"))
            }
            _ => Ok(self.xml.value(nvlink, "target")?),
        };
        let (count, target_class) = (self.xml.value(nvlink, "count")?, self.xml.optional(nvlink, "tclass")?);
        self.nvlinks.push(NvLink { gpu, target, count, target_class });
        Ok(())
    }

    fn finish(mut self) -> Topology {
        let topology = &mut self.topology;
        topology.gpus.sort_by_key(|gpu| gpu.address);
        topology.bridges.sort_by_key(|bridge| bridge.address);
        self.nvlinks.sort_by_key(|link| (link.gpu, link.target.as_ref().ok().copied()));
        topology.nvlinks = Some(self.nvlinks);
        let nodes: Vec<NumaNode> = self.nodes.into_iter().filter(|(number, _)| 0 <= *number).map(|row| row.1).collect();
        topology.numa = match nodes.is_empty() {
            true => Err(Missing::new(Why::Absent, "numaid is -1: the firmware names no node")),
            false => Ok(nodes),
        };
        self.topology
    }
}

/// `16.0 GT/s PCIe` and `16`: what both ends offer. NCCL takes 8 GT/s or 16 lanes for what it does not know; so
/// such a fact is missing here.
fn link(pci: XmlNode<'_, '_>) -> LinkEnd {
    // NCCL writes no speed and no lanes where the kernel tells none
    let told = |text: &&str| !text.is_empty() && *text != "0";
    let text = |name: &str| pci.attribute(name).filter(told).ok_or_else(|| Missing::untold(KIND));
    let strange = |name: &str, text: &str| {
        let start: String = text.chars().take(40).collect();
        Missing::new(Why::Unsupported, format!("{name} is `{start}`"))
    };
    let rate = |text: &str| text.split_once(" GT/s").and_then(|(rate, _)| rate.parse().ok());
    let gen_max = text("link_speed")
        .and_then(|text| rate(text).and_then(Generation::from_rate).ok_or_else(|| strange("link_speed", text)));
    let width_max = text("link_width")
        .and_then(|text| text.parse().ok().and_then(Width::new).ok_or_else(|| strange("link_width", text)));
    LinkEnd { gen_max, width_max, ..LinkEnd::untold(KIND) }
}

fn id(xml: Xml<'_>, pci: XmlNode<'_, '_>) -> Result<Reading<PciId>, Box<WrongPlace>> {
    let number = |name: &str| -> Result<Option<u16>, Box<WrongPlace>> {
        let Some(text) = pci.attribute(name).filter(|text| !text.is_empty()) else { return Ok(None) };
        let digits = text.strip_prefix("0x").unwrap_or(text);
        let wrong = || xml.wrong(pci, format!("`{name}` is no PCI number: expected four hex digits, such as 0x10de"));
        u16::from_str_radix(digits, 16).map(Some).map_err(|_| wrong())
    };
    Ok(match (number("vendor")?, number("device")?) {
        (Some(vendor), Some(device)) => Ok(PciId { vendor, device }),
        _ => Err(Missing::untold(KIND)),
    })
}

/// Words of 32 bits in hexadecimal, the highest first, as the kernel writes masks: `00000000,ffffffff`. None for what
/// is no mask; an empty mask is a node without CPUs.
fn cpus_of(mask: &str) -> Option<Reading<CpuSet>> {
    /// As many as a [`CpuSet`] holds.
    const WORDS_MAX: usize = 2048;
    let words: Vec<&str> = mask.trim().split(',').collect();
    if WORDS_MAX < words.len() {
        return None;
    }
    let mut cpus = Vec::new();
    for (index, word) in words.iter().rev().enumerate() {
        let plain = (1..=8).contains(&word.len()) && word.bytes().all(|digit| digit.is_ascii_hexdigit());
        let bits = if plain { u32::from_str_radix(word, 16).ok()? } else { return None };
        cpus.extend((0..32).filter(|bit| bits >> bit & 1 == 1).map(|bit| index * 32 + bit));
    }
    Some(Ok(cpus.into_iter().collect()))
}

/// NCCL puts the extended family above the base family; Linux adds them where the base is 15 (CPUID leaf 1).
fn linux_family(nccl: u32) -> u32 {
    match nccl & 0xf {
        0xf => 0xf + (nccl >> 4),
        _ => nccl,
    }
}

/// The inverse of [`linux_family`].
fn nccl_family(linux: u32) -> u32 {
    match linux.checked_sub(0xf) {
        Some(extended) => (extended << 4) | 0xf,
        None => linux,
    }
}
