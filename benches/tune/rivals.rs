//! What the tuner is compared with: a random search and a Bayesian one, on the launches that the tuner sees.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rigscale::record::{Setting, TuneKnob};
use rigscale::stats::{mean, median};
use rigscale::tune::{Landscape, Pool};

/// Settings that a random search launches, the default among them.
const RANDOM: usize = 12;

/// Samples of the Bayesian search, as many as Horovod's autotuner takes; the first so many are drawn at random.
const BAYES: (usize, usize) = (20, 5);

/// The best of settings drawn at random.
pub(crate) fn random(landscape: &Landscape, pool: &Pool, seed: u64) -> Setting {
    let mut all: Vec<&Setting> = landscape.cells.keys().filter(|setting| !setting.is_default()).collect();
    all.shuffle(&mut ChaCha8Rng::seed_from_u64(1_000 + seed));
    let tried = all.into_iter().take(RANDOM - 1).cloned().chain([Setting::default()]);
    let known = |setting: &Setting| median(&pool.seen(setting));
    tried.min_by(|one, other| known(one).total_cmp(&known(other))).unwrap_or_default()
}

/// Expected improvement over a Gaussian process with a squared-exponential kernel (Jones et al., 1998); sizes are a
/// coordinate each, other choices a corner.
pub(crate) fn bayes(landscape: &Landscape, pool: &Pool, noise: f64, seed: u64) -> Setting {
    let all: Vec<&Setting> = landscape.cells.keys().collect();
    let places: Vec<Vec<f64>> = all.iter().map(|setting| coordinates(&landscape.head.knobs, setting)).collect();
    let mut order: Vec<usize> = (0..all.len()).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(2_000 + seed));
    let mut tried: Vec<usize> = order.into_iter().take(BAYES.1).collect();
    let known = |at: usize| median(&pool.seen(all[at]));
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
