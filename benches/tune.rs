//! How well `rigscale tune` searches: on landscapes of which every setting was launched, beside random search, a Bayesian
//! search and the default. Run by `scripts/bench-tune`.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints its table")]

use std::convert::Infallible;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rigscale::model::preset;
use rigscale::predict::{Alone, NcclVersion, platform};
use rigscale::record::{
    DataSource, Origin, Precision, Setting, TrainConfig, TuneFile, TuneHead, TuneKnob, read_tune_file,
};
use rigscale::stats::{Pooled, mean, median};
use rigscale::tune::{Ask, Landscape, Limits, Outcome, Outlook, Pool, Site, search};
use rigscale::units::{Bytes, Seconds};
use serde::Serialize;

/// Each landscape is searched so often, each time with other launches hidden from the search.
const DEALS: u64 = 20;

/// Settings that a random search launches, the default among them.
const RANDOM: usize = 12;

/// Samples of the Bayesian search, as many as Horovod's autotuner takes; the first so many are drawn at random.
const BAYES: (usize, usize) = (20, 5);

/// Within this of the best setting counts as found.
const NEAR: f64 = 0.01;

/// The share of landscapes on which the setting must be found.
const WANTED: f64 = 0.9;

#[derive(Serialize)]
struct Row {
    landscape: String,
    origin: Origin,
    settings: usize,
    launches: usize,
    /// Scatter of a launch, as a share.
    noise: f64,
    /// How much longer the default's step is than the best one's, judged on launches that no search saw.
    default: f64,
    random: f64,
    bayes: f64,
    tuner: f64,
    /// Half the width of the 95 % interval of such a difference in one deal.
    judge: f64,
    /// Share of deals in which the tuner's setting was within 1 % of the best.
    near: f64,
    /// Most settings that it launched, and how many it may.
    tried: usize,
    allowed: usize,
    /// How often it launched, on average.
    searched: f64,
    /// Deals in which a gain was claimed on a landscape in which all settings are the default.
    false_gains: usize,
    reached: bool,
}

#[derive(Serialize)]
struct Sheet {
    deals: u64,
    rows: Vec<Row>,
    reached: usize,
    worse_than_default: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<PathBuf> =
        fs::read_dir(root.join("tests/tune"))?.map(|entry| entry.map(|it| it.path())).collect::<Result<_, _>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    files.extend(std::env::args().skip(1).filter(|word| word.ends_with(".jsonl")).map(PathBuf::from));
    files.sort();
    let mut rows = Vec::new();
    header();
    for path in &files {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let row = judged(name, &read_tune_file(path)?)?;
        line(&row);
        rows.push(row);
    }
    let reached = rows.iter().filter(|row| row.reached).count();
    let worse_than_default = rows.iter().filter(|row| row.default + row.judge < row.tuner).count();
    let share = reached as f64 / rows.len().max(1) as f64;
    println!(
        "\nwithin 1 % of the best on launches that the search did not see, with at most max(12, 15 %) settings: {reached} of \
         {} landscapes, wanted 9 of 10: {}",
        rows.len(),
        if WANTED <= share { "REACHED" } else { "MISSED" }
    );
    println!(
        "worse than the default beyond noise: {worse_than_default}, wanted 0: {}",
        if worse_than_default == 0 { "REACHED" } else { "MISSED" }
    );
    let sheet = Sheet { deals: DEALS, rows, reached, worse_than_default };
    let place = root.join("tests/tune/bench.json");
    fs::write(&place, serde_json::to_string_pretty(&sheet)? + "\n")?;
    eprintln!("written to {}", place.display());
    Ok(())
}

fn header() {
    println!(
        "How much longer the step is than with the best setting of an exhaustive sweep, mean of {DEALS} deals of the launches:"
    );
    println!(
        "{:32} {:>8} {:>6} {:>8} {:>8} {:>8} {:>8} {:>7} {:>7} {:>6} {:>6}",
        "landscape", "settings", "noise", "default", "random12", "bayes20", "tuner", "within", "tried", "runs", "false"
    );
}

