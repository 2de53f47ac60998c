//! Whether plan and rank files can be reckoned with at all: what no flag can make good is an error here.

use std::collections::{BTreeMap, BTreeSet};

use crate::record::{Arm, Bucket, Plan, RankFile, Step, TrainConfig, Trial};
use crate::units::Seconds;

use super::AnalyzeError;

/// No step is shorter than this, and none as long as [`DURATION_MAX`]: what lies outside is no duration, and rates made
/// of it would be no numbers.
const DURATION_MIN: Seconds = Seconds(1e-9);

/// A day.
const DURATION_MAX: Seconds = Seconds(86_400.0);

/// Moments of a trial lie within three years of its beginning.
const MOMENT_MAX: f64 = 1e8;

/// Counts up to here are exact as floating-point numbers, and so are their sums.
const TOKENS_MAX: u64 = 1 << f64::MANTISSA_DIGITS;

/// A rate of floating-point operations or a learning rate above this is a slip of the pen.
const NUMBER_MAX: f64 = 1e30;

/// The plan can be carried out, and its numbers make sense.
pub(super) fn plan(run: &str, plan: &Plan) -> Result<(), AnalyzeError> {
    if plan.trials.is_empty() {
        return Err(AnalyzeError::NoTrials { run: run.into() });
    }
    if !(0.0 < plan.target && plan.target < 2.0) {
        return Err(AnalyzeError::Target { run: run.into(), target: plan.target });
    }
    numbers(run, plan)?;
    counts(run, plan)?;
    trials(plan)
}

/// Every floating-point number of the plan but the target.
fn numbers(run: &str, plan: &Plan) -> Result<(), AnalyzeError> {
    let (config, limits) = (&plan.config, &plan.limits);
    let positive = [
        ("flops_per_step", plan.flops_per_step),
        ("step_estimate_s", plan.step_estimate_s.0),
        ("limits.meet_s", limits.meet_s.0),
        ("limits.step_s", limits.step_s.0),
        ("limits.trial_s", limits.trial_s.0),
        ("limits.stop_s", limits.stop_s.0),
        ("config.clip_norm", config.clip_norm.unwrap_or(1.0)),
    ];
    for (field, found) in positive {
        if !(0.0 < found && found <= NUMBER_MAX) {
            return Err(wrong(run, field, found, "positive and finite"));
        }
    }
    for (field, found) in [("config.learning_rate", config.learning_rate), ("config.weight_decay", config.weight_decay)]
    {
        if !(0.0..=NUMBER_MAX).contains(&found) {
            return Err(wrong(run, field, found, "finite and not negative"));
        }
    }
    Ok(())
}

/// Counts whose products and sums are formed later.
fn counts(run: &str, plan: &Plan) -> Result<(), AnalyzeError> {
    let config = &plan.config;
    let ranks = plan.shares.len().max(1);
    let counts = [
        ("config.batch", config.batch),
        ("config.context", config.context),
        ("config.accumulate", config.accumulate),
        ("config.steps", config.steps),
    ];
    if let Some((field, found)) = counts.iter().find(|(_, count)| *count == 0) {
        return Err(wrong(run, field, found, "at least 1"));
    }
    let all = counts.iter().map(|(_, count)| *count).chain([ranks]);
    let tokens = all.map(|count| count as u64).try_fold(1_u64, u64::checked_mul);
    if tokens.is_none_or(|tokens| tokens > TOKENS_MAX) {
        let found = format!("{} · {} · {}", config.batch, config.context, config.accumulate);
        let expected = format!("so small that {} steps of {ranks} ranks stay below 2^53 tokens", config.steps);
        return Err(wrong(run, "config.batch · config.context · config.accumulate", found, &expected));
    }
    if plan.heating_steps >= config.steps {
        let expected = format!("less than config.steps, which is {}", config.steps);
        return Err(wrong(run, "heating_steps", plan.heating_steps, &expected));
    }
    Ok(())
}

