//! Launches of real ranks, each kept in the log before the search sees it; those that the log holds are not run again.

use std::collections::VecDeque;
use std::fs;
use std::io::IsTerminal;
use std::sync::atomic::AtomicBool;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::launch::{LaunchError, Launched};
use crate::record::{
    Arm, Finding, Plan, RankFile, RecordError, Severity, Trial, TuneTrial, TuneWriter, read_rank_file, tune_trials,
};
use crate::stats::{mean, median};
use crate::tune::{Ask, Outcome, Site, rounded};
use crate::units::Seconds;

use super::setup::Setup;
use super::{CliError, Output};

/// The mean loss of so many steps may differ by this share from that of the default's first launch. Sums in another order
/// round differently, and that grows from step to step: after some 150 steps four ranks' losses of one step were seen to
/// differ by 2.6 %, one way and the other.
const LOSS_TOLERANCE: f64 = 0.02;

/// Steps over which that mean is taken.
const LOSS_WINDOW: usize = 50;

/// The gradient norm of the first step, before anything could grow, may differ by this share.
const NORM_TOLERANCE: f64 = 0.02;

/// Ranks of a launch after the first have met by then: a setting with which they do not hangs.
const MEET_LIMIT: Seconds = Seconds(45.0);

/// Why a search stops.
pub(super) enum Halt {
    /// The user interrupted.
    Interrupted,
    /// Something broke, or the folder is of another search.
    Failed(Box<CliError>),
}

impl<E: Into<CliError>> From<E> for Halt {
    fn from(error: E) -> Self {
        Self::Failed(Box::new(error.into()))
    }
}

/// Real ranks as a site.
pub(super) struct Live<'a> {
    setup: &'a Setup,
    stop: &'a AtomicBool,
    out: &'a Output,
    remark: &'a dyn Fn(&str),
    recorded: VecDeque<TuneTrial>,
    log: TuneWriter,
    next: usize,
    /// Loss and gradient norm of each step of the default's first launch.
    reference: Option<Vec<(f64, f64)>>,
    bar: Option<ProgressBar>,
    spent: f64,
    /// Launches of a sweep.
    whole: Option<usize>,
}

impl<'a> Live<'a> {
    /// Goes on with the log of the folder.
    ///
    /// # Errors
    /// The log cannot be opened.
    pub(super) fn new(
        setup: &'a Setup,
        stop: &'a AtomicBool,
        out: &'a Output,
        remark: &'a dyn Fn(&str),
    ) -> Result<Self, CliError> {
        let log = TuneWriter::go_on(&tune_trials(setup.session.folder.path()))?;
        let bar = (!out.quiet && std::io::stderr().is_terminal()).then(|| {
            let target = ProgressDrawTarget::stderr_with_hz(10);
            let bar = ProgressBar::with_draw_target(Some(setup.budget.0.ceil() as u64), target);
            if let Ok(style) = ProgressStyle::with_template("{bar:30.cyan/black.dim} {percent:>3} %  {msg}") {
                bar.set_style(style.progress_chars("━╸─"));
            }
            bar
        });
        Ok(Self {
            setup,
            stop,
            out,
            remark,
            recorded: setup.recorded.clone().into(),
            log,
            next: 0,
            reference: None,
            bar,
            spent: 0.0,
            whole: None,
        })
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        self.bar.iter().for_each(ProgressBar::finish_and_clear);
    }

    /// Shows what is launched, and the most that it can still take.
    fn show(&self, ask: &Ask) {
        let left = match self.whole {
            // a sweep ends when all is launched, a search with its time
            Some(whole) => {
                let each = self.spent / self.next.max(1) as f64;
                format!("of {whole}, about {} left", Seconds((each * whole.saturating_sub(self.next) as f64).round()))
            }
            None => format!("at most {} left", Seconds((self.setup.budget.0 - self.spent).max(0.0).round())),
        };
        let arm = if ask.arm == Arm::Solo { ", each share alone" } else { "" };
        let text = format!("{}{arm} ({}, round {}), {left}", ask.setting, ask.stage, ask.round);
        match &self.bar {
            Some(bar) => {
                bar.set_position(if self.whole.is_some() { self.next as u64 } else { self.spent as u64 });
                bar.set_message(text);
            }
            None => self.out.remark(format!("launch {}: {text}", self.next + 1)),
        }
    }

