//! A sweep: every setting of a grid, so many launches each, in rounds of random order.

use std::collections::{BTreeMap, BTreeSet};

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::cli::{CliError, Exit, Output};
use crate::record::{Arm, Setting, read_tune_file, tune_trials};
use crate::tune::{Ask, Outcome};

use super::Args;
use super::live::{Halt, Live};
use super::setup::Setup;
use super::shown::Swept;

/// A setting that failed so often is not launched again.
const FAILURES_MAX: usize = 2;

/// Launches what the log does not hold yet.
///
/// # Errors
/// As [`Live::run`].
pub(super) fn run(args: &Args, setup: &Setup, live: &mut Live, out: &Output) -> Result<Exit, Halt> {
    let grid = setup.space().grid();
    out.remark(format!(
        "{} settings, {} launches each, {} steps a launch",
        grid.len(),
        args.launches,
        setup.head.steps
    ));
    let mut done: BTreeSet<(u32, Setting)> = BTreeSet::new();
    let mut failures: BTreeMap<Setting, usize> = BTreeMap::new();
    for trial in &setup.recorded {
        done.insert((trial.round, trial.setting.clone()));
        *failures.entry(trial.setting.clone()).or_default() += usize::from(trial.finding.is_some());
    }
    live.go_on_to(grid.len() * args.launches as usize + 1);
    let default = Setting::default();
    let mut launch = |live: &mut Live, setting: &Setting, round: u32| -> Result<(), Halt> {
        let known = done.contains(&(round, setting.clone()));
        if known || FAILURES_MAX <= failures.get(setting).copied().unwrap_or(0) {
            return Ok(());
        }
        let ask = Ask { setting, arm: Arm::Ddp, stage: "sweep", round, why: "" };
        if let Outcome::Fault { .. } = live.sweep(&ask)? {
            *failures.entry(setting.clone()).or_default() += 1;
        }
        Ok(())
    };
    // the first fills caches, and does not count
    launch(live, &default, 0)?;
    for round in 1..=args.launches {
        let mut order = grid.clone();
        let seed = setup.head.seed.wrapping_mul(1_000_003).wrapping_add(u64::from(round));
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        for setting in &order {
            launch(live, setting, round)?;
        }
    }
    live.finish();
    let path = tune_trials(setup.session.folder.path());
    let launches = read_tune_file(&path)?.trials.len();
    let swept = Swept { landscape: path.display().to_string(), settings: grid.len(), launches };
    out.emit(&swept).map_err(|source| CliError::Terminal { attempt: "print the answer", source })?;
    Ok(Exit::Pass)
}
