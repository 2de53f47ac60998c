//! `findings.json`: what is wrong, on which device, and what to do about it.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What was found by one stage: the probe, a measurement, a launch, the analyzer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Findings {
    /// Schema of the file.
    pub schema: u32,
    /// Version of rigscale that wrote it.
    pub rigscale: String,
    /// The findings, gravest first.
    pub findings: Vec<Finding>,
    /// The rules that could not judge, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unjudged: Vec<Unjudged>,
}

/// A rule that could not judge all that it is about, as a fact is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Unjudged {
    /// Code of the rule.
    pub code: String,
    /// PCI addresses of the devices that it could not judge; none for the whole machine.
    pub addresses: Vec<String>,
    /// The reasons, each once.
    pub why: Vec<String>,
}

/// One thing that a person should know or mend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    /// Stable code of the rule, such as `pcie-narrow-link`.
    pub code: String,
    /// How grave.
    pub severity: Severity,
    /// PCI addresses, NUMA nodes or trial names that it is about.
    pub addresses: Vec<String>,
    /// What was seen: the question and its answer.
    pub seen: String,
    /// What was expected, and from where.
    pub expected: String,
    /// What a technician can do.
    pub remedy: String,
}

/// How grave a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something is broken: results do not count.
    Fault,
    /// Something costs performance or trust.
    Warning,
    /// Worth knowing.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::Fault => "fault",
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}
