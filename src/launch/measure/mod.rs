//! What links really carry: copies and sums between GPUs and the host, timed and checked in processes of their own, so
//! that one that hangs, dies or delivers wrong data is a finding and not the end.

mod children;
mod copies;
mod judge;
mod loads;
mod sums;
mod task;
mod wish;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use crate::record::{Finding, LinkLine, LinksHead, LinksWriter, LoadLine, SumArm};
use crate::topology::{PciAddress, Topology};

use super::LaunchError;
use children::{Ending, run};
use judge::Evidence;
use loads::{Loads, Seen};

pub use task::link_main;
pub use wish::{LinkSite, Wish};

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
    /// What is wrong, gravest first.
    pub findings: Vec<Finding>,
    /// Whether the user interrupted.
    pub interrupted: bool,
}

impl Measurer<'_> {
    /// Measures what is wished for and writes it line by line.
    ///
    /// # Errors
    /// A process cannot be started, or the file not be written.
    pub fn measure(&self, wish: &Wish, head: &LinksHead, topology: &Topology) -> Result<Measured, LaunchError> {
        let mut writer = LinksWriter::create(&self.folder.join("links.jsonl"), head)?;
        let mut evidence = Evidence::new(head, topology);
        let mut gpus: Vec<PciAddress> = wish.sites.iter().map(|site| site.address).collect();
        gpus.dedup();
        let loads = Loads::of(gpus.clone());
        let mut interrupted = false;
        let stages = wish.stages();
        for (index, stage) in stages.iter().enumerate() {
            if !evidence.allows(stage) {
                continue;
            }
            (self.progress)(index, stages.len(), &stage.to_string());
            let mut lines = Vec::new();
            let ending = run(Path::new(PROGRAM), self.folder, stage, self.stop, &mut lines)?;
            evidence.complete(stage, &mut lines);
            lines.iter().try_for_each(|line| writer.write(line))?;
            interrupted = matches!(ending, Ending::Interrupted);
            evidence.add(stage, lines, ending);
            if interrupted {
                break;
            }
        }
        for gpu in gpus {
            let Seen { best, replays } = loads.seen(gpu);
            let replays = replays.map(|(first, last)| last.saturating_sub(first));
            let line = LinkLine::Load(LoadLine { gpu, lanes: best, replays });
            writer.write(&line)?;
            evidence.push(line);
        }
        writer.end()?;
        let (lines, findings) = evidence.judged();
        Ok(Measured { lines, findings, interrupted })
    }
}

/// What NCCL is told for an arm.
fn settings(arm: SumArm) -> Option<(&'static str, &'static str)> {
    match arm {
        SumArm::Default => None,
        SumArm::P2pSys => Some(("NCCL_P2P_LEVEL", "SYS")),
        SumArm::P2pOff => Some(("NCCL_P2P_DISABLE", "1")),
    }
}
