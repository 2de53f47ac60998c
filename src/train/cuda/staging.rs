//! Batches on their way to the GPU: sorted by id on the host, in pinned memory that is used in turn.

use crate::device::cuda::{CudaError, Event, Gpu, Pinned};
use crate::train::ops::Lookup;

/// Batches that may be on their way while another is filled.
const PLACES: usize = 3;

/// Words of a batch on the GPU: ids, targets, rows sorted by id, and where the rows of each id begin.
pub(super) fn words(dims: Lookup) -> usize {
    3 * dims.rows + dims.vocabulary + 1
}

/// The pinned places.
#[derive(Debug, Default)]
pub(super) struct Staging {
    places: Vec<(Pinned<u32>, Option<Event>)>,
    next: usize,
}

impl Staging {
    /// Takes the memory for batches of this size.
    pub(super) fn prepare(&mut self, gpu: &Gpu, dims: Lookup) -> Result<(), CudaError> {
        let place = |_| Ok((Pinned::zeros(gpu, words(dims))?, None));
        self.places = (0..PLACES).map(place).collect::<Result<_, CudaError>>()?;
        Ok(())
    }

    /// Fills the next place; waits until it is free.
    ///
    /// # Panics
    /// If the batch has another size than was prepared for, or an id is not below `vocabulary`: a bug of the caller.
    pub(super) fn fill(
        &mut self,
        inputs: &[u32],
        targets: &[u32],
        vocabulary: usize,
    ) -> Result<&Pinned<u32>, CudaError> {
        let (pinned, sent) = &mut self.places[self.next];
        if let Some(sent) = sent.take() {
            sent.wait()?;
        }
        assert!(inputs.iter().chain(targets).all(|id| (*id as usize) < vocabulary), "an id outside the vocabulary");
        let rows = inputs.len();
        let all = pinned.get_mut();
        all[..rows].copy_from_slice(inputs);
        all[rows..2 * rows].copy_from_slice(targets);
        let (order, starts) = all[2 * rows..].split_at_mut(rows);
        sort(inputs, order, starts);
        Ok(pinned)
    }

    /// Says when what was filled last has left.
    pub(super) fn sent(&mut self, event: Event) {
        self.places[self.next].1 = Some(event);
        self.next = (self.next + 1) % self.places.len();
    }
}

/// Counting sort: `order[N]` holds the rows by id, ascending within one, and `starts[V + 1]` where those of each begin.
fn sort(ids: &[u32], order: &mut [u32], starts: &mut [u32]) {
    starts.fill(0);
    for &id in ids {
        starts[id as usize + 1] += 1;
    }
    let mut sum = 0;
    for start in starts.iter_mut() {
        sum += *start;
        *start = sum;
    }
    // `starts[id]` runs ahead while rows are placed, and ends where those of `id + 1` begin
    for (row, &id) in (0..).zip(ids) {
        let next = &mut starts[id as usize];
        order[*next as usize] = row;
        *next += 1;
    }
    starts.rotate_right(1);
    starts[0] = 0;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_sorted_by_id_and_stay_in_order_within_one() {
        let ids = [3, 1, 3, 0, 1, 3];
        let (mut order, mut starts) = (vec![9; 6], vec![9; 6]);
        sort(&ids, &mut order, &mut starts);
        assert_eq!(order, [3, 1, 4, 0, 2, 5]);
        assert_eq!(starts, [0, 1, 3, 3, 6, 6]);
    }
}
