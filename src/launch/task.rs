//! What rank 0 assigns to a worker, and that it is what the worker was started for: whoever leads the job can have it train,
//! and nothing else.

use serde::{Deserialize, Serialize};

use crate::record::{Arm, Limits};
use crate::topology::PciAddress;

use super::message::{Assignment, Exchange};
use super::worker::Job;

/// No limit is longer, 30 years: far below what a clock can add.
const LIMIT_S_MAX: f64 = 1e9;

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
    /// Whether this host has the clock of rank 0's.
    pub(super) same_clock: bool,
}

impl Task {
    /// Whether this is what the worker was started for; `exchange` is how it exchanges gradients.
    ///
    /// # Errors
    /// What is not, in words.
    pub(super) fn fits(&self, job: &Job, exchange: Exchange) -> Result<(), String> {
        let Assignment { head, limits, .. } = &self.assignment;
        let (place, wanted) = (&job.place, &job.wanted);
        let (own, data) = ((place.rank, place.world), (self.assignment.data_rank, self.assignment.data_world));
        let sharers = if wanted.share_gpu { place.world } else { 1 };
        let in_memory = matches!(exchange, Exchange::SharedMemory { .. });
        let exchanges = match self.assignment.exchange {
            Exchange::SharedMemory { .. } => in_memory,
            other => other == exchange,
        };
        let cpus: Vec<usize> = job.cores.iter().flat_map(|core| core.cpus.iter().copied()).collect();
        let has_gpu = |gpu: &String| job.gpus.iter().any(|place| place.address.to_string() == *gpu);
        let sampled = |gpu: &String| gpu.parse::<PciAddress>().is_ok();
        let facts = [
            ((head.rank, head.world) == own && data == own, "place"),
            (place.one_host == self.assignment.one_host, "spread of ranks over hosts"),
            (head.device == wanted.device && head.arm == Arm::Ddp && head.config == wanted.config, "training"),
            (head.nccl == wanted.nccl, "setting of NCCL"),
            (exchanges && in_memory == self.memory.is_some(), "exchange of gradients"),
            (self.assignment.gpu_sharers == sharers, "use of GPUs"),
            (head.share.gpu.as_ref().is_none_or(has_gpu) && self.telemetry.iter().all(sampled), "GPU"),
            (!head.share.cpus.is_empty() && head.share.cpus.iter().all(|cpu| cpus.contains(cpu)), "set of cores"),
            (!self.assignment.checkpoints || (job.checkpoints && place.rank == 0), "use of the disk"),
            (is_name(&head.trial), "name for the trial's folder"),
            (are_sane(limits) && head.epoch_s.0.is_finite(), "set of limits"),
        ];
        match facts.into_iter().find(|(fits, _)| !fits) {
            Some((_, what)) => Err(format!("rank 0 assigned another {what} than this worker was started for")),
            None => Ok(()),
        }
    }
}

/// Names of trials are letters, digits and two signs, none of which leads out of a folder.
fn is_name(trial: &str) -> bool {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_".contains(letter);
    !trial.is_empty() && trial.len() < 100 && trial.chars().all(plain)
}

/// Limits become durations.
fn are_sane(limits: &Limits) -> bool {
    let Limits { meet_s, step_s, trial_s, stop_s } = limits;
    let duration = |limit: f64| 0.0 < limit && limit <= LIMIT_S_MAX;
    [meet_s, step_s, stop_s].iter().all(|limit| duration(limit.0)) && 0.0 < trial_s.0 && trial_s.0.is_finite()
}
