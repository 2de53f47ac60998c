//! The ranks of one host that lend each other their ranges of shared memory.
//!
//! An operation has two moments at which all ranks meet. At the first each has handed its ranges over, so that every
//! rank may read and write its own chunk of everybody's ranges; at the second each is done, and takes its ranges back.
//! A rank says that it has come by raising the counter in its block; the others spin on it for a moment, then sleep.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::thread::futex;

use super::layout::Layout;
use super::shared_memory::Segment;
use super::{DeviceError, Floats};

/// A sleeping rank looks whether the one it waits for still lives every so often: half of the 0.1 s within which a
/// death is to be noticed.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Looks at a counter before the clock is read for the first time: about a microsecond.
const LOOKS_FIRST: usize = 64;
/// Looks at a counter between two readings of the clock.
const LOOKS: usize = 16;
/// Chunks begin at multiples of a cache line, so that no two ranks write one.
const CHUNK_ALIGN: usize = 64 / size_of::<f32>();
/// Elements that are summed at a time: with the ranges of a handful of ranks they stay in the first-level cache
/// between being summed and being written.
const BLOCK: usize = 1024;

/// Why ranks cannot go on together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The peer's process is gone.
    Died { peer: usize },
    /// The peer did not come within the limit.
    Late { peer: usize },
    /// The peer has left, in order or because of a fault of its own.
    Left { peer: usize },
    /// The peer brought another number of elements.
    Mismatch { elements: usize, peer: usize, theirs: usize },
    /// A buffer is not one of this rank's shared buckets.
    Foreign { buffer: usize },
}

/// One rank's membership. After a fault it stays failed, and its peers learn of it.
pub(crate) struct RankGroup {
    segment: Arc<Segment>,
    rank: usize,
    limit: Duration,
    spin: Duration,
    /// Operations so far; two counts of `arrived` each.
    operation: u32,
    /// Ranges of ours that are handed over. While they are here nobody else in this process can reach them.
    lent: Vec<Lent>,
    /// For each lent range, the bucket that each rank handed over: `buckets[range * world + rank]`.
    buckets: Vec<usize>,
    fault: Option<Fault>,
}

/// A range of ours that is handed over.
struct Lent {
    floats: Floats,
    bucket: usize,
}

impl RankGroup {
    /// Joins the memory behind descriptor `number` as `rank`; gives the membership and the rank's own buckets.
    ///
    /// # Errors
    /// The descriptor is not the memory of such a group, the rank is taken, or there is not enough memory.
    pub(crate) fn join(
        number: i32,
        rank: usize,
        world: usize,
        lengths: &[usize],
        limit: Duration,
        spin: Duration,
    ) -> Result<(Self, Vec<Floats>), DeviceError> {
        let layout = Layout::new(world, lengths).ok_or_else(|| DeviceError::SharedMemory {
            attempt: "size",
            source: std::io::ErrorKind::InvalidInput.into(),
        })?;
        let (segment, floats) = Segment::join(number, rank, layout)?;
        let group =
            Self { segment, rank, limit, spin, operation: 0, lent: Vec::new(), buckets: Vec::new(), fault: None };
        Ok((group, floats))
    }

    pub(crate) fn rank(&self) -> usize {
        self.rank
    }

    pub(crate) fn world(&self) -> usize {
        self.segment.layout().world
    }

    /// Returns once every rank has called it.
    pub(crate) fn meet(&mut self) -> Result<(), Fault> {
        self.check()?;
        self.exchange_offers().map_err(|fault| self.fail(fault))?;
        self.operation = self.operation.wrapping_add(1);
        Ok(())
    }

    /// Hands `buffers` over; returns once every rank has handed over as many, of the same lengths. The buffers are
    /// empty from then on, until [`Self::take_back`]; after a fault they are zeros on the heap, as a late rank may
    /// still write to what was lent.
    pub(crate) fn hand_over(&mut self, buffers: &mut [&mut Floats]) -> Result<(), Fault> {
        assert!(self.lent.is_empty(), "ranges are handed over twice");
        self.check()?;
        if let Some(buffer) = buffers.iter().position(|buffer| self.own_bucket(buffer).is_none()) {
            return Err(self.fail(Fault::Foreign { buffer }));
        }
        for buffer in buffers.iter_mut() {
            if let Some(bucket) = self.own_bucket(buffer) {
                self.lent.push(Lent { floats: std::mem::replace(*buffer, Floats::zeros(0)), bucket });
            }
        }
        self.exchange_offers().map_err(|fault| self.replace_lent(buffers, fault))
    }

