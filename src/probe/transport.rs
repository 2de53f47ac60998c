//! How NCCL will carry data between two GPUs, by NCCL's own rule and the settings in force (NCCL 2.30.7,
//! `ncclTopoCheckP2p` in src/graph/paths.cc; settings: src/misc/param.cc).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::topology::{Missing, Pair, PathClass, PciAddress, PeerStatus, Reading, Topology, Version};

/// From this version on, GPUs across host bridges exchange through host memory by default (release notes of 2.23.4).
const STAGES_ACROSS_BRIDGES: Version = Version(2, 23, 4);

/// Where a setting of NCCL stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SetIn {
    /// The environment of the program.
    Environment,
    /// The file that `NCCL_CONF_FILE` names, else `~/.nccl.conf`.
    UserConf,
    /// `/etc/nccl.conf`.
    SystemConf,
}

impl fmt::Display for SetIn {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::Environment => "the environment",
            Self::UserConf => "NCCL_CONF_FILE or ~/.nccl.conf",
            Self::SystemConf => "/etc/nccl.conf",
        })
    }
}

/// One setting of NCCL. Blanks count: NCCL takes them for part of the name or of the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NcclSetting<'a> {
    /// Before the first `=`.
    pub name: &'a str,
    /// After it.
    pub value: &'a str,
    /// Where it stands.
    pub set_in: SetIn,
}

/// All settings of NCCL, those that win first. A machine without an NVIDIA GPU has none.
#[must_use]
pub fn nccl_settings(topology: &Topology) -> Vec<NcclSetting<'_>> {
    let sources = [
        (SetIn::Environment, &topology.software.nccl_environment),
        (SetIn::UserConf, &topology.software.nccl_user_conf),
        (SetIn::SystemConf, &topology.settings.nccl_conf),
    ];
    let mut settings = Vec::new();
    for (set_in, lines) in sources.into_iter().filter(|_| topology.has_nvidia_gpu()) {
        let lines = lines.as_ref().map_or(&[] as &[String], Vec::as_slice);
        let split = lines.iter().filter_map(|line| line.split_once('='));
        settings.extend(split.map(|(name, value)| NcclSetting { name, value, set_in }));
    }
    settings
}

/// The setting of this name that NCCL obeys.
#[must_use]
pub fn nccl_setting<'a>(topology: &'a Topology, name: &str) -> Option<NcclSetting<'a>> {
    nccl_settings(topology).into_iter().find(|setting| setting.name == name)
}

/// True where a switch of NCCL is on: any number but 0.
pub(super) fn is_on(topology: &Topology, name: &str) -> bool {
    nccl_setting(topology, name).is_some_and(|setting| setting.value.trim().parse::<i64>().is_ok_and(|on| on != 0))
}

/// How far apart GPUs may lie to reach each other directly, as NCCL counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Never,
    Nvlink,
    Pix,
    Pxb,
    Phb,
    Sys,
}

impl Level {
    /// The names of `NCCL_P2P_LEVEL`, and the numbers of old (`ncclGetLevel` in src/graph/paths.cc).
    fn named(text: &str) -> Option<Self> {
        Some(match text {
            "LOC" | "0" => Self::Never,
            "NVL" => Self::Nvlink,
            "PIX" | "1" => Self::Pix,
            "PXB" | "2" => Self::Pxb,
            "PHB" | "3" => Self::Phb,
            "SYS" => Self::Sys,
            number if number.parse::<u32>().is_ok_and(|number| 4 <= number) => Self::Sys,
            _ => return None,
        })
    }

    /// NCCL knows NUMA nodes, not host bridges: two of one node are as one.
    fn of(path: PathClass) -> Self {
        match path {
            PathClass::Pix => Self::Pix,
            PathClass::Pxb => Self::Pxb,
            PathClass::Phb | PathClass::Node => Self::Phb,
            PathClass::Sys => Self::Sys,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::Never => "LOC",
            Self::Nvlink => "NVL",
            Self::Pix => "PIX",
            Self::Pxb => "PXB",
            Self::Phb => "PHB",
            Self::Sys => "SYS",
        })
    }
}

