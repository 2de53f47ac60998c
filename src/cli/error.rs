//! Everything a command can fail with, its exit code, and how it is shown.

use std::error::Error;
use std::io;

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme};
use thiserror::Error;

use crate::analyze::AnalyzeError;
use crate::device::cuda::CudaError;
use crate::launch::LaunchError;
use crate::model::UnknownModel;
use crate::predict::PredictError;
use crate::record::RecordError;
use crate::report::ReportError;
use crate::topology::TopologyError;
use crate::train::TrainError;

use super::Exit;
use super::look::LookError;
use super::probe::ProbeCommandError;

/// Why a command could not do what it was asked.
#[derive(Debug, Error, Diagnostic)]
pub(super) enum CliError {
    /// This machine could not be probed, or the result not kept.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Look(#[from] LookError),
    /// A machine could not be probed, captured or shown.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Probe(#[from] ProbeCommandError),
    /// A topology could not be read.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Topology(Box<TopologyError>),
    /// A prediction cannot be made.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Predict(#[from] PredictError),
    /// A file between rooms.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Record(#[from] RecordError),
    /// The launcher.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The runs cannot be analyzed.
    #[error("could not analyze the run")]
    Analyze(#[from] AnalyzeError),
    /// The report cannot be drawn.
    #[error("could not draw the report")]
    Report(#[from] ReportError),
    /// No such model.
    #[error(transparent)]
    #[diagnostic(help("`rigscale models` shows their sizes"))]
    Model(#[from] UnknownModel),
    /// What an earlier search has left cannot be gone on with.
    #[error("could not go on with the search")]
    #[diagnostic(help("{advice}"))]
    Search {
        /// What is wrong with it.
        #[source]
        source: RecordError,
        /// The way out.
        advice: String,
    },
    /// The flags ask for something that cannot be.
    #[error("{0}")]
    Usage(String),
    /// No GPU can be trained on.
    #[error("could not use a GPU")]
    #[diagnostic(help(
        "the same command with --device cpu runs on the cores of the host: it tests method and program, and says nothing about GPUs"
    ))]
    Cuda(#[from] CudaError),
    /// No GPU can be measured.
    #[error("could not use a GPU")]
    #[diagnostic(help(
        "`rigscale probe` shows which GPUs this machine has, who holds them and what is wrong with them"
    ))]
    Unmeasurable(#[source] CudaError),
    /// stdout or the signal handler.
    #[error("could not {attempt}")]
    Terminal {
        /// What was tried.
        attempt: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl From<TopologyError> for CliError {
    fn from(error: TopologyError) -> Self {
        Self::Topology(Box::new(error))
    }
}

impl CliError {
    /// The exit code that the README documents for this.
    #[must_use]
    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::Probe(error) => error.exit(),
            Self::Record(error) | Self::Search { source: error, .. } if error.is_input() => Exit::Usage,
            Self::Launch(LaunchError::Train(TrainError::Cuda(_) | TrainError::Device { .. })) => Exit::Fault,
            Self::Launch(LaunchError::Train(TrainError::Diverged { .. })) => Exit::Fault,
            Self::Launch(error) if error.is_refusal() => Exit::Usage,
            Self::Model(_) | Self::Predict(_) | Self::Topology(_) | Self::Usage(_) | Self::Analyze(_) => Exit::Usage,
            Self::Cuda(_) | Self::Unmeasurable(_) => Exit::Fault,
            Self::Search { .. } => Exit::Failed,
            Self::Look(_) | Self::Record(_) | Self::Launch(_) | Self::Report(_) | Self::Terminal { .. } => Exit::Failed,
        }
    }

    /// The error with its causes and its way out; with a snippet where an input file is at fault.
    #[must_use]
    pub(super) fn render(&self, colour: bool) -> String {
        let help = self.help().map_or_else(String::new, |help| format!("\n  help: {help}"));
        if self.source_code().is_some() {
            let theme = if colour { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
            let mut text = String::new();
            let handler = GraphicalReportHandler::new_themed(theme).with_links(false).with_width(100);
            if handler.render_report(&mut text, self).is_ok() {
                return text.trim_end().to_owned();
            }
        }
        format!("error: {}{help}", chain(self))
    }
}

/// An error and its causes, outermost first.
#[must_use]
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
