//! Rank 0's part beside its own rank: takes the workers in, shares their hosts out, and watches until the job is over.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::device::Clock;
use crate::record::{Device, Finding, Plan, RecordError, Severity, Share, Trial, write_yaml};
use crate::topology::Core;
use crate::units::Seconds;

use super::callers::{Callers, Ended, Ending, Word};
use super::error::chain;
use super::launcher::shared_memory;
use super::line::Line;
use super::meeting::Meeting;
use super::message::Exchange;
use super::plan::calibration_limits;
use super::shares::Fit;
use super::task::Task;
use super::trial::Watch;
use super::worker::Job;
use super::{GpuPlace, LaunchError, Launched, Launcher, MeetError, cpu_shares, gpu_shares, plan};

/// Once all is said, workers hang up within moments.
const FAREWELL_LIMIT: Duration = Duration::from_secs(2);

/// What a worker says about itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Hello {
    version: String,
    rank: usize,
    world: usize,
    local_rank: usize,
    /// The boot that the host runs in: the same clock, the same cores.
    machine: String,
    /// Everything that all ranks must have been told alike.
    training: String,
    cores: Vec<(Vec<usize>, Option<u32>)>,
    gpus: Vec<(String, Option<u32>)>,
}

impl Hello {
    /// What this worker says.
    pub(super) fn of(job: &Job) -> Self {
        let wanted = &job.wanted;
        let training = (wanted.device, &wanted.config, &wanted.nccl, wanted.share_gpu, job.checkpoints);
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            rank: job.place.rank,
            world: job.place.world,
            local_rank: job.place.local_rank,
            machine: fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned(),
            training: serde_json::to_string(&training).unwrap_or_default(),
            cores: job.cores.iter().map(|core| (core.cpus.clone(), core.numa_node)).collect(),
            gpus: job.gpus.iter().map(|gpu| (gpu.address.to_string(), gpu.numa_node)).collect(),
        }
    }

    /// Its rank, if it can take part in a job where rank 0 says `own`.
    fn admitted(&self, own: &Self) -> Result<usize, String> {
        let rank = self.rank;
        if self.world <= self.local_rank {
            return Err(format!("rank {rank} calls itself number {} of its host", self.local_rank));
        }
        if self.version != own.version {
            return Err(format!("rank {rank} is rigscale {}, rank 0 is {}", self.version, own.version));
        }
        if self.world != own.world {
            return Err(format!("rank {rank} counts {} ranks, rank 0 counts {}", self.world, own.world));
        }
        if self.training != own.training {
            return Err(format!("rank {rank} was started with other flags than rank 0"));
        }
        Ok(rank)
    }

    fn cores(&self) -> Vec<Core> {
        self.cores.iter().map(|(cpus, numa_node)| Core { cpus: cpus.clone(), numa_node: *numa_node }).collect()
    }

    fn gpus(&self) -> Result<Vec<GpuPlace>, LaunchError> {
        let place = |(address, numa_node): &(String, Option<u32>)| {
            let address = address.parse().map_err(|_| job_error(format!("{address:?} is no PCI address")))?;
            Ok(GpuPlace { address, numa_node: *numa_node })
        };
        self.gpus.iter().map(place).collect()
    }
}

fn job_error(why: String) -> LaunchError {
    LaunchError::Job { why }
}

/// Takes the workers in within `limit`, has them train, and tells them all how it ended. `ended` says where this process
/// gives up.
///
/// # Errors
/// The job cannot be as it was started, or the records not kept.
pub(super) fn host(job: &Job, meeting: Meeting, limit: Seconds, ended: &Ended) -> Result<Launched, LaunchError> {
    let own = Hello::of(job);
    let (come, met) = meeting.gather(job.place.world, (limit, &ended.flag), |hello: &Hello| hello.admitted(&own));
    let (hellos, lines): (Vec<Hello>, Vec<Line>) = come.into_iter().flatten().unzip();
    let started = |source| LaunchError::Start { rank: 0, source };
    let mut callers = Callers::over(lines, Arc::clone(&ended.flag)).map_err(started)?;
    let end = match met {
        Ok(()) => conduct(job, &hellos, &mut callers, &ended.flag),
        Err(MeetError::Interrupted) => Ok(Launched::Interrupted),
        Err(error @ MeetError::Late { .. }) => Ok(not_met(job, &error)),
        Err(error) => Err(error.into()),
    };
    let end = ended.explained(end).and_then(|end| {
        launcher(job, job.stop).write_findings(&end)?;
        Ok(end)
    });
    callers.tell_all(&Word::Over(Ending::of(&end)));
    callers.farewell(FAREWELL_LIMIT);
    end
}

