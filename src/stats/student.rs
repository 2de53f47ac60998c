//! Student's t on the logarithm of ratios.

use statrs::distribution::{ContinuousCDF, StudentsT};

use super::{deviation, mean};

/// Ratios of independent repetitions, seen through their logarithms, in which a ratio and its inverse weigh the same
/// and factors add up. Each repetition is one sample, however many autocorrelated steps it averages (Kalibera and
/// Jones, "Rigorous benchmarking in reasonable time", 2013: repeat at the level that varies).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogRatios {
    /// Mean of the logarithms.
    mean: f64,
    /// Their standard deviation; 0 for a single one.
    deviation: f64,
    /// How many.
    count: usize,
}

impl LogRatios {
    /// Takes ratios, all above 0.
    ///
    /// # Panics
    /// `ratios` is empty.
    #[must_use]
    pub fn of(ratios: &[f64]) -> Self {
        let logs: Vec<f64> = ratios.iter().map(|ratio| ratio.ln()).collect();
        Self { mean: mean(&logs), deviation: deviation(&logs), count: logs.len() }
    }

    /// The geometric mean.
    #[must_use]
    pub fn estimate(&self) -> f64 {
        self.mean.exp()
    }

    /// How many ratios there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// The two-sided interval at `confidence` (0.95 leaves 2.5 % on either side); none for a single ratio.
    #[must_use]
    pub fn interval(&self, confidence: f64) -> Option<(f64, f64)> {
        let half = half_width(self.deviation, self.count, confidence)?;
        Some(((self.mean - half).exp(), (self.mean + half).exp()))
    }

    /// One-sided p-value of "the true ratio is at least `target`": small where the ratios lie clearly below it. None
    /// for a single ratio.
    #[must_use]
    pub fn p_at_least(&self, target: f64) -> Option<f64> {
        let distance = self.mean - target.ln();
        if self.count < 2 {
            return None;
        }
        if self.deviation == 0.0 {
            return Some(if distance < 0.0 { 0.0 } else { 1.0 });
        }
        let t = distance * (self.count as f64).sqrt() / self.deviation;
        Some(students_t(self.count)?.cdf(t))
    }

    /// The smallest number of ratios, at most `limit`, whose interval at `confidence` would leave `target` outside if
    /// mean and scatter stayed as they are; none where no such number exists, or none is known from a single ratio.
    #[must_use]
    pub fn count_that_excludes(&self, target: f64, confidence: f64, limit: usize) -> Option<usize> {
        let distance = (self.mean - target.ln()).abs();
        if self.count < 2 || distance == 0.0 {
            return None;
        }
        // the half width falls with the count: search by halves
        let excludes = |count| half_width(self.deviation, count, confidence).is_some_and(|half| half <= distance);
        if !excludes(limit) {
            return None;
        }
        let (mut no, mut yes) = (1, limit);
        while yes - no > 1 {
            let middle = no.midpoint(yes);
            if excludes(middle) { yes = middle } else { no = middle }
        }
        Some(yes)
    }
}

/// `t(1 − (1 − confidence)/2, n − 1) · s / √n`; none for fewer than two samples.
fn half_width(deviation: f64, count: usize, confidence: f64) -> Option<f64> {
    let t = students_t(count)?.inverse_cdf(0.5 + confidence / 2.0);
    Some(t * deviation / (count as f64).sqrt())
}

fn students_t(count: usize) -> Option<StudentsT> {
    let freedom = count.checked_sub(1).filter(|freedom| *freedom > 0)?;
    StudentsT::new(0.0, 1.0, freedom as f64).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_uses_the_table_of_student() {
        // t(0.975, n − 1) and t(0.9875, n − 1): R's qt
        let rows = [
            (2, 0.95, 12.706_204_736),
            (3, 0.95, 4.302_652_730),
            (5, 0.95, 2.776_445_105),
            (5, 0.975, 3.495_405_933),
            (10, 0.95, 2.262_157_163),
            (200, 0.95, 1.971_956_544),
        ];
        for (count, confidence, quantile) in rows {
            let found = half_width((count as f64).sqrt(), count, confidence).unwrap();
            assert!((found - quantile).abs() < 1e-6 * quantile, "n {count}: {found} for {quantile}");
        }
        assert_eq!(half_width(1.0, 1, 0.95), None);
    }

    #[test]
    fn ratios_and_their_inverses_mirror_each_other() {
        let ratios = LogRatios::of(&[0.90, 0.92, 0.91, 0.93, 0.89]);
        let inverse = LogRatios::of(&[1.0 / 0.90, 1.0 / 0.92, 1.0 / 0.91, 1.0 / 0.93, 1.0 / 0.89]);
        let (low, high) = ratios.interval(0.95).unwrap();
        let (inverse_low, inverse_high) = inverse.interval(0.95).unwrap();
        assert!((low * inverse_high - 1.0).abs() < 1e-12 && (high * inverse_low - 1.0).abs() < 1e-12);
        assert!(low < ratios.estimate() && ratios.estimate() < high);
        assert_eq!(LogRatios::of(&[0.9]).interval(0.95), None);
    }

    #[test]
    fn the_p_value_and_the_interval_agree_at_the_bound() {
        let ratios = LogRatios::of(&[0.90, 0.92, 0.91, 0.93, 0.89]);
        let (_, high) = ratios.interval(0.95).unwrap();
        assert!((ratios.p_at_least(high).unwrap() - 0.025).abs() < 1e-6);
        assert!(ratios.p_at_least(0.8).unwrap() > 0.99);
        assert_eq!(LogRatios::of(&[0.9, 0.9]).p_at_least(0.95), Some(0.0));
    }

    #[test]
    fn the_count_that_settles_is_the_first_that_does() {
        let ratios = LogRatios::of(&[0.90, 0.92, 0.94, 0.91]);
        let count = ratios.count_that_excludes(0.91, 0.95, 200).unwrap();
        let distance = (ratios.mean - 0.91_f64.ln()).abs();
        assert!(half_width(ratios.deviation, count, 0.95).unwrap() <= distance);
        assert!(half_width(ratios.deviation, count - 1, 0.95).unwrap() > distance);
        assert_eq!(ratios.count_that_excludes(ratios.estimate() + 1e-6, 0.95, 200), None);
    }
}
