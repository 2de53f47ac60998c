//! A range of `f32` that one owner holds: on the heap, or in memory shared with other processes.

use std::ops::{Deref, DerefMut};

/// An owned, fixed range of `f32`. Moving it moves ownership of the range, not the elements.
#[derive(Debug)]
pub struct Floats(Box<[f32]>);

impl Floats {
    /// `len` zeros on the heap.
    #[must_use]
    pub fn zeros(len: usize) -> Self {
        Self(vec![0.0; len].into_boxed_slice())
    }
}

impl Deref for Floats {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.0
    }
}

impl DerefMut for Floats {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.0
    }
}
