//! The communicator between ranks that have a GPU each: NCCL, on a stream of its own.

use std::time::{Duration, Instant};

use crate::device::cuda::{Arena, Breaker, CudaError, DeviceBuffer, DeviceSliceMut, Element, Event, Events, Gpu};
use crate::device::cuda::{NcclComm, NcclId, NcclSettings, Stream};
use crate::units::{Bytes, Seconds};

use super::{CommError, Communicator, Shard};

/// Between two looks at the GPU while a rank waits for a step: far below any step, and next to no work for a core.
const PAUSE: Duration = Duration::from_micros(50);
/// A look at the state of NCCL costs a lock: once in so many looks at the GPU.
const LOOKS: u32 = 64;

/// Ranks with a GPU each that sum over PCIe, NVLink, shared memory or a network, whichever NCCL finds.
///
/// Sums run on a stream of high priority, in the order in which they are asked for. No wait is endless: each has the
/// communicator's limit, and the [`Breaker`] ends all of them at once from another thread.
#[derive(Debug)]
pub struct Nccl {
    comm: NcclComm,
    stream: Stream,
    events: Events,
    /// What a barrier sums: one number.
    token: DeviceBuffer,
    limit: Seconds,
}

impl Nccl {
    /// Meets the other ranks on `gpu`; all must come within `meet`. Every later wait ends after `limit`. `started` gets
    /// what ends the waits from another thread, before the first of them.
    ///
    /// # Errors
    /// [`CommError::Gpu`]: NCCL is missing or failed, or not all ranks came.
    pub fn join(
        gpu: &Gpu,
        id: &NcclId,
        place: (usize, usize),
        settings: NcclSettings,
        (meet, limit): (Seconds, Seconds),
        started: impl FnOnce(Breaker),
    ) -> Result<Self, CommError> {
        let comm = NcclComm::meet(gpu, id, place, settings, duration(meet), started)?;
        let token = Arena::new(gpu, Bytes(256))?.take(1, Element::F32)?;
        let mut nccl = Self { comm, stream: Stream::urgent(gpu)?, events: Events::default(), token, limit };
        nccl.stream.fill(nccl.token.all_mut(), 0)?;
        // the first sum connects the ranks; they should meet here, not in the first step
        nccl.barrier()?;
        Ok(nccl)
    }

    /// The stream on which sums run.
    #[must_use]
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Returns once the GPU has passed `event`.
    ///
    /// # Errors
    /// The GPU or NCCL failed, the communicator was broken off, or the limit passed: it is ended then.
    pub fn wait_for(&mut self, event: &Event) -> Result<(), CommError> {
        let waited = self.watch(event);
        self.end_on_error(waited)
    }

    fn watch(&self, event: &Event) -> Result<(), CommError> {
        let deadline = Instant::now() + duration(self.limit);
        for look in 1_u32.. {
            if event.has_passed()? {
                break;
            }
            if look.is_multiple_of(LOOKS) {
                self.comm.check()?;
                if deadline <= Instant::now() {
                    return Err(CommError::Late { rank: self.comm.rank(), limit: self.limit });
                }
            }
            std::thread::sleep(PAUSE);
        }
        // kernels that were ended from outside leave garbage behind
        if self.comm.is_broken() { Err(CudaError::Broken.into()) } else { Ok(()) }
    }

    fn sum(&mut self, buffer: &mut DeviceBuffer) -> Result<(), CommError> {
        let asked = self.comm.all_reduce_sum(&self.stream, &mut buffer.all_mut(), duration(self.limit));
        self.end_on_error(asked.map_err(CommError::from))
    }

    /// A buffer as equal parts for all ranks: NCCL knows no other.
    fn parts<'a>(&self, buffer: &'a mut DeviceBuffer) -> DeviceSliceMut<'a> {
        let first = Shard { rank: 0, world: self.world() }.of(buffer.len());
        buffer.room_mut(first.len() * self.world())
    }

    /// After an error sums that are under way would wait forever for ranks that do not come.
    fn end_on_error(&self, done: Result<(), CommError>) -> Result<(), CommError> {
        if done.is_err() {
            self.comm.breaker().abort();
        }
        done
    }
}

fn duration(seconds: Seconds) -> Duration {
    // a month is as good as endless
    Duration::from_secs_f64(seconds.0.clamp(0.0, 2.7e6))
}

impl Communicator for Nccl {
    type Buf = DeviceBuffer;

    fn rank(&self) -> usize {
        self.comm.rank()
    }

    fn world(&self) -> usize {
        self.comm.world()
    }

    /// Returns before the sums are there. The caller has let [`Nccl::stream`] wait for what writes the buffers.
    fn all_reduce_sum(&mut self, buffers: &mut [&mut DeviceBuffer]) -> Result<(), CommError> {
        buffers.iter_mut().try_for_each(|buffer| self.sum(buffer))
    }

    /// As [`Nccl::all_reduce_sum`]. The memory of each buffer has room for the last rank's chunk to be as large as the
    /// first's (`Arena::take_with_room`).
    fn reduce_scatter_sum(&mut self, buffers: &mut [&mut DeviceBuffer]) -> Result<(), CommError> {
        buffers.iter_mut().try_for_each(|buffer| {
            let mut parts = self.parts(buffer);
            let asked = self.comm.reduce_scatter_sum(&self.stream, &mut parts, duration(self.limit));
            self.end_on_error(asked.map_err(CommError::from))
        })
    }

    /// As [`Nccl::reduce_scatter_sum`].
    fn all_gather(&mut self, buffers: &mut [&mut DeviceBuffer]) -> Result<(), CommError> {
        buffers.iter_mut().try_for_each(|buffer| {
            let mut parts = self.parts(buffer);
            let asked = self.comm.all_gather(&self.stream, &mut parts, duration(self.limit));
            self.end_on_error(asked.map_err(CommError::from))
        })
    }

    fn wait(&mut self) -> Result<(), CommError> {
        let end = self.events.record(&self.stream)?;
        self.wait_for(&end)
    }

    fn barrier(&mut self) -> Result<(), CommError> {
        self.comm.all_reduce_sum(&self.stream, &mut self.token.all_mut(), duration(self.limit))?;
        self.wait()
    }
}
