//! One worker of a job that another launcher started: it meets the others, starts its rank, passes on what the rank says
//! and what rank 0 orders, and ends with it. The worker of rank 0 also plans, watches and names what went wrong.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use crate::device::SharedMemory;
use crate::record::{Device, Finding, GPU_FILE, Limits, RecordError, RunFolder, Severity};
use crate::topology::Core;
use crate::units::Seconds;

use super::callers::{Callers, Ending, Report, Task, Word};
use super::crew::Crew;
use super::host::{Hello, host};
use super::launcher::PROGRAM;
use super::meeting::{Invitation, Line, Meeting, Speech, Way, meet};
use super::message::{Exchange, Invite, Message, Order};
use super::plan::{Wanted, limits};
use super::ranks::{Heard, RankProcess};
use super::telemetry::Telemetry;
use super::{GpuPlace, JobPlace, LaunchError, Launched, MeetError, MeetingPlace, PlaceError};

/// How often a worker looks at its limits while nothing is said.
const LOOK: Duration = Duration::from_millis(20);

/// After its last line a rank has to free its memory and go.
const TEARDOWN_LIMIT: Seconds = Seconds(10.0);

/// A rank on CPUs that was told to stop gets so long where its launcher ends the job, or MPI may be what it waits in: Open
/// MPI kills what has not ended 1 s after its SIGTERM.
const HURRIED_LIMIT: Duration = Duration::from_millis(300);

/// A worker that was told to end waits so long beyond the limits of its rank for the word of rank 0.
const WORD_LIMIT: Duration = Duration::from_secs(2);

/// One worker of a job.
pub struct Job<'a> {
    /// Its place.
    pub place: JobPlace,
    /// Run folder, the same on every host or one on each.
    pub folder: &'a RunFolder,
    /// What shall be trained; the same on every rank.
    pub wanted: Wanted,
    /// Cores that this process may use.
    pub cores: Vec<Core>,
    /// GPUs that this process may use; empty on the CPU.
    pub gpus: Vec<GpuPlace>,
    /// Versions of what takes part, for the records.
    pub software: BTreeMap<String, String>,
    /// Whether rank 0 keeps its weights as safetensors.
    pub checkpoints: bool,
    /// Set when the user, or the launcher, ends this worker.
    pub stop: &'a AtomicBool,
    /// Hears what ranks have to say about their start, on rank 0.
    pub remark: &'a (dyn Fn(&str) + Sync),
}

/// How a job ended for one worker.
#[derive(Debug, Clone, PartialEq)]
pub struct Worked {
    /// How it ended.
    pub end: Launched,
    /// Whether rank 0 does not know, as it is lost.
    pub alone: bool,
}

impl Job<'_> {
    /// How long ranks wait for each other before there is a plan.
    pub(super) fn meet_limit(&self) -> Seconds {
        limits(self.wanted.device, Seconds(0.0), 0).meet_s
    }

    /// How ranks exchange gradients, as far as one worker knows.
    ///
    /// # Errors
    /// They cannot.
    pub(super) fn exchange(&self) -> Result<Exchange, LaunchError> {
        exchange(&self.place, self.wanted.device)
    }
}

/// Whether the job's ranks have MPI to find each other: they are on several hosts, and both sides can.
fn by_mpi(place: &JobPlace) -> bool {
    cfg!(feature = "mpi") && place.mpi && !place.one_host
}

fn exchange(place: &JobPlace, device: Device) -> Result<Exchange, LaunchError> {
    match (device, place.world) {
        (Device::Cuda, 1) => Ok(Exchange::None),
        (Device::Cuda, _) => Ok(Exchange::Nccl),
        (Device::Cpu, 1) => Ok(Exchange::Solo),
        // the descriptor is known once there is memory
        (Device::Cpu, _) if place.one_host => Ok(Exchange::SharedMemory { fd: -1 }),
        (Device::Cpu, _) if by_mpi(place) => Ok(Exchange::Mpi),
        (Device::Cpu, _) => Err(LaunchError::Job {
            why:
                "ranks on the cores of several hosts sum gradients over MPI: build rigscale with `--features mpi` and \
                  start the workers by mpirun (or srun --mpi); ranks on GPUs need no MPI"
                    .into(),
        }),
    }
}

/// Says before anything is begun whether the ranks of such a job can meet and exchange gradients.
///
/// # Errors
/// They cannot, with what to do about it.
pub fn can_work(place: &JobPlace, device: Device) -> Result<(), LaunchError> {
    exchange(place, device)?;
    let named = place.meeting.as_ref().is_some_and(|meeting| meeting.ports != [0]);
    if named || place.one_host || by_mpi(place) {
        return Ok(());
    }
    Err(PlaceError::NoAddress { launcher: place.launcher }.into())
}

