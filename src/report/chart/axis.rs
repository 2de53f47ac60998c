//! Scales, ticks and units of axes.

/// A linear map from values to pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scale {
    from: (f64, f64),
    to: (f64, f64),
}

impl Scale {
    /// Maps `values.0` to `pixels.0` and `values.1` to `pixels.1`; one value alone lies in the middle.
    pub(super) fn new(values: (f64, f64), pixels: (f64, f64)) -> Self {
        Self { from: values, to: pixels }
    }

    /// The pixel of a value; values outside lie on the nearer end.
    pub(super) fn at(&self, value: f64) -> f64 {
        let span = self.from.1 - self.from.0;
        let part = if span.abs() < f64::MIN_POSITIVE { 0.5 } else { ((value - self.from.0) / span).clamp(0.0, 1.0) };
        self.to.0 + part * (self.to.1 - self.to.0)
    }
}

/// Round values from `low` to `high`, about `wanted` of them, and the decimals they need. Steps are 1, 2 or 5 times a
/// power of ten.
pub(super) fn ticks(low: f64, high: f64, wanted: usize) -> (Vec<f64>, usize) {
    /// More lines than this no axis can carry.
    const TICKS_MAX: usize = 40;
    let rough = (high - low) / wanted.max(1) as f64;
    if !(rough.is_finite() && 0.0 < rough) {
        return (vec![low], 2);
    }
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|times| times * power).into_iter().find(|step| rough <= step * 1.0001);
    let step = step.unwrap_or(rough);
    let first = (low / step - 1e-6).ceil();
    let values =
        (0..TICKS_MAX).map(|tick| (first + tick as f64) * step).take_while(|value| *value <= high + step * 1e-6);
    let decimals = (-(step * 1.0001).log10().floor()).clamp(0.0, 6.0) as usize;
    (values.collect(), decimals)
}

/// The unit in which times up to `longest` seconds read best: its size in seconds and its name.
pub(super) fn time_unit(longest: f64) -> (f64, &'static str) {
    let units = [(1.0, "s"), (1e-3, "ms"), (1e-6, "µs")];
    units.into_iter().find(|(size, _)| *size * 2.0 <= longest).unwrap_or((1e-6, "µs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks(0.0, 100.0, 5), (vec![0.0, 20.0, 40.0, 60.0, 80.0, 100.0], 0));
        let (values, decimals) = ticks(0.72, 1.03, 6);
        let labels: Vec<String> = values.iter().map(|value| format!("{value:.decimals$}")).collect();
        assert_eq!(labels, ["0.8", "0.9", "1.0"]);
        assert_eq!(ticks(3.0, 3.0, 5), (vec![3.0], 2), "an empty range has one tick");
        assert!(ticks(0.0, f64::MAX, 5).0.len() <= 40);
    }

    #[test]
    fn values_outside_a_scale_lie_on_its_ends() {
        let scale = Scale::new((0.0, 10.0), (100.0, 0.0));
        assert_eq!((scale.at(5.0), scale.at(-1e300), scale.at(1e300)), (50.0, 100.0, 0.0));
        assert_eq!(Scale::new((1.0, 1.0), (0.0, 50.0)).at(1.0), 25.0);
    }

    #[test]
    fn times_pick_a_unit_that_reads_well() {
        assert_eq!([30.0, 0.25, 3e-5, 0.0].map(|longest| time_unit(longest).1), ["s", "ms", "µs", "µs"]);
    }
}
