//! `rigscale tune`: settings of NCCL and of the buckets that shorten the step, searched for, confirmed and kept.

mod checked;
mod keep;
mod live;
mod place;
mod replay;
mod setup;
mod shown;
mod simulate;
mod sweep;

use std::path::PathBuf;

use clap::Args as ClapArgs;

use crate::record::{Setting, read_rank_file};
use crate::tune::{Ended, Found, Limits, answer, need, search};
use crate::units::Seconds;

use self::live::{Halt, Live};
use self::setup::Setup;
pub(super) use self::setup::{identity, installed_nccl, placed};
use super::qualify::{parse_duration, parse_target};
use super::session::{interruptible, once};
use super::workload::Workload;
use super::{CliError, Exit, Output};

/// Finds settings of NCCL and of the gradient buckets that shorten the training step, and says how sure that is
///
/// Launches the training with one setting after another at the largest number of ranks, interleaved with the default,
/// drops losers early, and holds the winner against the default on fresh launches. Keeps every launch, nccl.conf, a table
/// for NCCL's example tuner plugin where one can say it, exports and a plan for `rigscale qualify --plan`. Run again with the
/// same folder, it goes on where it was interrupted or its time was over.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  rigscale tune --quick --device cpu --world 2      on two CPU ranks, in under 2 minutes
  rigscale tune --budget 20m -o reports/tuned       on all GPUs; the same command goes on after Ctrl-C, or with more time
  rigscale qualify --plan reports/tuned/plan.yaml   grades with what was found
  rigscale tune --sweep --launches 5 -o landscape   every setting of a grid, for scripts/bench-tune

Exit codes: 0 done, 1 rigscale failed, 2 usage, 4 the default failed, 5 the default hung, 130 interrupted")]
pub(super) struct Args {
    #[command(flatten)]
    workload: Workload,

    /// Folder to create, or to go on with; `reports/<UTC time>_<machine>` if not given
    #[arg(short, long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Shorter launches, fewer of them, and 90s of time: a first look
    #[arg(long)]
    quick: bool,

    /// Time for all launches: 20m, or 90s with --quick, if not given
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, conflicts_with = "sweep")]
    budget: Option<Seconds>,

    /// Settings that may be launched: 15 % of the space, but 12 to 40, if not given
    #[arg(long, value_name = "COUNT", conflicts_with = "sweep", value_parser = clap::value_parser!(u32).range(2..=10_000))]
    settings: Option<u32>,

    /// Efficiency that is wanted
    #[arg(long, value_name = "SHARE", default_value_t = 0.9, value_parser = parse_target)]
    target: f64,

    /// Also try what changes how sums are rounded
    #[arg(long)]
    rounding: bool,

    /// Launch every setting of a grid, in random order, instead of searching
    #[arg(long)]
    sweep: bool,

    /// Launches of each setting of a sweep
    #[arg(long, value_name = "COUNT", default_value_t = 5, requires = "sweep", value_parser = clap::value_parser!(u32).range(1..=100))]
    launches: u32,

    /// Settings of a sweep, at least, where the space has so many
    #[arg(long, value_name = "COUNT", default_value_t = 60, requires = "sweep", value_parser = clap::value_parser!(u32).range(2..=10_000))]
    grid: u32,

    /// Sweep a platform of `rigscale predict --list` by its model instead of a machine; needs --noise
    #[arg(long, value_name = "PLATFORM", requires = "sweep", requires = "noise")]
    simulate: Option<String>,

    /// Landscape from whose launches simulated ones take their scatter
    #[arg(long, value_name = "FILE", requires = "simulate")]
    noise: Option<PathBuf>,
}

/// Tunes.
///
/// # Errors
/// See [`CliError`]; a setting that fails is a finding, not an error.
pub(super) fn run(args: &Args, out: &Output) -> Result<Exit, CliError> {
    if let (Some(platform), Some(noise)) = (&args.simulate, &args.noise) {
        return simulate::run(args, platform, noise, out);
    }
    let stop = interruptible()?;
    let setup = match Setup::of(args, stop, out)? {
        Ok(setup) => setup,
        Err(exit) => return Ok(exit),
    };
    let remark = once(out);
    let mut live = Live::new(&setup, stop, out, &remark)?;
    let done = match args.sweep {
        true => sweep::run(args, &setup, &mut live, out),
        false => hunt(args, &setup, &mut live, out),
    };
    live.finish();
    match done {
        Ok(exit) => Ok(exit),
        Err(Halt::Interrupted) => Ok(setup::interrupted(&setup.session.folder, out)),
        Err(Halt::Failed(error)) => Err(*error),
        Err(Halt::Again) => unreachable!("a search that its log led astray begins again by itself"),
    }
}