/// The life of a worker. Returns once the whole job is over and no process of this worker is left; nothing in it waits
/// without a limit.
///
/// # Errors
/// The job cannot be as it was started, ranks did not meet, or records could not be kept.
pub fn work(job: &Job) -> Result<Worked, LaunchError> {
    let exchange = job.exchange()?;
    let ended = Arc::new(AtomicBool::new(false));
    let (meeting, way) = open(job)?;
    thread::scope(|scope| {
        let (job, ended) = (job, &ended);
        let watching = meeting.map(|(meeting, carry)| {
            let carried = carry.then(|| meeting.invitation().clone());
            (scope.spawn(move || host(job, meeting, ended)), carried)
        });
        let carried = watching.as_ref().and_then(|(_, carried)| carried.as_ref());
        let own = attend(job, way, carried, exchange);
        let Some((watching, _)) = watching else { return own };
        if own.as_ref().map_or(true, |worked| worked.alone) {
            ended.store(true, Ordering::Relaxed);
        }
        let end = watching.join().map_err(|_| LaunchError::Job { why: "the watch over the ranks panicked".into() })?;
        match (end, own) {
            // what ended the watch was this worker itself
            (Ok(Launched::Interrupted), Err(error)) if !matches!(error, LaunchError::Elsewhere { .. }) => Err(error),
            (end, _) => Ok(Worked { end: end?, alone: false }),
        }
    })
}

/// The meeting, on rank 0, and whether MPI carries the way to it; the way to it, on all that need not be told by MPI.
type Opened<'a> = (Option<(Meeting, bool)>, Option<Way<'a>>);

fn open<'a>(job: &Job<'a>) -> Result<Opened<'a>, LaunchError> {
    let place = &job.place;
    let first = place.rank == 0;
    if by_mpi(place) {
        let own = || MeetingPlace { host: own_name(), ports: vec![0] };
        let meeting =
            first.then(|| Meeting::at(&place.meeting.clone().unwrap_or_else(own), place, true)).transpose()?;
        return Ok((meeting.map(|meeting| (meeting, true)), None));
    }
    let named = place.meeting.as_ref().filter(|meeting| meeting.ports != [0]);
    match named {
        None if place.one_host => {
            let meeting = first.then(|| Meeting::on_this_host(job.folder.path())).transpose()?;
            Ok((meeting.map(|meeting| (meeting, false)), Some(Way::Notice(job.folder.path()))))
        }
        None => Err(PlaceError::NoAddress { launcher: place.launcher }.into()),
        Some(named) => {
            // on one host nobody listens to a network
            let host = if place.one_host { "127.0.0.1".to_owned() } else { named.host.clone() };
            let named = MeetingPlace { host, ports: named.ports.clone() };
            let meeting = first.then(|| Meeting::at(&named, place, false)).transpose()?;
            let invitation = Invitation::to(&named, place);
            Ok((meeting.map(|meeting| (meeting, false)), Some(Way::Invited(invitation))))
        }
    }
}

/// What this host calls itself.
fn own_name() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// A worker at work.
struct Worker<'a> {
    job: &'a Job<'a>,
    speech: Speech,
    events: Receiver<Event>,
    rank: RankProcess,
    limits: Limits,
    telemetry: Option<Telemetry>,
    /// The memory that the ranks share; the rank inherits its descriptor.
    _memory: Option<SharedMemory>,
    steps: usize,
    exited: bool,
    stopped: bool,
    /// When its rank is killed, once it was told to end.
    kill_at: Option<Instant>,
    /// When it no longer waits for rank 0, once it was told to end itself.
    leave_at: Option<Instant>,
    /// When rank 0 was last heard.
    last_word: Instant,
}

/// What a worker hears.
enum Event {
    /// Its rank.
    Rank(Heard),
    /// Rank 0.
    Word(Word),
    /// The end of the connection to rank 0.
    Cut,
}

