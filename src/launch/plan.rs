//! From what the user wants to the trials that will run: pure, so that a plan can be printed, saved and repeated.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::record::{Arm, Device, Field, Grade, Limits, NcclSettings, Plan, SCHEMA, TrainConfig, Trial};
use crate::topology::shares_of;
use crate::units::{Bytes, Seconds, Tokens};

use super::shares::Fit;

/// Ranks have met when each has built its model: a minute is ample for any model a machine can hold.
const MEET_LIMIT: Seconds = Seconds(60.0);

/// On a GPU everything runs once before ranks meet: kernels are compiled and products timed where no cache has them.
const MEET_LIMIT_GPU: Seconds = Seconds(180.0);

/// A step may take so many times its estimate before its rank counts as stuck, and never less than [`STEP_LIMIT_MIN`].
const STEP_LIMIT_FACTOR: f64 = 30.0;

/// Below this no rank counts as stuck: a host can be busy for a while.
const STEP_LIMIT_MIN: Seconds = Seconds(15.0);

/// A rank that was told to stop gets so long; Ctrl-C must be done within 2 s.
const STOP_LIMIT: Seconds = Seconds(1.0);

/// On a GPU what runs there ends first, and NCCL's threads with it: seldom more than a second, but a process that is
/// killed with work under way can take the GPU's other users with it.
const STOP_LIMIT_GPU: Seconds = Seconds(4.0);

/// Process start, model building and teardown of one trial, seen on CPU ranks.
const TRIAL_OVERHEAD: Seconds = Seconds(0.8);

/// Fewer steps than this in a trial cannot be judged: after heating and warm-up, ten must be left.
const STEPS_MIN: usize = 24;

/// More steps than this in a trial say nothing new.
const STEPS_MAX: usize = 10_000;

/// What the user wants.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// What computes.
    pub device: Device,
    /// What the verdict may be called.
    pub grade: Grade,
    /// The training; `steps` is chosen here if it is 0.
    pub config: TrainConfig,
    /// Arms to run: all three for a qualification, ddp alone for a plain training.
    pub arms: Vec<Arm>,
    /// Efficiency that has to be reached.
    pub target: f64,
    /// Launches of each arm.
    pub launches: u32,
    /// Launches of the one extension that may follow.
    pub extension: u32,
    /// Time that all launches together may take.
    pub budget: Seconds,
    /// What NCCL is told.
    pub nccl: NcclSettings,
    /// Whether ranks share one GPU.
    pub share_gpu: bool,
    /// Lines for the sheet.
    pub fields: Vec<Field>,
    /// Seed of the order of trials.
    pub order_seed: u64,
}

/// Makes the plan: the same input gives the same plan.
///
/// `step_estimate` is the duration of one step with all shares at work, measured.
#[must_use]
pub fn plan(wanted: &Wanted, fit: &Fit, step_estimate: Seconds, now: jiff::Timestamp) -> Plan {
    let trials = trials(wanted, fit, 1..=wanted.launches);
    let (steps, heating_steps) = steps(wanted, trials.len(), step_estimate);
    let config = TrainConfig { steps, ..wanted.config.clone() };
    let layout = config.bucket_layout();
    let tokens = Tokens((config.batch * config.context * config.accumulate) as u64);
    let flops_per_step = config.shape.flops_per_token(config.context) * tokens.0 as f64;
    let gradient_bytes = Bytes(layout.elements() as u64 * config.reduced_bytes().0);
    let why = sentences(wanted, &config, fit, step_estimate, trials.len());
    Plan {
        schema: SCHEMA,
        rigscale: env!("CARGO_PKG_VERSION").into(),
        created: now,
        device: wanted.device,
        grade: wanted.grade,
        target: wanted.target,
        worlds: fit.worlds.clone(),
        skipped: fit.skipped.clone(),
        shares: fit.shares.clone(),
        config,
        nccl: wanted.nccl.clone(),
        share_gpu: wanted.share_gpu,
        why,
        gradient_bytes,
        flops_per_step,
        step_estimate_s: step_estimate,
        launches: wanted.launches,
        extension: wanted.extension,
        heating_steps,
        order_seed: wanted.order_seed,
        trials,
        limits: limits(wanted.device, step_estimate, steps),
        fields: wanted.fields.clone(),
        tuned: None,
    }
}

/// The same plan with the announced extension appended; its launches follow on.
#[must_use]
pub fn extended(plan: &Plan) -> Plan {
    let mut longer = plan.clone();
    let fit = Fit { shares: plan.shares.clone(), worlds: plan.worlds.clone(), skipped: Vec::new() };
    let arms: Vec<Arm> = [Arm::Solo, Arm::Together, Arm::Ddp]
        .into_iter()
        .filter(|arm| plan.trials.iter().any(|trial| trial.arm == *arm))
        .collect();
    let launches = plan.launches + 1..=plan.launches + plan.extension;
    longer.trials.extend(ordered_trials(&arms, &fit, launches, plan.order_seed));
    longer
}

