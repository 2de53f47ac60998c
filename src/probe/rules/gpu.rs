//! Rules about the state of each GPU, and about GPUs that are unlike each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use crate::topology::{ComputeMode, Gpu, GpuState, Missing, PciId, Reading, ThrottleReasons, Topology, Why};
use crate::units::Watts;

use super::{Breach, addresses};

/// A breach for each NVIDIA GPU of which `check` says something.
fn each(topology: &Topology, expected: &str, check: impl Fn(&Gpu) -> Option<String>) -> Vec<Breach> {
    let breach = |gpu: &Gpu| {
        Some(Breach {
            addresses: vec![gpu.address.to_string()],
            seen: format!("{}: {}", gpu.name(), check(gpu)?),
            expected: expected.to_owned(),
        })
    };
    topology.nvidia_gpus().filter_map(breach).collect()
}

/// The same, of GPUs about which the driver tells.
fn each_state(topology: &Topology, expected: &str, check: impl Fn(&GpuState) -> Option<String>) -> Vec<Breach> {
    each(topology, expected, |gpu| check(gpu.nvml.as_ref()?))
}

/// `text` where the fact is known to be true.
fn when(fact: &Reading<bool>, text: &str) -> Option<String> {
    (*fact == Ok(true)).then(|| text.to_owned())
}

fn held(gpu: &Gpu) -> bool {
    gpu.driver.as_deref() == Ok("nvidia")
}

pub(super) fn lost(topology: &Topology) -> Vec<Breach> {
    let breach = |gpu: &Gpu| Breach {
        addresses: vec![gpu.address.to_string()],
        seen: format!("{}: every bit of its configuration space is set", gpu.name()),
        expected: "its vendor and device number: a device that is gone from the bus reads as ones".to_owned(),
    };
    topology.gpus.iter().filter(|gpu| gpu.pcie.responds == Ok(false)).map(breach).collect()
}

/// What the driver's library is missing, where the kernel driver holds a GPU.
fn library(topology: &Topology, why: Why, expected: &str) -> Vec<Breach> {
    let gpus: Vec<&Gpu> = topology.nvidia_gpus().filter(|gpu| held(gpu)).collect();
    match &topology.nvidia.version {
        Err(missing) if missing.why == why && !gpus.is_empty() => vec![Breach {
            addresses: addresses(gpus),
            seen: format!("the kernel driver `nvidia` holds the GPUs; {missing}"),
            expected: expected.to_owned(),
        }],
        _ => Vec::new(),
    }
}

pub(super) fn library_missing(topology: &Topology) -> Vec<Breach> {
    library(topology, Why::Absent, "libnvidia-ml.so.1 of the driver's own version, beside its kernel module")
}

pub(super) fn library_failed(topology: &Topology) -> Vec<Breach> {
    library(topology, Why::Garbled, "an answer: library and kernel module are of one version, and the GPUs initialised")
}

/// GPUs that the kernel driver holds and NVML does not name, for one reason, while it works for the machine.
fn unnamed(topology: &Topology, why: Why) -> impl Iterator<Item = (&Gpu, &Missing)> {
    let works = topology.nvidia.version.is_ok();
    topology.nvidia_gpus().filter(move |gpu| works && held(gpu)).filter_map(move |gpu| {
        let missing = gpu.nvml.as_ref()?.name.as_ref().err()?;
        (missing.why == why).then_some((gpu, missing))
    })
}

pub(super) fn silent(topology: &Topology) -> Vec<Breach> {
    let breach = |(gpu, missing): (&Gpu, &Missing)| Breach {
        addresses: vec![gpu.address.to_string()],
        seen: format!("{}: the driver holds it; {missing}", gpu.name()),
        expected: "its name, as the driver's library tells of each GPU that it could initialise".to_owned(),
    };
    // One that is gone from the bus has a rule of its own.
    unnamed(topology, Why::Garbled).filter(|(gpu, _)| gpu.pcie.responds != Ok(false)).map(breach).collect()
}

