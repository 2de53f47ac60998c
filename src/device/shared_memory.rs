//! Memory shared by the rank processes of one host: anonymous, so that nothing is left behind when they end.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{FallocateFlags, MemfdFlags, Mode, OFlags, SealFlags};

use super::layout::{BUCKETS_WORD, FAULT_WORD, Layout, MAGIC, MAGIC_WORD, WORLD_WORD};
use super::process::Identity;
use super::{DeviceError, Floats};

/// The launcher's end of memory that ranks will share. It holds the descriptor that they inherit, and no mapping.
#[derive(Debug)]
pub struct SharedMemory {
    descriptor: OwnedFd,
}

impl SharedMemory {
    /// Memory for `world` ranks, each with one bucket of `f32` for each of `lengths`, all zero. It has no name and
    /// is gone with the last process that holds it. Pages are taken when ranks join.
    ///
    /// Processes started while this lives inherit the descriptor under the same number: it is not closed on exec.
    ///
    /// # Errors
    /// There is no such memory (no rank, more than 1024, too many bytes), or the kernel refuses.
    pub fn create(world: usize, lengths: &[usize]) -> Result<Self, DeviceError> {
        let layout = Layout::new(world, lengths)
            .ok_or_else(|| failed("size")(io::Error::new(io::ErrorKind::InvalidInput, format!("for {world} ranks"))))?;
        let descriptor = rustix::fs::memfd_create("rigscale-ranks", MemfdFlags::ALLOW_SEALING)
            .map_err(|source| failed("create")(source.into()))?;
        rustix::fs::ftruncate(&descriptor, layout.total as u64).map_err(|source| failed("size")(source.into()))?;
        // Nobody can cut the memory from then on: a mapping stays valid to its end, whatever other processes do.
        rustix::fs::fcntl_add_seals(&descriptor, FIXED_SIZE).map_err(|source| failed("seal")(source.into()))?;
        let file = File::from(descriptor);
        Segment::map(&file, layout)?.write_head();
        Ok(Self { descriptor: file.into() })
    }

    /// The memory that process `pid` of this host holds under descriptor `number`; `pid` may be any process of the same
    /// user. What it is is checked when a rank joins it. As with [`Self::create`], processes started later inherit it.
    ///
    /// # Errors
    /// There is no such process or descriptor, or it is another user's.
    pub fn of_process(pid: u32, number: i32) -> Result<Self, DeviceError> {
        let path = format!("/proc/{pid}/fd/{number}");
        // without O_CLOEXEC, unlike what `File` opens
        let descriptor = rustix::fs::open(path, OFlags::RDWR, Mode::empty());
        Ok(Self { descriptor: descriptor.map_err(|source| failed("open")(source.into()))? })
    }

    /// The number under which processes started by exec find the memory.
    #[must_use]
    pub fn raw_fd(&self) -> i32 {
        self.descriptor.as_raw_fd()
    }
}

const FIXED_SIZE: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

fn failed(attempt: &'static str) -> impl Fn(io::Error) -> DeviceError {
    move |source| DeviceError::SharedMemory { attempt, source }
}

fn garbled(what: String) -> DeviceError {
    failed("recognise")(io::Error::new(io::ErrorKind::InvalidData, what))
}

/// A rank's mapping of the shared memory.
pub(super) struct Segment {
    map: MmapRaw,
    layout: Layout,
}

impl Segment {
    /// Maps descriptor `number` and claims the place of `rank`; gives the mapping and the rank's own buckets.
    ///
    /// # Errors
    /// The descriptor is not such a memory for `layout`, the place is taken, or there is not enough memory.
    pub(super) fn join(number: i32, rank: usize, layout: Layout) -> Result<(Arc<Self>, Vec<Floats>), DeviceError> {
        if rank >= layout.world {
            return Err(garbled(format!("rank {rank} in a world of {}", layout.world)));
        }
        // Opening it anew leaves the inherited descriptor as it is, and ours is closed on exec and after mapping.
        let path = format!("/proc/self/fd/{number}");
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(failed("open"))?;
        let seals = rustix::fs::fcntl_get_seals(&file).map_err(|source| failed("recognise")(source.into()))?;
        let bytes = file.metadata().map_err(failed("recognise"))?.len();
        if !seals.contains(FIXED_SIZE) || bytes != layout.total as u64 {
            return Err(garbled(format!("descriptor {number} has {bytes} bytes where {} are due", layout.total)));
        }
        let region = layout.region as u64;
        if region > 0 {
            // Taking the pages now, by the thread that is pinned already, makes a lack of memory an error here, not
            // a signal in the middle of a step, and puts them on the rank's own NUMA node.
            rustix::fs::fallocate(&file, FallocateFlags::empty(), layout.region_start(rank) as u64, region)
                .map_err(|source| failed("fill")(source.into()))?;
        }
        let segment = Arc::new(Self::map(&file, layout)?);
        segment.check_head()?;
        segment.claim(rank)?;
        let buckets = segment.own_buckets(rank);
        Ok((segment, buckets))
    }

    fn map(file: &File, layout: Layout) -> Result<Self, DeviceError> {
        let map = MmapOptions::new().len(layout.total).map_raw(file).map_err(failed("map"))?;
        Ok(Self { map, layout })
    }

