//! Why a machine could not be probed, captured or shown.

use std::io;
use std::path::PathBuf;

use miette::Diagnostic;
use thiserror::Error;

use crate::cli::Exit;
use crate::cli::look::LookError;
use crate::predict::PredictError;
use crate::probe::import::ImportError;
use crate::probe::{CaptureError, ProbeError};
use crate::record::RecordError;
use crate::report::ReportError;
use crate::topology::{TopologyError, WrongPlace};

/// What `probe`, `capture` and `rules` can fail with.
#[derive(Debug, Error, Diagnostic)]
pub(in crate::cli) enum ProbeCommandError {
    /// This machine.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Look(#[from] LookError),
    /// A file could not be read or written.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Record(#[from] RecordError),
    /// A folder could not be made.
    #[error("could not make the folder {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A capture makes no sense.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Capture(Box<CaptureError>),
    /// A topology makes no sense.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Topology(Box<TopologyError>),
    /// A text of another tool makes no sense.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Import(Box<ImportError>),
    /// A platform of the catalogue makes no sense.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Platform(Box<PredictError>),
    /// A platform for acceptance makes no sense.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Acceptance(Box<WrongPlace>),
    /// Files that tell of several machines.
    #[error("{file} tells of other GPUs than the files before it")]
    #[diagnostic(help(
        "give --from texts about one machine: those that name GPUs by index need one that lists as many"
    ))]
    Unlike {
        /// The file.
        file: String,
    },
    /// No file at all.
    #[error("no file was given")]
    NothingGiven,
    /// No rule has this code.
    #[error("no rule has the code {code}")]
    #[diagnostic(help("`rigscale rules` lists all; those of `rigscale measure` stand in docs/links.md"))]
    NoRule {
        /// The code.
        code: String,
    },
    /// A capture does not hold what the probe asks.
    #[error("could not probe {file}")]
    Probe {
        /// The file.
        file: String,
        /// Why not.
        #[source]
        source: ProbeError,
    },
    /// This machine could not be probed.
    #[error("could not probe this machine")]
    Live(#[source] ProbeError),
    /// What the machine answered cannot be spelled.
    #[error("could not write down what the machine answered")]
    Transcript(#[from] crate::probe::RecordError),
    /// The picture could not be drawn.
    #[error("could not draw the machine")]
    Picture(#[from] ReportError),
    /// No GPU to draw a way to.
    #[error("there is nothing to draw: this machine shows no NVIDIA GPU")]
    #[diagnostic(help("leave --svg out; the table says what is there"))]
    NothingToDraw,
    /// stdout.
    #[error("could not print the result")]
    Print {
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl ProbeCommandError {
    /// The exit code that the README documents for this.
    #[must_use]
    pub(in crate::cli) fn exit(&self) -> Exit {
        match self {
            Self::Record(error) if error.is_input() => Exit::Usage,
            Self::Capture(_) | Self::Topology(_) | Self::Import(_) | Self::Probe { .. } | Self::NothingToDraw => {
                Exit::Usage
            }
            Self::Platform(_)
            | Self::Acceptance(_)
            | Self::Unlike { .. }
            | Self::NothingGiven
            | Self::NoRule { .. } => Exit::Usage,
            _ => Exit::Failed,
        }
    }
}
