//! Who the machine is, its GPUs and its pairs, as tables.

use std::collections::BTreeMap;
use std::fmt;

use comfy_table::{ContentArrangement, Table, presets};

use crate::topology::{Acs, Gpu, PciAddress, Reading, Topology, Why};
use crate::units::Watts;

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
            cut(gpu.name().trim_start_matches("NVIDIA "), 60),
            memory.map_or_else(|| "–".to_owned(), ToString::to_string),
            gpu.numa_node.as_ref().map_or_else(|_| "?".to_owned(), ToString::to_string),
            gpu.narrowest.as_ref().map_or_else(|_| "unknown".to_owned(), |hop| hop.lanes().to_string()),
        ]);
    }
    write(out, &table)
}

/// What a fact says in a cell: `–` where the device does not offer it or a text does not tell it, `?` where it is unknown.
fn cell<T>(fact: &Reading<T>, say: impl Fn(&T) -> String) -> String {
    match fact {
        Ok(fact) => say(fact),
        Err(missing) if matches!(missing.why, Why::Unsupported | Why::Untold | Why::NotAsked) => "–".to_owned(),
        Err(_) => "?".to_owned(),
    }
}

/// One more row for each NVIDIA GPU: how it is set.
pub(super) fn details(out: &mut fmt::Formatter<'_>, topology: &Topology) -> fmt::Result {
    let mut table = plain_table();
    table.set_header(["address", "window", "ACS", "ASPM", "ECC", "power limit", "persistence"]);
    let switch = |on: &bool| if *on { "on" } else { "off" }.to_owned();
    for gpu in topology.nvidia_gpus() {
        let Some(state) = &gpu.nvml else { continue };
        let window = match &state.bar1_bytes {
            Err(_) => cell(&gpu.frame_buffer, |bar| bar.bytes.to_string()),
            told => cell(told, ToString::to_string),
        };
        let limit = |limit: &u32| {
            let sold = state.power_default_mw.as_ref().ok().filter(|sold| *sold != limit);
            let watts = |milli: u32| Watts(f64::from(milli) / 1e3);
            watts(*limit).to_string() + &sold.map_or_else(String::new, |sold| format!(" of {}", watts(*sold)))
        };
        table.add_row([
            shown(gpu.address),
            window,
            redirects(topology, gpu),
            cell(&gpu.pcie.aspm, ToString::to_string),
            cell(&state.condition.ecc, switch),
            cell(&state.power_limit_mw, limit),
            cell(&state.persistence, switch),
        ]);
    }
    write(out, &table)?;
    out.write_str(&wrapped(
        "",
        "ACS: what the ports above the GPU do to packets of peers; – not offered or told, ? unknown",
    ))
}

/// Whether a port above the GPU redirects.
fn redirects(topology: &Topology, gpu: &Gpu) -> String {
    let chain = topology.chain(gpu);
    let acs = |say: fn(&Reading<Acs>) -> bool| chain.iter().any(|bridge| say(&bridge.pcie.acs));
    if acs(|acs| acs.as_ref().is_ok_and(|acs| !acs.redirects().is_empty())) {
        "redirects".to_owned()
    } else if acs(|acs| acs.as_ref().is_err_and(|missing| matches!(missing.why, Why::Denied | Why::Garbled))) {
        "?".to_owned()
    } else if chain.is_empty() || acs(|acs| acs.as_ref().is_err_and(|missing| missing.why != Why::Absent)) {
        "–".to_owned()
    } else {
        "direct".to_owned()
    }
}

/// How each pair of GPUs is connected: a matrix, or counts where a matrix would not fit.
pub(super) fn pairs(out: &mut fmt::Formatter<'_>, topology: &Topology) -> fmt::Result {
    let mut gpus: Vec<PciAddress> = topology.pairs.iter().flat_map(|pair| [pair.a, pair.b]).collect();
    gpus.sort_unstable();
    gpus.dedup();
    let class = |a: PciAddress, b: PciAddress| {
        if topology.is_bridged(a, b) {
            return topology.nvlinks_between(a, b).map_or_else(|| "NV".to_owned(), |count| format!("NV{count}"));
        }
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
                    nodes, NV# joined by NVLinks, ? unknown";
    out.write_str(&wrapped("", meanings))
}
