//! Change points, and the steady state of a series of step times.

use super::{mean, median};

/// A level that differs by less than this share from the steady one is the same for practical purposes: what is left
/// of it after the cut moves an efficiency by a fraction of it, in both arms alike.
const TOLERANCE: f64 = 0.01;

/// Blocks that a series is reduced to at most: bounds the work of [`change_points`] at 200²/2 segments.
const BLOCKS_MAX: usize = 200;

/// After warm-up, up to this share of a series may lie at another level (a burst of some other program) before the
/// series counts as unsettled.
const STRAY_SHARE_MAX: f64 = 0.25;

/// Normal consistency of the median absolute deviation.
const MAD: f64 = 1.4826;

/// Where a series becomes steady.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Steady {
    /// Index of the first steady value; 0 where nothing has to be cut or where the series never settles.
    pub start: usize,
    /// False if warm-up takes more than half of the series, or levels keep changing after it, or the series is too
    /// short to tell.
    pub settled: bool,
}

/// Finds the warm-up of a series by change points: the leading segments whose level differs from that of the second
/// half by more than 1 % and by more than the spread of single values. After Barrett et al., "Virtual machine warmup
/// blows hot and cold", 2017, who classify segments by equivalence to the final one; here the second half sets the
/// level, so that a burst at the end is not taken for the steady state. Noise of long memory makes segments of its
/// own: a series counts as unsettled only if it does so at three times that tolerance, too.
///
/// A series of fewer than 9 values is too short to judge and does not count as settled.
#[must_use]
pub fn steady_state(series: &[f64]) -> Steady {
    let block = block_size(series.len());
    let medians: Vec<f64> = blocks(series, block).map(median).collect();
    if medians.len() < 3 {
        return Steady { start: 0, settled: false };
    }
    let noise = Noise::of(series);
    let steady_level = median(&medians[medians.len() / 2..]);
    let tolerance = (TOLERANCE * steady_level).max(noise.spread);
    let penalty = 4.0 * (medians.len() as f64).ln() * noise.block_variance(block);
    let segments = Segments::of(&medians, penalty);
    let found = segments.settle(steady_level, tolerance).or_else(|| segments.settle(steady_level, 3.0 * tolerance));
    let Some(first) = found else { return Steady { start: 0, settled: false } };
    // a median hides single slow values: those at the very beginning still belong to the warm-up
    let is_slow = |value: &f64| (value - steady_level).abs() > 5.0 * tolerance;
    let slow = series[first * block..].iter().take(block).rposition(is_slow);
    Steady { start: first * block + slow.map_or(0, |last| last + 1), settled: true }
}

/// Stretches of blocks at one level.
struct Segments {
    /// Level and number of blocks of each.
    stretches: Vec<(f64, usize)>,
}

impl Segments {
    fn of(medians: &[f64], penalty: f64) -> Self {
        let mut bounds = vec![0];
        bounds.extend(change_points(medians, penalty));
        bounds.push(medians.len());
        let stretches = bounds.windows(2).map(|ends| (mean(&medians[ends[0]..ends[1]]), ends[1] - ends[0])).collect();
        Self { stretches }
    }

    /// The first block of the first segment within `tolerance` of `level`; none if it leaves less than half of the
    /// blocks, or if too many of those it leaves lie at other levels.
    fn settle(&self, level: f64, tolerance: f64) -> Option<usize> {
        let is_steady = |stretch: &&(f64, usize)| (stretch.0 - level).abs() <= tolerance;
        let blocks = |stretches: &[(f64, usize)]| stretches.iter().map(|stretch| stretch.1).sum::<usize>();
        let first = self.stretches.iter().position(|stretch| is_steady(&stretch))?;
        let (cut, left) = (blocks(&self.stretches[..first]), blocks(&self.stretches[first..]));
        let steady: usize = self.stretches[first..].iter().filter(is_steady).map(|stretch| stretch.1).sum();
        let stray = (left - steady) as f64 / left as f64;
        (cut <= left && stray <= STRAY_SHARE_MAX).then_some(cut)
    }
}

