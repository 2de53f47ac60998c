//! Where everything lies in the memory shared by the ranks of one host: arithmetic only.
//!
//! ```text
//!  head │ lengths │ block of rank 0 │ block of rank 1 │ … │ region of rank 0: bucket 0, bucket 1, … │ region of rank 1 │ …
//!  ╰──────────────── control: 32-bit atomics ─────────────╯╰──────────────────── f32 ────────────────────────────────╯
//! ```

/// Ranks that one host may hold. More is a mistake in the call, not a machine.
pub(super) const WORLD_MAX: usize = 1024;
/// Buckets that one rank may bring.
const BUCKETS_MAX: usize = 1 << 20;

/// Words of the head; the lengths follow. Word 16 lies on a cache line of its own.
const HEAD_WORDS: usize = 32;
/// What a segment begins with, so that a wrong descriptor is noticed.
pub(super) const MAGIC: u32 = 0x5249_4753;
/// Word of the head that holds [`MAGIC`].
pub(super) const MAGIC_WORD: usize = 0;
/// Word of the head that holds the number of ranks.
pub(super) const WORLD_WORD: usize = 1;
/// Word of the head that holds the number of buckets.
pub(super) const BUCKETS_WORD: usize = 2;
/// Word of the head that names the first fault; 0 while all is well.
pub(super) const FAULT_WORD: usize = 16;

/// Words of a rank's block before its offers: its progress, who sleeps on it, whether it left.
const PROGRESS_WORDS: usize = 4;
/// Words of a rank's block that are written once, at joining, on cache lines of their own.
const IDENTITY_WORDS: usize = 32;
/// Blocks begin at multiples of two cache lines: the adjacent-line prefetcher of x86 fetches pairs.
const BLOCK_ALIGN_WORDS: usize = 32;

/// A bucket begins on a cache line: no two buckets, and no two ranks' chunks of one, share a line.
const BUCKET_ALIGN: usize = 64;
/// A region begins on a huge page where the kernel gives them, and always on pages that only its rank touches first,
/// so that they lie on its NUMA node. Pages between regions are never touched, and cost nothing.
const REGION_ALIGN: usize = 2 << 20;

/// The arithmetic of one segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) world: usize,
    /// Elements of each bucket, the same on every rank.
    pub(super) lengths: Vec<usize>,
    /// First byte of each bucket within a region.
    offsets: Vec<usize>,
    block_words: usize,
    /// Bytes of the control area.
    pub(super) control: usize,
    /// Bytes of a region that buckets cover.
    pub(super) region: usize,
    /// Bytes from one region to the next.
    stride: usize,
    /// Bytes of the whole segment.
    pub(super) total: usize,
}

impl Layout {
    /// The layout for `world` ranks with buckets of `lengths` elements; none if that is no possible memory.
    pub(super) fn new(world: usize, lengths: &[usize]) -> Option<Self> {
        if world == 0 || world > WORLD_MAX || lengths.len() > BUCKETS_MAX {
            return None;
        }
        let mut offsets = Vec::with_capacity(lengths.len());
        let mut region = 0_usize;
        for &length in lengths {
            offsets.push(region);
            region =
                region.checked_add(length.checked_mul(size_of::<f32>())?)?.checked_next_multiple_of(BUCKET_ALIGN)?;
        }
        let words = PROGRESS_WORDS + 2 * (1 + lengths.len());
        let block_words = words.next_multiple_of(BLOCK_ALIGN_WORDS) + IDENTITY_WORDS;
        let head_words = (HEAD_WORDS + 2 * lengths.len()).next_multiple_of(BLOCK_ALIGN_WORDS);
        let control = (4 * (head_words + world * block_words)).next_multiple_of(REGION_ALIGN);
        let stride = region.checked_next_multiple_of(REGION_ALIGN)?;
        let total = control.checked_add(stride.checked_mul(world)?)?;
        // `isize::MAX` bytes is the most that one mapping, and one Rust object, can have.
        isize::try_from(total).ok()?;
        Some(Self { world, lengths: lengths.to_vec(), offsets, block_words, control, region, stride, total })
    }

