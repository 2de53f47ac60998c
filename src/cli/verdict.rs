//! From a run folder to its analysis, its report and an exit code.

use std::fmt;
use std::fs;

use serde::{Serialize, Serializer};

use crate::analyze::analyze;
use crate::record::{Analysis, Field, Manifest, Outcome, RecordError, RunFolder, read_text, write_json, write_whole};
use crate::report::{Summary, render};
use crate::topology::{YAML_BYTES_MAX, from_yaml};

use super::{CliError, Exit};

/// An analysis as a person or a program reads it.
pub(super) struct Shown<'a> {
    /// The analysis.
    pub(super) analysis: &'a Analysis,
    /// With colour.
    pub(super) colour: bool,
}

impl Serialize for Shown<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.analysis.serialize(serializer)
    }
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        Summary { analysis: self.analysis, colour: self.colour }.fmt(out)
    }
}

/// Reads the folder, analyzes it and writes `analysis.json`.
///
/// # Errors
/// A file cannot be read, or the runs not analyzed.
pub(super) fn analyze_folder(folder: &RunFolder) -> Result<Analysis, CliError> {
    let mut files = folder.read()?;
    if folder.topology().exists() {
        let path = folder.topology();
        let text = read_text(&path, YAML_BYTES_MAX as u64)?;
        let topology = from_yaml(&text, &path.display().to_string())?;
        files.identity = topology.identity().into_iter().map(|(key, value)| Field { key, value }).collect();
    }
    let analysis = analyze(&files)?;
    write_json(&folder.analysis(), &analysis)?;
    Manifest::write(folder)?;
    Ok(analysis)
}

/// Draws the report of one run into its own folder.
///
/// # Errors
/// The report cannot be drawn or written.
pub(super) fn write_report(folder: &RunFolder, analysis: &Analysis) -> Result<(), CliError> {
    write_reports(folder, &[analysis])
}

/// Draws the report of several runs, the first one foremost, into `folder`.
///
/// # Errors
/// The report cannot be drawn or written.
pub(super) fn write_reports(folder: &RunFolder, analyses: &[&Analysis]) -> Result<(), CliError> {
    let rendered = render(analyses)?;
    for (name, bytes) in &rendered.files {
        let path = folder.path().join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|source| RecordError::File {
                attempt: "create the folder",
                path: parent.into(),
                source,
            })?;
        }
        write_whole(&path, bytes)?;
    }
    Manifest::write(folder)?;
    Ok(())
}

/// The exit code of a verdict.
#[must_use]
pub(super) fn exit_of(outcome: Outcome) -> Exit {
    match outcome {
        Outcome::Pass => Exit::Pass,
        Outcome::Fail => Exit::BelowTarget,
        Outcome::Fault => Exit::Fault,
        Outcome::Hang => Exit::Hang,
        Outcome::Inconclusive | Outcome::NotGraded | Outcome::Interrupted => Exit::Inconclusive,
    }
}
