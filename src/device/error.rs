//! What the room answers when the kernel or a driver refuses.

use std::io;

use thiserror::Error;

/// A call to the kernel or to a driver that failed, with what it was for.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// Memory shared between ranks could not be made, mapped or joined.
    #[error("could not {attempt} the memory shared by the ranks")]
    SharedMemory {
        /// What was tried: "create", "size", "open", "map", …
        attempt: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The thread could not be pinned, or its CPUs could not be read.
    #[error("could not {attempt} (CPUs {cpus:?})")]
    Affinity {
        /// What was tried.
        attempt: &'static str,
        /// The CPUs that were asked for; empty: those of the current thread.
        cpus: Vec<usize>,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A fact about a process, or a request to it, failed.
    #[error("could not {attempt} of process {pid}")]
    Process {
        /// What was tried.
        attempt: &'static str,
        /// Which process.
        pid: u32,
        /// Why not.
        #[source]
        source: io::Error,
    },
}