fn trials(wanted: &Wanted, fit: &Fit, launches: std::ops::RangeInclusive<u32>) -> Vec<Trial> {
    ordered_trials(&wanted.arms, fit, launches, wanted.order_seed)
}

/// Every launch holds every arm once, in an order drawn at random: what drifts over minutes falls on all arms alike,
/// and each launch gives one paired efficiency.
fn ordered_trials(arms: &[Arm], fit: &Fit, launches: std::ops::RangeInclusive<u32>, seed: u64) -> Vec<Trial> {
    let mut all = Vec::new();
    for launch in launches {
        let mut of_launch = launch_trials(arms, fit, launch);
        // a launch's order depends on seed and launch alone, so that an extension does not reorder what ran before
        let mut random = ChaCha8Rng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(u64::from(launch)));
        of_launch.shuffle(&mut random);
        all.extend(of_launch);
    }
    all
}

fn launch_trials(arms: &[Arm], fit: &Fit, launch: u32) -> Vec<Trial> {
    let largest = fit.shares.len();
    let mut trials = Vec::new();
    if arms.contains(&Arm::Solo) {
        let mut used: Vec<usize> = fit.worlds.iter().flat_map(|world| shares_of(*world, largest)).collect();
        used.sort_unstable();
        used.dedup();
        trials.extend(used.into_iter().map(|share| Trial {
            name: format!("launch-{launch}_solo-share-{share}"),
            launch,
            arm: Arm::Solo,
            shares: vec![share],
        }));
    }
    for world in &fit.worlds {
        for (arm, word) in [(Arm::Together, "together"), (Arm::Ddp, "ddp")] {
            // one rank together with nobody is the solo arm again
            if arms.contains(&arm) && (arm == Arm::Ddp || *world > 1) {
                let name = format!("launch-{launch}_{word}-{world}");
                trials.push(Trial { name, launch, arm, shares: shares_of(*world, largest) });
            }
        }
    }
    trials
}

/// Steps of each trial and how many of them are heating, so that all trials fit the budget.
fn steps(wanted: &Wanted, trials: usize, step_estimate: Seconds) -> (usize, usize) {
    let each = (wanted.budget.0 / trials.max(1) as f64 - TRIAL_OVERHEAD.0).max(0.0);
    let fitting = (each / step_estimate.0) as usize;
    let steps = match wanted.config.steps {
        0 => fitting.clamp(STEPS_MIN, STEPS_MAX),
        given => given,
    };
    (steps, (steps / 8).clamp(1, 50).min(steps.saturating_sub(1)))
}

/// How long the launches will take, and whether that is what was wanted.
fn duration(wanted: &Wanted, config: &TrainConfig, step: Seconds, trials: usize) -> String {
    let planned = Seconds((trials as f64 * (TRIAL_OVERHEAD.0 + config.steps as f64 * step.0)).round());
    let beyond = if wanted.config.steps == 0 && planned.0 > wanted.budget.0 * 1.05 {
        format!(", more than the budget of {}: fewer than {STEPS_MIN} steps cannot be judged", wanted.budget)
    } else {
        String::new()
    };
    format!("{trials} trials of {} steps, about {planned}{beyond}", config.steps)
}

/// Limits of the calibration, when nothing is known but the work of a step: a core that does less than a billion
/// operations a second counts as stuck.
pub(super) fn calibration_limits(plan: &Plan, steps: usize) -> Limits {
    const SLOWEST_CORE: f64 = 1e9;
    /// The smallest card of compute capability 8.0 or newer reaches several times this in bf16.
    const SLOWEST_GPU: f64 = 1e12;
    /// The first step on a GPU times every candidate for its matrix products.
    const FIRST_STEP: Seconds = Seconds(60.0);
    if plan.device == Device::Cuda {
        let step = Seconds(plan.flops_per_step / SLOWEST_GPU + FIRST_STEP.0);
        return limits(plan.device, Seconds(step.0 / STEP_LIMIT_FACTOR), steps);
    }
    let cpus = plan.shares.iter().map(|share| share.cpus.len()).min().unwrap_or(1).max(1);
    limits(plan.device, Seconds(plan.flops_per_step / (SLOWEST_CORE * cpus as f64) / STEP_LIMIT_FACTOR), steps)
}

pub(super) fn limits(device: Device, step_estimate: Seconds, steps: usize) -> Limits {
    let step_s = Seconds((step_estimate.0 * STEP_LIMIT_FACTOR).max(STEP_LIMIT_MIN.0));
    // a trial whose steps keep their own limit is slow, not stuck: it is judged, not stopped
    let (meet_s, stop_s) = match device {
        Device::Cpu => (MEET_LIMIT, STOP_LIMIT),
        Device::Cuda => (MEET_LIMIT_GPU, STOP_LIMIT_GPU),
    };
    let trial_s = Seconds(meet_s.0 + step_s.0 * (steps + 1) as f64);
    Limits { meet_s, step_s, trial_s, stop_s }
}

