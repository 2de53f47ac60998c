//! The rank processes of one trial: started by exec, spoken to over pipes, and gone when this value is dropped.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use crate::device::is_stopped;
use crate::units::Seconds;

use super::LaunchError;
use super::message::{Assignment, Message, Order};

/// A rank says nothing longer.
const MESSAGE_BYTES_MAX: u64 = 1 << 20;

/// How often the launcher looks whether a process that was told to stop is gone.
const STOP_POLL: Duration = Duration::from_millis(5);

/// A killed process is gone within moments, unless it hangs in the kernel.
const KILLED_LIMIT: Seconds = Seconds(5.0);

/// Of a rank's log, so much is read.
const LOG_TAIL_BYTES: u64 = 4096;

/// What the launcher hears from one rank.
#[derive(Debug)]
pub(super) enum Heard {
    /// A message.
    Said(Message),
    /// A line that is no message.
    Garbled(String),
    /// The rank's stdout is closed: it is gone or going.
    Closed,
}

/// The rank processes of one trial.
#[derive(Debug)]
pub(super) struct Ranks {
    ranks: Vec<RankProcess>,
    heard: Receiver<(usize, Heard)>,
}

#[derive(Debug)]
struct RankProcess {
    child: Child,
    orders: ChildStdin,
    log: PathBuf,
    status: Option<ExitStatus>,
}

impl Ranks {
    /// Starts one process per assignment. What a rank writes to stderr goes to `rank-<n>.log` beside its file.
    ///
    /// # Errors
    /// A process cannot be started; those already started are stopped.
    pub(super) fn start(program: &Path, assignments: &[Assignment]) -> Result<Self, LaunchError> {
        let (say, heard) = mpsc::channel();
        let mut ranks = Self { ranks: Vec::new(), heard };
        for (rank, assignment) in assignments.iter().enumerate() {
            let fail = |source| LaunchError::Start { rank, source };
            let process = RankProcess::start(program, assignment, rank, say.clone()).map_err(fail)?;
            ranks.ranks.push(process);
        }
        Ok(ranks)
    }

    /// The next thing heard, or nothing within `wait`.
    pub(super) fn hear(&self, wait: Duration) -> Option<(usize, Heard)> {
        self.heard.recv_timeout(wait).ok()
    }

    /// Sends an order to all. A rank that is gone cannot hear it, which shows elsewhere.
    pub(super) fn order(&mut self, order: &Order) {
        for rank in &mut self.ranks {
            let _ = send(&mut rank.orders, order);
        }
    }

    /// Whether somebody has stopped a rank's process (SIGSTOP, a debugger).
    pub(super) fn is_stopped(&self, rank: usize) -> bool {
        is_stopped(self.ranks[rank].child.id())
    }

    /// How a rank's process ended, if it has.
    pub(super) fn status(&mut self, rank: usize) -> Option<ExitStatus> {
        let process = &mut self.ranks[rank];
        if process.status.is_none() {
            process.status = process.child.try_wait().ok().flatten();
        }
        process.status
    }

    /// The last lines that a rank wrote to stderr.
    pub(super) fn last_words(&self, rank: usize) -> String {
        let text = tail(&self.ranks[rank].log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(3)..].join("; ")
    }

    /// Waits for all to end by themselves until `limit`, then kills the rest.
    pub(super) fn finish(&mut self, limit: Seconds) {
        self.wait(limit);
        for process in self.ranks.iter_mut().filter(|process| process.status.is_none()) {
            let _ = process.child.kill();
        }
        // a process that even a kill does not end hangs in the kernel; it is left to it
        self.wait(KILLED_LIMIT);
    }

    fn wait(&mut self, limit: Seconds) {
        let deadline = Instant::now() + Duration::from_secs_f64(limit.0.max(0.0));
        while (0..self.ranks.len()).any(|rank| self.status(rank).is_none()) && Instant::now() < deadline {
            thread::sleep(STOP_POLL);
        }
    }
}

impl Drop for Ranks {
    /// Whatever happens above, no process stays behind and no empty log file either.
    fn drop(&mut self) {
        self.finish(Seconds(0.0));
        for process in &self.ranks {
            if fs::metadata(&process.log).is_ok_and(|log| log.len() == 0) {
                let _ = fs::remove_file(&process.log);
            }
        }
    }
}

impl RankProcess {
    fn start(program: &Path, assignment: &Assignment, rank: usize, say: Sender<(usize, Heard)>) -> io::Result<Self> {
        let log = assignment.file.with_extension("log");
        let mut child = Command::new(program)
            .arg0("rigscale")
            .arg("rank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?)
            // a group of its own: Ctrl-C reaches the launcher alone, which ends its ranks in order
            .process_group(0)
            .spawn()?;
        let stdout = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let mut orders = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        thread::Builder::new().name(format!("rank {rank} says")).spawn(move || listen(stdout, rank, &say))?;
        // a rank that dies at once closes the pipe; its status will tell, not this write
        let _ = send(&mut orders, assignment);
        Ok(Self { child, orders, log, status: None })
    }
}

/// Passes on what a rank says, line by line, until it closes its stdout or says something endless.
fn listen(stdout: ChildStdout, rank: usize, say: &Sender<(usize, Heard)>) {
    let mut lines = BufReader::new(stdout);
    loop {
        let mut line = String::new();
        let heard = match (&mut lines).take(MESSAGE_BYTES_MAX).read_line(&mut line) {
            Ok(0) | Err(_) => Heard::Closed,
            Ok(_) => serde_json::from_str(&line).map_or_else(|_| Heard::Garbled(line), Heard::Said),
        };
        let over = !matches!(heard, Heard::Said(_));
        if say.send((rank, heard)).is_err() || over {
            return;
        }
    }
}

/// The end of a log.
fn tail(log: &Path) -> io::Result<String> {
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn send<T: serde::Serialize>(pipe: &mut ChildStdin, value: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    pipe.write_all(&line)?;
    pipe.flush()
}