/// Meets the others and goes on until the job is over.
fn attend(
    job: &Job,
    way: Option<Way>,
    carried: Option<&Invitation>,
    exchange: Exchange,
) -> Result<Worked, LaunchError> {
    let limit = job.meet_limit();
    let (say, events) = mpsc::channel();
    let (way, started) = match way {
        Some(way) => (way, None),
        None => {
            let (invitation, rank) = invited(job, carried, exchange == Exchange::Mpi, (&say, &events))?;
            (Way::Invited(invitation), Some(rank))
        }
    };
    let met = match meet(&way, &Hello::of(job), limit, job.stop) {
        Ok(met) => met,
        Err(MeetError::Interrupted) => return Ok(Worked { end: Launched::Interrupted, alone: true }),
        Err(error @ MeetError::NotMet { .. }) => return Ok(lost(job, "hang-meet", error.to_string())),
        Err(error) => return Err(error.into()),
    };
    let speech = listen(met.line, say.clone()).map_err(|source| start_failed(job, source))?;
    // the last to come may need as long again
    let deadline = Instant::now() + Duration::from_secs_f64(2.0 * limit.0);
    let task = loop {
        match events.recv_timeout(LOOK) {
            Ok(Event::Word(Word::Assign(task))) => break *task,
            Ok(Event::Word(Word::Over(ending))) => return over(ending),
            Ok(Event::Word(word)) => {
                return Err(LaunchError::Job { why: format!("rank 0 said {word:?} before anything else") });
            }
            Ok(Event::Cut) | Err(RecvTimeoutError::Disconnected) => return Ok(lost(job, "rank-died", GONE.into())),
            Ok(Event::Rank(_)) => return Err(LaunchError::Job { why: format!("rank {} ended early", job.place.rank) }),
            Err(RecvTimeoutError::Timeout) if job.stop.load(Ordering::Relaxed) => {
                return Ok(Worked { end: Launched::Interrupted, alone: true });
            }
            Err(RecvTimeoutError::Timeout) if deadline <= Instant::now() => {
                return Ok(lost(job, "hang-meet", "rank 0 did not say what to do".into()));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    };
    Worker::start(job, task, met.ahead, (say, events, speech), started)?.attend()
}

const GONE: &str = "the connection to rank 0 ended: its worker was killed, or its host is gone";

/// Starts the rank with MPI, which brings the invitation of rank 0.
fn invited(
    job: &Job,
    carried: Option<&Invitation>,
    keep: bool,
    (say, events): (&Sender<Event>, &Receiver<Event>),
) -> Result<(Invitation, RankProcess), LaunchError> {
    let mut rank = start(job, &["rank", "--mpi"], say.clone())?;
    let text = carried.map(serde_json::to_string).transpose().map_err(|error| start_failed(job, error.into()))?;
    rank.tell(&Invite { text, keep });
    let deadline = Instant::now() + Duration::from_secs_f64(job.meet_limit().0);
    let why = loop {
        match events.recv_timeout(LOOK) {
            Ok(Event::Rank(Heard::Said(Message::Invited { text }))) => match serde_json::from_str(&text) {
                Ok(invitation) => return Ok((invitation, rank)),
                Err(error) => break format!("MPI carried no invitation: {error}"),
            },
            Ok(Event::Rank(Heard::Said(Message::Failed { text, .. }))) => break text,
            Ok(Event::Rank(Heard::Garbled(line))) => break format!("it said {line:?}"),
            Ok(Event::Rank(Heard::Said(_)) | Event::Word(_)) => {}
            Ok(Event::Rank(Heard::Closed) | Event::Cut) | Err(RecvTimeoutError::Disconnected) => {
                let status = rank.finish(Seconds(1.0));
                break status
                    .map_or_else(|| "its process closed its pipe".into(), |status| format!("its process: {status}"));
            }
            Err(RecvTimeoutError::Timeout) if job.stop.load(Ordering::Relaxed) => break "the job was ended".into(),
            Err(RecvTimeoutError::Timeout) if deadline <= Instant::now() => {
                break format!("not all ranks joined within {}", job.meet_limit());
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    };
    rank.finish(Seconds(0.0));
    Err(LaunchError::Job { why: format!("rank {} could not meet the others over MPI: {why}", job.place.rank) })
}

fn start(job: &Job, arguments: &[&str], say: Sender<Event>) -> Result<RankProcess, LaunchError> {
    // the launcher of the job shows what ranks write to stderr
    let hear = move |heard| say.send(Event::Rank(heard)).is_ok();
    let rank = RankProcess::start(Path::new(PROGRAM), arguments, Stdio::inherit(), hear);
    rank.map_err(|source| start_failed(job, source))
}

fn start_failed(job: &Job, source: io::Error) -> LaunchError {
    LaunchError::Start { rank: job.place.rank, source }
}

/// Passes on what rank 0 says, as it comes, and that it is gone.
fn listen(line: Line, say: Sender<Event>) -> io::Result<Speech> {
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
fn lost(job: &Job, code: &str, seen: String) -> Worked {
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

fn over(ending: Ending) -> Result<Worked, LaunchError> {
    let end = match ending {
        Ending::Completed => Launched::Completed,
        Ending::Interrupted => Launched::Interrupted,
        Ending::Failed(finding) => Launched::Failed(finding),
        Ending::Unable { text, refused } => return Err(LaunchError::Elsewhere { text, refused }),
    };
    Ok(Worked { end, alone: false })
}

impl<'a> Worker<'a> {
    /// Starts the rank and the telemetry that rank 0 asks for. `ahead` is this host's clock less rank 0's.
    fn start(
        job: &'a Job<'a>,
        task: Task,
        ahead: Seconds,
        (say, events, speech): (Sender<Event>, Receiver<Event>, Speech),
        started: Option<RankProcess>,
    ) -> Result<Self, LaunchError> {
        let Task { mut assignment, memory, telemetry, telemetry_file, same_clock } = task;
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
        debug_assert!(telemetry_file.starts_with(GPU_FILE.trim_end_matches(".jsonl")));
        let telemetry = Telemetry::on(telemetry, trial, epoch, &place.join(telemetry_file))?;
        let mut rank = started.map_or_else(|| start(job, &["rank"], say), Ok)?;
        rank.tell(&assignment);
        Ok(Self {
            job,
            speech,
            events,
            rank,
            limits: assignment.limits,
            telemetry,
            _memory: memory,
            steps: 0,
            exited: false,
            stopped: false,
            kill_at: None,
            leave_at: None,
            last_word: Instant::now(),
        })
    }

    /// Goes on until rank 0 says that the job is over, or cannot any more.
    fn attend(mut self) -> Result<Worked, LaunchError> {
        let end = loop {
            match self.events.recv_timeout(LOOK) {
                Ok(Event::Rank(heard)) => self.pass_on(heard)?,
                Ok(Event::Word(Word::Over(ending))) => break over(ending),
                Ok(Event::Word(word)) => self.obey(&word),
                Ok(Event::Cut) | Err(RecvTimeoutError::Disconnected) => {
                    let seen = format!("{GONE}; this rank had done {} steps", self.steps);
                    break Ok(lost(self.job, "rank-died", seen));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if let Some(worked) = self.look() {
                break Ok(worked);
            }
        };
        let limit = if self.exited { Seconds(0.0) } else { self.limits.stop_s };
        self.rank.tell(&Order::Stop);
        self.rank.finish(limit);
        let sampled = self.telemetry.take().map_or(Ok(()), Telemetry::finish);
        let worked = end?;
        // how a job failed says more than why its telemetry is cut
        if worked.end == Launched::Completed {
            sampled?;
        }
        Ok(worked)
    }

    /// Passes on what the rank says.
    fn pass_on(&mut self, heard: Heard) -> Result<(), LaunchError> {
        let report = match heard {
            Heard::Said(message) => {
                if let Message::Step { index, .. } = message {
                    self.steps = index + 1;
                }
                Report::Said(message)
            }
            Heard::Garbled(line) => Report::Garbled(line),
            Heard::Closed => return self.ended(),
        };
        // if rank 0 is gone, the connection's end says so
        let _ = self.speech.say(&report);
        Ok(())
    }

    /// The rank's stdout is closed: what is left is that its process ends, and its samples are kept.
    fn ended(&mut self) -> Result<(), LaunchError> {
        use std::os::unix::process::ExitStatusExt;

        let status = self.rank.finish(TEARDOWN_LIMIT);
        self.exited = true;
        let sampled = self.telemetry.take().map_or(Ok(()), Telemetry::finish);
        let _ = self.speech.say(&Report::Exited(status.map_or(9, ExitStatusExt::into_raw)));
        Ok(sampled?)
    }

    /// Carries out what rank 0 says.
    fn obey(&mut self, word: &Word) {
        self.last_word = Instant::now();
        let Word::Order(order) = word else { return };
        if matches!(order, Order::Stop | Order::Interrupt) {
            self.kill_at = Some(Instant::now() + Duration::from_secs_f64(self.limits.stop_s.0));
        }
        self.rank.tell(order);
    }

    /// Keeps the limits, and looks whether the rank was stopped or this worker shall end.
    fn look(&mut self) -> Option<Worked> {
        let now = Instant::now();
        let ending = self.job.stop.load(Ordering::Relaxed) || !self.job.place.one_host;
        let hurried = self.job.wanted.device == Device::Cpu && ending;
        if let Some(at) = self.kill_at.as_mut() {
            *at = if hurried { (*at).min(now + HURRIED_LIMIT) } else { *at };
            if *at <= now {
                self.rank.kill();
            }
        }
        let stopped = !self.exited && self.rank.is_stopped();
        if stopped != self.stopped {
            self.stopped = stopped;
            let _ = self.speech.say(&Report::Stopped(stopped));
        }
        if self.job.stop.load(Ordering::Relaxed) {
            let patience = Callers::GATHER + Duration::from_secs_f64(self.limits.stop_s.0) + WORD_LIMIT;
            if self.leave_at.is_none() {
                let _ = self.speech.say(&Report::Interrupted);
            }
            if *self.leave_at.get_or_insert(now + patience) <= now {
                return Some(Worked { end: Launched::Interrupted, alone: true });
            }
        }
        let silent = self.last_word.elapsed().as_secs_f64();
        (silent > self.limits.step_s.0).then(|| {
            let seen = format!("nothing was heard of rank 0 for {}", self.limits.step_s);
            lost(self.job, "hang-rank", seen)
        })
    }
}
