//! Landscapes: every setting of a grid with its launches, recorded or simulated, and searched instead of a machine.

use std::collections::BTreeMap;
use std::convert::Infallible;

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::predict::Calibration;
use crate::record::{Arm, Finding, Setting, TuneFile, TuneHead, TuneTrial};
use crate::stats::median;
use crate::units::Seconds;

use super::outlook::{Outlook, Twist};
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
    search: BTreeMap<&'a Setting, Vec<f64>>,
    confirm: BTreeMap<&'a Setting, Vec<f64>>,
    judge: BTreeMap<&'a Setting, Vec<f64>>,
    drawn: BTreeMap<&'a Setting, usize>,
}

impl<'a> Pool<'a> {
    /// Deals the launches of each setting by lot: so many for search and confirmation, the rest for the judge.
    #[must_use]
    pub fn deal(landscape: &'a Landscape, seed: u64, search: usize, confirm: usize) -> Self {
        let mut pool = Self {
            landscape,
            search: BTreeMap::new(),
            confirm: BTreeMap::new(),
            judge: BTreeMap::new(),
            drawn: BTreeMap::new(),
        };
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        for (setting, steps) in &landscape.cells {
            let mut steps = steps.clone();
            steps.shuffle(&mut random);
            let (first, rest) = steps.split_at(search.min(steps.len()));
            let (second, third) = rest.split_at(confirm.min(rest.len()));
            pool.search.insert(setting, first.to_vec());
            pool.confirm.insert(setting, second.to_vec());
            pool.judge.insert(setting, third.to_vec());
        }
        pool
    }

    /// Logarithms of launches that neither search nor confirmation sees.
    #[must_use]
    pub fn unseen(&self, setting: &Setting) -> &[f64] {
        self.judge.get(setting).map_or(&[], Vec::as_slice)
    }

    /// Logarithms of all launches that the judge does not see.
    #[must_use]
    pub fn known(&self, setting: &Setting) -> Vec<f64> {
        [&self.search, &self.confirm].into_iter().filter_map(|dealt| dealt.get(setting)).flatten().copied().collect()
    }

    /// Logarithms of launches that a search sees.
    #[must_use]
    pub fn seen(&self, setting: &Setting) -> &[f64] {
        self.search.get(setting).map_or(&[], Vec::as_slice)
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
        let confirming = ask.stage == "confirm";
        let from = if confirming { &self.confirm } else { &self.search };
        let Some((setting, steps)) = from.get_key_value(ask.setting).filter(|_| ask.arm == Arm::Ddp) else {
            return Ok(Outcome::NoMore);
        };
        if confirming {
            let step = steps.get(ask.round as usize - 1);
            return Ok(step.map_or(Outcome::NoMore, |step| Outcome::Step { step: Seconds(step.exp()), wall }));
        }
        let drawn = self.drawn.entry(*setting).or_default();
        *drawn += 1;
        match steps.len() {
            0 => Ok(Outcome::NoMore),
            count => Ok(Outcome::Step { step: Seconds(steps[(*drawn - 1) % count].exp()), wall }),
        }
    }
}

/// A time to a whole number of `unit` seconds: what a log need not hold.
#[must_use]
pub fn rounded(time: Seconds, unit: f64) -> Seconds {
    Seconds(((time.0 / unit).round() * unit).max(unit))
}

/// A machine that is known only by its model, bent by lot within what the model is known to be wrong by, and with launches
/// that scatter as recorded ones do.
#[derive(Debug, Clone)]
pub struct Simulated {
    outlook: Outlook,
    twist: Twist,
    spread: f64,
    random: ChaCha8Rng,
}

impl Simulated {
    /// A machine drawn by `seed` around a model, whose launches scatter normally with `spread`, in logarithms. The spread of bus
    /// bandwidths is that of the prediction's calibration against published figures (`predict::Calibration`); what thread blocks fill a link, 1 to 8, and the contention, 0.2 to 0.8, are what is
    /// believed possible.
    #[must_use]
    pub fn drawn(outlook: Outlook, spread: f64, seed: u64) -> Self {
        let calibration = Calibration::default();
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut even = |low: f64, high: f64| low + (high - low) * f64::from(random.next_u32()) / f64::from(u32::MAX);
        // the sum of twelve even numbers is nearly normal, with deviation 1
        let normal = |even: &mut dyn FnMut(f64, f64) -> f64| (0..12).map(|_| even(-0.5, 0.5)).sum::<f64>();
        let twist = Twist {
            peer: (calibration.spread_peer * normal(&mut even)).exp(),
            staged: (calibration.spread_staged * normal(&mut even)).exp(),
            latency: (0.3 * normal(&mut even)).exp(),
            contention: even(0.2, 0.8),
            fill: Some(even(0.0, 3.0).exp2()),
        };
        Self { outlook, twist, spread, random }
    }

    /// One launch of a setting; none where it is beyond the model.
    pub fn step(&mut self, setting: &Setting) -> Option<Seconds> {
        let step = self.outlook.twisted(setting, &self.twist)?;
        let mut even = || f64::from(self.random.next_u32()) / f64::from(u32::MAX) - 0.5;
        let normal: f64 = (0..12).map(|_| even()).sum();
        Some(step * (self.spread * normal).exp())
    }

    /// A sweep over `space`: every setting once in each round.
    #[must_use]
    pub fn sweep(&mut self, head: TuneHead, space: &Space, launches: u32) -> TuneFile {
        let head = TuneHead { knobs: space.knobs.clone(), left_out: space.left_out.clone(), sweep: true, ..head };
        let mut file = TuneFile { head, trials: Vec::new() };
        for round in 1..=launches {
            for setting in space.grid() {
                let Some(step) = self.step(&setting) else { continue };
                file.trials.push(TuneTrial {
                    index: file.trials.len(),
                    setting,
                    arm: Arm::Ddp,
                    stage: "sweep".into(),
                    round,
                    why: String::new(),
                    step_s: Some(rounded(step, 1e-7)),
                    wall_s: rounded(step * 20.0, 1e-3),
                    finding: None,
                });
            }
        }
        file
    }
}
