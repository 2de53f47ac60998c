//! A checksum of weights that any change of one of them changes.

use rayon::prelude::*;

use crate::device::vectorised;

use super::PART;

/// `Σ bits · (2·place + 1)`, modulo 2⁶⁴, with places from `first`: the factors are odd, so that each bit counts.
pub(super) fn of(values: &[f32], first: usize) -> u64 {
    let parts = values.par_chunks(PART).enumerate();
    parts.map(|(part, values)| of_part(values, (first + part * PART) as u64)).reduce(|| 0, u64::wrapping_add)
}

/// The places of a part fit in 32 bits, which vectors of integers multiply; what comes before it is a factor of all.
fn of_part(values: &[f32], first: u64) -> u64 {
    let (plain, placed) = vectorised(
        #[inline(always)]
        || {
            let (mut plain, mut placed) = (0_u64, 0_u64);
            for (place, value) in (0_u32..).zip(values) {
                let bits = u64::from(value.to_bits());
                plain = plain.wrapping_add(bits);
                placed = placed.wrapping_add(bits * u64::from(2 * place + 1));
            }
            (plain, placed)
        },
    );
    placed.wrapping_add(plain.wrapping_mul(2 * first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_is_the_sum_that_it_says_and_changes_with_each_bit_and_each_exchange() {
        let values: Vec<f32> = (0..40_001_u32).map(|place| f32::from_bits(place.wrapping_mul(2_654_435_761))).collect();
        let wanted = |values: &[f32], first: u64| {
            let terms =
                (first..).zip(values).map(|(place, value)| u64::from(value.to_bits()).wrapping_mul(2 * place + 1));
            terms.fold(0, u64::wrapping_add)
        };
        for first in [0, 1, 7 << 40] {
            assert_eq!(of(&values, first), wanted(&values, first as u64));
        }
        let whole = of(&values, 5);
        assert_eq!(whole, of(&values[..777], 5).wrapping_add(of(&values[777..], 782)), "parts add up");
        for (place, bit) in [(0, 0), (16_384, 31), (40_000, 12)] {
            let mut changed = values.clone();
            changed[place] = f32::from_bits(changed[place].to_bits() ^ 1 << bit);
            assert_ne!(of(&changed, 5), whole, "bit {bit} of element {place}");
        }
        let mut exchanged = values.clone();
        exchanged.swap(3, 20_000);
        assert_ne!(of(&exchanged, 5), whole);
    }
}
