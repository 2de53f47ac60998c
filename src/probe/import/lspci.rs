//! `lspci -vvv`: the PCIe tree with the links of every hop. Without root, capabilities are hidden and so are links.
//!
//! Best is `lspci -vvvnn`: without `-nn` there are no vendor and device numbers, and GPUs are known by their words.

use std::collections::BTreeMap;

use crate::topology::{
    Acs, Aspm, Bar, Bridge, CORRECTABLE_BITS, ClassCode, Generation, Gpu, GpuState, LinkEnd, Missing, PciAddress,
    PciId, PcieState, Reading, RootComplex, Topology, UNCORRECTABLE_BITS, Why, Width, WrongPlace,
};
use crate::units::Bytes;

use super::super::config::ConfigSpace;
use super::{GPUS_MAX, Kind, Source, address, untold};

const KIND: Kind = Kind::Lspci;
const HELP: &str = "give the whole text of `lspci -vvvnn`, best as root: a line such as `01:00.0 VGA compatible controller \
                    [0300]: NVIDIA Corporation …` for each device, with indented lines below it";
/// Eight-socket servers list about 2,000 functions.
const FUNCTIONS_MAX: usize = 8192;
/// As deep as a topology file may nest.
const DEPTH_MAX: usize = 32;
/// Rows of sixteen bytes in 4 KiB of configuration space.
const ROWS_MAX: usize = 256;

/// Base class and subclass of a bridge between PCI buses.
const BRIDGE: u32 = 0x0604;

/// True for a text in which lines begin with a PCI address and words.
pub(super) fn is_one(text: &str) -> bool {
    text.lines().any(|line| head(line).is_some())
}

/// The address at the start of a line, and what follows it.
fn head(line: &str) -> Option<(PciAddress, &str)> {
    let (first, rest) = line.split_once(' ')?;
    let slot = 7 <= first.len() && first.contains('.') && rest.contains(": ");
    slot.then(|| address(first)).flatten().map(|address| (address, rest.trim()))
}

/// What is said of one function.
struct Function<'a> {
    address: PciAddress,
    at: usize,
    title: &'a str,
    lines: Vec<&'a str>,
    /// Rows of configuration space, as `-xxxx` adds them.
    rows: Vec<&'a str>,
}

/// Reads every function, and makes a tree of the GPUs and the bridges above them.
pub(super) fn read(source: Source<'_>) -> Result<Topology, Box<WrongPlace>> {
    let functions = functions(source)?;
    let verbose = functions.iter().any(|function| function.lines.iter().any(|line| line.starts_with("Control:")));
    let drivers = functions.iter().any(|function| function.value(DRIVER).is_some());
    let listing = Listing { above: buses(&functions), functions, verbose, drivers };
    let mut topology = Topology::untold(&KIND.to_string());
    topology.pci_functions = Ok(u32::try_from(listing.functions.len()).unwrap_or(u32::MAX));
    let mut bridges: BTreeMap<PciAddress, Bridge> = BTreeMap::new();
    for function in listing.functions.iter().filter(|function| function.class() >> 8 == 3) {
        if GPUS_MAX <= topology.gpus.len() {
            return Err(source.wrong(function.at, format!("more than {GPUS_MAX} GPUs"), HELP));
        }
        let chain = listing.chain(function).ok_or_else(|| {
            let problem = format!("the bridges above {} form a ring or more than {DEPTH_MAX} levels", function.address);
            source.wrong(function.at, problem, HELP)
        })?;
        let root = listing.root(function, &chain);
        let mut parent = None;
        for bridge in chain {
            bridges.entry(bridge.address).or_insert_with(|| listing.bridge(bridge, parent, &root));
            parent = Some(bridge.address);
        }
        topology.gpus.push(listing.gpu(function, parent, root));
    }
    topology.gpus.sort_by_key(|gpu| gpu.address);
    topology.bridges = bridges.into_values().collect();
    Ok(topology)
}

