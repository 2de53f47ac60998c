//! A prediction on the terminal.

use std::fmt;

use comfy_table::CellAlignment;

use crate::cli::probe::{plain_table, wrapped_at, write_table};
use crate::record::Interval;
use crate::units::{Seconds, grouped};

use super::{Listing, Prediction, Variant};

impl fmt::Display for Listing {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for row in &self.platforms {
            writeln!(out, "{:29} {} × {}", row.name, row.gpus, row.card)?;
            out.write_str(&wrapped_at("    ", &row.title))?;
        }
        Ok(())
    }
}

/// A column of a table: its head, and what stands in each row.
type Cells<'a> = (&'a str, Vec<String>);

impl fmt::Display for Prediction {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&wrapped_at("", &self.title))?;
        writeln!(out, "{}, batch {}, context {}", self.model, self.batch, self.context)?;
        writeln!(out, "trained by {}", self.framework.name())?;
        // what does not vary is said once, so that a row fits
        for (name, of) in self.columns(false) {
            writeln!(out, "{name:11} {}", of(&self.variants[0]))?;
        }
        let (columns, left_out) = self.fitting();
        if columns[0].0 != "GPUs" {
            writeln!(out, "{:11} {}", "GPUs", self.variants[0].forecast.world)?;
            writeln!(out, "efficiency with its 90 % interval; does it reach {:.2}?", self.target)?;
        }
        let mut table = plain_table();
        table.set_header(columns.iter().map(|(name, _)| *name));
        for row in 0..self.variants.len() {
            table.add_row(columns.iter().map(|(_, cells)| cells[row].as_str()));
        }
        for (at, (name, _)) in columns.iter().enumerate() {
            if let Some(column) = table.column_mut(at).filter(|_| RIGHT.contains(name)) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        write_table(out, &table)?;
        if !left_out.is_empty() {
            out.write_str(&wrapped_at("", &format!("for {} see --json", left_out.join(", "))))?;
        }
        self.reasons(out)
    }
}

/// Columns of figures.
const RIGHT: &[&str] = &["tokens/s", "bus GB/s"];

/// Columns of a terminal without the frame of a table.
const ROOM: usize = 80 - 1;

/// About as many digits as an interval leaves: two.
fn two_digits(value: f64) -> String {
    if !(value.is_finite() && 0.0 < value) {
        return "–".to_owned();
    }
    let unit = 10_f64.powf(value.log10().floor() - 1.0);
    let rounded = (value / unit).round() * unit;
    let text = if rounded < 10.0 { format!("{rounded:.1}") } else { grouped(rounded) };
    text.trim_end_matches(".0").to_owned()
}

