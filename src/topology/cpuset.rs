//! A set of logical CPUs, written as the kernel writes it: `0-15,32-47`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// No Linux machine numbers its CPUs higher (`NR_CPUS` is at most 8192); a text that does is refused, so that
/// `0-4000000000` costs nothing.
const CPU_MAX: usize = 65_535;

/// A sorted set of CPU numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CpuSet(Vec<usize>);

/// The text is no list of CPUs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no list of CPUs: expected numbers and ranges up to 65535, such as 0-15,32-47")]
pub struct NotACpuSet {
    /// What was read.
    pub text: String,
}

impl CpuSet {
    /// The numbers, ascending.
    #[must_use]
    pub fn cpus(&self) -> &[usize] {
        &self.0
    }

    /// True when `cpu` is in the set.
    #[must_use]
    pub fn contains(&self, cpu: usize) -> bool {
        self.0.binary_search(&cpu).is_ok()
    }

    /// How many CPUs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True for no CPU at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<usize> for CpuSet {
    fn from_iter<I: IntoIterator<Item = usize>>(cpus: I) -> Self {
        let mut cpus: Vec<usize> = cpus.into_iter().collect();
        cpus.sort_unstable();
        cpus.dedup();
        Self(cpus)
    }
}

fn number(text: &str) -> Option<usize> {
    let digits = !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
    let number = if digits { text.parse().ok()? } else { return None };
    (number <= CPU_MAX).then_some(number)
}

fn parse(text: &str) -> Option<CpuSet> {
    let mut cpus = Vec::new();
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if last < first || CPU_MAX < cpus.len() {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus.into_iter().collect())
}

impl FromStr for CpuSet {
    type Err = NotACpuSet;
    fn from_str(text: &str) -> Result<Self, NotACpuSet> {
        parse(text.trim()).ok_or_else(|| NotACpuSet { text: text.chars().take(80).collect() })
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        for run in self.0.chunk_by(|cpu, next| cpu + 1 == *next) {
            let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
            let comma = if text.is_empty() { "" } else { "," };
            text += &if first == last { format!("{comma}{first}") } else { format!("{comma}{first}-{last}") };
        }
        out.pad(&text)
    }
}

impl Serialize for CpuSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CpuSet {
    /// A text; a single CPU may also be written as a bare number.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl de::Visitor<'_> for Text {
            type Value = CpuSet;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a list of CPUs such as 0-15,32-47")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<CpuSet, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_u64<E: de::Error>(self, cpu: u64) -> Result<CpuSet, E> {
                cpu.to_string().parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Text)
    }
}

impl JsonSchema for CpuSet {
    fn schema_name() -> Cow<'static, str> {
        "CpuSet".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^([0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*)?$" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_read_as_the_kernel_writes_them() {
        for text in ["", "0", "0-3", "0-63,128-191", "1,3,5"] {
            assert_eq!(text.parse::<CpuSet>().unwrap().to_string(), text);
        }
        assert_eq!("3,0-1\n".parse::<CpuSet>().unwrap().cpus(), [0, 1, 3]);
        let none: CpuSet = serde_saphyr::from_str(&serde_saphyr::to_string(&CpuSet::default()).unwrap()).unwrap();
        assert!(none.is_empty());
        assert_eq!(serde_saphyr::from_str::<CpuSet>("7").unwrap().cpus(), [7]);
    }

    #[test]
    fn anything_else_is_refused_at_once() {
        for text in ["a", "1-", "-1", "3-1", "0-4000000000", "0,,1", "99999999999999999999", &"0-65535,".repeat(9)] {
            assert!(text.parse::<CpuSet>().is_err(), "{text}");
        }
    }
}
