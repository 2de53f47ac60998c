//! Gradients on their way between GPUs: NCCL's stream beside the stream of the training, tied by events.

use crate::comm::{CommError, Communicator, Nccl};
use crate::device::cuda::{CudaError, DeviceBuffer, Element, Event, Events};
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

    /// Sums `bucket`. Where it is to be summed in f32, a part of it at a time is widened, summed and narrowed, all on NCCL's
    /// stream: one buffer serves all buckets, and the only rounding is that of the sum.
    fn sum(&mut self, cuda: &mut Cuda, bucket: &mut DeviceBuffer) -> Result<(), CommError> {
        if cuda.widened.is_empty() {
            return self.nccl.all_reduce_sum(&mut [bucket]);
        }
        for begin in (0..bucket.len()).step_by(cuda.widened.len()) {
            let part = begin..bucket.len().min(begin + cuda.widened.len());
            let mut wide = cuda.widened.first(part.len());
            cuda.kernels.convert.widen(self.nccl.stream(), wide.all_mut(), bucket.slice(part.clone()))?;
            self.nccl.all_reduce_sum(&mut [&mut wide])?;
            cuda.kernels.convert.narrow(self.nccl.stream(), bucket.slice_mut(part), wide.all())?;
        }
        Ok(())
    }

    fn mark(&mut self) -> Result<Event, CommError> {
        Ok(self.events.record(self.nccl.stream())?)
    }
}

impl Cuda {
    /// Runs what widens gradients and narrows their sum once.
    pub(super) fn warm_widening(&mut self) -> Result<(), CudaError> {
        if self.widened.is_empty() {
            return Ok(());
        }
        // eight numbers in the buffer's own memory, which is written before it is read
        let mut narrow = self.widened.reuse(0, 8, Element::Bf16).expect("a model has more than 8 parameters");
        let mut wide = self.widened.first(8);
        self.kernels.convert.widen(&self.stream, wide.all_mut(), narrow.all())?;
        self.kernels.convert.narrow(&self.stream, narrow.all_mut(), wide.all())?;
        self.stream.synchronize()
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
        self.sum(cuda, bucket)?;
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
