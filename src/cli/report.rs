//! `rigscale report`: draws the report of one or more run folders again.

use std::path::PathBuf;

use clap::Args as ClapArgs;

use crate::record::{Analysis, Manifest, RecordError, RunFolder, read_json};

use super::verdict::write_reports;
use super::{CliError, Exit, Output};

/// Draws report.html, report.md, charts and junit.xml from the analysis of one or more runs
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  rigscale report reports/A1234
  rigscale report reports/after reports/before     the first foremost, the second beside it")]
pub(super) struct Args {
    /// Run folders that hold an analysis.json; the report goes into the first
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,
}

/// Draws the report. It shows an analysis, so one that was edited is refused; what happened to the evidence since is
/// for the analysis to judge, and is remarked.
///
/// # Errors
/// See [`CliError`].
pub(super) fn run(args: &Args, out: &Output) -> Result<Exit, CliError> {
    let mut folders = Vec::new();
    let mut analyses: Vec<Analysis> = Vec::new();
    for run in &args.runs {
        let folder = RunFolder::open(run)?;
        if !Manifest::vouches_for(&folder, "analysis.json")? {
            return Err(RecordError::Altered { path: folder.analysis() }.into());
        }
        for difference in Manifest::altered(&folder)? {
            out.remark(format!("warning: {}: {difference}; `rigscale analyze` judges it so", run.display()));
        }
        analyses.push(read_json(&folder.analysis())?);
        folders.push(folder);
    }
    let analyses: Vec<&Analysis> = analyses.iter().collect();
    write_reports(&folders[0], &analyses)?;
    out.remark(format!("report: {}", folders[0].path().join("report.html").display()));
    Ok(Exit::Pass)
}
