//! An answer as a person or a program reads it.

use std::fmt;

use comfy_table::CellAlignment;
use serde::{Serialize, Serializer};

use crate::cli::probe::{plain_table, write_table};
use crate::record::TuneResult;
use crate::stats::median;
use crate::units::Seconds;

/// Rows of the table: the quickest settings.
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
            writeln!(out, "{sentence}")?;
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
            key(one.0).total_cmp(&key(other.0))
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
        writeln!(
            out,
            "{} of {} settings, {} launches in {}: {}",
            result.tried, result.space, result.launches, result.wall_s, result.ended
        )
    }
}
