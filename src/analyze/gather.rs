//! Which trials and which of their steps count.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::record::{Arm, Dropped, EndReason, Flag, RankFile, RunFiles, Step, Trial};
use crate::stats::steady_state;

use super::{AnalyzeError, check};

/// Fewer steps than this in the counted window make no rate.
const STEPS_MIN: usize = 5;

/// Fewer steps than this in the counted window forbid a verdict: a single outlier moves their mean, and whether they
/// are steady cannot be judged.
pub(super) const STEPS_FEW: usize = 10;

/// The trials that ran to their end, and what became of the others.
pub(super) struct Gathered<'a> {
    /// In the order of the plan.
    pub(super) ran: Vec<Ran<'a>>,
    /// About trials that did not.
    pub(super) flags: Vec<Flag>,
    /// Steps that do not count.
    pub(super) dropped: Vec<Dropped>,
}

/// A trial that ran to its end on every rank.
pub(super) struct Ran<'a> {
    pub(super) trial: &'a Trial,
    /// Its place in the order in which trials ran.
    pub(super) place: usize,
    /// Rank files by rank.
    pub(super) files: Vec<&'a RankFile>,
    /// Indices of the steps that count, for each rank. Equal on all ranks but in the arm `together`, where ranks run
    /// at their own pace and only whole steps inside the time in which all are stepping count.
    pub(super) counted: Vec<Range<usize>>,
    /// Indices at which the ranks' steps are set side by side: from the first steady step of all ranks to the last
    /// that every rank finished inside the common time.
    pub(super) aligned: Range<usize>,
    /// False if some rank's step time never became steady.
    pub(super) settled: bool,
}

impl<'a> Ran<'a> {
    /// The counted steps of one rank.
    pub(super) fn steps(&self, rank: usize) -> &'a [Step] {
        &self.files[rank].steps[self.counted[rank].clone()]
    }

    /// Ranks.
    pub(super) fn ranks(&self) -> Range<usize> {
        0..self.files.len()
    }

    /// Counted steps of all ranks.
    pub(super) fn counted_steps(&self) -> usize {
        self.counted.iter().map(ExactSizeIterator::len).sum()
    }

    pub(super) fn dropped(&self, rank: Option<usize>, steps: usize, why: &str) -> Dropped {
        Dropped { trial: self.trial.name.clone(), rank, steps, why: why.into() }
    }
}

/// Checks the plan, then takes each of its trials.
pub(super) fn gather(files: &RunFiles) -> Result<Gathered<'_>, AnalyzeError> {
    check::plan(&files.name, &files.plan)?;
    let tokens = check::tokens_per_step(&files.plan.config);
    let mut gathered = Gathered { ran: Vec::new(), flags: Vec::new(), dropped: Vec::new() };
    let mut lost = Lost::default();
    for (place, trial) in files.plan.trials.iter().enumerate() {
        let Some(ranks) = files.trials.get(&trial.name) else {
            lost.note("missing-trial", &trial.name, "never started");
            gathered.dropped.push(whole(trial, 0, "never started"));
            continue;
        };
        check::ranks(trial, ranks, tokens)?;
        let steps = ranks.values().map(|file| file.steps.len()).sum();
        match complete(trial, ranks, files.plan.config.steps)
            .and_then(|all| count((place, trial), all, files.plan.heating_steps))
        {
            Ok(ran) => {
                gathered.dropped.extend(outside(&ran, files.plan.heating_steps));
                gathered.ran.push(ran);
            }
            Err(Loss { code, why }) => {
                lost.note(code, &trial.name, &why);
                gathered.dropped.push(whole(trial, steps, &why));
            }
        }
    }
    for (name, ranks) in &files.trials {
        if !files.plan.trials.iter().any(|trial| trial.name == *name) {
            let steps = ranks.values().map(|file| file.steps.len()).sum();
            gathered.dropped.push(Dropped { trial: name.clone(), rank: None, steps, why: "is not in the plan".into() });
        }
    }
    gathered.flags = lost.flags();
    Ok(gathered)
}

fn whole(trial: &Trial, steps: usize, why: &str) -> Dropped {
    Dropped { trial: trial.name.clone(), rank: None, steps, why: format!("trial lost: {why}") }
}

/// Why a trial does not count.
struct Loss {
    code: &'static str,
    why: String,
}

