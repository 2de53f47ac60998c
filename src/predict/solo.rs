//! The step of one GPU alone, as a run folder holds it.

use crate::record::{Arm, RankFile, RunFiles, Step};
use crate::stats::{mean, steady_state};
use crate::units::Seconds;

use super::PredictError;

/// Phases of a step of one GPU alone.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Solo {
    /// Forward pass of one micro-step.
    pub forward: Seconds,
    /// Backward pass of one micro-step.
    pub backward: Seconds,
    /// Optimizer and all else.
    pub optimizer: Seconds,
}

impl Solo {
    /// The whole step.
    #[must_use]
    pub fn step(&self, accumulate: usize) -> Seconds {
        (self.forward + self.backward) * accumulate as f64 + self.optimizer
    }

    /// The mean over all ranks of a run that computed alone: the arm `solo`, or any trial of one rank. Heating and
    /// warm-up do not count.
    ///
    /// # Errors
    /// No rank ran alone for long enough, or the numbers are themselves predicted.
    pub fn of(files: &RunFiles) -> Result<Self, PredictError> {
        let wrong = |problem: String| PredictError::Run { run: files.name.clone(), problem };
        let all = || files.trials.values().flat_map(|ranks| ranks.values());
        let solo: Vec<&RankFile> = all().filter(|file| file.head.arm == Arm::Solo).collect();
        let alone = if solo.is_empty() { all().filter(|file| file.head.world == 1).collect() } else { solo };
        let steps: Vec<&Step> = alone.iter().flat_map(|file| steady(file, files.plan.heating_steps)).collect();
        if steps.is_empty() {
            return Err(wrong("no rank ran alone for long enough: `rigscale train --world 1` does".to_owned()));
        }
        Ok(Self::mean(&steps, files.plan.config.accumulate))
    }

    /// The mean of steps of a rank that computed alone; none of no steps.
    #[must_use]
    pub fn of_steps(steps: &[Step], accumulate: usize) -> Option<Self> {
        let steps: Vec<&Step> = steps.iter().collect();
        (!steps.is_empty()).then(|| Self::mean(&steps, accumulate))
    }

    /// The mean of steps.
    fn mean(steps: &[&Step], accumulate: usize) -> Self {
        let over = |of: fn(&Step) -> Seconds| mean(&steps.iter().map(|step| of(step).0).collect::<Vec<_>>());
        let (forward, backward) = (over(|step| step.forward_s), over(|step| step.backward_s));
        Self {
            forward: Seconds(forward / accumulate as f64),
            backward: Seconds(backward / accumulate as f64),
            optimizer: Seconds((over(|step| step.step_s) - forward - backward).max(0.0)),
        }
    }
}

/// The steps of a rank after heating and warm-up.
fn steady(file: &RankFile, heating: usize) -> &[Step] {
    let hot = file.steps.get(heating..).unwrap_or_default();
    let series: Vec<f64> = hot.iter().map(|step| step.step_s.0).collect();
    if series.is_empty() { hot } else { &hot[steady_state(&series).start..] }
}