/// The change points of a piecewise constant mean: the segmentation with the least sum of squares plus `penalty` for
/// each change, found exactly by optimal partitioning (Jackson et al., "An algorithm for optimal partitioning of data
/// on an interval", 2005). PELT (Killick et al., 2012) minimises the same cost; its pruning pays only on longer
/// series. Segments have at least 2 values. Returns the first index of each segment but the first.
fn change_points(values: &[f64], penalty: f64) -> Vec<usize> {
    const SHORTEST: usize = 2;
    let sums = Sums::of(values);
    let count = values.len();
    // best[end]: least cost of values[..end]; from[end]: where its last segment begins
    let mut best = vec![f64::INFINITY; count + 1];
    let mut from = vec![0; count + 1];
    best[0] = -penalty;
    for end in SHORTEST..=count {
        for start in (0..=end - SHORTEST).filter(|start| *start == 0 || *start >= SHORTEST) {
            let cost = best[start] + sums.squares_about_mean(start, end) + penalty;
            if cost < best[end] {
                best[end] = cost;
                from[end] = start;
            }
        }
    }
    let mut changes = Vec::new();
    let mut end = count;
    while from[end] > 0 {
        end = from[end];
        changes.push(end);
    }
    changes.reverse();
    changes
}

/// Running sums, so that the cost of a segment takes constant time.
struct Sums {
    /// Sum of the first so many values, about the first one.
    values: Vec<f64>,
    /// Sum of their squares.
    squares: Vec<f64>,
}

impl Sums {
    fn of(values: &[f64]) -> Self {
        // about a value of the series itself: squares of large values would cancel badly
        let centre = values.first().copied().unwrap_or(0.0);
        let (mut sum, mut square) = (0.0, 0.0);
        let mut sums = Self { values: vec![0.0], squares: vec![0.0] };
        for value in values {
            sum += value - centre;
            square += (value - centre).powi(2);
            sums.values.push(sum);
            sums.squares.push(square);
        }
        sums
    }

    fn squares_about_mean(&self, start: usize, end: usize) -> f64 {
        let sum = self.values[end] - self.values[start];
        (self.squares[end] - self.squares[start] - sum * sum / (end - start) as f64).max(0.0)
    }
}

/// Odd blocks of 3 to 5 values, so that a median outlives one or two outliers; longer ones in long series.
fn block_size(count: usize) -> usize {
    let short = if count < 50 { 3 } else { 5 };
    short.max(count.div_ceil(BLOCKS_MAX))
}

/// Whole blocks; what is left over joins the last one.
fn blocks(series: &[f64], size: usize) -> impl Iterator<Item = &[f64]> {
    let count = series.len() / size;
    (0..count).map(move |block| {
        let end = if block + 1 == count { series.len() } else { (block + 1) * size };
        &series[block * size..end]
    })
}

/// The noise of a series, as a first-order autoregression.
struct Noise {
    /// Standard deviation of single values.
    spread: f64,
    /// Correlation of neighbours, 0 to 0.9.
    correlation: f64,
}

impl Noise {
    /// From medians of differences, which neither outliers nor a few changes of level disturb: Chakar et al., "A
    /// robust approach for estimating change-points in the mean of an AR(1) process", 2017.
    fn of(series: &[f64]) -> Self {
        let difference = |lag: usize| {
            let all: Vec<f64> = series.windows(lag + 1).map(|pair| (pair[lag] - pair[0]).abs()).collect();
            MAD * median(&all)
        };
        let (one, two) = (difference(1), difference(2));
        let correlation = if one > 0.0 { ((two / one).powi(2) - 1.0).clamp(0.0, 0.9) } else { 0.0 };
        Self { spread: one / (2.0 * (1.0 - correlation)).sqrt(), correlation }
    }

