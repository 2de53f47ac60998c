//! One rank of a trial: reads its assignment, trains, records every step, and says how far it is.

use std::error::Error;
use std::io::{self, BufRead, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::Duration;

use crate::comm::{CommError, Shm, Solo};
use crate::device::{self, Clock, CpuTimes, Floats};
use crate::record::{EndReason, RankWriter, RecordError, RunEnd};
use crate::train::{
    DataShare, ExchangeError, Reducer, StepRecord, TrainError, Trainer, Training, gradient_bucket_lengths,
};
use crate::units::Seconds;

use super::error::chain;
use super::message::{Assignment, Cause, Exchange, Message, Order};

/// Steps that may wait for their record to be written; beyond it the rank waits too.
const UNWRITTEN_MAX: usize = 64;

/// Exit code of a rank that gave up; its message says why.
const GAVE_UP: u8 = 1;

/// Why a rank gave up.
#[derive(Debug)]
struct GaveUp {
    cause: Cause,
    text: String,
    blames: Option<usize>,
}

impl GaveUp {
    fn new(cause: Cause, error: &(dyn Error + 'static)) -> Self {
        Self { cause, text: chain(error), blames: None }
    }

    fn other(error: impl Error + 'static) -> Self {
        Self::new(Cause::Other, &error)
    }

    fn of_comm(error: &CommError, whole: &(dyn Error + 'static)) -> Self {
        let (cause, blames) = match error {
            CommError::PeerDied { peer, .. } | CommError::PeerLeft { peer, .. } => (Cause::PeerDied, Some(*peer)),
            CommError::PeerLate { peer, .. } => (Cause::PeerLate, Some(*peer)),
            _ => (Cause::Other, None),
        };
        Self { cause, text: chain(whole), blames }
    }
}

impl From<TrainError> for GaveUp {
    fn from(error: TrainError) -> Self {
        match &error {
            TrainError::Setting { .. }
            | TrainError::Memory { .. }
            | TrainError::GpuMemory { .. }
            | TrainError::Data(_) => Self::new(Cause::Input, &error),
            TrainError::Exchange { source: ExchangeError::Comm(comm), .. } => Self::of_comm(comm, &error),
            TrainError::Checkpoint { .. } => Self::new(Cause::Record, &error),
            TrainError::Diverged { .. } => Self::new(Cause::Diverged, &error),
            _ => Self::new(Cause::Other, &error),
        }
    }
}

impl From<RecordError> for GaveUp {
    fn from(error: RecordError) -> Self {
        Self::new(Cause::Record, &error)
    }
}

impl From<CommError> for GaveUp {
    fn from(error: CommError) -> Self {
        Self::of_comm(&error, &error)
    }
}

/// What the launcher ordered last, for the training loop to look at between steps.
#[derive(Debug, Clone, Default)]
struct Ordered(Arc<AtomicU8>);

impl Ordered {
    fn set(&self, reason: EndReason) {
        self.0.store(if reason == EndReason::Interrupted { 1 } else { 2 }, Ordering::Relaxed);
    }

    /// Why the rank should end, if it should.
    fn to_end(&self) -> Option<EndReason> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            1 => Some(EndReason::Interrupted),
            _ => Some(EndReason::Stopped),
        }
    }
}

/// The whole life of a rank's process. stdin brings the assignment and orders, stdout takes messages.
#[must_use]
pub fn rank_main() -> ExitCode {
    let mut line = String::new();
    let assignment = match io::stdin().lock().read_line(&mut line) {
        Ok(_) => serde_json::from_str::<Assignment>(&line),
        Err(error) => Err(serde_json::Error::io(error)),
    };
    let result = match assignment {
        Ok(assignment) => live(assignment),
        Err(error) => Err(GaveUp { cause: Cause::Other, text: format!("no assignment: {error}"), blames: None }),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(GaveUp { cause, text, blames }) => {
            say(&Message::Failed { cause, text, blames });
            GAVE_UP.into()
        }
    }
}

fn live(mut assignment: Assignment) -> Result<(), GaveUp> {
    device::end_with_parent(assignment.launcher).map_err(GaveUp::other)?;
    device::pin_to(&assignment.head.share.cpus).map_err(GaveUp::other)?;
    let (go, released) = mpsc::sync_channel(1);
    let ordered = Ordered::default();
    obey(go, ordered.clone(), assignment.limits.stop_s)?;
    let mut training = training(&assignment)?;
    assignment.head.software.extend(training.software());
    training.remarks().into_iter().for_each(|text| say(&Message::Remark { text }));
    let writer = RankWriter::create(&assignment.file, &assignment.head)?;
    say(&Message::Ready);
    if released.recv().is_err() {
        return Ok(());
    }
    checkpoint(&assignment, &mut training, 0)?;
    let (record, records) = mpsc::sync_channel(UNWRITTEN_MAX);
    let keeper =
        thread::Builder::new().name("recorder".into()).spawn(move || keep(writer, &records)).map_err(GaveUp::other)?;
    let cpus = &assignment.head.share.cpus;
    let times = CpuTimes::now(cpus);
    let trained = steps(&assignment, &mut training, &record, &ordered);
    drop(record);
    let writer = keeper.join().map_err(|_| GaveUp::other(io::Error::other("the recorder panicked")))??;
    let reason = match (&trained, ordered.to_end()) {
        (Ok(reason), _) => *reason,
        (Err(_), Some(ordered)) => ordered,
        (Err(_), None) => EndReason::Failed,
    };
    let stolen = times.and_then(|earlier| CpuTimes::now(cpus)?.stolen_since(earlier));
    if reason == EndReason::Completed {
        checkpoint(&assignment, &mut training, writer.steps())?;
    }
    let end = end(&mut training, reason, writer.steps(), stolen);
    match trained {
        // what failed may have taken the device with it: its own words count, not those about the end
        Err(error) if reason == EndReason::Failed => {
            let _unended = end.map(|end| writer.end(&end));
            return Err(error);
        }
        trained => {
            writer.end(&end?)?;
            if let Ok(EndReason::Completed) = trained {
                say(&Message::Done);
            }
        }
    }
    Ok(())
}

fn steps(
    assignment: &Assignment,
    training: &mut Training,
    record: &SyncSender<StepRecord>,
    ordered: &Ordered,
) -> Result<EndReason, GaveUp> {
    let clock = Clock::since(assignment.head.epoch_s);
    let mut reason = EndReason::Completed;
    for _ in 0..assignment.head.config.steps {
        if let Some(ordered) = ordered.to_end() {
            reason = ordered;
            break;
        }
        // where the recorder is gone, its own error says why
        if let Some(step) = training.advance(&clock)?
            && record.send(step).is_err()
        {
            return Ok(reason);
        }
    }
    while let Some(step) = training.finish()? {
        if record.send(step).is_err() {
            break;
        }
    }
    Ok(reason)
}

/// Keeps the weights after `steps` beside the rank file, where that was asked for.
fn checkpoint(assignment: &Assignment, training: &mut Training, steps: usize) -> Result<(), GaveUp> {
    if assignment.checkpoints {
        let name = format!("checkpoint-{steps}.safetensors");
        training.write_checkpoint(&assignment.file.with_file_name(name), &|| say(&Message::Busy))?;
    }
    Ok(())
}

/// Writes each step and then says so. Ends when the training does, or when the disk refuses.
fn keep(mut writer: RankWriter, records: &Receiver<StepRecord>) -> Result<RankWriter, GaveUp> {
    for record in records {
        writer.step(&record.step, &record.buckets)?;
        say(&Message::Step { index: record.step.index, step_s: record.step.step_s });
    }
    Ok(writer)
}

fn end(training: &mut Training, reason: EndReason, steps: usize, stolen: Option<f64>) -> Result<RunEnd, GaveUp> {
    Ok(RunEnd {
        reason,
        steps,
        parameters_sha256: training.parameters_sha256()?,
        peak_memory_bytes: training.peak_memory(),
        stolen,
    })
}

/// Builds the training on the device of its share, with the exchange that the trial asks for.
fn training(assignment: &Assignment) -> Result<Training, GaveUp> {
    let head = &assignment.head;
    let data = DataShare { rank: assignment.data_rank, world: assignment.data_world };
    if let Some(address) = &head.share.gpu {
        let address = address.parse().map_err(GaveUp::other)?;
        return Ok(Training::Cuda(Box::new(Trainer::on_gpu(&head.config, data, address)?)));
    }
    let lengths = gradient_bucket_lengths(&head.config)?;
    let own = || lengths.iter().map(|length| Floats::zeros(*length)).collect();
    let (reducer, buckets) = match assignment.exchange {
        Exchange::None => (Reducer::none(), own()),
        Exchange::Solo => (Reducer::threaded(Solo)?, own()),
        Exchange::SharedMemory { fd } => {
            let (shm, buckets) = Shm::join(fd, head.rank, head.world, &lengths, assignment.limits.step_s)?;
            (Reducer::threaded(shm)?, buckets)
        }
    };
    let trainer = Trainer::new(&head.config, data, head.share.cpus.len(), reducer, buckets)?;
    Ok(Training::Cpu(Box::new(trainer)))
}

/// Reads orders until the launcher closes the pipe. A launcher that is gone ends the rank, in order if it can be.
fn obey(go: SyncSender<()>, ordered: Ordered, limit: Seconds) -> Result<(), GaveUp> {
    let listen = move || {
        // before the release nobody looks at `ordered`: closing this channel ends the rank
        let mut go = Some(go);
        for line in io::stdin().lock().lines() {
            match line.ok().and_then(|line| serde_json::from_str(&line).ok()) {
                Some(Order::Go) => {
                    let _ = go.take().map(|go| go.send(()));
                    continue;
                }
                Some(Order::Interrupt) => ordered.set(EndReason::Interrupted),
                Some(Order::Stop) | None => ordered.set(EndReason::Stopped),
            }
            go = None;
        }
        ordered.set(EndReason::Stopped);
        drop(go);
        thread::sleep(Duration::from_secs_f64(limit.0));
        std::process::exit(i32::from(GAVE_UP));
    };
    thread::Builder::new().name("orders".into()).spawn(listen).map(|_| ()).map_err(GaveUp::other)
}

/// Says one line. A launcher that is gone cannot hear it, which `obey` notices.
fn say(message: &Message) {
    let mut stdout = io::stdout().lock();
    let _ = serde_json::to_writer(&mut stdout, message)
        .map_err(io::Error::from)
        .and_then(|()| stdout.write_all(b"\n"))
        .and_then(|()| stdout.flush());
}