    /// Replaces this rank's chunk of every lent range, on the ranks `to`, by the sum over the ranks in their order: each
    /// chunk is summed once and written to all, so that every rank has the same bits.
    pub(crate) fn sum_own_chunks(&mut self, to: Range<usize>) {
        self.own_blocks(|group, buckets, block| group.sum_block(buckets, block, to.clone()));
    }

    /// Copies this rank's chunk of every lent range to all others.
    pub(crate) fn copy_own_chunks(&mut self) {
        self.own_blocks(Self::copy_block);
    }

    /// Does `work` on the blocks of this rank's chunk of every lent range, one after another.
    fn own_blocks(&self, work: impl Fn(&Self, &[usize], &Range<usize>)) {
        let world = self.world();
        for (lent, buckets) in self.lent.iter().zip(self.buckets.chunks_exact(world)) {
            let chunk = chunk(lent.floats.len(), self.rank, world);
            let mut start = chunk.start;
            while start < chunk.end {
                let block = start..chunk.end.min(start + BLOCK);
                start = block.end;
                work(self, buckets, &block);
            }
        }
    }

    /// Returns once every rank is done, with the ranges back in `buffers`: those that were handed over, in order.
    pub(crate) fn take_back(&mut self, buffers: &mut [&mut Floats]) -> Result<(), Fault> {
        assert_eq!(self.lent.len(), buffers.len(), "as many ranges come back as were handed over");
        if let Err(fault) = self.arrive_and_wait(2).and_then(|()| self.nobody_failed()) {
            return Err(self.replace_lent(buffers, fault));
        }
        for (buffer, lent) in buffers.iter_mut().zip(self.lent.drain(..)) {
            **buffer = lent.floats;
        }
        self.operation = self.operation.wrapping_add(1);
        Ok(())
    }

    fn sum_block(&self, buckets: &[usize], block: &Range<usize>, to: Range<usize>) {
        let sum = self.block_of(buckets, block, 0);
        for rank in 1..buckets.len() {
            for (total, term) in sum.iter_mut().zip(self.block_of(buckets, block, rank)) {
                *total += *term;
            }
        }
        for rank in to.filter(|rank| *rank != 0) {
            self.block_of(buckets, block, rank).copy_from_slice(sum);
        }
    }

    fn copy_block(&self, buckets: &[usize], block: &Range<usize>) {
        let own = self.block_of(buckets, block, self.rank);
        for rank in (0..buckets.len()).filter(|rank| *rank != self.rank) {
            self.block_of(buckets, block, rank).copy_from_slice(own);
        }
    }

    /// The elements of rank `rank` in `block`, which lies in this rank's chunk of a range that every rank has handed over
    /// as one of `buckets`. Callers hold those of one rank once at a time.
    #[expect(clippy::mut_from_ref, reason = "the memory is that of all ranks; the argument is below")]
    fn block_of(&self, buckets: &[usize], block: &Range<usize>, rank: usize) -> &mut [f32] {
        let first = self.segment.bucket(rank, buckets[rank]);
        // SAFETY: the block lies inside the bucket: `chunk` stays below the length, which is that of every rank's
        // bucket (`compare_offers`), and the mapping outlives the call. Exclusive: `lent` is not empty, so every
        // rank has handed its range over and none has it back, as that takes our second arrival, which needs
        // `&mut self`; no owner can reach its range meanwhile, as `RankGroup` holds it; of the ranks, each
        // touches its own chunk alone, and chunks are disjoint. The ranges of different ranks are disjoint too,
        // and the two callers above borrow each rank's once at a time.
        unsafe { std::slice::from_raw_parts_mut(first.add(block.start), block.len()) }
    }

    /// Refuses to begin anything in a group that has failed.
    fn check(&mut self) -> Result<(), Fault> {
        self.fault = self.fault.or_else(|| self.group_fault());
        self.fault.map_or(Ok(()), Err)
    }

    /// The number of a bucket that this rank owns; none for a buffer from elsewhere.
    fn own_bucket(&self, floats: &Floats) -> Option<usize> {
        floats.as_shared().and_then(|range| range.bucket_in(&self.segment, self.rank))
    }

    /// The first meeting: says which buckets this rank has lent, and learns what the others have.
    fn exchange_offers(&mut self) -> Result<(), Fault> {
        let first = self.segment.layout().offer_word(self.rank, self.operation);
        self.segment.word(first).store(self.lent.len() as u32, Ordering::Relaxed);
        for (place, lent) in self.lent.iter().enumerate() {
            self.segment.word(first + 1 + place).store(lent.bucket as u32, Ordering::Relaxed);
        }
        self.arrive_and_wait(1)?;
        self.compare_offers()?;
        self.nobody_failed()
    }