fn functions<'a>(source: Source<'a>) -> Result<Vec<Function<'a>>, Box<WrongPlace>> {
    let mut functions: Vec<Function<'a>> = Vec::new();
    let mut seen: BTreeMap<PciAddress, usize> = BTreeMap::new();
    for (at, line) in source.lines() {
        if let Some((address, title)) = head(line) {
            if FUNCTIONS_MAX <= functions.len() {
                return Err(source.wrong(at, format!("more than {FUNCTIONS_MAX} functions"), HELP));
            }
            if seen.insert(address, at).is_some() {
                return Err(source.wrong(at, format!("{address} stands here twice"), HELP));
            }
            functions.push(Function { address, at, title, lines: Vec::new(), rows: Vec::new() });
        } else if let Some(function) =
            functions.last_mut().filter(|function| function.rows.len() < ROWS_MAX && is_row(line))
        {
            function.rows.push(line);
        } else if let Some(function) = functions.last_mut().filter(|_| line.starts_with([' ', '\t'])) {
            function.lines.push(line.trim());
        }
    }
    Ok(functions)
}

/// `060: 10 00 02 …`: a row of configuration space, not indented.
fn is_row(line: &str) -> bool {
    let hexadecimal = |digits: &str| !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    let Some((at, bytes)) = line.split_once(':') else { return false };
    let mut bytes = bytes.split_whitespace();
    let first = bytes.next().is_some_and(|byte| byte.len() == 2 && hexadecimal(byte));
    at.len() <= 3 && hexadecimal(at) && first && bytes.all(|byte| byte.len() == 2 && hexadecimal(byte))
}

/// The bridge above each bus, by domain and bus: `Bus: primary=00, secondary=01, subordinate=01`.
fn buses(functions: &[Function<'_>]) -> BTreeMap<(u32, u8), usize> {
    let mut above = BTreeMap::new();
    for (index, function) in functions.iter().enumerate() {
        let secondary = function
            .value("Bus:")
            .and_then(|buses| buses.split(',').find_map(|part| part.trim().strip_prefix("secondary=")).map(str::trim));
        // Bus 0 is that of a bridge that the firmware did not set up.
        if let Some(bus) = secondary.and_then(|bus| u8::from_str_radix(bus, 16).ok()).filter(|bus| *bus != 0) {
            above.entry((function.address.domain, bus)).or_insert(index);
        }
    }
    above
}

/// Where the line of the kernel driver begins.
const DRIVER: &str = "Kernel driver in use:";

impl<'a> Function<'a> {
    /// The rest of the first line that begins so.
    fn value(&self, key: &str) -> Option<&'a str> {
        self.lines.iter().find_map(|line| line.strip_prefix(key)).map(str::trim)
    }

    /// Base class and subclass: in brackets, bare with `-n`, or as the words of the PCI database; 0 for any other.
    fn class(&self) -> u32 {
        let (words, _) = self.title.split_once(": ").unwrap_or((self.title, ""));
        let inside = words.rsplit_once('[').and_then(|(_, code)| code.strip_suffix(']')).unwrap_or(words);
        let four = inside.len() == 4 && inside.bytes().all(|digit| digit.is_ascii_hexdigit());
        if let (true, Ok(class)) = (four, u32::from_str_radix(inside, 16)) {
            return class;
        }
        match words.trim() {
            "VGA compatible controller" => 0x0300,
            "3D controller" => 0x0302,
            "Display controller" => 0x0380,
            "PCI bridge" => BRIDGE,
            _ => 0,
        }
    }

    /// The last `[10de:2684]` of the title, or the bare one of `-n`.
    fn id(&self) -> Reading<PciId> {
        let (_, name) = self.title.split_once(": ").unwrap_or_default();
        let bracketed = name.rsplit('[').find_map(|part| part.split_once(']').and_then(|(id, _)| id.parse().ok()));
        let bare = || name.split_whitespace().next().and_then(|id| id.parse().ok());
        // What the database does not know is named by its number.
        let unnamed = || {
            let digits = name.strip_prefix("NVIDIA Corporation Device ")?.get(..4)?;
            format!("10de:{digits}").parse().ok()
        };
        bracketed.or_else(bare).or_else(unnamed).ok_or_else(|| Missing::untold("lspci -vvv without -nn"))
    }

    /// The words between the class and the numbers, such as `NVIDIA Corporation AD102 [GeForce RTX 4090]`.
    fn name(&self) -> &'a str {
        let (_, name) = self.title.split_once(": ").unwrap_or_default();
        name.split(" (rev ").next().unwrap_or_default().split(" (prog-if ").next().unwrap_or_default()
    }

    /// True where every bit reads as one: `(rev ff)`, and `!!! Unknown header type 7f`.
    fn is_lost(&self) -> bool {
        self.title.contains("(rev ff)") || self.lines.iter().any(|line| line.starts_with("!!!"))
    }

    /// True where lspci was not allowed to read the capabilities.
    fn is_denied(&self) -> bool {
        self.lines.iter().any(|line| line.contains("<access denied>"))
    }

    /// `(prog-if 00 [VGA controller])`.
    fn interface(&self) -> u32 {
        let digits = self.title.split_once("(prog-if ").and_then(|(_, rest)| rest.get(..2));
        digits.and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or(0)
    }

    /// What kind of port or device its PCI Express capability names, such as `Root Port (Slot+), MSI 00`.
    fn express(&self) -> Option<&'a str> {
        let capability = self.lines.iter().filter(|line| line.starts_with("Capabilities:"));
        capability
            .filter_map(|line| line.split_once("Express (v"))
            .find_map(|(_, rest)| rest.split_once(") "))
            .map(|two| two.1)
    }
}