fn line(row: &Row) {
    let percent = |share: f64| format!("{:.2} %", share * 100.0);
    println!(
        "{:32} {:>8} {:>6} {:>8} {:>8} {:>8} {:>8} {:>7} {:>7} {:>6.0} {:>6}  {}",
        row.landscape,
        row.settings,
        percent(row.noise),
        percent(row.default),
        percent(row.random),
        percent(row.bayes),
        percent(row.tuner),
        format!("{:.0} %", row.near * 100.0),
        format!("{}/{}", row.tried, row.allowed),
        row.searched,
        format!("{}/{DEALS}", row.false_gains),
        if row.reached { "reached" } else { "MISSED" },
    );
}

/// Launches of a setting for search and confirmation; the rest judges.
fn shares(launches: usize) -> (usize, usize) {
    let judge = (launches * 3 / 8).max(1);
    let confirm = (launches - judge) / 2;
    (launches - judge - confirm, confirm)
}

fn judged(name: String, file: &TuneFile) -> Result<Row, Box<dyn Error>> {
    let landscape = Landscape::of(file);
    let launches = landscape.cells.values().map(Vec::len).min().unwrap_or(0);
    if launches < 5 {
        return Err(format!("{name}: a setting has {launches} launches, wanted are 5").into());
    }
    let (search_share, confirm_share) = shares(launches);
    let pooled = Pooled::of(landscape.cells.values().map(Vec::as_slice)).ok_or("no noise")?;
    let settings = landscape.cells.len() + landscape.faults.len();
    let allowed = ((settings as f64 * 0.15) as usize).max(12);
    let outlook = outlook(&landscape.head);
    let predicted = |setting: &Setting| outlook.as_ref()?.step(setting).map(|step| step.0);
    let (mut sums, mut near, mut tried, mut searched) = ([0.0; 4], 0_usize, 0, 0);
    for deal in 0..DEALS {
        let mut pool = Pool::deal(&landscape, deal, search_share, confirm_share);
        let limits = limits(allowed, confirm_share, deal);
        let found = search(&landscape.space(), &limits, &predicted, &mut pool).unwrap_or_else(|never| match never {});
        let fresh = Pool::deal(&landscape, deal, search_share, confirm_share);
        let oracle = oracle(&landscape, &fresh)?;
        let chosen = [
            Setting::default(),
            random(&landscape, &fresh, deal),
            bayes(&landscape, &fresh, pooled.deviation, deal),
            found.best.clone(),
        ];
        let behind = chosen.map(|setting| median(fresh.unseen(&setting)) - median(fresh.unseen(&oracle)));
        sums.iter_mut().zip(behind).for_each(|(sum, behind)| *sum += behind / DEALS as f64);
        near += usize::from(behind[3] <= NEAR.ln_1p());
        tried = tried.max(found.ledger.tried());
        searched += found.launches;
    }
    let [default, random, bayes, tuner] = sums.map(f64::exp_m1);
    let judge = launches - search_share - confirm_share;
    Ok(Row {
        landscape: name,
        origin: landscape.head.origin,
        settings,
        launches,
        noise: pooled.deviation,
        default,
        random,
        bayes,
        tuner,
        judge: pooled.half_width(judge, judge, 0.95),
        near: near as f64 / DEALS as f64,
        tried,
        allowed,
        searched: searched as f64 / DEALS as f64,
        false_gains: false_gains(&landscape, allowed),
        reached: tuner <= NEAR && tried <= allowed,
    })
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

/// The best setting by all launches that are not the judge's.
fn oracle(landscape: &Landscape, pool: &Pool) -> Result<Setting, &'static str> {
    let known = |setting: &Setting| median(&pool.known(setting));
    let best = landscape.cells.keys().min_by(|one, other| known(one).total_cmp(&known(other)));
    best.cloned().ok_or("no setting succeeded")
}

