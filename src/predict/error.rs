//! Why a prediction cannot be made.

use miette::Diagnostic;
use thiserror::Error;

use crate::topology::WrongPlace;

/// Why a prediction cannot be made.
#[derive(Debug, Error, Diagnostic)]
pub enum PredictError {
    /// A platform file is wrong.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Platform(Box<WrongPlace>),
    /// A platform file of a newer version.
    #[error("{file}: schema {found} of platforms is newer than this version of rigscale reads")]
    Newer {
        /// The file.
        file: String,
        /// Its schema.
        found: u32,
    },
    /// No platform of that name.
    #[error("no platform is called {asked:?}, and there is no such file")]
    #[diagnostic(help("`rigscale predict --list` shows the platforms"))]
    UnknownPlatform {
        /// What was asked for.
        asked: String,
    },
    /// No GPU model of that name.
    #[error("no GPU is called {asked:?}; the catalogue has {known}")]
    UnknownCard {
        /// What was asked for.
        asked: String,
        /// Names that come near, or all.
        known: String,
    },
    /// More GPUs than slots.
    #[error("{asked} GPUs do not fit: {board} has slots for {slots}")]
    TooMany {
        /// GPUs asked for.
        asked: usize,
        /// Name of the platform.
        board: String,
        /// Slots that it fills.
        slots: usize,
    },
    /// A slot without a path to a socket.
    #[error("the GPU in {slot} has no path to a socket")]
    NoPath {
        /// Name of the slot.
        slot: String,
    },
    /// Several hosts and no network.
    #[error("{hosts} hosts need a network: give its rate and latency, such as --network 25GB/s,10us")]
    NoNetwork {
        /// Hosts asked for.
        hosts: usize,
    },
    /// A probed topology lacks what the model needs.
    #[error("{what} is unknown of this machine, and the prediction needs it: {remedy}")]
    Unknown {
        /// What is missing.
        what: String,
        /// How to give it.
        remedy: String,
    },
    /// A slot that holds no GPU.
    #[error("--slots: no GPU is in {slot:?}; this machine has {known}")]
    NoSlot {
        /// As it was typed.
        slot: String,
        /// Slots with a GPU.
        known: String,
    },
    /// A run trained in a way that the model does not hold.
    #[error("the run {run} cannot be explained: {problem}")]
    NotModelled {
        /// Name of the run folder.
        run: String,
        /// What it did, and what can be explained.
        problem: String,
    },
    /// An edit that cannot be made.
    #[error("--set {edit}: {problem}")]
    Edit {
        /// As it was typed.
        edit: String,
        /// What would be right.
        problem: String,
    },
    /// A run that a prediction cannot use.
    #[error("the run {run} cannot be used: {problem}")]
    Run {
        /// Name of the run folder.
        run: String,
        /// Why, and what would be right.
        problem: String,
    },
}
