//! Rules about drivers, CUDA's libraries and what NCCL is told. The table of versions holds what others reported.

use crate::probe::transport::{Carrier, NcclSetting, SetIn, is_on, nccl_setting, nccl_settings, transports};
use crate::topology::{ContainerKind, Gpu, Lanes, PathClass, PeerStatus, Topology, Version};

use super::{Breach, addresses};

/// A breach that is about the whole machine.
fn of_machine(seen: String, expected: String) -> Vec<Breach> {
    vec![Breach { addresses: Vec::new(), seen, expected }]
}

/// GPUs of Blackwell's consumer and workstation chips, `sm_120`: as the driver says, else the PCI id, else the name.
fn is_sm_120(gpu: &Gpu) -> bool {
    match gpu.nvml.as_ref().map(|state| &state.compute_capability) {
        Some(Ok(capability)) => capability.starts_with("12."),
        _ => match &gpu.id {
            Ok(id) => id.is_blackwell() && 0x2b00 <= id.device,
            Err(_) => is_named_so(&gpu.name()),
        },
    }
}

/// Names of such GPUs, where a text gives nothing else.
fn is_named_so(name: &str) -> bool {
    let geforce = ["5050", "5060", "5070", "5080", "5090"];
    name.contains("RTX PRO") || name.split_whitespace().any(|word| geforce.contains(&word))
}

fn sm_120(topology: &Topology) -> Vec<&Gpu> {
    topology.nvidia_gpus().filter(|gpu| is_sm_120(gpu)).collect()
}

/// The first NCCL that knows `sm_120` (NVIDIA/nccl-tests issue 287: 2.25.1 asks for more shared memory than there is).
const NCCL_OF_SM_120: Version = Version(2, 26, 0);

pub(super) fn nccl_too_old(topology: &Topology) -> Vec<Breach> {
    let gpus = sm_120(topology);
    match topology.software.nccl {
        Ok(version) if version < NCCL_OF_SM_120 && !gpus.is_empty() => vec![Breach {
            seen: format!("NCCL {version} beside {}", gpus[0].name()),
            addresses: addresses(gpus),
            expected: "NCCL 2.26 or newer, the first that knows these GPUs (sm_120)".to_owned(),
        }],
        _ => Vec::new(),
    }
}

/// A version that others found broken.
struct Bad {
    first: Version,
    /// The first that is good again.
    good: Version,
    what: &'static str,
}

/// NCCL on `sm_120`.
const NCCL_BAD: [Bad; 1] = [Bad {
    first: Version(2, 26, 2),
    good: Version(2, 26, 3),
    what: "an illegal memory access from 512 KiB on (NVIDIA/nccl issue 2418, RTX PRO 6000; 2.31.2 is fine)",
}];

/// NVIDIA's driver.
const DRIVER_BAD: [Bad; 1] = [Bad {
    first: Version(560, 0, 0),
    good: Version(561, 0, 0),
    what: "collectives that hang (dmlc/xgboost issue 11242; 570 is fine)",
}];

