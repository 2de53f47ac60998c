//! A machine asked and judged, with the transcript of what was asked, ready to be kept.

use std::path::Path;

use miette::Diagnostic;
use thiserror::Error;

use crate::probe::{Live, ProbeError, Recorder, Redactor, judge, probe, unjudged};
use crate::record::{Finding, Findings, RecordError, SCHEMA, Unjudged, write_json, write_whole};
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