struct Listing<'a> {
    functions: Vec<Function<'a>>,
    above: BTreeMap<(u32, u8), usize>,
    /// True where some function is described at length.
    verbose: bool,
    /// True where some driver is named: then a function without one has none.
    drivers: bool,
}

impl<'a> Listing<'a> {
    /// The bridges above a function, outermost first; none where they never end.
    fn chain(&self, function: &Function<'_>) -> Option<Vec<&Function<'a>>> {
        let (mut chain, mut at) = (Vec::new(), function.address);
        while let Some(bridge) = self.above.get(&(at.domain, at.bus)).and_then(|index| self.functions.get(*index)) {
            if DEPTH_MAX <= chain.len() || bridge.address == function.address {
                return None;
            }
            chain.push(bridge);
            at = bridge.address;
        }
        chain.reverse();
        Some(chain)
    }

    /// The root complex is told where the listing reaches a root port. Of a part of a listing the top is anything.
    fn root(&self, function: &Function<'_>, chain: &[&Function<'a>]) -> Reading<RootComplex> {
        let top = chain.first().map_or(function.address, |bridge| bridge.address);
        let express = chain.first().map_or_else(|| function.express(), |bridge| bridge.express());
        let reached = match (chain.is_empty(), express) {
            (false, Some(kind)) => kind.starts_with("Root Port"),
            (false, None) => true,
            (true, Some(kind)) => kind.starts_with("Root Complex Integrated"),
            // Virtual machines put devices on bus 0 itself.
            (true, None) => top.bus == 0,
        };
        let partial = || Missing::untold("this part of an lspci listing");
        reached.then_some(RootComplex { domain: top.domain, bus: top.bus }).ok_or_else(partial)
    }

    fn bridge(&self, function: &Function<'_>, parent: Option<PciAddress>, root: &Reading<RootComplex>) -> Bridge {
        Bridge {
            root: root.clone(),
            parent,
            id: function.id(),
            numa_node: self.numa_node(function),
            link: self.link(function),
            pcie: pcie(function),
            ..Bridge::untold(function.address, &KIND.to_string())
        }
    }

    fn gpu(&self, function: &Function<'_>, parent: Option<PciAddress>, root: Reading<RootComplex>) -> Gpu {
        let group = function.value("IOMMU group:").ok_or_else(|| untold(KIND));
        let driver = function.value(DRIVER).map(str::to_owned);
        let undriven = || match self.drivers {
            true => Missing::new(Why::Absent, "no `Kernel driver in use`"),
            false => untold(KIND),
        };
        let mut gpu = Gpu {
            root,
            parent,
            id: function.id(),
            class: ClassCode(function.class() << 8 | function.interface()),
            numa_node: self.numa_node(function),
            driver: driver.ok_or_else(undriven),
            iommu_group: group.and_then(|group| group.parse().map_err(|_| garbled("IOMMU group", group))),
            link: self.link(function),
            pcie: pcie(function),
            frame_buffer: largest_window(function).ok_or_else(|| untold(KIND)),
            ..Gpu::untold(function.address, &KIND.to_string())
        };
        let named = function.name().starts_with("NVIDIA");
        if gpu.is_nvidia() || (gpu.id.is_err() && named) {
            let mut state = GpuState::untold(&KIND.to_string());
            if gpu.id.is_err() {
                state.name = Ok(function.name().replacen("NVIDIA Corporation", "NVIDIA", 1));
            }
            state.bar1_bytes = gpu.frame_buffer.clone().map(|bar| bar.bytes);
            gpu.nvml = Some(state);
        }
        gpu
    }

