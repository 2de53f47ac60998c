//! `nvidia-smi -q`: what the NVIDIA driver says of each GPU, by indented keys.

use crate::topology::{
    ClassCode, ComputeMode, Generation, Gpu, GpuCondition, GpuState, Missing, PciAddress, PciId, Reading,
    ThrottleReasons, ThrottleTimes, Topology, Why, Width, WrongPlace,
};
use crate::units::Bytes;

use super::{GPUS_MAX, Kind, Source, address, untold};

const KIND: Kind = Kind::SmiQuery;
const HELP: &str = "give the whole text of `nvidia-smi -q`: it begins with `NVSMI LOG`, and each GPU with \
                    `GPU 00000000:01:00.0`";
/// `GPU`, `PCI`, `GPU Link Info`, `PCIe Generation`: five levels; the rest is room for later ones.
const DEPTH_MAX: usize = 16;
/// Driver 595 prints about 300 lines for a GPU, and more for each process.
const ENTRIES_MAX: usize = 4096;
/// No path that is looked for is longer.
const PATH_BYTES_MAX: usize = 128;

/// True for a text that nvidia-smi begins so.
pub(super) fn is_one(text: &str) -> bool {
    text.lines().any(|line| line.trim_matches(['=', ' ', '\r']) == "NVSMI LOG" && line.contains('='))
}

/// One key with those above it, and what it says.
struct Entry<'a> {
    /// The keys above, joined by `/`, and its own: `PCI/GPU Link Info/Link Width/Max`.
    path: String,
    value: &'a str,
}

/// What is said of one GPU.
struct Section<'a> {
    address: PciAddress,
    entries: Vec<Entry<'a>>,
}

/// Reads the driver and every GPU.
pub(super) fn read(source: Source<'_>) -> Result<Topology, Box<WrongPlace>> {
    let (head, sections) = sections(source)?;
    let attached = find(&head, "Attached GPUs").and_then(|count| count.parse::<usize>().ok());
    if let Some(attached) = attached.filter(|attached| *attached != sections.len()) {
        let problem = format!("{attached} GPUs are attached, {} are listed: the text was cut", sections.len());
        return Err(source.wrong(source.text.len(), problem, HELP));
    }
    let mut topology = Topology::untold(&KIND.to_string());
    topology.nvidia.version = text(&head, "Driver Version");
    topology.nvidia.cuda = text(&head, "CUDA Version");
    topology.gpus = sections.iter().map(gpu).collect();
    topology.gpus.sort_by_key(|gpu| gpu.address);
    Ok(topology)
}

/// The entries above the first GPU, and those of each GPU.
fn sections<'a>(source: Source<'a>) -> Result<(Vec<Entry<'a>>, Vec<Section<'a>>), Box<WrongPlace>> {
    let (mut head, mut sections): (Vec<Entry<'a>>, Vec<Section<'a>>) = (Vec::new(), Vec::new());
    let mut above: Vec<(usize, &str)> = Vec::new();
    for (at, line) in source.lines() {
        let trimmed = line.trim();
        let indent = line.len() - line.trim_start().len();
        if let Some(bus) = trimmed.strip_prefix("GPU ").and_then(address).filter(|_| indent == 0) {
            if GPUS_MAX <= sections.len() {
                return Err(source.wrong(at, format!("more than {GPUS_MAX} GPUs"), HELP));
            }
            if sections.iter().any(|section| section.address == bus) {
                return Err(source.wrong(at, format!("{bus} stands here twice"), HELP));
            }
            sections.push(Section { address: bus, entries: Vec::new() });
            above.clear();
            continue;
        }
        while above.last().is_some_and(|(depth, _)| indent <= *depth) {
            above.pop();
        }
        let Some((key, value)) = trimmed.split_once(" : ").map(|(key, value)| (key.trim(), value.trim())) else {
            if !trimmed.is_empty() && above.len() < DEPTH_MAX {
                above.push((indent, trimmed));
            }
            continue;
        };
        let entries = sections.last_mut().map_or(&mut head, |section| &mut section.entries);
        let names = above.iter().map(|(_, name)| *name).chain([key]);
        let path: Vec<&str> = names.map(|name| name.get(..64).unwrap_or(name)).collect();
        if ENTRIES_MAX <= entries.len() {
            return Err(source.wrong(at, format!("more than {ENTRIES_MAX} lines for one GPU"), HELP));
        }
        let path = path.join("/");
        if path.len() <= PATH_BYTES_MAX {
            entries.push(Entry { path, value });
        }
    }
    Ok((head, sections))
}