fn not_met(job: &Job, error: &MeetError) -> Launched {
    Launched::Failed(Finding {
        code: "hang-meet".into(),
        severity: Severity::Fault,
        addresses: Vec::new(),
        seen: chain(error),
        expected: format!("{} workers meet at rank 0", job.place.world),
        remedy: "see that the launcher starts every rank, and that each host reaches the address of rank 0".into(),
    })
}

/// Leaves in `launch.json` why there was no run.
pub(super) fn keep_reason(job: &Job, error: LaunchError) -> LaunchError {
    launcher(job, job.stop).keep_reason("rank-0", error)
}

fn launcher<'a>(job: &'a Job, stop: &'a AtomicBool) -> Launcher<'a> {
    Launcher {
        folder: job.folder,
        stop,
        software: job.software.clone(),
        remark: job.remark,
        checkpoints: job.checkpoints,
    }
}

/// One ddp trial with a rank for each worker.
fn conduct(job: &Job, hellos: &[Hello], callers: &mut Callers, ended: &AtomicBool) -> Result<Launched, LaunchError> {
    let plan = plan_for(job, hellos)?;
    write_yaml(&job.folder.plan(), &plan)?;
    let trial = &plan.trials[0];
    let place = job.folder.trial(&trial.name);
    let failed = |source| RecordError::File { attempt: "create the folder", path: place.clone(), source };
    fs::create_dir_all(&place).map_err(failed)?;
    let exchange = job.exchange()?;
    // lives until the ranks are gone; each worker opens it and lets its rank inherit it
    let memory = match exchange {
        Exchange::SharedMemory { .. } => shared_memory(&plan, trial)?,
        _ => None,
    };
    let shared = memory.as_ref().map(|memory| (std::process::id(), memory.raw_fd()));
    for (rank, task) in tasks(job, &plan, hellos, (exchange, shared)).into_iter().enumerate() {
        callers.tell(rank, &Word::Assign(Box::new(task)));
    }
    Ok(Watch::new(trial, &plan.limits, job.remark, callers).run(ended, &mut |_| {})?.into())
}

/// What each worker's rank shall do; `shared` is where the memory is that they share.
fn tasks(job: &Job, plan: &Plan, hellos: &[Hello], (exchange, shared): (Exchange, Option<(u32, i32)>)) -> Vec<Task> {
    let trial = &plan.trials[0];
    let (launcher, place) = (launcher(job, job.stop), job.folder.trial(&trial.name));
    let epoch = Clock::monotonic();
    let task = |(rank, hello): (usize, &Hello)| {
        let mut assignment = launcher.assignment(plan, trial, rank, exchange, epoch, &place);
        assignment.one_host = job.place.one_host;
        let here = || hellos.iter().filter(|other| other.machine == hello.machine);
        let mut gpus: Vec<String> = Vec::new();
        if here().all(|other| hello.local_rank <= other.local_rank) {
            gpus.extend(here().filter_map(|other| plan.shares[other.rank].gpu.clone()));
            gpus.sort_unstable();
            gpus.dedup();
        }
        let same_clock = hello.machine == hellos[0].machine;
        Task { assignment, memory: shared, telemetry: gpus, same_clock }
    };
    hellos.iter().enumerate().map(task).collect()
}

/// The plan of one trial over the shares that the workers' hosts have.
fn plan_for(job: &Job, hellos: &[Hello]) -> Result<Plan, LaunchError> {
    let shares = shares(job.wanted.device, job.wanted.share_gpu, hellos)?;
    let worlds = vec![shares.len()];
    let fit = Fit { shares, worlds, skipped: Vec::new() };
    let mut plan = plan(&job.wanted, &fit, Seconds(1.0), jiff::Timestamp::now());
    plan.limits = calibration_limits(&plan, plan.config.steps);
    // nothing was timed: the estimate is what the limit on a step comes from
    plan.step_estimate_s = plan.limits.step_s;
    plan.why = vec![format!(
        "{} started {} workers{}; nothing was timed beforehand, and limits are those of a slow machine",
        job.place.launcher,
        hellos.len(),
        if job.place.one_host { " on one host" } else { " on several hosts" },
    )];
    assert_eq!(plan.trials, [Trial { shares: (0..hellos.len()).collect(), ..plan.trials[0].clone() }]);
    Ok(plan)
}