    /// Words of the head that hold the length of `bucket`: low half, high half.
    pub(super) fn length_words(&self, bucket: usize) -> [usize; 2] {
        assert!(bucket < self.lengths.len(), "bucket {bucket} of {}", self.lengths.len());
        [HEAD_WORDS + 2 * bucket, HEAD_WORDS + 2 * bucket + 1]
    }

    fn block(&self, rank: usize) -> usize {
        assert!(rank < self.world, "rank {rank} of {}", self.world);
        (HEAD_WORDS + 2 * self.lengths.len()).next_multiple_of(BLOCK_ALIGN_WORDS) + rank * self.block_words
    }

    /// Word that counts what `rank` has arrived at; peers sleep on it.
    pub(super) fn arrived_word(&self, rank: usize) -> usize {
        self.block(rank)
    }

    /// Word that counts the peers that sleep, or are about to, until `rank` arrives.
    pub(super) fn sleepers_word(&self, rank: usize) -> usize {
        self.block(rank) + 1
    }

    /// Word that is 1 once `rank` has left in order.
    pub(super) fn departed_word(&self, rank: usize) -> usize {
        self.block(rank) + 2
    }

    /// First of the words that say what `rank` brings to operation `operation`: how many buckets, then which. There
    /// are two places, used in turn: a rank may be one operation ahead of a peer that still reads, never two.
    pub(super) fn offer_word(&self, rank: usize, operation: u32) -> usize {
        self.block(rank) + PROGRESS_WORDS + (operation % 2) as usize * (1 + self.lengths.len())
    }

    /// Words that say which process `rank` is: claimed (0 or 1), number, start time.
    pub(super) fn identity_words(&self, rank: usize) -> [usize; 3] {
        let first = self.block(rank) + self.block_words - IDENTITY_WORDS;
        [first, first + 1, first + 2]
    }

    /// First byte of the region of `rank`.
    pub(super) fn region_start(&self, rank: usize) -> usize {
        assert!(rank < self.world, "rank {rank} of {}", self.world);
        self.control + rank * self.stride
    }

    /// First byte of `bucket` of `rank`; a multiple of 64.
    pub(super) fn bucket_start(&self, rank: usize, bucket: usize) -> usize {
        self.region_start(rank) + self.offsets[bucket]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn nothing_overlaps_and_everything_fits(world in 1..6_usize, lengths in prop::collection::vec(0..3000_usize, 0..7)) {
            let layout = Layout::new(world, &lengths).unwrap();
            let mut words = BTreeSet::from([MAGIC_WORD, WORLD_WORD, BUCKETS_WORD, FAULT_WORD]);
            let mut all = words.len();
            let mut end = layout.control;
            for bucket in 0..lengths.len() {
                words.extend(layout.length_words(bucket));
                all += 2;
            }
            for rank in 0..world {
                words.extend([layout.arrived_word(rank), layout.sleepers_word(rank), layout.departed_word(rank)]);
                words.extend(layout.identity_words(rank));
                for operation in [6, 7] {
                    let first = layout.offer_word(rank, operation);
                    words.extend(first..=first + lengths.len());
                }
                all += 6 + 2 * (1 + lengths.len());
                for (bucket, length) in lengths.iter().enumerate() {
                    let start = layout.bucket_start(rank, bucket);
                    prop_assert!(start >= end && start.is_multiple_of(64));
                    end = start + 4 * length;
                }
            }
            prop_assert_eq!(words.len(), all, "words are distinct");
            prop_assert!(4 * words.last().unwrap() < layout.control);
            prop_assert!(end <= layout.total);
        }
    }

    #[test]
    fn impossible_memory_has_no_layout() {
        for (world, lengths) in
            [(0, vec![1]), (WORLD_MAX + 1, vec![1]), (2, vec![usize::MAX / 8]), (3, vec![usize::MAX])]
        {
            assert_eq!(Layout::new(world, &lengths), None);
        }
    }
}
