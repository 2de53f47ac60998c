//! A worker at work: it starts its rank as rank 0 says, passes on what either says, keeps the limits, and ends with the job.

use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use crate::device::SharedMemory;
use crate::record::{Device, Finding, GPU_FILE, Limits, RecordError, Severity};
use crate::units::Seconds;

use super::callers::{Callers, Report, Word};
use super::crew::{Attention, Crew, KILLED_LIMIT, LOOK, TEARDOWN_LIMIT};
use super::invited::start;
use super::line::{Line, Speech};
use super::message::{Exchange, Message, Order};
use super::ranks::{Heard, RankProcess};
use super::task::Task;
use super::telemetry::Telemetry;
use super::worker::Job;
use super::{LaunchError, Launched, Worked};

/// A rank on CPUs that was told to stop gets so long where its launcher ends the job, or MPI may be what it waits in: Open
/// MPI kills what has not ended 1 s after its SIGTERM.
const HURRIED_LIMIT: Duration = Duration::from_millis(300);

/// A worker that was told to end waits so long beyond the limits of its rank for the word of rank 0.
const WORD_LIMIT: Duration = Duration::from_secs(2);

/// What a worker knows when its connection ends.
pub(super) const GONE: &str = "the connection to rank 0 ended: its worker was killed, or its host is gone";

/// What a worker hears.
pub(super) enum Event {
    /// Its rank.
    Rank(Heard),
    /// Rank 0.
    Word(Word),
    /// The end of the connection to rank 0.
    Cut,
}

/// Passes on what rank 0 says, as it comes, and that it is gone.
///
/// # Errors
/// The system refuses a thread.
pub(super) fn listen(line: Line, say: Sender<Event>) -> io::Result<Speech> {
    let (mut lines, speech) = line.split()?;
    let run = move || {
        while let Ok(Some(word)) = lines.next() {
            if say.send(Event::Word(word)).is_err() {
                return;
            }
        }
        let _unheard = say.send(Event::Cut);
    };
    thread::Builder::new().name("rank 0 says".into()).spawn(run)?;
    Ok(speech)
}

/// What a worker without rank 0 can say.
pub(super) fn lost(job: &Job, code: &str, seen: &str) -> Worked {
    let finding = Finding {
        code: code.into(),
        severity: Severity::Fault,
        addresses: vec!["rank-0".into()],
        seen: format!("rank {}: {seen}", job.place.rank),
        expected: "rank 0 tells every worker how the job ends".into(),
        remedy: "see on rank 0's host what became of its process, then start the job again".into(),
    };
    Worked { end: Launched::Failed(finding), alone: true }
}

/// A rank that was told what to do, and what goes with it.
pub(super) struct Begun {
    rank: RankProcess,
    limits: Limits,
    telemetry: Option<Telemetry>,
    /// The memory that the ranks share; the rank inherits its descriptor.
    _memory: Option<SharedMemory>,
}

impl Begun {
    /// Starts the rank and the telemetry that rank 0 asks for. `ahead` is this host's clock less rank 0's.
    ///
    /// # Errors
    /// The task is another than this worker was started for, or the system or the disk refuses.
    pub(super) fn of(
        job: &Job,
        (task, exchange): (Task, Exchange),
        ahead: Seconds,
        say: Sender<Event>,
        started: Option<RankProcess>,
    ) -> Result<Self, LaunchError> {
        task.fits(job, exchange).map_err(|why| LaunchError::Job { why })?;
        let Task { mut assignment, memory, telemetry, same_clock } = task;
        let place = job.folder.trial(&assignment.head.trial);
        let attempt = |source| RecordError::File { attempt: "create the folder", path: place.clone(), source };
        fs::create_dir_all(&place).map_err(attempt)?;
        assignment.launcher = std::process::id();
        assignment.file = job.folder.rank(&assignment.head.trial, job.place.rank);
        if !same_clock {
            assignment.head.epoch_s += ahead;
        }
        assignment.head.software.extend(job.software.clone());
        let memory = memory.map(|(pid, number)| SharedMemory::of_process(pid, number)).transpose();
        let memory = memory.map_err(|error| LaunchError::Exchange { world: job.place.world, source: error.into() })?;
        if let Some(memory) = &memory {
            assignment.exchange = Exchange::SharedMemory { fd: memory.raw_fd() };
        }
        let (trial, epoch) = (&assignment.head.trial, assignment.head.epoch_s);
        // the analysis reads the first; PCI addresses do not tell hosts apart
        let samples = if job.place.one_host { GPU_FILE.to_owned() } else { format!("gpu-{}.jsonl", job.place.rank) };
        let telemetry = Telemetry::on(telemetry, trial, epoch, &place.join(samples))?;
        let mut rank = started.map_or_else(|| start(job, &["rank"], say), Ok)?;
        rank.tell(&assignment);
        Ok(Self { rank, limits: assignment.limits, telemetry, _memory: memory })
    }
}

/// A worker at work.
pub(super) struct Worker<'a> {
    job: &'a Job<'a>,
    begun: Begun,
    speech: Speech,
    events: &'a Receiver<Event>,
    steps: usize,
    /// When the rank's stdout was closed.
    closed: Option<Instant>,
    exited: bool,
    stopped: bool,
    /// How the telemetry ended.
    sampled: Result<(), RecordError>,
    /// When its rank is killed, once it was told to end.
    kill_at: Option<Instant>,
    /// When it no longer waits for rank 0, once it was told to end itself.
    leave_at: Option<Instant>,
    /// When rank 0 was last heard.
    last_word: Instant,
    attention: Attention,
}