fn bad(rows: &'static [Bad], version: Version) -> Option<&'static Bad> {
    rows.iter().find(|bad| bad.first <= version && version < bad.good)
}

pub(super) fn nccl_bad(topology: &Topology) -> Vec<Breach> {
    let gpus = sm_120(topology);
    let Some(bad) = topology.software.nccl.as_ref().ok().and_then(|version| bad(&NCCL_BAD, *version)) else {
        return Vec::new();
    };
    match gpus.is_empty() {
        true => Vec::new(),
        false => vec![Breach {
            seen: format!("NCCL {} beside {}", bad.first, gpus[0].name()),
            addresses: addresses(gpus),
            expected: format!("another version: with this one, others saw {}", bad.what),
        }],
    }
}

fn driver(topology: &Topology) -> Option<Version> {
    topology.nvidia.version.as_ref().ok()?.parse().ok()
}

pub(super) fn driver_bad(topology: &Topology) -> Vec<Breach> {
    let Some((version, bad)) = driver(topology).and_then(|version| Some((version, bad(&DRIVER_BAD, version)?))) else {
        return Vec::new();
    };
    match topology.nvidia_gpus().count() {
        0 | 1 => Vec::new(),
        _ => of_machine(
            format!("driver {}.{:02}.{:02}", version.0, version.1, version.2),
            format!("another branch: with this one, others saw {}", bad.what),
        ),
    }
}

/// The first driver that knows Blackwell (NVIDIA, release notes of driver 570).
const DRIVER_OF_BLACKWELL: u32 = 570;

pub(super) fn driver_too_old(topology: &Topology) -> Vec<Breach> {
    let told = topology
        .nvidia
        .kernel_module
        .as_ref()
        .ok()
        .and_then(|text| text.split_whitespace().find_map(|word| word.parse::<Version>().ok()));
    let blackwell = |gpu: &&Gpu| gpu.id.as_ref().is_ok_and(|id| id.is_blackwell());
    let gpus: Vec<&Gpu> = topology.nvidia_gpus().filter(blackwell).collect();
    match driver(topology).or(told) {
        Some(version) if version.0 < DRIVER_OF_BLACKWELL && !gpus.is_empty() => vec![Breach {
            addresses: addresses(gpus),
            seen: format!("the driver is of the branch {}", version.0),
            expected: format!("{DRIVER_OF_BLACKWELL} or newer, the first that knows Blackwell"),
        }],
        _ => Vec::new(),
    }
}

pub(super) fn libraries_newer(topology: &Topology) -> Vec<Breach> {
    let served = topology.nvidia.cuda.as_ref().ok().and_then(|text| text.parse::<Version>().ok());
    match (&topology.software.cublas, served) {
        (Ok(built), Some(served)) if served.0 < built.0 => of_machine(
            format!("the driver serves CUDA {}.{}, cuBLAS {built} is of CUDA {}", served.0, served.1, built.0),
            "libraries of the driver's CUDA or older: a newer major version does not run on it (CUDA compatibility)"
                .to_owned(),
        ),
        _ => Vec::new(),
    }
}

/// From here on, and before the second, NCCL allocates host memory by NUMA node and does not ask whether it may
/// (NCCL documentation, `NCCL_CUMEM_HOST_ENABLE`).
const CUMEM_HOST: [Version; 2] = [Version(2, 24, 0), Version(2, 26, 5)];

pub(super) fn cumem_host(topology: &Topology) -> Vec<Breach> {
    let contained = topology.container.kind.as_ref().is_ok_and(|kind| *kind != ContainerKind::None);
    let off = nccl_setting(topology, "NCCL_CUMEM_HOST_ENABLE").is_some_and(|setting| setting.value == "0");
    match topology.software.nccl {
        Ok(version) if contained && !off && CUMEM_HOST[0] <= version && version < CUMEM_HOST[1] => of_machine(
            format!("NCCL {version} in a container"),
            "2.26.5 or newer, which asks first whether host memory may be bound to a NUMA node".to_owned(),
        ),
        _ => Vec::new(),
    }
}

/// Settings that change nothing in how data travel.
fn harmless(setting: &NcclSetting<'_>) -> bool {
    setting.name.starts_with("NCCL_DEBUG") || ["NCCL_VERSION", "NCCL_CONF_FILE"].contains(&setting.name)
}

pub(super) fn nccl_conf(topology: &Topology) -> Vec<Breach> {
    let settings = nccl_settings(topology);
    let mut breaches = Vec::new();
    for place in [SetIn::Environment, SetIn::UserConf, SetIn::SystemConf] {
        let set = settings.iter().filter(|setting| setting.set_in == place && !harmless(setting));
        let words: Vec<String> = set.map(|setting| format!("{}={}", setting.name, setting.value)).collect();
        if !words.is_empty() {
            breaches.extend(of_machine(
                format!("{place} sets {}", words.join(", ")),
                "nothing, for a run of NCCL's defaults: it counts for whatever is trained here".to_owned(),
            ));
        }
    }
    breaches
}

/// A breach for the setting that wins under a name, where `check` says what is wrong with it.
fn lint(topology: &Topology, name: &str, expected: &str, check: impl Fn(&str) -> bool) -> Vec<Breach> {
    match nccl_setting(topology, name).filter(|setting| check(setting.value)) {
        Some(setting) => of_machine(format!("{} sets {name}={}", setting.set_in, setting.value), expected.to_owned()),
        None => Vec::new(),
    }
}

pub(super) fn ll128_forced(topology: &Topology) -> Vec<Breach> {
    let expected = "NCCL's own choice, which never takes LL128 over PCIe (NCCL documentation, NCCL_PROTO)";
    lint(topology, "NCCL_PROTO", expected, |value| {
        !value.starts_with('^') && value.to_ascii_uppercase().contains("LL128")
    })
}

/// True where the driver grants peer access between some pair.
fn some_peer(topology: &Topology) -> bool {
    topology.peers.iter().any(|peer| [&peer.read, &peer.write].iter().all(|status| **status == Ok(PeerStatus::Ok)))
}

pub(super) fn peers_off(topology: &Topology) -> Vec<Breach> {
    if !some_peer(topology) {
        return Vec::new();
    }
    let expected = "peer access in use where the driver grants it; this was set to work around a fault, or left over";
    let off = if is_on(topology, "NCCL_P2P_DISABLE") {
        lint(topology, "NCCL_P2P_DISABLE", expected, |_| true)
    } else {
        lint(topology, "NCCL_P2P_LEVEL", expected, |value| ["LOC", "0"].contains(&value))
    };
    off.into_iter().collect()
}

pub(super) fn shared_memory_off(topology: &Topology) -> Vec<Breach> {
    let pairs = transports(topology).into_iter().filter(|pair| pair.carrier == Some(Carrier::Network)).count();
    let expected = "shared memory for pairs that have no peer access: sockets reach a tenth of it";
    match pairs {
        0 => Vec::new(),
        _ => lint(topology, "NCCL_SHM_DISABLE", &format!("{expected} ({pairs} pair(s) here)"), |_| true),
    }
}

pub(super) fn nvls_forced(topology: &Topology) -> Vec<Breach> {
    let expected = "NCCL's own choice: NVLS needs NVSwitches (NCCL documentation, NCCL_NVLS_ENABLE)";
    lint(topology, "NCCL_NVLS_ENABLE", expected, |value| value == "1")
}

/// Names that NCCL no longer reads (tags of NVIDIA/nccl).
const FORGOTTEN: [&str; 2] = ["NCCL_NCHANNELS_PER_PEER", "NCCL_SHM_USE_CUDA_MEMCPY"];

pub(super) fn ignored(topology: &Topology) -> Vec<Breach> {
    let blank = |text: &str| text.starts_with(' ') || text.ends_with(' ') || text.contains('\t');
    let wrong = |setting: &NcclSetting<'_>| -> Option<String> {
        let line = format!("{}={}", setting.name, setting.value);
        if setting.set_in != SetIn::Environment && (blank(setting.name) || blank(setting.value)) {
            return Some(format!("`{line}` has blanks, which NCCL takes for part of the name or of the value"));
        }
        FORGOTTEN.contains(&setting.name).then(|| format!("`{line}` has a name that NCCL no longer reads"))
    };
    let breach = |setting: &NcclSetting<'_>| {
        Some(Breach {
            addresses: Vec::new(),
            seen: format!("in {}: {}", setting.set_in, wrong(setting)?),
            expected: "lines NAME=VALUE without blanks, of names that NCCL reads (src/misc/param.cc)".to_owned(),
        })
    };
    nccl_settings(topology).iter().filter_map(breach).collect()
}

