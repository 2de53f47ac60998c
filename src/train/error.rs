//! Why a training could not begin or go on.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::comm::CommError;
use crate::device::cuda::CudaError;
use crate::units::{Bytes, Seconds};

use super::ops::Ops;

/// Why a training could not begin or go on.
#[derive(Debug, Error)]
pub enum TrainError {
    /// A setting cannot be trained with.
    #[error("{flag} {given} cannot be trained with; {wanted}")]
    Setting {
        /// The flag, as on the command line.
        flag: &'static str,
        /// Its value.
        given: String,
        /// What would be right.
        wanted: String,
    },
    /// The training needs more memory than a rank may use.
    #[error(
        "--batch {batch} with --context {context} needs {needed} for each rank where {available} are there; \
         a smaller --batch or --context needs less"
    )]
    Memory {
        /// Sequences per rank.
        batch: usize,
        /// Tokens per sequence.
        context: usize,
        /// Memory of one rank.
        needed: Bytes,
        /// What one of the ranks may use.
        available: Bytes,
    },
    /// The training needs more memory than the GPU has free.
    #[error(
        "--batch {batch} with --context {context} needs {needed} of GPU memory where {free} are free for it; {}",
        match largest {
            0 => "not even one sequence fits: a smaller --model or --context, or --recompute, needs less".to_owned(),
            largest => format!("--batch {largest} is the largest that fits"),
        }
    )]
    GpuMemory {
        /// Sequences per rank.
        batch: usize,
        /// Tokens per sequence.
        context: usize,
        /// Memory of the plan.
        needed: Bytes,
        /// What is free.
        free: Bytes,
        /// The largest batch that fits.
        largest: usize,
    },
    /// The weights could not be kept.
    #[error("could not write the weights to {}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: safetensors::SafeTensorError,
    },
    /// A GPU, or a library for it, cannot be used.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// The tokens could not be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The threads of the CPU device could not be started.
    #[error("could not start {threads} compute threads")]
    Threads {
        /// How many were wanted.
        threads: usize,
        /// Why not.
        #[source]
        source: rayon::ThreadPoolBuildError,
    },
    /// The thread that exchanges gradients could not be started.
    #[error("could not start the thread that exchanges gradients")]
    ReducerStart {
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Gradients could not be exchanged.
    #[error("could not exchange the gradients of step {step}")]
    Exchange {
        /// The step.
        step: usize,
        /// Why not.
        #[source]
        source: ExchangeError,
    },
    /// The device failed.
    #[error("the device failed to {attempt}")]
    Device {
        /// What was tried: "make the model", "run the forward pass", …
        attempt: &'static str,
        /// Why not.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// Loss or gradients are no longer numbers.
    #[error(
        "training diverged at step {step}: the loss is {loss} and the gradient norm {grad_norm}{}; \
         a lower --learning-rate or --clip-norm 1 keeps it stable",
        first.as_ref().map(|place| format!("; the first number that is not finite is {place}")).unwrap_or_default()
    )]
    Diverged {
        /// The step.
        step: usize,
        /// Its loss.
        loss: f64,
        /// Its gradient norm.
        grad_norm: f64,
        /// Where the first number that is not finite stands, in the order of the computation.
        first: Option<String>,
    },
}

/// Why gradients could not be exchanged.
#[derive(Debug, Error)]
pub enum ExchangeError {
    /// The communicator failed.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// The thread that exchanges is gone without a word: it panicked.
    #[error("the thread that exchanges gradients ended {after} after the backward pass")]
    Ended {
        /// How long was waited for it.
        after: Seconds,
    },
    /// An earlier exchange failed and took gradients with it.
    #[error("an earlier exchange failed, and its gradients are lost")]
    Lost,
}

/// Why ranks could not add up what they know of their parts.
#[derive(Debug, Error)]
pub enum ShareError<O: Ops> {
    /// The device failed.
    #[error(transparent)]
    Device(O::Error),
    /// The exchange failed.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
}

/// Why tokens could not be read.
#[derive(Debug, Error)]
pub enum DataError {
    /// The file could not be opened.
    #[error("could not open the token file {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Its length is not a whole number of ids.
    #[error("{} has {bytes} bytes, which is no whole number of ids of {token_bytes} bytes", path.display())]
    Ragged {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: usize,
        /// Bytes per id.
        token_bytes: u8,
    },
    /// It does not hold one sequence.
    #[error(
        "{} holds {tokens} tokens where one sequence needs {needed} (--context and one more)", path.display()
    )]
    Short {
        /// The file.
        path: PathBuf,
        /// Tokens in the file.
        tokens: usize,
        /// Tokens of one sequence and its last target.
        needed: usize,
    },
    /// An id is outside the vocabulary.
    #[error(
        "{}: token {position} is {id}, and the model's ids end at {}; use a model with a larger vocabulary, or tokens \
         of its own", path.display(), vocabulary - 1
    )]
    Id {
        /// The file.
        path: PathBuf,
        /// Index of the token in the file, from 0.
        position: usize,
        /// The id.
        id: u32,
        /// Ids of the model.
        vocabulary: usize,
    },
}
