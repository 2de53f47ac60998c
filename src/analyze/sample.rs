//! One launch at one world size: the rates of the three arms and the split of its efficiency.

use std::collections::BTreeSet;

use crate::record::{Arm, LaunchPoint, Plan, Step};
use crate::units::TokensPerSecond;

use super::Ran;

/// A world size on a set of shares, with its launches.
pub(super) struct Cell<'a> {
    /// Ranks.
    pub(super) world: usize,
    /// The launches whose arms are all there, ascending.
    pub(super) samples: Vec<Sample<'a>>,
}

/// One launch of a cell. Rates are tokens per second.
pub(super) struct Sample<'a> {
    pub(super) launch: u32,
    /// The solo trials of the shares in use.
    pub(super) solo: Vec<&'a Ran<'a>>,
    /// All shares without exchange; none at N = 1, where the solo trial says the same.
    pub(super) together: Option<&'a Ran<'a>>,
    pub(super) ddp: &'a Ran<'a>,
    /// S: sum of the rates of each share alone.
    pub(super) solo_rate: f64,
    /// G: sum of the rates while all are stepping.
    pub(super) together_rate: f64,
    /// M: the rate of a free exchange, tokens of a step over the mean of the slowest rank's k-th step.
    pub(super) free_rate: f64,
    /// M over the rate that the slowest rank's mean step allows: 1 where ranks do not vary from step to step.
    pub(super) jitter: f64,
    /// D.
    pub(super) ddp_rate: f64,
}

/// What becomes of a step's time between the arms, on the rank that arrives last at each step. Seconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct LastRank {
    /// Forward and backward of the rank for which they took longest.
    pub(super) compute_s: f64,
    /// Its wait for gradients.
    pub(super) exposed_s: f64,
    /// Its optimizer.
    pub(super) optimizer_s: f64,
}

/// Every world size and set of shares that the plan trains on, ascending.
pub(super) fn cells<'a>(plan: &Plan, ran: &'a [Ran<'a>]) -> Vec<Cell<'a>> {
    let keys: BTreeSet<(usize, Vec<usize>)> = plan
        .trials
        .iter()
        .filter(|trial| trial.arm == Arm::Ddp)
        .map(|trial| (trial.shares.len(), ascending(&trial.shares)))
        .collect();
    let launches: BTreeSet<u32> = plan.trials.iter().map(|trial| trial.launch).collect();
    keys.into_iter()
        .map(|(world, shares)| Cell {
            world,
            samples: launches.iter().filter_map(|launch| Sample::of(ran, *launch, &shares)).collect(),
        })
        .collect()
}

fn ascending(shares: &[usize]) -> Vec<usize> {
    let mut shares = shares.to_vec();
    shares.sort_unstable();
    shares
}

impl<'a> Sample<'a> {
    /// The sample of a launch; none unless all its arms ran.
    fn of(ran: &'a [Ran<'a>], launch: u32, shares: &[usize]) -> Option<Self> {
        let find = |arm, shares: &[usize]| {
            ran.iter().find(|ran| {
                ran.trial.launch == launch && ran.trial.arm == arm && ascending(&ran.trial.shares) == shares
            })
        };
        let ddp = find(Arm::Ddp, shares)?;
        let solo = shares.iter().map(|share| find(Arm::Solo, &[*share])).collect::<Option<Vec<_>>>()?;
        let together = find(Arm::Together, shares);
        if together.is_none() && shares.len() > 1 {
            return None;
        }
        let solo_rate = solo.iter().map(|ran| rate(ran)).sum();
        let together_rate = together.map_or(solo_rate, rate);
        let free_rate = together.map_or(solo_rate, |ran| work(ran) / free_step_s(ran));
        let jitter = together.map_or(1.0, |ran| slowest_mean_step_s(ran) / free_step_s(ran));
        let sample =
            Self { launch, ddp_rate: rate(ddp), solo, together, ddp, solo_rate, together_rate, free_rate, jitter };
        let product = sample.silicon() * sample.straggler() * sample.comm();
        assert!((product / sample.efficiency() - 1.0).abs() < 1e-12, "the split of launch {launch} lost something");
        Some(sample)
    }

    /// E = D / S.
    pub(super) fn efficiency(&self) -> f64 {
        self.ddp_rate / self.solo_rate
    }

    /// G / S.
    pub(super) fn silicon(&self) -> f64 {
        self.together_rate / self.solo_rate
    }

    /// M / G.
    pub(super) fn straggler(&self) -> f64 {
        self.free_rate / self.together_rate
    }

    /// D / M.
    pub(super) fn comm(&self) -> f64 {
        self.ddp_rate / self.free_rate
    }

    /// The arm that shows compute without exchange: `together`, or the only solo trial at N = 1.
    pub(super) fn undisturbed(&self) -> &'a Ran<'a> {
        self.together.unwrap_or(self.solo[0])
    }

    /// Every trial of the sample.
    pub(super) fn trials(&self) -> impl Iterator<Item = &'a Ran<'a>> {
        self.solo.iter().copied().chain(self.together).chain([self.ddp])
    }

    /// The numbers of this launch for the sheet.
    pub(super) fn launch_point(&self) -> LaunchPoint {
        LaunchPoint {
            launch: self.launch,
            efficiency: self.efficiency(),
            silicon: self.silicon(),
            straggler: self.straggler(),
            comm: self.comm(),
            ddp_rate: TokensPerSecond(self.ddp_rate),
            solo_rate: TokensPerSecond(self.solo_rate),
        }
    }
}

