//! The second look: what won is held against the default in pairs of launches that took no part in the search.

use rand::seq::SliceRandom;
use statrs::distribution::{ContinuousCDF, StudentsT};

use crate::record::{Arm, Interval, Setting};
use crate::stats::{LogRatios, Pooled, median};
use crate::units::Seconds;

use super::race::{INDIFFERENT, OF_MEDIAN};
use super::search::{Confirmed, Found, Hunt, Outcome, Site};

/// Of the pairs so large a share must be won, whatever the interval says: where bursts of other programs rule, a few pairs can
/// lie far apart and say nothing.
const AGREE: f64 = 0.75;

/// Confidence of the interval that the answer states, over all looks together.
const CONFIDENCE: f64 = 0.95;

/// Pairs of a winner and the default, and what was launched beside them.
#[derive(Default)]
pub(super) struct Look {
    pairs: Vec<(Seconds, Seconds)>,
    beside: Vec<[Seconds; 3]>,
    seen: Option<Confirmed>,
    /// The winner failed: it is out, whatever its other launches were.
    failed: bool,
}

impl<S: Site> Hunt<'_, S> {
    /// Holds the winner against the default; where it fails, what was best before it.
    #[expect(clippy::type_complexity, reason = "two halves of one answer, named where they are taken apart")]
    pub(super) fn settle(
        &mut self,
        default: &Setting,
        mut winner: Setting,
    ) -> Result<(Option<Confirmed>, Vec<[Seconds; 3]>), S::Error> {
        loop {
            let look = self.confirm(default, &winner)?;
            if !look.failed {
                return Ok((look.seen, look.beside));
            }
            self.ledger.condemn(&winner, "won, but failed when it was launched again".to_owned());
            self.failed_again.push(winner.clone());
            winner = self.step_back(&winner);
        }
    }

    /// Pairs until a look decides, the time is over, or one of the two fails.
    fn confirm(&mut self, default: &Setting, winner: &Setting) -> Result<Look, S::Error> {
        let mut looks = self.limits.looks.clone();
        if winner == default {
            // the default alone needs no second look, only what its efficiency is
            looks = vec![self.limits.solo_rounds];
        }
        let confidence = 1.0 - (1.0 - CONFIDENCE) / looks.len().max(1) as f64;
        let (mut look, mut begun, mut whole) = (Look::default(), 0, true);
        self.ledger.part();
        for last in looks {
            for round in begun + 1..=last {
                // two rounds are the least that give an interval, whatever they take
                whole &= round <= 2 || self.spent < self.limits.budget;
                if !whole || !self.pair(default, winner, round, &mut look)? {
                    whole = false;
                    break;
                }
            }
            begun = last;
            if look.failed {
                return Ok(look);
            }
            if winner != default && 2 <= look.pairs.len() {
                let gain = self.gain(default, winner, &look.pairs, confidence);
                let ahead = look.pairs.iter().filter(|(first, second)| second < first).count();
                let accepted = 0.0 < gain.low && AGREE * look.pairs.len() as f64 <= ahead as f64;
                let (setting, pairs) = (winner.clone(), look.pairs.clone());
                look.seen = Some(Confirmed { setting, pairs, gain, accepted, cut_short: !whole });
                if accepted || gain.high < INDIFFERENT {
                    break;
                }
            }
            if !whole {
                break;
            }
        }
        if look.seen.as_ref().is_some_and(|seen| !seen.accepted) {
            self.ledger.fate(winner, "looked better, but was not confirmed on fresh launches".to_owned());
        }
        Ok(look)
    }

    /// The share that the second of each pair saves: the median over pairs, which a burst of another program does not move.
    /// Its interval is Welch's: settings scatter differently, so that each of the two brings the scatter of its own launches,
    /// those of the search among them, with the freedom that they have; what drifts between parts of the search takes no part.
    fn gain(&self, default: &Setting, winner: &Setting, pairs: &[(Seconds, Seconds)], confidence: f64) -> Interval {
        let logs = |pick: fn(&(Seconds, Seconds)) -> Seconds| -> Vec<f64> {
            pairs.iter().map(|pair| pick(pair).0.ln()).collect()
        };
        let (first, second) = (logs(|pair| pair.0), logs(|pair| pair.1));
        let slower = median(&second.iter().zip(&first).map(|(second, first)| second - first).collect::<Vec<_>>());
        let scatters = [self.ledger.scatter_of(default, &first), self.ledger.scatter_of(winner, &second)];
        let half = match scatters {
            [Some(one), Some(other)] => {
                let of_median = if pairs.len() < 3 { 1.0 } else { OF_MEDIAN };
                of_median * welch(one, other, pairs.len(), confidence)
            }
            _ => f64::INFINITY,
        };
        let saved = |log: f64| -log.exp_m1();
        Interval { estimate: saved(slower), low: saved(slower + half), high: saved(slower - half) }
    }

    /// One launch each of the default, the winner and the shares alone, in an order drawn at random; false where there is
    /// nothing to pair.
    fn pair(&mut self, default: &Setting, winner: &Setting, round: u32, look: &mut Look) -> Result<bool, S::Error> {
        let mut order = vec![0_usize];
        order.extend((winner != default).then_some(1));
        order.extend((round <= self.limits.solo_rounds).then_some(2));
        order.shuffle(&mut self.random);
        let held = format!("fresh: {winner} against the default");
        let mut steps = [None; 3];
        for which in order {
            let outcome = match which {
                0 => self.steadily(default, "confirm", round, &held)?,
                1 => self.launch(winner, Arm::Ddp, "confirm", round, &held)?,
                _ => self.launch(default, Arm::Solo, "confirm", round, "each share alone, for the efficiency")?,
            };
            match outcome {
                Outcome::Step { step, .. } => steps[which] = Some(step),
                Outcome::Fault { finding, .. } if which == 1 => {
                    self.ledger.fault(winner, &finding);
                    look.failed = true;
                    return Ok(false);
                }
                // the default's own are noted where it is launched; shares alone are not what is tuned
                Outcome::Fault { .. } | Outcome::NoMore => {}
            }
        }
        if winner == default {
            steps[1] = steps[0];
        }
        let [Some(first), Some(second), solo] = steps else { return Ok(false) };
        look.pairs.push((first, second));
        look.beside.extend(solo.map(|solo| [first, second, solo]));
        Ok(true)
    }
}

/// Half the width of the interval of the difference between the means of `count` values each of two settings that scatter
/// differently, with the freedom of Welch and Satterthwaite.
fn welch(one: Pooled, other: Pooled, count: usize, confidence: f64) -> f64 {
    let variance = |of: Pooled| of.deviation.powi(2);
    let spent = |of: Pooled| variance(of).powi(2) / of.freedom.max(1) as f64;
    let both = variance(one) + variance(other);
    let freedom = both.powi(2) / (spent(one) + spent(other));
    let t = StudentsT::new(0.0, 1.0, freedom.max(1.0))
        .map_or(f64::INFINITY, |student| student.inverse_cdf(0.5 + confidence / 2.0));
    t * (both / count.max(1) as f64).sqrt()
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
