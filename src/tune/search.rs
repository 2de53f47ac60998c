//! The search: one knob after another, each by a race of interleaved launches (`race.rs`); then a second look at what won
//! (`confirm.rs`).

use std::collections::BTreeMap;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::record::{Arm, Finding, Interval, Setting, TuneKnob};
use crate::stats::median;
use crate::units::Seconds;

use super::ledger::Ledger;
use super::race::Wins;
use super::space::Space;

/// Launches of the default before anything else, beside a first one that fills caches: they tell the noise.
const FIRST_LAUNCHES: u32 = 3;

/// Settings that are predicted to be so much slower than the best prediction are not launched, but listed: a choice between
/// time and the chance that the model is wrong. The way between GPUs is never left to the model.
const HOPELESS: f64 = 0.3;

/// A launch may take so many times as long as one usually does, and so long at least, before it counts as hung.
const WALL_MANY: f64 = 6.0;
const WALL_LEAST: f64 = 15.0;

/// Passes over all knobs, at most.
const PASSES: usize = 3;

/// One launch that a search wants.
#[derive(Debug, Clone, PartialEq)]
pub struct Ask<'a> {
    /// What is set.
    pub setting: &'a Setting,
    /// `ddp`, or `solo`: every share alone, one after another.
    pub arm: Arm,
    /// Stage of the search.
    pub stage: &'a str,
    /// Round within the stage, from 1.
    pub round: u32,
    /// Why.
    pub why: &'a str,
}

/// What came of a launch.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It trained.
    Step {
        /// Step time; of the arm `solo`, the harmonic mean over shares.
        step: Seconds,
        /// How long the launch took.
        wall: Seconds,
    },
    /// It hung, failed, or summed wrongly.
    Fault {
        /// What was seen.
        finding: Finding,
        /// How long the launch took.
        wall: Seconds,
    },
    /// There is no such launch to be had: a recorded landscape is at its end.
    NoMore,
}

/// Where launches come from: real ranks, or a landscape that was recorded or predicted.
pub trait Site {
    /// What can stop a search.
    type Error;

    /// Launches the training once.
    ///
    /// # Errors
    /// The search cannot go on: interrupted, or nothing can be launched. A setting that fails is no error.
    fn launch(&mut self, ask: &Ask) -> Result<Outcome, Self::Error>;

    /// Says how long the launches that follow may take before they count as hung. A site whose launches cannot hang need not
    /// listen.
    fn limit(&mut self, most: Seconds) {
        let _ = most;
    }
}

/// Limits of a search.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Settings that may be launched.
    pub settings: usize,
    /// Rounds of a race.
    pub rounds: u32,
    /// Pairs of launches after which the confirmation looks, ascending; the error is split over the looks.
    pub looks: Vec<u32>,
    /// Time for all launches, confirmation included.
    pub budget: Seconds,
    /// Seed of every order that is drawn.
    pub seed: u64,
    /// Rounds of the confirmation in which shares also run alone, so that efficiencies are known.
    pub solo_rounds: u32,
    /// Launches that all shares alone take, one after another.
    pub solo_launches: usize,
}

/// How a search ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// No knob promises more.
    Settled,
    /// As many settings as allowed were launched.
    Settings,
    /// The time was over.
    Time,
    /// The default itself cannot be launched.
    DefaultFailed,
}

/// The second look at what won: launches that took no part in the search.
#[derive(Debug, Clone, PartialEq)]
pub struct Confirmed {
    /// What was held against the default.
    pub setting: Setting,
    /// Steps of the default and of the setting, launch by launch.
    pub pairs: Vec<(Seconds, Seconds)>,
    /// Share of the default's step that it saves, with its interval over all looks.
    pub gain: Interval,
    /// Whether the interval lies above 0, and most pairs agree.
    pub accepted: bool,
    /// Whether the time was over before the last look.
    pub cut_short: bool,
}