    /// Variance of the median of `size` neighbours as far as levels of many blocks are concerned: the long-run
    /// variance over the size, times π/2 for the median.
    fn block_variance(&self, size: usize) -> f64 {
        let long_run = self.spread.powi(2) * (1.0 + self.correlation) / (1.0 - self.correlation);
        (long_run / size as f64 * std::f64::consts::FRAC_PI_2).max(f64::MIN_POSITIVE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Resampler;

    /// A first-order autoregression with mean 0 and standard deviation 1.
    fn noise(seed: u64, correlation: f64, count: usize) -> Vec<f64> {
        let mut resampler = Resampler::new(seed);
        let mut normal = || (0..12).map(|_| resampler.below(1 << 30) as f64 / (1 << 30) as f64).sum::<f64>() - 6.0;
        let mut value = normal();
        (0..count)
            .map(|_| {
                value = correlation * value + (1.0 - correlation * correlation).sqrt() * normal();
                value
            })
            .collect()
    }

    fn steps(seed: u64, correlation: f64, variation: f64, count: usize) -> Vec<f64> {
        noise(seed, correlation, count).iter().map(|noise| 0.1 * (1.0 + variation * noise)).collect()
    }

    #[test]
    fn changes_of_level_are_found_where_they_are() {
        let mut values = noise(1, 0.0, 90);
        values[30..60].iter_mut().for_each(|value| *value += 8.0);
        assert_eq!(change_points(&values, 20.0), [30, 60]);
        assert!(change_points(&noise(2, 0.0, 90), 20.0).is_empty());
        assert!(change_points(&[], 1.0).is_empty() && change_points(&[1.0], 1.0).is_empty());
    }

    #[test]
    fn warm_up_is_cut_and_outliers_are_not() {
        let mut exact = 0;
        for seed in 0..200 {
            let mut series = steps(seed, 0.3, 0.01, 100);
            series[..12].iter_mut().for_each(|step| *step *= 1.3);
            series[40] *= 3.0;
            series[77] *= 2.0;
            let steady = steady_state(&series);
            assert!(steady.settled && (12..=50).contains(&steady.start), "seed {seed}: {steady:?}");
            exact += usize::from(steady.start <= 15);
        }
        assert!(exact >= 190, "{exact} of 200 cuts lie within one block of the truth");
    }

    #[test]
    fn a_single_slow_first_step_is_cut() {
        let mut series = steps(3, 0.0, 0.005, 40);
        series[0] *= 4.0;
        series[1] *= 1.5;
        let steady = steady_state(&series);
        assert!(steady.settled && (2..=6).contains(&steady.start), "{steady:?}");
    }

    #[test]
    fn steady_noise_is_left_whole() {
        let (mut unsettled, mut cut, mut trials) = (0, 0, 0);
        for seed in 0..600 {
            for (correlation, variation) in [(0.0, 0.001), (0.5, 0.01), (0.9, 0.03), (0.9, 0.005)] {
                for count in [24, 60, 300] {
                    let steady = steady_state(&steps(seed, correlation, variation, count));
                    trials += 1;
                    unsettled += usize::from(!steady.settled);
                    cut += usize::from(steady.start > 0);
                }
            }
        }
        println!("of {trials} steady series {unsettled} count as unsettled, {cut} lose their beginning");
        assert!(unsettled * 200 <= trials, "{unsettled} of {trials} steady series count as unsettled");
        assert!(cut * 20 <= trials, "{cut} of {trials} steady series lose their beginning");
    }

    #[test]
    fn what_never_settles_is_said_so() {
        let rising: Vec<f64> =
            steps(5, 0.3, 0.003, 100).iter().zip(0..).map(|(step, at)| step * (1.0 + 0.003 * f64::from(at))).collect();
        assert!(!steady_state(&rising).settled);
        let late: Vec<f64> = steps(6, 0.3, 0.003, 100)
            .iter()
            .zip(0..)
            .map(|(step, at)| if at < 70 { step * 1.2 } else { *step })
            .collect();
        assert!(!steady_state(&late).settled);
        let swinging: Vec<f64> = steps(7, 0.3, 0.003, 100)
            .iter()
            .zip(0..)
            .map(|(step, at)| if at / 20 % 2 == 0 { step * 1.1 } else { *step })
            .collect();
        assert!(!steady_state(&swinging).settled);
    }

    #[test]
    fn a_burst_in_the_middle_stays_and_does_not_unsettle() {
        let mut series = steps(8, 0.3, 0.003, 100);
        series[45..60].iter_mut().for_each(|step| *step *= 1.1);
        assert_eq!(steady_state(&series), Steady { start: 0, settled: true });
    }

    #[test]
    fn constant_series_are_settled_and_short_ones_cannot_be_judged() {
        for count in 0..9 {
            assert_eq!(steady_state(&vec![0.1; count]), Steady { start: 0, settled: false }, "{count}");
        }
        assert_eq!(steady_state(&[0.1; 9]), Steady { start: 0, settled: true });
        assert_eq!(steady_state(&[0.1; 500]), Steady { start: 0, settled: true });
    }
}