pub(super) fn hidden(topology: &Topology) -> Vec<Breach> {
    let gpus: Vec<&Gpu> = unnamed(topology, Why::Absent).map(|(gpu, _)| gpu).collect();
    if gpus.is_empty() {
        return Vec::new();
    }
    let seen = format!("the driver shows {} of the machine's GPUs not to this process", gpus.len());
    let expected = "every NVIDIA GPU that the kernel driver holds".to_owned();
    vec![Breach { addresses: addresses(gpus), seen, expected }]
}

pub(super) fn closed_module(topology: &Topology) -> Vec<Breach> {
    let expected = "the open kernel module: from Blackwell on there is no other (NVIDIA, driver README)";
    let closed = topology.nvidia.open_module() == Ok(false);
    each(topology, expected, |gpu| {
        let blackwell = gpu.id.as_ref().is_ok_and(|id| id.is_blackwell());
        (closed && blackwell).then(|| "the proprietary kernel module is loaded (/proc/driver/nvidia/version)".into())
    })
}

pub(super) fn mig(topology: &Topology) -> Vec<Breach> {
    let expected = "MIG off: between instances there is no peer access (NVIDIA, MIG User Guide)";
    each_state(topology, expected, |state| {
        let instances = match state.condition.mig_instances {
            Ok(count) => format!(", with {count} instance(s)"),
            Err(_) => String::new(),
        };
        when(&state.mig, &format!("MIG is on (nvmlDeviceGetMigMode){instances}"))
    })
}

pub(super) fn prohibited(topology: &Topology) -> Vec<Breach> {
    each_state(topology, "Default: several processes may compute", |state| {
        let prohibited = state.condition.compute_mode == Ok(ComputeMode::Prohibited);
        prohibited.then(|| "its compute mode is Prohibited: CUDA refuses every process".into())
    })
}

pub(super) fn exclusive(topology: &Topology) -> Vec<Breach> {
    each_state(topology, "Default: several processes may compute", |state| match state.condition.compute_mode {
        Ok(ComputeMode::ExclusiveProcess | ComputeMode::ExclusiveThread) => {
            Some("its compute mode lets one process in".into())
        }
        _ => None,
    })
}

pub(super) fn in_use(topology: &Topology) -> Vec<Breach> {
    each_state(topology, "no process but the one that measures", |state| match state.condition.compute_processes {
        Ok(count @ 1..) => Some(format!("{count} process(es) compute on it already")),
        _ => None,
    })
}

pub(super) fn display(topology: &Topology) -> Vec<Breach> {
    let expected = "a GPU that does nothing else; drawing takes memory and time";
    each_state(topology, expected, |state| when(&state.condition.display_active, "it drives a display"))
}

pub(super) fn uncorrected(topology: &Topology) -> Vec<Breach> {
    each_state(topology, "none: such an error changes a number or ends the process", |state| {
        match state.condition.ecc_uncorrected {
            Ok(count @ 1..) => Some(format!("{count} memory error(s) could not be corrected since the driver loaded")),
            _ => None,
        }
    })
}

pub(super) fn ecc_pending(topology: &Topology) -> Vec<Breach> {
    let word = |on: bool| if on { "on" } else { "off" };
    each_state(topology, "the mode that was asked for", |state| {
        match (&state.condition.ecc, &state.condition.ecc_next) {
            (Ok(now), Ok(next)) if now != next => {
                Some(format!("ECC is {} and will be {} after the next restart", word(*now), word(*next)))
            }
            _ => None,
        }
    })
}

pub(super) fn rows_failed(topology: &Topology) -> Vec<Breach> {
    let expected = "every bad row replaced (NVIDIA, GPU Memory Error Management)";
    each_state(topology, expected, |state| when(&state.condition.rows_failed, "a bad memory row could not be replaced"))
}

pub(super) fn rows_pending(topology: &Topology) -> Vec<Breach> {
    let expected = "no row waiting (NVIDIA, GPU Memory Error Management)";
    each_state(topology, expected, |state| {
        when(&state.condition.rows_pending, "a bad memory row waits for a reset to be replaced")
    })
}

