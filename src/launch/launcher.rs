//! Carries out a plan: one trial after another, each a set of fresh processes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use crate::comm::Shm;
use crate::device::{Clock, SharedMemory};
use crate::record::{
    Arm, Device, Finding, Findings, Grade, Origin, Plan, RecordError, RunFolder, RunHead, SCHEMA, Severity, Trial,
    read_rank_file, write_json,
};
use crate::stats;
use crate::train::exchanged_lengths;
use crate::units::Seconds;

use super::LaunchError;
use super::error::chain;
use super::message::{Assignment, Exchange};
use super::plan::calibration_limits;
use super::ranks::Ranks;
use super::telemetry::Telemetry;
use super::trial::{TrialEnd, Watch};

/// Steps of the calibration: the first warms up, the median of the others counts.
const CALIBRATION_STEPS: usize = 5;

/// The program that ranks run, with the argument `rank`: this very one, also if its file was replaced meanwhile.
pub(super) const PROGRAM: &str = "/proc/self/exe";

/// How a launch ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Launched {
    /// All trials were completed.
    Completed,
    /// The user interrupted.
    Interrupted,
    /// A rank failed; the finding names the first one and is written to `launch.json`.
    Failed(Finding),
}

impl From<TrialEnd> for Launched {
    fn from(end: TrialEnd) -> Self {
        match end {
            TrialEnd::Completed => Self::Completed,
            TrialEnd::Interrupted => Self::Interrupted,
            TrialEnd::Failed(finding) => Self::Failed(finding),
        }
    }
}

/// What happens while a plan runs, for whoever shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress<'a> {
    /// The trial at work.
    pub trial: &'a Trial,
    /// Its place in the plan, from 0.
    pub index: usize,
    /// Trials of the plan.
    pub trials: usize,
    /// Steps that every rank of the trial has done.
    pub steps: usize,
    /// Steps of the trial.
    pub of: usize,
}

/// Carries out plans in one run folder.
pub struct Launcher<'a> {
    /// Where records go.
    pub folder: &'a RunFolder,
    /// Set when the user interrupts.
    pub stop: &'a AtomicBool,
    /// Versions of what takes part, for the records.
    pub software: BTreeMap<String, String>,
    /// Hears what ranks have to say about their start.
    pub remark: &'a dyn Fn(&str),
    /// Whether the first rank of each trial keeps its weights as safetensors.
    pub checkpoints: bool,
}