/// What a search found.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The setting to use: the default, unless another is confirmed to be better.
    pub best: Setting,
    /// The second look; none where nothing looked better.
    pub confirmed: Option<Confirmed>,
    /// Settings that won and then failed in the second look.
    pub failed_again: Vec<Setting>,
    /// Settings that were not launched, as the model holds them for far slower than others, with the step that it predicts.
    pub hopeless: Vec<(Setting, Seconds)>,
    /// Steps of the default, of the best and of the shares alone, in rounds in which all three ran.
    pub beside: Vec<[Seconds; 3]>,
    /// Every setting that was launched.
    pub ledger: Ledger,
    /// How it ended.
    pub ended: Ended,
    /// Launches.
    pub launches: usize,
    /// Time that they took.
    pub spent: Seconds,
}

/// Searches a space. `outlook` predicts the step of a setting, where anything can.
///
/// # Errors
/// As [`Site::launch`].
pub fn search<S: Site>(
    space: &Space,
    limits: &Limits,
    outlook: &dyn Fn(&Setting) -> Option<f64>,
    site: &mut S,
) -> Result<Found, S::Error> {
    let mut hunt = Hunt {
        space,
        limits,
        outlook,
        site,
        ledger: Ledger::default(),
        random: ChaCha8Rng::seed_from_u64(limits.seed),
        launches: 0,
        spent: Seconds(0.0),
        walls: Vec::new(),
        out_of_time: false,
        unsteady: false,
        path: Vec::new(),
        failed_again: Vec::new(),
        hopeless: BTreeMap::new(),
    };
    let default = Setting::default();
    let started = hunt.start(&default)?;
    let winner = if started { hunt.descend(&default)? } else { default.clone() };
    let winner = hunt.without_idle_parts(winner)?;
    let ended = match (started, hunt.out_of_time, limits.settings <= hunt.ledger.tried()) {
        (false, ..) => Ended::DefaultFailed,
        (_, true, _) => Ended::Time,
        (_, _, true) => Ended::Settings,
        _ => Ended::Settled,
    };
    let (confirmed, beside) = match started {
        true => hunt.settle(&default, winner)?,
        false => (None, Vec::new()),
    };
    let best = confirmed.as_ref().filter(|it| it.accepted).map_or(default, |it| it.setting.clone());
    hunt.ledger.fate(&best, "taken".to_owned());
    let Hunt { mut hopeless, ledger, launches, spent, failed_again, .. } = hunt;
    hopeless.retain(|setting, _| ledger.cell(setting).is_none());
    let hopeless = hopeless.into_iter().collect();
    Ok(Found { best, confirmed, failed_again, hopeless, beside, ledger, ended, launches, spent })
}

/// A search under way.
pub(super) struct Hunt<'a, S> {
    space: &'a Space,
    pub(super) limits: &'a Limits,
    outlook: &'a dyn Fn(&Setting) -> Option<f64>,
    site: &'a mut S,
    pub(super) ledger: Ledger,
    pub(super) random: ChaCha8Rng,
    launches: usize,
    pub(super) spent: Seconds,
    /// How long each launch took that trained with gradients exchanged.
    walls: Vec<f64>,
    pub(super) out_of_time: bool,
    /// The default failed twice where it had run: nothing more can be compared.
    unsteady: bool,
    /// Settings that were best before the present one.
    pub(super) path: Vec<Setting>,
    pub(super) failed_again: Vec<Setting>,
    hopeless: BTreeMap<Setting, Seconds>,
}

