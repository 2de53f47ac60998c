//! The software beside the driver: CUDA's libraries, and what NCCL is told to do.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Fact, Missing, Reading, as_text};

/// Libraries as a program on this machine finds them, and the settings of NCCL that do not stand in `/etc/nccl.conf`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Software {
    /// NCCL.
    #[serde(with = "Fact::<Version>")]
    pub nccl: Reading<Version>,
    /// cuDNN.
    #[serde(with = "Fact::<Version>")]
    pub cudnn: Reading<Version>,
    /// cuBLASLt; its first number is that of the CUDA that it was built for.
    #[serde(with = "Fact::<Version>")]
    pub cublas: Reading<Version>,
    /// `NCCL_*` of the environment of whoever asked, `NAME=VALUE` each.
    #[serde(with = "Fact::<Vec<String>>")]
    pub nccl_environment: Reading<Vec<String>>,
    /// The settings of the file that `NCCL_CONF_FILE` names, else of `~/.nccl.conf`.
    #[serde(with = "Fact::<Vec<String>>")]
    pub nccl_user_conf: Reading<Vec<String>>,
}

impl Software {
    /// Of a file that is older than the questions.
    #[must_use]
    pub fn not_asked() -> Self {
        Self::unknown(&Missing::not_asked())
    }

    pub(super) fn was_not_asked(&self) -> bool {
        *self == Self::not_asked()
    }

    /// Nothing is known, for one reason.
    #[must_use]
    pub fn unknown(why: &Missing) -> Self {
        Self {
            nccl: Err(why.clone()),
            cudnn: Err(why.clone()),
            cublas: Err(why.clone()),
            nccl_environment: Err(why.clone()),
            nccl_user_conf: Err(why.clone()),
        }
    }
}

/// A version of up to three numbers, such as 2.30.7; numbers that are not told count as 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u32, pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(&format!("{}.{}.{}", self.0, self.1, self.2))
    }
}

impl FromStr for Version {
    type Err = String;

    /// Reads `2.30.7`, `12.8` and `595.58.03`; what follows the third number is left out (`13.0.2.14`).
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("`{}` is no version: expected numbers such as 2.30.7", text.chars().take(40).collect::<String>())
        };
        let numbers = text.split('.').take(3).map(|part| match part.bytes().all(|digit| digit.is_ascii_digit()) {
            true => part.parse::<u32>().ok(),
            false => None,
        });
        let numbers = numbers.collect::<Option<Vec<u32>>>().filter(|numbers| 2 <= numbers.len()).ok_or_else(wrong)?;
        Ok(Self(numbers[0], numbers[1], numbers.get(2).copied().unwrap_or(0)))
    }
}

as_text!(Version, "^[0-9]+(\\.[0-9]+)+$");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_and_compare_by_number() {
        let version = |text: &str| text.parse::<Version>().unwrap();
        assert_eq!(version("13.0.2.14"), Version(13, 0, 2));
        assert_eq!(version("12.8").to_string(), "12.8.0");
        assert!(version("2.9.1") < version("2.26.2") && version("595.58.03") == Version(595, 58, 3));
        for text in ["", "2", "2.x", "2.-1", "+2.1", "99999999999.1", "2..1"] {
            assert!(text.parse::<Version>().is_err(), "{text}");
        }
    }
}