/// Lost trials by code, so that one accident makes one flag.
#[derive(Default)]
struct Lost(BTreeMap<&'static str, Vec<(String, String)>>);

impl Lost {
    fn note(&mut self, code: &'static str, trial: &str, why: &str) {
        self.0.entry(code).or_default().push((trial.into(), why.into()));
    }

    fn flags(self) -> Vec<Flag> {
        let flag = |(code, trials): (&str, Vec<(String, String)>)| {
            let (first, why) = &trials[0];
            let others = match trials.len() - 1 {
                0 => String::new(),
                1 => " (and 1 other trial)".into(),
                count => format!(" (and {count} other trials)"),
            };
            Flag { code: code.into(), blocks: true, text: format!("{first}: {why}{others}") }
        };
        self.0.into_iter().map(flag).collect()
    }
}

/// The files of all ranks, if every one of them ran to its end and holds the `planned` number of steps.
fn complete<'a>(
    trial: &Trial,
    ranks: &'a BTreeMap<usize, RankFile>,
    planned: usize,
) -> Result<Vec<&'a RankFile>, Loss> {
    let world = trial.shares.len();
    let lacking: Vec<String> =
        (0..world).filter(|rank| !ranks.contains_key(rank)).map(|rank| rank.to_string()).collect();
    if !lacking.is_empty() {
        return Err(Loss { code: "missing-rank", why: format!("no file of rank {}", lacking.join(", ")) });
    }
    for (rank, file) in ranks {
        let steps = file.steps.len();
        match &file.end {
            None => {
                let why = format!("rank {rank} has no last line: it did not finish (steps written: {steps})");
                return Err(Loss { code: "missing-end", why });
            }
            Some(end) if end.reason != EndReason::Completed => {
                let how = match end.reason {
                    EndReason::Interrupted => "was interrupted",
                    EndReason::Stopped => "was stopped",
                    _ => "failed",
                };
                return Err(Loss { code: "ended-early", why: format!("rank {rank} {how} after {steps} steps") });
            }
            Some(_) if steps != planned => {
                let why = format!("rank {rank} says it completed, with {steps} of {planned} planned steps");
                return Err(Loss { code: "steps-missing", why });
            }
            Some(_) => {}
        }
    }
    Ok(ranks.values().collect())
}

/// Chooses the steps that count: after heating, after warm-up, and while all ranks are stepping.
fn count<'a>((place, trial): (usize, &'a Trial), files: Vec<&'a RankFile>, heating: usize) -> Result<Ran<'a>, Loss> {
    let ends = match trial.arm {
        Arm::Together => common_ends(&files),
        Arm::Solo | Arm::Ddp => vec![files.iter().map(|file| file.steps.len()).min().unwrap_or(0); files.len()],
    };
    let shortest = ends.iter().copied().min().unwrap_or(0);
    if shortest < heating + STEPS_MIN {
        let why = format!("{shortest} common steps, {heating} of them heating, leave fewer than {STEPS_MIN} to count");
        return Err(Loss { code: "short-run", why });
    }
    let series: Vec<Vec<f64>> = match trial.arm {
        // in step: one series of the ranks' mean
        Arm::Solo | Arm::Ddp => vec![(heating..shortest).map(|at| mean_step(&files, at)).collect()],
        Arm::Together => files
            .iter()
            .zip(&ends)
            .map(|(file, end)| file.steps[heating..*end].iter().map(|step| step.step_s.0).collect())
            .collect(),
    };
    let steady: Vec<_> = series.iter().map(|series| steady_state(series)).collect();
    let warm = heating + steady.iter().map(|steady| steady.start).max().unwrap_or(0);
    // ranks of different speed may be warm at indices that a slow one never reached
    let first = warm.min(shortest - STEPS_MIN);
    let begin = files.iter().map(|file| file.steps[first].start_s.0).fold(f64::NEG_INFINITY, f64::max);
    let counted = files.iter().zip(ends).map(|(file, end)| match trial.arm {
        Arm::Solo | Arm::Ddp => first..end,
        Arm::Together => first + file.steps[first..end].partition_point(|step| step.start_s.0 < begin)..end,
    });
    let ran = Ran {
        trial,
        place,
        counted: counted.collect(),
        files,
        aligned: first..shortest,
        settled: steady.iter().all(|steady| steady.settled),
    };
    match ran.counted.iter().all(|range| range.len() >= STEPS_MIN) {
        true => Ok(ran),
        false => Err(Loss { code: "short-run", why: "the ranks step together for fewer than 5 steps".into() }),
    }
}

/// For each rank, how many of its steps ended before the first rank was done.
fn common_ends(files: &[&RankFile]) -> Vec<usize> {
    let end = |step: &Step| step.start_s.0 + step.step_s.0;
    let last = files.iter().map(|file| file.steps.last().map_or(0.0, end)).fold(f64::INFINITY, f64::min);
    files.iter().map(|file| file.steps.partition_point(|step| end(step) <= last)).collect()
}

fn mean_step(files: &[&RankFile], at: usize) -> f64 {
    files.iter().map(|file| file.steps[at].step_s.0).sum::<f64>() / files.len() as f64
}

/// What of a trial that counts does not count.
fn outside(ran: &Ran<'_>, heating: usize) -> Vec<Dropped> {
    let warm = ran.aligned.start - heating;
    let mut dropped = Vec::new();
    if heating > 0 {
        dropped.push(ran.dropped(
            None,
            heating * ran.files.len(),
            "heating: the first steps of every trial, by the plan",
        ));
    }
    if warm > 0 {
        dropped.push(ran.dropped(None, warm * ran.files.len(), "warm-up: cut by change points"));
    }
    for rank in ran.ranks() {
        let alone = ran.files[rank].steps.len() - ran.counted[rank].end + (ran.counted[rank].start - ran.aligned.start);
        if alone > 0 {
            let why = match ran.trial.arm {
                Arm::Together => "outside the time in which all ranks were steadily stepping",
                Arm::Solo | Arm::Ddp => "steps that not every rank has",
            };
            dropped.push(ran.dropped(Some(rank), alone, why));
        }
    }
    dropped
}
