//! One worker of a job that another launcher started: it meets the others, starts its rank, passes on what the rank says
//! and what rank 0 orders, and ends with it. The worker of rank 0 also plans, watches and names what went wrong.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::record::{Device, RunFolder};
use crate::topology::Core;
use crate::units::Seconds;

use super::attend::{Begun, Event, GONE, Worker, listen, lost};
use super::callers::{Ended, Report, Word};
use super::crew::{Attention, LOOK};
use super::error::chain;
use super::host::{Hello, host, keep_reason};
use super::invitation::Invitation;
use super::invited::{gone, invited, start_failed};
use super::line::Speech;
use super::meeting::{Meeting, Way, meet};
use super::message::{Cause, Exchange, Message};
use super::plan::{Wanted, limits};
use super::ranks::{Heard, RankProcess};
use super::task::Task;
use super::{GpuPlace, JobPlace, LaunchError, Launched, MeetError, MeetingPlace, PlaceError};

/// Rank 0 needs moments to hear why a worker gives up, and to tell all.
const FAREWELL_LIMIT: Duration = Duration::from_secs(3);

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

/// Whether MPI brings the job's ranks together: they are on several hosts, both sides can, and on CPUs it sums gradients
/// too, while ranks on GPUs need it only where no place to meet was named.
fn by_mpi(place: &JobPlace, device: Device) -> bool {
    let can = cfg!(feature = "mpi") && place.mpi && !place.one_host;
    can && (device == Device::Cpu || !is_named(place))
}

/// Whether a host and a port to meet at were named.
fn is_named(place: &JobPlace) -> bool {
    place.meeting.as_ref().is_some_and(|meeting| meeting.ports != [0])
}

fn exchange(place: &JobPlace, device: Device) -> Result<Exchange, LaunchError> {
    match (device, place.world) {
        (Device::Cuda, 1) => Ok(Exchange::None),
        (Device::Cuda, _) => Ok(Exchange::Nccl),
        (Device::Cpu, 1) => Ok(Exchange::Solo),
        // the descriptor is known once there is memory
        (Device::Cpu, _) if place.one_host => Ok(Exchange::SharedMemory { fd: -1 }),
        (Device::Cpu, _) if by_mpi(place, device) => Ok(Exchange::Mpi),
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
    if is_named(place) || place.one_host || by_mpi(place, device) {
        return Ok(());
    }
    Err(nowhere(place).into())
}

/// Why there is no place to meet.
fn nowhere(place: &JobPlace) -> PlaceError {
    match &place.meeting {
        Some(meeting) => PlaceError::NoPort { host: meeting.host.clone() },
        None => PlaceError::NoAddress { launcher: place.launcher },
    }
}

/// The life of a worker. Returns once the whole job is over and no process of this worker is left; nothing in it waits
/// without a limit.
///
/// # Errors
/// The job cannot be as it was started, ranks did not meet, or records could not be kept.
pub fn work(job: &Job) -> Result<Worked, LaunchError> {
    let worked = work_together(job);
    worked.map_err(|error| if job.place.rank == 0 { keep_reason(job, error) } else { error })
}

fn work_together(job: &Job) -> Result<Worked, LaunchError> {
    let exchange = job.exchange()?;
    let (meeting, way) = open(job)?;
    let ended = Ended::default();
    thread::scope(|scope| {
        let (job, ended) = (job, &ended);
        let watching = meeting.map(|(meeting, carry)| {
            let carried = carry.then(|| meeting.invitation().clone());
            // before they come, ranks that MPI brings together may wait for each other as long again
            let limit = Seconds(job.meet_limit().0 * if carry { 2.0 } else { 1.0 });
            (scope.spawn(move || host(job, meeting, limit, ended)), carried)
        });
        let carried = watching.as_ref().and_then(|(_, carried)| carried.as_ref());
        let own = attend(job, way, carried, exchange);
        let Some((watching, _)) = watching else { return own };
        ended.own(&own);
        settled(watching.join().map_err(|_| LaunchError::Panicked)?, own)
    })
}

/// How the job ended for rank 0, whose own worker may know better than the watch beside it.
fn settled(end: Result<Launched, LaunchError>, own: Result<Worked, LaunchError>) -> Result<Worked, LaunchError> {
    use LaunchError::Elsewhere;

    match (end, own) {
        (Err(Elsewhere { .. }) | Ok(Launched::Completed | Launched::Interrupted), Err(error))
            if !matches!(error, Elsewhere { .. }) =>
        {
            Err(error)
        }
        (Ok(Launched::Interrupted), Ok(worked)) if worked.alone => Ok(worked),
        (end, _) => Ok(Worked { end: end?, alone: false }),
    }
}

/// The meeting, on rank 0, and whether MPI carries the way to it; the way to it, on all that need not be told by MPI.
type Opened<'a> = (Option<(Meeting, bool)>, Option<Way<'a>>);