impl Launcher<'_> {
    /// Runs the trials of the plan that have no folder yet, in order, and writes `launch.json`.
    ///
    /// # Errors
    /// The launcher itself cannot go on, or a rank cannot write its record.
    pub fn launch(&self, plan: &Plan, watch: &mut dyn FnMut(&Progress)) -> Result<Launched, LaunchError> {
        let mut end = Launched::Completed;
        for (index, trial) in plan.trials.iter().enumerate() {
            if self.folder.trial(&trial.name).exists() {
                continue;
            }
            let mut step = |steps| {
                watch(&Progress { trial, index, trials: plan.trials.len(), steps, of: plan.config.steps });
            };
            step(0);
            end = match self.run(plan, trial, &self.folder.trial(&trial.name), &mut step) {
                Ok(end) => end.into(),
                Err(error) => return Err(self.keep_reason(&trial.name, error)),
            };
            if end != Launched::Completed {
                break;
            }
        }
        self.write_findings(&end)?;
        Ok(end)
    }

    /// Runs one trial of a plan into its folder, whatever else the plan holds; `step` hears of the steps that every rank has
    /// done. `launch.json` is left alone.
    ///
    /// # Errors
    /// As [`Launcher::launch`].
    pub fn one(&self, plan: &Plan, trial: &Trial, step: &mut dyn FnMut(usize)) -> Result<Launched, LaunchError> {
        self.run(plan, trial, &self.folder.trial(&trial.name), step).map(Launched::from)
    }

    /// Times a step with all shares at work and no exchange, in `calibration/`, so that a plan can fill its budget.
    ///
    /// # Errors
    /// As [`Launcher::launch`].
    pub fn calibrate(&self, draft: &Plan) -> Result<Result<Seconds, Launched>, LaunchError> {
        let mut plan =
            Plan { grade: Grade::Ungraded, limits: calibration_limits(draft, CALIBRATION_STEPS), ..draft.clone() };
        plan.config.steps = CALIBRATION_STEPS;
        let shares = (0..plan.shares.len()).collect();
        let trial = Trial { name: "calibration".into(), launch: 0, arm: Arm::Together, shares };
        let place = self.folder.path().join("calibration");
        let end = self.run(&plan, &trial, &place, &mut |_| {}).map_err(|error| self.keep_reason(&trial.name, error))?;
        let end = Launched::from(end);
        if end != Launched::Completed {
            self.write_findings(&end)?;
            return Ok(Err(end));
        }
        let mut slowest = Seconds(0.0);
        for rank in 0..trial.shares.len() {
            let file = read_rank_file(&rank_path(&place, rank))?;
            let steps: Vec<f64> = file.steps.iter().skip(1).map(|step| step.step_s.0).collect();
            slowest = Seconds(slowest.0.max(stats::median(&steps)));
        }
        Ok(Ok(slowest))
    }

    /// Leaves in `launch.json` why the launcher itself gave up, if that can still be written.
    pub(super) fn keep_reason(&self, about: &str, error: LaunchError) -> LaunchError {
        let finding = Finding {
            code: "not-launched".into(),
            severity: Severity::Fault,
            addresses: vec![about.to_owned()],
            seen: chain(&error),
            expected: "every trial of the plan is carried out and recorded".into(),
            remedy: "mend what the words say, then run again".into(),
        };
        let _ = self.write_findings(&Launched::Failed(finding));
        error
    }

    fn run(
        &self,
        plan: &Plan,
        trial: &Trial,
        place: &Path,
        step: &mut dyn FnMut(usize),
    ) -> Result<TrialEnd, LaunchError> {
        fs::create_dir_all(place).map_err(|source| RecordError::File {
            attempt: "create the folder",
            path: place.into(),
            source,
        })?;
        let world = trial.shares.len();
        // lives until the ranks are gone; they inherit its descriptor
        let memory = shared_memory(plan, trial)?;
        let exchange = match (&memory, trial.arm) {
            (Some(memory), _) => Exchange::SharedMemory { fd: memory.raw_fd() },
            // one rank alone needs no NCCL; beside larger worlds it passes through the same machinery as they do
            (None, Arm::Ddp) if plan.device == Device::Cuda && plan.worlds.iter().any(|world| *world > 1) => {
                Exchange::Nccl
            }
            (None, Arm::Ddp) if plan.device == Device::Cuda => Exchange::None,
            (None, Arm::Ddp) => Exchange::Solo,
            (None, _) => Exchange::None,
        };
        let epoch = Clock::monotonic();
        let assignments: Vec<Assignment> =
            (0..world).map(|rank| self.assignment(plan, trial, rank, exchange, epoch, place)).collect();
        let telemetry = Telemetry::of(plan, trial, epoch, place)?;
        let ranks = Ranks::start(Path::new(PROGRAM), &assignments)?;
        let end = Watch::new(trial, &plan.limits, self.remark, ranks).run(self.stop, step);
        let sampled = telemetry.map_or(Ok(()), Telemetry::finish);
        // how a trial failed says more than why its telemetry is cut
        if matches!(end, Ok(TrialEnd::Completed)) {
            sampled?;
        }
        end
    }

    /// What one rank of `trial` is told.
    pub(super) fn assignment(
        &self,
        plan: &Plan,
        trial: &Trial,
        rank: usize,
        exchange: Exchange,
        epoch: Seconds,
        place: &Path,
    ) -> Assignment {
        let share = plan.shares[trial.shares[rank]].clone();
        let communicator = match exchange {
            Exchange::None => "none",
            Exchange::Solo => "solo",
            Exchange::SharedMemory { .. } => "shm",
            Exchange::Nccl => "nccl",
            Exchange::Mpi => "mpi",
        };
        let (data_rank, data_world) = match trial.arm {
            Arm::Solo => (share.index, plan.shares.len()),
            Arm::Together | Arm::Ddp => (rank, trial.shares.len()),
        };
        let head = RunHead {
            schema: SCHEMA,
            rigscale: env!("CARGO_PKG_VERSION").into(),
            trial: trial.name.clone(),
            origin: if plan.share_gpu { Origin::SharedGpu } else { Origin::Measured },
            device: plan.device,
            arm: trial.arm,
            launch: trial.launch,
            world: trial.shares.len(),
            rank,
            share,
            communicator: communicator.into(),
            started: jiff::Timestamp::now(),
            epoch_s: epoch,
            config: plan.config.clone(),
            software: self.software.clone(),
            nccl: plan.nccl.clone(),
            transport: None,
        };
        let file = rank_path(place, rank);
        Assignment {
            launcher: std::process::id(),
            head,
            file,
            data_rank,
            data_world,
            exchange,
            one_host: true,
            gpu_sharers: if plan.share_gpu { plan.shares.len() } else { 1 },
            checkpoints: self.checkpoints && rank == 0 && trial.launch > 0,
            limits: plan.limits.clone(),
        }
    }

    /// Writes `launch.json`.
    pub(super) fn write_findings(&self, end: &Launched) -> Result<(), LaunchError> {
        let findings = match end {
            Launched::Completed => Vec::new(),
            Launched::Failed(finding) => vec![finding.clone()],
            Launched::Interrupted => vec![Finding {
                code: "interrupted".into(),
                severity: Severity::Note,
                addresses: Vec::new(),
                seen: "the user interrupted the run".into(),
                expected: "every trial of the plan runs to its end".into(),
                remedy: "run it again; what was measured so far is kept".into(),
            }],
        };
        let record =
            Findings { schema: SCHEMA, rigscale: env!("CARGO_PKG_VERSION").into(), findings, unjudged: Vec::new() };
        Ok(write_json(&self.folder.launch_findings(), &record)?)
    }
}

/// The memory in which the ranks of a ddp trial keep and reduce their gradients.
pub(super) fn shared_memory(plan: &Plan, trial: &Trial) -> Result<Option<SharedMemory>, LaunchError> {
    let world = trial.shares.len();
    if trial.arm != Arm::Ddp || world == 1 || plan.device == Device::Cuda {
        return Ok(None);
    }
    let lengths = exchanged_lengths(&plan.config, world)?;
    Shm::create(world, &lengths).map(Some).map_err(|source| LaunchError::Exchange { world, source })
}

fn rank_path(place: &Path, rank: usize) -> PathBuf {
    place.join(format!("rank-{rank}.jsonl"))
}
