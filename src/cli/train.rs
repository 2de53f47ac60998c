//! `rigscale train`: a data-parallel training at each world size asked for, without a verdict.

use std::fmt;
use std::path::PathBuf;

use clap::Args as ClapArgs;
use comfy_table::CellAlignment;
use serde::Serialize;

use crate::launch::{Launched, Launcher, Wanted, plan};
use crate::record::{
    Arm, Device, Finding, Grade, Manifest, Plan, RankFile, RunFolder, Trial, read_rank_file, write_yaml,
};
use crate::stats;
use crate::units::{Seconds, Tokens, TokensPerSecond};

use super::probe::{plain_table, write_table};
use super::progress::launch;
use super::session::{Session, interruptible, once};
use super::workload::Workload;
use super::{CliError, Exit, Output};

/// Steps of each training if --steps is not given.
const STEPS: u32 = 50;

/// Trains a transformer data-parallel at each number of ranks and keeps every step; judges nothing
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  rigscale train --world 1,2 --model llama-tiny --steps 100
  rigscale train --model llama-1b --batch 4 --context 2048 --steps 100     on a GPU
  rigscale train --data tokens.bin --steps 500 -o reports/my-data")]
pub(super) struct Args {
    #[command(flatten)]
    workload: Workload,

    /// Keep the weights before the first step and after the last as safetensors, under names that PyTorch code can load
    #[arg(long)]
    checkpoints: bool,

    /// Run folder to create; `reports/<UTC time>_<machine>` if not given
    #[arg(short, long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Serialize)]
struct Trained {
    run: String,
    model: String,
    trainings: Vec<Training>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finding: Option<Finding>,
}

#[derive(Serialize)]
struct Training {
    world: usize,
    steps: usize,
    step_s: Seconds,
    rate: TokensPerSecond,
    first_loss: f64,
    last_loss: f64,
    parameters_sha256: Option<String>,
    /// None where there was nothing to compare: one rank alone.
    ranks_agree: Option<bool>,
}

/// Which rank files of a training lie in its folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Files {
    /// Those of all ranks.
    All,
    /// Those of rank 0's host at least: what ranks ended with was compared as they said it to rank 0.
    Some,
}

/// Trains.
///
/// # Errors
/// See [`CliError`].
pub(super) fn run(args: &Args, out: &Output) -> Result<Exit, CliError> {
    let session = Session::open(&args.workload, args.out.as_deref(), out)?;
    session.announce(out);
    let stop = interruptible()?;
    let remark = once(out);
    let launcher = Launcher { checkpoints: args.checkpoints, ..session.launcher(stop, &remark) };
    let wanted = wanted(&args.workload, session.device)?;
    let now = jiff::Timestamp::now();
    let draft = plan(&wanted, &session.fit, Seconds(1.0), now);
    out.remark("timing a step, so that a stuck rank is known for one");
    let calibration = launcher.calibrate(&draft)?;
    let mut plan = calibration.as_ref().map_or(draft, |step| plan(&wanted, &session.fit, *step, now));
    plan.trials.sort_by_key(|trial| trial.shares.len());
    write_yaml(&session.folder.plan(), &plan)?;
    for skipped in &plan.skipped {
        out.remark(format!("skipped: {}", skipped.why));
    }
    let end = match calibration {
        Ok(_) => launch(&launcher, &plan, out)?,
        Err(end) => end,
    };
    Manifest::write(&session.folder)?;
    match end {
        Launched::Interrupted => return Ok(Exit::Interrupted),
        Launched::Failed(finding) => return failed(&session.folder, &plan.config.model, finding, out),
        Launched::Completed => {}
    }
    completed(&session.folder, &plan, Files::All, out)
}

/// The training that a workload asks for, without a verdict.
///
/// # Errors
/// No preset has that name.
pub(super) fn wanted(workload: &Workload, device: Device) -> Result<Wanted, CliError> {
    let mut config = workload.config(device)?;
    config.steps = workload.steps.unwrap_or(STEPS) as usize;
    Ok(Wanted {
        device,
        grade: Grade::Ungraded,
        order_seed: config.seed,
        config,
        arms: vec![Arm::Ddp],
        target: 0.9,
        launches: 1,
        extension: 0,
        budget: Seconds(1.0),
        nccl: workload.nccl(),
        share_gpu: workload.share_gpu,
        fields: Vec::new(),
    })
}

