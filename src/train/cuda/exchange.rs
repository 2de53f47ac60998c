//! Gradients on their way between GPUs: NCCL's stream beside the stream of the training, tied by events.

use crate::comm::{CommError, Communicator, Nccl, Shard};
use crate::device::cuda::{CudaError, DeviceBuffer, Element, Event, Events};
use crate::record::Collective;
use crate::train::error::ExchangeError;
use crate::train::reducer::{Asked, Queue};

use super::Cuda;

/// Chunks of a shared buffer are multiples of so many elements ([`Shard::of`]).
const CHUNK: usize = 16;

/// Exchanges buckets on NCCL's stream while the GPU computes.
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

    /// Sums `bucket`, whole or this rank's part of it. Where it is to be summed in f32, pieces of it are widened, summed and
    /// narrowed one after another, all on NCCL's stream: one buffer serves all buckets, and the only rounding is that of
    /// the sum.
    fn sum(&mut self, cuda: &mut Cuda, bucket: &mut DeviceBuffer, shard: Shard) -> Result<(), CommError> {
        if cuda.widened.is_empty() {
            return self.sum_as_it_is(bucket, shard);
        }
        let (len, Shard { rank, world }) = (bucket.len(), shard);
        let room = cuda.widened.len() / world / CHUNK * CHUNK;
        let longest = Shard { rank: 0, world }.of(len).len();
        for begin in (0..longest).step_by(room) {
            let left = longest - begin;
            // chunks of all ranks are equal, and multiples
            let size = room.min(if world == 1 { left } else { left.next_multiple_of(CHUNK) });
            let piece = |rank| {
                let part = Shard { rank, world }.of(len);
                (part.start + begin).min(part.end)..(part.start + begin + size).min(part.end)
            };
            let mut wide = cuda.widened.first(size * world);
            for rank in 0..world {
                let from = piece(rank);
                let to = wide.slice_mut(rank * size..rank * size + from.len());
                cuda.kernels.convert.widen(self.nccl.stream(), to, bucket.slice(from))?;
            }
            self.sum_as_it_is(&mut wide, shard)?;
            let to = piece(rank);
            let from = wide.slice(rank * size..rank * size + to.len());
            cuda.kernels.convert.narrow(self.nccl.stream(), bucket.slice_mut(to), from)?;
        }
        Ok(())
    }

    fn sum_as_it_is(&mut self, buffer: &mut DeviceBuffer, shard: Shard) -> Result<(), CommError> {
        match shard {
            Shard::WHOLE => self.nccl.all_reduce_sum(&mut [buffer]),
            _ => self.nccl.reduce_scatter_sum(&mut [buffer]),
        }
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
    fn place(&self) -> Shard {
        Shard { rank: self.nccl.rank(), world: self.nccl.world() }
    }

    fn exchange(
        &mut self,
        cuda: &mut Cuda,
        bucket: &mut DeviceBuffer,
        collective: Collective,
        timed: bool,
    ) -> Result<Asked<Cuda>, ExchangeError> {
        let ready = self.events.record(cuda.stream()).map_err(CommError::from)?;
        self.nccl.stream().wait_for(&ready).map_err(CommError::from)?;
        let begin = if timed { Some([ready, self.mark()?]) } else { None };
        match collective {
            Collective::AllReduce => self.sum(cuda, bucket, Shard::WHOLE)?,
            Collective::ReduceScatter => self.sum(cuda, bucket, self.place())?,
            Collective::AllGather => self.nccl.all_gather(&mut [bucket])?,
        }
        Ok(Asked { begin, end: self.mark()? })
    }

    fn follow(&mut self, cuda: &mut Cuda, end: &Event) -> Result<(), ExchangeError> {
        cuda.stream().wait_for(end).map_err(CommError::from)?;
        Ok(())
    }

    fn wait(&mut self, mark: &Event) -> Result<(), ExchangeError> {
        Ok(self.nccl.wait_for(mark)?)
    }
}
