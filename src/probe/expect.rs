//! A machine held against a platform: the topology of a unit that is known to be good, for a series of equal builds.

use std::collections::BTreeMap;

use crate::record::{Finding, Severity};
use crate::topology::{Gpu, Missing, PciAddress, PeerAccess, PeerStatus, Reading, Topology};

use super::Breach;
use super::transport::transports;

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Expectation {
    /// Stable code.
    pub code: &'static str,
    /// How grave a difference is.
    pub severity: Severity,
    /// What is compared.
    pub question: &'static str,
    /// What a technician can do about a difference.
    pub remedy: &'static str,
    /// Finds the differences of the first topology from the second, the platform.
    pub check: fn(&Topology, &Topology) -> Vec<Breach>,
}

/// All that `--expect` compares.
pub const EXPECTATIONS: &[Expectation] = &[
    Expectation {
        code: "platform-gpu-count",
        severity: Severity::Fault,
        question: "Are there as many NVIDIA GPUs as on the platform?",
        remedy: "Look which slot is empty or silent: reseat that card and its power cables, check the slot in the BIOS.",
        check: count,
    },
    Expectation {
        code: "platform-gpu-model",
        severity: Severity::Fault,
        question: "Is each GPU the model that the platform has there?",
        remedy: "Swap the card for one of the platform's model, or describe the other platform anew.",
        check: model,
    },
    Expectation {
        code: "platform-link",
        severity: Severity::Fault,
        question: "Does the narrowest hop of each GPU carry what it does on the platform?",
        remedy: "Reseat the card and its riser; set slot speed and bifurcation in the BIOS as on the platform's good unit.",
        check: link,
    },
    Expectation {
        code: "platform-window",
        severity: Severity::Warning,
        question: "Is the window to each GPU's memory as large as on the platform?",
        remedy: "Switch on Above 4G Decoding and Resizable BAR in the BIOS, as on the platform's good unit.",
        check: window,
    },
    Expectation {
        code: "platform-path",
        severity: Severity::Warning,
        question: "Do GPUs lie as near each other as on the platform?",
        remedy: "Put the cards into the slots of the platform's good unit; set NUMA nodes per socket as there.",
        check: path,
    },
    Expectation {
        code: "platform-peer-access",
        severity: Severity::Warning,
        question: "Does the driver grant the peer access that it grants on the platform?",
        remedy: "Compare driver, its settings and BIOS with those of the platform's good unit.",
        check: peer_access,
    },
    Expectation {
        code: "platform-transport",
        severity: Severity::Warning,
        question: "Will NCCL carry data between GPUs as on the platform?",
        remedy: "Compare NCCL's version and settings (environment, ~/.nccl.conf, /etc/nccl.conf), the driver and the slots \
                 with those of the platform's good unit.",
        check: transport,
    },
    Expectation {
        code: "platform-unknown",
        severity: Severity::Warning,
        question: "Is each fact known that the platform has?",
        remedy: "Probe as root, on the host, with the driver loaded: what is unknown is not accepted.",
        check: unknown,
    },
    Expectation {
        code: "platform-version",
        severity: Severity::Note,
        question: "Are driver and BIOS those of the platform?",
        remedy: "Install the versions of the platform's good unit, if the series is to be equal.",
        check: version,
    },
];

impl Expectation {
    /// A difference as a finding.
    pub(super) fn finding(&self, breach: Breach) -> Finding {
        Finding {
            code: self.code.to_owned(),
            severity: self.severity,
            addresses: breach.addresses,
            seen: breach.seen,
            expected: format!("{} (the platform)", breach.expected),
            remedy: self.remedy.to_owned(),
        }
    }
}

/// The row of a code.
pub(super) fn row(code: &str) -> Option<&'static Expectation> {
    EXPECTATIONS.iter().find(|row| row.code == code)
}

/// Holds `topology` against `platform`. The gravest findings come first.
#[must_use]
pub fn differences(topology: &Topology, platform: &Topology) -> Vec<Finding> {
    let mut findings = Vec::new();
    for row in EXPECTATIONS {
        findings.extend((row.check)(topology, platform).into_iter().map(|breach| row.finding(breach)));
    }
    findings.sort_by_key(|finding| finding.severity);
    findings
}

