//! `rigscale analyze`: judges a run folder again.

use std::path::PathBuf;

use clap::Args as ClapArgs;

use crate::record::RunFolder;

use super::error::chain;
use super::verdict::{Shown, exit_of, judge_folder, keep_analysis};
use super::{CliError, Exit, Output};

/// Computes the efficiency of a run folder again and writes its analysis.json
#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:\n  rigscale analyze reports/2026-11-23T08-09-10Z_my-machine")]
pub(super) struct Args {
    /// Run folder
    #[arg(value_name = "RUN")]
    run: PathBuf,
}

/// Analyzes the folder. A folder that cannot be written to is judged all the same.
///
/// # Errors
/// See [`CliError`].
pub(super) fn run(args: &Args, out: &Output) -> Result<Exit, CliError> {
    let folder = RunFolder::open(&args.run)?;
    let analysis = judge_folder(&folder)?;
    out.emit(&Shown { analysis: &analysis, colour: out.colour() })
        .map_err(|source| CliError::Terminal { attempt: "print the analysis", source })?;
    if let Err(error) = keep_analysis(&folder, &analysis) {
        out.remark(format!("warning: the analysis is not kept: {}", chain(&error)));
    }
    Ok(exit_of(analysis.verdict.outcome))
}
