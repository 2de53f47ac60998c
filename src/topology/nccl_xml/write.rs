//! NCCL's topology XML, out.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{
    Bridge, CpuSet, Generation, Gpu, HIDDEN_TARGET, Hop, NumaNode, PciAddress, Topology, VERSION, nccl_family,
};

/// Writes what NCCL takes with `NCCL_TOPO_FILE`: the NVIDIA GPUs, the switches above them, and what a link gives when
/// awake. What is unknown is left out, and NCCL finds it out on the machine itself; so is `gdr`, which NCCL decides
/// for each run. Ranks are the order of addresses.
#[must_use]
pub fn to_nccl_xml(topology: &Topology) -> String {
    let mut ranks = BTreeMap::new();
    for (rank, gpu) in topology.nvidia_gpus().enumerate() {
        ranks.insert(gpu.address, rank);
    }
    let nodes = topology.nodes();
    let known = |gpu: &&Gpu| gpu.numa_node.as_ref().is_ok_and(|node| nodes.iter().any(|known| known.node == *node));
    let (housed, homeless): (Vec<&Gpu>, Vec<&Gpu>) = topology.nvidia_gpus().partition(known);
    let mut writer = Writer { topology, ranks, text: format!("<system version=\"{VERSION}\">\n") };
    for node in nodes {
        let gpus: Vec<&Gpu> = housed.iter().copied().filter(|gpu| gpu.numa_node == Ok(node.node)).collect();
        writer.cpu(i64::from(node.node), Some(node), &gpus);
    }
    if !homeless.is_empty() || nodes.is_empty() {
        writer.cpu(-1, None, &homeless);
    }
    writer.text + "</system>\n"
}

/// A device of the tree that is written: a switch with what is below it, or a GPU.
enum Device<'a> {
    Switch(PciAddress, Option<Hop<'a>>, Vec<Self>),
    Gpu(&'a Gpu, Option<Hop<'a>>),
}

struct Writer<'a> {
    topology: &'a Topology,
    ranks: BTreeMap<PciAddress, usize>,
    text: String,
}

impl<'a> Writer<'a> {
    fn cpu(&mut self, numa: i64, node: Option<&NumaNode>, gpus: &[&'a Gpu]) {
        let mut attributes = vec![("numaid", numa.to_string())];
        if let Some(Ok(cpus)) = node.map(|node| &node.cpus) {
            attributes.push(("affinity", mask(cpus)));
        }
        if let Some(signature) = &self.topology.cpu.signature {
            attributes.push(("arch", signature.arch.clone()));
            attributes.extend(signature.vendor.clone().map(|vendor| ("vendor", vendor)));
            attributes.extend(signature.family.map(|family| ("familyid", nccl_family(family).to_string())));
            attributes.extend(signature.model.map(|model| ("modelid", model.to_string())));
        }
        let mut paths: Vec<Path<'a>> = gpus.iter().map(|gpu| path(self.topology, gpu)).collect();
        // What hangs off one switch must stand together.
        paths.sort_by_key(|path| {
            path.switches.iter().map(|hop| hop.lower).chain([path.gpu.address]).collect::<Vec<PciAddress>>()
        });
        let devices = devices(&paths, 0);
        self.open(1, "cpu", &attributes, devices.is_empty());
        devices.iter().for_each(|device| self.device(2, device));
        self.close(1, "cpu", devices.is_empty());
    }

    fn device(&mut self, level: usize, device: &Device<'_>) {
        match device {
            Device::Switch(address, hop, below) => {
                let id = self.topology.bridge(*address).and_then(|bridge: &Bridge| bridge.id.as_ref().ok()).copied();
                self.open(level, "pci", &pci(*address, "0x060400", id, hop.as_ref()), false);
                below.iter().for_each(|device| self.device(level + 1, device));
                self.close(level, "pci", false);
            }
            Device::Gpu(gpu, hop) => {
                let id = gpu.id.as_ref().ok().copied();
                self.open(level, "pci", &pci(gpu.address, &gpu.class.to_string(), id, hop.as_ref()), false);
                self.gpu(level + 1, gpu);
                self.close(level, "pci", false);
            }
        }
    }

    fn gpu(&mut self, level: usize, gpu: &Gpu) {
        let rank = self.ranks.get(&gpu.address).copied().unwrap_or_default().to_string();
        let mut attributes = vec![("dev", rank.clone())];
        let capability = gpu.nvml.as_ref().and_then(|nvml| nvml.compute_capability.as_ref().ok());
        attributes.extend(capability.map(|capability| ("sm", capability.replace('.', ""))));
        attributes.push(("rank", rank));
        let all = self.topology.nvlinks.as_deref().unwrap_or_default();
        let links: Vec<_> = all.iter().filter(|link| link.gpu == gpu.address).collect();
        self.open(level, "gpu", &attributes, links.is_empty());
        for link in &links {
            let target = link.target.as_ref().map_or_else(|_| HIDDEN_TARGET.to_owned(), ToString::to_string);
            let mut attributes = vec![("target", target), ("count", link.count.to_string())];
            attributes.extend(link.target_class.map(|class| ("tclass", class.to_string())));
            self.open(level + 1, "nvlink", &attributes, true);
        }
        self.close(level, "gpu", links.is_empty());
    }

    /// One space between attributes, and a tag on one line: NCCL's parser wants it so.
    fn open(&mut self, level: usize, name: &str, attributes: &[(&str, String)], leaf: bool) {
        self.text += &format!("{}<{name}", "  ".repeat(level));
        for (key, value) in attributes {
            let _ = write!(self.text, " {key}=\"{}\"", escaped(value));
        }
        self.text += if leaf { "/>\n" } else { ">\n" };
    }

    fn close(&mut self, level: usize, name: &str, leaf: bool) {
        if !leaf {
            self.text += &format!("{}</{name}>\n", "  ".repeat(level));
        }
    }
}

/// The switches above a GPU with the links above them, outermost first, and its own link.
struct Path<'a> {
    switches: Vec<Hop<'a>>,
    gpu: &'a Gpu,
    own: Option<Hop<'a>>,
}

