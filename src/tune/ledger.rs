//! What is known of each setting, and when a difference is more than noise.

use std::collections::BTreeMap;

use crate::record::{Finding, Setting};
use crate::stats::{Pooled, mean, median};
use crate::units::Seconds;

/// Launches differ by at least so much, whatever a few of them say: the scatter of three values can be 0 by chance.
const SCATTER_MIN: f64 = 0.001;

/// What is assumed before anything was launched twice: 2 % is a noisy machine.
const SCATTER_FIRST: Pooled = Pooled { deviation: 0.02, freedom: 2 };

/// One setting's launches.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Cell {
    /// Stage of its first launch.
    pub stage: String,
    /// Logarithm of the step of each launch that succeeded, in order.
    pub logs: Vec<f64>,
    /// What went wrong, launch by launch.
    pub faults: Vec<Finding>,
    /// Whether it is not launched again: it failed twice, or in a way that does not pass.
    pub condemned: bool,
    /// Whether it ran in one round with what it was held against.
    pub compared: bool,
    /// What became of it, in words.
    pub fate: String,
    /// The part of the search in which each launch ran.
    parts: Vec<usize>,
}

impl Cell {
    /// Launches of one part of the search each: within a few minutes little drifts.
    fn groups(&self) -> impl Iterator<Item = &[f64]> {
        let mut begin = 0;
        self.parts.chunk_by(|one, other| one == other).map(move |part| {
            begin += part.len();
            &self.logs[begin - part.len()..begin]
        })
    }
}

/// Whether what went wrong may pass: a rank that hung or died may not do so again; sums that are wrong, or what NCCL or the
/// machine refuses, stay so.
fn passes(finding: &Finding) -> bool {
    ["hang-", "rank-"].iter().any(|kind| finding.code.starts_with(kind))
}

/// Every setting that was launched.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ledger {
    cells: BTreeMap<Setting, Cell>,
    order: Vec<Setting>,
    part: usize,
}

impl Ledger {
    /// Notes that a setting is launched in a stage; only its first is kept.
    pub fn begin(&mut self, setting: &Setting, stage: &str) {
        if !self.cells.contains_key(setting) {
            self.order.push(setting.clone());
            self.cells.insert(setting.clone(), Cell { stage: stage.to_owned(), ..Cell::default() });
        }
    }

    /// Notes the step of a launch.
    pub fn step(&mut self, setting: &Setting, step: Seconds) {
        if let Some(cell) = self.cells.get_mut(setting) {
            cell.logs.push(step.0.ln());
            cell.parts.push(self.part);
        }
    }

    /// Begins another part of the search: what drifts from one to the other is no scatter of launches.
    pub fn part(&mut self) {
        self.part += 1;
    }

    /// Notes what went wrong. A hang or a death may be tried once more; true where it is the last.
    pub fn fault(&mut self, setting: &Setting, finding: &Finding) -> bool {
        let Some(cell) = self.cells.get_mut(setting) else { return true };
        cell.faults.push(finding.clone());
        cell.condemned |= !passes(finding) || 2 <= cell.faults.len();
        cell.fate = format!("failed: {}", finding.code);
        cell.condemned
    }

    /// Notes that a setting is not to be launched again, and why.
    pub fn condemn(&mut self, setting: &Setting, fate: String) {
        if let Some(cell) = self.cells.get_mut(setting) {
            (cell.condemned, cell.fate) = (true, fate);
        }
    }

    /// Notes that a setting ran beside what it is held against.
    pub fn compared(&mut self, setting: &Setting) {
        if let Some(cell) = self.cells.get_mut(setting) {
            cell.compared = true;
        }
    }

    /// What went wrong in all launches.
    pub fn faults(&self) -> impl Iterator<Item = (&Setting, &Finding)> {
        self.cells().flat_map(|(setting, cell)| cell.faults.iter().map(move |finding| (setting, finding)))
    }

    /// Notes what became of a setting.
    pub fn fate(&mut self, setting: &Setting, fate: String) {
        if let Some(cell) = self.cells.get_mut(setting) {
            cell.fate = fate;
        }
    }

    /// A setting's launches.
    #[must_use]
    pub fn cell(&self, setting: &Setting) -> Option<&Cell> {
        self.cells.get(setting)
    }

    /// Settings in the order of their first launch, each with its launches.
    pub fn cells(&self) -> impl Iterator<Item = (&Setting, &Cell)> {
        self.order.iter().filter_map(|setting| Some((setting, self.cells.get(setting)?)))
    }

    /// How many settings were launched.
    #[must_use]
    pub fn tried(&self) -> usize {
        self.order.len()
    }

    /// The scatter of one launch, as a logarithm, over all settings.
    #[must_use]
    pub fn scatter(&self) -> Pooled {
        let pooled = Pooled::of(self.cells.values().map(|cell| cell.logs.as_slice())).unwrap_or(SCATTER_FIRST);
        Pooled { deviation: pooled.deviation.max(SCATTER_MIN), ..pooled }
    }

    /// The scatter of one launch of one setting, from its own launches alone, `further` ones among them: settings scatter
    /// differently, and ranks that wander scatter ten times as much as ranks that keep their place. None where it never ran
    /// twice.
    #[must_use]
    pub fn scatter_of(&self, setting: &Setting, further: &[f64]) -> Option<Pooled> {
        let own = self.cells.get(setting).into_iter().flat_map(Cell::groups);
        let pooled = Pooled::of(own.chain([further]))?;
        Some(Pooled { deviation: pooled.deviation.max(SCATTER_MIN), ..pooled })
    }
}

/// The launches of a race, by setting and round.
#[derive(Debug, Clone, Default)]
pub(super) struct Rounds(BTreeMap<Setting, BTreeMap<u32, f64>>);

impl Rounds {
    pub(super) fn note(&mut self, setting: &Setting, round: u32, step: Seconds) {
        self.0.entry(setting.clone()).or_default().insert(round, step.0.ln());
    }

    /// By how much one setting takes longer than another, as a logarithm, and in how many rounds both ran: what drifts
    /// over minutes falls on both alike. None where they never ran in one round.
    pub(super) fn difference(&self, one: &Setting, other: &Setting) -> Option<(f64, usize)> {
        let (one, other) = (self.0.get(one)?, self.0.get(other)?);
        let both: Vec<f64> = one.iter().filter_map(|(round, step)| other.get(round).map(|than| step - than)).collect();
        let centre = || if both.len() < 3 { mean(&both) } else { median(&both) };
        (!both.is_empty()).then(|| (centre(), both.len()))
    }
}