fn open<'a>(job: &Job<'a>) -> Result<Opened<'a>, LaunchError> {
    let place = &job.place;
    let first = place.rank == 0;
    if by_mpi(place, job.wanted.device) {
        let own = || MeetingPlace { host: own_name(), ports: vec![0] };
        let meeting =
            first.then(|| Meeting::at(&place.meeting.clone().unwrap_or_else(own), place, true)).transpose()?;
        return Ok((meeting.map(|meeting| (meeting, true)), None));
    }
    if place.one_host {
        if first && place.meeting.is_some() {
            (job.remark)("--meet is not needed: all ranks are on this host, and meet on its loopback interface");
        }
        let meeting = first.then(|| Meeting::on_this_host(job.folder.path())).transpose()?;
        return Ok((meeting.map(|meeting| (meeting, false)), Some(Way::Notice(job.folder.path()))));
    }
    let named = place.meeting.as_ref().filter(|_| is_named(place)).ok_or_else(|| nowhere(place))?;
    let meeting = first.then(|| Meeting::at(named, place, false)).transpose()?;
    Ok((meeting.map(|meeting| (meeting, false)), Some(Way::Invited(Invitation::to(named, place)))))
}

/// What this host calls itself.
fn own_name() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// Meets the others and goes on until the job is over.
fn attend(
    job: &Job,
    way: Option<Way>,
    carried: Option<&Invitation>,
    exchange: Exchange,
) -> Result<Worked, LaunchError> {
    let (say, events) = mpsc::channel();
    let (way, mut started) = match way {
        Some(way) => (way, None),
        None => match invited(job, carried, exchange == Exchange::Mpi, (&say, &events))? {
            Ok((invitation, rank)) => (Way::Invited(invitation), Some(rank)),
            Err(worked) => return Ok(worked),
        },
    };
    let met = match meet(&way, &Hello::of(job), job.meet_limit(), job.stop) {
        Ok(met) => met,
        Err(MeetError::Interrupted) => return Ok(Worked { end: Launched::Interrupted, alone: true }),
        Err(error @ MeetError::NotMet { .. }) => return Ok(lost(job, "hang-meet", &error.to_string())),
        Err(error) => return Err(error.into()),
    };
    let mut speech = listen(met.line, say.clone()).map_err(|source| start_failed(job, source))?;
    let begun = assigned(job, (&mut speech, &events), started.as_mut()).and_then(|task| match task {
        Ok(task) => Begun::of(job, (task, exchange), met.ahead, say, started).map(Ok),
        Err(worked) => Ok(Err(worked)),
    });
    match begun {
        Ok(Ok(begun)) => Worker::of(job, begun, speech, &events).attend(),
        Ok(Err(worked)) => Ok(worked),
        Err(error @ LaunchError::Elsewhere { .. }) => Err(error),
        Err(error) => {
            let cause = match &error {
                LaunchError::Record(_) => Cause::Record,
                error if error.is_refusal() => Cause::Input,
                _ => Cause::Other,
            };
            give_up((&mut speech, &events), cause, chain(&error));
            Err(error)
        }
    }
}

/// What rank 0 assigns; inside: how the job ended before it did.
fn assigned(
    job: &Job,
    (speech, events): (&mut Speech, &Receiver<Event>),
    mut started: Option<&mut RankProcess>,
) -> Result<Result<Task, Worked>, LaunchError> {
    // the last to come may need as long again
    let mut deadline = Instant::now() + Duration::from_secs_f64(2.0 * job.meet_limit().0);
    let mut attention = Attention::begin();
    loop {
        let heard = events.recv_timeout(LOOK);
        deadline += attention.absence().unwrap_or_default();
        return Ok(Err(match heard {
            Ok(Event::Word(Word::Assign(task))) => return Ok(Ok(*task)),
            Ok(Event::Word(Word::Over(ending))) => Worked { end: ending.told()?, alone: false },
            Ok(Event::Word(Word::Beat | Word::Order(_))) => continue,
            Ok(Event::Cut) | Err(RecvTimeoutError::Disconnected) => lost(job, "rank-died", GONE),
            Ok(Event::Rank(heard)) => match (heard, started.as_mut()) {
                (Heard::Said(Message::Remark { .. } | Message::Busy), _) | (_, None) => continue,
                (heard, Some(rank)) => {
                    let worked = gone(job, heard, rank)?;
                    if let Launched::Failed(finding) = &worked.end {
                        give_up((speech, events), Cause::Other, finding.seen.clone());
                    }
                    worked
                }
            },
            Err(RecvTimeoutError::Timeout) if job.stop.load(Ordering::Relaxed) => {
                Worked { end: Launched::Interrupted, alone: true }
            }
            Err(RecvTimeoutError::Timeout) if deadline <= Instant::now() => {
                lost(job, "hang-meet", "rank 0 did not say what to do")
            }
            Err(RecvTimeoutError::Timeout) => continue,
        }));
    }
}

