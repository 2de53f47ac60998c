//! How a search is scored on a landscape: by launches that it did not see, and by the truth where a model gives it.

use std::collections::BTreeMap;
use std::convert::Infallible;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rigscale::record::Setting;
use rigscale::stats::{Pooled, mean, median};
use rigscale::tune::{Ask, Case, Landscape, Limits, Outcome, Pool, Simulated, Site, search};
use rigscale::units::Seconds;

use super::rivals::{bayes, random};

/// The launches of a landscape are dealt by so many lots, each in as many turns as a setting has launches.
const LOTS: u64 = 4;

/// Searches of machines on which no setting matters.
pub(crate) const FLAT_SEARCHES: u64 = 20;

/// Within this of the best setting counts as found.
pub(crate) const NEAR: f64 = 0.01;

/// Who is compared, in the order of the columns; `blind` is the tuner without the model of the machine, from which
/// simulated landscapes also are.
pub(crate) const WHO: [&str; 5] = ["default", "random12", "bayes20", "blind", "tuner"];

/// The place of the tuner among them.
pub(crate) const TUNER: usize = WHO.len() - 1;

/// A landscape with what else is known of its machine.
pub(crate) struct Subject {
    pub(crate) landscape: Landscape,
    /// Logarithm of the step of each setting without noise, where the machine is simulated.
    truth: Option<BTreeMap<Setting, f64>>,
    /// What the model holds for the step of each setting, without what the machine differs by.
    predicted: BTreeMap<Setting, f64>,
    /// Scatter of a launch.
    pub(crate) noise: Pooled,
    /// Least launches of a setting.
    pub(crate) launches: usize,
}

/// Excesses are means over deals, as logarithms.
pub(crate) struct Score {
    /// By how much each of [`WHO`] is behind the setting that is best by all launches but the judge's.
    pub(crate) behind: [f64; WHO.len()],
    /// The same behind the truly best.
    pub(crate) truly: Option<[f64; WHO.len()]>,
    /// By how much what launches take for best is truly behind: so much the judge is too kind, at most.
    pub(crate) oracle: Option<f64>,
    /// Half the 95 % interval of the tuner's mean excess.
    pub(crate) half: f64,
    /// By how much the tuner is behind the default, with half its interval.
    pub(crate) than_default: [f64; 2],
    /// Share of deals in which the tuner's setting was within 1 % of the best: truly, where that is known.
    pub(crate) near: f64,
    /// Most settings that it launched.
    pub(crate) tried: usize,
    /// How often it launched, on average.
    pub(crate) searched: f64,
}

impl Subject {
    /// # Errors
    /// A setting has fewer than 5 launches, or a simulated landscape is not of the machine that its head names.
    pub(crate) fn new(landscape: Landscape) -> Result<Self, String> {
        let launches = landscape.cells.values().map(Vec::len).min().unwrap_or(0);
        if launches < 5 {
            return Err(format!("a setting has {launches} launches, wanted are 5"));
        }
        let noise = Pooled::of(landscape.cells.values().map(Vec::as_slice)).ok_or("no noise")?;
        let case = Case::of(&landscape.head);
        let grid = landscape.space().grid();
        let logs = |step: &dyn Fn(&Setting) -> Option<Seconds>| -> BTreeMap<Setting, f64> {
            grid.iter().filter_map(|setting| Some((setting.clone(), step(setting)?.0))).collect()
        };
        let predicted = case.as_ref().map(|case| case.outlook());
        let predicted = predicted.map_or_else(BTreeMap::new, |outlook| logs(&|setting| outlook.step(setting)));
        let machine = case.map(|case| Simulated::drawn(case.outlook(), case.config.seed));
        let truth = machine.map(|machine| logs(&|setting| machine.truth(setting).map(|step| Seconds(step.0.ln()))));
        let subject = Self { landscape, truth, predicted, noise, launches };
        match subject.strays() {
            Some(strays) if 3.0 * noise.deviation / (launches as f64).sqrt() + 1e-4 < strays => {
                Err(format!("{strays:.4} from what its model gives: draw it again with --draw"))
            }
            _ => Ok(subject),
        }
    }

