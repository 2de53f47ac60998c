//! Findings with their remedies.

use std::fmt;

use crate::record::{Finding, Severity};

use super::wrapped;

/// Writes all findings, those of one rule together above their common remedy.
pub(in crate::cli) fn list(out: &mut fmt::Formatter<'_>, findings: &[Finding], colour: bool) -> fmt::Result {
    if findings.is_empty() {
        return writeln!(out, "No findings. What is unknown above was not judged.");
    }
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let counts = [(Severity::Fault, "fault"), (Severity::Warning, "warning"), (Severity::Note, "note")];
    let counts: Vec<String> = counts
        .iter()
        .map(|(severity, name)| (count(*severity), name))
        .filter(|(count, _)| 0 < *count)
        .map(|(count, name)| format!("{count} {name}{}", if count == 1 { "" } else { "s" }))
        .collect();
    writeln!(out, "{}", counts.join(", "))?;
    for group in findings.chunk_by(|a, b| a.code == b.code) {
        let Some(first) = group.first() else { continue };
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
