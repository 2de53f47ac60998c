//! The processes of one stage: started, heard, told where to meet, and ended, however they behave.

use std::fs::{self, File};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use crate::device::cuda::NcclId;
use crate::launch::LaunchError;
use crate::launch::ranks::{Heard, RankProcess};
use crate::record::{LinkLine, StageEnding};
use crate::units::Seconds;

use super::loads::Loads;
use super::task::{Report, Task, Work};
use super::wish::Stage;

/// How often the limit and the user's interruption are looked at.
const LOOK: Duration = Duration::from_millis(20);

/// When one fails, others say what they know of it within moments.
const GATHER: Duration = Duration::from_millis(400);

/// Processes that share a GPU end in order, by limits of their own; others are given this long.
const END_LIMIT: Duration = Duration::from_secs(5);

/// How a stage ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Ending {
    Done,
    Interrupted,
    Broken(StageEnding),
}

struct Process {
    of: RankProcess,
    met: bool,
    done: bool,
}

type Said = (usize, Heard<Report>);

/// Who runs stages, and where.
pub(super) struct Runner<'a> {
    pub(super) program: &'a Path,
    /// Where logs go.
    pub(super) folder: &'a Path,
    pub(super) stop: &'a AtomicBool,
    /// Hears which GPUs copy.
    pub(super) loads: &'a Loads,
}

impl Runner<'_> {
    /// Runs a stage to its end and takes what its processes measured.
    pub(super) fn run(&self, stage: &Stage, lines: &mut Vec<LinkLine>) -> Result<Ending, LaunchError> {
        let count = match &stage.work {
            Work::Copies(_) => 1,
            Work::Sums(sums) => sums.sites.len(),
        };
        let (say, heard) = mpsc::channel();
        let mut processes = Vec::new();
        for rank in 0..count {
            let log = self.folder.join(format!("link-{rank}.nccl.log"));
            let task = Task { launcher: std::process::id(), rank, log, work: stage.work.clone() };
            match self.start(&task, say.clone()) {
                Ok(process) => processes.push(process),
                Err(source) => {
                    end(&mut processes, Duration::ZERO);
                    return Err(LaunchError::Start { rank, source });
                }
            }
        }
        drop(say);
        let ending = self.watch(&mut processes, &heard, stage.limit, lines);
        self.loads.copies(&[]);
        let orderly = match (&stage.work, &ending) {
            // a client of MPS that is killed with work in flight can take the GPU with it
            (Work::Sums(sums), _) if sums.shared => Duration::from_secs_f64(stage.limit.0),
            (_, Ending::Broken(StageEnding::Hang { .. }) | Ending::Interrupted) => Duration::ZERO,
            _ => END_LIMIT,
        };
        end(&mut processes, orderly);
        clear(self.folder, count);
        Ok(ending)
    }

    fn start(&self, task: &Task, say: Sender<Said>) -> std::io::Result<Process> {
        let rank = task.rank;
        let stderr = File::create(self.folder.join(format!("link-{rank}.log")))?;
        let hear = move |heard| say.send((rank, heard)).is_ok();
        let mut of = RankProcess::start(self.program, &["link"], stderr.into(), hear)?;
        of.tell(task);
        Ok(Process { of, met: false, done: false })
    }

    fn watch(
        &self,
        processes: &mut [Process],
        heard: &Receiver<Said>,
        limit: Seconds,
        lines: &mut Vec<LinkLine>,
    ) -> Ending {
        let mut last = Instant::now();
        let mut met: Option<NcclId> = None;
        while !processes.iter().all(|process| process.done) {
            if self.stop.load(Ordering::Relaxed) {
                return Ending::Interrupted;
            }
            let Ok((rank, heard_of)) = heard.recv_timeout(LOOK) else {
                if limit.0 < last.elapsed().as_secs_f64() {
                    return Ending::Broken(StageEnding::Hang { limit_s: limit });
                }
                continue;
            };
            last = Instant::now();
            let report = match heard_of {
                Heard::Said(report) => report,
                Heard::Garbled(_) | Heard::Closed if processes[rank].done => continue,
                Heard::Garbled(_) | Heard::Closed => {
                    let how = died(&mut processes[rank]);
                    return failed(processes, heard, (rank, how, false));
                }
            };
            match report {
                Report::Measured { of } => lines.push(of),
                Report::Busy => {}
                Report::Copying { gpus } => self.loads.copies(&gpus),
                Report::Done => processes[rank].done = true,
                Report::Meets { id } => {
                    processes[rank].met = true;
                    met = met.or(id);
                    if let Some(id) = met.as_ref().filter(|_| processes.iter().all(|process| process.met)) {
                        processes.iter_mut().for_each(|process| process.of.tell(id));
                    }
                }
                Report::Failed { text, unmet } => return failed(processes, heard, (rank, text, unmet)),
            }
        }
        Ending::Done
    }
}

/// Names the first of those that failed: one that died or has a reason of its own before one that waited in vain.
fn failed(processes: &mut [Process], heard: &Receiver<Said>, first: (usize, String, bool)) -> Ending {
    let mut said = vec![first];
    let until = Instant::now() + GATHER;
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        match heard.recv_timeout(left) {
            Ok((rank, Heard::Said(Report::Failed { text, unmet }))) => said.push((rank, text, unmet)),
            Ok((_, Heard::Said(_))) => {}
            Ok((rank, _)) if !processes[rank].done && said.iter().all(|(other, ..)| *other != rank) => {
                said.push((rank, died(&mut processes[rank]), false));
            }
            Ok(_) => {}
            Err(_) => break,
        }
    }
    said.sort_by_key(|(_, _, unmet)| *unmet);
    let (rank, text, unmet) = said.swap_remove(0);
    // where everybody only waited, nobody failed: that is a hang
    Ending::Broken(if unmet { StageEnding::Unmet { rank, text } } else { StageEnding::Failed { rank, text } })
}

fn died(process: &mut Process) -> String {
    let deadline = Instant::now() + END_LIMIT;
    loop {
        match process.of.status() {
            Some(status) => return format!("its process ended: {status}"),
            None if Instant::now() < deadline => thread::sleep(LOOK),
            None => return "its process closed its pipe".into(),
        }
    }
}

/// Waits for all to end by themselves, then kills the rest. One that even a kill does not end hangs in the kernel, and is
/// left to it.
fn end(processes: &mut [Process], limit: Duration) {
    for limit in [limit, END_LIMIT] {
        let deadline = Instant::now() + limit;
        while processes.iter_mut().any(|process| process.of.status().is_none()) && Instant::now() < deadline {
            thread::sleep(LOOK);
        }
        processes.iter_mut().for_each(|process| process.of.kill());
    }
}

/// Logs that hold nothing say nothing; NCCL's was read by who wrote it.
fn clear(folder: &Path, count: usize) {
    for rank in 0..count {
        let log = folder.join(format!("link-{rank}.log"));
        if fs::metadata(&log).is_ok_and(|log| log.len() == 0) {
            let _ = fs::remove_file(&log);
        }
        let _ = fs::remove_file(folder.join(format!("link-{rank}.nccl.log")));
    }
}
