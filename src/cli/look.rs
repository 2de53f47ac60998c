//! A machine asked and judged, with the transcript of what was asked, ready to be kept.

use std::collections::BTreeMap;
use std::path::Path;

use miette::Diagnostic;
use thiserror::Error;

use crate::launch::{least_under_load, under_load};
use crate::probe::{Live, ProbeError, Recorder, Redactor, judge, nccl_settings, probe, unjudged};
use crate::record::{
    Device, Finding, Findings, LinkLine, NcclSettings, RecordError, SCHEMA, Severity, Unjudged, write_json, write_whole,
};
use crate::topology::{Lanes, PciAddress, Topology, TopologyError, to_yaml};

/// What a look at a machine gives.
pub(super) struct Look {
    /// The machine.
    pub(super) topology: Topology,
    /// What is wrong with it.
    pub(super) findings: Vec<Finding>,
    /// The rules that could not judge it.
    pub(super) unjudged: Vec<Unjudged>,
    /// Every question and its answer, redacted; none where a topology was all there was to look at.
    pub(super) transcript: Option<String>,
}

/// Why a look failed or could not be kept.
#[derive(Debug, Error, Diagnostic)]
pub(super) enum LookError {
    /// The machine could not be probed.
    #[error("could not probe this machine")]
    Probe(#[from] ProbeError),
    /// The transcript could not be spelled.
    #[error("could not write down what the machine answered")]
    Transcript(#[from] crate::probe::RecordError),
    /// The topology could not be spelled.
    #[error("could not write down the topology")]
    Topology(#[source] Box<TopologyError>),
    /// A file could not be written.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Record(#[from] RecordError),
}

/// The variables of NCCL in this environment, which every rank inherits.
pub(super) fn nccl_variables() -> Vec<(String, String)> {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
    };
    std::env::vars_os().filter_map(text).filter(|(name, _)| name.starts_with("NCCL_")).collect()
}

/// NCCL's variables that hold for every rank before rigscale sets any: of the environment, else of the user's file, else of
/// `/etc/nccl.conf`. What says nothing of how data travel is left out; ranks on CPUs have none.
pub(super) fn nccl_in_force(topology: &Topology, device: Device) -> BTreeMap<String, String> {
    let mut variables: BTreeMap<String, String> = BTreeMap::new();
    if device == Device::Cpu {
        return variables;
    }
    variables.extend(nccl_variables());
    for setting in nccl_settings(topology) {
        variables.entry(setting.name.to_owned()).or_insert_with(|| setting.value.to_owned());
    }
    let harmless = |name: &str| name.starts_with("NCCL_DEBUG") || ["NCCL_VERSION", "NCCL_CONF_FILE"].contains(&name);
    variables.retain(|name, _| name.starts_with("NCCL_") && !harmless(name));
    variables
}

impl Look {
    /// A topology judged.
    pub(super) fn of(topology: Topology, transcript: Option<String>) -> Self {
        let (findings, unjudged) = (judge(&topology), unjudged(&topology));
        Self { topology, findings, unjudged, transcript }
    }

    /// Asks this machine everything.
    ///
    /// # Errors
    /// The machine lists more devices than any has.
    pub(super) fn live() -> Result<Self, LookError> {
        let machine = Recorder::new(Live::new(), Some(Redactor::new(Live::private_words())));
        let topology = probe(&machine)?;
        let transcript = Some(machine.transcript()?);
        Ok(Self::of(topology, transcript))
    }

    /// What is wrong with the settings of NCCL that ranks will find, those that rigscale is to set (`--nccl`) among them, by the
    /// rules of the probe; nothing for ranks on CPUs.
    pub(super) fn told(&self, nccl: &NcclSettings, device: Device) -> Vec<Finding> {
        if device == Device::Cpu {
            return Vec::new();
        }
        let mut topology = self.topology.clone();
        let mut lines: Vec<String> = nccl.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
        lines.extend(topology.software.nccl_environment.iter().flatten().cloned());
        topology.software.nccl_environment = Ok(lines);
        let of_settings = |it: &Finding| it.code.starts_with("nccl-") && it.severity != Severity::Note;
        let rules = ["nccl-setting-ignored", "nccl-ll128-forced", "nccl-p2p-off"];
        judge(&topology).into_iter().filter(|it| of_settings(it) && rules.contains(&it.code.as_str())).collect()
    }

    /// Takes what links showed while GPUs copied: topology and findings follow from it, and the transcript tells it as
    /// answers under load, so that it gives the same topology when it is probed again.
    pub(super) fn under_load(&mut self, lines: &[LinkLine]) {
        let known = |at: PciAddress| self.topology.gpu(at).is_some() || self.topology.bridge(at).is_some();
        let least: Vec<_> = least_under_load(lines).into_iter().filter(|(at, _)| known(*at)).collect();
        let transcript = self.transcript.take().map(|transcript| with_loads(&transcript, &least));
        *self = Self::of(under_load(self.topology.clone(), &least), transcript);
    }

    /// Writes `topology.yaml`, `findings.json` and `machine.jsonl` into a folder.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(super) fn write(&self, folder: &Path) -> Result<(), LookError> {
        let text = to_yaml(&self.topology).map_err(|error| LookError::Topology(Box::new(error)))?;
        let rigscale = env!("CARGO_PKG_VERSION").to_owned();
        let findings =
            Findings { schema: SCHEMA, rigscale, findings: self.findings.clone(), unjudged: self.unjudged.clone() };
        write_whole(&folder.join("topology.yaml"), text.as_bytes())?;
        write_json(&folder.join("findings.json"), &findings)?;
        if let Some(transcript) = &self.transcript {
            write_whole(&folder.join("machine.jsonl"), transcript.as_bytes())?;
        }
        Ok(())
    }
}

/// A transcript with what links showed under load before its last line, which counts the answers.
fn with_loads(transcript: &str, all: &[(PciAddress, Lanes)]) -> String {
    let mut lines: Vec<String> = transcript.lines().map(str::to_owned).collect();
    lines.pop();
    for (at, least) in all {
        let (generation, width) = (least.generation.rate(), u64::from(least.width));
        let answers = [
            ("current_link_speed", format!("{generation:.1} GT/s PCIe\n")),
            ("current_link_width", format!("{width}\n")),
        ];
        for (file, answer) in answers {
            let ask = format!("/sys/bus/pci/devices/{at}/{file}");
            lines.push(serde_json::json!({"ask": {"file": ask}, "phase": "under_load", "answer": answer}).to_string());
        }
    }
    lines.push(serde_json::json!({"answers": lines.len() - 1}).to_string());
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::Captured;
    use crate::record::{LoadLine, UplinkLine};
    use crate::topology::Phase;

    /// A machine that is in order at rest, with a link that fell to Gen2 under load.
    #[test]
    fn a_link_that_is_slow_under_load_is_a_fault_in_topology_and_transcript() {
        let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/machines/threadripper-4gpu/machine.jsonl");
        let text = std::fs::read_to_string(place).unwrap();
        let topology = probe(&Captured::parse(&text, "machine.jsonl").unwrap()).unwrap();
        let slow = |findings: &[Finding]| findings.iter().filter(|one| one.code == "pcie-slow-under-load").count();
        let mut look = Look::of(topology, Some(text));
        assert_eq!(slow(&look.findings), 0, "at rest a speed is no fault");
        let load = |gpu: &crate::topology::Gpu, generation: u64| LoadLine {
            gpu: gpu.address,
            at_rest: None,
            least: gpu.link.max().ok().map(|max| Lanes { generation: generation.try_into().unwrap(), ..max }),
            most: None,
            last: None,
            samples: 9,
            p_state: Some(0),
            throttle: None,
            replays: None,
        };
        let gpus: Vec<_> = look.topology.nvidia_gpus().cloned().collect();
        look.under_load(&[LinkLine::Load(load(&gpus[0], 2))]);
        assert_eq!(
            (slow(&look.findings), look.topology.gpu(gpus[0].address).unwrap().link.phase),
            (1, Phase::UnderLoad)
        );
        let again = probe(&Captured::parse(look.transcript.as_ref().unwrap(), "machine.jsonl").unwrap()).unwrap();
        assert_eq!(again, look.topology, "the transcript tells the same");
        let full = u64::from(gpus[0].link.max().unwrap().generation);
        look.under_load(&[LinkLine::Load(LoadLine { gpu: "0000:99:00.0".parse().unwrap(), ..load(&gpus[0], full) })]);
        assert_eq!(slow(&look.findings), 1, "a GPU that the probe does not know changes nothing");
    }

    /// The uplink of a switch that falls while the links of the GPUs below it stay.
    #[test]
    fn a_switch_whose_uplink_falls_under_load_is_a_fault_of_the_ports() {
        let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/machines/switch-4gpu/machine.jsonl");
        let text = std::fs::read_to_string(place).unwrap();
        let topology = probe(&Captured::parse(&text, "machine.jsonl").unwrap()).unwrap();
        let gpus: Vec<_> = topology.nvidia_gpus().map(|gpu| gpu.address).collect();
        let lanes =
            |generation: u64| Lanes { generation: generation.try_into().unwrap(), width: 16.try_into().unwrap() };
        let uplink = |generation| UplinkLine {
            upper: "0000:00:01.1".parse().unwrap(),
            lower: "0000:01:00.0".parse().unwrap(),
            gpus: gpus.clone(),
            at_rest: Some(lanes(5)),
            least: Some(lanes(generation)),
            most: Some(lanes(5)),
            last: Some(lanes(5)),
            samples: 75,
        };
        let slow = |generation| {
            let mut look = Look::of(topology.clone(), Some(text.clone()));
            look.under_load(&[LinkLine::Uplink(uplink(generation))]);
            let again = probe(&Captured::parse(look.transcript.as_ref().unwrap(), "machine.jsonl").unwrap()).unwrap();
            assert_eq!(again, look.topology, "the transcript tells the same");
            look.findings.into_iter().filter(|one| one.code == "pcie-slow-under-load").collect::<Vec<_>>()
        };
        assert_eq!(slow(5), []);
        let [fault] = &slow(3)[..] else { panic!("one link") };
        assert_eq!(fault.addresses.len(), 6, "two ports and the GPUs below them: {:?}", fault.addresses);
        assert!(fault.seen.contains("between 0000:00:01.1 and 0000:01:00.0 ran at Gen3"), "{}", fault.seen);
    }
}
