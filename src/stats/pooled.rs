//! One scatter for many small groups.

use statrs::distribution::{ContinuousCDF, StudentsT};

use super::median;

/// Normal consistency of the median absolute deviation.
const MAD: f64 = 1.4826;

/// A deviation counts at most so many times the usual one: a burst of another program is no scatter of what is measured.
const CLIP: f64 = 3.5;

/// The scatter within groups that have different means and the same scatter: two launches of each of ten settings say
/// as much of it as eleven launches of one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pooled {
    /// Standard deviation of one value about the mean of its group.
    pub deviation: f64,
    /// Degrees of freedom.
    pub freedom: usize,
}

impl Pooled {
    /// From groups of values; none where no group holds two. Deviations from the median of a group that are more than
    /// 3.5 times the usual one are pulled in to that.
    #[must_use]
    pub fn of<'a>(groups: impl IntoIterator<Item = &'a [f64]>) -> Option<Self> {
        let groups: Vec<&[f64]> = groups.into_iter().filter(|group| 1 < group.len()).collect();
        let freedom: usize = groups.iter().map(|group| group.len() - 1).sum();
        let deviations: Vec<f64> = groups
            .iter()
            .flat_map(|group| {
                // the deviation from an estimated centre is too small by this
                let (centre, size) = (median(group), group.len() as f64);
                group.iter().map(move |value| (value - centre) * (size / (size - 1.0)).sqrt())
            })
            .collect();
        if freedom == 0 {
            return None;
        }
        let usual = MAD * median(&deviations.iter().map(|one| one.abs()).collect::<Vec<_>>());
        let limit = if 0.0 < usual { CLIP * usual } else { f64::INFINITY };
        let squares: f64 = deviations.iter().map(|one| one.clamp(-limit, limit).powi(2)).sum();
        Some(Self { deviation: (squares / deviations.len() as f64).sqrt(), freedom })
    }

    /// Half the width of the interval at `confidence` of the difference between the means of `one` and `other` values.
    #[must_use]
    pub fn half_width(&self, one: usize, other: usize, confidence: f64) -> f64 {
        let t = StudentsT::new(0.0, 1.0, self.freedom.max(1) as f64)
            .map_or(f64::INFINITY, |student| student.inverse_cdf(0.5 + confidence / 2.0));
        let inverse = |count: usize| 1.0 / count.max(1) as f64;
        t * self.deviation * (inverse(one) + inverse(other)).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_give_the_scatter_of_one_value() {
        // pairs at ±1 about their means: each value has variance 2 · 1² = 2
        let pairs = [[9.0, 11.0]; 8];
        let pooled = Pooled::of(pairs.iter().map(<[f64; 2]>::as_slice)).unwrap();
        assert!((pooled.deviation - 2.0_f64.sqrt()).abs() < 1e-12 && pooled.freedom == 8, "{pooled:?}");
        // t(0.975, 8) = 2.306004; two means of two: √(1/2 + 1/2)
        assert!((pooled.half_width(2, 2, 0.95) - 2.306_004 * 2.0_f64.sqrt()).abs() < 1e-5);
        assert_eq!(Pooled::of([[1.0].as_slice()]), None);
    }

    #[test]
    fn a_burst_does_not_become_the_scatter() {
        let mut groups = vec![vec![0.0, 0.01, -0.01]; 10];
        let calm = Pooled::of(groups.iter().map(Vec::as_slice)).unwrap().deviation;
        groups[3][1] = 5.0;
        let burst = Pooled::of(groups.iter().map(Vec::as_slice)).unwrap().deviation;
        assert!(burst < 2.0 * calm, "{calm} {burst}");
    }
}
