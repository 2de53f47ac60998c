//! What launcher and rank say to each other: one JSON line each, over the rank's stdin and stdout.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::device::cuda::NcclId;
use crate::record::{Limits, RunHead};
use crate::units::Seconds;

/// The first line that a rank reads: everything it needs to know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Assignment {
    /// The launcher's process: the rank ends with it.
    pub(super) launcher: u32,
    /// First line of its rank file.
    pub(super) head: RunHead,
    /// Where its rank file goes.
    pub(super) file: PathBuf,
    /// Which part of the data it trains on: rank and world of the data. The work is the same in every arm; the tokens
    /// are those of the rank, alone those of the share.
    pub(super) data_rank: usize,
    /// See `data_rank`.
    pub(super) data_world: usize,
    /// How gradients are exchanged.
    pub(super) exchange: Exchange,
    /// Whether it keeps its weights before the first step and after the last, beside its rank file.
    pub(super) checkpoints: bool,
    /// Whether all ranks are on this host, so that NCCL need not look for them in a network.
    pub(super) one_host: bool,
    /// Ranks that share its GPU; 1 where it has it alone.
    pub(super) gpu_sharers: usize,
    /// Limits on its waiting.
    pub(super) limits: Limits,
}

/// How gradients are exchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Exchange {
    /// Not at all: arms solo and together.
    None,
    /// With nobody, through the whole machinery: ddp at one rank.
    Solo,
    /// Through memory shared with the other ranks, inherited under this descriptor.
    SharedMemory {
        /// File descriptor.
        fd: i32,
    },
    /// Through NCCL; the ranks meet over an id that rank 0 makes.
    Nccl,
    /// Through MPI, which the rank has joined before it read its assignment.
    Mpi,
}

/// What a rank that begins with MPI reads before its assignment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Invite {
    /// On rank 0 what MPI carries to all, at most 1 KiB.
    pub(super) text: Option<String>,
    /// The worker's process: the rank ends with it.
    pub(super) worker: u32,
    /// Its rank and the number of ranks, as their launcher counts them.
    pub(super) place: (usize, usize),
    /// Who that is.
    pub(super) launcher: String,
    /// Whether the rank goes on with MPI; otherwise it leaves it and begins anew, alone with its assignment.
    pub(super) keep: bool,
}

/// What a rank reads after its assignment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Order {
    /// Every rank has built its model: meet under this id of NCCL.
    Meet(NcclId),
    /// All ranks are ready: step.
    Go,
    /// The user interrupted: end after this step.
    Interrupt,
    /// Another rank failed: end after this step.
    Stop,
}

/// What a rank says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Message {
    /// Something that people should know about the start.
    Remark {
        /// In words.
        text: String,
    },
    /// What MPI brought from rank 0.
    Invited {
        /// See [`Invite`].
        text: String,
    },
    /// It is at work on something that takes longer than a step.
    Busy,
    /// The model is built, and this rank goes to meet its peers over NCCL.
    Meets {
        /// The id under which all meet: rank 0 makes it.
        id: Option<NcclId>,
    },
    /// The model is built and the peers are met.
    Ready,
    /// A step is done and recorded.
    Step {
        /// Its index.
        index: usize,
        /// Its duration.
        step_s: Seconds,
        /// The checksum of the weights after it, where one was taken.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        checksum: Option<String>,
    },
    /// The end line is written.
    Done {
        /// SHA-256 of the weights.
        weights: String,
    },
    /// The rank gave up.
    Failed {
        /// What kind of failure.
        cause: Cause,
        /// The error chain.
        text: String,
        /// The rank that is to blame, if another.
        blames: Option<usize>,
    },
}

/// Kinds of failure, as far as the launcher must tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Cause {
    /// A peer died.
    PeerDied,
    /// A peer stayed away beyond the limit.
    PeerLate,
    /// Some peer, nobody knows which, stayed away beyond the limit.
    Unmet,
    /// Some peer, nobody knows which, was lost on the way.
    PeerLost,
    /// What the user asked for cannot be trained: tokens outside the vocabulary, too little memory.
    Input,
    /// The record could not be written.
    Record,
    /// The loss or a gradient is not finite, and this rank computed it.
    Diverged,
    /// The summed gradient is not finite, and nothing that this rank computed is to blame.
    DivergedElsewhere,
    /// Anything else.
    Other,
}
