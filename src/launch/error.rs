//! What can stop a launch that is no finding about the machine.

use std::error::Error;
use std::io;

use thiserror::Error;

use crate::comm::CommError;
use crate::record::RecordError;
use crate::train::TrainError;

use super::meeting::MeetError;
use super::place::PlaceError;

/// Why the launcher itself could not go on.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// A rank's process could not be started.
    #[error("could not start the process of rank {rank}")]
    Start {
        /// Which rank.
        rank: usize,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The memory that ranks share could not be made.
    #[error("could not prepare the exchange of gradients for {world} ranks")]
    Exchange {
        /// Ranks.
        world: usize,
        /// Why not.
        #[source]
        source: CommError,
    },
    /// The training that the plan asks for cannot be.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The environment gives a worker no place in a job.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The ranks of a job did not meet.
    #[error(transparent)]
    Meet(#[from] MeetError),
    /// The job cannot be as it was started.
    #[error("{why}")]
    Job {
        /// Why not, and what to do.
        why: String,
    },
    /// The thread that watches over the ranks panicked.
    #[error("the watch over the ranks panicked; its words stand above")]
    Panicked,
    /// Rank 0 gave up for all.
    #[error("rank 0 ended the job: {text}")]
    Elsewhere {
        /// Its error chain.
        text: String,
        /// Whether what was asked for cannot be.
        refused: bool,
    },
    /// A file of the run folder could not be written or read.
    #[error("could not keep the records of the run")]
    Record(#[from] RecordError),
    /// A rank could not write its record: without a record there was no run.
    #[error("rank {rank} of {trial} could not write its record: {text}")]
    Unrecorded {
        /// Trial.
        trial: String,
        /// Which rank.
        rank: usize,
        /// The rank's error chain.
        text: String,
    },
    /// What the user asked for cannot be trained.
    #[error("rank {rank} of {trial} refused its input: {text}")]
    Input {
        /// Trial.
        trial: String,
        /// Which rank.
        rank: usize,
        /// The rank's error chain.
        text: String,
    },
}

impl LaunchError {
    /// Whether it is what was asked for that cannot be, rather than something that broke.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Place(_) | Self::Job { .. } | Self::Input { .. } | Self::Train(_) => true,
            Self::Meet(error) => {
                let refusal = matches!(error, MeetError::Loopback { .. } | MeetError::Anywhere { .. });
                refusal || matches!(error, MeetError::Listen { .. } | MeetError::Refused { .. })
            }
            Self::Elsewhere { refused, .. } => *refused,
            Self::Record(error) => error.is_input(),
            Self::Start { .. } | Self::Exchange { .. } | Self::Panicked | Self::Unrecorded { .. } => false,
        }
    }
}

/// An error and its causes, outermost first: messages and findings hold no links.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
