//! `rigscale report`: draws the report of one or more run folders again.

use std::fmt;
use std::path::PathBuf;

use clap::Args as ClapArgs;
use serde::Serialize;

use crate::record::{Analysis, Manifest, RecordError, RunFolder, is_there, read_json};

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

#[derive(Serialize)]
struct Drawn {
    report: String,
    runs: usize,
}

impl fmt::Display for Drawn {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{}", self.report)
    }
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
        if !is_there(&folder.analysis())? {
            let run = run.display();
            return Err(CliError::Usage(format!("{run} holds no analysis.json: `rigscale analyze {run}` makes it")));
        }
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
    let drawn = Drawn { report: folders[0].path().join("report.html").display().to_string(), runs: analyses.len() };
    out.emit(&drawn).map_err(|source| CliError::Terminal { attempt: "name the report", source })?;
    Ok(Exit::Pass)
}
