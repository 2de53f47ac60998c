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
    /// What went wrong, where something did: it is not launched again.
    pub fault: Option<Finding>,
    /// What became of it, in words.
    pub fate: String,
}

/// Every setting that was launched.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ledger {
    cells: BTreeMap<Setting, Cell>,
    order: Vec<Setting>,
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
        }
    }

    /// Notes what went wrong.
    pub fn fault(&mut self, setting: &Setting, finding: &Finding) {
        if let Some(cell) = self.cells.get_mut(setting) {
            cell.fault = Some(finding.clone());
            cell.fate = format!("failed: {}", finding.code);
        }
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
        self.scatter_with(&[])
    }

    /// The same with further groups of launches.
    #[must_use]
    pub fn scatter_with(&self, further: &[Vec<f64>]) -> Pooled {
        let groups = self.cells.values().map(|cell| cell.logs.as_slice()).chain(further.iter().map(Vec::as_slice));
        let pooled = Pooled::of(groups).unwrap_or(SCATTER_FIRST);
        Pooled { deviation: pooled.deviation.max(SCATTER_MIN), ..pooled }
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