/// Each NVIDIA GPU beside that of the platform: of the same address; else below the same port; the rest in order.
fn pairs<'a>(topology: &'a Topology, platform: &'a Topology) -> Vec<(&'a Gpu, &'a Gpu)> {
    let mut here: Vec<&Gpu> = topology.nvidia_gpus().collect();
    let mut there: Vec<&Gpu> = platform.nvidia_gpus().collect();
    let mut pairs = Vec::new();
    let same: [fn(&Gpu, &Gpu) -> bool; 3] =
        [|a, b| a.address == b.address, |a, b| a.parent.is_some() && a.parent == b.parent, |_, _| true];
    for same in same {
        here.retain(|gpu| {
            let found = there.iter().position(|wanted| same(gpu, wanted));
            pairs.extend(found.map(|place| (*gpu, there.remove(place))));
            found.is_none()
        });
    }
    pairs.sort_by_key(|(gpu, _)| gpu.address);
    pairs
}

/// The address on this machine of a GPU of the platform.
fn here(pairs: &[(&Gpu, &Gpu)], wanted: PciAddress) -> Option<PciAddress> {
    pairs.iter().find(|(_, there)| there.address == wanted).map(|(gpu, _)| gpu.address)
}

fn breach(gpu: &Gpu, seen: String, expected: String) -> Breach {
    Breach { addresses: vec![gpu.address.to_string()], seen: format!("{}: {seen}", gpu.name()), expected }
}

fn count(topology: &Topology, platform: &Topology) -> Vec<Breach> {
    let (found, wanted) = (topology.nvidia_gpus().count(), platform.nvidia_gpus().count());
    match found == wanted {
        true => Vec::new(),
        false => vec![Breach {
            addresses: gone(topology, platform.nvidia_gpus().map(|gpu| gpu.address)),
            seen: format!("{found} NVIDIA GPU(s)"),
            expected: wanted.to_string(),
        }],
    }
}

/// Those of the wanted addresses that hold no NVIDIA GPU here.
pub(super) fn gone(topology: &Topology, wanted: impl Iterator<Item = PciAddress>) -> Vec<String> {
    let here: Vec<PciAddress> = topology.nvidia_gpus().map(|gpu| gpu.address).collect();
    wanted.filter(|address| !here.contains(address)).map(|address| address.to_string()).collect()
}

/// What NCCL will use between the GPUs that stand for a pair of the platform.
fn transport(topology: &Topology, platform: &Topology) -> Vec<Breach> {
    let beside = pairs(topology, platform);
    let found = transports(topology);
    let judged = transports(platform).into_iter().filter_map(|wanted| {
        let (a, b) = (here(&beside, wanted.a)?, here(&beside, wanted.b)?);
        let pair = found.iter().find(|pair| (pair.a, pair.b) == (a.min(b), a.max(b)))?;
        let (carrier, want) = (pair.carrier?, wanted.carrier?);
        (carrier != want).then(|| Breach {
            addresses: vec![pair.a.to_string(), pair.b.to_string()],
            seen: format!("NCCL will use {carrier}: {}", pair.why),
            expected: want.to_string(),
        })
    });
    judged.collect()
}

fn model(topology: &Topology, platform: &Topology) -> Vec<Breach> {
    let unlike = |(gpu, wanted): &(&Gpu, &Gpu)| gpu.id.is_ok() && wanted.id.is_ok() && gpu.id != wanted.id;
    let judged = pairs(topology, platform).into_iter().filter(unlike);
    judged.map(|(gpu, wanted)| breach(gpu, "another model".to_owned(), wanted.name().into_owned())).collect()
}

fn link(topology: &Topology, platform: &Topology) -> Vec<Breach> {
    let judged = pairs(topology, platform).into_iter().filter_map(|(gpu, wanted)| {
        let (found, most) = (gpu.narrowest.as_ref().ok()?.lanes(), wanted.narrowest.as_ref().ok()?.lanes());
        let text = format!("its narrowest hop is {found}");
        (found.rate() < most.rate()).then(|| breach(gpu, text, most.to_string()))
    });
    judged.collect()
}

