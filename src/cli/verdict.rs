//! From a run folder to its analysis, its report and an exit code.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::analyze::analyze;
use crate::record::{
    Analysis, Field, Manifest, Outcome, RunFolder, is_there, read_json, read_links, read_text, write_json,
};
use crate::report::{Beside, Machine, SKETCH_FILE, Sketch, Summary, render_with};
use crate::topology::{Topology, YAML_BYTES_MAX, from_yaml};

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

/// Reads the folder and analyzes it; writes nothing.
///
/// # Errors
/// A file cannot be read, or the runs not analyzed.
pub(super) fn judge_folder(folder: &RunFolder) -> Result<Analysis, CliError> {
    let mut files = folder.read()?;
    if let Some(topology) = topology_of(folder)? {
        files.identity = topology.identity().into_iter().map(|(key, value)| Field { key, value }).collect();
    }
    Ok(analyze(&files)?)
}

/// The topology of the machine that a folder is about, where it holds one.
fn topology_of(folder: &RunFolder) -> Result<Option<Topology>, CliError> {
    let path = folder.topology();
    if !is_there(&path)? {
        return Ok(None);
    }
    let text = read_text(&path, YAML_BYTES_MAX as u64)?;
    Ok(Some(from_yaml(&text, &path.display().to_string())?))
}

/// The sketch of the machine that a prediction is about, where its folder holds one.
fn sketch_of(folder: &RunFolder) -> Result<Option<Sketch>, CliError> {
    let path = folder.path().join(SKETCH_FILE);
    Ok(if is_there(&path)? { Some(read_json(&path)?) } else { None })
}

/// Writes `analysis.json`, and its hash into the manifest.
///
/// # Errors
/// A file cannot be written.
pub(super) fn keep_analysis(folder: &RunFolder, analysis: &Analysis) -> Result<(), CliError> {
    write_json(&folder.analysis(), analysis)?;
    Manifest::renew(folder, &["analysis.json"])?;
    Ok(())
}

/// Reads the folder, analyzes it and keeps the analysis. Who has just launched into the folder calls
/// [`Manifest::write`] before: evidence without a manifest, or with an older one, counts as altered.
///
/// # Errors
/// A file cannot be read or written, or the runs not analyzed.
pub(super) fn analyze_folder(folder: &RunFolder) -> Result<Analysis, CliError> {
    let analysis = judge_folder(folder)?;
    keep_analysis(folder, &analysis)?;
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
    let (topology, sketch) = (topology_of(folder)?, sketch_of(folder)?);
    let machine = topology.as_ref().map(Machine::Probed).or(sketch.as_ref().map(Machine::Sketched));
    let links = if is_there(&folder.links())? { Some(read_links(&folder.links())?) } else { None };
    let links = links.as_ref().map(|(head, lines)| (head, lines.as_slice()));
    let rendered = render_with(analyses, Beside { machine, links })?;
    for (name, bytes) in &rendered.files {
        folder.write(name, bytes)?;
    }
    let names: Vec<&str> = rendered.files.iter().map(|(name, _)| name.as_ref()).collect();
    Manifest::renew(folder, &names)?;
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
