//! Quantities with their unit in the type, and the only place that formats them.
//! Knows SI seconds, bytes, rates, watts, joules, tokens; hides how many digits a person wants to read.
//! Never converts silently: a quantity becomes another only through a named method.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, Mul, Sub};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A quantity held as `f64`: arithmetic within the unit, scaling by a plain number, ratio of two.
macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, PartialOrd, Serialize, Deserialize, JsonSchema)]
        #[serde(transparent)]
        pub struct $name(pub f64);

        impl Add for $name {
            type Output = Self;
            fn add(self, other: Self) -> Self {
                Self(self.0 + other.0)
            }
        }
        impl Sub for $name {
            type Output = Self;
            fn sub(self, other: Self) -> Self {
                Self(self.0 - other.0)
            }
        }
        impl AddAssign for $name {
            fn add_assign(&mut self, other: Self) {
                self.0 += other.0;
            }
        }
        impl Mul<f64> for $name {
            type Output = Self;
            fn mul(self, factor: f64) -> Self {
                Self(self.0 * factor)
            }
        }
        impl Div<f64> for $name {
            type Output = Self;
            fn div(self, divisor: f64) -> Self {
                Self(self.0 / divisor)
            }
        }
        impl Div for $name {
            type Output = f64;
            fn div(self, other: Self) -> f64 {
                self.0 / other.0
            }
        }
        impl Sum for $name {
            fn sum<I: Iterator<Item = Self>>(terms: I) -> Self {
                Self(terms.map(|term| term.0).sum())
            }
        }
        impl $name {
            /// True when the value is neither infinite nor NaN.
            #[must_use]
            pub fn is_finite(self) -> bool {
                self.0.is_finite()
            }
        }
    };
}

quantity! {
    /// A duration, or a moment on a clock that the holder names, in seconds.
    Seconds
}
quantity! {
    /// Bytes moved in a second; 1 GB/s is 10⁹ bytes a second.
    BytesPerSecond
}
quantity! {
    /// Tokens trained in a second.
    TokensPerSecond
}
quantity! {
    /// Power in watts.
    Watts
}
quantity! {
    /// Energy in joules.
    Joules
}
quantity! {
    /// Frequency in hertz.
    Hertz
}
quantity! {
    /// Temperature in degrees Celsius.
    Celsius
}
quantity! {
    /// Floating-point operations done in a second.
    FlopsPerSecond
}

/// An amount of memory or of data, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Bytes(pub u64);

/// A number of tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Tokens(pub u64);

impl Add for Bytes {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl Sum for Bytes {
    fn sum<I: Iterator<Item = Self>>(terms: I) -> Self {
        Self(terms.map(|term| term.0).sum())
    }
}

impl Bytes {
    /// The rate at which these bytes moved in `elapsed`.
    #[must_use]
    pub fn over(self, elapsed: Seconds) -> BytesPerSecond {
        BytesPerSecond(self.0 as f64 / elapsed.0)
    }

    /// `count` mebibytes (2²⁰ bytes).
    #[must_use]
    pub fn mebi(count: f64) -> Self {
        Self((count * 1_048_576.0) as u64)
    }
}

impl Tokens {
    /// The rate at which these tokens were trained in `elapsed`.
    #[must_use]
    pub fn over(self, elapsed: Seconds) -> TokensPerSecond {
        TokensPerSecond(self.0 as f64 / elapsed.0)
    }
}

/// Three significant digits, without an exponent.
fn three_digits(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude >= 99.95 || magnitude == 0.0 {
        format!("{value:.0}")
    } else if magnitude >= 9.995 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

/// Writes `value` with the largest of `steps` that leaves at least one whole unit.
fn scaled(out: &mut fmt::Formatter<'_>, value: f64, steps: &[(f64, &str)]) -> fmt::Result {
    let (size, name) =
        steps.iter().find(|(size, _)| value.abs() >= *size * 0.9995).or(steps.last()).copied().unwrap_or((1.0, ""));
    out.pad(&format!("{} {name}", three_digits(value / size)))
}

impl fmt::Display for Seconds {
    /// `1 h 05 min`, `2 min 05 s`, `1.50 s`, `12.0 ms`, `3.20 µs`, `0 s`.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0;
        if seconds >= 3599.5 {
            let minutes = (seconds / 60.0).round();
            return out.pad(&format!("{:.0} h {:02.0} min", (minutes / 60.0).floor(), minutes % 60.0));
        }
        if seconds >= 99.5 {
            let whole = seconds.round();
            return out.pad(&format!("{:.0} min {:02.0} s", (whole / 60.0).floor(), whole % 60.0));
        }
        if seconds.abs() < 5e-12 {
            return out.pad("0 s");
        }
        scaled(out, seconds, &[(1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")])
    }
}

impl fmt::Display for Bytes {
    /// Binary multiples, as memory is sold and planned: `64.0 MiB`.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kibi = 1024.0_f64;
        let steps = [(kibi.powi(4), "TiB"), (kibi.powi(3), "GiB"), (kibi.powi(2), "MiB"), (kibi, "KiB")];
        if self.0 < 1024 {
            return out.pad(&format!("{} B", self.0));
        }
        scaled(out, self.0 as f64, &steps)
    }
}

impl fmt::Display for BytesPerSecond {
    /// Decimal multiples, as links are specified: `25.0 GB/s`.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        scaled(out, self.0, &[(1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s"), (1.0, "B/s")])
    }
}

impl fmt::Display for TokensPerSecond {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(&format!("{} tokens/s", grouped(self.0)))
    }
}

impl fmt::Display for Tokens {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(&format!("{} tokens", grouped(self.0 as f64)))
    }
}

