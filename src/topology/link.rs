//! PCIe links: what each end can do, what they agreed on, and which hop of a path is the narrowest.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::BytesPerSecond;

use super::{Fact, PciAddress, Reading};

/// PCIe generation of a link's speed, 1 to 7.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "u64", into = "u64")]
#[schemars(with = "u64", extend("minimum" = 1, "maximum" = 7))]
pub struct Generation(u8);

/// Transfers per second and lane in units of 10⁹, and payload bytes per second and lane in units of 10⁶, by generation.
/// The payload is what is left after the line code: 8b/10b for 1 and 2, 128b/130b for 3 to 5, 242 of 256 bytes of a flit
/// for 6 and 7 (PCI Express Base Specification 6.0, sections 4.2 and 4.2.3).
const RATES: [(f64, f64); 7] = [
    (2.5, 250.0),
    (5.0, 500.0),
    (8.0, 8e3 / 8.0 * 128.0 / 130.0),
    (16.0, 16e3 / 8.0 * 128.0 / 130.0),
    (32.0, 32e3 / 8.0 * 128.0 / 130.0),
    (64.0, 64e3 / 8.0 * 242.0 / 256.0),
    (128.0, 128e3 / 8.0 * 242.0 / 256.0),
];

impl Generation {
    /// The generation with this number, if there is one.
    #[must_use]
    pub fn new(number: u64) -> Option<Self> {
        (1..=7).contains(&number).then_some(Self(number as u8))
    }

    /// The generation with this rate in GT/s per lane.
    #[must_use]
    pub fn from_rate(gigatransfers: f64) -> Option<Self> {
        RATES.iter().position(|(rate, _)| *rate == gigatransfers).map(|index| Self(index as u8 + 1))
    }

    /// As the kernel writes it in sysfs: `16.0 GT/s PCIe`, in older kernels `8 GT/s`. None for anything else.
    #[must_use]
    pub fn from_sysfs(text: &str) -> Option<Self> {
        text.split_once(" GT/s").and_then(|(rate, _)| rate.parse().ok()).and_then(Self::from_rate)
    }

    /// Transfers per second and lane, in units of 10⁹.
    #[must_use]
    pub fn rate(self) -> f64 {
        RATES[usize::from(self.0) - 1].0
    }

    /// Payload of one lane in one direction, before packet headers.
    #[must_use]
    pub fn lane_rate(self) -> BytesPerSecond {
        BytesPerSecond(RATES[usize::from(self.0) - 1].1 * 1e6)
    }
}

impl TryFrom<u64> for Generation {
    type Error = String;
    fn try_from(number: u64) -> Result<Self, String> {
        Self::new(number).ok_or_else(|| format!("{number} is no PCIe generation: expected 1 to 7"))
    }
}

impl From<Generation> for u64 {
    fn from(generation: Generation) -> Self {
        Self::from(generation.0)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Gen{}", self.0)
    }
}

/// Lanes of a link: 1, 2, 4, 8, 12, 16 or 32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "u64", into = "u64")]
#[schemars(with = "u64", extend("enum" = [1, 2, 4, 8, 12, 16, 32]))]
pub struct Width(u8);

impl Width {
    /// The width of so many lanes, if a link can have it.
    #[must_use]
    pub fn new(lanes: u64) -> Option<Self> {
        matches!(lanes, 1 | 2 | 4 | 8 | 12 | 16 | 32).then_some(Self(lanes as u8))
    }
}

impl TryFrom<u64> for Width {
    type Error = String;
    fn try_from(lanes: u64) -> Result<Self, String> {
        Self::new(lanes).ok_or_else(|| format!("{lanes} is no link width: expected 1, 2, 4, 8, 12, 16 or 32"))
    }
}

impl From<Width> for u64 {
    fn from(width: Width) -> Self {
        Self::from(width.0)
    }
}

impl fmt::Display for Width {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "x{}", self.0)
    }
}

/// When a fact was read: links slow down while a GPU idles, so a speed counts only under load.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Nothing ran.
    #[default]
    AtRest,
    /// The GPUs were copying.
    UnderLoad,
}

impl Phase {
    /// True at rest: what a file does not say.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        *self == Self::AtRest
    }
}