/// The reasons of `mask` that hold the clocks.
fn throttled(topology: &Topology, mask: ThrottleReasons, expected: &str) -> Vec<Breach> {
    each_state(topology, expected, |state| {
        let reasons = state.condition.throttle.clone().ok()? & mask;
        let hold = || format!("its clocks are held: {}", reasons.names().join(", "));
        (!reasons.is_none()).then(hold)
    })
}

pub(super) fn power_brake(topology: &Topology) -> Vec<Breach> {
    throttled(topology, ThrottleReasons::POWER_BRAKE, "no power brake: the supply asks the card to halve its clocks")
}

pub(super) fn hot(topology: &Topology) -> Vec<Breach> {
    let heat = ThrottleReasons::THERMAL | ThrottleReasons::HARDWARE_THERMAL;
    throttled(topology, heat, "no slow-down by heat, least of all before any work")
}

/// The card slows itself down and says neither heat nor power brake.
pub(super) fn hardware_slowdown(topology: &Topology) -> Vec<Breach> {
    let reason = ThrottleReasons::HARDWARE_THERMAL | ThrottleReasons::POWER_BRAKE;
    let named = |state: &GpuState| state.condition.throttle.as_ref().is_ok_and(|seen| !(*seen & reason).is_none());
    let expected = "no slow-down by the card: heat, a power brake, or a draw beyond what it allows for a moment";
    each_state(topology, expected, |state| {
        let seen = state.condition.throttle.clone().ok()? & ThrottleReasons::HARDWARE_SLOWDOWN;
        let hold = || format!("its clocks are held: {}, without its reason", seen.names().join(", "));
        (!seen.is_none() && !named(state)).then(hold)
    })
}

/// Less than a second is the moment in which clocks change.
const HELD_US: u64 = 1_000_000;

pub(super) fn was_held(topology: &Topology) -> Vec<Breach> {
    let expected = "none since the driver was loaded (Clocks Event Reasons Counters)";
    each_state(topology, expected, |state| {
        let times = &state.condition.throttled;
        let rows = [("heat", &times.hardware_thermal_us), ("a power brake", &times.power_brake_us)];
        let long = rows.iter().filter_map(|(name, time)| {
            let micro = time.as_ref().ok().copied().filter(|micro| HELD_US <= *micro)?;
            Some(format!("{} s by {name}", micro / 1_000_000))
        });
        let long: Vec<String> = long.collect();
        (!long.is_empty()).then(|| format!("its clocks were held for {}", long.join(" and ")))
    })
}

pub(super) fn clocks_set(topology: &Topology) -> Vec<Breach> {
    throttled(topology, ThrottleReasons::CLOCK_SETTING, "clocks that follow the load; somebody set them")
}

pub(super) fn persistence_off(topology: &Topology) -> Vec<Breach> {
    let expected = "on: otherwise the driver lets go of the GPU between processes (NVIDIA, Driver Persistence)";
    each_state(topology, expected, |state| {
        (state.persistence == Ok(false)).then(|| "persistence mode is off".to_owned())
    })
}

fn watts(milli: u32) -> Watts {
    Watts(f64::from(milli) / 1e3)
}

pub(super) fn limit_lowered(topology: &Topology) -> Vec<Breach> {
    each_state(topology, "the limit that the card was sold with", |state| {
        match (&state.power_limit_mw, &state.power_default_mw) {
            (Ok(limit), Ok(sold)) if limit < sold => {
                Some(format!("its power limit is {}, as sold {}", watts(*limit), watts(*sold)))
            }
            _ => None,
        }
    })
}

/// NVIDIA GPUs by PCI id: a name would differ where the driver tells only some of them.
fn models(topology: &Topology) -> BTreeMap<PciId, Vec<&Gpu>> {
    let mut models: BTreeMap<PciId, Vec<&Gpu>> = BTreeMap::new();
    for gpu in topology.nvidia_gpus() {
        if let Ok(id) = gpu.id {
            models.entry(id).or_default().push(gpu);
        }
    }
    models
}