fn random(landscape: &Landscape, pool: &Pool, seed: u64) -> Setting {
    let mut all: Vec<&Setting> = landscape.cells.keys().filter(|setting| !setting.is_default()).collect();
    all.shuffle(&mut ChaCha8Rng::seed_from_u64(1_000 + seed));
    let tried = all.into_iter().take(RANDOM - 1).cloned().chain([Setting::default()]);
    let known = |setting: &Setting| median(pool.seen(setting));
    tried.min_by(|one, other| known(one).total_cmp(&known(other))).unwrap_or_default()
}

/// Expected improvement over a Gaussian process with a squared-exponential kernel (Jones et al., 1998); sizes are a
/// coordinate each, other choices a corner.
fn bayes(landscape: &Landscape, pool: &Pool, noise: f64, seed: u64) -> Setting {
    let all: Vec<&Setting> = landscape.cells.keys().collect();
    let places: Vec<Vec<f64>> = all.iter().map(|setting| coordinates(&landscape.head.knobs, setting)).collect();
    let mut order: Vec<usize> = (0..all.len()).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(2_000 + seed));
    let mut tried: Vec<usize> = order.into_iter().take(BAYES.1).collect();
    let known = |at: usize| median(pool.seen(all[at]));
    while tried.len() < BAYES.0.min(all.len()) {
        let process = Process::of(&places, &tried, &known, noise);
        let open = (0..all.len()).filter(|at| !tried.contains(at));
        let Some(next) = open.max_by(|one, other| process.improvement(*one).total_cmp(&process.improvement(*other)))
        else {
            break;
        };
        tried.push(next);
    }
    let process = Process::of(&places, &tried, &known, noise);
    let best = tried.iter().min_by(|one, other| process.at(**one).0.total_cmp(&process.at(**other).0));
    best.map_or_else(Setting::default, |at| all[*at].clone())
}

fn coordinates(knobs: &[TuneKnob], setting: &Setting) -> Vec<f64> {
    let mut all = Vec::new();
    for knob in knobs {
        let place = knob.choices.iter().position(|choice| choice == setting.of(&knob.name));
        if knob.ordered {
            let last = (knob.choices.len() - 1).max(1) as f64;
            all.push(place.map_or(0.5, |place| place as f64 / last));
            all.push(if place.is_none() { 0.5 } else { 0.0 });
        } else {
            all.extend((0..knob.choices.len()).map(|at| if place == Some(at) { 0.7 } else { 0.0 }));
        }
    }
    all
}

/// A Gaussian process over the settings that were tried.
struct Process<'a> {
    places: &'a [Vec<f64>],
    tried: &'a [usize],
    lower: Vec<Vec<f64>>,
    weights: Vec<f64>,
    centre: f64,
    scale: f64,
    least: f64,
}

/// Length over which settings are alike.
const LENGTH: f64 = 0.6;

impl<'a> Process<'a> {
    fn of(places: &'a [Vec<f64>], tried: &'a [usize], known: &dyn Fn(usize) -> f64, noise: f64) -> Self {
        let values: Vec<f64> = tried.iter().map(|at| known(*at)).collect();
        let centre = mean(&values);
        let spread = mean(&values.iter().map(|value| (value - centre).powi(2)).collect::<Vec<_>>()).sqrt();
        let scale = spread.max(noise).max(1e-6);
        let nugget = (noise / scale).powi(2).max(1e-6);
        let count = tried.len();
        let mut lower = vec![vec![0.0; count]; count];
        for row in 0..count {
            for column in 0..=row {
                let mut sum =
                    kernel(&places[tried[row]], &places[tried[column]]) + if row == column { nugget } else { 0.0 };
                sum -= (0..column).map(|at| lower[row][at] * lower[column][at]).sum::<f64>();
                lower[row][column] = if row == column { sum.max(1e-12).sqrt() } else { sum / lower[column][column] };
            }
        }
        let scaled: Vec<f64> = values.iter().map(|value| (value - centre) / scale).collect();
        let half = forward(&lower, &scaled);
        let mut weights = half;
        for row in (0..count).rev() {
            let later: f64 = (row + 1..count).map(|at| lower[at][row] * weights[at]).sum();
            weights[row] = (weights[row] - later) / lower[row][row];
        }
        let least = scaled.iter().copied().fold(f64::INFINITY, f64::min);
        Self { places, tried, lower, weights, centre, scale, least }
    }