impl Prediction {
    /// Columns of the table that fit the terminal without breaking a cell, and the heads of those left out: figures that
    /// follow from others go first.
    fn fitting(&self) -> (Vec<Cells<'_>>, Vec<&'static str>) {
        let mut columns = self.cells(false);
        let mut left_out = Vec::new();
        let width = |columns: &[Cells<'_>]| -> usize {
            let widest = |(name, cells): &Cells<'_>| {
                cells.iter().map(String::as_str).chain([*name]).map(|text| text.chars().count()).max().unwrap_or(0)
            };
            columns.iter().map(|column| widest(column) + 3).sum()
        };
        for name in ["bus GB/s", "transport", "tokens/s"] {
            if ROOM < width(&columns) {
                columns.retain(|column| column.0 != name);
                left_out.push(name);
            }
        }
        if ROOM < width(&columns) {
            columns = self.cells(true);
            columns.retain(|column| !left_out.contains(&column.0));
        }
        (columns, left_out)
    }

    /// All columns. Where they are `joined`, efficiency and its 90 % interval are one, and one number of GPUs is left to the
    /// line above.
    fn cells(&self, joined: bool) -> Vec<Cells<'_>> {
        let target = if joined { "reaches" } else { "reaches it" };
        let all = |of: &dyn Fn(&Variant) -> String| self.variants.iter().map(of).collect::<Vec<_>>();
        let mut columns = Vec::new();
        let one = self.variants.iter().all(|row| row.forecast.world == self.variants[0].forecast.world);
        if !(joined && one) {
            columns.push(("GPUs", all(&|row| row.forecast.world.to_string())));
        }
        columns.extend(self.columns(true).into_iter().map(|(name, of)| (name, all(&of))));
        let estimate = |row: &Variant| format!("{:.2}", row.forecast.efficiency.estimate);
        let interval = |row: &Variant| {
            let efficiency = row.forecast.efficiency;
            format!("{:.2}–{:.2}", efficiency.low, efficiency.high)
        };
        if joined {
            columns.push(("efficiency", all(&|row| format!("{} {}", estimate(row), interval(row)))));
        } else {
            columns.push(("efficiency", all(&estimate)));
            columns.push(("90 % interval", all(&interval)));
        }
        columns.push((target, all(&|row| row.reaches.word().to_owned())));
        columns.push(("tokens/s", all(&|row| two_digits(row.forecast.rate.0))));
        columns.push(("bus GB/s", all(&|row| two_digits(row.forecast.ring.bus.0 / 1e9))));
        columns.push(("transport", all(&hops)));
        columns
    }

    /// Whether the target is reached, what limits, where a lone row is asked for where the step goes, hazards, and what was
    /// assumed.
    fn reasons(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out)?;
        if let [row] = &self.variants[..] {
            let (time, cast) = (&row.forecast.time, &row.forecast);
            writeln!(out, "does it reach {:.2}: {}", self.target, row.reaches.word())?;
            let ends = |of: Interval| [Seconds(of.low), Seconds(of.high)];
            let [least, most] = ends(cast.step_s_interval);
            writeln!(out, "step {}, {least} to {most}: alone {}, exposed {}", time.step, time.alone, time.exposed)?;
            writeln!(out, "  beside buckets slower by {}, slowest rank {}", time.slowdown, time.straggler)?;
            if let Some(bus) = cast.bus_interval {
                writeln!(out, "bus {} to {} GB/s", two_digits(bus.low / 1e9), two_digits(bus.high / 1e9))?;
            }
            out.write_str(&wrapped_at("limit ", &cast.ring.limit))?;
        } else {
            writeln!(
                out,
                "wanted: {:.2}; two digits of tokens/s and GB/s count, --json has the intervals",
                self.target
            )?;
        }
        writeln!(out)?;
        self.hazards(out)?;
        for note in &self.notes {
            out.write_str(&wrapped_at("note    ", note))?;
        }
        if self.variants.iter().any(|row| row.forecast.catalogue) {
            out.write_str(&wrapped_at(
                "note    ",
                "the step of one GPU is from the catalogue: --step with a measured one narrows the interval",
            ))?;
        }
        Ok(())
    }

    /// Hazards once each, with the rows that they are about where they are not about all.
    fn hazards(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said: Vec<&str> = Vec::new();
        for hazard in self.variants.iter().flat_map(|row| &row.forecast.hazards) {
            if said.contains(&hazard.code) {
                continue;
            }
            said.push(hazard.code);
            let has = |row: &Variant| row.forecast.hazards.iter().any(|other| other.code == hazard.code);
            let rows: Vec<String> = (1..)
                .zip(&self.variants)
                .filter(|(_, row)| has(row))
                .map(|(at, _): (usize, _)| at.to_string())
                .collect();
            let which = match rows.len() {
                all if all == self.variants.len() => String::new(),
                1 => format!(" (row {})", rows[0]),
                ..=8 => format!(" (rows {})", rows.join(", ")),
                many => format!(" ({many} rows, from row {} on)", rows[0]),
            };
            out.write_str(&wrapped_at("hazard  ", &format!("{}{which}: {}", hazard.code, hazard.text)))?;
            out.write_str(&wrapped_at("        ", hazard.remedy))?;
        }
        Ok(())
    }
}

/// The ways that a ring takes, each once.
fn hops(row: &Variant) -> String {
    let mut hops: Vec<String> = row.forecast.ring.transports.iter().map(ToString::to_string).collect();
    hops.sort();
    hops.dedup();
    match hops.is_empty() {
        true => "–".to_owned(),
        false => hops.join("+").replace("host memory", "host"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_two_digits() {
        let rows =
            [(12_345.0, "12,000"), (999.0, "1,000"), (43.2, "43"), (2.345, "2.3"), (0.96, "1"), (f64::INFINITY, "–")];
        for (value, text) in rows {
            assert_eq!(two_digits(value), text, "{value}");
        }
    }
}