fn sentences(wanted: &Wanted, config: &TrainConfig, fit: &Fit, step: Seconds, trials: usize) -> Vec<String> {
    let cores = fit.shares.first().map_or(0, |share| share.cpus.len());
    let layout = config.bucket_layout();
    let tokens = config.batch * config.context * config.accumulate;
    let bytes = Bytes(layout.elements() as u64 * config.reduced_bytes().0);
    let flops = config.shape.flops_per_token(config.context) * tokens as f64;
    let mut why = vec![
        format!(
            "{} with {} of {} tokens per rank: {:.1} GFLOP of work and {bytes} of gradients a step, {:.0} FLOP per byte exchanged",
            config.model,
            match config.batch * config.accumulate {
                1 => "1 sequence".to_owned(),
                sequences => format!("{sequences} sequences"),
            },
            config.context,
            flops / 1e9,
            flops / bytes.0 as f64,
        ),
        format!("one step took {step} before the plan was fixed, with all ranks at work and no exchange"),
        duration(wanted, config, step, trials),
    ];
    if wanted.device == Device::Cpu {
        why.push(format!(
            "each rank owns {cores} CPU{} in every arm and at every world size",
            if cores == 1 { "" } else { "s" }
        ));
    }
    why
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::launch::shares::cpu_shares;
    use crate::model::preset;
    use crate::record::{DataSource, Precision};
    use crate::topology::Core;

    pub(in crate::launch) fn wanted() -> Wanted {
        Wanted {
            device: Device::Cpu,
            grade: Grade::CpuRanks,
            config: TrainConfig {
                model: "llama-tiny".into(),
                shape: preset("llama-tiny").unwrap().shape,
                batch: 2,
                context: 64,
                recompute: false,
                deterministic: false,
                accumulate: 1,
                steps: 0,
                precision: Precision::F32,
                data: DataSource::Synthetic,
                seed: 1,
                learning_rate: 3e-4,
                weight_decay: 0.1,
                clip_norm: Some(1.0),
                bucket_bytes: Bytes::mebi(25.0),
                first_bucket_bytes: Bytes::mebi(1.0),
                reduce_dtype: None,
                zero: 0,
                bucket_events_every: 8,
                checksum_every: 0,
            },
            arms: vec![Arm::Solo, Arm::Together, Arm::Ddp],
            target: 0.9,
            launches: 3,
            extension: 2,
            budget: Seconds(60.0),
            nccl: NcclSettings::default(),
            share_gpu: false,
            fields: Vec::new(),
            order_seed: 7,
        }
    }

    fn fit(count: usize) -> Fit {
        let cores: Vec<Core> = (0..count).map(|cpu| Core { cpus: vec![cpu], numa_node: Some(0) }).collect();
        cpu_shares(&cores, &[1, 2, 4])
    }

    #[test]
    fn each_launch_holds_each_arm_once_in_its_own_order() {
        let plan = plan(&wanted(), &fit(4), Seconds(0.1), jiff::Timestamp::UNIX_EPOCH);
        let names = |launch: u32| -> Vec<String> {
            let prefix = format!("launch-{launch}_");
            plan.trials.iter().filter_map(|trial| Some(trial.name.strip_prefix(&prefix)?.to_owned())).collect()
        };
        let mut first = names(1);
        assert_ne!(first, names(2), "orders are drawn for each launch");
        first.sort();
        let all = ["ddp-1", "ddp-2", "ddp-4", "solo-share-0", "solo-share-1", "solo-share-2", "solo-share-3"];
        assert_eq!(first, [&all[..], &["together-2", "together-4"]].concat());
        assert_eq!(plan.trials.len(), 3 * 9);
    }

    #[test]
    fn an_extension_keeps_what_ran_before() {
        let plan = plan(&wanted(), &fit(2), Seconds(0.1), jiff::Timestamp::UNIX_EPOCH);
        let longer = extended(&plan);
        assert_eq!(longer.trials[..plan.trials.len()], plan.trials[..]);
        assert_eq!(longer.trials.len() * 3, plan.trials.len() * 5);
        assert!(longer.trials.last().unwrap().launch == 5);
    }

    #[test]
    fn steps_fill_the_budget_within_bounds() {
        let at = |estimate: f64| plan(&wanted(), &fit(2), Seconds(estimate), jiff::Timestamp::UNIX_EPOCH);
        let plan = at(0.05);
        let trials = plan.trials.len() as f64;
        let planned = trials * (TRIAL_OVERHEAD.0 + plan.config.steps as f64 * 0.05);
        assert!(planned <= 60.0 && planned > 50.0, "{planned}");
        assert_eq!(at(100.0).config.steps, STEPS_MIN);
        assert_eq!(at(1e-9).config.steps, STEPS_MAX);
        assert!(plan.heating_steps < plan.config.steps);
    }
}