/// A share for each rank. Where all ranks of a host may use the same cores, or GPUs, each gets the part of its local rank;
/// where their launcher has given each its own, it is that.
fn shares(device: Device, share_gpu: bool, hellos: &[Hello]) -> Result<Vec<Share>, LaunchError> {
    let share = |hello: &Hello| {
        let peers: Vec<&Hello> = hellos.iter().filter(|other| other.machine == hello.machine).collect();
        let parts = peers.iter().map(|peer| peer.local_rank + 1).max().unwrap_or(1);
        let cores = hello.cores();
        let share = match device {
            Device::Cpu => {
                let common = peers.iter().all(|peer| peer.cores == hello.cores);
                cpu_share(&cores, if common { (hello.local_rank, parts) } else { (0, 1) })
            }
            Device::Cuda => {
                let common = peers.iter().all(|peer| peer.gpus == hello.gpus);
                let (place, parts) = if common { (hello.local_rank, parts) } else { (0, 1) };
                let fit = gpu_shares(&hello.gpus()?, &cores, &[parts], share_gpu);
                let why = || job_error(format!("rank {}: {}", hello.rank, fit.skipped[0].why));
                fit.shares.get(place).cloned().ok_or_else(why)?
            }
        };
        if share.cpus.is_empty() {
            return Err(job_error(format!("rank {} may use no whole core", hello.rank)));
        }
        Ok(Share { index: hello.rank, ..share })
    };
    hellos.iter().map(share).collect()
}

