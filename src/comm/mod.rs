//! How gradients and weights move between ranks: communicators, one conformance suite for all.
//! Knows ranks, world size and buffers; hides chunks, meetings and shared memory.
//! Never waits without a limit, and never returns a sum that some rank does not also have, bit for bit.

#[cfg(feature = "mpi")]
mod mpi;
mod nccl;
mod shm;
mod solo;

#[cfg(feature = "mpi")]
pub use mpi::Mpi;
pub use nccl::Nccl;
pub use shm::Shm;
pub use solo::Solo;

use thiserror::Error;

use std::ops::Range;

use crate::device::cuda::CudaError;
use crate::device::{DeviceError, chunk};
use crate::units::Seconds;

/// Sums buffers over the ranks of one training.
///
/// Every rank calls the same methods in the same order with buffers of the same lengths.
pub trait Communicator {
    /// What it can reduce.
    type Buf;

    /// This rank, from 0.
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn world(&self) -> usize;

    /// Replaces each buffer by its sum over all ranks, the same bits on every rank. May return before the sum is
    /// there; [`Communicator::wait`] says when.
    ///
    /// # Errors
    /// A peer died, stayed away beyond the limit, or brought another length.
    fn all_reduce_sum(&mut self, buffers: &mut [&mut Self::Buf]) -> Result<(), CommError>;

    /// Replaces this rank's chunk ([`Shard`]) of each buffer by its sum over all ranks, the same bits that
    /// [`Communicator::all_reduce_sum`] gives; what the other chunks hold afterwards is arbitrary. May return early, as
    /// that does.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce_sum`].
    fn reduce_scatter_sum(&mut self, buffers: &mut [&mut Self::Buf]) -> Result<(), CommError>;

    /// Fills the other chunks of each buffer with those that their ranks bring. May return early, as
    /// [`Communicator::all_reduce_sum`] does.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce_sum`].
    fn all_gather(&mut self, buffers: &mut [&mut Self::Buf]) -> Result<(), CommError>;

    /// Returns once all that was asked for so far is there.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce_sum`].
    fn wait(&mut self) -> Result<(), CommError>;

    /// Returns once every rank has called it.
    ///
    /// # Errors
    /// A peer died or stayed away beyond the limit.
    fn barrier(&mut self) -> Result<(), CommError>;
}

/// Whose part of every buffer is meant: that of one rank among several, or the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// The rank, from 0.
    pub rank: usize,
    /// Number of ranks.
    pub world: usize,
}

impl Shard {
    /// The part of a rank alone.
    pub const WHOLE: Self = Self { rank: 0, world: 1 };

    /// Its elements of a buffer of `len`: the `rank`-th of equal chunks of multiples of 16, the last ones shorter or empty.
    #[must_use]
    pub fn of(self, len: usize) -> Range<usize> {
        chunk(len, self.rank, self.world)
    }
}

/// Why ranks could not exchange data. The first failing rank is named where it is known.
#[derive(Debug, Error)]
pub enum CommError {
    /// A peer's process is gone.
    #[error("rank {peer} died while rank {rank} waited for it")]
    PeerDied {
        /// Who noticed.
        rank: usize,
        /// Who is gone.
        peer: usize,
    },
    /// A peer did not come.
    #[error("rank {peer} did not arrive within {limit} while rank {rank} waited for it")]
    PeerLate {
        /// Who noticed.
        rank: usize,
        /// Who stayed away.
        peer: usize,
        /// How long was waited.
        limit: Seconds,
    },
    /// Ranks called with different lengths.
    #[error("rank {rank} reduces {elements} elements where rank {peer} reduces {theirs}")]
    Mismatch {
        /// Who noticed.
        rank: usize,
        /// Its elements.
        elements: usize,
        /// The other rank.
        peer: usize,
        /// Its elements.
        theirs: usize,
    },
    /// A peer left the group: it had finished, or its own call failed.
    #[error("rank {peer} left while rank {rank} waited for it")]
    PeerLeft {
        /// Who noticed.
        rank: usize,
        /// Who left.
        peer: usize,
    },
    /// A buffer is not one of those that the rank got when it joined.
    #[error("buffer {buffer} of rank {rank} does not lie in the memory shared by the ranks")]
    ForeignBuffer {
        /// Whose call it was.
        rank: usize,
        /// Which of the buffers of the call, from 0.
        buffer: usize,
    },
    /// A sum did not end: at least one rank did not take part.
    #[error("rank {rank} waited {limit} for a sum in which not all ranks took part")]
    Late {
        /// Who noticed.
        rank: usize,
        /// How long was waited.
        limit: Seconds,
    },
    /// The memory shared by the ranks could not be made or joined.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// MPI failed, or the exchange was broken off.
    #[cfg(feature = "mpi")]
    #[error(transparent)]
    Mpi(#[from] crate::device::MpiError),
    /// NCCL or the GPU failed, or the exchange was broken off.
    #[error(transparent)]
    Gpu(Box<CudaError>),
}

impl From<CudaError> for CommError {
    fn from(error: CudaError) -> Self {
        Self::Gpu(Box::new(error))
    }
}
