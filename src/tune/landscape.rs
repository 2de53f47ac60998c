//! Landscapes: every setting of a grid with its launches, recorded or simulated, and searched instead of a machine.

use std::collections::BTreeMap;
use std::convert::Infallible;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::record::{Arm, Finding, Setting, TuneFile, TuneHead};
use crate::stats::median;
use crate::units::Seconds;

use super::search::{Ask, Outcome, Site};
use super::space::Space;

/// Every setting of a grid with its launches.
#[derive(Debug, Clone, PartialEq)]
pub struct Landscape {
    /// What was swept.
    pub head: TuneHead,
    /// Logarithms of the steps of each setting, by round, with what its round had in common taken out.
    pub cells: BTreeMap<Setting, Vec<f64>>,
    /// What went wrong with a setting, where no launch of it succeeded.
    pub faults: BTreeMap<Setting, Finding>,
    /// Time of a launch.
    pub wall: Seconds,
}

impl Landscape {
    /// From a sweep. A round holds every setting once, in random order: by how much the median launch of a round took
    /// longer than its setting usually does is the drift of the machine, and is taken out of all of them.
    #[must_use]
    pub fn of(file: &TuneFile) -> Self {
        let mut rounds: BTreeMap<Setting, BTreeMap<u32, f64>> = BTreeMap::new();
        let mut faults = BTreeMap::new();
        for trial in file.trials.iter().filter(|trial| trial.arm == Arm::Ddp && 0 < trial.round) {
            match (&trial.step_s, &trial.finding) {
                (Some(step), _) => {
                    rounds.entry(trial.setting.clone()).or_default().insert(trial.round, step.0.ln());
                }
                (None, finding) => faults.extend(finding.clone().map(|finding| (trial.setting.clone(), finding))),
            }
        }
        faults.retain(|setting, _| !rounds.contains_key(setting));
        let usual: BTreeMap<&Setting, f64> = rounds
            .iter()
            .map(|(setting, steps)| (setting, median(&steps.values().copied().collect::<Vec<_>>())))
            .collect();
        let mut late: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
        for (setting, steps) in &rounds {
            steps.iter().for_each(|(round, step)| late.entry(*round).or_default().push(step - usual[setting]));
        }
        let drift: BTreeMap<u32, f64> = late.into_iter().map(|(round, late)| (round, median(&late))).collect();
        let level = |steps: &BTreeMap<u32, f64>| steps.iter().map(|(round, step)| step - drift[round]).collect();
        let cells = rounds.iter().map(|(setting, steps)| (setting.clone(), level(steps))).collect();
        let walls: Vec<f64> = file.trials.iter().map(|trial| trial.wall_s.0).collect();
        let wall = Seconds(if walls.is_empty() { 0.0 } else { median(&walls) });
        Self { head: file.head.clone(), cells, faults, wall }
    }

    /// The space that was swept.
    #[must_use]
    pub fn space(&self) -> Space {
        Space { knobs: self.head.knobs.clone(), left_out: self.head.left_out.clone() }
    }

    /// How single launches differ from the median of their setting, as logarithms: the noise of launches. Of the quieter
    /// half of the settings: what scatters more than that does so by itself, as ranks that are not pinned do.
    #[must_use]
    pub fn noise(&self) -> Vec<f64> {
        let deviations = |steps: &Vec<f64>| -> Vec<f64> {
            let centre = median(steps);
            steps.iter().map(|step| step - centre).collect()
        };
        let all: Vec<Vec<f64>> = self.cells.values().map(deviations).collect();
        let usual = |cell: &Vec<f64>| median(&cell.iter().map(|one| one.abs()).collect::<Vec<_>>());
        if all.is_empty() {
            return Vec::new();
        }
        let limit = median(&all.iter().map(usual).collect::<Vec<_>>());
        all.iter().filter(|cell| usual(cell) <= limit).flatten().copied().collect()
    }
}

impl Landscape {
    /// The usual scatter of a launch, as the deviation of a logarithm: what bursts of other programs do is not in it. None
    /// where nothing was launched.
    #[must_use]
    pub fn spread(&self) -> Option<f64> {
        /// Normal consistency of the median absolute deviation.
        const MAD: f64 = 1.4826;
        let noise: Vec<f64> = self.noise().iter().map(|one| one.abs()).collect();
        (!noise.is_empty()).then(|| MAD * median(&noise))
    }
}

