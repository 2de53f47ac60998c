//! An answer as a person or a program reads it.

use std::fmt;

use comfy_table::CellAlignment;
use serde::{Serialize, Serializer};

use crate::cli::probe::{plain_table, wrapped_at, write_table};
use crate::record::{TuneCell, TuneResult};
use crate::stats::median;
use crate::units::Seconds;

/// Rows of the table: the default, and the quickest settings.
const ROWS_MAX: usize = 8;

pub(super) struct Shown<'a> {
    pub(super) result: &'a TuneResult,
}

impl Serialize for Shown<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.result.serialize(serializer)
    }
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let result = self.result;
        for sentence in &result.sentences {
            out.write_str(&wrapped_at("", sentence))?;
        }
        writeln!(out)?;
        let mut table = plain_table();
        table.set_header(["setting", "step", "launches", "what became of it"]);
        let step = |steps: &[Seconds]| {
            (!steps.is_empty()).then(|| Seconds(median(&steps.iter().map(|step| step.0).collect::<Vec<_>>())))
        };
        let mut cells: Vec<_> = result.cells.iter().map(|cell| (step(&cell.steps_s), cell)).collect();
        cells.sort_by(|one, other| {
            let key = |step: Option<Seconds>| step.map_or(f64::INFINITY, |step| step.0);
            // the default first: it is what all are compared with
            let known = |cell: &TuneCell| !cell.setting.is_default();
            known(one.1).cmp(&known(other.1)).then(key(one.0).total_cmp(&key(other.0)))
        });
        for (step, cell) in cells.iter().take(ROWS_MAX) {
            table.add_row([
                cell.setting.to_string(),
                step.map_or_else(|| "—".to_owned(), |step| step.to_string()),
                cell.steps_s.len().to_string(),
                cell.fate.clone(),
            ]);
        }
        for column in 1..3 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        write_table(out, &table)?;
        let counted =
            format!("{} of {} settings, {} launches in {}", result.tried, result.space, result.launches, result.wall_s);
        out.write_str(&wrapped_at("", &format!("{counted}: {}", result.ended)))
    }
}

/// A landscape that was swept.
#[derive(Serialize)]
pub(super) struct Swept {
    /// Its file.
    pub(super) landscape: String,
    /// Settings of the grid.
    pub(super) settings: usize,
    /// Launches that the file holds.
    pub(super) launches: usize,
}

impl fmt::Display for Swept {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { landscape, settings, launches } = self;
        writeln!(out, "{settings} settings, {launches} launches: {landscape}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Device, Origin, Setting, TuneConditions, TuneIdentity, TuneStanding};
    use crate::units::Bytes;

    #[test]
    fn the_default_is_always_shown_and_lines_fit_80_columns() {
        let default = Setting::default();
        let setting = default.with("bucket", "bucket-mib=4");
        let standing =
            |setting: &Setting| TuneStanding { setting: setting.clone(), step_s: Seconds(0.01), efficiency: None };
        let mut result = TuneResult {
            schema: 1,
            rigscale: "0".into(),
            origin: Origin::Measured,
            identity: TuneIdentity {
                nccl: None,
                driver: None,
                topology_sha256: "ab".repeat(32),
                device: Device::Cpu,
                model: "llama-tiny".into(),
                world: 2,
                batch: 1,
                context: 128,
                accumulate: 1,
                share_gpu: false,
                conditions: TuneConditions::default(),
            },
            sentences: Vec::new(),
            ended: "no knob promised more, and what follows is as long as a sentence may be".into(),
            bucket_bytes: Bytes::mebi(25.0),
            default: standing(&default),
            best: standing(&setting),
            gain: None,
            confirmed: None,
            target: 0.9,
            need: None,
            space: 64,
            tried: 13,
            launches: 13,
            wall_s: Seconds(9.0),
            cells: Vec::new(),
            knobs: Vec::new(),
            left_out: Vec::new(),
            hopeless: Vec::new(),
            findings: Vec::new(),
            warnings: Vec::new(),
        };
        result.sentences = vec!["a sentence of many words, ".repeat(12)];
        result.cells = (0..12)
            .map(|index| TuneCell {
                setting: setting.with("first-bucket", &format!("first-bucket-mib={index}")),
                stage: "bucket".into(),
                steps_s: vec![Seconds(0.01 + 0.001 * f64::from(index))],
                fate: "no better".into(),
            })
            .collect();
        let slow = TuneCell { setting: default, steps_s: vec![Seconds(9.0)], ..result.cells[0].clone() };
        result.cells.push(slow);
        let shown = Shown { result: &result }.to_string();
        let rows: Vec<&str> = shown.lines().collect();
        assert!(rows.iter().any(|row| row.contains(" default ")), "{shown}");
        assert_eq!(rows.iter().filter(|row| row.contains("first-bucket-mib=")).count(), ROWS_MAX - 1, "{shown}");
        assert!(rows.iter().all(|row| unicode_width::UnicodeWidthStr::width(*row) <= 80), "{shown}");
    }
}