impl<S: Site> Hunt<'_, S> {
    /// The default, until its noise is known; false if it cannot be launched.
    fn start(&mut self, default: &Setting) -> Result<bool, S::Error> {
        self.ledger.begin(default, "start");
        for round in 0..=FIRST_LAUNCHES {
            let why = if round == 0 { "fills caches, and does not count" } else { "what all else is compared with" };
            match self.steadily(default, "start", round, why)? {
                Outcome::Step { step, .. } if 0 < round => self.ledger.step(default, step),
                Outcome::Step { .. } => {}
                Outcome::Fault { .. } => return Ok(false),
                Outcome::NoMore => break,
            }
        }
        Ok(true)
    }

    /// Launches what others are compared with: if it fails in a way that may pass, once more. Its faults are noted.
    pub(super) fn steadily(
        &mut self,
        setting: &Setting,
        stage: &str,
        round: u32,
        why: &str,
    ) -> Result<Outcome, S::Error> {
        loop {
            let outcome = self.launch(setting, Arm::Ddp, stage, round, why)?;
            match &outcome {
                Outcome::Fault { finding, .. } if !self.ledger.fault(setting, finding) => {}
                _ => return Ok(outcome),
            }
        }
    }

    pub(super) fn launch(
        &mut self,
        setting: &Setting,
        arm: Arm,
        stage: &str,
        round: u32,
        why: &str,
    ) -> Result<Outcome, S::Error> {
        if let Some(usual) = self.usual_wall() {
            let left = (self.limits.budget.0 - self.spent.0).max(2.0 * usual);
            self.site.limit(Seconds((WALL_MANY * usual).min(left).max(WALL_LEAST)));
        }
        let outcome = self.site.launch(&Ask { setting, arm, stage, round, why })?;
        if let Outcome::Step { wall, .. } | Outcome::Fault { wall, .. } = &outcome {
            self.launches += 1;
            self.spent += *wall;
        }
        if let (Outcome::Step { wall, .. }, Arm::Ddp) = (&outcome, arm) {
            self.walls.push(wall.0);
        }
        Ok(outcome)
    }

    /// How long a launch takes that trains: the median, which the first one and a slow one do not move.
    fn usual_wall(&self) -> Option<f64> {
        (!self.walls.is_empty()).then(|| median(&self.walls))
    }

    /// Whether time is left for so many launches more, beside the first look of the confirmation.
    pub(super) fn has_time(&mut self, launches: usize) -> bool {
        let each = self.usual_wall().unwrap_or(0.0);
        let pairs = self.limits.looks.first().map_or(0, |pairs| *pairs as usize);
        let kept = 2 * pairs + self.limits.solo_rounds as usize * self.limits.solo_launches;
        let enough = self.spent.0 + each * (launches + kept) as f64 <= self.limits.budget.0;
        self.out_of_time |= !enough;
        enough
    }

    /// Goes back to the setting that was best before `holder`, which failed where it had run.
    pub(super) fn step_back(&mut self, holder: &Setting) -> Setting {
        self.unsteady |= holder.is_default();
        while let Some(before) = self.path.pop() {
            if self.ledger.cell(&before).is_some_and(|cell| !cell.condemned) {
                return before;
            }
        }
        Setting::default()
    }

    /// Turns each knob in its order, then again from where that led, until nothing moves.
    fn descend(&mut self, default: &Setting) -> Result<Setting, S::Error> {
        let space = self.space;
        let mut best = default.clone();
        for pass in 0..PASSES {
            let before = best.clone();
            for (index, knob) in space.knobs.iter().enumerate() {
                let kept = if pass == 0 { space.knobs.len() - 1 - index } else { 0 };
                best = self.turn(knob, best, kept)?;
            }
            if self.unsteady {
                break;
            }
            if 0 < pass && best == before {
                break;
            }
        }
        Ok(best)
    }

    /// Settings that may still be launched, when `kept` are kept for other knobs.
    pub(super) fn room(&self, kept: usize) -> usize {
        self.limits.settings.saturating_sub(self.ledger.tried() + kept)
    }

    /// The best setting of one knob: a race over a spread of its choices, then over the winner's neighbours.
    fn turn(&mut self, knob: &TuneKnob, mut best: Setting, kept: usize) -> Result<Setting, S::Error> {
        self.note_hopeless(knob, &best);
        let mut challengers = self.first_choices(knob, &best, kept);
        while !challengers.is_empty() && !self.out_of_time && !self.unsteady {
            let Some(winner) = self.race(&knob.name, &best, &challengers, Wins::Ahead)? else {
                best = self.step_back(&best);
                challengers = self.first_choices(knob, &best, kept);
                continue;
            };
            let stays = winner == best;
            if !stays {
                self.path.push(best);
            }
            best = winner;
            challengers = match (knob.ordered, stays) {
                (true, false) => self.neighbours(knob, &best, kept),
                _ => Vec::new(),
            };
        }
        Ok(best)
    }

    /// Choices of a knob that were not compared yet and are not hopeless.
    fn fresh(&self, knob: &TuneKnob, base: &Setting) -> Vec<Setting> {
        let all = std::iter::once("").chain(knob.choices.iter().map(String::as_str));
        let all: Vec<Setting> = all.map(|choice| base.with(&knob.name, choice)).collect();
        let predicted = |setting: &Setting| (self.outlook)(setting);
        let least = all.iter().filter_map(predicted).fold(f64::INFINITY, f64::min);
        let open = |setting: &Setting| {
            let told = self.ledger.cell(setting).is_some_and(|cell| cell.compared || cell.condemned);
            setting != base && !told && !self.is_hopeless(knob, setting, least)
        };
        all.into_iter().filter(open).collect()
    }

    /// Whether the model holds a choice for far slower than the best of its knob.
    fn is_hopeless(&self, knob: &TuneKnob, setting: &Setting, least: f64) -> bool {
        knob.name != "transport" && (self.outlook)(setting).is_some_and(|step| least * (1.0 + HOPELESS) < step)
    }

    /// Notes which choices of a knob the model keeps from being launched.
    fn note_hopeless(&mut self, knob: &TuneKnob, base: &Setting) {
        let all: Vec<Setting> = knob.choices.iter().map(|choice| base.with(&knob.name, choice)).collect();
        let predicted = |setting: &Setting| (self.outlook)(setting);
        let least = all.iter().chain([base]).filter_map(predicted).fold(f64::INFINITY, f64::min);
        let steps = all.into_iter().filter(|setting| self.is_hopeless(knob, setting, least));
        let steps: Vec<(Setting, Seconds)> =
            steps.filter_map(|setting| Some((setting.clone(), Seconds(predicted(&setting)?)))).collect();
        self.hopeless.extend(steps);
    }

    fn first_choices(&self, knob: &TuneKnob, base: &Setting, kept: usize) -> Vec<Setting> {
        let room = self.room(kept);
        let mut fresh = self.fresh(knob, base);
        let count = if knob.ordered { room.min(3) } else { room };
        let predictions: Option<Vec<f64>> = fresh.iter().map(|setting| (self.outlook)(setting)).collect();
        match predictions {
            // the model knows which ends of the range are hopeless; within what it cannot tell apart, all are alike
            Some(_) => {
                let key = |setting: &Setting| (self.outlook)(setting).unwrap_or(f64::INFINITY);
                fresh.sort_by(|one, other| key(one).total_cmp(&key(other)));
                fresh.truncate(count);
                fresh
            }
            None => {
                let count = count.min(fresh.len());
                (0..count).map(|at| fresh[(2 * at + 1) * fresh.len() / (2 * count)].clone()).collect()
            }
        }
    }

    /// The nearest choices on either side that were not launched yet.
    fn neighbours(&self, knob: &TuneKnob, base: &Setting, kept: usize) -> Vec<Setting> {
        let Some(place) = knob.choices.iter().position(|choice| choice == base.of(&knob.name)) else {
            return Vec::new();
        };
        let fresh = self.fresh(knob, base);
        let open = |choice: &String| fresh.contains(&base.with(&knob.name, choice));
        let below = knob.choices[..place].iter().rev().find(|choice| open(choice));
        let above = knob.choices[place + 1..].iter().find(|choice| open(choice));
        let both = below.into_iter().chain(above).map(|choice| base.with(&knob.name, choice));
        both.take(self.room(kept)).collect()
    }
}
