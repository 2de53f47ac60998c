//! The search: one knob after another, each by a race of interleaved launches; then a second look at what won.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::record::{Arm, Finding, Interval, Setting, TuneKnob};
use crate::stats::{LogRatios, median};
use crate::units::Seconds;

use super::ledger::{Ledger, Rounds};
use super::space::Space;

/// A race is over when what it cannot tell apart differs by less than this: half a percent of a step is not worth a
/// minute of launches.
const INDIFFERENT: f64 = 0.005;

/// A setting leaves a race once it is worse than the leader with this confidence.
const DROP: f64 = 0.9;

/// The search moves on to a setting that is better with this confidence. It may be wrong: what is said in the end rests on
/// the confirmation alone.
const MOVE: f64 = 0.6;

/// Launches of the default before anything else, beside a first one that fills caches: they tell the noise.
const FIRST_LAUNCHES: u32 = 3;

/// Settings that are predicted to be so much slower than the best prediction are not launched: the model is never
/// off by so much in comparing settings of one machine.
const HOPELESS: f64 = 0.3;

/// The median of normal values scatters by so much more than their mean: √(π/2).
const OF_MEDIAN: f64 = 1.2533;

/// Of the pairs of a confirmation so large a share must be won, whatever the interval says.
const AGREE: f64 = 0.75;

/// Passes over all knobs, at most.
const PASSES: usize = 3;

/// Confidence of the interval that the answer states, over all looks together.
const CONFIDENCE: f64 = 0.95;

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
}

/// What a search found.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The setting to use: the default, unless another is confirmed to be better.
    pub best: Setting,
    /// The second look; none where nothing looked better.
    pub confirmed: Option<Confirmed>,
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
        out_of_time: false,
    };
    let default = Setting::default();
    let started = hunt.start(&default)?;
    let winner = if started { hunt.descend(&default)? } else { default.clone() };
    let ended = match (started, hunt.out_of_time, limits.settings <= hunt.ledger.tried()) {
        (false, ..) => Ended::DefaultFailed,
        (_, true, _) => Ended::Time,
        (_, _, true) => Ended::Settings,
        _ => Ended::Settled,
    };
    let (confirmed, beside) = match started {
        true => hunt.confirm(&default, &winner)?,
        false => (None, Vec::new()),
    };
    let best = confirmed.as_ref().filter(|it| it.accepted).map_or(default, |it| it.setting.clone());
    hunt.ledger.fate(&best, "taken".to_owned());
    let Hunt { ledger, launches, spent, .. } = hunt;
    Ok(Found { best, confirmed, beside, ledger, ended, launches, spent })
}

struct Hunt<'a, S> {
    space: &'a Space,
    limits: &'a Limits,
    outlook: &'a dyn Fn(&Setting) -> Option<f64>,
    site: &'a mut S,
    ledger: Ledger,
    random: ChaCha8Rng,
    launches: usize,
    spent: Seconds,
    out_of_time: bool,
}

