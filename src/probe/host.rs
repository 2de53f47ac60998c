//! What the host is: firmware names, system, processors, NUMA nodes, limits.

use std::collections::BTreeMap;

use crate::device::cuda::LibraryFact;
use crate::topology::{
    Container, ContainerKind, Cpu, CpuSet, CpuSignature, Limit, MachineName, Missing, NumaNode, Reading, Settings,
    Socket, Software, System, Why,
};
use crate::units::Bytes;

use super::ask::{file, garbled, name as file_name, parsed, text};
use super::memory;
use super::question::VIRTUAL_TOPOLOGY;
use super::{AskError, CgroupFile, HostFact, Machine, Question};

/// The kernel nests control groups without a limit; no service manager goes deeper.
const CGROUP_LEVELS_MAX: u8 = 16;

/// What the firmware calls the machine.
pub(super) fn name(machine: &dyn Machine) -> Result<MachineName, AskError> {
    let dmi = |name: &str| file_name(machine, &format!("/sys/class/dmi/id/{name}"));
    Ok(MachineName {
        vendor: dmi("sys_vendor")?,
        product: dmi("product_name")?,
        board_vendor: dmi("board_vendor")?,
        board: dmi("board_name")?,
        bios_version: dmi("bios_version")?,
        bios_date: dmi("bios_date")?,
    })
}

/// Operating system, kernel, memory, hypervisor.
pub(super) fn system(machine: &dyn Machine) -> Result<System, AskError> {
    let os = file(machine, "/etc/os-release")?;
    let memory = file(machine, "/proc/meminfo")?;
    Ok(System {
        os: os.and_then(|text| pretty_name(&text)),
        kernel: file_name(machine, "/proc/sys/kernel/osrelease")?,
        command_line: file(machine, "/proc/cmdline")?,
        memory_bytes: memory.and_then(|text| memory_total("/proc/meminfo", &text)),
        memory_slots: text(machine, Question::Host(HostFact::MemorySlots))?.and_then(|text| memory::parsed(&text)),
        virtual_machine: virtual_machine(machine)?,
    })
}

/// CUDA's libraries and what NCCL is told. They are asked for only where there is a GPU for them.
pub(super) fn software(machine: &dyn Machine, has_gpu: bool) -> Result<Software, AskError> {
    if !has_gpu {
        return Ok(Software::unknown(&Missing::new(Why::Absent, "no NVIDIA GPU")));
    }
    let version = |fact| Ok(parsed(text(machine, Question::Library(fact))?, "the version of a library"));
    let settings = |fact| Ok(text(machine, Question::Host(fact))?.map(|text| nccl_settings(&text)));
    Ok(Software {
        nccl: version(LibraryFact::Nccl)?,
        cudnn: version(LibraryFact::Cudnn)?,
        cublas: version(LibraryFact::Cublas)?,
        nccl_environment: settings(HostFact::NcclEnvironment)?,
        nccl_user_conf: settings(HostFact::NcclUserConf)?,
    })
}

fn pretty_name(text: &str) -> Reading<String> {
    let line = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let name = line.map(|name| name.trim().trim_matches(['"', '\'']).to_owned());
    name.ok_or_else(|| Missing::new(Why::Absent, "/etc/os-release has no PRETTY_NAME"))
}

/// `MemTotal:  131072000 kB`, in a node's file after `Node 0 `.
fn memory_total(path: &str, text: &str) -> Reading<Bytes> {
    let line = text.lines().find(|line| line.contains("MemTotal:")).unwrap_or_default();
    let kibi = line.split_whitespace().rev().nth(1).and_then(|number| number.parse::<u64>().ok());
    kibi.and_then(|kibi| kibi.checked_mul(1024)).map(Bytes).ok_or_else(|| garbled(path, line))
}

/// The value of the first line with this key in `/proc/cpuinfo`. The last line is dropped: the answer may cut it.
fn cpuinfo_value(text: &str, key: &str) -> Option<String> {
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let pairs = whole.lines().filter_map(|line| line.split_once(':'));
    pairs.into_iter().find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim().to_owned())
}

/// Every hypervisor sets the CPUID bit that Linux shows as the flag `hypervisor`; other architectures have no flags.
fn virtual_machine(machine: &dyn Machine) -> Result<Reading<bool>, AskError> {
    let info = text(machine, Question::Start("/proc/cpuinfo".into()))?;
    let unknown = || Missing::new(Why::Unsupported, "/proc/cpuinfo names no CPU flags");
    Ok(info.and_then(|info| {
        let flags = cpuinfo_value(&info, "flags").ok_or_else(unknown)?;
        Ok(flags.split_whitespace().any(|flag| flag == "hypervisor"))
    }))
}

