//! A log of launches, gone through again by the search that wrote it, or by one of the same training with other limits.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::record::{Arm, Setting, TuneTrial};
use crate::tune::Ask;

/// What the log holds of a launch that is asked for.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Held {
    /// The launch, by its place in the log.
    Launch(usize),
    /// Nothing, and nothing more will come from the log.
    Nothing,
    /// The log holds a part of this round only, which cannot be compared with what is launched now: the search begins
    /// again without it, which costs nothing as nothing was launched.
    Astray,
}

/// Goes through a log in its order. Rounds are taken whole, as only launches of one round are compared with each other;
/// those that this search does not ask for, since an earlier call had other limits, are passed over; and once a round is not
/// there, the rest of the log takes no part.
#[derive(Debug, Clone, Default)]
pub(super) struct Replay {
    rounds: Vec<Range<usize>>,
    barred: BTreeSet<usize>,
    /// The round that is being read, and the next launch of it.
    reading: Option<(usize, usize)>,
    /// Rounds before this one are behind.
    ahead: usize,
    over: bool,
    round: Round,
    taken: usize,
}

/// The launches of one round so far. A round ends where its stage or number changes, or a launch would be there twice.
#[derive(Debug, Clone, Default)]
struct Round {
    stage: String,
    number: u32,
    launched: BTreeSet<(Setting, Arm)>,
}

impl Round {
    /// Adds a launch; true where it begins another round.
    fn begins(&mut self, stage: &str, number: u32, setting: &Setting, arm: Arm) -> bool {
        let launch = (setting.clone(), arm);
        let same = self.stage == stage && self.number == number && !self.launched.contains(&launch);
        if !same {
            *self = Self { stage: stage.to_owned(), number, launched: BTreeSet::new() };
        }
        self.launched.insert(launch);
        !same
    }
}

/// Whether a launch of the log is the one that is asked for. In the confirmation the reason names what is held against
/// what, and only the same comparison will do.
fn is(trial: &TuneTrial, ask: &Ask<'_>) -> bool {
    (&trial.setting, trial.arm, trial.stage.as_str(), trial.round, trial.why.as_str())
        == (ask.setting, ask.arm, ask.stage, ask.round, ask.why)
}

impl Replay {
    /// From the first launch of a log on.
    pub(super) fn of(log: &[TuneTrial]) -> Self {
        let mut replay = Self::default();
        let mut round = Round::default();
        for (index, trial) in log.iter().enumerate() {
            if round.begins(&trial.stage, trial.round, &trial.setting, trial.arm) {
                replay.rounds.push(index..index);
            }
            replay.rounds.iter_mut().next_back().into_iter().for_each(|last| last.end = index + 1);
        }
        replay
    }

    /// What the log holds of a launch.
    pub(super) fn next(&mut self, log: &[TuneTrial], ask: &Ask<'_>) -> Held {
        let begins = self.round.begins(ask.stage, ask.round, ask.setting, ask.arm);
        if self.over {
            return Held::Nothing;
        }
        if begins {
            let fits = |at: &usize| !self.barred.contains(at) && is(&log[self.rounds[*at].start], ask);
            self.reading = (self.ahead..self.rounds.len()).find(fits).map(|at| (at, self.rounds[at].start));
        }
        let Some((at, next)) = self.reading else {
            self.over = true;
            return Held::Nothing;
        };
        if !self.rounds[at].contains(&next) || !is(&log[next], ask) {
            self.barred.insert(at);
            return Held::Astray;
        }
        (self.reading, self.ahead) = (Some((at, next + 1)), at + 1);
        self.taken += 1;
        Held::Launch(next)
    }

    /// The same from the start, without the rounds that led astray.
    pub(super) fn again(&self) -> Self {
        Self { rounds: self.rounds.clone(), barred: self.barred.clone(), ..Self::default() }
    }