    /// How far means of launches lie from the truth, root mean square, but for what all have in common.
    fn strays(&self) -> Option<f64> {
        let truth = self.truth.as_ref()?;
        let apart = |(setting, logs): (&Setting, &Vec<f64>)| truth.get(setting).map(|truth| mean(logs) - truth);
        let apart: Option<Vec<f64>> = self.landscape.cells.iter().map(apart).collect();
        let apart = apart.unwrap_or_else(|| vec![f64::INFINITY]);
        let common = mean(&apart);
        Some(mean(&apart.iter().map(|one| (one - common).powi(2)).collect::<Vec<_>>()).sqrt())
    }

    /// Settings of the landscape.
    pub(crate) fn settings(&self) -> usize {
        self.landscape.cells.len() + self.landscape.faults.len()
    }

    /// Settings that a search may launch.
    pub(crate) fn allowed(&self) -> usize {
        ((self.settings() as f64 * 0.15) as usize).max(12)
    }

    fn best(&self, known: impl Fn(&Setting) -> f64) -> Setting {
        let cells = self.landscape.cells.keys();
        cells.min_by(|one, other| known(one).total_cmp(&known(other))).cloned().unwrap_or_default()
    }

    /// Searches once for each deal of the launches.
    pub(crate) fn score(&self) -> Score {
        let deals: Vec<(u64, usize)> =
            (0..LOTS).flat_map(|lot| (0..self.launches).map(move |turn| (lot, turn))).collect();
        let share = 1.0 / deals.len() as f64;
        let (mut score, mut told) = (Score::none(self.truth.is_some()), [Influence::default(), Influence::default()]);
        for (at, (lot, turn)) in deals.iter().enumerate() {
            self.deal(*lot, *turn, at as u64, share, &mut score, &mut told);
        }
        let [half, than_default] = told.map(|influence| influence.half(&self.noise));
        Score { half, than_default: [score.than_default[0], than_default], ..score }
    }

    /// One deal: adds its share to the score, and which launches of the judge told it.
    fn deal(&self, lot: u64, turn: usize, seed: u64, share: f64, score: &mut Score, told: &mut [Influence; 2]) {
        let landscape = &self.landscape;
        let (searching, confirming) = shares(self.launches);
        let fresh = Pool::deal(landscape, lot, turn, searching, confirming);
        let limits = limits(self.allowed(), confirming, seed);
        let hunt = |predicted: &dyn Fn(&Setting) -> Option<f64>| {
            let found = search(&landscape.space(), &limits, predicted, &mut fresh.clone());
            found.unwrap_or_else(|never: Infallible| match never {})
        };
        let found = hunt(&|setting| self.predicted.get(setting).copied());
        let oracle = self.best(|setting| median(&fresh.known(setting)));
        let [default, tuner] = [Setting::default(), found.best.clone()];
        let chosen = [
            default.clone(),
            random(landscape, &fresh, seed),
            bayes(landscape, &fresh, self.noise.deviation, seed),
            hunt(&|_| None).best,
            tuner.clone(),
        ];
        let judged = |setting: &Setting| mean(&fresh.unseen(setting));
        let behind = chosen.each_ref().map(|setting| judged(setting) - judged(&oracle));
        add(&mut score.behind, behind, share);
        score.than_default[0] += (judged(&tuner) - judged(&default)) * share;
        told[0].add(&fresh, &tuner, &oracle, share);
        told[1].add(&fresh, &tuner, &default, share);
        let mut near = behind[TUNER];
        if let (Some(truth), Some(truly)) = (&self.truth, &mut score.truly) {
            let least = truth.values().copied().fold(f64::INFINITY, f64::min);
            let truly_behind = chosen.each_ref().map(|setting| truth[setting] - least);
            near = truly_behind[TUNER];
            add(truly, truly_behind, share);
            score.oracle = score.oracle.map(|sum| sum + (truth[&oracle] - least) * share);
        }
        score.near += f64::from(u8::from(near <= NEAR.ln_1p())) * share;
        score.tried = score.tried.max(found.ledger.tried());
        score.searched += found.launches as f64 * share;
    }

