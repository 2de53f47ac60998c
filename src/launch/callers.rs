//! Ranks that another launcher started, as rank 0 sees them: each behind a connection to its worker.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::record::Finding;
use crate::units::Seconds;

use super::LaunchError;
use super::crew::{Crew, STOP_POLL};
use super::error::chain;
use super::line::{Line, Lines, Speech};
use super::message::{Message, Order};
use super::ranks::Heard;
use super::task::Task;
use super::{Launched, Worked};

/// How often rank 0 shows that it lives.
const BEAT: Duration = Duration::from_secs(1);

/// Beyond its own limit a worker gets so long to end its rank and to say so.
const REPORT_LIMIT: Seconds = Seconds(1.0);

/// What rank 0 says to a worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Word {
    /// What its rank shall do.
    Assign(Box<Task>),
    /// For its rank.
    Order(Order),
    /// Rank 0 lives.
    Beat,
    /// The job is over.
    Over(Ending),
}

/// How a job ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Ending {
    /// All ranks did all steps.
    Completed,
    /// The user interrupted.
    Interrupted,
    /// A rank failed.
    Failed(Finding),
    /// Rank 0 could not go on, for a reason that is no finding.
    Unable {
        /// The error chain.
        text: String,
        /// Whether what was asked for cannot be.
        refused: bool,
    },
}

impl Ending {
    /// What others are told.
    pub(super) fn of(end: &Result<Launched, LaunchError>) -> Self {
        match end {
            Ok(Launched::Completed) => Self::Completed,
            Ok(Launched::Interrupted) => Self::Interrupted,
            Ok(Launched::Failed(finding)) => Self::Failed(finding.clone()),
            Err(LaunchError::Elsewhere { text, refused }) => Self::Unable { text: text.clone(), refused: *refused },
            Err(error) => Self::unable(error),
        }
    }

    fn unable(error: &LaunchError) -> Self {
        Self::Unable { text: chain(error), refused: error.is_refusal() }
    }

    /// What it means to those who were told.
    ///
    /// # Errors
    /// Rank 0 could not go on.
    pub(super) fn told(self) -> Result<Launched, LaunchError> {
        match self {
            Self::Completed => Ok(Launched::Completed),
            Self::Interrupted => Ok(Launched::Interrupted),
            Self::Failed(finding) => Ok(Launched::Failed(finding)),
            Self::Unable { text, refused } => Err(LaunchError::Elsewhere { text, refused }),
        }
    }
}

/// Rank 0's own worker may give up, or be told to end: then the watch beside it ends the job, and knows why.
#[derive(Debug, Default)]
pub(super) struct Ended {
    /// Whether the job shall end.
    pub(super) flag: Arc<AtomicBool>,
    why: OnceLock<Ending>,
}

impl Ended {
    /// How rank 0's own worker came to its end; ends the job if nobody else has.
    pub(super) fn own(&self, own: &Result<Worked, LaunchError>) {
        let why = match own {
            Ok(worked) if !worked.alone => return,
            Ok(worked) => Ending::of(&Ok(worked.end.clone())),
            Err(LaunchError::Elsewhere { .. }) => return,
            Err(error) => Ending::unable(error),
        };
        // only one worker is rank 0's
        let _first = self.why.set(why);
        self.flag.store(true, Ordering::Relaxed);
    }

    /// What an end that looks like the user's wish really is.
    pub(super) fn explained(&self, end: Result<Launched, LaunchError>) -> Result<Launched, LaunchError> {
        match (end, self.why.get()) {
            (Ok(Launched::Interrupted), Some(why)) => why.clone().told(),
            (end, _) => end,
        }
    }
}

/// What a worker says to rank 0.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Report {
    /// Its rank said something.
    Said(Message),
    /// Its rank said something that is no message.
    Garbled(String),
    /// Its rank's process was stopped, or goes on.
    Stopped(bool),
    /// Its rank's stdout is closed: it is gone or going.
    Closed,
    /// Its rank's process ended with this wait status; none if it does not end, even by a kill.
    Exited(Option<i32>),
    /// The user, or the launcher, ended the worker.
    Interrupted,
}

/// The workers of a job.
pub(super) struct Callers {
    speech: Vec<Speech>,
    known: Arc<Mutex<Vec<Known>>>,
    heard: Receiver<(usize, Heard)>,
    beat: Instant,
    /// Set once some worker was ended from outside and nothing else explains it.
    stop: Arc<AtomicBool>,
}

/// What workers said about their ranks' processes.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    stopped: bool,
    status: Option<i32>,
    /// Its worker does not wait for it any more.
    over: bool,
    cut: bool,
    interrupted: Option<Instant>,
}