fn path<'a>(topology: &'a Topology, gpu: &'a Gpu) -> Path<'a> {
    let (own, switches): (Vec<Hop<'a>>, Vec<Hop<'a>>) =
        topology.hops(gpu).into_iter().partition(|hop| hop.lower == gpu.address);
    Path { switches, gpu, own: own.first().copied() }
}

/// The tree of the paths from the `depth`-th switch on, in the order of the paths.
fn devices<'a>(paths: &[Path<'a>], depth: usize) -> Vec<Device<'a>> {
    let at = |path: &Path<'a>| path.switches.get(depth).map(|hop| hop.lower);
    let mut devices = Vec::new();
    for run in paths.chunk_by(|a, b| at(a).is_some() && at(a) == at(b)) {
        match run {
            [first, ..] if at(first).is_some() => {
                let hop = first.switches.get(depth).copied();
                devices.extend(hop.map(|hop| Device::Switch(hop.lower, Some(hop), self::devices(run, depth + 1))));
            }
            _ => devices.extend(run.iter().map(|path| Device::Gpu(path.gpu, path.own))),
        }
    }
    devices
}

fn pci(
    address: PciAddress,
    class: &str,
    id: Option<super::PciId>,
    hop: Option<&Hop<'_>>,
) -> Vec<(&'static str, String)> {
    let mut attributes = vec![("busid", address.to_string()), ("class", class.to_owned())];
    if let Some(id) = id {
        attributes.extend([("vendor", format!("{:#06x}", id.vendor)), ("device", format!("{:#06x}", id.device))]);
    }
    let Some(hop) = hop else { return attributes };
    if let (Ok(upper), Ok(lower)) = (&hop.upper_end.gen_max, &hop.lower_end.gen_max) {
        attributes.push(("link_speed", speed(*upper.min(lower))));
    }
    if let (Ok(upper), Ok(lower)) = (&hop.upper_end.width_max, &hop.lower_end.width_max) {
        let both = *upper.min(lower);
        let width = hop.width_now().map_or(both, |now| now.min(both));
        attributes.push(("link_width", u64::from(width).to_string()));
    }
    attributes
}

/// As sysfs spells it, and NCCL's table knows it.
fn speed(generation: Generation) -> String {
    format!("{:.1} GT/s PCIe", generation.rate())
}

fn mask(cpus: &CpuSet) -> String {
    let words = cpus.cpus().last().map_or(1, |last| last / 32 + 1);
    let mut mask = vec![0_u32; words];
    for cpu in cpus.cpus() {
        mask[cpu / 32] |= 1 << (cpu % 32);
    }
    let words: Vec<String> = mask.iter().rev().map(|word| format!("{word:08x}")).collect();
    words.join(",")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