pub(super) fn host_staged(topology: &Topology) -> Vec<Breach> {
    let far: Vec<_> = transports(topology)
        .into_iter()
        .filter(|pair| pair.carrier == Some(Carrier::HostMemory) && pair.why.contains(" is beyond "))
        .filter(|pair| granted_both_ways(topology, pair.a, pair.b))
        .collect();
    let Some(first) = far.first() else { return Vec::new() };
    vec![Breach {
        addresses: addresses(
            topology.nvidia_gpus().filter(|gpu| far.iter().any(|pair| [pair.a, pair.b].contains(&gpu.address))),
        ),
        seen: format!("{} pair(s) have peer access and go through the host's memory: {}", far.len(), first.why),
        expected: "peer access in use where the driver grants it (NCCL 2.30.7, src/graph/paths.cc)".to_owned(),
    }]
}

fn granted_both_ways(topology: &Topology, a: crate::topology::PciAddress, b: crate::topology::PciAddress) -> bool {
    [(a, b), (b, a)].iter().all(|ends| {
        let peer = topology.peers.iter().find(|peer| (peer.from, peer.to) == *ends);
        peer.is_some_and(|peer| peer.read == Ok(PeerStatus::Ok) && peer.write == Ok(PeerStatus::Ok))
    })
}

/// The lowest speed of a ring that NCCL's search tries for Blackwell, GB/s (src/graph/search.cc, `sm100SpeedArrayIntra`).
const RING_LEAST: f64 = 18.0;
/// What NCCL takes for the link between NUMA nodes of an AMD processor, GB/s (src/graph/topo.h, `AMD_BW`).
const AMD_ACROSS: f64 = 16.0;

