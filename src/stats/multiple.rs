//! Several tests at once, with the error of all of them bounded.

/// The error that each of `tests` may make so that all together make at most `error` (Bonferroni).
#[must_use]
pub fn bonferroni(error: f64, tests: usize) -> f64 {
    error / tests.max(1) as f64
}

/// Which hypotheses are rejected when the chance of one wrong rejection among all is at most `error`: Holm, "A
/// simple sequentially rejective multiple test procedure", 1979. At least as powerful as Bonferroni, whose bound is
/// its first step; a smaller p-value is never kept where a larger one is rejected.
#[must_use]
pub fn holm(p_values: &[f64], error: f64) -> Vec<bool> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|one, other| p_values[*one].total_cmp(&p_values[*other]));
    let mut rejected = vec![false; p_values.len()];
    for (rank, index) in order.into_iter().enumerate() {
        if p_values[index] > bonferroni(error, p_values.len() - rank) {
            break;
        }
        rejected[index] = true;
    }
    rejected
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holm_steps_down_and_stops_at_the_first_that_holds() {
        assert_eq!(holm(&[0.01, 0.04, 0.03, 0.005], 0.05), [true, false, false, true]); // Holm's own example
        assert_eq!(holm(&[0.02, 0.04], 0.05), [true, true]);
        assert_eq!(holm(&[0.026, 0.04], 0.05), [false, false]);
        assert!(holm(&[], 0.05).is_empty());
        assert_eq!(bonferroni(0.05, 2), 0.025);
    }
}