fn wrong(run: &str, field: &str, found: impl ToString, expected: &str) -> AnalyzeError {
    AnalyzeError::Field { run: run.into(), field: field.into(), found: found.to_string(), expected: expected.into() }
}

fn trials(plan: &Plan) -> Result<(), AnalyzeError> {
    let mut names = BTreeSet::new();
    let mut places = BTreeSet::new();
    for trial in &plan.trials {
        let wrong = |what: String| Err(AnalyzeError::Plan { trial: trial.name.clone(), what });
        if let Some(share) = trial.shares.iter().find(|share| **share >= plan.shares.len()) {
            return wrong(format!("uses share {share} of {}", plan.shares.len()));
        }
        let distinct: BTreeSet<usize> = trial.shares.iter().copied().collect();
        if distinct.is_empty() || distinct.len() < trial.shares.len() {
            return wrong(format!("uses the shares {:?}: at least one, and none twice", trial.shares));
        }
        if trial.arm == Arm::Solo && distinct.len() > 1 {
            return wrong(format!("is solo and uses {} shares", distinct.len()));
        }
        if !names.insert(trial.name.as_str()) {
            return wrong("stands there twice".into());
        }
        if !places.insert((trial.launch, trial.arm, distinct)) {
            return wrong("repeats an arm on the same shares in the same launch".into());
        }
    }
    Ok(())
}

/// Tokens that one rank trains on in one step. A checked plan's product does not overflow.
pub(super) fn tokens_per_step(config: &TrainConfig) -> u64 {
    (config.batch as u64).saturating_mul(config.context as u64).saturating_mul(config.accumulate as u64)
}

/// Rank files must belong to the trial, and their steps must have durations and the planned work.
pub(super) fn ranks(trial: &Trial, ranks: &BTreeMap<usize, RankFile>, tokens: u64) -> Result<(), AnalyzeError> {
    for (rank, file) in ranks {
        let head = &file.head;
        let found = (head.trial.as_str(), head.arm, head.launch, head.world, head.rank);
        if found != (trial.name.as_str(), trial.arm, trial.launch, trial.shares.len(), *rank) || *rank >= head.world {
            let what = format!("it is rank {} of {} in {} (launch {})", head.rank, head.world, head.trial, head.launch);
            return Err(AnalyzeError::Stranger { trial: trial.name.clone(), rank: *rank, what });
        }
        let wrong = |step, what| AnalyzeError::Step { trial: trial.name.clone(), rank: *rank, step, what };
        for step in &file.steps {
            check_step(step, tokens).map_err(|what| wrong(step.index, what))?;
        }
        for bucket in &file.buckets {
            check_bucket(bucket).map_err(|what| wrong(bucket.step, what))?;
        }
    }
    Ok(())
}

fn check_step(step: &Step, tokens: u64) -> Result<(), String> {
    if !(DURATION_MIN <= step.step_s && step.step_s <= DURATION_MAX) {
        return Err(format!("step_s is {:e}, which is no duration between a nanosecond and a day", step.step_s.0));
    }
    if step.tokens.0 != tokens {
        return Err(format!("tokens is {}, the plan's batch, context and accumulate make {tokens}", step.tokens.0));
    }
    let phases = [step.forward_s, step.backward_s, step.exposed_s, step.optimizer_s];
    // their sign is the reader's business; here they only must not blow up a sum
    if let Some(phase) = phases.iter().find(|phase| phase.0.is_nan() || phase.0.abs() > DURATION_MAX.0) {
        return Err(format!("a time is {}", phase.0));
    }
    match is_moment(step.start_s) {
        true => Ok(()),
        false => Err(format!("start_s is {}, which is no moment of a trial", step.start_s.0)),
    }
}

fn check_bucket(bucket: &Bucket) -> Result<(), String> {
    match [bucket.ready_s, bucket.start_s, bucket.end_s].into_iter().all(is_moment) {
        true => Ok(()),
        false => Err(format!("a moment of bucket {} is no moment of a trial", bucket.index)),
    }
}

fn is_moment(moment: Seconds) -> bool {
    moment.0.abs() <= MOMENT_MAX
}