    /// Launches that were taken from the log.
    pub(super) fn taken(&self) -> usize {
        self.taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Seconds;

    fn trial(index: usize, (stage, round, bucket, why): (&str, u32, &str, &str)) -> TuneTrial {
        TuneTrial {
            index,
            setting: Setting::default().with("bucket", bucket),
            arm: Arm::Ddp,
            stage: stage.into(),
            round,
            why: why.into(),
            step_s: Some(Seconds(1.0)),
            wall_s: Seconds(1.0),
            finding: None,
        }
    }

    /// What a search takes from a log: the places, and how many launches were left to be run.
    fn taken(log: &[TuneTrial], asked: &[(&str, u32, &str, &str)]) -> (Vec<usize>, usize) {
        let mut replay = Replay::of(log);
        loop {
            let (mut places, mut missing, mut astray) = (Vec::new(), 0, false);
            for row in asked {
                let wanted = trial(0, *row);
                let (setting, stage) = (&wanted.setting, wanted.stage.as_str());
                let ask = Ask { setting, arm: Arm::Ddp, stage, round: wanted.round, why: &wanted.why };
                match replay.next(log, &ask) {
                    Held::Launch(place) => places.push(place),
                    Held::Nothing => missing += 1,
                    Held::Astray => {
                        assert_eq!(missing, 0, "nothing was launched before");
                        astray = true;
                        break;
                    }
                }
            }
            if !astray {
                assert_eq!(replay.taken(), places.len());
                return (places, missing);
            }
            replay = replay.again();
        }
    }

    fn log(rows: &[(&str, u32, &str, &str)]) -> Vec<TuneTrial> {
        rows.iter().enumerate().map(|(index, row)| trial(index, *row)).collect()
    }

    const START: (&str, u32, &str, &str) = ("start", 1, "", "");
    const RACE: [(&str, u32, &str, &str); 2] = [("bucket", 1, "b=1", ""), ("bucket", 1, "", "")];
    const MORE: [(&str, u32, &str, &str); 2] = [("bucket", 2, "", ""), ("bucket", 2, "b=1", "")];
    const CONFIRM: [(&str, u32, &str, &str); 2] = [("confirm", 1, "", "b=1"), ("confirm", 1, "b=1", "b=1")];

    #[test]
    fn the_same_search_takes_its_log_whole() {
        let rows = [&[START][..], &RACE, &MORE, &CONFIRM].concat();
        assert_eq!(taken(&log(&rows), &rows), ((0..7).collect(), 0));
    }

    #[test]
    fn more_time_goes_on_from_where_the_time_was_over_and_comes_back_to_both() {
        let short = [&[START][..], &RACE, &CONFIRM].concat();
        let long = [&[START][..], &RACE, &MORE, &CONFIRM].concat();
        assert_eq!(taken(&log(&short), &long), (vec![0, 1, 2], 4), "the old confirmation takes no part");
        let both = log(&[&short[..], &MORE, &CONFIRM].concat());
        assert_eq!(taken(&both, &long), (vec![0, 1, 2, 5, 6, 7, 8], 0));
        assert_eq!(taken(&both, &short), (vec![0, 1, 2, 3, 4], 0));
    }

    #[test]
    fn a_round_is_taken_whole_or_not_at_all() {
        let other = [("confirm", 1, "", "b=2"), ("confirm", 1, "b=2", "b=2")];
        let rows = [&[START][..], &RACE, &CONFIRM].concat();
        assert_eq!(taken(&log(&rows), &[&[START][..], &RACE, &other].concat()), (vec![0, 1, 2], 2));
        // interrupted within a round, which was then launched whole
        let cut = [&[START][..], &RACE[..1], &RACE, &CONFIRM].concat();
        assert_eq!(taken(&log(&cut), &rows), (vec![0, 2, 3, 4, 5], 0));
        assert_eq!(taken(&log(&cut[..2]), &rows), (vec![0], 4), "its first half is launched again");
        // one challenger more in the same round
        let wider = [&[START][..], &RACE, &[("bucket", 1, "b=4", "")]].concat();
        assert_eq!(taken(&log(&rows), &wider), (vec![0], 3));
    }
}