    /// The machine of a simulated landscape, swept anew with as many launches and as much noise.
    pub(crate) fn again(&self, times: usize, launches: u32) -> Result<Vec<Self>, String> {
        let Some(case) = Case::of(&self.landscape.head) else { return Ok(Vec::new()) };
        let mut machine = Simulated::drawn(case.outlook(), case.config.seed);
        let (head, space) = (&self.landscape.head, self.landscape.space());
        let sweep = |_| {
            let file = machine.sweep(head.clone(), &space, self.noise.deviation, launches);
            Self::new(Landscape::of(&file))
        };
        (0..times).map(sweep).collect()
    }

    /// How often a gain is claimed where there is none: every setting scatters as the launches of all do, about one step.
    pub(crate) fn false_gains(&self) -> usize {
        let noise = self.landscape.noise();
        let confirm = shares(self.launches).1.max(5);
        let claims = |deal: u64| {
            let mut flat = Flat { noise: &noise, random: ChaCha8Rng::seed_from_u64(3_000 + deal) };
            let limits = limits(self.allowed(), confirm, deal);
            let found = search(&self.landscape.space(), &limits, &|_| None, &mut flat);
            !found.unwrap_or_else(|never| match never {}).best.is_default()
        };
        (0..FLAT_SEARCHES).filter(|deal| claims(*deal)).count()
    }
}

impl Score {
    fn none(truly: bool) -> Self {
        Self {
            behind: [0.0; WHO.len()],
            truly: truly.then_some([0.0; WHO.len()]),
            oracle: truly.then_some(0.0),
            half: 0.0,
            than_default: [0.0; 2],
            near: 0.0,
            tried: 0,
            searched: 0.0,
        }
    }
}

fn add(sums: &mut [f64; WHO.len()], terms: [f64; WHO.len()], share: f64) {
    sums.iter_mut().zip(terms).for_each(|(sum, term)| *sum += term * share);
}

/// Launches of a setting for search and confirmation; the rest judges: one of 5, and as each is the judge's in its turn,
/// more would only leave the search fewer.
fn shares(launches: usize) -> (usize, usize) {
    let judge = (launches / 4).max(1);
    let confirm = (launches - judge) / 2;
    (launches - judge - confirm, confirm)
}

fn limits(settings: usize, confirm: usize, seed: u64) -> Limits {
    Limits {
        settings,
        rounds: 8,
        looks: vec![confirm as u32],
        budget: Seconds(1e9),
        seed,
        solo_rounds: 0,
        solo_launches: 0,
    }
}

/// With what weight each launch takes part in a mean over deals: where two deals judge by the same launches they tell
/// nothing twice, and a setting that is held against itself tells without noise.
#[derive(Default)]
struct Influence(BTreeMap<(Setting, usize), f64>);

impl Influence {
    fn add(&mut self, pool: &Pool, one: &Setting, other: &Setting, share: f64) {
        for (setting, sign) in [(one, 1.0), (other, -1.0)] {
            let places = pool.unseen_places(setting);
            for place in places {
                *self.0.entry((setting.clone(), *place)).or_default() += sign * share / places.len() as f64;
            }
        }
    }

    /// Half the 95 % interval of the mean, when single launches scatter by `noise`.
    fn half(&self, noise: &Pooled) -> f64 {
        // half_width(1, 1) is of a difference of two launches: √2 of one
        let one = noise.half_width(1, 1, 0.95) / 2.0_f64.sqrt();
        one * self.0.values().map(|weight| weight * weight).sum::<f64>().sqrt()
    }
}

/// A machine on which no setting matters.
struct Flat<'a> {
    noise: &'a [f64],
    random: ChaCha8Rng,
}

impl Site for Flat<'_> {
    type Error = Infallible;

    fn launch(&mut self, _: &Ask) -> Result<Outcome, Infallible> {
        let place = ((u64::from(self.random.next_u32()) * self.noise.len() as u64) >> 32) as usize;
        Ok(Outcome::Step { step: Seconds(self.noise[place].exp()), wall: Seconds(1.0) })
    }
}
