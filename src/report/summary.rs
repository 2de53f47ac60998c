//! The verdict on a terminal: at most 80 columns, about a screen.

use std::fmt::{self, Display};

use comfy_table::presets::NOTHING;
use comfy_table::{Cell, CellAlignment, ColumnConstraint, ContentArrangement, Table, Width};

use crate::record::{Analysis, Device, Point};
use crate::units::grouped;

use super::page::{OutcomeText, findings_count, grade, headline, interval, launches_needed, ratio};
use super::text::printable_text;

/// Columns of a terminal that everything fits.
const COLUMNS: u16 = 80;
/// Longer texts are cut: the page has them whole.
const CHARS_MAX: usize = 156;
/// The same for the reasons of the verdict, whose longest sentence is the split of the efficiency.
const REASON_CHARS_MAX: usize = 300;
/// Lists are cut here, and say so.
const REASONS_MAX: usize = 4;
const FLAGS_MAX: usize = 3;
const FINDINGS_MAX: usize = 3;
const WORLDS_MAX: usize = 8;

/// What a person reads when a run has ended.
#[derive(Debug, Clone, Copy)]
pub struct Summary<'a> {
    /// The run.
    pub analysis: &'a Analysis,
    /// True if the terminal wants colour.
    pub colour: bool,
}

impl Display for Summary<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let run = self.analysis;
        let outcome = OutcomeText::of(run.verdict.outcome);
        let word = self.painted(&outcome.word.to_uppercase(), outcome.class);
        writeln!(out, "{word} · {}", grade(run.grade).0)?;
        paragraph(out, "", headline(run))?;
        if !run.points.is_empty() {
            writeln!(out)?;
            self.worlds(out)?;
        }
        for skipped in run.skipped.iter().take(FLAGS_MAX) {
            paragraph(out, "skipped", &format!("{} ranks: {}", skipped.world, skipped.why))?;
        }
        more(out, run.skipped.len(), FLAGS_MAX, "world sizes skipped")?;
        if !run.verdict.reasons.is_empty() {
            writeln!(out)?;
        }
        for reason in run.verdict.reasons.iter().take(REASONS_MAX) {
            paragraph_of(out, "-", reason, REASON_CHARS_MAX)?;
        }
        more(out, run.verdict.reasons.len(), REASONS_MAX, "reasons")?;
        if let Some(launches) = run.verdict.launches_needed {
            paragraph(out, "-", &launches_needed(launches))?;
        }
        for flag in run.flags.iter().take(FLAGS_MAX) {
            let blocks = if flag.blocks { " (blocks the verdict)" } else { "" };
            paragraph(out, "flag", &format!("{}{blocks}: {}", flag.code, flag.text))?;
        }
        more(out, run.flags.len(), FLAGS_MAX, "flags")?;
        writeln!(out, "\nfindings: {}", findings_count(&run.findings))?;
        for finding in run.findings.iter().take(FINDINGS_MAX) {
            let about =
                if finding.addresses.is_empty() { String::new() } else { format!(" {}", finding.addresses.join(", ")) };
            paragraph(out, &finding.severity.to_string(), &format!("{}{about}: {}", finding.code, finding.seen))?;
        }
        more(out, run.findings.len(), FINDINGS_MAX, "findings")
    }
}

impl Summary<'_> {
    /// `text` in bold and in the colour of its class, if colour is wanted.
    fn painted(&self, text: &str, class: &str) -> String {
        let code = match class {
            "good" => "1;32",
            "bad" => "1;31",
            "open" => "1;33",
            _ => "1",
        };
        if self.colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    fn worlds(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let run = self.analysis;
        let ranks = if run.device == Device::Cuda { "GPUs" } else { "ranks" };
        let mut table = Table::new();
        table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_width(COLUMNS);
        table.set_header([ranks, "efficiency", "95 % interval", "silicon", "straggler", "comm", "tokens/s", "step"]);
        for point in run.points.iter().take(WORLDS_MAX) {
            table.add_row(row(point));
        }
        for column in table.column_iter_mut() {
            column.set_cell_alignment(CellAlignment::Right);
            column.set_padding((0, 1));
        }
        for line in table.lines() {
            writeln!(out, "{}", line.trim_end())?;
        }
        more(out, run.points.len(), WORLDS_MAX, "world sizes")
    }
}

fn row(point: &Point) -> Vec<String> {
    vec![
        point.world.to_string(),
        ratio(point.efficiency.estimate),
        interval(point.efficiency),
        ratio(point.silicon.estimate),
        ratio(point.straggler.estimate),
        ratio(point.comm.estimate),
        grouped(point.ddp_rate.0),
        point.step_s.to_string(),
    ]
}

fn paragraph(out: &mut fmt::Formatter<'_>, label: &str, text: &str) -> fmt::Result {
    paragraph_of(out, label, text, CHARS_MAX)
}

/// A label and a text of at most `chars` that is broken at spaces and hangs beside it.
fn paragraph_of(out: &mut fmt::Formatter<'_>, label: &str, text: &str, chars: usize) -> fmt::Result {
    let mut text = printable_text(text);
    if chars < text.chars().count() {
        text = text.chars().take(chars - 1).chain(std::iter::once('…')).collect();
    }
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_width(COLUMNS);
    let row = if label.is_empty() { vec![Cell::new(text)] } else { vec![Cell::new(label), Cell::new(text)] };
    table.add_row(row);
    for column in table.column_iter_mut() {
        column.set_padding((0, 1));
    }
    if let (false, Some(first)) = (label.is_empty(), table.column_mut(0)) {
        first.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(1)));
    }
    for line in table.lines() {
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// Says how many entries of a list were left out.
fn more(out: &mut fmt::Formatter<'_>, all: usize, shown: usize, what: &str) -> fmt::Result {
    match all.saturating_sub(shown) {
        0 => Ok(()),
        1 => writeln!(out, "  … 1 more of the {what}"),
        left => writeln!(out, "  … {left} more of the {what}"),
    }
}
