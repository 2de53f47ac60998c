//! Everything that a page says, as text: what HTML and Markdown have in common.

use serde::Serialize;

use crate::record::{
    Analysis, DataSource, Device, Field, Finding, Grade, Interval, Origin, Outcome, Point, Precision, Severity, Share,
};
use crate::units::{grouped, in_words};

use super::chart::Chart;
use super::gpus::GpuRow;
use super::links::{Lines, LinkTables};
use super::worlds::{Comparison, World};

/// A page, ready for a template. Strings hold no markup, but for the charts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Page {
    /// Title of the window.
    title: String,
    /// What the verdict may be called.
    grade: String,
    /// What that means for a reader.
    grade_note: String,
    outcome: OutcomeText,
    headline: String,
    reasons: Vec<String>,
    /// Empty where the verdict needs no more launches.
    launches_needed: String,
    target: String,
    run: String,
    created: String,
    rigscale: String,
    /// `GPU` or `CPU rank`.
    unit: &'static str,
    facts: Vec<Line>,
    identity: Vec<Line>,
    fields: Vec<Line>,
    worlds: Vec<World>,
    skipped: Vec<Line>,
    flags: Vec<FlagText>,
    findings: Vec<FindingText>,
    findings_count: String,
    charts: Vec<ChartText>,
    /// Several runs side by side; none for one alone.
    comparison: Option<Comparison>,
    /// What the GPUs did; empty on CPUs and without telemetry.
    gpus: Vec<GpuRow>,
    /// What the links carried; empty where they were not measured.
    links: LinkTables,
    dropped: Vec<DroppedText>,
    dropped_count: String,
    why: Vec<String>,
    config: Vec<Line>,
    shares: Vec<ShareText>,
}

/// A name and its text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Line {
    pub(super) key: String,
    pub(super) value: String,
}

impl Line {
    pub(super) fn new(key: impl Into<String>, value: impl Into<String>) -> Self {
        Self { key: key.into(), value: value.into() }
    }
}

/// The outcome as a word, a sign that needs no colour, and a class for the style sheet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct OutcomeText {
    pub(super) word: &'static str,
    pub(super) sign: &'static str,
    pub(super) class: &'static str,
}

impl OutcomeText {
    pub(super) fn of(outcome: Outcome) -> Self {
        let (word, sign, class) = match outcome {
            Outcome::Pass => ("Pass", "✓", "good"),
            Outcome::Fail => ("Fail", "✕", "bad"),
            Outcome::Inconclusive => ("Inconclusive", "?", "open"),
            Outcome::NotGraded => ("Not graded", "–", "none"),
            Outcome::Fault => ("Fault", "!", "bad"),
            Outcome::Hang => ("Hang", "!", "bad"),
            Outcome::Interrupted => ("Interrupted", "–", "open"),
        };
        Self { word, sign, class }
    }
}

/// Where one world size stands against the target, by the rule of the verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Reached,
    Below,
    Undecided,
    NotGraded,
}

