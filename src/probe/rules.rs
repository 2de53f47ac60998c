//! What is wrong with a machine, as a table. A rule speaks only of what is certain: what is missing is never "fine"
//! and never a fault, and the speed of a link at rest means nothing.

mod errors;
mod gpu;
mod host;
mod needs;
mod pcie;
mod peers;
mod software;
mod table;

use serde::Serialize;

use crate::record::{Finding, Severity, Unjudged};
use crate::topology::{Gpu, Missing, Topology};

pub use table::RULES;

/// A fact that is missing, and the device that it is about; none for the machine.
pub type Lost = (Option<String>, Missing);

/// One row of the table.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Rule {
    /// Stable code.
    pub code: &'static str,
    /// How grave a breach is.
    pub severity: Severity,
    /// What the rule asks.
    pub question: &'static str,
    /// Where the expectation comes from: a specification, a maker's documentation, or a report of others.
    pub source: &'static str,
    /// What a technician can do about a breach.
    pub remedy: &'static str,
    /// Finds the breaches.
    #[serde(skip)]
    pub check: fn(&Topology) -> Vec<Breach>,
    /// Names the facts that the check needs and that are missing, with the devices that they are about.
    #[serde(skip)]
    pub needs: fn(&Topology) -> Vec<Lost>,
}

/// One breach of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breach {
    /// PCI addresses or NUMA nodes that it is about; none for the whole machine.
    pub addresses: Vec<String>,
    /// What was seen: the question and its answer.
    pub seen: String,
    /// What was expected, and from where.
    pub expected: String,
}

fn addresses<'a>(gpus: impl IntoIterator<Item = &'a Gpu>) -> Vec<String> {
    gpus.into_iter().map(|gpu| gpu.address.to_string()).collect()
}

/// Holds `topology` against every rule. The gravest findings come first.
#[must_use]
pub fn judge(topology: &Topology) -> Vec<Finding> {
    let finding = |rule: &Rule, breach: Breach| Finding {
        code: rule.code.to_owned(),
        severity: rule.severity,
        addresses: breach.addresses,
        seen: breach.seen,
        expected: breach.expected,
        remedy: rule.remedy.to_owned(),
    };
    let of = |rule: &'static Rule| (rule.check)(topology).into_iter().map(move |breach| finding(rule, breach));
    let mut findings: Vec<Finding> = RULES.iter().flat_map(of).collect();
    findings.sort_by_key(|finding| finding.severity);
    findings
}

/// The rules that could not judge all that they are about, and why: of a machine with an NVIDIA GPU only. What an
/// imported text or an older capture cannot hold is no reason.
#[must_use]
pub fn unjudged(topology: &Topology) -> Vec<Unjudged> {
    let of = |rule: &Rule| {
        let lost = (rule.needs)(topology);
        let (addresses, why) = needs::by_reason(lost);
        (!why.is_empty()).then(|| Unjudged { code: rule.code.to_owned(), addresses, why })
    };
    match topology.has_nvidia_gpu() {
        true => RULES.iter().filter_map(of).collect(),
        false => Vec::new(),
    }
}
