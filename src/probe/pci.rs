//! The PCIe tree above GPUs, their isolation, and what the NVIDIA driver says.

use std::collections::BTreeMap;
use std::str::FromStr;

use crate::device::{DriverFact, GpuFact};
use crate::topology::{
    Bar, Bridge, ClassCode, Generation, Gpu, GpuState, Iommu, IommuDomain, IommuMode, Missing, NumaNode, NvidiaDriver,
    PciAddress, PciId, Reading, RootComplex, Why, Width,
};
use crate::units::Bytes;

use super::ask::{file, folder, garbled, link_end, link_name, parsed, text};
use super::condition::{condition, pcie_state};
use super::{AskError, Machine, ProbeError, Question};

/// Eight-socket servers list about 2,000 functions.
const FUNCTIONS_MAX: usize = 8192;
/// The largest PCIe boxes hold 20 GPUs.
const GPUS_MAX: usize = 64;
/// As deep as a topology file may nest.
const DEPTH_MAX: usize = 32;

const DEVICES: &str = "/sys/bus/pci/devices";
const GROUPS: &str = "/sys/kernel/iommu_groups";

/// GPUs and the bridges above them.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) functions: Reading<u32>,
    pub(super) unknown: Vec<PciAddress>,
    pub(super) bridges: Vec<Bridge>,
    pub(super) gpus: Vec<Gpu>,
}

/// Reads the tree. `nodes` are the NUMA nodes: where there is but one, a device without a node is on it.
pub(super) fn tree(machine: &dyn Machine, nodes: &[NumaNode]) -> Result<Tree, ProbeError> {
    let sole = match nodes {
        [node] => Some(node.node),
        _ => None,
    };
    let (functions, addresses) = functions(machine)?;
    let (mut unknown, mut controllers) = (Vec::new(), Vec::new());
    for address in addresses {
        let class = file(machine, format!("{DEVICES}/{address}/class"))?;
        match parsed::<ClassCode>(class, "the class of a PCI function") {
            Ok(class) if class.is_display() => controllers.push((address, class)),
            Ok(_) => {}
            Err(_) => unknown.push(address),
        }
    }
    if GPUS_MAX < controllers.len() {
        return Err(ProbeError::TooMany { what: "GPUs", found: controllers.len(), most: GPUS_MAX });
    }
    let mut places = Places { taken: controllers.iter().map(|row| row.0).collect(), bridges: BTreeMap::new() };
    let mut gpus = Vec::new();
    for (address, class) in controllers {
        let target = text(machine, Question::Link(format!("{DEVICES}/{address}")))?;
        let place = target.and_then(|target| places.add(address, &target));
        gpus.push(gpu(machine, address, class, place, sole)?);
    }
    let mut bridges = Vec::new();
    for (address, (root, parent)) in places.bridges {
        bridges.push(bridge(machine, address, root, parent, sole)?);
    }
    Ok(Tree { functions, unknown, bridges, gpus })
}

