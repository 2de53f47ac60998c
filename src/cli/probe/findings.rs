//! Findings with their remedies.

use std::collections::BTreeMap;
use std::fmt;

use crate::record::{Finding, Severity, Unjudged};

use super::wrapped;

/// Writes all findings, those of one rule together above their common remedy.
pub(in crate::cli) fn list(out: &mut fmt::Formatter<'_>, findings: &[Finding], colour: bool) -> fmt::Result {
    if findings.is_empty() {
        return writeln!(out, "No findings. What is unknown above was not judged.");
    }
    // What one rule says of several devices stands under one heading, and counts once.
    let groups: Vec<&[Finding]> = findings.chunk_by(|a, b| a.code == b.code).collect();
    let count = |severity| groups.iter().filter(|group| group[0].severity == severity).count();
    let counts = [(Severity::Fault, "fault"), (Severity::Warning, "warning"), (Severity::Note, "note")];
    let counts: Vec<String> = counts
        .iter()
        .map(|(severity, name)| (count(*severity), name))
        .filter(|(count, _)| 0 < *count)
        .map(|(count, name)| format!("{count} {name}{}", if count == 1 { "" } else { "s" }))
        .collect();
    writeln!(out, "{}", counts.join(", "))?;
    for group in groups {
        let first = &group[0];
        writeln!(out, "\n{}  {}", severity(first.severity, colour), first.code)?;
        for finding in group {
            if !finding.addresses.is_empty() {
                out.write_str(&wrapped("  at        ", &finding.addresses.join(" ")))?;
            }
            out.write_str(&wrapped("  seen      ", &finding.seen))?;
            out.write_str(&wrapped("  expected  ", &finding.expected))?;
        }
        out.write_str(&wrapped("  remedy    ", &first.remedy))?;
    }
    Ok(())
}

/// The word, in red, yellow or cyan where colour is wanted.
fn severity(severity: Severity, colour: bool) -> String {
    let code = match severity {
        Severity::Fault => "1;31",
        Severity::Warning => "33",
        Severity::Note => "36",
    };
    if colour { format!("\u{1b}[{code}m{severity}\u{1b}[0m") } else { severity.to_string() }
}

/// Writes which rules could not judge, those of one reason together.
pub(super) fn unjudged(out: &mut fmt::Formatter<'_>, rules: &[Unjudged]) -> fmt::Result {
    if rules.is_empty() {
        return Ok(());
    }
    let mut by_reason: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for rule in rules {
        by_reason.entry(rule.why.join("; ")).or_default().push(&rule.code);
    }
    let what = if rules.len() == 1 { "1 rule" } else { &format!("{} rules", rules.len()) };
    writeln!(out, "\n{what} could not judge: unknown is neither fine nor off")?;
    for (why, codes) in by_reason {
        out.write_str(&wrapped("  why       ", &why))?;
        out.write_str(&wrapped("  rules     ", &codes.join(", ")))?;
    }
    Ok(())
}
