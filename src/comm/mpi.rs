//! The communicator between ranks of several hosts without GPUs: MPI, with every sum begun without blocking.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::device::{Floats, MpiError, MpiGroup};
use crate::units::Seconds;

use super::{CommError, Communicator};

/// Ranks that sum over MPI, whichever way it finds between them.
#[derive(Debug)]
pub struct Mpi {
    group: MpiGroup,
    limit: Seconds,
}

impl Mpi {
    /// All ranks of the job, which have joined MPI. Every wait ends after `limit`.
    #[must_use]
    pub fn over(group: MpiGroup, limit: Seconds) -> Self {
        Self { group, limit }
    }

    /// Ends every wait, now and later, from any thread.
    pub fn breaker(&self) -> impl FnOnce() + Send + use<> {
        let broken: Arc<AtomicBool> = self.group.breaker();
        move || broken.store(true, Ordering::SeqCst)
    }

    fn limit(&self) -> Duration {
        // a month is as good as endless
        Duration::from_secs_f64(self.limit.0.clamp(0.0, 2.7e6))
    }

    fn error(&self, error: MpiError) -> CommError {
        match error {
            MpiError::Late { rank, .. } => CommError::Late { rank, limit: self.limit },
            error => CommError::Mpi(error),
        }
    }
}

impl Communicator for Mpi {
    type Buf = Floats;

    fn rank(&self) -> usize {
        self.group.rank()
    }

    fn world(&self) -> usize {
        self.group.size()
    }

    /// The sums are there on return. After an error the buffers hold zeros, and the communicator stays failed. MPI adds in
    /// an order of its own, the same for all ranks.
    fn all_reduce_sum(&mut self, buffers: &mut [&mut Floats]) -> Result<(), CommError> {
        self.group.sum(buffers, self.limit()).map_err(|error| self.error(error))
    }

    /// A whole sum: MPI's own scattered one may add in another order, and so give other bits than
    /// [`Mpi::all_reduce_sum`]. It moves twice what it must.
    fn reduce_scatter_sum(&mut self, buffers: &mut [&mut Floats]) -> Result<(), CommError> {
        self.all_reduce_sum(buffers)
    }

    /// As [`Mpi::all_reduce_sum`].
    fn all_gather(&mut self, buffers: &mut [&mut Floats]) -> Result<(), CommError> {
        self.group.gather(buffers, self.limit()).map_err(|error| self.error(error))
    }

    fn wait(&mut self) -> Result<(), CommError> {
        Ok(())
    }

    fn barrier(&mut self) -> Result<(), CommError> {
        self.group.barrier(self.limit()).map_err(|error| self.error(error))
    }
}