/// Sum over ranks of tokens over time, each over its counted steps.
fn rate(ran: &Ran<'_>) -> f64 {
    ran.ranks().map(|rank| rate_of(ran.steps(rank))).sum()
}

fn rate_of(steps: &[Step]) -> f64 {
    let tokens: u64 = steps.iter().map(|step| step.tokens.0).sum();
    let seconds: f64 = steps.iter().map(|step| step.step_s.0).sum();
    tokens as f64 / seconds
}

/// Tokens of one step over all ranks, mean over the aligned steps.
pub(super) fn work(ran: &Ran<'_>) -> f64 {
    let aligned = |rank: usize| &ran.files[rank].steps[ran.aligned.clone()];
    let tokens: u64 = ran.ranks().flat_map(aligned).map(|step| step.tokens.0).sum();
    tokens as f64 / ran.aligned.len() as f64
}

/// The step of a free exchange: mean over k of the slowest rank's k-th step.
fn free_step_s(ran: &Ran<'_>) -> f64 {
    let slowest = |at: usize| ran.files.iter().map(|file| file.steps[at].step_s.0).fold(0.0, f64::max);
    ran.aligned.clone().map(slowest).sum::<f64>() / ran.aligned.len() as f64
}

/// The mean step of the rank whose mean is largest, over the same steps as [`free_step_s`].
fn slowest_mean_step_s(ran: &Ran<'_>) -> f64 {
    let sum = |rank: usize| ran.files[rank].steps[ran.aligned.clone()].iter().map(|step| step.step_s.0).sum::<f64>();
    ran.ranks().map(sum).fold(0.0, f64::max) / ran.aligned.len() as f64
}

/// Means over the aligned steps, each taken on the rank whose forward and backward took longest at that step.
pub(super) fn last_rank(ran: &Ran<'_>) -> LastRank {
    let compute = |step: &Step| step.forward_s.0 + step.backward_s.0;
    let (mut compute_s, mut exposed_s, mut optimizer_s) = (0.0, 0.0, 0.0);
    for at in ran.aligned.clone() {
        let last =
            ran.files.iter().map(|file| &file.steps[at]).max_by(|one, other| compute(one).total_cmp(&compute(other)));
        if let Some(step) = last {
            compute_s += compute(step);
            exposed_s += step.exposed_s.0;
            optimizer_s += step.optimizer_s.0;
        }
    }
    let count = ran.aligned.len() as f64;
    LastRank { compute_s: compute_s / count, exposed_s: exposed_s / count, optimizer_s: optimizer_s / count }
}