/// One end of a link, as the device at that end reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LinkEnd {
    /// Generation in use when it was read.
    #[serde(with = "Fact::<Generation>")]
    pub gen_now: Reading<Generation>,
    /// Lanes in use.
    #[serde(with = "Fact::<Width>")]
    pub width_now: Reading<Width>,
    /// Highest generation that this end offers.
    #[serde(with = "Fact::<Generation>")]
    pub gen_max: Reading<Generation>,
    /// Most lanes that this end offers.
    #[serde(with = "Fact::<Width>")]
    pub width_max: Reading<Width>,
    /// When `gen_now` was read.
    #[serde(default, skip_serializing_if = "Phase::is_at_rest")]
    pub phase: Phase,
}

/// A generation and a width: what a link can do or does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Lanes {
    /// Speed.
    #[serde(rename = "gen")]
    pub generation: Generation,
    /// Lanes.
    pub width: Width,
}

impl Lanes {
    /// Payload in one direction, before packet headers: Gen4 x16 is 31.5 GB/s.
    #[must_use]
    pub fn rate(self) -> BytesPerSecond {
        self.generation.lane_rate() * f64::from(self.width.0)
    }

    /// What both of two ends can do.
    #[must_use]
    pub fn common(self, other: Self) -> Self {
        Self { generation: self.generation.min(other.generation), width: self.width.min(other.width) }
    }
}

impl fmt::Display for Lanes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(&format!("{} {}", self.generation, self.width))
    }
}

impl LinkEnd {
    /// The most that this end offers.
    ///
    /// # Errors
    /// The first of its facts that is missing.
    pub fn max(&self) -> Reading<Lanes> {
        Ok(Lanes { generation: self.gen_max.clone()?, width: self.width_max.clone()? })
    }

    /// What was in use when it was read.
    ///
    /// # Errors
    /// The first of its facts that is missing.
    pub fn now(&self) -> Reading<Lanes> {
        Ok(Lanes { generation: self.gen_now.clone()?, width: self.width_now.clone()? })
    }
}

/// One link of a path, from the side of the root complex to the side of the device.
#[derive(Debug, Clone, Copy)]
pub struct Hop<'a> {
    /// Port at the side of the root complex.
    pub upper: PciAddress,
    /// Device at the other side.
    pub lower: PciAddress,
    /// What the upper port reports.
    pub upper_end: &'a LinkEnd,
    /// What the lower device reports.
    pub lower_end: &'a LinkEnd,
}

impl Hop<'_> {
    /// The most that both ends offer.
    ///
    /// # Errors
    /// The first fact that is missing at either end.
    pub fn max(&self) -> Reading<Lanes> {
        Ok(self.upper_end.max()?.common(self.lower_end.max()?))
    }

    /// Lanes in use, as either end tells.
    ///
    /// # Errors
    /// What the lower end lacks, if both lack it.
    pub fn width_now(&self) -> Reading<Width> {
        self.lower_end.width_now.clone().or_else(|missing| self.upper_end.width_now.clone().map_err(|_| missing))
    }

    /// What the link gives when awake: the speed that both ends offer over the lanes that are in use (those that both
    /// offer, where the ones in use are unknown).
    ///
    /// # Errors
    /// The first fact that is missing at either end.
    pub fn awake(&self) -> Reading<Lanes> {
        let max = self.max()?;
        Ok(Lanes { generation: max.generation, width: self.width_now().unwrap_or(max.width).min(max.width) })
    }
}

/// The hop that limits a path once its links are awake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Narrowest {
    /// Port at the side of the root complex.
    pub upper: PciAddress,
    /// Device at the other side.
    pub lower: PciAddress,
    /// Speed that both ends offer.
    #[serde(rename = "gen")]
    pub generation: Generation,
    /// Lanes in use.
    pub width: Width,
}

impl Narrowest {
    /// Speed and lanes of that hop.
    #[must_use]
    pub fn lanes(&self) -> Lanes {
        Lanes { generation: self.generation, width: self.width }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_of_the_specification() {
        let rate = |generation, width| {
            Lanes { generation: Generation::new(generation).unwrap(), width: Width::new(width).unwrap() }.rate().0
        };
        let rows = [(1, 16, 4.0e9), (3, 16, 15.75e9), (4, 16, 31.5e9), (5, 16, 63.0e9), (4, 4, 7.88e9)];
        for (generation, width, expected) in rows {
            assert!((rate(generation, width) - expected).abs() < 0.02e9, "Gen{generation} x{width}");
        }
        assert_eq!(Generation::from_rate(2.5), Generation::new(1));
        assert_eq!(Generation::from_rate(3.0), None);
        assert_eq!(Width::new(3), None);
    }
}
