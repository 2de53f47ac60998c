//! Rules about GPUs, their drivers and the links above them.

use std::collections::BTreeMap;

use crate::topology::{Bridge, Gpu, Hop, PciAddress, Phase, Topology, Why};

use super::Breach;

/// The links above a GPU, outermost first; none in a virtual machine, whose ports offer what the hypervisor made up.
pub(super) fn judged_hops<'a>(topology: &'a Topology, gpu: &'a Gpu) -> Vec<Hop<'a>> {
    match topology.system.virtual_machine {
        Ok(true) => Vec::new(),
        _ => topology.hops(gpu),
    }
}

/// Every link above every NVIDIA GPU, each once.
pub(super) fn nvidia_hops(topology: &Topology) -> BTreeMap<PciAddress, (Hop<'_>, Vec<&Gpu>)> {
    let mut hops: BTreeMap<PciAddress, (Hop<'_>, Vec<&Gpu>)> = BTreeMap::new();
    for gpu in topology.nvidia_gpus() {
        for hop in judged_hops(topology, gpu) {
            hops.entry(hop.lower).or_insert_with(|| (hop, Vec::new())).1.push(gpu);
        }
    }
    hops
}

/// The ends of a link and the GPUs below it, each address once.
fn addresses(hop: &Hop<'_>, gpus: &[&Gpu]) -> Vec<String> {
    let mut all = vec![hop.upper, hop.lower];
    all.extend(gpus.iter().map(|gpu| gpu.address).filter(|address| *address != hop.lower));
    all.iter().map(ToString::to_string).collect()
}

/// What people call the device at `address`.
pub(super) fn named(topology: &Topology, address: PciAddress) -> String {
    let bridge = || topology.bridge(address).and_then(|bridge| bridge.id.as_ref().ok()).and_then(|id| id.name());
    match topology.gpu(address) {
        Some(gpu) => format!("{} at {address}", gpu.name()),
        None => format!("{} at {address}", bridge().unwrap_or("the bridge")),
    }
}

pub(super) fn driver_missing(topology: &Topology) -> Vec<Breach> {
    let breach = |gpu: &Gpu, seen: String| Breach {
        addresses: vec![gpu.address.to_string()],
        seen: format!("{}: {seen}", gpu.name()),
        expected: "held by the kernel driver `nvidia`, without which CUDA cannot use it".to_owned(),
    };
    let judged = topology.nvidia_gpus().filter_map(|gpu| match &gpu.driver {
        Ok(driver) if driver == "nvidia" => None,
        Ok(driver) => Some(breach(gpu, format!("the kernel driver `{driver}` holds it"))),
        Err(missing) if missing.why == Why::Absent => Some(breach(gpu, "no kernel driver holds it".to_owned())),
        Err(_) => None,
    });
    judged.collect()
}

pub(super) fn slow_under_load(topology: &Topology) -> Vec<Breach> {
    let judged = nvidia_hops(topology).into_values().filter_map(|(hop, gpus)| {
        let busy = [hop.lower_end, hop.upper_end].into_iter().find(|end| end.phase == Phase::UnderLoad)?;
        let (now, max) = (busy.gen_now.as_ref().ok()?, hop.max().ok()?);
        (*now < max.generation).then(|| Breach {
            addresses: addresses(&hop, &gpus),
            seen: format!("under load the link between {} and {} ran at {now}", hop.upper, hop.lower),
            expected: format!("{}, which both ends offer (max_link_speed)", max.generation),
        })
    });
    judged.collect()
}

pub(super) fn narrow_link(topology: &Topology) -> Vec<Breach> {
    let judged = nvidia_hops(topology).into_values().filter_map(|(hop, gpus)| {
        // An idle GPU slows its link down and keeps its lanes (voipmonitor/rtx6kpro: Gen1 x16 on eight of eight).
        let (now, max) = (hop.width_now().ok()?, hop.max().ok()?);
        (now < max.width).then(|| Breach {
            addresses: addresses(&hop, &gpus),
            seen: format!("the link between {} and {} uses {now} (current_link_width)", hop.upper, hop.lower),
            expected: format!("{}, which both ends offer (max_link_width)", max.width),
        })
    });
    judged.chain(topology.nvidia_gpus().filter_map(|gpu| narrow_by_driver(topology, gpu))).collect()
}

/// What the driver says of a GPU of which no link is told, as `nvidia-smi -q` does.
fn narrow_by_driver(topology: &Topology, gpu: &Gpu) -> Option<Breach> {
    let untold = gpu.narrowest.as_ref().is_err_and(|missing| missing.is_untold());
    let state = gpu.nvml.as_ref().filter(|_| untold && topology.system.virtual_machine != Ok(true))?;
    let (now, max) = (state.width_now.as_ref().ok()?, state.width_max.as_ref().ok()?);
    (now < max).then(|| Breach {
        addresses: vec![gpu.address.to_string()],
        seen: format!("{}: the driver says that its link uses {now} (Link Width, Current)", gpu.name()),
        expected: format!("{max} (Link Width, Max)"),
    })
}

pub(super) fn chipset_slot(topology: &Topology) -> Vec<Breach> {
    let of_chipset = |bridge: &&Bridge| bridge.id.as_ref().is_ok_and(|id| id.is_chipset());
    let judged = topology.nvidia_gpus().filter_map(|gpu| {
        let bridge = topology.chain(gpu).into_iter().find(of_chipset)?;
        let narrowest = match &gpu.narrowest {
            Ok(hop) => format!("; its narrowest hop is {}", hop.lanes()),
            Err(_) => String::new(),
        };
        Some(Breach {
            addresses: vec![gpu.address.to_string(), bridge.address.to_string()],
            seen: format!("{} hangs off the chipset: {}{narrowest}", gpu.name(), named(topology, bridge.address)),
            expected: "a root port of the CPU; a chipset shares its uplink with disks and network".to_owned(),
        })
    });
    judged.collect()
}

pub(super) fn narrow_uplink(topology: &Topology) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for gpu in topology.nvidia_gpus() {
        let hops = judged_hops(topology, gpu);
        let Some((own, above)) = hops.split_last() else { continue };
        let Ok(offered) = own.awake() else { continue };
        for hop in above {
            let Ok(lanes) = hop.awake() else { continue };
            if lanes.rate() < offered.rate() {
                breaches.push(Breach {
                    addresses: [hop.upper, hop.lower, gpu.address].iter().map(ToString::to_string).collect(),
                    seen: format!("the link between {} and {} carries {lanes}", hop.upper, hop.lower),
                    expected: format!("at least {offered}, the link of {} itself", gpu.name()),
                });
            }
        }
    }
    breaches
}