/// A landscape as a site: some launches of each setting for the search, others for its confirmation, and the rest for
/// whoever judges.
#[derive(Debug, Clone)]
pub struct Pool<'a> {
    landscape: &'a Landscape,
    /// Places of each setting's launches: first the search's, then those of the confirmation, then the judge's.
    dealt: BTreeMap<&'a Setting, Vec<usize>>,
    search: usize,
    confirm: usize,
    drawn: BTreeMap<&'a Setting, usize>,
}

impl<'a> Pool<'a> {
    /// Deals the launches of each setting by lot: so many for search and confirmation, the rest for the judge. Of the same
    /// lot, each turn hands all launches on by one place: over as many turns as there are launches, each is the judge's
    /// equally often.
    #[must_use]
    pub fn deal(landscape: &'a Landscape, lot: u64, turn: usize, search: usize, confirm: usize) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(lot);
        let deal = |(setting, steps): (&'a Setting, &Vec<f64>)| {
            let mut places: Vec<usize> = (0..steps.len()).collect();
            places.shuffle(&mut random);
            places.rotate_left(turn % steps.len().max(1));
            (setting, places)
        };
        let dealt = landscape.cells.iter().map(deal).collect();
        Self { landscape, dealt, search, confirm, drawn: BTreeMap::new() }
    }

    /// Places of the launches of a setting from one to before another in the order in which they were dealt.
    fn places(&self, setting: &Setting, from: usize, to: usize) -> &[usize] {
        let places = self.dealt.get(setting).map_or(&[][..], Vec::as_slice);
        &places[from.min(places.len())..to.min(places.len())]
    }

    fn logs(&self, setting: &Setting, from: usize, to: usize) -> Vec<f64> {
        let steps = self.landscape.cells.get(setting).map_or(&[][..], Vec::as_slice);
        self.places(setting, from, to).iter().map(|place| steps[*place]).collect()
    }

    /// Logarithms of launches that neither search nor confirmation sees.
    #[must_use]
    pub fn unseen(&self, setting: &Setting) -> Vec<f64> {
        self.logs(setting, self.search + self.confirm, usize::MAX)
    }

    /// Places of the same in the landscape's cell.
    #[must_use]
    pub fn unseen_places(&self, setting: &Setting) -> &[usize] {
        self.places(setting, self.search + self.confirm, usize::MAX)
    }

    /// Logarithms of all launches that the judge does not see.
    #[must_use]
    pub fn known(&self, setting: &Setting) -> Vec<f64> {
        self.logs(setting, 0, self.search + self.confirm)
    }

    /// Logarithms of launches that a search sees.
    #[must_use]
    pub fn seen(&self, setting: &Setting) -> Vec<f64> {
        self.logs(setting, 0, self.search)
    }
}

impl Site for Pool<'_> {
    type Error = Infallible;

    /// A search sees its launches of a setting over and over; a confirmation sees each of its own once.
    fn launch(&mut self, ask: &Ask) -> Result<Outcome, Infallible> {
        let wall = self.landscape.wall;
        if let Some(finding) = self.landscape.faults.get(ask.setting) {
            return Ok(Outcome::Fault { finding: finding.clone(), wall });
        }
        if ask.arm != Arm::Ddp {
            return Ok(Outcome::NoMore);
        }
        let step = |log: f64| Outcome::Step { step: Seconds(log.exp()), wall };
        if ask.stage == "confirm" {
            let steps = self.logs(ask.setting, self.search, self.search + self.confirm);
            return Ok(steps.get(ask.round as usize - 1).map_or(Outcome::NoMore, |log| step(*log)));
        }
        let steps = self.seen(ask.setting);
        let Some((setting, _)) = self.dealt.get_key_value(ask.setting).filter(|_| !steps.is_empty()) else {
            return Ok(Outcome::NoMore);
        };
        let drawn = self.drawn.entry(*setting).or_default();
        *drawn += 1;
        Ok(step(steps[(*drawn - 1) % steps.len()]))
    }
}
