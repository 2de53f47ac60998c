//! One rank of a trial: reads its assignment, trains, records every step, and says how far it is.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::{self, BufRead, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

#[cfg(feature = "mpi")]
use crate::comm::Communicator;
use crate::comm::{CommError, Nccl, Shard, Shm, Solo};
use crate::device::cuda::{CudaError, Gpu, NcclId, NcclLibrary, NcclSettings};
use crate::device::{self, Clock, CpuTimes, Floats};
use crate::record::{EndReason, RankWriter, RecordError, RunEnd};
use crate::train::{
    Cuda, DataShare, ExchangeError, NcclQueue, Reducer, StepRecord, TrainError, Trainer, Training, exchanged_lengths,
};
use crate::units::Seconds;

use super::error::chain;
use super::message::{Assignment, Cause, Exchange, Message, Order};
use super::mpi_start::{Joined, fits, leave};
use super::nccl_log;

/// Steps that may wait for their record to be written; beyond it the rank waits too.
const UNWRITTEN_MAX: usize = 64;

/// Exit code of a rank that gave up; its message says why.
const GAVE_UP: u8 = 1;

/// Why a rank gave up.
#[derive(Debug)]
pub(super) struct GaveUp {
    cause: Cause,
    text: String,
    blames: Option<usize>,
}

