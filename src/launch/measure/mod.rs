//! What links really carry: copies and sums between GPUs and the host, timed and checked in processes of their own, so
//! that one that hangs, dies or delivers wrong data is a finding and not the end.

mod children;
mod compare;
mod copies;
mod counters;
mod evidence;
mod judge;
mod loads;
mod sums;
mod task;
mod uplinks;
mod wish;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use crate::record::{BrokenLine, Check, LinkLine, LinksHead, LinksWriter, Spread, SumLine};
use crate::topology::{PciAddress, Topology};
use crate::units::Seconds;

use super::LaunchError;
use children::{Ending, Runner};
use counters::Counters;
use evidence::Evidence;
use loads::Loads;
use task::Work;
use uplinks::Uplinks;
use wish::Stage;

pub use judge::judge_links;
pub use loads::{least_under_load, under_load};
pub use task::link_main;
pub use wish::{LinkSite, Wish, sum_arms};

/// The program that measures, with the argument `link`: this very one.
const PROGRAM: &str = "/proc/self/exe";

/// Measures the links of one machine.
pub struct Measurer<'a> {
    /// Where `links.jsonl` and the logs go.
    pub folder: &'a Path,
    /// Set when the user interrupts.
    pub stop: &'a AtomicBool,
    /// Hears what is about to be measured: its place, how many there are, in words.
    pub progress: &'a dyn Fn(usize, usize, &str),
}

/// What was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// Lines of `links.jsonl`, without its head.
    pub lines: Vec<LinkLine>,
    /// Whether the user interrupted.
    pub interrupted: bool,
}

impl Measurer<'_> {
    /// Measures what is wished for and writes it line by line; [`judge_links`] says what it means.
    ///
    /// # Errors
    /// A process cannot be started, or the file not be written.
    pub fn measure(&self, wish: &Wish, head: &LinksHead, topology: &Topology) -> Result<Measured, LaunchError> {
        let mut writer = LinksWriter::create(&self.folder.join("links.jsonl"), head)?;
        let mut gpus: Vec<PciAddress> = wish.sites.iter().map(|site| site.address).collect();
        gpus.dedup();
        let devices = Path::new(counters::DEVICES);
        let loads = Loads::of(gpus.clone(), Uplinks::of(devices, &gpus, topology));
        let counters = Counters::of(devices, &gpus, topology);
        let runner = Runner { program: Path::new(PROGRAM), folder: self.folder, stop: self.stop, loads: &loads };
        let mut measured = Measured { lines: Vec::new(), interrupted: false };
        let stages = wish.stages();
        for (index, stage) in stages.iter().enumerate() {
            let so_far = Evidence { head, topology, lines: &measured.lines };
            if !so_far.allows(stage) {
                continue;
            }
            (self.progress)(index, stages.len(), &stage.to_string());
            let mut lines = Vec::new();
            let ending = runner.run(stage, &mut lines)?;
            complete(so_far, stage, &mut lines);
            if let Ending::Broken(ending) = &ending {
                lines.push(LinkLine::Broken(BrokenLine { stage: stage.what.clone(), ending: ending.clone() }));
            }
            lines.iter().try_for_each(|line| writer.write(line))?;
            measured.lines.extend(lines);
            if matches!(ending, Ending::Interrupted) {
                measured.interrupted = true;
                break;
            }
        }
        let mut seen: Vec<LinkLine> = gpus.iter().map(|gpu| LinkLine::Load(loads.line(*gpu, topology))).collect();
        seen.extend(loads.uplinks().into_iter().map(LinkLine::Uplink));
        let memory = gpus.iter().map(|gpu| loads.memory_errors(*gpu));
        seen.extend(counters.lines().into_iter().chain(memory).map(LinkLine::Counter));
        seen.iter().try_for_each(|line| writer.write(line))?;
        measured.lines.extend(seen);
        writer.end()?;
        Ok(measured)
    }
}

/// Adds to lines what the child does not know: ceilings and NVLinks, and of sums the mean over ranks.
fn complete(evidence: Evidence<'_>, stage: &Stage, lines: &mut Vec<LinkLine>) {
    if let Work::Sums(sums) = &stage.work {
        *lines = over_ranks(lines, sums.sites.len());
    }
    for line in lines {
        if let LinkLine::Copy(copy) = line {
            copy.ceiling = evidence.ceiling(copy);
            copy.nvlink = copy.transfers.iter().any(|way| evidence.bridged(way.from, way.to));
        }
    }
}

/// One line for each size: times are means over ranks, checks are sums.
fn over_ranks(lines: &[LinkLine], world: usize) -> Vec<LinkLine> {
    let sums = || lines.iter().filter_map(|line| if let LinkLine::Sum(sum) = line { Some(sum) } else { None });
    let sizes: BTreeSet<_> = sums().map(|sum| sum.bytes).collect();
    let merged = sizes.into_iter().filter_map(|size| {
        let of_size: Vec<&SumLine> = sums().filter(|sum| sum.bytes == size).collect();
        let first = (*of_size.first().filter(|_| of_size.len() == world)?).clone();
        let mean = |of: fn(&Spread<Seconds>) -> Seconds| {
            of_size.iter().map(|sum| of(&sum.time_s)).sum::<Seconds>() / world as f64
        };
        let time_s =
            Spread { median: mean(|time| time.median), low: mean(|time| time.low), high: mean(|time| time.high) };
        let total = |of: fn(&Check) -> u64| of_size.iter().map(|sum| of(&sum.check)).sum();
        let check = Check {
            words: total(|check| check.words),
            wrong: total(|check| check.wrong),
            untouched: total(|check| check.untouched),
        };
        let mut via: Vec<String> = of_size.iter().flat_map(|sum| sum.via.clone()).collect();
        via.sort_unstable();
        via.dedup();
        let bus_bandwidth = first.bus_bandwidth * (first.time_s.median / time_s.median);
        Some(LinkLine::Sum(SumLine { time_s, check, via, bus_bandwidth, ..first }))
    });
    merged.collect()
}