    /// Begins a sweep of so many launches behind those of the log.
    pub(super) fn go_on_to(&mut self, whole: usize) {
        self.spent = self.recorded.iter().map(|trial| trial.wall_s.0).sum();
        self.next = self.recorded.len();
        self.recorded.clear();
        self.whole = Some(whole);
        self.bar.iter().for_each(|bar| bar.set_length(whole as u64));
    }

    /// One launch of a sweep; its rank files go once it has succeeded.
    ///
    /// # Errors
    /// As [`Live::run`].
    pub(super) fn sweep(&mut self, ask: &Ask) -> Result<Outcome, Halt> {
        if self.reference.is_none() {
            self.recall();
        }
        let (index, keep) = (self.next, self.reference.is_none());
        let outcome = self.run(ask)?;
        if matches!(outcome, Outcome::Step { .. }) && !keep {
            let name = format!("{index:04}_{}_ddp", ask.stage);
            // what cannot be removed is only in the way
            let _ = fs::remove_dir_all(self.setup.session.folder.trial(&name));
        }
        Ok(outcome)
    }

    /// What the log holds of this launch; none where it is still to be run.
    fn replay(&mut self, ask: &Ask) -> Result<Option<Outcome>, Halt> {
        let Some(trial) = self.recorded.pop_front() else { return Ok(None) };
        if (&trial.setting, trial.arm, trial.stage.as_str(), trial.round)
            != (ask.setting, ask.arm, ask.stage, ask.round)
        {
            let place = self.setup.session.folder.path().display();
            let problem = format!(
                "{place}/trials.jsonl: launch {} is of {} ({}), where this search launches {} ({}): choose another -o",
                trial.index, trial.setting, trial.stage, ask.setting, ask.stage
            );
            return Err(CliError::Usage(problem).into());
        }
        self.next = trial.index + 1;
        self.spent += trial.wall_s.0;
        Ok(Some(outcome(&trial)))
    }

    /// Runs the ranks of a launch and keeps what came of it.
    pub(super) fn run(&mut self, ask: &Ask) -> Result<Outcome, Halt> {
        self.show(ask);
        let begun = std::time::Instant::now();
        let applied = self.setup.applied(ask.setting)?;
        let mut plan = self.setup.plan_with(&applied);
        if self.reference.is_some() {
            // kernels and plans are cached by then
            plan.limits.meet_s = Seconds(plan.limits.meet_s.0.min(MEET_LIMIT.0));
        }
        let stem = format!("{:04}_{}", self.next, ask.stage);
        let result = match ask.arm {
            Arm::Solo => self.solo(&plan, &stem)?,
            _ => self.together(&plan, &stem)?,
        };
        let (step_s, finding) = match result {
            Ok(step) => (Some(step), None),
            Err(finding) => (None, Some(finding)),
        };
        let trial = TuneTrial {
            index: self.next,
            setting: ask.setting.clone(),
            arm: ask.arm,
            stage: ask.stage.into(),
            round: ask.round,
            why: ask.why.into(),
            step_s: step_s.map(|step| rounded(step, 1e-7)),
            wall_s: rounded(Seconds(begun.elapsed().as_secs_f64()), 1e-3),
            finding,
        };
        self.log.trial(&trial)?;
        self.next += 1;
        self.spent += trial.wall_s.0;
        if let Some(finding) = &trial.finding {
            self.out.remark(format!("  {} failed: {}", trial.setting, finding.seen));
        }
        Ok(outcome(&trial))
    }

    /// The step with gradients exchanged.
    fn together(&mut self, plan: &Plan, stem: &str) -> Result<Result<Seconds, Finding>, Halt> {
        let shares = (0..plan.shares.len()).collect();
        let trial = Trial { name: format!("{stem}_ddp"), launch: 1, arm: Arm::Ddp, shares };
        let ranks = match self.ranks(plan, &trial)? {
            Ok(ranks) => ranks,
            Err(finding) => return Ok(Err(finding)),
        };
        let trace = trace(&ranks);
        let wrong = match &self.reference {
            Some(reference) => disagreement(reference, &trace),
            None => None,
        };
        if let Some(seen) = ranks_disagree(&ranks).or(wrong) {
            return Ok(Err(wrong_sum(&trial.name, seen)));
        }
        self.reference.get_or_insert(trace);
        Ok(Ok(step_of(&ranks, self.setup.head.warm_up_steps)))
    }

