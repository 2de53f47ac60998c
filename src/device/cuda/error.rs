//! Why a GPU or a library for it cannot be used.

use std::path::PathBuf;

use thiserror::Error;

use crate::topology::PciAddress;
use crate::units::{Bytes, Seconds};

/// Why a GPU or a library for it cannot be used.
#[derive(Debug, Error)]
pub enum CudaError {
    /// A library is missing, or not what it should be.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// A call of a library failed.
    #[error("could not {attempt}: {library} says {code} ({text})")]
    Call {
        /// What was tried.
        attempt: String,
        /// Whose call it was: `CUDA`, `cuBLASLt`, …
        library: &'static str,
        /// Its return code.
        code: i32,
        /// What the library calls that code.
        text: String,
    },
    /// The driver serves no GPU.
    #[error(
        "the NVIDIA driver shows no GPU to this process; check nvidia-smi, CUDA_VISIBLE_DEVICES and the container's --gpus"
    )]
    NoGpu,
    /// The driver does not show that GPU.
    #[error("the NVIDIA driver shows no GPU at {address} to this process; it shows {shown}")]
    Hidden {
        /// The GPU that was asked for.
        address: PciAddress,
        /// Those that there are.
        shown: String,
    },
    /// The GPU is older than the kernels.
    #[error("{name} has compute capability {major}.{minor}; rigscale trains in bf16 and needs 8.0 (Ampere) or newer")]
    Capability {
        /// The GPU's name.
        name: String,
        /// Its compute capability.
        major: i32,
        /// And the second number.
        minor: i32,
    },
    /// Another process holds the GPU alone, or nobody may use it.
    #[error(
        "{name} at {address} is in compute mode {mode}, and this process may not use it; end the process that does, or let \
         an administrator set the default mode (nvidia-smi -c DEFAULT)"
    )]
    Exclusive {
        /// The GPU's name.
        name: String,
        /// Where it is.
        address: PciAddress,
        /// `exclusive process` or `prohibited`.
        mode: &'static str,
    },
    /// The driver is older than a library needs.
    #[error(
        "the NVIDIA driver serves CUDA {driver}, and {library} {version} at {} needs CUDA {needed}; \
         update the driver, or install the library for CUDA {driver}", path.display()
    )]
    OldDriver {
        /// What the driver serves.
        driver: String,
        /// Which library.
        library: &'static str,
        /// Its version.
        version: String,
        /// Where it was found.
        path: PathBuf,
        /// What it needs.
        needed: String,
    },
    /// The memory plan does not fit.
    #[error("the GPU has {free} of free memory where {needed} are needed")]
    Memory {
        /// What is needed.
        needed: Bytes,
        /// What is free.
        free: Bytes,
    },
    /// More memory was asked for than was planned: a bug of the plan.
    #[error("the memory plan has {left} left where {needed} are needed; this is a bug of rigscale, please report it")]
    Plan {
        /// What is asked for.
        needed: Bytes,
        /// What is left.
        left: Bytes,
    },
    /// A kernel does not compile: a bug, or an NVRTC that does not know the GPU.
    #[error("could not compile {file} for {architecture}: {log}")]
    Compile {
        /// The source.
        file: String,
        /// `sm_90`, …
        architecture: String,
        /// What NVRTC says.
        log: String,
    },
    /// Not all ranks came, or some came and fell silent.
    #[error("rank {rank} of {world} waited {limit} for the other ranks, which did not come")]
    NotMet {
        /// Who waited.
        rank: usize,
        /// Ranks of the communicator.
        world: usize,
        /// How long.
        limit: Seconds,
    },
    /// The communicator was ended from another thread.
    #[error("the exchange of gradients was broken off")]
    Broken,
    /// No implementation serves these sizes.
    #[error("no implementation of {operation} on this GPU takes {sizes}")]
    Unserved {
        /// Which operation.
        operation: &'static str,
        /// Its sizes.
        sizes: String,
    },
}

impl CudaError {
    /// Whether NCCL lost another rank (`ncclRemoteError`).
    #[must_use]
    pub fn is_of_a_peer(&self) -> bool {
        matches!(self, Self::Call { library: "NCCL", code: NCCL_REMOTE_ERROR, .. })
    }
}

/// `ncclRemoteError` of `nccl.h`.
const NCCL_REMOTE_ERROR: i32 = 6;

/// Why a library cannot be used.
#[derive(Debug, Error)]
pub enum LibraryError {
    /// It is nowhere.
    #[error("{library} is missing: no {file} in {searched}; {install}")]
    Missing {
        /// Its name.
        library: &'static str,
        /// The file that was looked for.
        file: String,
        /// Where.
        searched: String,
        /// How to get it.
        install: &'static str,
    },
    /// It is there and does not load.
    #[error("{library} does not load from {}: {reason}; {install}", path.display())]
    Broken {
        /// Its name.
        library: &'static str,
        /// The file.
        path: PathBuf,
        /// What the loader says.
        reason: String,
        /// How to get a good one.
        install: &'static str,
    },
    /// It lacks a function.
    #[error("{library} at {} has no function {symbol}: it is too old or damaged; {install}", path.display())]
    Symbol {
        /// Its name.
        library: &'static str,
        /// The file.
        path: PathBuf,
        /// The function.
        symbol: &'static str,
        /// How to get a good one.
        install: &'static str,
    },
    /// It is of a version that rigscale does not know.
    #[error("{library} at {} is version {version}; rigscale needs {wanted}; {install}", path.display())]
    Version {
        /// Its name.
        library: &'static str,
        /// The file.
        path: PathBuf,
        /// What it is.
        version: String,
        /// What would be right.
        wanted: &'static str,
        /// How to get it.
        install: &'static str,
    },
}
