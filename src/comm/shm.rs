//! The communicator between rank processes of one host: their buckets lie in memory that all of them can reach.

use std::time::Duration;

use crate::device::{Fault, Floats, RankGroup, SharedMemory};
use crate::units::Seconds;

use super::{CommError, Communicator};

/// How long a rank looks for its peers before it sleeps. Waking a sleeper costs tens of microseconds, more than a
/// small sum; a much longer spin takes the core from the rank's own backward pass.
const SPIN: Seconds = Seconds(50e-6);
/// The longest limit that is taken as given: beyond a month a wait is as good as endless.
const LIMIT_MAX: Seconds = Seconds(2.7e6);

/// Ranks of one host that sum in shared memory.
///
/// The sum is direct, not a ring: a ring saves links that a host does not have, since here each rank can read every
/// other's memory. Rank `r` sums the `r`-th of `N` chunks of all ranks' buckets, in rank order, and writes the sum to
/// all of them. So each rank reads and writes every byte of a bucket once, whatever `N` is, every rank has the same
/// bits, and there are two meetings for each call instead of the `2(N − 1)` rounds of a ring.
pub struct Shm {
    group: RankGroup,
    limit: Seconds,
}

impl Shm {
    /// The launcher's side: memory for `world` ranks, each with one bucket of zeros for each of `lengths` (elements).
    /// Processes started while it lives inherit its descriptor, [`SharedMemory::raw_fd`]; nothing is left behind.
    ///
    /// # Errors
    /// [`CommError::Device`]: `world` is 0 or above 1024, or the kernel has no such memory.
    pub fn create(world: usize, lengths: &[usize]) -> Result<SharedMemory, CommError> {
        Ok(SharedMemory::create(world, lengths)?)
    }

    /// The rank's side: joins the memory behind descriptor `fd` as `rank`, once; gives the communicator and the
    /// rank's own buckets, zeroed. Gradients are written to them directly; any of them can be summed.
    ///
    /// Join after pinning the thread: the buckets' pages are taken here, and lie on the NUMA node of this CPU. A wait
    /// for one peer ends after `limit`.
    ///
    /// # Errors
    /// [`CommError::Device`]: `fd` is not the memory of such a group, its world or lengths are others, the rank has
    /// joined before, or there is not enough memory.
    pub fn join(
        fd: i32,
        rank: usize,
        world: usize,
        lengths: &[usize],
        limit: Seconds,
    ) -> Result<(Self, Vec<Floats>), CommError> {
        let (group, buckets) = RankGroup::join(fd, rank, world, lengths, duration(limit), duration(SPIN))?;
        Ok((Self { group, limit }, buckets))
    }

    fn error(&self, fault: Fault) -> CommError {
        let rank = self.group.rank();
        match fault {
            Fault::Died { peer } => CommError::PeerDied { rank, peer },
            Fault::Late { peer } => CommError::PeerLate { rank, peer, limit: self.limit },
            Fault::Left { peer } => CommError::PeerLeft { rank, peer },
            Fault::Mismatch { elements, peer, theirs } => CommError::Mismatch { rank, elements, peer, theirs },
            Fault::Foreign { buffer } => CommError::ForeignBuffer { rank, buffer },
        }
    }

    /// Does `work` on this rank's chunks while all ranks have handed their buffers over.
    fn together(&mut self, buffers: &mut [&mut Floats], work: impl FnOnce(&mut RankGroup)) -> Result<(), CommError> {
        let done = || {
            self.group.hand_over(buffers)?;
            work(&mut self.group);
            self.group.take_back(buffers)
        };
        done().map_err(|fault| self.error(fault))
    }
}

/// A time to wait; what is negative or no number is none.
fn duration(seconds: Seconds) -> Duration {
    if seconds.0 > 0.0 { Duration::from_secs_f64(seconds.0.min(LIMIT_MAX.0)) } else { Duration::ZERO }
}

impl Communicator for Shm {
    type Buf = Floats;

    fn rank(&self) -> usize {
        self.group.rank()
    }

    fn world(&self) -> usize {
        self.group.world()
    }

    /// The buffers must be buckets of this rank. The sums are there on return. After an error they hold zeros, lie
    /// on the heap, and the communicator stays failed on every rank.
    fn all_reduce_sum(&mut self, buffers: &mut [&mut Floats]) -> Result<(), CommError> {
        let all = 0..self.world();
        self.together(buffers, |group| group.sum_own_chunks(all))
    }

    /// As [`Shm::all_reduce_sum`].
    fn reduce_scatter_sum(&mut self, buffers: &mut [&mut Floats]) -> Result<(), CommError> {
        let rank = self.rank();
        self.together(buffers, |group| group.sum_own_chunks(rank..rank + 1))
    }

    /// As [`Shm::all_reduce_sum`].
    fn all_gather(&mut self, buffers: &mut [&mut Floats]) -> Result<(), CommError> {
        self.together(buffers, RankGroup::copy_own_chunks)
    }

    fn wait(&mut self) -> Result<(), CommError> {
        Ok(())
    }

    fn barrier(&mut self) -> Result<(), CommError> {
        self.group.meet().map_err(|fault| self.error(fault))
    }
}