impl fmt::Display for Watts {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(&format!("{} W", three_digits(self.0)))
    }
}

impl fmt::Display for Joules {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        scaled(out, self.0, &[(1e9, "GJ"), (1e6, "MJ"), (1e3, "kJ"), (1.0, "J")])
    }
}

impl Joules {
    /// The mean power at which this energy was spent in `elapsed`.
    #[must_use]
    pub fn over(self, elapsed: Seconds) -> Watts {
        Watts(self.0 / elapsed.0)
    }
}

impl fmt::Display for Hertz {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        scaled(out, self.0, &[(1e9, "GHz"), (1e6, "MHz"), (1e3, "kHz"), (1.0, "Hz")])
    }
}

impl fmt::Display for Celsius {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(&format!("{:.0} °C", self.0))
    }
}

impl fmt::Display for FlopsPerSecond {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        scaled(out, self.0, &[(1e12, "TFLOP/s"), (1e9, "GFLOP/s"), (1e6, "MFLOP/s")])
    }
}

/// A count for people: `12,345`; below a hundred with the digits that matter: `3.25`.
#[must_use]
pub fn grouped(value: f64) -> String {
    if value.abs() < 99.95 {
        return three_digits(value);
    }
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    if value < 0.0 { format!("-{text}") } else { text }
}

/// A quantity with how far it scatters, in its own unit and digits: `25.1 ±0.2 GB/s`. `share` is the scatter over the
/// quantity; what is no plain number with a unit is left as it is.
#[must_use]
pub fn scattered(quantity: impl fmt::Display, share: f64) -> String {
    let text = quantity.to_string();
    let parts = text.split_once(' ').and_then(|(number, unit)| Some((number, number.parse::<f64>().ok()?, unit)));
    match parts.filter(|(.., unit)| !unit.contains(' ')) {
        Some((number, value, unit)) => {
            let decimals = number.split_once('.').map_or(0, |(_, decimals)| decimals.len());
            format!("{number} ±{:.decimals$} {unit}", (value * share).abs())
        }
        None => text,
    }
}

/// A large count in words: `15.3 million`, `1.24 billion`.
#[must_use]
pub fn in_words(count: u64) -> String {
    match count {
        0..1_000_000 => grouped(count as f64),
        1_000_000..1_000_000_000 => format!("{} million", three_digits(count as f64 / 1e6)),
        _ => format!("{} billion", three_digits(count as f64 / 1e9)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_read_as_a_person_writes_them() {
        let rows: &[(&dyn fmt::Display, &str)] = &[
            (&Seconds(0.0), "0 s"),
            (&Seconds(3.2e-6), "3.20 µs"),
            (&Seconds(0.012), "12.0 ms"),
            (&Seconds(1.5), "1.50 s"),
            (&Seconds(125.0), "2 min 05 s"),
            (&Seconds(3900.0), "1 h 05 min"),
            (&Seconds(3599.6), "1 h 00 min"),
            (&Seconds(-0.002), "-2.00 ms"),
            (&Bytes(512), "512 B"),
            (&Bytes(64 << 20), "64.0 MiB"),
            (&BytesPerSecond(25e9), "25.0 GB/s"),
            (&TokensPerSecond(12345.4), "12,345 tokens/s"),
            (&Tokens(256), "256 tokens"),
            (&Watts(575.0), "575 W"),
            (&Joules(5750.0), "5.75 kJ"),
            (&Hertz(2.617e9), "2.62 GHz"),
        ];
        for (quantity, text) in rows {
            assert_eq!(quantity.to_string(), *text);
        }
        assert_eq!(scattered(BytesPerSecond(25.1e9), 0.01), "25.1 ±0.3 GB/s");
        assert_eq!(scattered(Seconds(3.2e-6), 0.5), "3.20 ±1.60 µs");
        assert_eq!(scattered(Seconds(125.0), 0.1), "2 min 05 s");
        assert_eq!(grouped(-1234567.0), "-1,234,567");
        assert_eq!(in_words(15_340_000), "15.3 million");
    }

    #[test]
    fn rates_come_from_amounts_and_durations() {
        assert_eq!(Bytes(100).over(Seconds(2.0)), BytesPerSecond(50.0));
        assert_eq!(Tokens(100).over(Seconds(0.5)), TokensPerSecond(200.0));
        assert_eq!(Joules(100.0).over(Seconds(0.5)), Watts(200.0));
        assert_eq!(Bytes::mebi(0.5), Bytes(524_288));
    }
}