    /// Mean and deviation at a setting, in logarithms of steps.
    fn at(&self, setting: usize) -> (f64, f64) {
        let near: Vec<f64> = self.tried.iter().map(|at| kernel(&self.places[*at], &self.places[setting])).collect();
        let centre: f64 = near.iter().zip(&self.weights).map(|(near, weight)| near * weight).sum();
        let half = forward(&self.lower, &near);
        let variance = 1.0 - half.iter().map(|one| one * one).sum::<f64>();
        (self.centre + centre * self.scale, variance.max(1e-12).sqrt())
    }

    fn improvement(&self, setting: usize) -> f64 {
        let (value, deviation) = self.at(setting);
        let ahead = self.least - (value - self.centre) / self.scale;
        let z = ahead / deviation;
        ahead * cumulative(z) + deviation * (-0.5 * z * z).exp() / (2.0 * std::f64::consts::PI).sqrt()
    }
}

fn kernel(one: &[f64], other: &[f64]) -> f64 {
    let square: f64 = one.iter().zip(other).map(|(one, other)| (one - other).powi(2)).sum();
    (-0.5 * square / (LENGTH * LENGTH)).exp()
}

fn forward(lower: &[Vec<f64>], values: &[f64]) -> Vec<f64> {
    let mut solved: Vec<f64> = Vec::with_capacity(values.len());
    for (row, value) in values.iter().enumerate() {
        let before: f64 = solved.iter().zip(&lower[row]).map(|(one, factor)| one * factor).sum();
        solved.push((value - before) / lower[row][row]);
    }
    solved
}

/// The normal distribution function, to within 0.0005 (Tocher's logistic form).
fn cumulative(z: f64) -> f64 {
    let power = 2.0 * (2.0 / std::f64::consts::PI).sqrt() * z * (1.0 + 0.044_715 * z * z);
    1.0 / (1.0 + (-power).exp())
}

/// How often a gain is claimed where there is none: every setting scatters as the launches of all do, about one step.
fn false_gains(landscape: &Landscape, settings: usize) -> usize {
    let noise = landscape.noise();
    let confirm = shares(landscape.cells.values().map(Vec::len).min().unwrap_or(5)).1.max(5);
    let claims = |deal: u64| {
        let mut flat = Flat { noise: &noise, random: ChaCha8Rng::seed_from_u64(3_000 + deal) };
        let limits = limits(settings, confirm, deal);
        let found = search(&landscape.space(), &limits, &|_| None, &mut flat).unwrap_or_else(|never| match never {});
        !found.best.is_default()
    };
    (0..DEALS).filter(|deal| claims(*deal)).count()
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

/// The model of a simulated machine, without what its landscape was bent by; none for machines that were measured.
fn outlook(head: &TuneHead) -> Option<Outlook> {
    let identity = &head.identity;
    let name = identity.topology_sha256.strip_prefix("simulated: ")?.split(',').next()?;
    let board = platform(name).ok()?.with_gpus(identity.world).ok()?;
    let preset = preset(&identity.model).ok()?;
    let config = TrainConfig {
        model: preset.name.into(),
        shape: preset.shape,
        batch: identity.batch,
        context: identity.context,
        accumulate: identity.accumulate,
        recompute: false,
        deterministic: false,
        steps: 1,
        precision: Precision::Bf16,
        data: DataSource::Synthetic,
        seed: 0,
        learning_rate: 0.0,
        weight_decay: 0.0,
        clip_norm: None,
        bucket_bytes: Bytes::mebi(25.0),
        first_bucket_bytes: Bytes::mebi(1.0),
        reduce_dtype: None,
        zero: 0,
        bucket_events_every: 0,
        checksum_every: 0,
    };
    Some(Outlook::new(board, config, Alone::Catalogue, NcclVersion::MODELLED))
}