    /// Notes the buckets of every rank; they must be as many as ours, of the same lengths.
    fn compare_offers(&mut self) -> Result<(), Fault> {
        let layout = self.segment.layout();
        self.buckets.clear();
        self.buckets.resize(self.lent.len() * layout.world, 0);
        for peer in 0..layout.world {
            let first = layout.offer_word(peer, self.operation);
            let word = |place: usize| self.segment.word(first + place).load(Ordering::Relaxed) as usize;
            let count = word(0).min(layout.lengths.len());
            for place in 0..count.max(self.lent.len()) {
                let own = self.lent.get(place).map(|lent| lent.floats.len());
                let bucket = if place < count { word(1 + place) } else { usize::MAX };
                let theirs = layout.lengths.get(bucket).copied();
                if own.is_none() || own != theirs {
                    let (elements, theirs) = (own.unwrap_or(0), theirs.unwrap_or(0));
                    return Err(Fault::Mismatch { elements, peer, theirs });
                }
                self.buckets[place * layout.world + peer] = bucket;
            }
        }
        Ok(())
    }

    /// Says that this rank is at meeting 1 or 2 of the operation, and returns once all are.
    fn arrive_and_wait(&self, meeting: u32) -> Result<(), Fault> {
        let layout = self.segment.layout();
        let target = self.operation.wrapping_mul(2).wrapping_add(meeting);
        // Sequentially consistent, as is what sleepers do: either they see the counter, or we see them.
        self.segment.word(layout.arrived_word(self.rank)).store(target, Ordering::SeqCst);
        if self.segment.word(layout.sleepers_word(self.rank)).load(Ordering::SeqCst) != 0 {
            self.wake_sleepers_on(self.rank);
        }
        (0..layout.world).filter(|&peer| peer != self.rank).try_for_each(|peer| self.wait_for(peer, target))
    }

    /// All have come, but one may have given up on this rank before: what it did not get, nobody gets.
    fn nobody_failed(&self) -> Result<(), Fault> {
        self.group_fault().map_or(Ok(()), Err)
    }

    /// What stands in the group's record of its first fault.
    fn group_fault(&self) -> Option<Fault> {
        let code = self.segment.fault().load(Ordering::Acquire);
        (code != 0).then(|| self.decode(code))
    }

    fn wake_sleepers_on(&self, rank: usize) {
        let counter = self.segment.word(self.segment.layout().arrived_word(rank));
        // A sleeper that is not woken looks again by itself before long, so a refusal only costs time.
        futex::wake(counter, futex::Flags::empty(), i32::MAX as u32).ok();
    }

    fn has_arrived(&self, peer: usize, target: u32) -> bool {
        let arrived = self.segment.word(self.segment.layout().arrived_word(peer)).load(Ordering::SeqCst);
        // Counters come round after 2³² meetings; ranks are never more than two apart.
        arrived.wrapping_sub(target).cast_signed() >= 0
    }

    fn wait_for(&self, peer: usize, target: u32) -> Result<(), Fault> {
        let come = |looks: usize| {
            (0..looks).any(|_| {
                std::hint::spin_loop();
                self.has_arrived(peer, target)
            })
        };
        if self.has_arrived(peer, target) || come(LOOKS_FIRST) {
            return Ok(());
        }
        let begin = Instant::now();
        while begin.elapsed() < self.spin {
            if come(LOOKS) {
                return Ok(());
            }
        }
        let sleepers = self.segment.word(self.segment.layout().sleepers_word(peer));
        sleepers.fetch_add(1, Ordering::SeqCst);
        let outcome = self.sleep_until(peer, target, begin + self.limit);
        sleepers.fetch_sub(1, Ordering::SeqCst);
        outcome
    }