/// How many PCI functions there are, and their addresses. A name that is no address makes the number garbled.
fn functions(machine: &dyn Machine) -> Result<(Reading<u32>, Vec<PciAddress>), ProbeError> {
    let names = match folder(machine, DEVICES)? {
        Ok(names) => names,
        Err(missing) => return Ok((Err(missing), Vec::new())),
    };
    if FUNCTIONS_MAX < names.len() {
        return Err(ProbeError::TooMany { what: "PCI functions", found: names.len(), most: FUNCTIONS_MAX });
    }
    let (good, bad): (Vec<_>, Vec<_>) = names.iter().partition(|name| name.parse::<PciAddress>().is_ok());
    let count = match bad.first() {
        Some(name) => Err(garbled(DEVICES, name)),
        None => Ok(good.len() as u32),
    };
    let mut addresses: Vec<PciAddress> = good.iter().filter_map(|name| name.parse().ok()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    Ok((count, addresses))
}

/// The root complex and the parent of each bridge seen so far.
struct Places {
    taken: Vec<PciAddress>,
    bridges: BTreeMap<PciAddress, (RootComplex, Option<PciAddress>)>,
}

impl Places {
    /// Reads `../../../devices/pci0000:40/0000:40:01.1/0000:41:00.0` as the place of the GPU at `address`, and
    /// remembers the bridges on the way.
    fn add(&mut self, address: PciAddress, target: &str) -> Reading<(RootComplex, Option<PciAddress>)> {
        let wrong = || garbled("the place of a PCI function", target);
        let (mut root, mut chain) = (None, Vec::new());
        for part in target.split('/') {
            if let Some(bus) = part.strip_prefix("pci").and_then(|bus| RootComplex::from_str(bus).ok()) {
                // A volume management device shows a root complex of its own below a function of another.
                (root, chain) = (Some(bus), Vec::new());
            } else if let Ok(address) = part.parse::<PciAddress>() {
                chain.push(address);
            }
        }
        let root = root.ok_or_else(wrong)?;
        if chain.pop() != Some(address) || DEPTH_MAX <= chain.len() {
            return Err(wrong());
        }
        let mut parent = None;
        let mut found = BTreeMap::new();
        for bridge in chain {
            let known = self.bridges.get(&bridge).or(found.get(&bridge));
            if self.taken.contains(&bridge) || known.is_some_and(|known| *known != (root, parent)) {
                return Err(wrong());
            }
            found.insert(bridge, (root, parent));
            parent = Some(bridge);
        }
        self.bridges.extend(found);
        Ok((root, parent))
    }
}

fn gpu(
    machine: &dyn Machine,
    address: PciAddress,
    class: ClassCode,
    place: Reading<(RootComplex, Option<PciAddress>)>,
    sole: Option<u32>,
) -> Result<Gpu, AskError> {
    let folder = format!("{DEVICES}/{address}");
    let id = id(machine, &folder)?;
    let group = parsed(link_name(machine, format!("{folder}/iommu_group"))?, "the link to the IOMMU group");
    let domain = match &group {
        Ok(group) => iommu_domain(machine, *group)?,
        Err(missing) => Err(missing.clone()),
    };
    let mut gpu = Gpu {
        address,
        parent: place.as_ref().ok().and_then(|place| place.1),
        root: place.map(|place| place.0),
        id,
        class,
        numa_node: numa_node(machine, &folder, sole)?,
        driver: link_name(machine, format!("{folder}/driver"))?,
        iommu_group: group,
        iommu_domain: domain,
        link: link_end(machine, &folder)?,
        pcie: pcie_state(machine, address, &folder)?,
        frame_buffer: frame_buffer(machine, &folder)?,
        narrowest: Err(Missing::new(Why::Absent, "")),
        nvml: None,
    };
    if gpu.is_nvidia() {
        gpu.nvml = Some(gpu_state(machine, address)?);
    }
    Ok(gpu)
}

fn bridge(
    machine: &dyn Machine,
    address: PciAddress,
    root: RootComplex,
    parent: Option<PciAddress>,
    sole: Option<u32>,
) -> Result<Bridge, AskError> {
    let folder = format!("{DEVICES}/{address}");
    let (id, numa_node) = (id(machine, &folder)?, numa_node(machine, &folder, sole)?);
    let (link, pcie) = (link_end(machine, &folder)?, pcie_state(machine, address, &folder)?);
    Ok(Bridge { address, root: Ok(root), parent, id, numa_node, link, pcie })
}

fn hexadecimal(text: &str, what: &str) -> Reading<u32> {
    let digits = text.strip_prefix("0x").filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
    digits.and_then(|digits| u32::from_str_radix(digits, 16).ok()).ok_or_else(|| garbled(what, text))
}

fn id(machine: &dyn Machine, folder: &str) -> Result<Reading<PciId>, AskError> {
    let number = |name: &str| -> Result<Reading<u16>, AskError> {
        let path = format!("{folder}/{name}");
        let text = file(machine, path.as_str())?;
        Ok(text.and_then(|text| {
            let number = hexadecimal(&text, &path)?;
            u16::try_from(number).map_err(|_| garbled(&path, &text))
        }))
    };
    let (vendor, device) = (number("vendor")?, number("device")?);
    Ok(vendor.and_then(|vendor| Ok(PciId { vendor, device: device? })))
}

/// The firmware names no node with -1, which is common on machines with a single one.
fn numa_node(machine: &dyn Machine, folder: &str, sole: Option<u32>) -> Result<Reading<u32>, AskError> {
    let path = format!("{folder}/numa_node");
    let unnamed = || Missing::new(Why::Absent, format!("{path} is -1: the firmware names no node"));
    Ok(file(machine, path.as_str())?.and_then(|text| match text.as_str() {
        "-1" => sole.ok_or_else(unnamed),
        _ => parsed(Ok(text), &path),
    }))
}

fn iommu_domain(machine: &dyn Machine, group: u32) -> Result<Reading<IommuDomain>, AskError> {
    Ok(file(machine, format!("{GROUPS}/{group}/type"))?.map(|text| match text.as_str() {
        "identity" => IommuDomain::Identity,
        "DMA" => IommuDomain::Dma,
        "DMA-FQ" => IommuDomain::DmaFq,
        _ => IommuDomain::Other,
    }))
}

/// What the IOMMU does for NVIDIA GPUs; where there is none, for the first group.
pub(super) fn iommu(machine: &dyn Machine, gpus: &[Gpu]) -> Result<Iommu, AskError> {
    let units = folder(machine, "/sys/class/iommu")?;
    let groups = folder(machine, GROUPS)?;
    let of_gpus = gpus.iter().filter(|gpu| gpu.is_nvidia()).map(|gpu| gpu.iommu_domain.clone());
    let mut domains: Vec<Reading<IommuDomain>> = of_gpus.collect();
    let mode = match (&units, &groups) {
        (Ok(units), Ok(groups)) if units.is_empty() && groups.is_empty() => Ok(IommuMode::Off),
        (_, Ok(groups)) if groups.is_empty() => Ok(IommuMode::Off),
        (_, Err(missing)) => Err(missing.clone()),
        (_, Ok(groups)) => {
            let first = groups.iter().filter_map(|group| group.parse().ok()).min();
            if let (true, Some(group)) = (domains.is_empty(), first) {
                domains.push(iommu_domain(machine, group)?);
            }
            iommu_mode(domains)
        }
    };
    Ok(Iommu { mode, units, groups: groups.map(|groups| groups.len() as u32) })
}

/// Translating if any domain does; passthrough only if all are known to.
fn iommu_mode(domains: Vec<Reading<IommuDomain>>) -> Reading<IommuMode> {
    if domains.iter().any(|domain| matches!(domain, Ok(IommuDomain::Dma | IommuDomain::DmaFq))) {
        return Ok(IommuMode::Translating);
    }
    for domain in domains {
        if domain? == IommuDomain::Other {
            return Err(Missing::new(Why::Unsupported, "the group of a GPU is in the hands of another driver"));
        }
    }
    Ok(IommuMode::Passthrough)
}

/// The NVIDIA driver. It is asked only where there is a GPU for it.
pub(super) fn nvidia_driver(machine: &dyn Machine, gpus: &[Gpu]) -> Result<NvidiaDriver, AskError> {
    if !gpus.iter().any(Gpu::is_nvidia) {
        let none = || Missing::new(Why::Absent, "no NVIDIA GPU");
        return Ok(NvidiaDriver { kernel_module: Err(none()), version: Err(none()), cuda: Err(none()) });
    }
    let module = file(machine, "/proc/driver/nvidia/version")?;
    Ok(NvidiaDriver {
        kernel_module: module.map(|text| text.lines().next().unwrap_or_default().trim().to_owned()),
        version: text(machine, Question::Driver(DriverFact::Version))?,
        cuda: text(machine, Question::Driver(DriverFact::Cuda))?,
    })
}

/// The window to a GPU's memory. `resource` tells start, end and flags of each region (the kernel's
/// Documentation/PCI/sysfs-pci.rst; flags in include/linux/ioport.h).
fn frame_buffer(machine: &dyn Machine, folder: &str) -> Result<Reading<Bar>, AskError> {
    /// In memory, prefetchable, 64 bits wide.
    const FLAGS: u64 = 0x200 | 0x2000 | 0x10_0000;
    let path = format!("{folder}/resource");
    let text = file(machine, path.as_str())?;
    let window = |text: &str| -> Option<Option<Bar>> {
        let mut widest: Option<Bar> = None;
        for (region, line) in text.lines().take(6).enumerate() {
            let number = |word: &str| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok();
            let mut words = line.split_whitespace().map(number);
            let (start, end, flags) = (words.next()??, words.next()??, words.next()??);
            let size = if flags & FLAGS == FLAGS { end.checked_sub(start)?.checked_add(1)? } else { continue };
            if widest.is_none_or(|widest| widest.bytes.0 < size) {
                widest = Some(Bar { region: region as u8, bytes: Bytes(size) });
            }
        }
        Some(widest)
    };
    Ok(text.and_then(|text| match window(&text) {
        Some(Some(bar)) => Ok(bar),
        Some(None) => Err(Missing::new(Why::Absent, format!("{path} shows no wide prefetchable region"))),
        None => Err(garbled(&path, &text)),
    }))
}

fn gpu_state(machine: &dyn Machine, at: PciAddress) -> Result<GpuState, AskError> {
    let ask = |fact| text(machine, Question::Gpu { at, fact });
    let bytes = |fact| Ok(parsed(ask(fact)?, "NVML").map(Bytes));
    let number = |fact| Ok(parsed::<u32>(ask(fact)?, "NVML"));
    let switch = |fact| Ok(parsed::<bool>(ask(fact)?, "NVML"));
    let generation = |fact| {
        let number = parsed::<u64>(ask(fact)?, "NVML");
        Ok(number.and_then(|number| Generation::new(number).ok_or_else(|| garbled("NVML", &number.to_string()))))
    };
    let lanes = |fact| {
        let number = parsed::<u64>(ask(fact)?, "NVML");
        Ok(number.and_then(|number| Width::new(number).ok_or_else(|| garbled("NVML", &number.to_string()))))
    };
    Ok(GpuState {
        name: ask(GpuFact::Name)?,
        memory_bytes: bytes(GpuFact::MemoryBytes)?,
        bar1_bytes: bytes(GpuFact::Bar1Bytes)?,
        compute_capability: ask(GpuFact::ComputeCapability)?,
        vbios: ask(GpuFact::Vbios)?,
        power_limit_mw: number(GpuFact::PowerLimitMw)?,
        power_default_mw: number(GpuFact::PowerDefaultMw)?,
        power_min_mw: number(GpuFact::PowerMinMw)?,
        power_max_mw: number(GpuFact::PowerMaxMw)?,
        gen_now: generation(GpuFact::GenNow)?,
        width_now: lanes(GpuFact::WidthNow)?,
        gen_max: generation(GpuFact::GenMax)?,
        width_max: lanes(GpuFact::WidthMax)?,
        performance_state: number(GpuFact::PerformanceState)?,
        persistence: switch(GpuFact::Persistence)?,
        mig: switch(GpuFact::Mig)?,
        condition: condition(machine, at)?,
    })
}
