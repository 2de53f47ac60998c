//! How a worker starts its rank, and how a rank that begins with MPI brings it the invitation of rank 0.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use crate::record::{Finding, Severity};
use crate::units::Seconds;

use super::attend::Event;
use super::crew::{Attention, LOOK};
use super::invitation::Invitation;
use super::launcher::PROGRAM;
use super::message::{Cause, Invite, Message};
use super::ranks::{Heard, RankProcess};
use super::worker::Job;
use super::{LaunchError, Launched, Worked};

/// A process that has closed its stdout is gone within moments.
const EXIT_LIMIT: Seconds = Seconds(1.0);

/// Starts the rank's process, which goes on to say what it hears over `say`.
///
/// # Errors
/// The system refuses.
pub(super) fn start(job: &Job, arguments: &[&str], say: Sender<Event>) -> Result<RankProcess, LaunchError> {
    // the launcher of the job shows what ranks write to stderr
    let hear = move |heard| say.send(Event::Rank(heard)).is_ok();
    let rank = RankProcess::start(Path::new(PROGRAM), arguments, Stdio::inherit(), hear);
    rank.map_err(|source| start_failed(job, source))
}

/// What a worker calls it when the system refuses its rank something.
pub(super) fn start_failed(job: &Job, source: io::Error) -> LaunchError {
    LaunchError::Start { rank: job.place.rank, source }
}

/// Starts the rank with MPI, which brings the invitation of rank 0; `carried` is what rank 0 gives it to carry. Inside: how
/// the job ended for this worker, where MPI brought nothing.
///
/// # Errors
/// The rank cannot be started, or not be joined with the others as it was.
pub(super) fn invited(
    job: &Job,
    carried: Option<&Invitation>,
    keep: bool,
    (say, events): (&Sender<Event>, &Receiver<Event>),
) -> Result<Result<(Invitation, RankProcess), Worked>, LaunchError> {
    let mut rank = start(job, &["rank", "--mpi"], say.clone())?;
    let text = carried.map(serde_json::to_string).transpose().map_err(|error| start_failed(job, error.into()))?;
    let (place, launcher) = ((job.place.rank, job.place.world), job.place.launcher.to_string());
    rank.tell(&Invite { text, worker: std::process::id(), place, launcher, keep });
    let limit = job.meet_limit();
    let mut deadline = Instant::now() + Duration::from_secs_f64(limit.0);
    let mut attention = Attention::begin();
    loop {
        let heard = events.recv_timeout(LOOK);
        deadline += attention.absence().unwrap_or_default();
        let worked = match heard {
            Ok(Event::Rank(Heard::Said(Message::Invited { text }))) => match serde_json::from_str(&text) {
                Ok(invitation) => return Ok(Ok((invitation, rank))),
                Err(error) => failed(job, "rank-failed", &format!("MPI carried no invitation: {error}")),
            },
            Ok(Event::Rank(heard @ (Heard::Closed | Heard::Garbled(_) | Heard::Said(Message::Failed { .. })))) => {
                gone(job, heard, &mut rank)?
            }
            Ok(Event::Rank(Heard::Said(_)) | Event::Word(_) | Event::Cut) => continue,
            Err(RecvTimeoutError::Disconnected) => gone(job, Heard::Closed, &mut rank)?,
            Err(RecvTimeoutError::Timeout) if job.stop.load(Ordering::Relaxed) => {
                Worked { end: Launched::Interrupted, alone: true }
            }
            Err(RecvTimeoutError::Timeout) if deadline <= Instant::now() => {
                failed(job, "hang-meet", &format!("MPI did not bring it together with the other ranks within {limit}"))
            }
            Err(RecvTimeoutError::Timeout) => continue,
        };
        return Ok(Err(worked));
    }
}

/// What it means that a rank is gone, or gives up, before it was told what to do.
///
/// # Errors
/// It cannot take part as it was started.
pub(super) fn gone(job: &Job, heard: Heard, rank: &mut RankProcess) -> Result<Worked, LaunchError> {
    Ok(match heard {
        Heard::Said(Message::Failed { cause: Cause::Input, text, .. }) => {
            return Err(LaunchError::Job { why: format!("rank {}: {text}", job.place.rank) });
        }
        Heard::Said(Message::Failed { text, .. }) => failed(job, "rank-failed", &format!("it gave up: {text}")),
        Heard::Said(message) => {
            failed(job, "rank-failed", &format!("it said {message:?} before it was told what to do"))
        }
        Heard::Garbled(line) => {
            let line: String = line.chars().take(120).collect();
            failed(job, "rank-failed", &format!("it said {line:?}, which is no message"))
        }
        Heard::Closed => {
            let status = rank.finish(EXIT_LIMIT);
            let how = status.map_or_else(|| "it does not end".to_owned(), |status| status.to_string());
            failed(job, "rank-died", &format!("its process ended while ranks met: {how}"))
        }
    })
}

/// How a job ended for a worker whose own rank failed while ranks met.
fn failed(job: &Job, code: &str, seen: &str) -> Worked {
    let rank = job.place.rank;
    let finding = Finding {
        code: code.into(),
        severity: Severity::Fault,
        addresses: vec![format!("rank-{rank}")],
        seen: format!("rank {rank}: {seen}"),
        expected: "all ranks meet, and are told what to do".into(),
        remedy:
            "see that the launcher starts every rank and that hosts reach each other; what MPI wrote stands in the \
                 launcher's output"
                .into(),
    };
    Worked { end: Launched::Failed(finding), alone: true }
}