/// What a search may take.
fn limits(args: &Args, setup: &Setup) -> Limits {
    let share = (setup.head.grid_size() as f64 * 0.15).floor() as usize;
    Limits {
        settings: args.settings.map_or(share.clamp(12, 40), |settings| settings as usize),
        rounds: if args.quick { 4 } else { 8 },
        looks: if args.quick { vec![4, 8, 16] } else { vec![5, 10, 20] },
        budget: setup.budget,
        seed: setup.head.seed,
        // beside others on one GPU a share alone says nothing of an efficiency
        solo_rounds: match (setup.base.share_gpu, args.quick) {
            (true, _) => 0,
            (false, true) => 3,
            (false, false) => 5,
        },
        solo_launches: setup.base.shares.len(),
    }
}

fn hunt(args: &Args, setup: &Setup, live: &mut Live, out: &Output) -> Result<Exit, Halt> {
    let limits = limits(args, setup);
    out.remark(format!(
        "{} settings in the space, at most {} of them launched, {} steps a launch, {} of time",
        setup.head.grid_size(),
        limits.settings,
        setup.head.steps,
        setup.budget
    ));
    let outlook = |setting: &Setting| setup.outlook.as_ref()?.step(setting).map(|step| step.0);
    let found = loop {
        match search(&setup.space(), &limits, &outlook, live) {
            Err(Halt::Again) => live.again(),
            done => break done?,
        }
    };
    live.finish();
    if setup.budget < found.spent && found.ledger.tried() < 3 {
        let (spent, budget) = (found.spent, setup.budget);
        out.remark(format!("the launches that cannot be left out took {spent}, more than the {budget} of --budget"));
    }
    if found.ended == Ended::DefaultFailed {
        let finding = found.ledger.cell(&Setting::default()).and_then(|cell| cell.faults.last().cloned());
        let finding = finding.ok_or_else(|| CliError::Usage("nothing could be launched in the time given".into()))?;
        return Ok(super::train::failed(&setup.session.folder, &setup.base.config.model, finding, out)?);
    }
    let applied = setup.applied(&found.best)?;
    let need = found.steps().and_then(|[_, best]| {
        let alone = alone(setup, &found)?;
        need(&alone, &applied.config, best, args.target)
    });
    let binding = crate::tune::Binding {
        head: &setup.head,
        applied: &applied,
        target: args.target,
        bucket_bytes: setup.base.config.bucket_bytes,
        need,
        channels: setup.channels(&found.best)?,
        warnings: setup.warnings.clone(),
    };
    let answer = answer(&found, &binding)
        .ok_or_else(|| CliError::Usage("--budget: no launch of the default fitted the time".into()))?;
    keep::keep(setup, &answer, &applied)?;
    out.emit(&shown::Shown { result: &answer.result })
        .map_err(|source| CliError::Terminal { attempt: "print the answer", source })?;
    let place = setup.session.folder.path();
    let (table, why) = match &answer.tuner_csv {
        Ok(_) => (", tuner.csv", String::new()),
        Err(why) => ("", format!("; no tuner.csv: {why}")),
    };
    out.remark(format!("written to {}: tune.html, nccl.conf, settings.sh, plan.yaml{table}{why}", place.display()));
    Ok(Exit::Pass)
}

/// The phases of a rank alone, from the first launch in which shares ran so.
fn alone(setup: &Setup, found: &Found) -> Option<crate::tune::Alone> {
    found.beside.first()?;
    let runs = std::fs::read_dir(setup.session.folder.runs()).ok()?;
    let solo = |name: &String| name.contains("_solo-0");
    let mut names: Vec<String> = runs.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    let name = names.into_iter().find(solo)?;
    let file = read_rank_file(&setup.session.folder.rank(&name, 0)).ok()?;
    let phases =
        crate::predict::Solo::of_steps(file.steps.get(setup.head.warm_up_steps..)?, setup.base.config.accumulate)?;
    Some(crate::tune::Alone { phases, ranks: setup.base.shares.len() })
}