/// What the host is set to.
pub(super) fn settings(machine: &dyn Machine) -> Result<Settings, AskError> {
    let uptime = file(machine, "/proc/uptime")?;
    let whole = |text: String| text.split(['.', ' ']).next().unwrap_or_default().to_owned();
    let balancing = file(machine, "/proc/sys/kernel/numa_balancing")?;
    let topology = text(machine, Question::Exists(VIRTUAL_TOPOLOGY.into()))?;
    Ok(Settings {
        root: parsed(text(machine, Question::Host(HostFact::Root))?, "whether root asks"),
        uptime_s: parsed(uptime.map(whole), "/proc/uptime"),
        numa_balancing: balancing.and_then(|text| match text.as_str() {
            "0" => Ok(false),
            // 1 balances, 2 moves memory between tiers, 3 does both.
            "1" | "2" | "3" => Ok(true),
            _ => Err(garbled("/proc/sys/kernel/numa_balancing", &text)),
        }),
        nccl_conf: file(machine, "/etc/nccl.conf")?.map(|text| nccl_settings(&text)),
        virtual_topology: match topology {
            Ok(_) => Ok(true),
            Err(missing) if missing.why == Why::Absent => Ok(false),
            Err(missing) => Err(missing),
        },
    })
}

/// The lines that NCCL obeys: `NAME=VALUE`, unless `#` is the first character (NCCL 2.30, `src/misc/param.cc`).
fn nccl_settings(text: &str) -> Vec<String> {
    text.lines().filter(|line| !line.starts_with('#') && line.contains('=')).map(str::to_owned).collect()
}

/// The processors.
pub(super) fn cpu(machine: &dyn Machine) -> Result<Cpu, AskError> {
    let info = text(machine, Question::Start("/proc/cpuinfo".into()))?;
    let unnamed = || Missing::new(Why::Unsupported, "/proc/cpuinfo names no model");
    let online: Reading<CpuSet> = parsed(file(machine, "/sys/devices/system/cpu/online")?, "the list of online CPUs");
    let allowed = parsed(text(machine, Question::Host(HostFact::AllowedCpus))?, "the list of allowed CPUs");
    let sockets = sockets(machine, &online)?;
    let (governors, frequency_driver) = frequency(machine, &sockets)?;
    Ok(Cpu {
        signature: info.as_ref().ok().and_then(|info| signature(info)),
        model: info.and_then(|info| cpuinfo_value(&info, "model name").ok_or_else(unnamed)),
        online,
        allowed,
        sockets,
        governors,
        frequency_driver,
    })
}

/// Vendor, family and model, which the kernel lists for x86 only.
fn signature(info: &str) -> Option<CpuSignature> {
    let number = |key: &str| cpuinfo_value(info, key)?.parse().ok();
    Some(CpuSignature {
        arch: "x86_64".to_owned(),
        vendor: Some(cpuinfo_value(info, "vendor_id")?),
        family: Some(number("cpu family")?),
        model: Some(number("model")?),
    })
}

/// Sockets and cores. One fact that is missing hides them all: a core without its sibling would be half a core.
fn sockets(machine: &dyn Machine, online: &Reading<CpuSet>) -> Result<Reading<Vec<Socket>>, AskError> {
    let online = match online {
        Ok(online) => online,
        Err(missing) => return Ok(Err(missing.clone())),
    };
    let mut sockets: BTreeMap<u32, Vec<CpuSet>> = BTreeMap::new();
    let mut owners: BTreeMap<usize, usize> = BTreeMap::new();
    for cpu in online.cpus().iter().copied() {
        if owners.contains_key(&cpu) {
            continue;
        }
        let folder = format!("/sys/devices/system/cpu/cpu{cpu}/topology");
        let path = format!("{folder}/thread_siblings_list");
        let siblings = parsed::<CpuSet>(file(machine, path.as_str())?, &path);
        let socket = parsed(file(machine, format!("{folder}/physical_package_id"))?, "physical_package_id");
        let (siblings, socket) = match (siblings, socket) {
            (Ok(siblings), Ok(socket)) => (siblings, socket),
            (Err(missing), _) | (_, Err(missing)) => return Ok(Err(missing)),
        };
        let taken = siblings.cpus().iter().any(|sibling| owners.contains_key(sibling) || !online.contains(*sibling));
        if taken || !siblings.contains(cpu) {
            return Ok(Err(garbled(&path, &siblings.to_string())));
        }
        owners.extend(siblings.cpus().iter().map(|sibling| (*sibling, cpu)));
        sockets.entry(socket).or_default().push(siblings);
    }
    Ok(Ok(sockets.into_iter().map(|(socket, cores)| Socket { socket, cores }).collect()))
}

