//! The shape of an attention, and how it is cut into parts.

use std::fmt;

/// Shape of one attention: counts, all at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AttentionDims {
    /// B: sequences.
    pub batch: usize,
    /// T: tokens of a sequence.
    pub context: usize,
    /// H: query heads.
    pub heads: usize,
    /// K: key and value heads; divides H.
    pub kv_heads: usize,
    /// D: channels of a head, a multiple of 8.
    pub head_size: usize,
}

impl AttentionDims {
    /// H + 2K: heads of a token in qkv.
    pub fn packed_heads(&self) -> usize {
        self.heads + 2 * self.kv_heads
    }

    /// Rows of scores: B · H · T.
    pub(super) fn rows(&self) -> usize {
        self.batch * self.heads * self.context
    }

    /// The largest part that divides this evenly and whose scores, as bf16, stay within `bytes`: whole
    /// sequences, else kv heads of one sequence, at the least one.
    pub(super) fn part(&self, bytes: u64) -> Self {
        let group = self.heads / self.kv_heads;
        let batches = (1..=self.batch).rev().filter(|n| self.batch.is_multiple_of(*n));
        let heads = (1..self.kv_heads).rev().filter(|n| self.kv_heads.is_multiple_of(*n));
        let whole = batches.map(|batch| Self { batch, ..*self });
        let split = heads.map(|kv_heads| Self { batch: 1, kv_heads, heads: kv_heads * group, ..*self });
        let mut last = *self;
        for part in whole.chain(split) {
            last = part;
            // cuDNN rounds the context up to its tile, at most 128.
            let context = part.context.next_multiple_of(128);
            if 2 * (part.batch * part.heads) as u64 * (context * context) as u64 <= bytes {
                break;
            }
        }
        last
    }

    /// Which rule the shape breaks, if any.
    pub(super) fn broken_rule(&self) -> Option<&'static str> {
        let Self { batch, context, heads, kv_heads, head_size } = *self;
        let scores = [batch, heads, context, context].into_iter().try_fold(4_usize, usize::checked_mul);
        if batch == 0 || context == 0 || heads == 0 || kv_heads == 0 || head_size == 0 {
            Some("a dimension is zero")
        } else if heads % kv_heads != 0 {
            Some("the kv heads do not divide the heads")
        } else if head_size % 8 != 0 {
            Some("a head is not a multiple of 16 bytes")
        } else if scores.is_none_or(|bytes| i64::try_from(bytes).is_err()) {
            Some("the scores have too many elements")
        } else {
            None
        }
    }
}

impl fmt::Display for AttentionDims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { batch, context, heads, kv_heads, head_size } = self;
        write!(f, "B{batch} T{context} H{heads} K{kv_heads} D{head_size}")
    }
}
