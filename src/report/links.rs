//! What the links of the machine carried, as text.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::record::{CopyLine, Engine, LinkLine, LoadLine, Pattern, SumArm, SumLine};
use crate::units::{Bytes, scattered};

use super::page::count;

/// Measured links: the lines of `links.jsonl`, without its head.
pub(super) type Lines<'a> = &'a [LinkLine];

/// A page has no room for more rows; the file beside it holds them all.
const ROWS_MAX: usize = 48;

/// Links as a page shows them; empty where none were measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct LinkTables {
    copies: Vec<CopyRow>,
    /// Copies that have no room, in words.
    more: String,
    sums: Vec<SumRow>,
    loads: Vec<LoadRow>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct CopyRow {
    what: String,
    way: String,
    rate: String,
    of_link: String,
    data: &'static str,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct SumRow {
    ranks: usize,
    told: String,
    small: String,
    large: String,
    data: &'static str,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct LoadRow {
    gpu: String,
    at_rest: String,
    under_load: String,
    replays: String,
}

impl LinkTables {
    pub(super) fn of(lines: Lines<'_>) -> Self {
        // kernels show what copy engines show, and latencies explain no rate
        let shown = |copy: &&CopyLine| copy.engine == Engine::CopyEngine;
        let copies = lines.iter().filter_map(|line| if let LinkLine::Copy(copy) = line { Some(copy) } else { None });
        let mut copies: Vec<CopyRow> = copies.filter(shown).map(copy_row).collect();
        let hidden = copies.len().saturating_sub(ROWS_MAX);
        copies.truncate(ROWS_MAX);
        let more = match hidden {
            0 => String::new(),
            hidden => format!("{} more copies are in links.jsonl.", count(hidden)),
        };
        let loads = lines.iter().filter_map(|line| if let LinkLine::Load(load) = line { Some(load) } else { None });
        Self { copies, more, sums: sum_rows(lines), loads: loads.map(load_row).collect() }
    }
}

fn copy_row(copy: &CopyLine) -> CopyRow {
    let way = match copy.transfers.as_slice() {
        [only] => format!("{} → {}", only.from, only.to),
        [one, _] if [Pattern::HostBothWays, Pattern::PeerBothWays].contains(&copy.pattern) => {
            format!("{} ⇄ {}", one.from, one.to)
        }
        all => format!("{} transfers", count(all.len())),
    };
    CopyRow {
        what: copy.pattern.to_string(),
        way,
        rate: scattered(copy.rate.median, copy.rate.scatter()),
        of_link: match copy.ceiling {
            _ if copy.nvlink => "NVLink".into(),
            Some(ceiling) => format!("{:.0} %", 100.0 * (copy.rate.median / ceiling)),
            None => "–".into(),
        },
        data: match (copy.check.is_good(), copy.direct) {
            (false, _) => "wrong",
            (true, Some(false)) => "right, staged through the host",
            (true, _) => "right",
        },
    }
}

/// A row for what NCCL was told, of all ranks that were measured together.
fn sum_rows(lines: Lines<'_>) -> Vec<SumRow> {
    let sums = of_all_ranks(lines);
    let arms: BTreeSet<SumArm> = sums.iter().map(|sum| sum.arm).collect();
    let row = |arm: SumArm| {
        let of = || sums.iter().filter(|sum| sum.arm == arm);
        let (small, large) = (of().min_by_key(|sum| sum.bytes)?, of().max_by_key(|sum| sum.bytes)?);
        let scatter = |sum: &SumLine| sum.time_s.scatter();
        Some(SumRow {
            ranks: large.ranks.len(),
            told: arm.to_string(),
            small: format!("{} ({})", scattered(small.time_s.median, scatter(small)), small.bytes),
            large: format!("{} ({})", scattered(large.bus_bandwidth, scatter(large)), large.bytes),
            data: if of().all(|sum| sum.check.is_good()) { "right" } else { "wrong" },
        })
    };
    arms.into_iter().filter_map(row).collect()
}

/// All-reduces of as many ranks as were ever measured together.
pub(super) fn of_all_ranks(lines: Lines<'_>) -> Vec<&SumLine> {
    let sums = || lines.iter().filter_map(|line| if let LinkLine::Sum(sum) = line { Some(sum) } else { None });
    let most = sums().map(|sum| sum.ranks.len()).max().unwrap_or_default();
    sums().filter(|sum| sum.ranks.len() == most && Bytes(0) < sum.bytes).collect()
}

fn load_row(load: &LoadLine) -> LoadRow {
    let unknown = || "unknown".to_owned();
    LoadRow {
        gpu: load.gpu.to_string(),
        at_rest: load.at_rest.map_or_else(unknown, |lanes| lanes.to_string()),
        under_load: match (load.least, load.most) {
            (Some(least), Some(most)) if least == most => least.to_string(),
            (Some(least), Some(most)) => format!("between {least} and {most}"),
            _ => unknown(),
        },
        replays: load.replays.map_or_else(unknown, |replays| replays.to_string()),
    }
}
