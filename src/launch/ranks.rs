//! The rank processes of one trial: started by exec, spoken to over pipes, and gone when this value is dropped.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use crate::device::is_stopped;
use crate::units::Seconds;

use super::LaunchError;
use super::crew::{Crew, KILLED_LIMIT, STOP_POLL};
use super::message::{Assignment, Message, Order};

/// A rank says nothing longer.
const MESSAGE_BYTES_MAX: u64 = 1 << 20;

/// Of a rank's log, so much is read.
const LOG_TAIL_BYTES: u64 = 4096;

/// What the launcher hears from one process.
#[derive(Debug)]
pub(super) enum Heard<M = Message> {
    /// A message.
    Said(M),
    /// A line that is no message.
    Garbled(String),
    /// Its stdout is closed: it is gone or going.
    Closed,
}

/// The rank processes of one trial.
#[derive(Debug)]
pub(super) struct Ranks {
    ranks: Vec<RankProcess>,
    logs: Vec<PathBuf>,
    heard: Receiver<(usize, Heard)>,
}

/// The process of one rank, or of one part of a measurement.
#[derive(Debug)]
pub(super) struct RankProcess {
    child: Child,
    orders: ChildStdin,
    status: Option<ExitStatus>,
    killed: bool,
}

impl Ranks {
    /// Starts one process per assignment. What a rank writes to stderr goes to `rank-<n>.log` beside its file.
    ///
    /// # Errors
    /// A process cannot be started; those already started are stopped.
    pub(super) fn start(program: &Path, assignments: &[Assignment]) -> Result<Self, LaunchError> {
        let (say, heard) = mpsc::channel();
        let mut ranks = Self { ranks: Vec::new(), logs: Vec::new(), heard };
        for (rank, assignment) in assignments.iter().enumerate() {
            let fail = |source| LaunchError::Start { rank, source };
            let log = assignment.file.with_extension("log");
            let stderr = File::create(&log).map_err(fail)?;
            let say = say.clone();
            let hear = move |heard| say.send((rank, heard)).is_ok();
            let mut process = RankProcess::start(program, &["rank"], stderr.into(), hear).map_err(fail)?;
            process.tell(assignment);
            ranks.ranks.push(process);
            ranks.logs.push(log);
        }
        Ok(ranks)
    }

    fn wait(&mut self, limit: Seconds) {
        let deadline = Instant::now() + Duration::from_secs_f64(limit.0.max(0.0));
        while (0..self.ranks.len()).any(|rank| self.status(rank).is_none()) && Instant::now() < deadline {
            thread::sleep(STOP_POLL);
        }
    }
}

impl Crew for Ranks {
    const FAILED: &'static str = "the rank's own words say what to change; its log stands beside its record";
    const GATHER: Duration = Duration::from_millis(400);

    fn hear(&mut self, wait: Duration) -> Option<(usize, Heard)> {
        self.heard.recv_timeout(wait).ok()
    }

    fn order(&mut self, order: &Order) {
        self.ranks.iter_mut().for_each(|rank| rank.tell(order));
    }

    fn is_stopped(&self, rank: usize) -> bool {
        self.ranks[rank].is_stopped()
    }

    fn status(&mut self, rank: usize) -> Option<ExitStatus> {
        self.ranks[rank].status()
    }

    fn cut_off(&self, _rank: usize) -> &'static str {
        "closed its pipe"
    }

    fn last_words(&self, rank: usize) -> String {
        let text = tail(&self.logs[rank]).unwrap_or_default();
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(3)..].join("; ")
    }

    fn finish(&mut self, limit: Seconds) {
        self.wait(limit);
        self.ranks.iter_mut().for_each(RankProcess::kill);
        // a process that even a kill does not end hangs in the kernel; it is left to it
        self.wait(KILLED_LIMIT);
    }
}

impl Drop for Ranks {
    /// Whatever happens above, no process stays behind and no empty log file either.
    fn drop(&mut self) {
        self.finish(Seconds(0.0));
        for log in &self.logs {
            if fs::metadata(log).is_ok_and(|log| log.len() == 0) {
                let _ = fs::remove_file(log);
            }
        }
    }
}

impl RankProcess {
    /// Starts `program` with `arguments`; `hear` takes what it says on stdout, and says whether it goes on listening.
    pub(super) fn start<M: DeserializeOwned>(
        program: &Path,
        arguments: &[&str],
        stderr: Stdio,
        hear: impl Fn(Heard<M>) -> bool + Send + 'static,
    ) -> io::Result<Self> {
        let mut child = Command::new(program)
            .arg0("rigscale")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            // a group of its own: Ctrl-C reaches the launcher alone, which ends its ranks in order
            .process_group(0)
            .spawn()?;
        let stdout = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let orders = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        thread::Builder::new().name("process says".into()).spawn(move || listen(stdout, hear))?;
        Ok(Self { child, orders, status: None, killed: false })
    }

    /// Tells it one line. A rank that is gone cannot hear it, which its status tells.
    pub(super) fn tell(&mut self, line: &impl serde::Serialize) {
        let _ = send(&mut self.orders, line);
    }

    /// How it ended, if it has.
    pub(super) fn status(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status
    }

    /// Whether somebody has stopped it (SIGSTOP, a debugger).
    pub(super) fn is_stopped(&self) -> bool {
        is_stopped(self.child.id())
    }

    /// Ends it, if it has not ended.
    pub(super) fn kill(&mut self) {
        if self.status.is_none() {
            let _ = self.child.kill();
            self.killed = true;
        }
    }

    /// Waits for it to end by itself until `limit`, then kills it.
    pub(super) fn finish(&mut self, limit: Seconds) -> Option<ExitStatus> {
        for limit in [limit, KILLED_LIMIT] {
            let deadline = Instant::now() + Duration::from_secs_f64(limit.0.max(0.0));
            while self.status().is_none() && Instant::now() < deadline {
                thread::sleep(STOP_POLL);
            }
            self.kill();
        }
        self.status
    }
}

impl Drop for RankProcess {
    /// One that was started and never watched to its end does not stay behind.
    fn drop(&mut self) {
        if !self.killed {
            self.finish(Seconds(0.0));
        }
    }
}

/// Passes on what a process says, line by line, until it closes its stdout or says something endless.
fn listen<M: DeserializeOwned>(stdout: ChildStdout, hear: impl Fn(Heard<M>) -> bool) {
    let mut lines = BufReader::new(stdout);
    loop {
        let mut line = String::new();
        let heard = match (&mut lines).take(MESSAGE_BYTES_MAX).read_line(&mut line) {
            Ok(0) | Err(_) => Heard::Closed,
            Ok(_) => serde_json::from_str(&line).map_or_else(|_| Heard::Garbled(line), Heard::Said),
        };
        let over = !matches!(heard, Heard::Said(_));
        if !hear(heard) || over {
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
