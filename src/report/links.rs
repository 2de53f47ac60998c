//! What the links of the machine carried, as text.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::record::{CopyLine, Engine, LinkLine, LoadLine, Pattern, SumArm, SumLine, UplinkLine};
use crate::topology::Lanes;
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
    of: String,
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
        let row = |line: &LinkLine| match line {
            LinkLine::Load(load) => Some(load_row(load)),
            LinkLine::Uplink(link) => Some(uplink_row(link)),
            _ => None,
        };
        Self { copies, more, sums: sum_rows(lines), loads: lines.iter().filter_map(row).collect() }
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
        of: load.gpu.to_string(),
        at_rest: load.at_rest.map_or_else(unknown, |lanes| lanes.to_string()),
        under_load: between(load.least, load.most),
        replays: load.replays.map_or_else(unknown, |replays| replays.to_string()),
    }
}

/// A link between ports above GPUs.
fn uplink_row(link: &UplinkLine) -> LoadRow {
    LoadRow {
        of: format!("{} to {}", link.upper, link.lower),
        at_rest: link.at_rest.map_or_else(|| "unknown".to_owned(), |lanes| lanes.to_string()),
        under_load: between(link.least, link.most),
        replays: "–".to_owned(),
    }
}

fn between(least: Option<Lanes>, most: Option<Lanes>) -> String {
    match (least, most) {
        (Some(least), Some(most)) if least == most => least.to_string(),
        (Some(least), Some(most)) => format!("between {least} and {most}"),
        _ => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::PciAddress;

    #[test]
    fn a_link_above_gpus_stands_below_those_of_gpus() {
        let lanes = |generation: u64| {
            let (generation, width) = (generation.try_into().unwrap(), 16.try_into().unwrap());
            Some(Lanes { generation, width })
        };
        let at = |text: &str| text.parse::<PciAddress>().unwrap();
        let load = LoadLine {
            gpu: at("0000:03:00.0"),
            at_rest: lanes(1),
            least: lanes(5),
            most: lanes(5),
            last: lanes(5),
            samples: 9,
            p_state: Some(0),
            throttle: None,
            replays: Some(0),
        };
        let uplink = UplinkLine {
            upper: at("0000:00:01.1"),
            lower: at("0000:01:00.0"),
            gpus: vec![load.gpu],
            at_rest: None,
            least: lanes(3),
            most: lanes(5),
            last: lanes(5),
            samples: 9,
        };
        let rows = LinkTables::of(&[LinkLine::Load(load), LinkLine::Uplink(uplink)]).loads;
        let text =
            |row: &LoadRow| [&row.of, &row.at_rest, &row.under_load, &row.replays].map(String::clone).join(" | ");
        assert_eq!(text(&rows[0]), "0000:03:00.0 | Gen1 x16 | Gen5 x16 | 0");
        assert_eq!(text(&rows[1]), "0000:00:01.1 to 0000:01:00.0 | unknown | between Gen3 x16 and Gen5 x16 | –");
        assert_eq!(rows.len(), 2);
    }
}
