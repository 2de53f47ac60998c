//! A race: settings launched in turn, round by round, until what they differ by is told or no longer matters.

use rand::seq::SliceRandom;

use crate::record::{Arm, Setting};

use super::ledger::Rounds;
use super::search::{Hunt, Outcome, Site};

/// A race is over when what it cannot tell apart differs by less than this: half a percent of a step is not worth a
/// minute of launches.
pub(super) const INDIFFERENT: f64 = 0.005;

/// A setting leaves a race once it is worse than the leader with this confidence, at each look. Who leaves wrongly costs the
/// search a little; nothing is claimed of it.
const DROP: f64 = 0.9;

/// The same after a single launch, whose scatter is not known yet of this setting.
const DROP_AT_ONCE: f64 = 0.99;

/// The search moves on to a setting that is better with this confidence. It may be wrong: what is said in the end rests on
/// the confirmation alone.
const MOVE: f64 = 0.5;

/// The median of normal values scatters by so much more than their mean: √(π/2).
pub(super) const OF_MEDIAN: f64 = 1.2533;

/// When a challenger takes the holder's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wins {
    /// When it is ahead by more than noise.
    Ahead,
    /// Also when it is only as good: it has less to set.
    Equal,
}

/// How a round went.
enum Went {
    /// All that still run were launched.
    On,
    /// There are no more launches to be had.
    Over,
    /// The holder failed, twice or in a way that does not pass.
    HolderFailed,
}

