//! Gradients on their way between GPUs: NCCL's stream beside the stream of the training, tied by events.

use crate::comm::{CommError, Communicator, Nccl};
use crate::device::cuda::{DeviceBuffer, Event, Events};
use crate::train::error::ExchangeError;
use crate::train::reducer::Queue;

use super::Cuda;

/// Sums buckets on NCCL's stream while the backward pass goes on.
#[derive(Debug)]
pub struct NcclQueue {
    nccl: Nccl,
    events: Events,
}

impl NcclQueue {
    /// Sums through `nccl`.
    #[must_use]
    pub fn new(nccl: Nccl) -> Self {
        Self { nccl, events: Events::default() }
    }

    fn mark(&mut self) -> Result<Event, CommError> {
        Ok(self.events.record(self.nccl.stream())?)
    }
}

impl Queue<Cuda> for NcclQueue {
    fn world(&self) -> usize {
        self.nccl.world()
    }

    fn reduce(
        &mut self,
        cuda: &mut Cuda,
        bucket: &mut DeviceBuffer,
        timed: bool,
    ) -> Result<Option<[Event; 3]>, ExchangeError> {
        let ready = self.events.record(cuda.stream()).map_err(CommError::from)?;
        self.nccl.stream().wait_for(&ready).map_err(CommError::from)?;
        let start = if timed { Some(self.mark()?) } else { None };
        self.nccl.all_reduce_sum(&mut [bucket])?;
        Ok(match start {
            Some(start) => Some([ready, start, self.mark()?]),
            None => None,
        })
    }

    fn join(&mut self, cuda: &mut Cuda) -> Result<(), ExchangeError> {
        let end = self.mark()?;
        cuda.stream().wait_for(&end).map_err(CommError::from)?;
        Ok(())
    }

    fn wait(&mut self, mark: &Event) -> Result<(), ExchangeError> {
        Ok(self.nccl.wait_for(mark)?)
    }
}