pub(super) fn slot_below_card(topology: &Topology) -> Vec<Breach> {
    let judged = topology.nvidia_gpus().filter_map(|gpu| {
        let hops = judged_hops(topology, gpu);
        let own = hops.last()?;
        let (slot, card) = (own.upper_end.max().ok()?, own.lower_end.max().ok()?);
        (slot.common(card) != card).then(|| Breach {
            addresses: vec![gpu.address.to_string(), own.upper.to_string()],
            seen: format!("the slot at {} offers {slot} (max_link_speed, max_link_width)", own.upper),
            expected: format!("{card}, the most that {} can do", gpu.name()),
        })
    });
    judged.collect()
}

pub(super) fn shared_uplink(topology: &Topology) -> Vec<Breach> {
    let shared = nvidia_hops(topology).into_values().filter(|(_, gpus)| 1 < gpus.len());
    let breach = |(hop, gpus): (Hop<'_>, Vec<&Gpu>)| Breach {
        addresses: addresses(&hop, &gpus),
        seen: format!("{} GPUs share the link between {} and {}", gpus.len(), hop.upper, hop.lower),
        expected: "a link to the CPU for each GPU".to_owned(),
    };
    shared.map(breach).collect()
}

pub(super) fn link_unknown(topology: &Topology) -> Vec<Breach> {
    let judged = topology.nvidia_gpus().filter_map(|gpu| {
        let missing = gpu.narrowest.as_ref().err().filter(|missing| !missing.is_untold())?;
        // One that does not answer has a rule of its own: root would see no more.
        (gpu.pcie.responds != Ok(false)).then(|| Breach {
            addresses: vec![gpu.address.to_string()],
            seen: format!("{}: {missing}", gpu.name()),
            expected: "speed and width of both ends of each link (max_link_speed, max_link_width)".to_owned(),
        })
    });
    judged.collect()
}

pub(super) fn unreadable(topology: &Topology) -> Vec<Breach> {
    let expected = "the class of every function in /sys/bus/pci/devices".to_owned();
    let mut breaches = Vec::new();
    if let Err(missing) = topology.pci_functions.as_ref() {
        // A machine without PCI is no mystery, and an imported text that lists GPUs only hides nothing.
        if missing.why != Why::Absent && !missing.is_untold() {
            let seen = format!("the list of PCI functions: {missing}");
            breaches.push(Breach { addresses: Vec::new(), seen, expected: expected.clone() });
        }
    }
    if !topology.unknown_devices.is_empty() {
        breaches.push(Breach {
            addresses: topology.unknown_devices.iter().map(ToString::to_string).collect(),
            seen: format!("the class of {} PCI function(s) could not be read", topology.unknown_devices.len()),
            expected,
        });
    }
    breaches
}
