//! A fact of a machine, or the reason why it is missing.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A fact, or why there is none. On disk: the fact itself, or `{missing: why, detail: …}`.
pub type Reading<T> = Result<T, Missing>;

/// Why a fact is not there, and what was seen instead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Missing {
    /// The kind of absence.
    #[serde(rename = "missing")]
    pub why: Why,
    /// The question that went unanswered, or the text that could not be read.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// The kinds of absence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// The machine has no such file, folder or device.
    Absent,
    /// It is there, but this user may not read it.
    Denied,
    /// The device or driver does not offer it.
    Unsupported,
    /// It was read and makes no sense.
    Garbled,
}

impl Missing {
    /// A missing fact and what was asked or seen.
    #[must_use]
    pub fn new(why: Why, detail: impl Into<String>) -> Self {
        Self { why, detail: detail.into() }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::Absent => "absent",
            Self::Denied => "denied (needs root)",
            Self::Unsupported => "unsupported",
            Self::Garbled => "garbled",
        })
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.detail.is_empty() {
            true => write!(out, "{}", self.why),
            false => write!(out, "{}: {}", self.why, self.detail),
        }
    }
}