impl Standing {
    pub(super) fn of(run: &Analysis, point: &Point) -> Self {
        if !point.graded || run.verdict.outcome == Outcome::NotGraded {
            Self::NotGraded
        } else if run.target <= point.efficiency.low {
            Self::Reached
        } else if point.efficiency.high < run.target {
            Self::Below
        } else {
            Self::Undecided
        }
    }

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Reached => "reached",
            Self::Below => "below target",
            Self::Undecided => "undecided",
            Self::NotGraded => "not graded",
        }
    }

    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Reached => "good",
            Self::Below => "bad",
            Self::Undecided => "open",
            Self::NotGraded => "none",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct FlagText {
    code: String,
    text: String,
    blocks: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct FindingText {
    code: String,
    severity: String,
    class: &'static str,
    about: String,
    seen: String,
    expected: String,
    remedy: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct ChartText {
    name: &'static str,
    title: String,
    caption: &'static str,
    wide: String,
    narrow: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct DroppedText {
    trial: String,
    rank: String,
    steps: String,
    why: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct ShareText {
    index: usize,
    gpu: String,
    cpus: String,
    numa_node: String,
}

/// A ratio with three decimals; one that is out of all proportion with an exponent.
pub(super) fn ratio(value: f64) -> String {
    if value.abs() < 1000.0 { format!("{value:.3}") } else { format!("{value:.2e}") }
}

/// A whole number: `31`, `12,345`.
pub(super) fn count(of: usize) -> String {
    if of < 100 { of.to_string() } else { grouped(of as f64) }
}

/// `0.940 to 0.962`; one launch alone has no scatter and so no interval.
pub(super) fn interval(interval: Interval) -> String {
    if !interval.is_known() {
        return "one launch".into();
    }
    format!("{} to {}", ratio(interval.low), ratio(interval.high))
}

/// What the verdict may be called, and what that means for a reader.
pub(super) fn grade(grade: Grade) -> (&'static str, &'static str) {
    match grade {
        Grade::Provisional => ("Provisional qualification", "A short run without a soak: not for signing."),
        Grade::Signed => ("Qualification", "At least 5 launches after a soak."),
        Grade::CpuRanks => (
            "CPU ranks: says nothing about GPUs",
            "Ranks ran on CPU cores. The verdict shows the method and tests the program.",
        ),
        Grade::Ungraded => ("Not a qualification", "Nothing is judged."),
    }
}

/// The headline without the title and the outcome that stand above it.
pub(super) fn headline(run: &Analysis) -> &str {
    let whole = run.verdict.headline.as_str();
    let own = whole.strip_prefix(grade(run.grade).0).and_then(|rest| rest.strip_prefix("; ")).unwrap_or(whole);
    let word = OutcomeText::of(run.verdict.outcome).word;
    let (start, rest) = own.split_at_checked(word.len()).unwrap_or(("", own));
    if start.eq_ignore_ascii_case(word) { rest.strip_prefix(": ").unwrap_or(own) } else { own }
}

impl Page {
    /// The page of the first run, with the others beside it.
    pub(super) fn of(runs: &[&Analysis], charts: &[Chart], links: Lines<'_>) -> Self {
        let run = runs[0];
        let outcome = OutcomeText::of(run.verdict.outcome);
        let (grade, grade_note) = grade(run.grade);
        Self {
            title: format!("{} ({grade}), {}", outcome.word, run.run),
            grade: grade.into(),
            grade_note: grade_note.into(),
            outcome,
            headline: headline(run).to_owned(),
            reasons: run.verdict.reasons.clone(),
            launches_needed: run.verdict.launches_needed.map(launches_needed).unwrap_or_default(),
            target: format!("{:.2}", run.target),
            run: run.run.clone(),
            created: run.created.strftime("%Y-%m-%d %H:%M UTC").to_string(),
            rigscale: run.rigscale.clone(),
            unit: unit(run.device),
            facts: facts(run),
            identity: lines(&run.identity),
            fields: lines(&run.fields),
            worlds: run.points.iter().map(|point| World::of(run, point)).collect(),
            skipped: run.skipped.iter().map(|world| Line::new(world.world.to_string(), &world.why)).collect(),
            flags: flags(run),
            findings: run.findings.iter().map(finding).collect(),
            findings_count: findings_count(&run.findings),
            charts: charts.iter().map(chart).collect(),
            comparison: Comparison::of(runs),
            gpus: run.gpus.iter().map(GpuRow::of).collect(),
            links: LinkTables::of(links),
            dropped: dropped(run),
            dropped_count: count(run.dropped.iter().fold(0, |sum, dropped| sum.saturating_add(dropped.steps))),
            why: run.why.clone(),
            config: config(run),
            shares: run.shares.iter().map(share).collect(),
        }
    }
}

fn unit(device: Device) -> &'static str {
    match device {
        Device::Cpu => "CPU rank",
        Device::Cuda => "GPU",
    }
}

/// What would settle an inconclusive verdict.
pub(super) fn launches_needed(launches: u32) -> String {
    let plural = if launches == 1 { "launch" } else { "launches" };
    format!(
        "At the scatter seen, {launches} more {plural} of each arm would settle it: run again with a larger --launches."
    )
}

/// How many findings of each severity there are, in words.
pub(super) fn findings_count(findings: &[Finding]) -> String {
    let counts = [Severity::Fault, Severity::Warning, Severity::Note].map(|severity| {
        let count = findings.iter().filter(|finding| finding.severity == severity).count();
        (count, format!("{count} {severity}{}", if count == 1 { "" } else { "s" }))
    });
    let some: Vec<String> = counts.into_iter().filter(|(count, _)| 0 < *count).map(|(_, text)| text).collect();
    if some.is_empty() { "none".into() } else { some.join(", ") }
}

fn lines(fields: &[Field]) -> Vec<Line> {
    fields.iter().map(|field| Line::new(&field.key, &field.value)).collect()
}

/// What the analysis itself knows about the run.
fn facts(run: &Analysis) -> Vec<Line> {
    let origin = match run.origin {
        Origin::Measured => "measured",
        Origin::Simulated => "simulated: no hardware took part",
        Origin::SharedGpu => "several ranks on one GPU: a laboratory",
    };
    vec![
        Line::new("Run", &run.run),
        Line::new("Planned", run.created.strftime("%Y-%m-%d %H:%M UTC").to_string()),
        Line::new("rigscale", &run.rigscale),
        Line::new("Numbers", origin),
    ]
}

fn flags(run: &Analysis) -> Vec<FlagText> {
    let text =
        |flag: &crate::record::Flag| FlagText { code: flag.code.clone(), text: flag.text.clone(), blocks: flag.blocks };
    run.flags.iter().map(text).collect()
}

fn finding(finding: &Finding) -> FindingText {
    FindingText {
        code: finding.code.clone(),
        severity: finding.severity.to_string(),
        class: match finding.severity {
            Severity::Fault => "bad",
            Severity::Warning => "open",
            Severity::Note => "none",
        },
        about: finding.addresses.join(", "),
        seen: finding.seen.clone(),
        expected: finding.expected.clone(),
        remedy: finding.remedy.clone(),
    }
}

fn chart(chart: &Chart) -> ChartText {
    ChartText {
        name: chart.name,
        title: chart.title.clone(),
        caption: chart.caption,
        wide: chart.wide.clone(),
        narrow: chart.narrow.clone(),
    }
}

fn dropped(run: &Analysis) -> Vec<DroppedText> {
    let text = |dropped: &crate::record::Dropped| DroppedText {
        trial: dropped.trial.clone(),
        rank: dropped.rank.map_or("all".into(), |rank| rank.to_string()),
        steps: count(dropped.steps),
        why: dropped.why.clone(),
    };
    run.dropped.iter().map(text).collect()
}

fn share(share: &Share) -> ShareText {
    ShareText {
        index: share.index,
        gpu: share.gpu.clone().unwrap_or_else(|| "–".into()),
        cpus: cpu_list(&share.cpus),
        numa_node: share.numa_node.map_or("–".into(), |node| node.to_string()),
    }
}

/// CPUs as the kernel writes them: `0-3,8`.
fn cpu_list(cpus: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for cpu in cpus {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*cpu) => *last = *cpu,
            _ => runs.push((*cpu, *cpu)),
        }
    }
    let text =
        |(first, last): (usize, usize)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    let runs: Vec<String> = runs.into_iter().map(text).collect();
    if runs.is_empty() { "–".into() } else { runs.join(",") }
}

/// The whole training, in words.
fn config(run: &Analysis) -> Vec<Line> {
    let (config, shape) = (&run.config, &run.config.shape);
    let data = match &config.data {
        DataSource::Synthetic => "synthetic language, seeded".to_owned(),
        DataSource::File { path, token_bytes } => format!("{path} ({token_bytes} bytes per token)"),
    };
    let precision = match config.precision {
        Precision::F32 => "f32",
        Precision::Bf16 => "bf16, f32 master weights and moments",
    };
    let often = |every: usize| if every == 0 { "never".to_owned() } else { format!("every {every} steps") };
    let (events, checksums) = (often(config.bucket_events_every), often(config.checksum_every));
    vec![
        Line::new("Model", &config.model),
        Line::new("Layers, width", format!("{}, {}", shape.layers, shape.width)),
        Line::new("Heads, key-value heads", format!("{}, {}", shape.heads, shape.kv_heads)),
        Line::new("Feed-forward width", shape.ffn.to_string()),
        Line::new("Vocabulary", count(shape.vocabulary)),
        Line::new("Sequences per rank", config.batch.to_string()),
        Line::new("Tokens per sequence", count(config.context)),
        Line::new("Gradient accumulation", config.accumulate.to_string()),
        Line::new("Steps per trial", count(config.steps)),
        Line::new("Precision", precision),
        Line::new("Data", data),
        Line::new("Seed", config.seed.to_string()),
        Line::new("Learning rate", config.learning_rate.to_string()),
        Line::new("Weight decay", config.weight_decay.to_string()),
        Line::new("Gradient clipping", config.clip_norm.map_or("none".to_owned(), |norm| norm.to_string())),
        Line::new("Bucket size", config.bucket_bytes.to_string()),
        Line::new("First bucket", config.first_bucket_bytes.to_string()),
        Line::new("Gradients are summed in", if config.reduced_bytes().0 == 2 { "bf16" } else { "f32" }),
        Line::new("Stage of ZeRO", config.zero.to_string()),
        Line::new("Bucket events", events),
        Line::new("Checksum of the weights", checksums),
        Line::new("Gradients per rank and step", run.gradient_bytes.to_string()),
        Line::new("FLOPs per rank and step", in_words(run.flops_per_step as u64)),
    ]
}
