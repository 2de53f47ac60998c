//! A prediction on the terminal.

use std::fmt;

use comfy_table::CellAlignment;

use crate::cli::probe::{plain_table, wrapped_at, write_table};
use crate::units::grouped;

use super::{Listing, Prediction};

impl fmt::Display for Listing {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for row in &self.platforms {
            writeln!(out, "{:29} {} × {}", row.name, row.gpus, row.card)?;
            out.write_str(&wrapped_at("    ", &row.title))?;
        }
        Ok(())
    }
}

impl fmt::Display for Prediction {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{}", self.title)?;
        writeln!(
            out,
            "{}, batch {}, context {}, trained by {}",
            self.model,
            self.batch,
            self.context,
            self.framework.name()
        )?;
        // what does not vary is said once, so that a row fits
        for (name, of) in self.columns(false) {
            writeln!(out, "{name:11} {}", of(&self.variants[0]))?;
        }
        let shown = self.columns(true);
        let mut table = plain_table();
        let names = shown.iter().map(|(name, _)| *name);
        table.set_header(["GPUs"].into_iter().chain(names).chain(["efficiency", "90 %", "tokens/s", "GB/s", "by"]));
        for row in &self.variants {
            let (cast, efficiency) = (&row.forecast, row.forecast.efficiency);
            let mut hops: Vec<String> = cast.ring.transports.iter().map(ToString::to_string).collect();
            hops.sort();
            hops.dedup();
            let (bus, hops) = match cast.world {
                1 => ("–".to_owned(), "–".to_owned()),
                _ => (grouped(cast.ring.bus.0 / 1e9), hops.join("+").replace("host memory", "host")),
            };
            let cells = shown.iter().map(|(_, of)| of(row));
            let results = [
                format!("{:.2}", efficiency.estimate),
                format!("{:.2}–{:.2}", efficiency.low, efficiency.high),
                grouped(cast.rate.0),
                bus,
                hops,
            ];
            table.add_row([cast.world.to_string()].into_iter().chain(cells).chain(results));
        }
        let rates = table.column_count().saturating_sub(3);
        if let Some(column) = table.column_mut(rates) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        write_table(out, &table)?;
        self.reasons(out)
    }
}

impl Prediction {
    /// What limits, where a lone row is asked for where the step goes, hazards once each, and what was assumed.
    fn reasons(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out)?;
        if let [row] = &self.variants[..] {
            let time = &row.forecast.time;
            writeln!(out, "step {}: alone {}, exposed {}", time.step, time.alone, time.exposed)?;
            writeln!(out, "  beside buckets slower by {}, slowest rank {}", time.slowdown, time.straggler)?;
            writeln!(out, "limit: {}\n", row.forecast.ring.limit)?;
        }
        let mut said = Vec::new();
        for hazard in self.variants.iter().flat_map(|row| &row.forecast.hazards) {
            if !said.contains(&hazard.code) {
                said.push(hazard.code);
                out.write_str(&wrapped_at("hazard  ", &format!("{}: {}", hazard.code, hazard.text)))?;
                out.write_str(&wrapped_at("        ", hazard.remedy))?;
            }
        }
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
}