impl<'a> Worker<'a> {
    /// Of a rank that has just begun.
    pub(super) fn of(job: &'a Job<'a>, begun: Begun, speech: Speech, events: &'a Receiver<Event>) -> Self {
        Self {
            job,
            begun,
            speech,
            events,
            steps: 0,
            closed: None,
            exited: false,
            stopped: false,
            sampled: Ok(()),
            kill_at: None,
            leave_at: None,
            last_word: Instant::now(),
            attention: Attention::begin(),
        }
    }

    /// Goes on until rank 0 says that the job is over, or cannot any more.
    ///
    /// # Errors
    /// Rank 0 cannot go on, or samples could not be kept.
    pub(super) fn attend(mut self) -> Result<Worked, LaunchError> {
        let end = loop {
            match self.events.recv_timeout(LOOK) {
                Ok(Event::Rank(heard)) => self.pass_on(heard),
                Ok(Event::Word(Word::Over(ending))) => break ending.told().map(|end| Worked { end, alone: false }),
                Ok(Event::Word(word)) => self.obey(&word),
                Ok(Event::Cut) | Err(RecvTimeoutError::Disconnected) => {
                    let seen = format!("{GONE}; this rank had done {} steps", self.steps);
                    break Ok(lost(self.job, "rank-died", &seen));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if let Some(worked) = self.look() {
                break Ok(worked);
            }
        };
        let limit = if self.exited { Seconds(0.0) } else { self.begun.limits.stop_s };
        self.begun.rank.tell(&Order::Stop);
        self.begun.rank.finish(limit);
        self.keep_samples();
        let worked = end?;
        // how a job failed says more than why its telemetry is cut
        if worked.end == Launched::Completed {
            self.sampled?;
        }
        Ok(worked)
    }

    /// Passes on what the rank says. If rank 0 is gone, the connection's end says so.
    fn pass_on(&mut self, heard: Heard) {
        let report = match heard {
            Heard::Said(message) => {
                if let Message::Step { index, .. } = message {
                    self.steps = index.saturating_add(1);
                }
                Report::Said(message)
            }
            Heard::Garbled(line) => Report::Garbled(line),
            Heard::Closed => {
                self.closed.get_or_insert_with(Instant::now);
                Report::Closed
            }
        };
        let _ = self.speech.say(&report);
    }

    fn keep_samples(&mut self) {
        if let Some(telemetry) = self.begun.telemetry.take() {
            self.sampled = telemetry.finish();
        }
    }

    /// The rank's stdout is closed: what is left is that its process ends, and its samples are kept.
    fn reap(&mut self, closed: Instant) {
        let silent = closed.elapsed().as_secs_f64();
        let status = self.begun.rank.status();
        if silent > TEARDOWN_LIMIT.0 {
            self.begun.rank.kill();
        }
        if status.is_some() || silent > TEARDOWN_LIMIT.0 + KILLED_LIMIT.0 {
            self.exited = true;
            self.keep_samples();
            let _ = self.speech.say(&Report::Exited(status.map(ExitStatusExt::into_raw)));
        }
    }

    /// Carries out what rank 0 says.
    fn obey(&mut self, word: &Word) {
        self.last_word = Instant::now();
        let Word::Order(order) = word else { return };
        if matches!(order, Order::Stop | Order::Interrupt) {
            self.kill_at = Some(Instant::now() + Duration::from_secs_f64(self.begun.limits.stop_s.0));
        }
        self.begun.rank.tell(order);
    }

    /// Keeps the limits, and looks whether the rank was stopped or has ended, or this worker shall end.
    fn look(&mut self) -> Option<Worked> {
        let now = Instant::now();
        if self.attention.absence().is_some() {
            // what rank 0 has said meanwhile is not heard yet
            self.last_word = now;
        }
        let ending = self.job.stop.load(Ordering::Relaxed) || !self.job.place.one_host;
        let hurried = self.job.wanted.device == Device::Cpu && ending;
        if let Some(at) = self.kill_at.as_mut() {
            *at = if hurried { (*at).min(now + HURRIED_LIMIT) } else { *at };
            if *at <= now {
                self.begun.rank.kill();
            }
        }
        if let (Some(closed), false) = (self.closed, self.exited) {
            self.reap(closed);
        }
        let stopped = self.closed.is_none() && self.begun.rank.is_stopped();
        if stopped != self.stopped {
            self.stopped = stopped;
            let _ = self.speech.say(&Report::Stopped(stopped));
        }
        if self.job.stop.load(Ordering::Relaxed) {
            let patience = Callers::GATHER + Duration::from_secs_f64(self.begun.limits.stop_s.0) + WORD_LIMIT;
            if self.leave_at.is_none() {
                let _ = self.speech.say(&Report::Interrupted);
            }
            if *self.leave_at.get_or_insert(now + patience) <= now {
                return Some(Worked { end: Launched::Interrupted, alone: true });
            }
        }
        let limit = self.begun.limits.step_s;
        (self.last_word.elapsed().as_secs_f64() > limit.0)
            .then(|| lost(self.job, "hang-rank", &format!("nothing was heard of rank 0 for {limit}")))
    }
}
