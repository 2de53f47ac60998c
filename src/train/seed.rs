//! Streams of random numbers that depend on a seed alone.

use std::f64::consts::TAU;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What random numbers are for; different purposes never share numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Initial weights.
    Weights,
    /// The rules of the synthetic language.
    Language,
    /// Which tokens a sample holds.
    Sample,
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
pub(super) fn normal(generator: &mut impl Rng, deviation: f64, out: &mut [f32]) {
    for pair in out.chunks_mut(2) {
        let radius = deviation * (-2.0 * (1.0 - uniform(generator)).ln()).sqrt();
        let angle = TAU * uniform(generator);
        for (out, value) in pair.iter_mut().zip([radius * angle.cos(), radius * angle.sin()]) {
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
        normal(&mut generator(1, Purpose::Weights, 3), 0.02, &mut values);
        let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / values.len() as f64;
        let square = values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>() / values.len() as f64;
        assert!(mean.abs() < 3e-4 && (square.sqrt() - 0.02).abs() < 2e-4, "{mean} {square}");
    }

    #[test]
    fn purposes_and_streams_do_not_share_numbers() {
        let first = |seed, purpose, stream| generator(seed, purpose, stream).next_u64();
        let reference = first(7, Purpose::Weights, 0);
        assert_eq!(reference, first(7, Purpose::Weights, 0));
        assert_ne!(reference, first(8, Purpose::Weights, 0));
        assert_ne!(reference, first(7, Purpose::Sample, 0));
        assert_ne!(reference, first(7, Purpose::Weights, 1));
        assert!((0..1000).map(|_| below(&mut generator(1, Purpose::Sample, 0), 3)).all(|value| value < 3));
    }
}