    /// `NUMA node: 0`. lspci leaves the line out where the firmware names no node, and without -v.
    fn numa_node(&self, function: &Function<'_>) -> Reading<u32> {
        let node = function.value("NUMA node:").ok_or_else(|| match self.verbose {
            true => Missing::new(Why::Absent, "no `NUMA node`: the firmware names none"),
            false => untold(KIND),
        });
        node.and_then(|node| node.parse().map_err(|_| garbled("NUMA node", node)))
    }

    fn link(&self, function: &Function<'_>) -> LinkEnd {
        let denied = function.is_denied();
        let line = |key: &str| {
            function.value(key).ok_or_else(|| match (function.is_lost(), denied, self.verbose) {
                (true, _, _) => Missing::new(Why::Garbled, "the device does not answer: (rev ff)"),
                (_, true, _) => Missing::new(Why::Denied, "Capabilities: <access denied>"),
                (_, _, true) => Missing::new(Why::Absent, format!("no {key}")),
                _ => untold(KIND),
            })
        };
        let (can, now) = (line("LnkCap:"), line("LnkSta:"));
        LinkEnd {
            gen_now: now.clone().and_then(speed),
            width_now: now.and_then(width),
            gen_max: can.clone().and_then(speed),
            width_max: can.and_then(width),
            ..LinkEnd::untold(&KIND.to_string())
        }
    }
}

/// What is told beyond the link: from the rows of configuration space where they are there, else from the words.
fn pcie(function: &Function<'_>) -> PcieState {
    let missing = match function.is_denied() {
        true => Missing::new(Why::Denied, "Capabilities: <access denied>"),
        false => untold(KIND),
    };
    let unknown = PcieState::unknown(&missing);
    if function.is_lost() {
        return PcieState { responds: Ok(false), ..PcieState::unknown(&untold(KIND)) };
    }
    if let Some(space) = ConfigSpace::parse(&function.rows.join("\n")) {
        // Counters are no part of configuration space.
        let none = || Err(untold(KIND));
        return PcieState {
            correctable_errors: none(),
            nonfatal_errors: none(),
            fatal_errors: none(),
            ..space.state()
        };
    }
    let told = |reading: Option<Reading<u32>>| reading.unwrap_or_else(|| Err(missing.clone()));
    let control = function.lines.iter().find(|line| line.starts_with("MaxPayload ") && line.contains("MaxReadReq "));
    let (payload, request) = control.and_then(|line| line.split_once(',')).unzip();
    PcieState {
        aspm: function.value("LnkCtl:").map_or_else(|| Err(missing.clone()), aspm),
        max_payload_bytes: told(payload.map(|text| bytes_of("MaxPayload", text))),
        max_read_request_bytes: told(request.map(|text| bytes_of("MaxReadReq", text))),
        max_payload_offered_bytes: told(
            function.value("DevCap:").and_then(|line| line.split(',').next()).map(|text| bytes_of("MaxPayload", text)),
        ),
        acs: function.value("ACSCtl:").map_or_else(|| Err(without_acs(function, &missing)), |line| Ok(acs(line))),
        errors_seen: errors_seen(function).map_or_else(|| Err(missing.clone()), Ok),
        correctable_errors: Err(untold(KIND)),
        nonfatal_errors: Err(untold(KIND)),
        fatal_errors: Err(untold(KIND)),
        ..unknown
    }
}

/// `ASPM L1 Enabled; RCB 64 bytes, …` or `ASPM Disabled; …`.
fn aspm(line: &str) -> Reading<Aspm> {
    let words = line.split(';').next().and_then(|words| words.strip_prefix("ASPM ")).unwrap_or_default();
    match words.trim_end_matches(" Enabled") {
        "Disabled" => Ok(Aspm::Off),
        "L0s" => Ok(Aspm::L0s),
        "L1" => Ok(Aspm::L1),
        "L0s L1" => Ok(Aspm::L0sL1),
        _ => Err(garbled("LnkCtl", line)),
    }
}

/// `MaxPayload 256 bytes`.
fn bytes_of(key: &str, text: &str) -> Reading<u32> {
    let number = text.trim().strip_prefix(key).and_then(|rest| rest.trim().strip_suffix(" bytes"));
    number.and_then(|number| number.parse().ok()).ok_or_else(|| garbled(key, text))
}

