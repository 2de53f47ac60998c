//! Location and spread of plain samples.

/// Arithmetic mean.
///
/// # Panics
/// `values` is empty: there is no mean of nothing, and a caller that may have nothing says so itself.
#[must_use]
pub fn mean(values: &[f64]) -> f64 {
    assert!(!values.is_empty(), "there is no mean of nothing");
    values.iter().sum::<f64>() / values.len() as f64
}

/// Standard deviation of the population that `values` were drawn from (n − 1 in the divisor); 0 for one value.
///
/// # Panics
/// `values` is empty.
pub(super) fn deviation(values: &[f64]) -> f64 {
    let centre = mean(values);
    if values.len() < 2 {
        return 0.0;
    }
    let squares: f64 = values.iter().map(|value| (value - centre).powi(2)).sum();
    (squares / (values.len() - 1) as f64).sqrt()
}

/// Median: the mean of the two middle values where their number is even.
///
/// # Panics
/// `values` is empty.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    assert!(!values.is_empty(), "there is no median of nothing");
    let mut values = values.to_vec();
    let middle = values.len() / 2;
    let odd = values.len() % 2 == 1;
    let (lower, upper, _) = values.select_nth_unstable_by(middle, f64::total_cmp);
    let below = lower.iter().copied().max_by(f64::total_cmp).filter(|_| !odd);
    below.map_or(*upper, |below| below.midpoint(*upper))
}

/// Values in ascending order, for several quantiles of one sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Sorted(Vec<f64>);

impl Sorted {
    /// Sorts; NaN, which no reader lets in, would come last.
    ///
    /// # Panics
    /// `values` is empty.
    #[must_use]
    pub fn of(mut values: Vec<f64>) -> Self {
        assert!(!values.is_empty(), "there are no quantiles of nothing");
        values.sort_unstable_by(f64::total_cmp);
        Self(values)
    }

    /// The quantile at `share`, 0 (smallest) to 1 (largest), with linear interpolation between order statistics:
    /// definition 7 of Hyndman and Fan, "Sample quantiles in statistical packages", 1996.
    #[must_use]
    pub fn quantile(&self, share: f64) -> f64 {
        let place = share.clamp(0.0, 1.0) * (self.0.len() - 1) as f64;
        let below = place.floor() as usize;
        let above = place.ceil() as usize;
        self.0[below] + (place - place.floor()) * (self.0[above] - self.0[below])
    }

    /// The values, ascending.
    #[must_use]
    pub fn values(&self) -> &[f64] {
        &self.0
    }

    /// How many values fall into each of `bins` equal bins from the smallest to the largest value; all into the
    /// first where the values are equal.
    #[must_use]
    pub fn histogram(&self, bins: usize) -> Vec<usize> {
        let mut counts = vec![0; bins.max(1)];
        let low = self.0[0];
        let width = (self.0[self.0.len() - 1] - low) / counts.len() as f64;
        let last = counts.len() - 1;
        for value in &self.0 {
            let bin = if width > 0.0 { (((value - low) / width) as usize).min(last) } else { 0 };
            counts[bin] += 1;
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_agree_with_r() {
        let values = [2.0, 9.0, 4.0, 7.0];
        assert_eq!(mean(&values), 5.5);
        assert_eq!(median(&values), 5.5);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[3.0]), 3.0);
        assert!((deviation(&values) - 3.109_126_351).abs() < 1e-9); // sd(c(2, 9, 4, 7))
        assert_eq!(deviation(&[3.0]), 0.0);
        let sorted = Sorted::of(values.to_vec());
        let quantiles: Vec<f64> = [0.0, 0.25, 0.5, 0.9, 1.0].iter().map(|share| sorted.quantile(*share)).collect();
        assert_eq!(quantiles, [2.0, 3.5, 5.5, 8.4, 9.0]); // quantile(c(2, 9, 4, 7), c(0, .25, .5, .9, 1))
    }

    #[test]
    fn every_value_has_its_bin() {
        assert_eq!(Sorted::of(vec![0.0, 0.1, 0.5, 0.9, 1.0]).histogram(4), [2, 0, 1, 2]);
        assert_eq!(Sorted::of(vec![7.0; 3]).histogram(4), [3, 0, 0, 0]);
    }
}