impl<S: Site> Hunt<'_, S> {
    /// The default, until its noise is known; false if it cannot be launched.
    fn start(&mut self, default: &Setting) -> Result<bool, S::Error> {
        self.ledger.begin(default, "start");
        for round in 0..=FIRST_LAUNCHES {
            let why = if round == 0 { "fills caches, and does not count" } else { "what all else is compared with" };
            match self.launch(default, Arm::Ddp, "start", round, why)? {
                Outcome::Step { step, .. } if 0 < round => self.ledger.step(default, step),
                Outcome::Step { .. } => {}
                Outcome::Fault { finding, .. } => {
                    self.ledger.fault(default, &finding);
                    return Ok(false);
                }
                Outcome::NoMore => break,
            }
        }
        Ok(true)
    }

    fn launch(&mut self, setting: &Setting, arm: Arm, stage: &str, round: u32, why: &str) -> Result<Outcome, S::Error> {
        let outcome = self.site.launch(&Ask { setting, arm, stage, round, why })?;
        if let Outcome::Step { wall, .. } | Outcome::Fault { wall, .. } = &outcome {
            self.launches += 1;
            self.spent += *wall;
        }
        Ok(outcome)
    }

    /// Whether time is left for so many launches more, beside the first look of the confirmation.
    fn has_time(&mut self, launches: usize) -> bool {
        let each = self.spent.0 / self.launches.max(1) as f64;
        let pairs = self.limits.looks.first().map_or(0, |pairs| *pairs as usize);
        let kept = 2 * pairs + self.limits.solo_rounds as usize * self.limits.solo_launches;
        let enough = self.spent.0 + each * (launches + kept) as f64 <= self.limits.budget.0;
        self.out_of_time |= !enough;
        enough
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
            if 0 < pass && best == before {
                break;
            }
        }
        Ok(best)
    }

    /// Settings that may still be launched, when `kept` are kept for other knobs.
    fn room(&self, kept: usize) -> usize {
        self.limits.settings.saturating_sub(self.ledger.tried() + kept)
    }

    /// The best setting of one knob: a race over a spread of its choices, then over the winner's neighbours.
    fn turn(&mut self, knob: &TuneKnob, mut best: Setting, kept: usize) -> Result<Setting, S::Error> {
        let mut challengers = self.first_choices(knob, &best, kept);
        while !challengers.is_empty() && !self.out_of_time {
            let winner = self.race(&knob.name, &best, &challengers)?;
            let stays = winner == best;
            best = winner;
            challengers = match (knob.ordered, stays) {
                (true, false) => self.neighbours(knob, &best, kept),
                _ => Vec::new(),
            };
        }
        Ok(best)
    }

    /// Choices of a knob that were not launched yet and are not hopeless, those that are predicted best first.
    fn fresh(&self, knob: &TuneKnob, base: &Setting) -> Vec<Setting> {
        let all = std::iter::once("").chain(knob.choices.iter().map(String::as_str));
        let all: Vec<Setting> = all.map(|choice| base.with(&knob.name, choice)).collect();
        let predicted = |setting: &Setting| (self.outlook)(setting);
        let least = all.iter().filter_map(predicted).fold(f64::INFINITY, f64::min);
        let open = |setting: &Setting| {
            let hopeless = predicted(setting).is_some_and(|step| least * (1.0 + HOPELESS) < step);
            self.ledger.cell(setting).is_none() && !hopeless
        };
        all.into_iter().filter(open).collect()
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

    /// Launches all in turn, round by round in an order drawn anew, dropping who is clearly slower; the winner.
    fn race(&mut self, stage: &str, holder: &Setting, challengers: &[Setting]) -> Result<Setting, S::Error> {
        let mut alive: Vec<Setting> = challengers.to_vec();
        let mut rounds = Rounds::default();
        for round in 1..=self.limits.rounds {
            if !self.has_time(alive.len() + 1) || !self.round(stage, round, holder, &mut alive, &mut rounds)? {
                break;
            }
            self.drop_losers(&rounds, holder, &mut alive);
            if alive.is_empty() || self.decided(&rounds, holder, &alive) {
                break;
            }
        }
        let lead = |setting: &&Setting| rounds.difference(setting, holder).map_or(0.0, |(ahead, _)| ahead);
        let first = alive.iter().min_by(|one, other| lead(one).total_cmp(&lead(other))).cloned();
        let moved = first.filter(|first| {
            let ahead = rounds.difference(first, holder);
            ahead.is_some_and(|(ahead, count)| ahead < -self.ledger.scatter().half_width(count, count, MOVE))
        });
        for setting in alive.iter().filter(|setting| Some(*setting) != moved.as_ref()) {
            self.ledger.fate(setting, "no better than what it was held against".to_owned());
        }
        if let Some(winner) = &moved {
            self.ledger.fate(winner, format!("won the race of {stage}"));
        }
        Ok(moved.unwrap_or_else(|| holder.clone()))
    }

    /// One launch of each; false where there are no more to be had.
    fn round(
        &mut self,
        stage: &str,
        round: u32,
        holder: &Setting,
        alive: &mut Vec<Setting>,
        rounds: &mut Rounds,
    ) -> Result<bool, S::Error> {
        let mut order: Vec<Setting> = std::iter::once(holder).chain(alive.iter()).cloned().collect();
        order.shuffle(&mut self.random);
        for setting in &order {
            let why = match setting == holder {
                true => "beside its challengers, as what drifts falls on all of a round".to_owned(),
                false => format!("{stage}: instead of {holder}"),
            };
            let outcome = self.launch(setting, Arm::Ddp, stage, round, &why)?;
            if outcome != Outcome::NoMore {
                self.ledger.begin(setting, stage);
            }
            match outcome {
                Outcome::Step { step, .. } => {
                    self.ledger.step(setting, step);
                    rounds.note(setting, round, step);
                }
                Outcome::Fault { finding, .. } if setting != holder => {
                    self.ledger.fault(setting, &finding);
                    alive.retain(|one| one != setting);
                }
                // what was launched well before and fails now: the round goes on without it
                Outcome::Fault { .. } => {}
                Outcome::NoMore => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Takes out who is slower than the leader by more than noise.
    fn drop_losers(&mut self, rounds: &Rounds, holder: &Setting, alive: &mut Vec<Setting>) {
        let scatter = self.ledger.scatter();
        let behind = |setting: &Setting| rounds.difference(setting, holder).map_or(0.0, |(behind, _)| behind);
        let leader = alive.iter().min_by(|one, other| behind(one).total_cmp(&behind(other))).cloned();
        let leader = leader.filter(|leader| behind(leader) < 0.0).unwrap_or_else(|| holder.clone());
        alive.retain(|setting| {
            let Some((slower, count)) = rounds.difference(setting, &leader) else { return true };
            let lost = *setting != leader && scatter.half_width(count, count, DROP) < slower;
            if lost {
                let text =
                    format!("dropped after {count} of a race: {:.1} % slower than {leader}", slower.exp_m1() * 100.0);
                self.ledger.fate(setting, text);
            }
            !lost
        });
    }

    /// Whether another round would tell nothing that matters.
    fn decided(&self, rounds: &Rounds, holder: &Setting, alive: &[Setting]) -> bool {
        let scatter = self.ledger.scatter();
        let all = alive.iter().filter_map(|setting| rounds.difference(setting, holder));
        let mut told = all.map(|(ahead, count)| {
            let half = scatter.half_width(count, count, MOVE);
            (1 < count && ahead < -scatter.half_width(count, count, DROP) && alive.len() == 1) || half < INDIFFERENT
        });
        told.all(|told| told)
    }

    /// Holds the winner against the default in pairs of launches that took no part in the search.
    #[expect(clippy::type_complexity, reason = "two halves of one answer, named where they are taken apart")]
    fn confirm(
        &mut self,
        default: &Setting,
        winner: &Setting,
    ) -> Result<(Option<Confirmed>, Vec<[Seconds; 3]>), S::Error> {
        let mut looks = self.limits.looks.clone();
        if winner == default {
            // the default alone needs no second look, only what its efficiency is
            looks = vec![self.limits.solo_rounds];
        }
        let confidence = 1.0 - (1.0 - CONFIDENCE) / looks.len().max(1) as f64;
        let (mut pairs, mut beside, mut alive) = (Vec::new(), Vec::new(), true);
        let mut seen: Option<Confirmed> = None;
        let mut begun = 0;
        for look in looks {
            for round in begun + 1..=look {
                // two rounds are the least that give an interval, whatever they take
                alive &= round <= 2 || self.spent < self.limits.budget;
                if !alive {
                    break;
                }
                let [first, second, solo] = self.beside(default, winner, round)?;
                let (Some(first), Some(second)) = (first, second) else {
                    alive = false;
                    break;
                };
                pairs.push((first, second));
                beside.extend(solo.map(|solo| [first, second, solo]));
            }
            begun = look;
            if winner == default || pairs.len() < 2 {
                continue;
            }
            let gain = self.gain(&pairs, confidence);
            // where bursts of other programs rule, a few pairs can lie far apart and say nothing: most must agree
            let ahead = pairs.iter().filter(|(first, second)| second < first).count();
            let accepted = 0.0 < gain.low && AGREE * pairs.len() as f64 <= ahead as f64;
            seen = Some(Confirmed { setting: winner.clone(), pairs: pairs.clone(), gain, accepted });
            if accepted || gain.high < INDIFFERENT || !alive {
                break;
            }
        }
        if seen.as_ref().is_some_and(|seen| !seen.accepted) {
            self.ledger.fate(winner, "looked better, but was not confirmed on fresh launches".to_owned());
        }
        Ok((seen, beside))
    }

    /// The share that the second of each pair saves: the median over pairs, which a burst of another program does not move.
    /// Its interval takes the scatter of a launch from all settings of the search and from these pairs, so that few of them
    /// are enough.
    fn gain(&self, pairs: &[(Seconds, Seconds)], confidence: f64) -> Interval {
        let logs = |pick: fn(&(Seconds, Seconds)) -> Seconds| -> Vec<f64> {
            pairs.iter().map(|pair| pick(pair).0.ln()).collect()
        };
        let (first, second) = (logs(|pair| pair.0), logs(|pair| pair.1));
        let slower = median(&second.iter().zip(&first).map(|(second, first)| second - first).collect::<Vec<_>>());
        let pooled = self.ledger.scatter_with(&[first, second]);
        let half = OF_MEDIAN * pooled.half_width(pairs.len(), pairs.len(), confidence);
        let saved = |log: f64| -log.exp_m1();
        Interval { estimate: saved(slower), low: saved(slower + half), high: saved(slower - half) }
    }

    /// One launch each of the default, the winner and the shares alone, in an order drawn at random.
    fn beside(&mut self, default: &Setting, winner: &Setting, round: u32) -> Result<[Option<Seconds>; 3], S::Error> {
        let mut order = vec![0_usize];
        order.extend((winner != default).then_some(1));
        order.extend((round <= self.limits.solo_rounds).then_some(2));
        order.shuffle(&mut self.random);
        let (held, alone) =
            (format!("fresh: {winner} against the default"), "each share alone, for the efficiency".into());
        let mut steps = [None; 3];
        for which in order {
            let (setting, arm, why) = match which {
                0 => (default, Arm::Ddp, &held),
                1 => (winner, Arm::Ddp, &held),
                _ => (default, Arm::Solo, &alone),
            };
            if let Outcome::Step { step, .. } = self.launch(setting, arm, "confirm", round, why)? {
                steps[which] = Some(step);
            }
        }
        if winner == default {
            steps[1] = steps[0];
        }
        Ok(steps)
    }
}

impl Found {
    /// Efficiency of the default and of the best, each with its interval over rounds: the shares' mean rate together over
    /// that alone.
    #[must_use]
    pub fn efficiencies(&self) -> Option<[Interval; 2]> {
        if self.beside.is_empty() {
            return None;
        }
        let of = |which: usize| {
            let ratios: Vec<f64> = self.beside.iter().map(|steps| steps[2] / steps[which]).collect();
            let ratios = LogRatios::of(&ratios);
            let estimate = ratios.estimate();
            let (low, high) = ratios.interval(CONFIDENCE).unwrap_or((estimate, estimate));
            Interval { estimate, low, high }
        };
        let taken = if self.best.is_default() { 0 } else { 1 };
        Some([of(0), of(taken)])
    }

    /// Median of the steps of the default and of the best: of the confirmation where there was one, else of all launches.
    #[must_use]
    pub fn steps(&self) -> Option<[Seconds; 2]> {
        let middle = |logs: &[f64]| (!logs.is_empty()).then(|| Seconds(median(logs).exp()));
        let of_cell = |setting: &Setting| middle(&self.ledger.cell(setting)?.logs);
        let confirmed = self.confirmed.as_ref().filter(|it| it.setting == self.best);
        let of_pairs = |pick: fn(&(Seconds, Seconds)) -> Seconds| {
            middle(&confirmed?.pairs.iter().map(|pair| pick(pair).0.ln()).collect::<Vec<_>>())
        };
        let default = of_pairs(|pair| pair.0).or_else(|| of_cell(&Setting::default()))?;
        let best = of_pairs(|pair| pair.1).or_else(|| of_cell(&self.best))?;
        Some([default, best])
    }
}