/// Tells rank 0 why this worker cannot go on, and waits until that was heard: a connection that is closed with words unread
/// takes along what was said last.
fn give_up((speech, events): (&mut Speech, &Receiver<Event>), cause: Cause, text: String) {
    let _ = speech.say(&Report::Said(Message::Failed { cause, text, blames: None }));
    let _ = speech.say(&Report::Exited(None));
    let deadline = Instant::now() + FAREWELL_LIMIT;
    while let Some(left) = deadline.checked_duration_since(Instant::now()) {
        if let Ok(Event::Word(Word::Over(_)) | Event::Cut) | Err(_) = events.recv_timeout(left) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::JobLauncher;
    use crate::launch::callers::Ending;
    use crate::record::{Finding, Severity};

    fn job_error(why: &str) -> LaunchError {
        LaunchError::Job { why: why.into() }
    }

    fn fault(code: &str) -> Launched {
        let finding = Finding {
            code: code.into(),
            severity: Severity::Fault,
            addresses: Vec::new(),
            seen: String::new(),
            expected: String::new(),
            remedy: String::new(),
        };
        Launched::Failed(finding)
    }

    #[test]
    fn rank_0_s_own_trouble_is_not_taken_for_the_users_wish() {
        let completed = || Ok(Worked { end: Launched::Completed, alone: false });
        let alone = |end| Ok(Worked { end, alone: true });
        for end in [Launched::Completed, Launched::Interrupted] {
            let error = settled(Ok(end), Err(job_error("full"))).unwrap_err();
            assert_eq!(error.to_string(), "full");
        }
        let lost = settled(Ok(Launched::Interrupted), alone(fault("hang-rank"))).unwrap();
        assert_eq!(lost, Worked { end: fault("hang-rank"), alone: true });
        let first = settled(Ok(fault("rank-died")), Err(job_error("cut off"))).unwrap();
        assert_eq!(first, Worked { end: fault("rank-died"), alone: false });
        assert_eq!(settled(Ok(Launched::Completed), completed()).unwrap(), completed().unwrap());
        let told = || LaunchError::Elsewhere { text: "full".into(), refused: false };
        assert_eq!(settled(Err(told()), Err(job_error("full"))).unwrap_err().to_string(), "full");
        assert_eq!(settled(Err(job_error("no plan")), Err(told())).unwrap_err().to_string(), "no plan");
    }

    #[test]
    fn the_watch_hears_why_rank_0_gave_up() {
        let why = |own| {
            let ended = Ended::default();
            ended.own(&own);
            (ended.flag.load(Ordering::Relaxed), ended.explained(Ok(Launched::Interrupted)))
        };
        let (ends, end) = why(Err(job_error("full")));
        assert!(ends && matches!(end, Err(LaunchError::Elsewhere { text, refused: true }) if text == "full"));
        let (ends, end) = why(Ok(Worked { end: fault("hang-rank"), alone: true }));
        assert!(ends && matches!(end, Ok(Launched::Failed(_))));
        let (ends, end) = why(Ok(Worked { end: Launched::Interrupted, alone: false }));
        assert!(!ends && matches!(end, Ok(Launched::Interrupted)));
        let ended = Ended::default();
        ended.own(&Err(job_error("late")));
        assert!(matches!(ended.explained(Ok(fault("rank-died"))), Ok(Launched::Failed(_))), "what was seen counts");
        assert!(matches!(Ending::of(&Err(job_error("a"))), Ending::Unable { refused: true, .. }));
    }

    #[test]
    fn ranks_on_gpus_meet_where_it_was_named_and_by_mpi_elsewhere() {
        let place = |meeting: Option<(&str, u16)>| JobPlace {
            launcher: JobLauncher::OpenMpi,
            rank: 0,
            world: 2,
            local_rank: 0,
            one_host: false,
            job: String::new(),
            meeting: meeting.map(|(host, port)| MeetingPlace { host: host.into(), ports: vec![port] }),
            mpi: true,
        };
        let feature = cfg!(feature = "mpi");
        assert!(!by_mpi(&place(Some(("a", 7))), Device::Cuda));
        assert_eq!(by_mpi(&place(Some(("a", 7))), Device::Cpu), feature);
        for meeting in [None, Some(("a", 0))] {
            assert_eq!(by_mpi(&place(meeting), Device::Cuda), feature);
        }
        let bare = JobPlace { mpi: false, ..place(Some(("node7", 0))) };
        let refused = can_work(&bare, Device::Cuda).unwrap_err().to_string();
        assert!(refused.contains("--meet node7 names no port"), "{refused}");
    }
}