/// Governors of all cores, each once, and what drives the frequency.
fn frequency(
    machine: &dyn Machine,
    sockets: &Reading<Vec<Socket>>,
) -> Result<(Reading<Vec<String>>, Reading<String>), AskError> {
    let sockets = match sockets {
        Ok(sockets) => sockets,
        Err(missing) => return Ok((Err(missing.clone()), Err(missing.clone()))),
    };
    let cores = sockets.iter().flat_map(|socket| &socket.cores).filter_map(|core| core.cpus().first());
    let folder = |cpu: &usize| format!("/sys/devices/system/cpu/cpu{cpu}/cpufreq");
    let mut governors = Vec::new();
    for cpu in cores.clone() {
        match file_name(machine, &format!("{}/scaling_governor", folder(cpu)))? {
            Ok(governor) if governors.contains(&governor) => {}
            Ok(governor) => governors.push(governor),
            Err(missing) => return Ok((Err(missing.clone()), Err(missing))),
        }
    }
    governors.sort();
    let driver = match cores.min() {
        Some(cpu) => file_name(machine, &format!("{}/scaling_driver", folder(cpu)))?,
        None => Err(Missing::new(Why::Absent, "no CPU is online")),
    };
    Ok((Ok(governors), driver))
}

/// The NUMA nodes, ascending.
pub(super) fn numa(machine: &dyn Machine) -> Result<Reading<Vec<NumaNode>>, AskError> {
    const FOLDER: &str = "/sys/devices/system/node";
    // The kernel spells lists of nodes as it spells lists of CPUs.
    let online: CpuSet = match parsed(file(machine, format!("{FOLDER}/online"))?, "the list of online NUMA nodes") {
        Ok(online) => online,
        Err(missing) => return Ok(Err(missing)),
    };
    let mut nodes = Vec::new();
    for node in online.cpus() {
        let folder = format!("{FOLDER}/node{node}");
        let memory = file(machine, format!("{folder}/meminfo"))?;
        let distances = file(machine, format!("{folder}/distance"))?;
        nodes.push(NumaNode {
            node: *node as u32,
            cpus: parsed(file(machine, format!("{folder}/cpulist"))?, "the list of CPUs of a NUMA node"),
            memory_bytes: memory.and_then(|text| memory_total(&folder, &text)),
            distances: distances.and_then(|text| distance_row(&text)),
        });
    }
    Ok(Ok(nodes))
}

fn distance_row(text: &str) -> Reading<Vec<u32>> {
    let row: Result<Vec<u32>, _> = text.split_whitespace().map(str::parse).collect();
    row.map_err(|_| garbled("the distances of a NUMA node", text))
}

/// Limits that a container or a service manager sets.
pub(super) fn container(machine: &dyn Machine) -> Result<Container, AskError> {
    let memlock = text(machine, Question::Host(HostFact::MemlockBytes))?;
    let memlock = memlock.and_then(|text| match text.as_str() {
        "unlimited" => Ok(Limit::Unlimited),
        _ => parsed(Ok(text), "the limit of locked memory").map(|bytes| Limit::AtMost(Bytes(bytes))),
    });
    let shm = text(machine, Question::Host(HostFact::ShmBytes))?;
    Ok(Container {
        kind: container_kind(machine)?,
        shm_bytes: parsed(shm, "the size of /dev/shm").map(Bytes),
        memlock_bytes: memlock,
        cpu_quota: cpu_quota(machine)?,
    })
}

/// The first mark that a container runtime left; none only where every mark is known to be absent.
fn container_kind(machine: &dyn Machine) -> Result<Reading<ContainerKind>, AskError> {
    let marks = [
        ("/run/secrets/kubernetes.io", ContainerKind::Kubernetes),
        ("/.dockerenv", ContainerKind::Docker),
        ("/run/.containerenv", ContainerKind::Podman),
        ("/run/systemd/container", ContainerKind::Other),
    ];
    let mut unknown = None;
    for (path, kind) in marks {
        match text(machine, Question::Exists(path.into()))? {
            Ok(_) => return Ok(Ok(kind)),
            Err(missing) if missing.why == Why::Absent => {}
            Err(missing) => unknown = Some(missing),
        }
    }
    Ok(unknown.map_or(Ok(ContainerKind::None), Err))
}