impl GaveUp {
    fn new(cause: Cause, error: &(dyn Error + 'static)) -> Self {
        Self { cause, text: chain(error), blames: None }
    }

    /// What was asked for cannot be.
    #[cfg(feature = "mpi")]
    pub(super) fn input(text: String) -> Self {
        Self { cause: Cause::Input, text, blames: None }
    }

    pub(super) fn other(error: impl Error + 'static) -> Self {
        Self::new(Cause::Other, &error)
    }

    /// Says why, and gives the exit code.
    fn said(self) -> ExitCode {
        let Self { cause, text, blames } = self;
        say(&Message::Failed { cause, text, blames });
        GAVE_UP.into()
    }

    fn of_comm(error: &CommError, whole: &(dyn Error + 'static)) -> Self {
        let (cause, blames) = match error {
            CommError::PeerDied { peer, .. } | CommError::PeerLeft { peer, .. } => (Cause::PeerDied, Some(*peer)),
            CommError::PeerLate { peer, .. } => (Cause::PeerLate, Some(*peer)),
            // NCCL does not say who is missing; the launcher sees who is
            CommError::Late { .. } => (Cause::Unmet, None),
            CommError::Gpu(error) if matches!(**error, CudaError::NotMet { .. }) => (Cause::Unmet, None),
            CommError::Gpu(error) if error.is_of_a_peer() => (Cause::PeerLost, None),
            // MPI does not say who is gone either
            #[cfg(feature = "mpi")]
            CommError::Mpi(device::MpiError::Call { .. }) => (Cause::PeerLost, None),
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
            TrainError::Diverged { first: None, .. } => Self::new(Cause::DivergedElsewhere, &error),
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
#[derive(Clone, Default)]
struct Ordered(Arc<Orders>);

#[derive(Default)]
struct Orders {
    end: AtomicU8,
    /// What ends every wait for other ranks.
    breaker: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Ordered {
    /// Other ranks will not come to the next sum, or not all: whatever this one waits for on its GPU ends now.
    fn set(&self, reason: EndReason) {
        self.0.end.store(if reason == EndReason::Interrupted { 1 } else { 2 }, Ordering::SeqCst);
        let breaker = self.0.breaker.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(breaker) = breaker {
            // it may wait for the GPU; whoever listens to orders must not
            thread::spawn(breaker);
        }
    }

    /// Takes what ends the waits; at once, if the order came before.
    fn arm(&self, breaker: impl FnOnce() + Send + 'static) {
        *self.0.breaker.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(breaker));
        if let Some(reason) = self.to_end() {
            self.set(reason);
        }
    }

    /// Why the rank should end, if it should.
    fn to_end(&self) -> Option<EndReason> {
        match self.0.end.load(Ordering::SeqCst) {
            0 => None,
            1 => Some(EndReason::Interrupted),
            _ => Some(EndReason::Stopped),
        }
    }
}

/// The whole life of a rank's process. stdin brings the assignment and orders, stdout takes messages. With `mpi` it first
/// joins MPI, as a worker of a job over several hosts wants it.
#[must_use]
pub fn rank_main(mpi: bool) -> ExitCode {
    let joined = match mpi.then(Joined::begin).transpose() {
        Ok(joined) => joined,
        Err(gave_up) => return gave_up.said(),
    };
    let mut line = String::new();
    let assignment = match io::stdin().lock().read_line(&mut line) {
        Ok(_) => serde_json::from_str::<Assignment>(&line),
        Err(error) => Err(serde_json::Error::io(error)),
    };
    let result = match assignment {
        Ok(assignment) => live(assignment, joined),
        Err(error) => Err(GaveUp { cause: Cause::Other, text: format!("no assignment: {error}"), blames: None }),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(gave_up) => gave_up.said(),
    }
}

fn live(mut assignment: Assignment, mut joined: Option<Joined>) -> Result<(), GaveUp> {
    fits(assignment.exchange, joined.is_some())?;
    if assignment.gpu_sharers == 1 {
        device::end_with_parent(assignment.launcher).map_err(GaveUp::other)?;
    }
    let log = match assignment.exchange {
        Exchange::Nccl => Some(set_up_nccl(&mut assignment)?),
        _ => None,
    };
    device::pin_to(&assignment.head.share.cpus).map_err(GaveUp::other)?;
    let (go, released) = mpsc::sync_channel(1);
    let (meet, ids) = mpsc::sync_channel(1);
    let ordered = Ordered::default();
    obey((go, meet), ordered.clone(), assignment.limits.stop_s)?;
    let mut training = training(&assignment, &ordered, &ids, &mut joined)?;
    assignment.head.software.extend(training.software());
    // a log that cannot be read leaves the way unknown; the training does not depend on it
    let text = log.and_then(|log| fs::read_to_string(log).ok());
    assignment.head.transport = text.map(|text| nccl_log::transport(&text, assignment.head.rank));
    training.remarks().into_iter().for_each(|text| say(&Message::Remark { text }));
    let writer = RankWriter::create(&assignment.file, &assignment.head)?;
    checkpoint(&assignment, &mut training, 0)?;
    say(&Message::Ready);
    if released.recv().is_err() {
        return Ok(());
    }
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
    let mut weights = None;
    if reason == EndReason::Completed {
        training.complete()?;
        checkpoint(&assignment, &mut training, writer.steps())?;
        weights = Some(training.parameters_sha256()?);
    }
    let end = RunEnd {
        reason,
        steps: writer.steps(),
        parameters_sha256: weights.clone(),
        peak_memory_bytes: training.peak_memory(),
        stolen,
    };
    match trained {
        // its own words count, not those about a record that cannot be ended
        Err(error) if reason == EndReason::Failed => {
            let _unended = writer.end(&end);
            Err(error)
        }
        _ => {
            writer.end(&end)?;
            if let Some(weights) = weights {
                say(&Message::Done { weights });
                drop(training);
                leave(joined)?;
            }
            Ok(())
        }
    }
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
        let (index, step_s, checksum) = (record.step.index, record.step.step_s, record.step.checksum);
        say(&Message::Step { index, step_s, checksum });
    }
    Ok(writer)
}

/// Builds the training on the device of its share, with the exchange that the trial asks for.
fn training(
    assignment: &Assignment,
    ordered: &Ordered,
    ids: &Receiver<NcclId>,
    joined: &mut Option<Joined>,
) -> Result<Training, GaveUp> {
    let head = &assignment.head;
    let data = DataShare { rank: assignment.data_rank, world: assignment.data_world };
    if let Some(address) = &head.share.gpu {
        let address = address.parse().map_err(GaveUp::other)?;
        let reducer = |gpu: &Gpu| match assignment.exchange {
            Exchange::Nccl => meet(assignment, gpu, ordered, ids),
            _ => Ok(Reducer::none()),
        };
        let sharing = assignment.exchange == Exchange::Nccl && head.config.shares_state(head.world);
        let part = sharing.then_some(Shard { rank: head.rank, world: head.world });
        let trainer = Trainer::on_gpu(&head.config, data, (address, assignment.gpu_sharers, part), reducer)?;
        return Ok(Training::Cuda(Box::new(trainer)));
    }
    let own = || Ok::<_, TrainError>(exchanged_lengths(&head.config, 1)?.into_iter().map(Floats::zeros).collect());
    let (reducer, buckets) = match assignment.exchange {
        Exchange::None => (Reducer::none(), own()?),
        Exchange::Solo => (Reducer::threaded(Solo)?, own()?),
        // NCCL sums on GPUs
        Exchange::Nccl => unreachable!("a rank without a GPU was told to meet others over NCCL"),
        Exchange::Mpi => {
            let lengths = exchanged_lengths(&head.config, head.world)?;
            (over_mpi(assignment, ordered, joined)?, lengths.into_iter().map(Floats::zeros).collect())
        }
        Exchange::SharedMemory { fd } => {
            let lengths = exchanged_lengths(&head.config, head.world)?;
            let (shm, buckets) = Shm::join(fd, head.rank, head.world, &lengths, assignment.limits.step_s)?;
            (Reducer::threaded(shm)?, buckets)
        }
    };
    let threads = head.share.threads.unwrap_or(head.share.cpus.len());
    let trainer = Trainer::new(&head.config, data, threads, reducer, buckets)?;
    Ok(Training::Cpu(Box::new(trainer)))
}

/// Sums through MPI, which this rank has joined.
#[cfg(feature = "mpi")]
fn over_mpi(assignment: &Assignment, ordered: &Ordered, joined: &mut Option<Joined>) -> Result<Reducer, GaveUp> {
    let head = &assignment.head;
    let mpi = joined.as_mut().and_then(|joined| joined.communicator(assignment.limits.step_s));
    let mpi = mpi.filter(|mpi| (mpi.rank(), mpi.world()) == (head.rank, head.world));
    let mpi =
        mpi.ok_or_else(|| GaveUp::other(io::Error::other("MPI numbers the ranks otherwise than their launcher")))?;
    ordered.arm(mpi.breaker());
    Ok(Reducer::threaded(mpi)?)
}

#[cfg(not(feature = "mpi"))]
fn over_mpi(_: &Assignment, _: &Ordered, _: &mut Option<Joined>) -> Result<Reducer, GaveUp> {
    Joined::begin().map(|_| Reducer::none())
}

/// NCCL meets its ranks over the network interface of this name, by default over one that leads out of the host.
const INTERFACE: &str = "NCCL_SOCKET_IFNAME";

/// Tells NCCL by its environment, before any thread could read that, what was asked for; gives the file of its log.
fn set_up_nccl(assignment: &mut Assignment) -> Result<PathBuf, GaveUp> {
    let library = NcclLibrary::load().map_err(TrainError::from)?;
    let head = &mut assignment.head;
    head.software.insert("nccl".into(), library.version());
    let log = assignment.file.with_extension("nccl.log");
    let mut variables = nccl_log::debug_settings(&log.to_string_lossy());
    if assignment.one_host && std::env::var_os(INTERFACE).is_none() {
        variables.insert(INTERFACE.into(), "lo".into());
    }
    if assignment.gpu_sharers > 1 {
        variables.extend(sharing(&library, head.rank));
        head.nccl.max_ctas.get_or_insert(SHARED_CTAS);
    }
    variables.extend(head.nccl.environment.clone());
    let pairs = variables.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    device::set_environment(pairs).map_err(GaveUp::other)?;
    Ok(log)
}

/// Thread blocks of a collective where ranks share a GPU: NCCL's own choice is for a whole one, and what does not fit
/// beside the others' hangs. With 8, four ranks hung in about one of three runs of some hundred steps; with 4 never yet.
pub const SHARED_CTAS: u32 = 4;

/// What lets several ranks of one GPU form a communicator.
pub(super) fn sharing(library: &NcclLibrary, rank: usize) -> BTreeMap<String, String> {
    let host = format!("rank-{rank}");
    let pairs: &[(&str, &str)] = if library.shares_gpu() {
        &[("NCCL_MULTI_RANK_GPU_ENABLE", "1"), ("NCCL_NVLS_ENABLE", "0"), ("NCCL_NET_GDR_LEVEL", "LOC")]
    } else {
        // each rank passes for a host of its own, and they talk over the loopback interface
        &[
            ("NCCL_HOSTID", host.as_str()),
            (INTERFACE, "lo"),
            ("NCCL_NET", "Socket"),
            ("NCCL_NET_PLUGIN", "none"),
            ("NCCL_MNNVL_ENABLE", "0"),
            ("NCCL_CUMEM_ENABLE", "0"),
            ("NCCL_NVLS_ENABLE", "0"),
        ]
    };
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// Meets the other ranks over NCCL.
fn meet(
    assignment: &Assignment,
    gpu: &Gpu,
    ordered: &Ordered,
    ids: &Receiver<NcclId>,
) -> Result<Reducer<Cuda>, TrainError> {
    let head = &assignment.head;
    let id = if head.rank == 0 { Some(NcclLibrary::load()?.new_id()?) } else { None };
    say(&Message::Meets { id });
    // a launcher that closes the channel has ordered the end
    let id = ids.recv().map_err(|_| CudaError::Broken)?;
    let settings = NcclSettings {
        min_ctas: head.nccl.min_ctas,
        max_ctas: head.nccl.max_ctas,
        cga_cluster_size: head.nccl.cga_cluster_size,
        cta_policy: head.nccl.cta_policy,
    };
    let limits = (assignment.limits.meet_s, assignment.limits.step_s);
    let nccl =
        Nccl::join(gpu, &id, (head.rank, head.world), settings, limits, |breaker| ordered.arm(move || breaker.abort()))
            .map_err(|source| TrainError::Exchange { step: 0, source: source.into() })?;
    Ok(Reducer::queued(NcclQueue::new(nccl)))
}

/// Reads orders until the launcher closes the pipe. A launcher that is gone ends the rank, in order if it can be.
fn obey((go, meet): (SyncSender<()>, SyncSender<NcclId>), ordered: Ordered, limit: Seconds) -> Result<(), GaveUp> {
    let listen = move || {
        // before the release nobody looks at `ordered`: closing these channels ends the rank
        let mut start = Some((go, meet));
        for line in io::stdin().lock().lines() {
            match line.ok().and_then(|line| serde_json::from_str(&line).ok()) {
                Some(Order::Meet(id)) => {
                    let _ = start.as_ref().map(|(_, meet)| meet.send(id).is_ok());
                    continue;
                }
                Some(Order::Go) => {
                    let _ = start.take().map(|(go, _)| go.send(()));
                    continue;
                }
                Some(Order::Interrupt) => ordered.set(EndReason::Interrupted),
                Some(Order::Stop) | None => ordered.set(EndReason::Stopped),
            }
            start = None;
        }
        ordered.set(EndReason::Stopped);
        drop(start);
        thread::sleep(Duration::from_secs_f64(limit.0));
        std::process::exit(i32::from(GAVE_UP));
    };
    thread::Builder::new().name("orders".into()).spawn(listen).map(|_| ()).map_err(GaveUp::other)
}

/// Says one line. A launcher that is gone cannot hear it, which `obey` notices.
pub(super) fn say(message: &Message) {
    let mut stdout = io::stdout().lock();
    let _ = serde_json::to_writer(&mut stdout, message)
        .map_err(io::Error::from)
        .and_then(|()| stdout.write_all(b"\n"))
        .and_then(|()| stdout.flush());
}
