//! A machine asked and judged, with the transcript of what was asked, ready to be kept.

use std::path::Path;

use miette::Diagnostic;
use thiserror::Error;

use crate::launch::under_load;
use crate::probe::{Live, ProbeError, Recorder, Redactor, judge, probe, unjudged};
use crate::record::{Finding, Findings, LinkLine, LoadLine, RecordError, SCHEMA, Unjudged, write_json, write_whole};
use crate::topology::{Topology, TopologyError, to_yaml};

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

    /// Takes what links showed while their GPUs copied: topology and findings follow from it, and the transcript tells it as
    /// answers under load, so that it gives the same topology when it is probed again.
    pub(super) fn under_load(&mut self, lines: &[LinkLine]) {
        let loads =
            lines.iter().filter_map(|line| if let LinkLine::Load(load) = line { Some(load.clone()) } else { None });
        let loads: Vec<LoadLine> = loads.filter(|load| self.topology.gpu(load.gpu).is_some()).collect();
        let transcript = self.transcript.take().map(|transcript| with_loads(&transcript, &loads));
        *self = Self::of(under_load(self.topology.clone(), &loads), transcript);
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
fn with_loads(transcript: &str, loads: &[LoadLine]) -> String {
    let mut lines: Vec<String> = transcript.lines().map(str::to_owned).collect();
    lines.pop();
    for load in loads {
        let Some(least) = load.least else { continue };
        let (generation, width) = (least.generation.rate(), u64::from(least.width));
        let answers = [
            ("current_link_speed", format!("{generation:.1} GT/s PCIe\n")),
            ("current_link_width", format!("{width}\n")),
        ];
        for (file, answer) in answers {
            let ask = format!("/sys/bus/pci/devices/{}/{file}", load.gpu);
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
    use crate::topology::{Lanes, Phase};

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
}
