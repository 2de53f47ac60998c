//! Ranks that another launcher started, as rank 0 sees them: each behind a connection to its worker.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::record::Finding;
use crate::units::Seconds;

use super::crew::Crew;
use super::meeting::{Line, Lines, Speech};
use super::message::{Assignment, Message, Order};
use super::ranks::Heard;

/// How often rank 0 shows that it lives.
const BEAT: Duration = Duration::from_secs(1);

/// How often rank 0 looks whether a worker that was told to stop has.
const STOP_POLL: Duration = Duration::from_millis(5);

/// Beyond its own limit a worker gets so long to end its rank and to say so.
const WORD_LIMIT: Seconds = Seconds(1.0);

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

/// What a worker's rank shall do.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Task {
    /// For the rank. The worker puts in its own file, process and descriptor, and its host's clock.
    pub(super) assignment: Assignment,
    /// The process of this host, and its descriptor, that holds the memory which the ranks share.
    pub(super) memory: Option<(u32, i32)>,
    /// GPUs of this host that this worker samples.
    pub(super) telemetry: Vec<String>,
    /// File beside the rank file that takes the samples.
    pub(super) telemetry_file: String,
    /// Whether this host has the clock of rank 0's.
    pub(super) same_clock: bool,
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
    /// Its rank's process ended with this wait status.
    Exited(i32),
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
            Report::Exited(status) => {
                known()[rank].status = Some(status);
                closed = true;
                Heard::Closed
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
    const CUT_OFF: &'static str = "is gone: the connection to its worker ended";
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

    /// Each rank's stderr is its worker's, which the launcher of the job shows.
    fn last_words(&self, _rank: usize) -> String {
        String::new()
    }

    /// Workers end their ranks by themselves within `limit` once told so; all that can be done here is to wait for it.
    fn finish(&mut self, limit: Seconds) {
        let deadline = Instant::now() + Duration::from_secs_f64(limit.0.max(0.0) + WORD_LIMIT.0);
        while self.known().iter().any(|known| known.status.is_none() && !known.cut) && Instant::now() < deadline {
            self.tick();
            thread::sleep(STOP_POLL);
        }
    }
}
