//! A machine asked and judged, with the transcript of what was asked, ready to be kept.

use std::path::Path;

use miette::Diagnostic;
use thiserror::Error;

use crate::probe::{Live, ProbeError, Recorder, Redactor, judge, probe};
use crate::record::{Finding, Findings, RecordError, SCHEMA, read_text, write_json, write_whole};
use crate::topology::{Topology, TopologyError, to_yaml};
use crate::tune::{Source, ll128_sources, parse_conf};

/// What a look at a machine gives.
pub(super) struct Look {
    /// The machine.
    pub(super) topology: Topology,
    /// What is wrong with it.
    pub(super) findings: Vec<Finding>,
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

/// No file of settings is larger.
const CONF_BYTES_MAX: u64 = 1 << 20;

/// Where NCCL takes variables from for this user, in its order: the environment, the user's file, that of the machine. A
/// path is not told, as it may hold a name.
fn user_sources(topology: &Topology) -> Vec<Source> {
    let named = std::env::var_os("NCCL_CONF_FILE").filter(|path| !path.is_empty());
    let (name, path) = match (named, std::env::var_os("HOME")) {
        (Some(path), _) => ("the file that NCCL_CONF_FILE names", Some(path.into())),
        (None, home) => ("~/.nccl.conf", home.map(|home| Path::new(&home).join(".nccl.conf"))),
    };
    let own = path.and_then(|path| read_text(&path, CONF_BYTES_MAX).ok());
    let of_machine = topology.settings.nccl_conf.as_ref().map_or_else(|_| String::new(), |lines| lines.join("\n"));
    vec![
        Source { name: "the environment".into(), settings: nccl_variables() },
        Source { name: name.into(), settings: parse_conf(&own.unwrap_or_default()) },
        Source { name: "/etc/nccl.conf".into(), settings: parse_conf(&of_machine) },
    ]
}

/// The variables of NCCL in this environment, which every rank inherits.
pub(super) fn nccl_variables() -> Vec<(String, String)> {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
    };
    std::env::vars_os().filter_map(text).filter(|(name, _)| name.starts_with("NCCL_")).collect()
}

impl Look {
    /// Asks this machine everything.
    ///
    /// # Errors
    /// The machine lists more devices than any has.
    pub(super) fn live() -> Result<Self, LookError> {
        let machine = Recorder::new(Live::new(), Some(Redactor::new(Live::private_words())));
        let topology = probe(&machine)?;
        let mut findings = judge(&topology);
        if topology.has_nvidia_gpu() {
            let known = |code: &str| findings.iter().any(|finding| finding.code == code);
            let own = ll128_sources(&user_sources(&topology)).filter(|finding| !known(&finding.code));
            findings.extend(own);
        }
        let transcript = Some(machine.transcript()?);
        Ok(Self { topology, findings, transcript })
    }

    /// Writes `topology.yaml`, `findings.json` and `machine.jsonl` into a folder.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(super) fn write(&self, folder: &Path) -> Result<(), LookError> {
        let text = to_yaml(&self.topology).map_err(|error| LookError::Topology(Box::new(error)))?;
        let rigscale = env!("CARGO_PKG_VERSION").to_owned();
        let findings = Findings { schema: SCHEMA, rigscale, findings: self.findings.clone() };
        write_whole(&folder.join("topology.yaml"), text.as_bytes())?;
        write_json(&folder.join("findings.json"), &findings)?;
        if let Some(transcript) = &self.transcript {
            write_whole(&folder.join("machine.jsonl"), transcript.as_bytes())?;
        }
        Ok(())
    }
}