impl<S: Site> Hunt<'_, S> {
    /// Launches all in turn, round by round in an order drawn anew, dropping who is clearly slower; the winner. None where the
    /// holder itself fails, so that nothing is compared any more.
    pub(super) fn race(
        &mut self,
        stage: &str,
        holder: &Setting,
        challengers: &[Setting],
        wins: Wins,
    ) -> Result<Option<Setting>, S::Error> {
        let mut alive: Vec<Setting> = challengers.to_vec();
        let mut rounds = Rounds::default();
        self.ledger.part();
        for round in 1..=self.limits.rounds {
            if !self.has_time(alive.len() + 1) {
                break;
            }
            match self.round(stage, round, holder, &mut alive, &mut rounds)? {
                Went::On => {}
                Went::Over => break,
                Went::HolderFailed => return Ok(None),
            }
            self.drop_losers(&rounds, holder, &mut alive);
            if alive.is_empty() || self.decided(&rounds, holder, &alive) {
                break;
            }
        }
        let ahead = |setting: &Setting| rounds.difference(setting, holder);
        alive.retain(|setting| ahead(setting).is_some());
        let lead = |setting: &&Setting| ahead(setting).map_or(0.0, |(lead, _)| lead);
        let first = alive.iter().min_by(|one, other| lead(one).total_cmp(&lead(other))).cloned();
        let moved = first.filter(|first| {
            ahead(first).is_some_and(|(ahead, count)| match wins {
                Wins::Ahead => ahead < -self.half_width(count, MOVE),
                Wins::Equal => ahead <= 0.0,
            })
        });
        for setting in alive.iter().filter(|setting| Some(*setting) != moved.as_ref()) {
            self.ledger.fate(setting, "no better than what it was held against".to_owned());
        }
        if let Some(winner) = &moved {
            self.ledger.fate(winner, format!("won the race of {stage}"));
        }
        Ok(Some(moved.unwrap_or_else(|| holder.clone())))
    }

    /// Half the width of the interval of a difference after so many rounds, by the scatter over all settings.
    fn half_width(&self, count: usize, confidence: f64) -> f64 {
        let of_median = if count < 3 { 1.0 } else { OF_MEDIAN };
        of_median * self.ledger.scatter().half_width(count, count, confidence)
    }

    /// One launch of each that still runs.
    fn round(
        &mut self,
        stage: &str,
        round: u32,
        holder: &Setting,
        alive: &mut Vec<Setting>,
        rounds: &mut Rounds,
    ) -> Result<Went, S::Error> {
        let mut order: Vec<Setting> = std::iter::once(holder).chain(alive.iter()).cloned().collect();
        order.shuffle(&mut self.random);
        for setting in &order {
            let outcome = if setting == holder {
                let why = "beside its challengers, as what drifts falls on all of a round";
                self.steadily(setting, stage, round, why)?
            } else {
                let why = format!("{stage}: instead of {holder}");
                self.launch(setting, Arm::Ddp, stage, round, &why)?
            };
            if outcome != Outcome::NoMore {
                self.ledger.begin(setting, stage);
            }
            match outcome {
                Outcome::Step { step, .. } => {
                    self.ledger.step(setting, step);
                    rounds.note(setting, round, step);
                }
                Outcome::Fault { .. } if setting == holder => return Ok(Went::HolderFailed),
                // what hung or died once is launched again in the next round
                Outcome::Fault { finding, .. } => {
                    if self.ledger.fault(setting, &finding) {
                        alive.retain(|one| one != setting);
                    }
                }
                Outcome::NoMore => return Ok(Went::Over),
            }
        }
        for setting in alive.iter().filter(|setting| rounds.difference(setting, holder).is_some()) {
            self.ledger.compared(setting);
        }
        Ok(Went::On)
    }

    /// Takes out who is slower than the leader by more than noise.
    fn drop_losers(&mut self, rounds: &Rounds, holder: &Setting, alive: &mut Vec<Setting>) {
        let behind = |setting: &Setting| rounds.difference(setting, holder).map_or(0.0, |(behind, _)| behind);
        let leader = alive.iter().min_by(|one, other| behind(one).total_cmp(&behind(other))).cloned();
        let leader = leader.filter(|leader| behind(leader) < 0.0).unwrap_or_else(|| holder.clone());
        let mut kept = Vec::new();
        for setting in alive.drain(..) {
            let slower = rounds.difference(&setting, &leader).filter(|_| setting != leader);
            let lost = slower.filter(|(slower, count)| {
                let confidence = if *count < 2 { DROP_AT_ONCE } else { DROP };
                self.half_width(*count, confidence) < *slower
            });
            match lost {
                Some((slower, count)) => {
                    let slower = slower.exp_m1() * 100.0;
                    let text = format!("dropped after {count} of a race: {slower:.1} % slower than {leader}");
                    self.ledger.fate(&setting, text);
                }
                None => kept.push(setting),
            }
        }
        *alive = kept;
    }

    /// Whether another round would tell nothing that matters; it might, as long as one was not compared.
    fn decided(&self, rounds: &Rounds, holder: &Setting, alive: &[Setting]) -> bool {
        alive.iter().all(|setting| {
            rounds.difference(setting, holder).is_some_and(|(ahead, count)| {
                let alone_ahead = 1 < count && alive.len() == 1 && ahead < -self.half_width(count, DROP);
                alone_ahead || self.half_width(count, MOVE) < INDIFFERENT
            })
        })
    }

    /// The winner without what it does not need: each knob that it sets is left alone for a trial, where that may be launched,
    /// and stays so if the step is no longer for it.
    pub(super) fn without_idle_parts(&mut self, mut winner: Setting) -> Result<Setting, S::Error> {
        while 1 < winner.0.len() && !self.out_of_time {
            let mut room = self.room(0);
            let parts = winner.0.keys().map(|knob| winner.with(knob, ""));
            let parts: Vec<Setting> = parts
                .filter(|part| match self.ledger.cell(part) {
                    Some(cell) => !cell.condemned,
                    None => {
                        let open = 0 < room;
                        room = room.saturating_sub(1);
                        open
                    }
                })
                .collect();
            if parts.is_empty() {
                break;
            }
            match self.race("parts", &winner, &parts, Wins::Equal)? {
                Some(part) if part != winner => winner = part,
                Some(_) => break,
                None => winner = self.step_back(&winner),
            }
        }
        Ok(winner)
    }
}
