//! The processes of one stage: started, heard, told where to meet, and ended, however they behave.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use crate::device::cuda::NcclId;
use crate::launch::LaunchError;
use crate::record::LinkLine;
use crate::units::Seconds;

use super::task::{Report, Task, Work};
use super::wish::Stage;

/// A process says nothing longer.
const REPORT_BYTES_MAX: u64 = 1 << 20;

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
    /// Nothing was heard for so long.
    Hang(Seconds),
    /// Ranks waited for each other in vain.
    Unmet {
        rank: usize,
        text: String,
    },
    /// A process gave up, or died; others that only waited for it are not named.
    Failed {
        rank: usize,
        text: String,
    },
}

struct Process {
    child: Child,
    orders: ChildStdin,
    met: bool,
    done: bool,
}

/// Runs a stage to its end and takes what its processes measured.
pub(super) fn run(
    program: &Path,
    folder: &Path,
    stage: &Stage,
    stop: &AtomicBool,
    lines: &mut Vec<LinkLine>,
) -> Result<Ending, LaunchError> {
    let count = match &stage.work {
        Work::Copies(_) => 1,
        Work::Sums(sums) => sums.sites.len(),
    };
    let (say, heard) = mpsc::channel();
    let mut processes = Vec::new();
    for rank in 0..count {
        let log = folder.join(format!("link-{rank}.nccl.log"));
        let task = Task { launcher: std::process::id(), rank, log, work: stage.work.clone() };
        let started = start(program, folder, &task, say.clone());
        match started {
            Ok(process) => processes.push(process),
            Err(source) => {
                end(&mut processes, Duration::ZERO);
                return Err(LaunchError::Start { rank, source });
            }
        }
    }
    drop(say);
    let ending = watch(&mut processes, &heard, stage.limit, stop, lines);
    let orderly = match (&stage.work, &ending) {
        // a client of MPS that is killed with work in flight can take the GPU with it
        (Work::Sums(sums), _) if sums.shared => Duration::from_secs_f64(stage.limit.0),
        (_, Ending::Hang(_) | Ending::Interrupted) => Duration::ZERO,
        _ => END_LIMIT,
    };
    end(&mut processes, orderly);
    clear(folder, count);
    Ok(ending)
}

fn start(program: &Path, folder: &Path, task: &Task, say: Sender<(usize, Option<Report>)>) -> std::io::Result<Process> {
    let broken = || std::io::ErrorKind::BrokenPipe;
    let rank = task.rank;
    let mut child = Command::new(program)
        .arg0("rigscale")
        .arg("link")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(File::create(folder.join(format!("link-{rank}.log")))?)
        .process_group(0)
        .spawn()?;
    let stdout = child.stdout.take().ok_or_else(broken)?;
    let mut orders = child.stdin.take().ok_or_else(broken)?;
    thread::Builder::new().name(format!("link {rank} says")).spawn(move || {
        let mut reader = BufReader::new(stdout);
        loop {
            let mut line = String::new();
            let read = (&mut reader).take(REPORT_BYTES_MAX).read_line(&mut line);
            let report = if matches!(read, Ok(0) | Err(_)) { None } else { serde_json::from_str(&line).ok() };
            let over = report.is_none();
            if say.send((rank, report)).is_err() || over {
                return;
            }
        }
    })?;
    // a process that dies at once closes the pipe, which is heard
    let _ = tell(&mut orders, task);
    Ok(Process { child, orders, met: false, done: false })
}

fn tell<T: serde::Serialize>(pipe: &mut ChildStdin, value: &T) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    pipe.write_all(&line)?;
    pipe.flush()
}

fn watch(
    processes: &mut [Process],
    heard: &Receiver<(usize, Option<Report>)>,
    limit: Seconds,
    stop: &AtomicBool,
    lines: &mut Vec<LinkLine>,
) -> Ending {
    let mut last = Instant::now();
    let mut met: Option<NcclId> = None;
    while !processes.iter().all(|process| process.done) {
        if stop.load(Ordering::Relaxed) {
            return Ending::Interrupted;
        }
        let Ok((rank, report)) = heard.recv_timeout(LOOK) else {
            if limit.0 < last.elapsed().as_secs_f64() {
                return Ending::Hang(limit);
            }
            continue;
        };
        last = Instant::now();
        match report {
            Some(Report::Measured { of }) => lines.push(of),
            Some(Report::Busy | Report::Software { .. }) => {}
            Some(Report::Done) => processes[rank].done = true,
            Some(Report::Meets { id }) => {
                processes[rank].met = true;
                met = met.or(id);
                if let Some(id) = met.as_ref().filter(|_| processes.iter().all(|process| process.met)) {
                    for process in &mut *processes {
                        let _ = tell(&mut process.orders, id);
                    }
                }
            }
            Some(Report::Failed { text, unmet }) => return failed(processes, heard, (rank, text, unmet)),
            None if processes[rank].done => {}
            None => {
                let how = died(&mut processes[rank]);
                return failed(processes, heard, (rank, how, false));
            }
        }
    }
    Ending::Done
}

/// Names the first of those that failed: one that died or has a reason of its own before one that waited in vain.
fn failed(
    processes: &mut [Process],
    heard: &Receiver<(usize, Option<Report>)>,
    first: (usize, String, bool),
) -> Ending {
    let mut said = vec![first];
    let until = Instant::now() + GATHER;
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        match heard.recv_timeout(left) {
            Ok((rank, Some(Report::Failed { text, unmet }))) => said.push((rank, text, unmet)),
            Ok((rank, None)) if !processes[rank].done && said.iter().all(|(other, ..)| *other != rank) => {
                said.push((rank, died(&mut processes[rank]), false));
            }
            Ok(_) => {}
            Err(_) => break,
        }
    }
    said.sort_by_key(|(_, _, unmet)| *unmet);
    let (rank, text, unmet) = said.swap_remove(0);
    // where everybody only waited, nobody failed: that is a hang
    if unmet { Ending::Unmet { rank, text } } else { Ending::Failed { rank, text } }
}

fn died(process: &mut Process) -> String {
    let deadline = Instant::now() + END_LIMIT;
    loop {
        match process.child.try_wait() {
            Ok(Some(status)) => return format!("its process ended: {status}"),
            Ok(None) if Instant::now() < deadline => thread::sleep(LOOK),
            _ => return "its process closed its pipe".into(),
        }
    }
}

/// Waits for all to end by themselves, then kills the rest. One that even a kill does not end hangs in the kernel, and is
/// left to it.
fn end(processes: &mut [Process], limit: Duration) {
    let deadline = Instant::now() + limit;
    let runs = |process: &mut Process| matches!(process.child.try_wait(), Ok(None));
    while processes.iter_mut().any(runs) && Instant::now() < deadline {
        thread::sleep(LOOK);
    }
    for process in processes.iter_mut() {
        if runs(process) {
            let _ = process.child.kill();
        }
    }
    let deadline = Instant::now() + END_LIMIT;
    while processes.iter_mut().any(runs) && Instant::now() < deadline {
        thread::sleep(LOOK);
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
