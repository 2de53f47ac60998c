//! Quantities as people write them in platform files: a number and its unit. A number alone is refused.

use serde::{Deserialize, Deserializer, de};

use crate::units::{Bytes, BytesPerSecond, FlopsPerSecond, Seconds, Watts};

const RATES: &[(&str, f64)] = &[("GB/s", 1e9), ("MB/s", 1e6), ("TB/s", 1e12), ("Gb/s", 0.125e9), ("Tb/s", 0.125e12)];
const FLOPS: &[(&str, f64)] = &[("TFLOP/s", 1e12), ("PFLOP/s", 1e15)];
const SIZES: &[(&str, f64)] = &[("GiB", 1_073_741_824.0), ("MiB", 1_048_576.0), ("GB", 1e9)];
const POWERS: &[(&str, f64)] = &[("W", 1.0), ("kW", 1e3)];
const TIMES: &[(&str, f64)] = &[("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("ns", 1e-9), ("s", 1.0)];

/// The value of `text` in base units, which is above 0.
fn parse(text: &str, units: &[(&str, f64)]) -> Result<f64, String> {
    let text = text.trim();
    let names = || units.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let split = text.find(|letter: char| letter.is_alphabetic() || letter == 'µ').unwrap_or(text.len());
    let (number, unit) = (text[..split].trim(), text[split..].trim());
    let number: f64 = number.parse().map_err(|_| format!("`{text}` does not begin with a number"))?;
    if unit.is_empty() {
        return Err(format!("`{text}` has no unit: write one of {} behind the number", names()));
    }
    let Some((_, factor)) = units.iter().find(|(name, _)| *name == unit) else {
        return Err(format!("`{unit}` is not a unit here: expected one of {}", names()));
    };
    if !(number.is_finite() && 0.0 < number) {
        return Err(format!("`{text}` must be above 0"));
    }
    Ok(number * factor)
}

/// Reads a rate such as `48 GB/s`.
///
/// # Errors
/// No number, no unit, or not above 0: what would be right.
pub fn rate(text: &str) -> Result<BytesPerSecond, String> {
    parse(text, RATES).map(BytesPerSecond)
}

/// Reads a duration such as `10 us`.
///
/// # Errors
/// No number, no unit, or not above 0.
pub fn duration(text: &str) -> Result<Seconds, String> {
    parse(text, TIMES).map(Seconds)
}

/// A YAML scalar with its unit: numbers alone get the message about units too.
fn scalar<'de, D: Deserializer<'de>>(deserializer: D, units: &[(&str, f64)]) -> Result<f64, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse(&text, units).map_err(de::Error::custom)
}

/// `#[serde(deserialize_with)]` for [`BytesPerSecond`].
pub(super) fn read_rate<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BytesPerSecond, D::Error> {
    scalar(deserializer, RATES).map(BytesPerSecond)
}

/// The same for an optional key.
pub(super) fn read_some_rate<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<BytesPerSecond>, D::Error> {
    read_rate(deserializer).map(Some)
}

/// `#[serde(deserialize_with)]` for [`FlopsPerSecond`].
pub(super) fn read_flops<'de, D: Deserializer<'de>>(deserializer: D) -> Result<FlopsPerSecond, D::Error> {
    scalar(deserializer, FLOPS).map(FlopsPerSecond)
}

/// The same for an optional key.
pub(super) fn read_some_flops<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<FlopsPerSecond>, D::Error> {
    read_flops(deserializer).map(Some)
}

/// `#[serde(deserialize_with)]` for [`Bytes`].
pub(super) fn read_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    scalar(deserializer, SIZES).map(|bytes| Bytes(bytes as u64))
}

/// `#[serde(deserialize_with)]` for [`Watts`].
pub(super) fn read_power<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Watts, D::Error> {
    scalar(deserializer, POWERS).map(Watts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantity_is_a_number_above_0_with_its_unit() {
        assert_eq!(rate("48 GB/s"), Ok(BytesPerSecond(48e9)));
        assert_eq!(rate("200 Gb/s"), Ok(BytesPerSecond(25e9)));
        assert_eq!(duration("2 ms"), Ok(Seconds(2e-3)));
        for (text, word) in
            [("48", "no unit"), ("48 GT", "GB/s"), ("0 GB/s", "above 0"), ("-1 GB/s", "above 0"), ("fast", "number")]
        {
            assert!(rate(text).unwrap_err().contains(word), "{text}");
        }
    }
}