/// A breach for GPUs of one model of which a fact differs.
fn unlike<T: Ord + Clone>(
    topology: &Topology,
    what: &str,
    fact: impl Fn(&GpuState) -> Reading<T>,
    say: impl Fn(T) -> String,
) -> Vec<Breach> {
    let breach = |gpus: Vec<&Gpu>| {
        let known = gpus.iter().filter_map(|gpu| fact(gpu.nvml.as_ref()?).ok());
        let values: BTreeSet<T> = known.collect();
        let words: Vec<String> = values.into_iter().map(&say).collect();
        (1 < words.len()).then(|| Breach {
            seen: format!("{what} of {} differs: {}", gpus[0].name(), words.join(", ")),
            addresses: addresses(gpus),
            expected: "one value for all: the slowest sets the pace of every step".to_owned(),
        })
    };
    models(topology).into_values().filter_map(breach).collect()
}

pub(super) fn limits_differ(topology: &Topology) -> Vec<Breach> {
    unlike(topology, "the power limit", |state| state.power_limit_mw.clone(), |limit| watts(limit).to_string())
}

pub(super) fn ecc_differs(topology: &Topology) -> Vec<Breach> {
    let word = |on: bool| if on { "on" } else { "off" };
    unlike(topology, "ECC", |state| state.condition.ecc.clone(), |on| word(on).to_owned())
}

pub(super) fn vbios_differs(topology: &Topology) -> Vec<Breach> {
    unlike(topology, "the VBIOS", |state| state.vbios.clone(), |version| version)
}

pub(super) fn models_differ(topology: &Topology) -> Vec<Breach> {
    let models = models(topology);
    if models.len() < 2 {
        return Vec::new();
    }
    let listed: Vec<String> = models.values().map(|gpus| format!("{} × {}", gpus.len(), gpus[0].name())).collect();
    vec![Breach {
        addresses: addresses(topology.nvidia_gpus()),
        seen: listed.join(", "),
        expected: "GPUs of one model: the slowest sets the pace of every step".to_owned(),
    }]
}

pub(super) fn small_window(topology: &Topology) -> Vec<Breach> {
    if topology.nvidia_gpus().count() < 2 || topology.system.virtual_machine == Ok(true) {
        return Vec::new();
    }
    let expected = "a window as large as the memory, so that a peer reaches all of it";
    each(topology, expected, |gpu| {
        // Cards before Ampere, such as the Tesla T4, have a window of 256 MiB and no wider one.
        let state = gpu.nvml.as_ref().filter(|_| gpu.id.as_ref().map_or(true, |id| id.has_wide_window()))?;
        let memory = state.memory_bytes.as_ref().ok()?;
        let told = state.bar1_bytes.as_ref().ok().map(|bytes| (*bytes, "BAR1 (NVML)".to_owned()));
        let seen =
            || gpu.frame_buffer.as_ref().ok().map(|bar| (bar.bytes, format!("region {} (resource)", bar.region)));
        let (window, place) = told.or_else(seen)?;
        (window < *memory).then(|| format!("{place} is {window}, its memory {memory}"))
    })
}

/// `text` of a number that is known and not zero.
fn some(count: &Reading<u32>) -> Option<impl Display> {
    count.as_ref().ok().copied().filter(|count| 0 < *count)
}

pub(super) fn nvlinks_down(topology: &Topology) -> Vec<Breach> {
    each_state(topology, "all NVLinks of a bridged GPU up", |state| {
        let (up, down) = (some(&state.condition.nvlinks_up)?, some(&state.condition.nvlinks_down)?);
        Some(format!("{up} NVLink(s) are up and {down} down"))
    })
}

pub(super) fn nvlink_bridge(topology: &Topology) -> Vec<Breach> {
    let bridged = |gpu: &&Gpu| {
        let up = gpu.nvml.as_ref().map(|state| &state.condition.nvlinks_up);
        matches!(up, Some(Ok(1..)))
    };
    let gpus: Vec<&Gpu> = topology.nvidia_gpus().filter(bridged).collect();
    if gpus.is_empty() {
        return Vec::new();
    }
    let seen = format!("{} GPUs have NVLinks that are up", gpus.len());
    let expected = "traffic over PCIe alone; what goes over NVLink says nothing about PCIe".to_owned();
    vec![Breach { addresses: addresses(gpus), seen, expected }]
}
