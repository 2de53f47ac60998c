//! Who the machine is, its GPUs and its pairs, as tables.

use std::collections::BTreeMap;
use std::fmt;

use comfy_table::{ContentArrangement, Table, presets};

use crate::topology::{PciAddress, Topology};

use super::{COLUMNS, cut, shown, wrapped};

/// More columns do not fit.
const MATRIX_GPUS_MAX: usize = 9;

/// A table that fits the terminal and stays plain in a file.
pub(in crate::cli) fn plain_table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(COLUMNS as u16).force_no_tty();
    table
}

/// Writes a table without the blanks at the ends of its lines.
pub(in crate::cli) fn write(out: &mut fmt::Formatter<'_>, table: &Table) -> fmt::Result {
    writeln!(out, "{}", table.trim_fmt())
}

/// How [`Topology::identity`] begins what an imported text cannot hold.
const UNTOLD: &str = "unknown (not in ";

/// The labelled lines of the machine; GPUs have their own table.
pub(super) fn identity(out: &mut fmt::Formatter<'_>, topology: &Topology) -> fmt::Result {
    let lines = topology.identity().into_iter().filter(|(label, _)| !label.starts_with("GPU "));
    let (untold, told): (Vec<_>, Vec<_>) = lines.partition(|(_, text)| text.starts_with(UNTOLD));
    for (label, text) in told {
        out.write_str(&wrapped(&format!("{label:19}"), &text))?;
    }
    // What an imported text cannot hold takes a line, not a page.
    let kind = untold.first().map(|(_, text)| text.trim_start_matches(UNTOLD).split(')').next().unwrap_or_default());
    let Some(kind) = kind else { return Ok(()) };
    let labels: Vec<&str> = untold.iter().map(|(label, _)| label.as_str()).collect();
    out.write_str(&wrapped("", &format!("Not in {kind}: {}", labels.join(", "))))
}

/// One row for each GPU.
pub(super) fn gpus(out: &mut fmt::Formatter<'_>, topology: &Topology) -> fmt::Result {
    if topology.gpus.is_empty() {
        return writeln!(out, "No GPU.");
    }
    let mut table = plain_table();
    table.set_header(["address", "GPU", "memory", "NUMA", "narrowest hop"]);
    for gpu in &topology.gpus {
        let memory = gpu.nvml.as_ref().and_then(|nvml| nvml.memory_bytes.as_ref().ok());
        table.add_row([
            shown(gpu.address),
            cut(gpu.name().trim_start_matches("NVIDIA "), 29),
            memory.map_or_else(|| "–".to_owned(), ToString::to_string),
            gpu.numa_node.as_ref().map_or_else(|_| "?".to_owned(), ToString::to_string),
            gpu.narrowest.as_ref().map_or_else(|_| "unknown".to_owned(), |hop| hop.lanes().to_string()),
        ]);
    }
    write(out, &table)
}

/// How each pair of GPUs is connected: a matrix, or counts where a matrix would not fit.
pub(super) fn pairs(out: &mut fmt::Formatter<'_>, topology: &Topology) -> fmt::Result {
    let mut gpus: Vec<PciAddress> = topology.pairs.iter().flat_map(|pair| [pair.a, pair.b]).collect();
    gpus.sort_unstable();
    gpus.dedup();
    let class = |a: PciAddress, b: PciAddress| {
        let pair = topology.pairs.iter().find(|pair| (pair.a, pair.b) == (a.min(b), a.max(b)));
        pair.map_or_else(
            || "".to_owned(),
            |pair| pair.path.as_ref().map_or_else(|_| "?".to_owned(), ToString::to_string),
        )
    };
    if gpus.is_empty() {
        return Ok(());
    }
    if MATRIX_GPUS_MAX < gpus.len() {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for pair in &topology.pairs {
            *counts.entry(class(pair.a, pair.b)).or_default() += 1;
        }
        let counts: Vec<String> = counts.iter().map(|(class, count)| format!("{count} × {class}")).collect();
        return writeln!(out, "{} pairs: {}", topology.pairs.len(), counts.join(", "));
    }
    let mut table = plain_table();
    // One domain is the rule: then bus and device are enough for a column.
    let short = |gpu: &PciAddress| match gpu.domain == gpus[0].domain && !gpu.is_index() {
        true => format!("{:02x}:{:02x}", gpu.bus, gpu.device),
        false => shown(*gpu),
    };
    table.set_header(["pairs".to_owned()].into_iter().chain(gpus.iter().map(short)));
    for row in &gpus {
        let cells = gpus.iter().map(|column| if row == column { "–".to_owned() } else { class(*row, *column) });
        table.add_row([shown(*row)].into_iter().chain(cells));
    }
    write(out, &table)?;
    let meanings = "PIX one switch, PXB several switches, PHB one host bridge, NODE one NUMA node, SYS across NUMA \
                    nodes, ? unknown";
    out.write_str(&wrapped("", meanings))
}