/// Part number `place` of `parts` of the cores; all of them where there are fewer cores than parts, as their launcher wants
/// more ranks on the host than it has cores.
fn cpu_share(cores: &[Core], (place, parts): (usize, usize)) -> Share {
    cpu_shares(cores, &[parts]).shares.get(place).cloned().unwrap_or_else(|| {
        let mut cpus: Vec<usize> = cores.iter().flat_map(|core| core.cpus.iter().copied()).collect();
        cpus.sort_unstable();
        Share { index: 0, cpus, numa_node: None, gpu: None, threads: None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::path::Path;

    use crate::launch::plan::tests::wanted;
    use crate::launch::{JobLauncher, JobPlace};
    use crate::record::{Arm, RunFolder};

    fn hello(rank: usize, local_rank: usize, machine: &str, cores: std::ops::Range<usize>, gpus: &[&str]) -> Hello {
        Hello {
            version: "1".into(),
            rank,
            world: 4,
            local_rank,
            machine: machine.into(),
            training: "t".into(),
            cores: cores.map(|cpu| (vec![cpu], Some(0))).collect(),
            gpus: gpus.iter().map(|gpu| ((*gpu).to_owned(), Some(0))).collect(),
        }
    }

    const GPUS: [&str; 2] = ["0000:01:00.0", "0000:02:00.0"];

    #[test]
    fn ranks_of_a_host_share_what_all_may_use_and_keep_what_is_their_own() {
        let cpus = |hellos: &[Hello]| -> Vec<Vec<usize>> {
            shares(Device::Cpu, false, hellos).unwrap().into_iter().map(|share| share.cpus).collect()
        };
        let common = [hello(0, 0, "a", 0..4, &[]), hello(1, 1, "a", 0..4, &[]), hello(2, 0, "b", 0..2, &[])];
        assert_eq!(cpus(&common), [vec![0, 1], vec![2, 3], vec![0, 1]]);
        let bound = [hello(0, 0, "a", 0..1, &[]), hello(1, 1, "a", 1..2, &[])];
        assert_eq!(cpus(&bound), [[0], [1]]);
        let crowded = [hello(0, 0, "a", 0..1, &[]), hello(1, 1, "a", 0..1, &[])];
        assert_eq!(cpus(&crowded), [[0], [0]]);
        assert!(shares(Device::Cpu, false, &[hello(0, 0, "a", 0..0, &[])]).is_err());
    }

    #[test]
    fn a_rank_takes_the_gpu_of_its_local_rank_or_the_one_that_it_sees() {
        let gpus = |share_gpu, hellos: &[Hello]| -> Result<Vec<String>, LaunchError> {
            Ok(shares(Device::Cuda, share_gpu, hellos)?.into_iter().filter_map(|share| share.gpu).collect())
        };
        let both = [hello(0, 0, "a", 0..2, &GPUS), hello(1, 1, "a", 0..2, &GPUS)];
        assert_eq!(gpus(false, &both).unwrap(), GPUS);
        assert_eq!(gpus(true, &both).unwrap(), [GPUS[0], GPUS[0]]);
        let own = [hello(0, 0, "a", 0..2, &GPUS[..1]), hello(1, 1, "a", 0..2, &GPUS[1..])];
        assert_eq!(gpus(false, &own).unwrap(), GPUS);
        let same = [hello(0, 0, "a", 0..2, &GPUS[..1]), hello(1, 1, "a", 0..2, &GPUS[..1])];
        let refused = gpus(false, &same).unwrap_err().to_string();
        assert!(refused.contains("2 ranks need 2 GPUs; this process may use 1"), "{refused}");
    }

    #[test]
    fn workers_that_were_started_otherwise_are_refused_by_name() {
        let own = hello(0, 0, "a", 0..2, &[]);
        let like = |change: fn(&mut Hello)| {
            let mut other = hello(3, 1, "b", 0..2, &[]);
            change(&mut other);
            other.admitted(&own)
        };
        assert_eq!(like(|_| {}), Ok(3));
        for (refused, wanted) in [
            (like(|other| other.version = "2".into()), "rank 3 is rigscale 2, rank 0 is 1"),
            (
                like(|other| other.local_rank = usize::MAX),
                "rank 3 calls itself number 18446744073709551615 of its host",
            ),
            (like(|other| other.world = 5), "rank 3 counts 5 ranks, rank 0 counts 4"),
            (like(|other| other.training = "u".into()), "rank 3 was started with other flags than rank 0"),
        ] {
            assert_eq!(refused, Err(wanted.to_owned()));
        }
    }

    /// A worker of a job of two on this host, with its own cores.
    fn with_job<T>(rank: usize, run: impl FnOnce(&Job) -> T) -> T {
        let place = JobPlace {
            launcher: JobLauncher::Slurm,
            rank,
            world: 2,
            local_rank: rank,
            one_host: true,
            job: String::new(),
            meeting: None,
            mpi: false,
        };
        let mut wanted = wanted();
        (wanted.arms, wanted.launches, wanted.config.steps) = (vec![Arm::Ddp], 1, 30);
        let cores = (0..4).map(|cpu| Core { cpus: vec![cpu], numa_node: Some(0) }).collect();
        let (folder, stop) = (RunFolder::at(Path::new("never-made")), AtomicBool::new(false));
        run(&Job {
            place,
            folder: &folder,
            wanted,
            cores,
            gpus: Vec::new(),
            software: BTreeMap::new(),
            checkpoints: false,
            stop: &stop,
            remark: &|_| {},
        })
    }

    #[test]
    fn a_worker_does_what_it_was_started_for_and_nothing_else() {
        let memory = Exchange::SharedMemory { fd: -1 };
        let hellos = [0, 1].map(|rank| with_job(rank, Hello::of));
        let tasks = with_job(0, |job| tasks(job, &plan_for(job, &hellos).unwrap(), &hellos, (memory, Some((1, 3)))));
        for (rank, task) in tasks.iter().enumerate() {
            // what goes over the wire
            let task: Task = serde_json::from_str(&serde_json::to_string(task).unwrap()).unwrap();
            assert_eq!(with_job(rank, |job| task.fits(job, memory)), Ok(()));
        }
        let refused = |what: &str, change: fn(&mut Task)| {
            let mut task = tasks[1].clone();
            change(&mut task);
            let why = format!("rank 0 assigned another {what} than this worker was started for");
            assert_eq!(with_job(1, |job| task.fits(job, memory)), Err(why));
        };
        refused("place", |task| task.assignment.head.rank = 0);
        refused("place", |task| task.assignment.data_world = 3);
        refused("spread of ranks over hosts", |task| task.assignment.one_host = false);
        refused("training", |task| task.assignment.head.config.steps += 1);
        refused("training", |task| task.assignment.head.arm = Arm::Together);
        refused("setting of NCCL", |task| {
            drop(task.assignment.head.nccl.environment.insert("NCCL_NET_PLUGIN".into(), "/tmp/x.so".into()));
        });
        refused("exchange of gradients", |task| task.assignment.exchange = Exchange::Solo);
        refused("exchange of gradients", |task| task.memory = None);
        refused("use of GPUs", |task| task.assignment.gpu_sharers = 2);
        refused("GPU", |task| task.assignment.head.share.gpu = Some("0000:01:00.0".into()));
        refused("GPU", |task| task.telemetry.push("../gpu".into()));
        refused("set of cores", |task| task.assignment.head.share.cpus.push(9));
        refused("use of the disk", |task| task.assignment.checkpoints = true);
        for name in ["", "..", "../../etc", "/etc", "a/b", "a\n"] {
            let mut task = tasks[1].clone();
            task.assignment.head.trial = name.into();
            let why = with_job(1, |job| task.fits(job, memory)).unwrap_err();
            assert!(why.contains("another name for the trial's folder"), "{name:?}: {why}");
        }
        for limit in [0.0, -1.0, 1e300, f64::NAN, f64::INFINITY] {
            let mut task = tasks[1].clone();
            task.assignment.limits.step_s = Seconds(limit);
            let why = with_job(1, |job| task.fits(job, memory)).unwrap_err();
            assert!(why.contains("another set of limits"), "{limit}: {why}");
        }
    }
}