impl Callers {
    /// Speaks with the workers of all ranks, by rank. `stop` is set a moment after one of them was told to end: when a
    /// rank dies, launchers end the others at once, and the dead one shall be named.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub(super) fn over(lines: Vec<Line>, stop: Arc<AtomicBool>) -> std::io::Result<Self> {
        let (say, heard) = mpsc::channel();
        let known = Arc::new(Mutex::new(vec![Known::default(); lines.len()]));
        let mut speech = Vec::new();
        for (rank, line) in lines.into_iter().enumerate() {
            let (lines, out) = line.split()?;
            speech.push(out);
            let (known, say) = (Arc::clone(&known), say.clone());
            let run = move || listen(rank, lines, &known, &say);
            thread::Builder::new().name(format!("rank {rank} says")).spawn(run)?;
        }
        Ok(Self { speech, known, heard, beat: Instant::now(), stop })
    }

    /// Says something to one worker. One that is gone cannot hear it, which shows elsewhere.
    pub(super) fn tell(&mut self, rank: usize, word: &Word) {
        let _ = self.speech[rank].say(word);
    }

    /// Says something to all workers.
    pub(super) fn tell_all(&mut self, word: &Word) {
        (0..self.speech.len()).for_each(|rank| self.tell(rank, word));
    }

    /// Waits until all workers have hung up: what was said last has arrived then.
    pub(super) fn farewell(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        while self.known().iter().any(|known| !known.cut) && Instant::now() < deadline {
            thread::sleep(STOP_POLL);
        }
    }

    fn known(&self) -> MutexGuard<'_, Vec<Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows workers that rank 0 lives, and passes on that the job was ended from outside.
    fn tick(&mut self) {
        if self.beat.elapsed() >= BEAT {
            self.beat = Instant::now();
            self.tell_all(&Word::Beat);
        }
        if self.known().iter().any(|known| known.interrupted.is_some_and(|at| at.elapsed() >= Self::GATHER)) {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}

/// Takes what a worker says until its connection ends.
fn listen(rank: usize, mut lines: Lines, known: &Mutex<Vec<Known>>, say: &Sender<(usize, Heard)>) {
    let known = || known.lock().unwrap_or_else(PoisonError::into_inner);
    let mut closed = false;
    while let Ok(Some(report)) = lines.next::<Report>() {
        let heard = match report {
            Report::Said(message) => Heard::Said(message),
            Report::Garbled(line) => Heard::Garbled(line),
            Report::Closed => {
                closed = true;
                Heard::Closed
            }
            Report::Exited(status) => {
                known()[rank].status = status;
                known()[rank].over = true;
                continue;
            }
            Report::Stopped(stopped) => {
                known()[rank].stopped = stopped;
                continue;
            }
            Report::Interrupted => {
                known()[rank].interrupted.get_or_insert_with(Instant::now);
                continue;
            }
        };
        if say.send((rank, heard)).is_err() {
            return;
        }
    }
    known()[rank].cut = true;
    if !closed {
        // whoever watches may be gone already
        let _unheard = say.send((rank, Heard::Closed));
    }
}

impl Crew for Callers {
    const FAILED: &'static str =
        "the rank's own words say what to change; the launcher of the job shows what else it wrote";
    /// Shorter than on one host: Open MPI kills every process 1 s after one has died, and the reason must be told by then.
    const GATHER: Duration = Duration::from_millis(200);

    fn hear(&mut self, wait: Duration) -> Option<(usize, Heard)> {
        self.tick();
        self.heard.recv_timeout(wait).ok()
    }

    fn order(&mut self, order: &Order) {
        self.tell_all(&Word::Order(order.clone()));
    }

    fn is_stopped(&self, rank: usize) -> bool {
        self.known()[rank].stopped
    }

    fn status(&mut self, rank: usize) -> Option<ExitStatus> {
        self.known()[rank].status.map(ExitStatus::from_raw)
    }

    fn cut_off(&self, rank: usize) -> &'static str {
        let Known { cut, over, .. } = self.known()[rank];
        match (over, cut) {
            (true, _) => "closed its pipe, and its process does not end, even by a kill",
            (false, true) => "is gone: the connection to its worker ended",
            (false, false) => "closed its pipe",
        }
    }

    /// Each rank's stderr is its worker's, which the launcher of the job shows.
    fn last_words(&self, _rank: usize) -> String {
        String::new()
    }

    /// Workers end their ranks by themselves within `limit` once told so; all that can be done here is to wait for it.
    fn finish(&mut self, limit: Seconds) {
        let deadline = Instant::now() + Duration::from_secs_f64(limit.0.max(0.0) + REPORT_LIMIT.0);
        while self.known().iter().any(|known| !known.over && !known.cut) && Instant::now() < deadline {
            self.tick();
            thread::sleep(STOP_POLL);
        }
    }
}
