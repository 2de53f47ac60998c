//! Measured links as a person reads them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use crate::record::{
    CopyLine, CounterLine, Engine, Finding, LatencyLine, LinkLine, LinksHead, LoadLine, Pattern, SumArm, SumLine,
    UplinkLine,
};
use crate::topology::PciAddress;
use crate::units::{Bytes, scattered};

use super::probe::{list_findings, plain_table, wrapped_at, write_table};

/// What `measure` prints.
#[derive(Serialize)]
pub(super) struct Shown<'a> {
    pub(super) head: &'a LinksHead,
    pub(super) lines: &'a [LinkLine],
    pub(super) findings: &'a [Finding],
    #[serde(skip)]
    pub(super) colour: bool,
}

/// All-reduces from this size on are shown by their bandwidth, smaller ones by their time.
const BANDWIDTH_FROM: Bytes = Bytes(1 << 20);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for gpu in &self.head.gpus {
            let lanes = gpu.lanes.map_or_else(|| "link unknown".into(), |lanes| format!("{lanes}, {}", lanes.rate()));
            out.write_str(&wrapped_at(&format!("{}  ", gpu.address), &format!("{}, {lanes}", gpu.name)))?;
        }
        let (mut all_copies, mut all_latencies, mut all_sums) = (Vec::new(), Vec::new(), Vec::new());
        let (mut all_loads, mut all_uplinks, mut all_counters) = (Vec::new(), Vec::new(), Vec::new());
        for line in self.lines {
            match line {
                LinkLine::Copy(copy) => all_copies.push(copy),
                LinkLine::Latency(latency) => all_latencies.push(latency),
                LinkLine::Sum(sum) => all_sums.push(sum),
                LinkLine::Load(load) => all_loads.push(load),
                LinkLine::Uplink(link) => all_uplinks.push(link),
                LinkLine::Counter(counter) => all_counters.push(counter),
                // what broke is a finding
                LinkLine::Head(_) | LinkLine::Broken(_) => {}
            }
        }
        copies(out, &all_copies)?;
        latencies(out, &all_latencies)?;
        sums(out, &all_sums)?;
        loads(out, &all_loads)?;
        uplinks(out, &all_uplinks)?;
        counters(out, &all_counters)?;
        writeln!(out)?;
        list_findings(out, self.findings, self.colour)
    }
}