/// What NCCL takes for a link, GB/s: 100 Mb/s for each lane by generation, over 80 (src/graph/topo.cc).
fn nccl_rate(lanes: Lanes) -> f64 {
    let of_lane = [15.0, 30.0, 60.0, 120.0, 240.0, 480.0, 960.0];
    let generation = u64::from(lanes.generation) as usize;
    u64::from(lanes.width) as f64 * of_lane[generation - 1] / 80.0
}

pub(super) fn simple_order(topology: &Topology) -> Vec<Breach> {
    let gpus: Vec<&Gpu> = topology.nvidia_gpus().collect();
    let newest = |gpu: &&Gpu| match gpu.nvml.as_ref().map(|state| &state.compute_capability) {
        Some(Ok(capability)) => capability.parse::<Version>().is_ok_and(|capability| Version(10, 0, 0) <= capability),
        _ => gpu.id.as_ref().is_ok_and(|id| id.is_blackwell()),
    };
    let bridged = topology.pairs.iter().any(|pair| topology.is_bridged(pair.a, pair.b));
    if gpus.len() < 2 || bridged || !gpus.iter().all(newest) {
        return Vec::new();
    }
    let expected = format!("at least {RING_LEAST} GB/s, the slowest ring that NCCL looks for on these GPUs");
    let slow = gpus.iter().filter_map(|gpu| gpu.narrowest.as_ref().ok().map(|hop| (gpu, hop.lanes())));
    if let Some((gpu, lanes)) = slow.into_iter().find(|(_, lanes)| nccl_rate(*lanes) < RING_LEAST) {
        let seen = format!("NCCL takes the {lanes} of {} for {} GB/s", gpu.name(), nccl_rate(lanes));
        return vec![Breach { addresses: vec![gpu.address.to_string()], seen, expected }];
    }
    let amd = topology.cpu.model.as_ref().is_ok_and(|model| model.starts_with("AMD"));
    match amd && topology.pairs.iter().any(|pair| pair.path == Ok(PathClass::Sys)) {
        true => vec![Breach {
            addresses: addresses(gpus),
            seen: format!("the ring crosses NUMA nodes of an AMD processor, which NCCL takes for {AMD_ACROSS} GB/s"),
            expected,
        }],
        false => Vec::new(),
    }
}
