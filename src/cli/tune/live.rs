//! Launches of real ranks, each kept in the log before the search sees it; those that the log holds are not run again.

use std::fs;
use std::io::IsTerminal;
use std::sync::atomic::AtomicBool;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::launch::{LaunchError, Launched};
use crate::record::{
    Arm, Finding, Plan, RankFile, RecordError, Setting, Trial, TuneTrial, TuneWriter, read_rank_file, tune_trials,
};
use crate::stats::mean;
use crate::tune::{Ask, Outcome, Site, rounded};
use crate::units::Seconds;

use super::checked::{disagreement, ignored, not_taken, ranks_disagree, refused, step_of, trace, wrong_sum};
use super::replay::{Held, Replay};
use super::setup::Setup;
use super::{CliError, Output};

/// Ranks of a launch after the first have met by then: a setting with which they do not hangs.
const MEET_LIMIT: Seconds = Seconds(45.0);

/// Why a search stops.
pub(super) enum Halt {
    /// The user interrupted.
    Interrupted,
    /// The log led astray: the search begins again from its start, before anything was launched.
    Again,
    /// Something broke.
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
    replay: Replay,
    log: TuneWriter,
    next: usize,
    /// Loss and gradient norm of each step of the default's first launch.
    reference: Option<Vec<(f64, f64)>>,
    bar: Option<ProgressBar>,
    spent: f64,
    /// Time that this call's own launches took, and how many they were.
    own: (f64, usize),
    /// Launches of a sweep.
    whole: Option<usize>,
    /// How long a launch may take.
    most: Option<Seconds>,
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
            if let Ok(style) = ProgressStyle::with_template("{bar:30.cyan/black.dim} {percent:>3} %  {wide_msg}") {
                bar.set_style(style.progress_chars("━╸─"));
            }
            bar
        });
        let before = setup.recorded.len();
        if 0 < before {
            out.remark(format!("going on with a search of {before} launches, begun {}", setup.head.started));
        }
        Ok(Self {
            setup,
            stop,
            out,
            remark,
            replay: Replay::of(&setup.recorded),
            log,
            next: before,
            reference: None,
            bar,
            spent: 0.0,
            own: (0.0, 0),
            whole: None,
            most: None,
        })
    }

    /// Begins the same search again, without what of its log led astray.
    pub(super) fn again(&mut self) {
        self.replay = self.replay.again();
        self.spent = 0.0;
    }

    /// A remark that the bar does not overwrite.
    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.out.remark(text)),
            None => self.out.remark(text),
        }
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        self.bar.iter().for_each(ProgressBar::finish_and_clear);
    }

    /// Shows what is launched, and the most that it can still take.
    fn show(&self, ask: &Ask) {
        let left = match self.whole {
            // a sweep ends when all is launched, a search with its time
            Some(whole) => match self.own {
                (_, 0) => format!("of {whole}"),
                (spent, count) => {
                    let left = spent / count as f64 * whole.saturating_sub(self.next) as f64;
                    format!("of {whole}, about {} left", Seconds(left.round()))
                }
            },
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
        self.whole = Some(whole);
        self.bar.iter().for_each(|bar| bar.set_length(whole as u64));
    }

    /// One launch of a sweep; its rank files go once it has succeeded.
    ///
    /// # Errors
    /// As [`Live::run`].
    pub(super) fn sweep(&mut self, ask: &Ask) -> Result<Outcome, Halt> {
        self.refer(ask)?;
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
    fn replayed(&mut self, ask: &Ask) -> Result<Option<Outcome>, Halt> {
        match self.replay.next(&self.setup.recorded, ask) {
            Held::Launch(at) => {
                let trial = &self.setup.recorded[at];
                self.spent += trial.wall_s.0;
                Ok(Some(outcome(trial)))
            }
            Held::Nothing => Ok(None),
            Held::Astray => Err(Halt::Again),
        }
    }

    /// Makes sure that there is a launch of the default to compare with, unless this one is to be it.
    fn refer(&mut self, ask: &Ask) -> Result<(), Halt> {
        let is_one = |ask: &Ask| ask.setting.is_default() && ask.arm == Arm::Ddp;
        if self.reference.is_none() {
            self.recall();
        }
        if self.reference.is_some() || is_one(ask) {
            return Ok(());
        }
        let (default, why) = (Setting::default(), "the rank files of its earlier launches are gone");
        let again = Ask { setting: &default, arm: Arm::Ddp, stage: "reference", round: 0, why };
        match self.run(&again)? {
            Outcome::Fault { finding, .. } => {
                let seen = finding.seen;
                Err(CliError::Usage(format!("the default failed when it was launched again to compare with: {seen}"))
                    .into())
            }
            _ => Ok(()),
        }
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
            if let Some(most) = self.most {
                let limits = &mut plan.limits;
                for limit in [&mut limits.meet_s, &mut limits.step_s, &mut limits.trial_s] {
                    limit.0 = limit.0.min(most.0);
                }
            }
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
        self.own = (self.own.0 + trial.wall_s.0, self.own.1 + 1);
        if let Some(finding) = &trial.finding {
            self.say(&format!("  {} failed: {}", trial.setting, finding.seen));
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
        if let Some(seen) = not_taken(&plan.nccl, &ranks) {
            return Ok(Err(ignored(&trial.name, seen)));
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
        let remark = |text: &str| match &self.bar {
            Some(bar) => bar.suspend(|| (self.remark)(text)),
            None => (self.remark)(text),
        };
        let launcher = self.setup.session.launcher(self.stop, &remark);
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

    /// Reads the first launch of the default again of which the folder still holds the rank files.
    fn recall(&mut self) {
        let folder = &self.setup.session.folder;
        let read = |trial: &TuneTrial| {
            let name = format!("{:04}_{}_ddp", trial.index, trial.stage);
            let ranks = (0..self.setup.base.shares.len()).map(|rank| read_rank_file(&folder.rank(&name, rank)));
            ranks.collect::<Result<Vec<_>, _>>().ok()
        };
        let of_default = |trial: &&TuneTrial| trial.setting.is_default() && trial.arm == Arm::Ddp;
        let mut launches = self.setup.recorded.iter().filter(of_default).filter(|trial| trial.step_s.is_some());
        self.reference = launches.find_map(read).map(|ranks| trace(&ranks));
    }
}

impl Site for Live<'_> {
    type Error = Halt;

    fn limit(&mut self, most: Seconds) {
        self.most = Some(most);
    }

    fn launch(&mut self, ask: &Ask) -> Result<Outcome, Halt> {
        if let Some(outcome) = self.replayed(ask)? {
            return Ok(outcome);
        }
        self.refer(ask)?;
        if self.own.1 == 0 {
            let aside = self.setup.recorded.len() - self.replay.taken();
            if 0 < aside {
                self.say(&format!("{aside} of the launches that are there belong to other limits and take no part"));
            }
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
