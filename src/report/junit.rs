//! The verdict as test cases, for build servers.

use serde::Serialize;

use crate::record::{Analysis, Finding, Flag, Outcome, Point, Severity};

use super::page::{Standing, interval, ratio};

/// One suite: the verdict, each world size, each grave finding, each flag that blocks.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Suite {
    name: String,
    tests: usize,
    failures: usize,
    errors: usize,
    skipped: usize,
    cases: Vec<Case>,
}

/// One test case.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Case {
    group: &'static str,
    name: String,
    ending: Ending,
    /// Type of a failure or error.
    kind: &'static str,
    message: String,
    text: String,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Ending {
    Passed,
    Failure,
    Error,
    Skipped,
}

impl Suite {
    /// The cases of one analysis. A suite without failure, error or skipped case is one whose verdict is a pass.
    pub(super) fn of(run: &Analysis) -> Self {
        let mut cases = vec![verdict(run)];
        cases.extend(run.points.iter().map(|point| world(run, point)));
        cases.extend(run.skipped.iter().map(|skipped| Case {
            group: "efficiency",
            name: format!("world size {}", skipped.world),
            ending: Ending::Skipped,
            kind: "skipped",
            message: skipped.why.clone(),
            text: String::new(),
        }));
        cases.extend(run.findings.iter().filter_map(finding));
        cases.extend(run.flags.iter().filter(|flag| flag.blocks).map(blocking));
        let count = |ending: Ending| cases.iter().filter(|case| case.ending == ending).count();
        Self {
            name: run.run.clone(),
            tests: cases.len(),
            failures: count(Ending::Failure),
            errors: count(Ending::Error),
            skipped: count(Ending::Skipped),
            cases,
        }
    }
}

fn verdict(run: &Analysis) -> Case {
    let (ending, kind) = match run.verdict.outcome {
        Outcome::Pass => (Ending::Passed, "pass"),
        Outcome::Fail => (Ending::Failure, "below-target"),
        Outcome::Inconclusive => (Ending::Failure, "inconclusive"),
        Outcome::NotGraded => (Ending::Skipped, "not-graded"),
        Outcome::Fault => (Ending::Error, "fault"),
        Outcome::Hang => (Ending::Error, "hang"),
        Outcome::Interrupted => (Ending::Error, "interrupted"),
    };
    let (message, text) = (run.verdict.headline.clone(), run.verdict.reasons.join("\n"));
    Case { group: "verdict", name: "verdict".into(), ending, kind, message, text }
}

fn world(run: &Analysis, point: &Point) -> Case {
    let standing = Standing::of(run, point);
    let (ending, kind) = match standing {
        Standing::Reached => (Ending::Passed, "reached"),
        Standing::Below => (Ending::Failure, "below-target"),
        Standing::Undecided => (Ending::Failure, "inconclusive"),
        Standing::NotGraded => (Ending::Skipped, "not-graded"),
    };
    let message = format!(
        "efficiency {} ({}), target {}: {}",
        ratio(point.efficiency.estimate),
        interval(point.efficiency),
        ratio(run.target),
        standing.word()
    );
    let split = format!(
        "silicon {} x straggler {} x communication {}",
        ratio(point.silicon.estimate),
        ratio(point.straggler.estimate),
        ratio(point.comm.estimate)
    );
    Case { group: "efficiency", name: format!("world size {}", point.world), ending, kind, message, text: split }
}

/// A fault is an error. A warning is listed as skipped: it must be seen and does not overturn the verdict. Notes are
/// not test cases.
fn finding(finding: &Finding) -> Option<Case> {
    let (ending, kind) = match finding.severity {
        Severity::Fault => (Ending::Error, "fault"),
        Severity::Warning => (Ending::Skipped, "warning"),
        Severity::Note => return None,
    };
    let about = finding.addresses.join(", ");
    let name = if about.is_empty() { finding.code.clone() } else { format!("{} {about}", finding.code) };
    let message = format!("{}: {}", finding.severity, finding.seen);
    let text = format!("expected: {}\nremedy: {}", finding.expected, finding.remedy);
    Some(Case { group: "finding", name, ending, kind, message, text })
}

fn blocking(flag: &Flag) -> Case {
    Case {
        group: "flag",
        name: flag.code.clone(),
        ending: Ending::Failure,
        kind: "inconclusive",
        message: flag.text.clone(),
        text: String::new(),
    }
}