    /// Sleeps in slices until `peer` arrives, and looks after each whether there is still hope.
    fn sleep_until(&self, peer: usize, target: u32, deadline: Instant) -> Result<(), Fault> {
        let counter = self.segment.word(self.segment.layout().arrived_word(peer));
        let mut next_look = Instant::now() + LOOK_EVERY;
        loop {
            let seen = counter.load(Ordering::SeqCst);
            if self.has_arrived(peer, target) {
                return Ok(());
            }
            let now = Instant::now();
            let late = (now >= deadline).then_some(Fault::Late { peer });
            let looks = late.is_some() || now >= next_look;
            // Any rank may be the one that will not come, not only the first that we wait for.
            let gone = || (0..self.world()).find_map(|rank| self.gone(rank, target, looks));
            if let Some(fault) = self.group_fault().or_else(gone).or(late) {
                // It may have come just before that was seen.
                return if self.has_arrived(peer, target) { Ok(()) } else { Err(fault) };
            }
            if looks {
                next_look = now + LOOK_EVERY;
            }
            let slice = next_look.min(deadline).saturating_duration_since(now);
            let slice = futex::Timespec { tv_sec: 0, tv_nsec: slice.subsec_nanos().into() };
            // The kernel sleeps only if the counter still is as we saw it. Not private: peers are other processes.
            futex::wait(counter, futex::Flags::empty(), seen, Some(&slice)).ok();
        }
    }

    /// Whether `peer` has left or, if `look`, died without having arrived. A rank that has not joined yet is neither.
    fn gone(&self, peer: usize, target: u32, look: bool) -> Option<Fault> {
        let departed = || self.segment.word(self.segment.layout().departed_word(peer)).load(Ordering::SeqCst) != 0;
        let died = || look && self.segment.identity(peer).is_some_and(|process| !process.lives());
        let fault = if self.has_arrived(peer, target) {
            None
        } else if departed() {
            Some(Fault::Left { peer })
        } else {
            died().then_some(Fault::Died { peer })
        };
        // What arrived before it went has done its part.
        fault.filter(|_| !self.has_arrived(peer, target))
    }

    /// After a fault the lent ranges stay where they are for whoever still writes to them, and nobody here does.
    fn replace_lent(&mut self, buffers: &mut [&mut Floats], fault: Fault) -> Fault {
        for (buffer, lent) in buffers.iter_mut().zip(self.lent.drain(..)) {
            **buffer = Floats::zeros(lent.floats.len());
        }
        self.fail(fault)
    }

    /// Makes the fault known to all ranks, unless another was first: then that one counts.
    fn fail(&mut self, fault: Fault) -> Fault {
        let code = self.encode(fault);
        let first = self.segment.fault().compare_exchange(0, code, Ordering::AcqRel, Ordering::Acquire).err();
        for rank in 0..self.world() {
            self.wake_sleepers_on(rank);
        }
        let fault = match (fault, first) {
            // This rank's own call is at fault, whatever else went wrong.
            (Fault::Mismatch { .. } | Fault::Foreign { .. }, _) | (_, None) => fault,
            (_, Some(code)) => self.decode(code),
        };
        self.fault = Some(fault);
        fault
    }

    /// A fault in 32 bits: kind, the rank at fault, and who says so.
    fn encode(&self, fault: Fault) -> u32 {
        let (kind, peer) = match fault {
            Fault::Died { peer } => (1, peer),
            Fault::Late { peer } => (2, peer),
            Fault::Left { peer } => (3, peer),
            Fault::Mismatch { .. } | Fault::Foreign { .. } => (3, self.rank),
        };
        kind << 24 | (peer as u32) << 12 | self.rank as u32
    }

    /// A fault of the group, as this rank tells it.
    fn decode(&self, code: u32) -> Fault {
        let (peer, witness) = ((code >> 12 & 0xfff) as usize, (code & 0xfff) as usize);
        match code >> 24 {
            // The others gave this rank up; it cannot blame itself for not waiting.
            _ if peer == self.rank => Fault::Left { peer: witness },
            1 => Fault::Died { peer },
            2 => Fault::Late { peer },
            _ => Fault::Left { peer },
        }
    }
}

impl Drop for RankGroup {
    fn drop(&mut self) {
        self.segment.word(self.segment.layout().departed_word(self.rank)).store(1, Ordering::SeqCst);
        self.wake_sleepers_on(self.rank);
    }
}

/// The elements of `len` that are the part of `rank`: equal chunks of whole cache lines, the last ones shorter or empty.
#[must_use]
pub fn chunk(len: usize, rank: usize, world: usize) -> Range<usize> {
    let size = len.div_ceil(world).next_multiple_of(CHUNK_ALIGN);
    (rank * size).min(len)..((rank + 1) * size).min(len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn chunks_cover_every_element_once_and_share_no_cache_line(len in 0..5000_usize, world in 1..40_usize) {
            let mut next = 0;
            for rank in 0..world {
                let chunk = chunk(len, rank, world);
                prop_assert_eq!(chunk.start, next);
                prop_assert!(chunk.is_empty() || chunk.start.is_multiple_of(16));
                next = chunk.end;
            }
            prop_assert_eq!(next, len);
        }
    }
}
