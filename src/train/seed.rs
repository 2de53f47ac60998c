//! Streams of random numbers that depend on a seed alone.

use std::f64::consts::TAU;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What random numbers are for; different purposes never share numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The rules of the synthetic language.
    Language = 1,
    /// Which tokens a sample holds.
    Sample = 2,
}

/// The generator of one purpose and stream under a seed.
pub(super) fn generator(seed: u64, purpose: Purpose, stream: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8] = purpose as u8;
    let mut generator = ChaCha8Rng::from_seed(key);
    generator.set_stream(stream);
    generator
}

/// Uniform in [0, 1), 53 bits.
pub(super) fn uniform(generator: &mut impl Rng) -> f64 {
    (generator.next_u64() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
}

/// Uniform in `0..bound`, for bounds far below 2⁵³.
pub(super) fn below(generator: &mut impl Rng, bound: usize) -> usize {
    ((uniform(generator) * bound as f64) as usize).min(bound.saturating_sub(1))
}

/// Fills `out` from a normal distribution with mean 0 (Box and Muller, 1958).
#[cfg(test)]
pub(super) fn normal(generator: &mut impl Rng, deviation: f64, out: &mut [f32]) {
    for pair in out.chunks_mut(2) {
        let radius = deviation * (-2.0 * (1.0 - uniform(generator)).ln()).sqrt();
        let angle = TAU * uniform(generator);
        for (out, value) in pair.iter_mut().zip([radius * angle.cos(), radius * angle.sin()]) {
            *out = value as f32;
        }
    }
}

/// The key of one weight tensor: what [`initial`] begins with.
pub(super) fn weight_key(seed: u64, tensor: u64) -> u64 {
    mixed(seed ^ mixed(tensor.wrapping_add(1).wrapping_mul(STEP)))
}

/// 2⁶⁴ divided by the golden ratio: the step between the states of SplitMix64.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of SplitMix64 (Steele, Lea and Flood, 2014).
fn mixed(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Fills `out` from a normal distribution with mean 0 (Box and Muller, 1958): the numbers from pair `first` on of those
/// that belong to `key`. Each pair is computed on its own, so that any part of a tensor can be, on any device.
pub(super) fn initial(key: u64, first: usize, deviation: f64, out: &mut [f32]) {
    for (pair, out) in (first as u64..).zip(out.chunks_mut(2)) {
        let bits = mixed(key.wrapping_add(pair.wrapping_mul(STEP)));
        let (share, turn) = ((bits >> 40) + 1, bits & 0x00ff_ffff);
        let radius = deviation * (-2.0 * (share as f64 / f64::from(1 << 24)).ln()).sqrt();
        let angle = TAU * (turn as f64 / f64::from(1 << 24));
        for (out, value) in out.iter_mut().zip([radius * angle.cos(), radius * angle.sin()]) {
            *out = value as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normals_have_the_deviation_asked_for() {
        let mut values = vec![0.0; 100_001];
        normal(&mut generator(1, Purpose::Language, 3), 0.02, &mut values);
        let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / values.len() as f64;
        let square = values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>() / values.len() as f64;
        assert!(mean.abs() < 3e-4 && (square.sqrt() - 0.02).abs() < 2e-4, "{mean} {square}");
    }

    #[test]
    fn initial_weights_are_normal_and_any_part_can_be_made_alone() {
        let mut values = vec![0.0; 100_000];
        initial(weight_key(1, 3), 0, 0.02, &mut values);
        let moment = |power| values.iter().map(|&value| f64::from(value).powi(power)).sum::<f64>() / 1e5;
        let (mean, square, fourth) = (moment(1), moment(2), moment(4));
        assert!(mean.abs() < 3e-4 && (square.sqrt() - 0.02).abs() < 2e-4, "{mean} {square}");
        assert!((fourth / (square * square) - 3.0).abs() < 0.1, "kurtosis {}", fourth / (square * square));
        let neighbours = values.windows(2).map(|pair| f64::from(pair[0] * pair[1])).sum::<f64>() / 1e5;
        assert!(neighbours.abs() < 0.02 * square, "{neighbours}");
        let mut part = vec![0.0; 10];
        initial(weight_key(1, 3), 500, 0.02, &mut part);
        assert_eq!(part, values[1000..1010]);
        initial(weight_key(1, 4), 500, 0.02, &mut part);
        assert_ne!(part, values[1000..1010]);
    }

    #[test]
    fn purposes_and_streams_do_not_share_numbers() {
        let first = |seed, purpose, stream| generator(seed, purpose, stream).next_u64();
        let reference = first(7, Purpose::Language, 0);
        assert_eq!(reference, first(7, Purpose::Language, 0));
        assert_ne!(reference, first(8, Purpose::Language, 0));
        assert_ne!(reference, first(7, Purpose::Sample, 0));
        assert_ne!(reference, first(7, Purpose::Language, 1));
        assert!((0..1000).map(|_| below(&mut generator(1, Purpose::Sample, 0), 3)).all(|value| value < 3));
    }
}