    /// The harmonic mean over the shares of the step of each alone: the step of a share of mean rate.
    fn solo(&self, plan: &Plan, stem: &str) -> Result<Result<Seconds, Finding>, Halt> {
        let mut rates = Vec::new();
        for share in 0..plan.shares.len() {
            let trial = Trial { name: format!("{stem}_solo-{share}"), launch: 1, arm: Arm::Solo, shares: vec![share] };
            match self.ranks(plan, &trial)? {
                Ok(ranks) => rates.push(1.0 / step_of(&ranks, self.setup.head.warm_up_steps).0),
                Err(finding) => return Ok(Err(finding)),
            }
        }
        Ok(Ok(Seconds(1.0 / mean(&rates))))
    }

    /// Runs one trial; its rank files, or the finding where it failed.
    fn ranks(&self, plan: &Plan, trial: &Trial) -> Result<Result<Vec<RankFile>, Finding>, Halt> {
        let folder = &self.setup.session.folder;
        let place = folder.trial(&trial.name);
        // an interrupted launch is run again from its start
        if place.exists() {
            fs::remove_dir_all(&place).map_err(|source| RecordError::File {
                attempt: "remove",
                path: place.clone(),
                source,
            })?;
        }
        let launcher = self.setup.session.launcher(self.stop, self.remark);
        let read = || (0..trial.shares.len()).map(|rank| read_rank_file(&folder.rank(&trial.name, rank)));
        match launcher.one(plan, trial, &mut |_| {}) {
            Ok(Launched::Completed) => Ok(Ok(read().collect::<Result<Vec<_>, _>>()?)),
            Ok(Launched::Interrupted) => Err(Halt::Interrupted),
            Ok(Launched::Failed(finding)) => Ok(Err(finding)),
            // the default was launched: what this setting asks for cannot be
            Err(error @ LaunchError::Input { .. }) if self.reference.is_some() => {
                Ok(Err(refused(&trial.name, crate::cli::error::chain(&error))))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Reads the default's first launch again, where the log held it.
    fn recall(&mut self) {
        let Some(first) = self.setup.recorded.iter().find(|trial| trial.setting.is_default() && trial.step_s.is_some())
        else {
            return;
        };
        let name = format!("{:04}_{}_ddp", first.index, first.stage);
        let folder = &self.setup.session.folder;
        let ranks = (0..self.setup.base.shares.len()).map(|rank| read_rank_file(&folder.rank(&name, rank)));
        // a folder that was cleared leaves the next launch as the reference
        self.reference = ranks.collect::<Result<Vec<_>, _>>().ok().map(|ranks| trace(&ranks));
    }
}

impl Site for Live<'_> {
    type Error = Halt;

    fn launch(&mut self, ask: &Ask) -> Result<Outcome, Halt> {
        if let Some(outcome) = self.replay(ask)? {
            return Ok(outcome);
        }
        if self.reference.is_none() {
            self.recall();
        }
        self.run(ask)
    }
}

fn outcome(trial: &TuneTrial) -> Outcome {
    let wall = trial.wall_s;
    match (&trial.finding, trial.step_s) {
        (Some(finding), _) => Outcome::Fault { finding: finding.clone(), wall },
        (None, Some(step)) => Outcome::Step { step, wall },
        (None, None) => Outcome::NoMore,
    }
}

/// The median over the counted steps of the mean over ranks.
fn step_of(ranks: &[RankFile], warm_up: usize) -> Seconds {
    let steps = ranks.iter().map(|rank| rank.steps.len()).min().unwrap_or(0);
    let of_step = |step: usize| mean(&ranks.iter().map(|rank| rank.steps[step].step_s.0).collect::<Vec<_>>());
    Seconds(median(&(warm_up.min(steps - 1)..steps).map(of_step).collect::<Vec<_>>()))
}

/// Mean loss and gradient norm of each step.
fn trace(ranks: &[RankFile]) -> Vec<(f64, f64)> {
    let steps = ranks.iter().map(|rank| rank.steps.len()).min().unwrap_or(0);
    let over = |step: usize, of: fn(&crate::record::Step) -> f64| {
        mean(&ranks.iter().map(|rank| of(&rank.steps[step])).collect::<Vec<_>>())
    };
    (0..steps).map(|step| (over(step, |it| it.loss), over(step, |it| it.grad_norm))).collect()
}

/// Whether ranks that exchange gradients ended with different weights.
fn ranks_disagree(ranks: &[RankFile]) -> Option<String> {
    let hash = |rank: &RankFile| rank.end.as_ref().and_then(|end| end.parameters_sha256.clone());
    let differ = ranks.windows(2).any(|pair| hash(&pair[0]) != hash(&pair[1]));
    differ.then(|| "the ranks ended with different weights".to_owned())
}

/// In what a training differs from the same training with everything left alone.
fn disagreement(reference: &[(f64, f64)], found: &[(f64, f64)]) -> Option<String> {
    // what is no number is far from all
    let near = |one: f64, other: f64, tolerance: f64| (one - other).abs() <= tolerance * other.abs().max(1e-9);
    let both = || reference.iter().zip(found).enumerate();
    let norm = both().take(1).find(|(_, (wanted, got))| !near(got.1, wanted.1, NORM_TOLERANCE));
    if let Some((step, (wanted, got))) = norm {
        return Some(format!("the gradient norm of step {step} is {}, with everything left alone {}", got.1, wanted.1));
    }
    let losses = |all: &[(f64, f64)]| mean(&all.iter().map(|(loss, _)| *loss).collect::<Vec<_>>());
    let windows = reference.chunks(LOSS_WINDOW).zip(found.chunks(LOSS_WINDOW)).enumerate();
    windows.filter(|(_, (wanted, got))| wanted.len() == got.len()).find_map(|(window, (wanted, got))| {
        let (wanted, got, first) = (losses(wanted), losses(got), window * LOSS_WINDOW);
        (!near(got, wanted, LOSS_TOLERANCE))
            .then(|| format!("the mean loss from step {first} on is {got:.4}, with everything left alone {wanted:.4}"))
    })
}

fn wrong_sum(trial: &str, seen: String) -> Finding {
    Finding {
        code: "tune-wrong-sum".into(),
        severity: Severity::Fault,
        addresses: vec![trial.into()],
        seen,
        expected: "the same training from the same seed, whatever the setting, to within rounding".into(),
        remedy:
            "Do not use this setting on this machine; if it is one that NCCL documents as safe, report it with the \
                 rank files of the trial."
                .into(),
    }
}

fn refused(trial: &str, seen: String) -> Finding {
    Finding {
        code: "tune-refused".into(),
        severity: Severity::Note,
        addresses: vec![trial.into()],
        seen,
        expected: "a training that fits the machine with this setting too".into(),
        remedy: "none is needed: the search goes on without it".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_sum_is_seen_and_rounding_is_not() {
        let reference: Vec<(f64, f64)> = (0..20).map(|step| (7.0 - 0.01 * f64::from(step), 2.5)).collect();
        let rounded: Vec<(f64, f64)> = reference.iter().map(|(loss, norm)| (loss * 1.002, norm * 0.999)).collect();
        assert_eq!(disagreement(&reference, &rounded), None);
        let halved: Vec<(f64, f64)> = reference.iter().map(|(loss, norm)| (*loss, norm * 0.5)).collect();
        assert!(disagreement(&reference, &halved).unwrap().contains("gradient norm of step 0"));
        let reference: Vec<(f64, f64)> = (0..120).map(|step| (7.0 - 0.01 * f64::from(step), 2.5)).collect();
        let grown = |step: usize| 1.0 + 0.0002 * step as f64 * if step.is_multiple_of(2) { 1.0 } else { -1.0 };
        let chaotic: Vec<_> = reference.iter().enumerate().map(|(at, one)| (one.0 * grown(at), one.1)).collect();
        assert_eq!(disagreement(&reference, &chaotic), None, "single losses drift apart after many steps");
        let mut late = reference.clone();
        late[60..].iter_mut().for_each(|one| one.0 *= 1.05);
        assert!(disagreement(&reference, &late).unwrap().contains("mean loss from step 50 on"));
        let mut nothing = reference.clone();
        nothing[3].0 = f64::NAN;
        assert!(disagreement(&reference, &nothing).is_some(), "what is no number agrees with nothing");
    }
}
