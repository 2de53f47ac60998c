//! Functions of one number, and sums, in forms that compilers turn into vector instructions.

/// Independent partial sums: enough for two registers of AVX-512, in an order that never changes.
pub(super) const LANES: usize = 32;

/// 1.5 · 2²³: adding it to a small `f32` leaves the nearest integer in the low bits of the sum.
const ROUND: f32 = 12_582_912.0;

/// `eˣ` within 2 units of the last place for −87 ≤ x ≤ 88; 0 below, so that no product of it is subnormal and slow,
/// and `e⁸⁸` above. NaN stays NaN. Range reduction by `ln 2` in two parts and the polynomial of Cephes `expf` (Moshier, 1992).
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const LOWEST: f32 = -87.0;
    let vanishes = x < LOWEST;
    let x = x.clamp(LOWEST, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let whole = shifted - ROUND;
    let rest = x - whole * LN2_HIGH - whole * LN2_LOW;
    let mut sum = 1.987_569_1e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        sum = sum * rest + coefficient;
    }
    let fraction = sum * rest * rest + rest + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    if vanishes { 0.0 } else { fraction * f32::from_bits(exponent) }
}

/// `1 / (1 + e⁻ˣ)`.
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `Σ term(aᵢ, bᵢ)` in [`LANES`] partial sums that are added in order at the end.
#[inline(always)]
pub(super) fn sum2(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (a_whole, a_rest) = a.as_chunks::<LANES>();
    let (b_whole, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_whole.iter().zip(b_whole) {
        for lane in 0..LANES {
            lanes[lane] += term(a[lane], b[lane]);
        }
    }
    for ((sum, &a), &b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
        *sum += term(a, b);
    }
    lanes.iter().sum()
}

/// The largest element; −∞ for none.
#[inline(always)]
pub(super) fn max(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if a < b { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for values in whole {
        for lane in 0..LANES {
            lanes[lane] = larger(lanes[lane], values[lane]);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane = larger(*lane, value);
    }
    lanes.iter().fold(f32::NEG_INFINITY, |a, &b| larger(a, b))
}

/// Replaces each value by `e^(scale·value − shift)` and returns the sum of the results.
#[inline(always)]
pub(super) fn exp_in_place(values: &mut [f32], scale: f32, shift: f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (whole, rest) = values.as_chunks_mut::<LANES>();
    for values in whole {
        for lane in 0..LANES {
            values[lane] = exp(values[lane] * scale - shift);
            lanes[lane] += values[lane];
        }
    }
    for (sum, value) in lanes.iter_mut().zip(rest) {
        *value = exp(*value * scale - shift);
        *sum += *value;
    }
    lanes.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_right_to_the_last_places() {
        for step in -86_999..=87_999 {
            let x = step as f32 * 1e-3;
            let right = f64::from(x).exp();
            let error = (f64::from(exp(x)) - right).abs() / right;
            assert!(error < 2.0 * f64::from(f32::EPSILON), "exp({x}) is off by {error:e}");
        }
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) == 0.0 && exp(f32::INFINITY) > 1e38);
    }

    #[test]
    fn sums_and_maxima_take_every_element_once() {
        for len in [0, 1, 31, 32, 33, 64, 100] {
            let values: Vec<f32> = (1..=len).map(|value| value as f32).collect();
            assert_eq!(sum2(&values, &values, |a, _| a), (len * (len + 1) / 2) as f32);
            assert_eq!(max(&values), if len == 0 { f32::NEG_INFINITY } else { len as f32 });
            let mut zeros = vec![7.0; len];
            assert_eq!(exp_in_place(&mut zeros, 0.0, 0.0), len as f32);
            assert!(zeros.iter().all(|&value| value == 1.0));
        }
    }
}
