//! A range of `f32` that one owner holds: on the heap, or in memory shared with other processes.

use std::fmt;
use std::ops::{Deref, DerefMut};

use super::shared_memory::SharedRange;

/// An owned, fixed range of `f32`. Moving it moves ownership of the range, not the elements.
///
/// A range in shared memory is reached by other ranks too, but only while its owner has lent it to the group, and a
/// lent range is out of the owner's hands (`RankGroup::hand_over`).
pub struct Floats(Place);

/// Where the elements lie.
enum Place {
    Heap(Box<[f32]>),
    Shared(SharedRange),
}

impl Floats {
    /// `len` zeros on the heap.
    #[must_use]
    pub fn zeros(len: usize) -> Self {
        Self(Place::Heap(vec![0.0; len].into_boxed_slice()))
    }

    /// The range that a rank owns in shared memory.
    pub(super) fn shared(range: SharedRange) -> Self {
        Self(Place::Shared(range))
    }

    /// The range in shared memory; none on the heap.
    pub(super) fn as_shared(&self) -> Option<&SharedRange> {
        match &self.0 {
            Place::Heap(_) => None,
            Place::Shared(range) => Some(range),
        }
    }
}

impl Deref for Floats {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        match &self.0 {
            Place::Heap(elements) => elements,
            Place::Shared(range) => range.elements(),
        }
    }
}

impl DerefMut for Floats {
    fn deref_mut(&mut self) -> &mut [f32] {
        match &mut self.0 {
            Place::Heap(elements) => elements,
            Place::Shared(range) => range.elements_mut(),
        }
    }
}

impl fmt::Debug for Floats {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match &self.0 {
            Place::Heap(_) => "on the heap",
            Place::Shared(_) => "in shared memory",
        };
        write!(out, "Floats({} elements {place})", self.len())
    }
}
