//! Which places of a machine a smaller world takes.

/// Which of the places that the largest world takes a smaller one does: evenly spread from the first to the last, so that
/// it spans the machine and meets its longest way.
#[must_use]
pub fn shares_of(world: usize, largest: usize) -> Vec<usize> {
    match world {
        0 | 1 => vec![0; world],
        _ => (0..world).map(|rank| rank * (largest - 1) / (world - 1)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_smaller_world_spans_the_machine() {
        assert_eq!(shares_of(1, 4), vec![0]);
        assert_eq!(shares_of(2, 4), vec![0, 3]);
        assert_eq!(shares_of(4, 4), vec![0, 1, 2, 3]);
        assert_eq!(shares_of(2, 2), vec![0, 1]);
    }
}