fn find<'a>(entries: &[Entry<'a>], path: &str) -> Option<&'a str> {
    entries.iter().find(|entry| entry.path == path).map(|entry| entry.value)
}

/// The value at `path`, or why there is none: `N/A` is what the GPU does not offer.
fn text(entries: &[Entry<'_>], path: &str) -> Reading<String> {
    match find(entries, path) {
        None => Err(untold(KIND)),
        Some("N/A" | "[N/A]" | "Not Supported" | "[Not Supported]") => {
            Err(Missing::new(Why::Unsupported, format!("{path} is N/A")))
        }
        Some(value) if value.starts_with("Insufficient Permissions") => {
            Err(Missing::new(Why::Denied, format!("{path}: insufficient permissions")))
        }
        Some(value) if value.contains("Unknown Error") || value.contains("GPU is lost") || value.contains("ERR!") => {
            Err(garbled(path, value))
        }
        Some(value) => Ok(value.to_owned()),
    }
}

fn garbled(path: &str, value: &str) -> Missing {
    let start: String = value.chars().take(40).collect();
    Missing::new(Why::Garbled, format!("{path} says `{start}`"))
}

/// The first of several spellings that the text has.
fn first(entries: &[Entry<'_>], paths: &[&str]) -> Reading<String> {
    let known = paths.iter().find(|path| find(entries, path).is_some());
    known.map_or_else(|| Err(untold(KIND)), |path| text(entries, path))
}

/// Reads a value at the first of several paths as a `T`.
fn read_as<T>(entries: &[Entry<'_>], paths: &[&str], read: impl Fn(&str) -> Option<T>) -> Reading<T> {
    let value = first(entries, paths)?;
    read(&value).ok_or_else(|| garbled(paths.first().copied().unwrap_or_default(), &value))
}

fn gpu(section: &Section<'_>) -> Gpu {
    let entries = &section.entries;
    let mut gpu = Gpu::untold(section.address, &KIND.to_string());
    // The device above the vendor: 0x268410DE.
    gpu.id = read_as(entries, &["PCI/Device Id"], |text| {
        let number = u32::from_str_radix(text.strip_prefix("0x")?, 16).ok()?;
        Some(PciId { vendor: (number & 0xffff) as u16, device: (number >> 16) as u16 })
    });
    let class = |key: &str| {
        let number = find(entries, key)?.strip_prefix("0x")?;
        u32::from_str_radix(number, 16).ok().filter(|number| *number <= 0xff)
    };
    if let (Some(3), Some(sub)) = (class("PCI/Base Classcode"), class("PCI/Sub Classcode")) {
        gpu.class = ClassCode(0x03_0000 | sub << 8);
    }
    gpu.link.gen_now = read_as(entries, &[DEVICE_CURRENT, CURRENT], generation);
    gpu.link.width_now = read_as(entries, &[WIDTH_CURRENT], lanes);
    gpu.link.gen_max = read_as(entries, &[DEVICE_MAX], generation);
    gpu.nvml = Some(state(entries));
    gpu
}

const DEVICE_CURRENT: &str = "PCI/GPU Link Info/PCIe Generation/Device Current";
const DEVICE_MAX: &str = "PCI/GPU Link Info/PCIe Generation/Device Max";
const CURRENT: &str = "PCI/GPU Link Info/PCIe Generation/Current";
const MAX: &str = "PCI/GPU Link Info/PCIe Generation/Max";
const WIDTH_CURRENT: &str = "PCI/GPU Link Info/Link Width/Current";
const WIDTH_MAX: &str = "PCI/GPU Link Info/Link Width/Max";

fn state(entries: &[Entry<'_>]) -> GpuState {
    // Drivers before 530 wrote `Power Readings` and `Power Limit`.
    let power = |name: &str| {
        let paths = [format!("GPU Power Readings/{name}"), format!("Power Readings/{name}")];
        read_as(entries, &paths.each_ref().map(String::as_str), milliwatts)
    };
    let switch = |path: &str| read_as(entries, &[path], switched);
    GpuState {
        name: text(entries, "Product Name"),
        memory_bytes: read_as(entries, &["FB Memory Usage/Total"], mebibytes),
        bar1_bytes: read_as(entries, &["BAR1 Memory Usage/Total"], mebibytes),
        vbios: text(entries, "VBIOS Version"),
        power_limit_mw: power("Current Power Limit").or_else(|_| power("Power Limit")),
        power_default_mw: power("Default Power Limit"),
        power_min_mw: power("Min Power Limit"),
        power_max_mw: power("Max Power Limit"),
        gen_now: read_as(entries, &[CURRENT], generation),
        width_now: read_as(entries, &[WIDTH_CURRENT], lanes),
        gen_max: read_as(entries, &[MAX], generation),
        width_max: read_as(entries, &[WIDTH_MAX], lanes),
        performance_state: read_as(entries, &["Performance State"], |text| text.strip_prefix('P')?.parse().ok()),
        persistence: switch("Persistence Mode"),
        mig: switch("MIG Mode/Current"),
        condition: condition(entries),
        ..GpuState::untold(&KIND.to_string())
    }
}

/// The state that the GPU was in.
fn condition(entries: &[Entry<'_>]) -> GpuCondition {
    let number = |paths: &[&str]| read_as(entries, paths, |text| text.parse::<u64>().ok());
    let yes = |path: &str| {
        read_as(entries, &[path, ROWS], |text| match text {
            "Yes" => Some(true),
            "No" => Some(false),
            _ => None,
        })
    };
    let micro = |name: &str| {
        let path = format!("Clocks Event Reasons Counters/{name}");
        read_as(entries, &[path.as_str()], |text| text.strip_suffix(" us")?.parse().ok())
    };
    GpuCondition {
        throttle: throttle(entries),
        throttled: ThrottleTimes {
            power_cap_us: micro("SW Power Capping"),
            thermal_us: micro("SW Thermal Slowdown"),
            hardware_thermal_us: micro("HW Thermal Slowdown"),
            power_brake_us: micro("HW Power Braking"),
        },
        ecc: read_as(entries, &["ECC Mode/Current", "Ecc Mode/Current"], switched),
        ecc_next: read_as(entries, &["ECC Mode/Pending", "Ecc Mode/Pending"], switched),
        ecc_uncorrected: uncorrected(entries),
        rows_corrected: number(&["Remapped Rows/Correctable Error", ROWS]),
        rows_uncorrected: number(&["Remapped Rows/Uncorrectable Error", ROWS]),
        rows_pending: yes("Remapped Rows/Pending"),
        rows_failed: yes("Remapped Rows/Remapping Failure Occurred"),
        compute_mode: read_as(entries, &["Compute Mode"], |text| match text {
            "Default" => Some(ComputeMode::Default),
            "Exclusive_Thread" => Some(ComputeMode::ExclusiveThread),
            "Exclusive_Process" => Some(ComputeMode::ExclusiveProcess),
            "Prohibited" => Some(ComputeMode::Prohibited),
            _ => None,
        }),
        compute_processes: processes(entries),
        display_active: read_as(entries, &["Display Active"], switched),
        pcie_replays: read_as(entries, &["PCI/GPU Link Info/Replays Since Reset", "PCI/Replays Since Reset"], |text| {
            text.parse().ok()
        }),
        ..GpuCondition::unknown(&untold(KIND))
    }
}

/// `N/A` behind it stands for all rows.
const ROWS: &str = "Remapped Rows";

fn switched(text: &str) -> Option<bool> {
    match text {
        "Enabled" | "Yes" => Some(true),
        "Disabled" | "No" => Some(false),
        _ => None,
    }
}

/// Each reason by its line; drivers before 535 wrote `Clocks Throttle Reasons`.
fn throttle(entries: &[Entry<'_>]) -> Reading<ThrottleReasons> {
    const LINES: [(&str, ThrottleReasons); 9] = [
        ("Idle", ThrottleReasons::IDLE),
        ("Applications Clocks Setting", ThrottleReasons::CLOCK_SETTING),
        ("SW Power Cap", ThrottleReasons::POWER_CAP),
        ("HW Slowdown", ThrottleReasons::HARDWARE_SLOWDOWN),
        ("HW Thermal Slowdown", ThrottleReasons::HARDWARE_THERMAL),
        ("HW Power Brake Slowdown", ThrottleReasons::POWER_BRAKE),
        ("Sync Boost", ThrottleReasons::SYNC_BOOST),
        ("SW Thermal Slowdown", ThrottleReasons::THERMAL),
        ("Display Clock Setting", ThrottleReasons::DISPLAY_CLOCK),
    ];
    let mut reasons = Err(untold(KIND));
    for (name, reason) in LINES {
        let paths = ["Event", "Throttle"].map(|word| format!("Clocks {word} Reasons/{name}"));
        let active = read_as(entries, &paths.each_ref().map(String::as_str), |text| match text {
            "Active" => Some(true),
            "Not Active" => Some(false),
            _ => None,
        });
        reasons = match (reasons, active) {
            (Err(_), Ok(active)) => Ok(if active { reason } else { ThrottleReasons::NONE }),
            (Ok(so_far), Ok(true)) => Ok(so_far | reason),
            (Err(_), Err(missing)) if !missing.is_untold() => Err(missing),
            (so_far, _) => so_far,
        };
    }
    reasons
}

/// Errors since the driver was loaded that could not be corrected, in all of its memories.
fn uncorrected(entries: &[Entry<'_>]) -> Reading<u64> {
    let counts = entries.iter().filter(|entry| {
        let inside = entry.path.strip_prefix("ECC Errors/Volatile/");
        inside.is_some_and(|name| name.contains("Uncorrectable") || name == "Double Bit/Total")
    });
    let values: Vec<&str> = counts.map(|entry| entry.value).filter(|value| *value != "N/A").collect();
    let none = || match entries.iter().any(|entry| entry.path.starts_with("ECC Errors/")) {
        true => Missing::new(Why::Unsupported, "ECC Errors are N/A"),
        false => untold(KIND),
    };
    let numbers = values.iter().map(|value| value.parse::<u64>().map_err(|_| garbled("ECC Errors", value)));
    let numbers = numbers.collect::<Reading<Vec<u64>>>()?;
    numbers.into_iter().reduce(u64::saturating_add).ok_or_else(none)
}

/// Processes of the type `C` or `C+G`.
fn processes(entries: &[Entry<'_>]) -> Reading<u32> {
    let types = entries.iter().filter(|entry| entry.path == "Processes/Type");
    let computing = types.filter(|entry| entry.value.starts_with('C')).count();
    match (computing, text(entries, "Processes")) {
        (1.., _) => Ok(u32::try_from(computing).unwrap_or(u32::MAX)),
        (0, Ok(none)) if none == "None" => Ok(0),
        (0, Err(missing)) if !missing.is_untold() => Err(missing),
        _ if entries.iter().any(|entry| entry.path.starts_with("Processes/")) => Ok(0),
        _ => Err(untold(KIND)),
    }
}

fn generation(text: &str) -> Option<Generation> {
    text.parse().ok().and_then(Generation::new)
}

/// `16x`.
fn lanes(text: &str) -> Option<Width> {
    text.strip_suffix('x')?.parse().ok().and_then(Width::new)
}

/// `24564 MiB`.
fn mebibytes(text: &str) -> Option<Bytes> {
    text.strip_suffix(" MiB")?.parse::<u64>().ok()?.checked_mul(1 << 20).map(Bytes)
}

/// `450.00 W`.
fn milliwatts(text: &str) -> Option<u32> {
    let watts: f64 = text.strip_suffix(" W")?.parse().ok()?;
    (0.0..=1e6).contains(&watts).then_some((watts * 1e3).round() as u32)
}