fn right(table: &mut Table, columns: impl IntoIterator<Item = usize>) {
    for column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// Addresses without what all of a workstation's share: the domain, and the function of a card's first.
fn short(place: impl fmt::Display) -> String {
    let text = place.to_string();
    let text = text.strip_prefix("0000:").unwrap_or(&text);
    text.strip_suffix(".0").unwrap_or(text).to_owned()
}

fn copies(out: &mut fmt::Formatter<'_>, lines: &[&CopyLine]) -> fmt::Result {
    if lines.is_empty() {
        return Ok(());
    }
    let mut table = plain_table();
    table.set_header(["copies", "way", "by", "rate", "of link", "data"]);
    for copy in lines {
        let way = match copy.transfers.as_slice() {
            [only] => format!("{} → {}", short(only.from), short(only.to)),
            [one, _] if [Pattern::HostBothWays, Pattern::PeerBothWays].contains(&copy.pattern) => {
                format!("{} ⇄ {}", short(one.from), short(one.to))
            }
            all => format!("{} transfers", all.len()),
        };
        let pattern = match copy.pattern {
            Pattern::HostBothWays | Pattern::PeerBothWays => "both ways".into(),
            other => other.to_string(),
        };
        let by = match copy.engine {
            Engine::CopyEngine => "engine",
            Engine::Write => "writing",
            Engine::Read => "reading",
        };
        let of_link = match copy.ceiling {
            // a bridge is no PCIe link, and has no share of one
            _ if copy.nvlink => "NVLink".into(),
            Some(ceiling) => format!("{:.0} %", 100.0 * (copy.rate.median / ceiling)),
            None => String::new(),
        };
        let staged = if copy.direct == Some(false) { "staged" } else { "right" };
        let data = if copy.check.is_good() { staged } else { "WRONG" };
        let rate = scattered(copy.rate.median, copy.rate.scatter());
        table.add_row([pattern, way, by.to_owned(), rate, of_link, data.to_owned()]);
    }
    right(&mut table, [3, 4]);
    write_table(out, &table)
}

fn latencies(out: &mut fmt::Formatter<'_>, lines: &[&LatencyLine]) -> fmt::Result {
    for line in lines {
        let time = scattered(line.load_s.median, line.load_s.scatter());
        writeln!(out, "one load: {} reads {} in {time}", short(line.by), short(line.of))?;
    }
    Ok(())
}

/// A table for each set of ranks: sizes downwards, what NCCL was told across.
fn sums(out: &mut fmt::Formatter<'_>, lines: &[&SumLine]) -> fmt::Result {
    let groups: BTreeSet<&[PciAddress]> = lines.iter().map(|sum| sum.ranks.as_slice()).collect();
    for ranks in groups {
        let of = || lines.iter().filter(|sum| sum.ranks == ranks);
        let arms: BTreeSet<SumArm> = of().map(|sum| sum.arm).collect();
        let sizes: BTreeSet<Bytes> = of().map(|sum| sum.bytes).collect();
        let gpus: Vec<String> = ranks.iter().map(short).collect();
        let what = format!("of {}: time, from {BANDWIDTH_FROM} on bus bandwidth", gpus.join(", "));
        out.write_str(&wrapped_at("all-reduce ", &what))?;
        let mut table = plain_table();
        let name = |arm: &SumArm| match arm.setting() {
            Some((name, value)) => format!("{}={value}", name.trim_start_matches("NCCL_")),
            None => "NCCL's choice".into(),
        };
        table.set_header(std::iter::once("size".to_owned()).chain(arms.iter().map(name)));
        for size in sizes {
            let cell = |arm: &SumArm| {
                let Some(sum) = of().find(|sum| sum.bytes == size && sum.arm == *arm) else { return String::new() };
                let wrong = if sum.check.is_good() { "" } else { " WRONG" };
                let scatter = sum.time_s.scatter();
                let value = match size < BANDWIDTH_FROM {
                    true => scattered(sum.time_s.median, scatter),
                    false => scattered(sum.bus_bandwidth, scatter),
                };
                format!("{value}{wrong}")
            };
            table.add_row(std::iter::once(size.to_string()).chain(arms.iter().map(cell)));
        }
        right(&mut table, 0..=arms.len());
        write_table(out, &table)?;
        for arm in &arms {
            let ways: BTreeSet<&str> =
                of().filter(|sum| sum.arm == *arm).flat_map(|sum| &sum.via).map(String::as_str).collect();
            let ways =
                if ways.is_empty() { "not told".into() } else { ways.into_iter().collect::<Vec<_>>().join(", ") };
            writeln!(out, "  {}: {ways}", name(arm))?;
        }
    }
    Ok(())
}

/// The link at rest and under load side by side: the first is never a fault.
fn loads(out: &mut fmt::Formatter<'_>, lines: &[&LoadLine]) -> fmt::Result {
    for load in lines {
        let at_rest = load.at_rest.map_or_else(|| "unknown".into(), |lanes| lanes.to_string());
        let copying = match (load.least, load.most, load.p_state) {
            (Some(least), Some(most), _) if least == most => format!("{least} ({} looks)", load.samples),
            (Some(least), Some(most), _) => format!("between {least} and {most} ({} looks)", load.samples),
            (_, _, Some(state)) => format!("unknown (the GPU stayed in P{state})"),
            _ => "unknown".into(),
        };
        let replays = load.replays.map_or_else(|| "unknown".into(), |replays| replays.to_string());
        let words = format!("at rest {at_rest}, while it copied {copying}, packets sent again: {replays}");
        out.write_str(&wrapped_at(&format!("link of {}: ", short(load.gpu)), &words))?;
    }
    Ok(())
}

/// Links between ports above GPUs, likewise.
fn uplinks(out: &mut fmt::Formatter<'_>, lines: &[&UplinkLine]) -> fmt::Result {
    for link in lines {
        let at_rest = link.at_rest.map_or_else(|| "unknown".into(), |lanes| lanes.to_string());
        let copying = match (link.least, link.most) {
            (Some(least), Some(most)) if least == most => format!("{least} ({} looks)", link.samples),
            (Some(least), Some(most)) => format!("between {least} and {most} ({} looks)", link.samples),
            _ => "unknown".into(),
        };
        let gpus = if link.gpus.len() == 1 { "1 GPU".to_owned() } else { format!("{} GPUs", link.gpus.len()) };
        let words = format!("at rest {at_rest}, while {gpus} below it copied {copying}");
        out.write_str(&wrapped_at(&format!("link {} to {}: ", short(link.upper), short(link.lower)), &words))?;
    }
    Ok(())
}

/// How many counters were read and which could not: what nobody counted is not zero.
fn counters(out: &mut fmt::Formatter<'_>, lines: &[&CounterLine]) -> fmt::Result {
    if lines.is_empty() {
        return Ok(());
    }
    let mut unread: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in lines.iter().filter(|line| line.counted().is_none()) {
        let why = line.before.as_ref().err().or(line.after.as_ref().err());
        let why = why.map_or_else(|| "began anew".into(), |missing| missing.why.to_string());
        unread.entry(why).or_default().insert(short(line.at));
    }
    let read: Vec<u64> = lines.iter().filter_map(|line| line.counted()).collect();
    let grown = read.iter().filter(|counted| 0 < **counted).count();
    let mut words = format!("{} read, {grown} grew", read.len());
    for (why, at) in unread {
        let at: Vec<String> = at.into_iter().collect();
        words.push_str(&format!("; not readable at {}: {why}", at.join(", ")));
    }
    out.write_str(&wrapped_at("error counters: ", &words))
}
