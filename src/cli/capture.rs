//! `rigscale capture`: writes down what the machine answers.

use std::fmt;
use std::path::PathBuf;

use clap::Args as ClapArgs;
use serde::Serialize;

use crate::probe::{Live, Recorder, Redactor, probe};
use crate::record::write_whole;

use super::probe::ProbeCommandError;
use super::{Exit, Output};

/// Writes down everything that a probe asks of this machine, so that it can be probed elsewhere
#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:
  rigscale capture machine.jsonl
  rigscale probe --from machine.jsonl    on any other machine, years later")]
pub(super) struct Args {
    /// The file to write
    file: PathBuf,

    /// Keep host and user names, disk identifiers and the whole kernel command line in the file
    #[arg(long)]
    no_redact: bool,
}

#[derive(Serialize)]
struct Captured {
    capture: String,
    answers: usize,
}

impl fmt::Display for Captured {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{}: {} answers", self.capture, self.answers)
    }
}

/// Asks this machine everything and writes the transcript.
///
/// # Errors
/// The machine lists more devices than any has, or the file cannot be written.
pub(super) fn run(args: &Args, out: &Output) -> Result<Exit, ProbeCommandError> {
    let redactor = (!args.no_redact).then(|| Redactor::new(Live::private_words()));
    let machine = Recorder::new(Live::new(), redactor);
    probe(&machine).map_err(ProbeCommandError::Live)?;
    let transcript = machine.transcript()?;
    write_whole(&args.file, transcript.as_bytes())?;
    let answers = transcript.lines().count().saturating_sub(2);
    let names = if args.no_redact { "names and identifiers included" } else { "names and identifiers taken out" };
    out.remark(names);
    let captured = Captured { capture: args.file.display().to_string(), answers };
    out.emit(&captured).map_err(|source| ProbeCommandError::Print { source })?;
    Ok(Exit::Pass)
}