fn window(topology: &Topology, platform: &Topology) -> Vec<Breach> {
    let judged = pairs(topology, platform).into_iter().filter_map(|(gpu, wanted)| {
        let bytes = |gpu: &Gpu| gpu.nvml.as_ref()?.bar1_bytes.clone().ok();
        let (found, most) = (bytes(gpu)?, bytes(wanted)?);
        (found < most).then(|| breach(gpu, format!("BAR1 is {found}"), most.to_string()))
    });
    judged.collect()
}

fn path(topology: &Topology, platform: &Topology) -> Vec<Breach> {
    let beside = pairs(topology, platform);
    let judged = platform.pairs.iter().filter_map(|wanted| {
        let (a, b) = (here(&beside, wanted.a)?, here(&beside, wanted.b)?);
        let pair = topology.pairs.iter().find(|pair| (pair.a, pair.b) == (a.min(b), a.max(b)))?;
        let (found, nearest) = (pair.path.as_ref().ok()?, wanted.path.as_ref().ok()?);
        (nearest < found).then(|| Breach {
            addresses: vec![pair.a.to_string(), pair.b.to_string()],
            seen: format!("they lie {found} apart"),
            expected: nearest.to_string(),
        })
    });
    judged.collect()
}

fn peer_access(topology: &Topology, platform: &Topology) -> Vec<Breach> {
    let beside = pairs(topology, platform);
    let granted = |status: &Reading<PeerStatus>| *status == Ok(PeerStatus::Ok);
    let refused =
        |status: &Reading<PeerStatus>| status.as_ref().ok().copied().filter(|status| *status != PeerStatus::Ok);
    let judged = platform.peers.iter().filter_map(|wanted: &PeerAccess| {
        let ends = (here(&beside, wanted.from)?, here(&beside, wanted.to)?);
        let peer = topology.peers.iter().find(|peer| (peer.from, peer.to) == ends)?;
        let ways = [("read", &peer.read, &wanted.read), ("write", &peer.write, &wanted.write)];
        let (what, status) =
            ways.into_iter().find_map(|(what, here, there)| Some((what, refused(here).filter(|_| granted(there))?)))?;
        Some(Breach {
            addresses: vec![peer.from.to_string(), peer.to.to_string()],
            seen: format!("to {what}: {status} from {} to {}", peer.from, peer.to),
            expected: "OK".to_owned(),
        })
    });
    judged.collect()
}

/// What the platform knows of a GPU and this machine does not.
fn unknown(topology: &Topology, platform: &Topology) -> Vec<Breach> {
    fn lost<T, U>(found: &Reading<T>, wanted: &Reading<U>) -> Option<Missing> {
        found.as_ref().err().filter(|_| wanted.is_ok()).cloned()
    }
    let mut breaches = Vec::new();
    for (gpu, wanted) in pairs(topology, platform) {
        let mut gone: BTreeMap<&str, Option<Missing>> = BTreeMap::new();
        gone.insert("its model", lost(&gpu.id, &wanted.id));
        gone.insert("the narrowest hop", lost(&gpu.narrowest, &wanted.narrowest));
        if let (Some(here), Some(there)) = (&gpu.nvml, &wanted.nvml) {
            gone.insert("the window to its memory", lost(&here.bar1_bytes, &there.bar1_bytes));
        }
        let known = gone.into_iter().filter_map(|(what, missing)| Some(format!("{what} is unknown: {}", missing?)));
        breaches.extend(known.map(|seen| breach(gpu, seen, "known".to_owned())));
    }
    if topology.peers.len() < platform.peers.len() && topology.nvidia_gpus().count() == platform.nvidia_gpus().count() {
        let seen = "peer access is unknown".to_owned();
        breaches.push(Breach { addresses: Vec::new(), seen, expected: "known for each ordered pair".to_owned() });
    }
    breaches
}

fn version(topology: &Topology, platform: &Topology) -> Vec<Breach> {
    let rows = [
        ("the NVIDIA driver", &topology.nvidia.version, &platform.nvidia.version),
        ("the BIOS", &topology.machine.bios_version, &platform.machine.bios_version),
    ];
    let judged = rows.into_iter().filter_map(|(what, found, wanted)| match (found, wanted) {
        (Ok(found), Ok(wanted)) if found != wanted => Some(Breach {
            addresses: Vec::new(),
            seen: format!("the version of {what} is {found}"),
            expected: wanted.clone(),
        }),
        _ => None,
    });
    judged.collect()
}