    fn write_head(&self) {
        self.word(WORLD_WORD).store(self.layout.world as u32, Ordering::Relaxed);
        self.word(BUCKETS_WORD).store(self.layout.lengths.len() as u32, Ordering::Relaxed);
        for (bucket, &length) in self.layout.lengths.iter().enumerate() {
            let [low, high] = self.layout.length_words(bucket);
            self.word(low).store(length as u32, Ordering::Relaxed);
            self.word(high).store((length as u64 >> 32) as u32, Ordering::Relaxed);
        }
        self.word(MAGIC_WORD).store(MAGIC, Ordering::Release);
    }

    /// Compares what the launcher wrote with what this rank expects.
    fn check_head(&self) -> Result<(), DeviceError> {
        let at = |word| self.word(word).load(Ordering::Acquire);
        if at(MAGIC_WORD) != MAGIC {
            return Err(garbled("it does not begin as ours does".to_owned()));
        }
        let (world, buckets) = (at(WORLD_WORD) as usize, at(BUCKETS_WORD) as usize);
        if (world, buckets) != (self.layout.world, self.layout.lengths.len()) {
            let due = format!("{} of {}", self.layout.world, self.layout.lengths.len());
            return Err(garbled(format!("it is for {world} ranks of {buckets} buckets, not {due}")));
        }
        for (bucket, &length) in self.layout.lengths.iter().enumerate() {
            let [low, high] = self.layout.length_words(bucket);
            let there = u64::from(at(high)) << 32 | u64::from(at(low));
            if there != length as u64 {
                return Err(garbled(format!("its bucket {bucket} has {there} elements, not {length}")));
            }
        }
        Ok(())
    }

    /// Takes the place of `rank`, once and for ever, and says which process it is.
    fn claim(&self, rank: usize) -> Result<(), DeviceError> {
        let own = Identity::own().map_err(failed("join"))?;
        let [claimed, pid, started] = self.layout.identity_words(rank);
        if self.word(claimed).swap(1, Ordering::AcqRel) != 0 {
            let taken = format!("the place of rank {rank} is taken");
            return Err(failed("join")(io::Error::new(io::ErrorKind::AlreadyExists, taken)));
        }
        self.word(started).store(own.started, Ordering::Relaxed);
        self.word(pid).store(own.pid, Ordering::Release);
        Ok(())
    }

    /// The buckets of `rank`, whose place the caller has just claimed.
    fn own_buckets(self: &Arc<Self>, rank: usize) -> Vec<Floats> {
        let mut buckets: Vec<Floats> = (0..self.layout.lengths.len())
            .map(|bucket| Floats::shared(SharedRange { segment: Arc::clone(self), rank, bucket }))
            .collect();
        for bucket in &mut buckets {
            // Zero already; writing maps the pages now rather than in the first step.
            bucket.fill(0.0);
        }
        buckets
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The process that joined as `rank`; none before it did.
    pub(super) fn identity(&self, rank: usize) -> Option<Identity> {
        let [_, pid, started] = self.layout.identity_words(rank);
        let pid = self.word(pid).load(Ordering::Acquire);
        (pid != 0).then(|| Identity { pid, started: self.word(started).load(Ordering::Relaxed) })
    }

    /// The word in which the first fault of the group is named.
    pub(super) fn fault(&self) -> &AtomicU32 {
        self.word(FAULT_WORD)
    }

    /// A word of the control area.
    pub(super) fn word(&self, index: usize) -> &AtomicU32 {
        assert!(index < self.layout.control / size_of::<AtomicU32>(), "word {index} lies beyond the control area");
        // SAFETY: the word lies inside the control area (asserted), and that inside the mapping, which has
        // `layout.total` bytes that no process can cut (sealed) and lives as long as `self`. A mapping begins on a
        // page, so the word is aligned. Nothing but atomics ever touches the control area, in any process: floats
        // begin after it.
        unsafe { &*self.map.as_mut_ptr().cast::<AtomicU32>().add(index) }
    }

    /// First element of `bucket` of `rank`. Valid for reading and writing the bucket's length while `self` lives.
    pub(super) fn bucket(&self, rank: usize, bucket: usize) -> *mut f32 {
        let start = self.layout.bucket_start(rank, bucket);
        // SAFETY: `Layout` places every bucket of every rank, whole, inside `layout.total` bytes (held by a test),
        // which is what is mapped.
        unsafe { self.map.as_mut_ptr().add(start).cast::<f32>() }
    }
}

/// One bucket of one rank in shared memory. There is one for each, made by the one process that claimed the rank.
pub(super) struct SharedRange {
    segment: Arc<Segment>,
    rank: usize,
    bucket: usize,
}

impl SharedRange {
    /// The bucket, if it belongs to this very mapping and rank.
    pub(super) fn bucket_in(&self, segment: &Arc<Segment>, rank: usize) -> Option<usize> {
        (Arc::ptr_eq(&self.segment, segment) && self.rank == rank).then_some(self.bucket)
    }

    fn len(&self) -> usize {
        self.segment.layout.lengths[self.bucket]
    }

    pub(super) fn elements(&self) -> &[f32] {
        let first = self.segment.bucket(self.rank, self.bucket);
        // SAFETY: `first` points to `len` aligned floats (any bits are a float) inside the mapping, which the range
        // keeps alive. Writers: the owner only through `elements_mut`, which borrows `self` exclusively; other ranks
        // only while the range is lent, and `RankGroup` holds a lent range itself, so nobody can call this then.
        unsafe { std::slice::from_raw_parts(first, self.len()) }
    }

    pub(super) fn elements_mut(&mut self) -> &mut [f32] {
        let first = self.segment.bucket(self.rank, self.bucket);
        // SAFETY: as in `elements`; there is one range for each bucket of each rank, as a place is claimed once, and
        // it is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(first, self.len()) }
    }
}