/// The tightest CPU quota of the control groups around this process, in CPUs.
fn cpu_quota(machine: &dyn Machine) -> Result<Reading<Limit<f64>>, AskError> {
    let second = tightest(machine, CgroupFile::CpuMax)?;
    Ok(match second {
        Ok(Some(limit)) => Ok(limit),
        Err(missing) if missing.why != Why::Unsupported => Err(missing),
        none => match (none, tightest(machine, CgroupFile::QuotaUs)?) {
            (_, Ok(Some(limit))) => Ok(limit),
            (Ok(_), Ok(None) | Err(Missing { why: Why::Unsupported, .. })) | (_, Ok(None)) => Ok(Limit::Unlimited),
            (_, Err(missing)) => Err(missing),
        },
    })
}

/// The tightest quota over all levels; none where no level has the file.
///
/// The inner error is unsupported where the machine shows no control groups of this version.
fn tightest(machine: &dyn Machine, of: CgroupFile) -> Result<Reading<Option<Limit<f64>>>, AskError> {
    let mut tightest = None;
    for up in 0..CGROUP_LEVELS_MAX {
        let answer = text(machine, Question::Cgroup { file: of, up })?;
        let quota = match answer {
            Ok(quota) => quota,
            Err(missing) if missing.why == Why::Absent => continue,
            Err(missing) if missing.why == Why::Unsupported && 0 < up => break,
            Err(missing) => return Ok(Err(missing)),
        };
        let limit = match of {
            CgroupFile::CpuMax => two_numbers(&quota),
            CgroupFile::QuotaUs | CgroupFile::PeriodUs if quota == "-1" => Ok(Limit::Unlimited),
            CgroupFile::QuotaUs | CgroupFile::PeriodUs => {
                let period = text(machine, Question::Cgroup { file: CgroupFile::PeriodUs, up })?;
                period.and_then(|period| two_numbers(&format!("{quota} {period}")))
            }
        };
        tightest = match (tightest, limit) {
            (_, Err(missing)) => return Ok(Err(missing)),
            (Some(Limit::AtMost(before)), Ok(Limit::AtMost(here))) => Some(Limit::AtMost(here.min(before))),
            (Some(Limit::AtMost(before)), Ok(Limit::Unlimited)) => Some(Limit::AtMost(before)),
            (_, Ok(limit)) => Some(limit),
        };
    }
    Ok(Ok(tightest))
}

/// `200000 100000` is two CPUs, `max 100000` no limit.
fn two_numbers(text: &str) -> Reading<Limit<f64>> {
    let wrong = || garbled("the CPU quota of a control group", text);
    let (quota, period) = text.split_once(' ').ok_or_else(wrong)?;
    if quota == "max" {
        return Ok(Limit::Unlimited);
    }
    let (quota, period): (u32, u32) = quota.parse().ok().zip(period.parse().ok()).ok_or_else(wrong)?;
    match quota.min(period) {
        0 => Err(wrong()),
        _ => Ok(Limit::AtMost(f64::from(quota) / f64::from(period))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_read_as_cpus() {
        assert_eq!(two_numbers("200000 100000"), Ok(Limit::AtMost(2.0)));
        assert_eq!(two_numbers("max 100000"), Ok(Limit::Unlimited));
        for text in ["", "0 100000", "1 0", "x 1", "1"] {
            assert_eq!(two_numbers(text).unwrap_err().why, Why::Garbled, "{text}");
        }
    }

    #[test]
    fn a_line_that_was_cut_off_says_nothing() {
        assert_eq!(cpuinfo_value("model name\t: X\nflags\t: a b\nbugs", "flags"), Some("a b".into()));
        assert_eq!(cpuinfo_value("model name\t: X\nflags\t: a b", "flags"), None);
    }

    #[test]
    fn memory_is_read_from_both_spellings() {
        assert_eq!(memory_total("", "MemTotal:       1024 kB\nMemFree: 1 kB"), Ok(Bytes(1 << 20)));
        assert_eq!(memory_total("", "\nNode 0 MemTotal:       1024 kB\n"), Ok(Bytes(1 << 20)));
        assert!(memory_total("", "MemTotal: 99999999999999999999 kB").is_err());
        assert!(memory_total("", "").is_err());
    }
}