/// `SrcValid+ TransBlk- ReqRedir+ CmpltRedir+ …`.
fn acs(line: &str) -> Acs {
    let set = |name: &str| line.split_whitespace().any(|word| word.strip_suffix('+') == Some(name));
    Acs {
        source_validation: set("SrcValid"),
        request_redirect: set("ReqRedir"),
        completion_redirect: set("CmpltRedir"),
        egress_control: set("EgressCtrl"),
    }
}

/// A function whose extended capabilities are shown, without access control services among them, has none.
fn without_acs(function: &Function<'_>, otherwise: &Missing) -> Missing {
    let extended = |line: &&&str| {
        let at = line.strip_prefix("Capabilities: [").and_then(|rest| rest.split([' ', ']']).next());
        at.is_some_and(|at| 3 <= at.len() && at.bytes().all(|digit| digit.is_ascii_hexdigit()))
    };
    match function.lines.iter().find(extended) {
        Some(_) => Missing::new(Why::Absent, "no access control services"),
        None => otherwise.clone(),
    }
}

/// The bits of `UESta:` and `CESta:` that are set.
fn errors_seen(function: &Function<'_>) -> Option<Vec<String>> {
    let (hard, soft) = (function.value("UESta:")?, function.value("CESta:")?);
    let named = |bits: &[(u32, &str)], line: &str| -> Vec<String> {
        let words = line.split_whitespace().filter_map(|word| word.strip_suffix('+'));
        words.filter(|word| bits.iter().any(|(_, name)| name == word)).map(str::to_owned).collect()
    };
    Some([named(&UNCORRECTABLE_BITS, hard), named(&CORRECTABLE_BITS, soft)].concat())
}

fn garbled(what: &str, text: &str) -> Missing {
    let start: String = text.chars().take(40).collect();
    Missing::new(Why::Garbled, format!("{what} says `{start}`"))
}

/// `Speed 16GT/s (downgraded)` of a line of commas.
fn speed(line: &str) -> Reading<Generation> {
    let text = line.split(',').find_map(|part| part.trim().strip_prefix("Speed ")).unwrap_or_default();
    let rate = text.split_once("GT/s").and_then(|(rate, _)| rate.trim().parse().ok());
    match rate.and_then(Generation::from_rate) {
        Some(generation) => Ok(generation),
        None if text.starts_with("unknown") => Err(Missing::new(Why::Unsupported, "Speed unknown")),
        None => Err(garbled("Speed", text)),
    }
}

/// `Width x16 (ok)` of a line of commas; x0 is no link.
fn width(line: &str) -> Reading<Width> {
    let text = line.split(',').find_map(|part| part.trim().strip_prefix("Width ")).unwrap_or_default();
    let lanes = text.strip_prefix('x').and_then(|text| text.split_whitespace().next()).and_then(|n| n.parse().ok());
    match lanes {
        Some(0) => Err(Missing::new(Why::Unsupported, "Width x0: no link")),
        _ => lanes.and_then(Width::new).ok_or_else(|| garbled("Width", text)),
    }
}

/// The frame buffer is the largest window of 64 bits that may be prefetched: region 1 on Ada, 2 on Blackwell.
/// `Region 1: Memory at 38000000000 (64-bit, prefetchable) [size=32G]`.
fn largest_window(function: &Function<'_>) -> Option<Bar> {
    let regions =
        function.lines.iter().filter(|line| line.starts_with("Region ") && line.contains("(64-bit, prefetchable)"));
    let windows = regions.filter_map(|line| {
        let region = line.strip_prefix("Region ")?.split_once(':')?.0.parse().ok()?;
        let (_, size) = line.split_once("[size=")?;
        let size = size.split_once(']')?.0;
        let digits = size.trim_end_matches(|unit: char| unit.is_ascii_alphabetic());
        let shift = match size.get(digits.len()..)? {
            "" => 0,
            "K" => 10,
            "M" => 20,
            "G" => 30,
            "T" => 40,
            _ => return None,
        };
        let bytes = digits.parse::<u64>().ok()?.checked_mul(1 << shift).map(Bytes)?;
        Some(Bar { region, bytes })
    });
    windows.max_by_key(|bar| bar.bytes)
}
