//! `rigscale analyze`: judges a run folder again.

use std::path::PathBuf;

use clap::Args as ClapArgs;

use crate::record::{Manifest, RunFolder};

use super::verdict::{Shown, analyze_folder, exit_of};
use super::{CliError, Exit, Output};

/// Computes the efficiency of a run folder again and writes its analysis.json
#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:\n  rigscale analyze reports/2026-11-23T08-09-10Z_my-machine")]
pub(super) struct Args {
    /// Run folder
    #[arg(value_name = "RUN")]
    run: PathBuf,
}

/// Analyzes the folder.
///
/// # Errors
/// See [`CliError`].
pub(super) fn run(args: &Args, out: &Output) -> Result<Exit, CliError> {
    let folder = RunFolder::open(&args.run)?;
    for difference in Manifest::differences(&folder)? {
        out.remark(format!("warning: {difference} since the manifest was written"));
    }
    let analysis = analyze_folder(&folder)?;
    out.emit(&Shown { analysis: &analysis, colour: out.colour() })
        .map_err(|source| CliError::Terminal { attempt: "print the analysis", source })?;
    Ok(exit_of(analysis.verdict.outcome))
}