/// The level in force and who decided on it.
fn level(topology: &Topology) -> Reading<(Level, String)> {
    if let Some(setting) = nccl_setting(topology, "NCCL_P2P_DISABLE").filter(|_| is_on(topology, "NCCL_P2P_DISABLE")) {
        return Ok((Level::Never, format!("NCCL_P2P_DISABLE={} in {}", setting.value, setting.set_in)));
    }
    if let Some(setting) = nccl_setting(topology, "NCCL_P2P_LEVEL")
        && let Some(level) = Level::named(setting.value)
    {
        return Ok((level, format!("NCCL_P2P_LEVEL={} in {}", setting.value, setting.set_in)));
    }
    if topology.software.nccl.as_ref().is_ok_and(|version| *version < STAGES_ACROSS_BRIDGES) {
        return Ok((Level::Sys, "NCCL's default before 2.23.4".to_owned()));
    }
    let amd = topology.cpu.model.as_ref().map(|model| model.starts_with("AMD")).map_err(Clone::clone)?;
    Ok(match amd && topology.nvidia_gpus().count() <= 2 {
        true => (Level::Sys, "NCCL's default for two GPUs on AMD".to_owned()),
        false => (Level::Pxb, "NCCL's default".to_owned()),
    })
}

/// What carries data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Carrier {
    /// NVLink.
    Nvlink,
    /// One GPU reaches the other's memory over PCIe.
    Peer,
    /// Memory of the host, which both reach.
    HostMemory,
    /// Sockets, as where shared memory is switched off.
    Network,
}

impl fmt::Display for Carrier {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::Nvlink => "NVLink",
            Self::Peer => "peer access over PCIe",
            Self::HostMemory => "host memory",
            Self::Network => "the network of this host",
        })
    }
}

/// What NCCL will do between two GPUs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Predicted {
    /// One GPU.
    pub a: PciAddress,
    /// The other.
    pub b: PciAddress,
    /// What will carry their data; none where a fact is missing that decides.
    pub carrier: Option<Carrier>,
    /// Which rule decides, or which fact is missing.
    pub why: String,
}

/// What NCCL will do between each pair of NVIDIA GPUs.
#[must_use]
pub fn transports(topology: &Topology) -> Vec<Predicted> {
    let nvidia = |address| topology.gpu(address).is_some_and(|gpu| gpu.is_nvidia());
    let pairs = topology.pairs.iter().filter(|pair| nvidia(pair.a) && nvidia(pair.b));
    let predicted = |pair: &Pair| {
        let (carrier, why) = match carrier(topology, pair) {
            Ok((carrier, why)) => (Some(carrier), why),
            Err(missing) => (None, missing.to_string()),
        };
        Predicted { a: pair.a, b: pair.b, carrier, why }
    };
    pairs.map(predicted).collect()
}

fn carrier(topology: &Topology, pair: &Pair) -> Reading<(Carrier, String)> {
    let known = level(topology);
    // Whatever the processor is, NCCL's default reaches PXB.
    let (level, decided) = known.clone().unwrap_or_else(|_| (Level::Pxb, "NCCL's default".to_owned()));
    if topology.is_bridged(pair.a, pair.b) && Level::Nvlink <= level {
        return Ok((Carrier::Nvlink, "the GPUs are joined by NVLink".to_owned()));
    }
    let aside = |why: String| match is_on(topology, "NCCL_SHM_DISABLE") {
        true => (Carrier::Network, format!("{why}; NCCL_SHM_DISABLE is set")),
        false => (Carrier::HostMemory, why),
    };
    if level <= Level::Nvlink {
        return Ok(aside(decided));
    }
    let path = pair.path.clone()?;
    if level < Level::of(path) {
        known?;
        return Ok(aside(format!("{path} is beyond {level}, {decided}")));
    }
    match grant(topology, pair)? {
        PeerStatus::Ok => Ok((Carrier::Peer, format!("{path} is within {level}, {decided}; the driver grants it"))),
        refused => Ok(aside(format!("the driver answers {refused}"))),
    }
}

/// The worst answer of the driver to reading and writing, in both directions.
fn grant(topology: &Topology, pair: &Pair) -> Reading<PeerStatus> {
    let mut worst = PeerStatus::Ok;
    for (from, to) in [(pair.a, pair.b), (pair.b, pair.a)] {
        let peer = topology.peers.iter().find(|peer| (peer.from, peer.to) == (from, to));
        let peer = peer.ok_or_else(|| Missing::untold("what is known of peer access"))?;
        // A text may hold one of the two answers; it is as good as both.
        let answers = match (&peer.read, &peer.write) {
            (Ok(read), Ok(write)) => [*read, *write],
            (Ok(one), Err(missing)) | (Err(missing), Ok(one)) if missing.is_untold() => [*one, *one],
            (Err(missing), _) | (_, Err(missing)) => return Err(missing.clone()),
        };
        worst = answers.into_iter().chain([worst]).max().unwrap_or(worst);
    }
    Ok(worst)
}