/// Shows why a training failed.
///
/// # Errors
/// stdout could not be written.
pub(super) fn failed(folder: &RunFolder, model: &str, finding: Finding, out: &Output) -> Result<Exit, CliError> {
    Output::complain(&format!("{} {}: {}\n  {}", finding.severity, finding.code, finding.seen, finding.remedy));
    let exit = if finding.code.starts_with("hang-") { Exit::Hang } else { Exit::Fault };
    if out.json {
        let (run, model) = (folder.path().display().to_string(), model.to_owned());
        show(&Trained { run, model, trainings: Vec::new(), finding: Some(finding) }, out)?;
    }
    Ok(exit)
}

/// Shows what was trained; rates and losses are those of the files that lie in this folder.
///
/// # Errors
/// A rank file cannot be read, or is missing where all should be there, or stdout not written.
pub(super) fn completed(folder: &RunFolder, plan: &Plan, files: Files, out: &Output) -> Result<Exit, CliError> {
    let trained = summary(folder, plan, files)?;
    show(&trained, out)?;
    Ok(if trained.trainings.iter().any(|training| training.ranks_agree == Some(false)) {
        Exit::Fault
    } else {
        Exit::Pass
    })
}

fn show(trained: &Trained, out: &Output) -> Result<(), CliError> {
    out.emit(trained).map_err(|source| CliError::Terminal { attempt: "print the training", source })
}

fn summary(folder: &RunFolder, plan: &Plan, files: Files) -> Result<Trained, CliError> {
    let mut trainings = Vec::new();
    for trial in &plan.trials {
        trainings.push(training(folder, plan, trial, files)?);
    }
    Ok(Trained { run: folder.path().display().to_string(), model: plan.config.model.clone(), trainings, finding: None })
}

fn training(folder: &RunFolder, plan: &Plan, trial: &Trial, files: Files) -> Result<Training, CliError> {
    let ranks = (0..trial.shares.len())
        .map(|rank| folder.rank(&trial.name, rank))
        .filter(|path| files == Files::All || path.exists())
        .map(|path| read_rank_file(&path))
        .collect::<Result<Vec<RankFile>, _>>()?;
    let hashes: Vec<Option<&str>> = ranks.iter().map(|rank| rank.end.as_ref()?.parameters_sha256.as_deref()).collect();
    let world = trial.shares.len();
    let steady: Vec<f64> =
        ranks.iter().flat_map(|rank| rank.steps.iter().skip(plan.heating_steps)).map(|step| step.step_s.0).collect();
    let step_s = Seconds(stats::median(&steady));
    let config = &plan.config;
    let tokens = Tokens((config.batch * config.context * config.accumulate * world) as u64);
    let loss = |pick: fn(&RankFile) -> Option<f64>| {
        let losses: Vec<f64> = ranks.iter().filter_map(pick).collect();
        losses.iter().sum::<f64>() / losses.len() as f64
    };
    // what ranks whose files lie elsewhere held was compared as they said it: had it differed, the run would have failed
    let agree = hashes.windows(2).all(|pair| pair[0] == pair[1])
        && ranks.windows(2).all(|pair| checksums(&pair[0]) == checksums(&pair[1]));
    Ok(Training {
        world,
        steps: config.steps,
        step_s,
        rate: tokens.over(step_s),
        first_loss: loss(|rank| rank.steps.first().map(|step| step.loss)),
        last_loss: loss(|rank| rank.steps.last().map(|step| step.loss)),
        parameters_sha256: hashes.first().copied().flatten().map(str::to_owned),
        ranks_agree: (world > 1).then_some(agree),
    })
}

/// The checksums of a rank's weights, step by step.
fn checksums(rank: &RankFile) -> Vec<Option<&str>> {
    rank.steps.iter().map(|step| step.checksum.as_deref()).collect()
}

impl fmt::Display for Trained {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = plain_table();
        table.set_header(["ranks", "step", "rate", "first loss", "last loss", "weights agree"]);
        for training in &self.trainings {
            table.add_row([
                training.world.to_string(),
                training.step_s.to_string(),
                training.rate.to_string(),
                format!("{:.3}", training.first_loss),
                format!("{:.3}", training.last_loss),
                training.ranks_agree.map_or("not compared", |agree| if agree { "yes" } else { "NO" }).to_owned(),
            ]);
        }
        for column in 0..5 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        write_table(out, &table)?;
        writeln!(out, "{}, every step in {}", self.model, self.run)
    }
}
