//! What a measuring process is told over its stdin, what it says over its stdout, and its life.

use std::io::{self, BufRead, Write};
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use crate::device::cuda::NcclId;
use crate::record::{Engine, LinkLine, Pattern, Place, SumArm};
use crate::topology::PciAddress;
use crate::units::{Bytes, Seconds};

use super::{copies, sums};

/// The first line that the process reads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Task {
    /// The process that started it, whose end it does not outlive.
    pub(super) launcher: u32,
    /// Which of the processes of its stage it is.
    pub(super) rank: usize,
    /// Where NCCL writes its log.
    pub(super) log: std::path::PathBuf,
    pub(super) work: Work,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Work {
    /// One process opens all GPUs and copies.
    Copies(Copies),
    /// One process for each GPU, which sum.
    Sums(Sums),
}

/// Copies to make, one request after another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Copies {
    /// GPUs and the CPUs near each.
    pub(super) sites: Vec<(PciAddress, Vec<usize>)>,
    pub(super) requests: Vec<Request>,
    /// Of one transfer.
    pub(super) bytes: Bytes,
    /// Repeats that count.
    pub(super) samples: usize,
}

/// One measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Request {
    /// Transfers that run at once.
    Copy { pattern: Pattern, engine: Engine, transfers: Vec<(Place, Place)> },
    /// Loads that wait for each other.
    Latency { of: Place, by: PciAddress },
    /// Transfers again and again for so long, untimed: meanwhile others look at the links.
    Load { transfers: Vec<(Place, Place)>, lasts: Seconds },
}

/// All-reduces to make, one size after another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sums {
    /// The GPU of each rank and the CPUs near it.
    pub(super) sites: Vec<(PciAddress, Vec<usize>)>,
    pub(super) arm: SumArm,
    /// Bytes that each rank brings.
    pub(super) sizes: Vec<Bytes>,
    /// A sum that takes longer hangs; ranks give up a little earlier, in order.
    pub(super) limit: Seconds,
    pub(super) max_ctas: Option<u32>,
    /// All on one GPU.
    pub(super) shared: bool,
}

/// What the process says, one line each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub(super) enum Report {
    /// It goes to meet the others over NCCL; rank 0 makes the id.
    Meets { id: Option<NcclId> },
    /// Something was measured.
    Measured { of: LinkLine },
    /// It is at work.
    Busy,
    /// These GPUs, and no others, copy from now on and are awake.
    Copying { gpus: Vec<PciAddress> },
    /// All is done.
    Done,
    /// It gave up.
    Failed {
        /// Why.
        text: String,
        /// Whether others did not come, so that somebody else knows more.
        unmet: bool,
    },
}

/// Why a measuring process gave up.
#[derive(Debug)]
pub(super) struct GaveUp {
    pub(super) text: String,
    pub(super) unmet: bool,
}

impl<E: std::error::Error + 'static> From<E> for GaveUp {
    fn from(error: E) -> Self {
        Self { text: crate::launch::error::chain(&error), unmet: false }
    }
}

/// The whole life of a measuring process. stdin brings the task and, for sums, the id to meet under.
#[must_use]
pub fn link_main() -> ExitCode {
    let mut line = String::new();
    let task = io::stdin().lock().read_line(&mut line).map_err(GaveUp::from);
    let task = task.and_then(|_| serde_json::from_str::<Task>(&line).map_err(GaveUp::from));
    let done = task.and_then(|task| match task.work.clone() {
        Work::Copies(copies) => copies::make(&task, &copies),
        Work::Sums(sums) => sums::make(&task, &sums),
    });
    match done {
        Ok(()) => {
            say(&Report::Done);
            ExitCode::SUCCESS
        }
        Err(GaveUp { text, unmet }) => {
            say(&Report::Failed { text, unmet });
            ExitCode::FAILURE
        }
    }
}

/// Says one line. Whoever started the process may be gone: the kernel ends it then.
pub(super) fn say(report: &Report) {
    let mut stdout = io::stdout().lock();
    let _ = serde_json::to_writer(&mut stdout, report)
        .map_err(io::Error::from)
        .and_then(|()| stdout.write_all(b"\n"))
        .and_then(|()| stdout.flush());
}
