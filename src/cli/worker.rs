//! `rigscale worker`: one rank of a training whose processes another launcher starts.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args as ClapArgs;

use crate::device::cuda::cuda_gpus;
use crate::launch::{Job, JobPlace, LaunchError, Launched, Worked, can_work, work};
use crate::record::{DataSource, Device, Manifest, Plan, RunFolder, read_yaml};

use super::look::Look;
use super::session::{chosen, places};
use super::train::{Files, completed, failed, wanted};
use super::workload::{WORLDS, Workload};
use super::{CliError, Exit, Output};

/// Set by Ctrl-C, SIGTERM and SIGHUP. Launchers send several of them, so that a second one means nothing new.
static STOP: AtomicBool = AtomicBool::new(false);

/// One rank of a training that torchrun, srun or mpirun starts, on one host or several; its place comes from their
/// variables
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  torchrun --no-python --nproc-per-node 4 rigscale worker --model llama-1b -o reports/four
  srun -N 2 --ntasks-per-node 4 rigscale worker --model llama-1b -o /shared/eight
  mpirun -H a:4,b:4 rigscale worker --model llama-1b --meet a:29400 -o /shared/eight

All ranks take the same flags. Exit codes are those of `rigscale train`. Where the launcher hands ranks no secret, set
RIGSCALE_TOKEN to one, alike on all hosts, to keep strangers out who know the job's name.")]
pub(super) struct Args {
    #[command(flatten)]
    workload: Workload,

    /// Where ranks of several hosts meet, where their launcher does not say: an address of rank 0's host, and a port
    #[arg(long, value_name = "HOST:PORT")]
    meet: Option<String>,

    /// Keep rank 0's weights before the first step and after the last as safetensors
    #[arg(long)]
    checkpoints: bool,

    /// Run folder; rank 0 creates it. On a shared file system it holds every rank's file, otherwise each host's own
    #[arg(short, long, value_name = "DIR")]
    out: PathBuf,
}

/// Trains as one rank.
///
/// # Errors
/// See [`CliError`].
pub(super) fn run(args: &Args, out: &Output) -> Result<Exit, CliError> {
    let environment = |name: &str| std::env::var(name).ok();
    let place = JobPlace::read(&environment, args.meet.as_deref()).map_err(LaunchError::from)?;
    if args.workload.world != WORLDS {
        return Err(CliError::Usage(format!("--world: {} has started {} ranks", place.launcher, place.world)));
    }
    stoppable()?;
    let look = Look::live()?;
    let device = args.workload.device.on(look.topology.has_nvidia_gpu());
    can_work(&place, device)?;
    let wanted = wanted(&args.workload, device)?;
    if let DataSource::File { path, .. } = &wanted.config.data {
        File::open(path).map_err(|error| CliError::Usage(format!("--data {path}: {error}")))?;
    }
    let gpus = match device {
        Device::Cpu => Vec::new(),
        Device::Cuda => places(&chosen(&args.workload.gpus, &cuda_gpus()?)?, &look.topology),
    };
    let first = place.rank == 0;
    let folder = if first {
        let folder = RunFolder::create_at(&args.out)?;
        look.write(folder.path())?;
        out.remark(format!("{} has started {} ranks; run folder: {}", place.launcher, place.world, args.out.display()));
        folder
    } else {
        RunFolder::at(&args.out)
    };
    let said = Mutex::new(Vec::new());
    let remark = |text: &str| {
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        if !said.iter().any(|earlier| earlier == text) {
            out.remark(format!("  {text}"));
            said.push(text.to_owned());
        }
    };
    let kernel = look.topology.system.kernel.clone().ok();
    let software: BTreeMap<String, String> = kernel.map(|kernel| ("kernel".into(), kernel)).into_iter().collect();
    let (cores, checkpoints) = (look.topology.cores(), args.checkpoints);
    let job = Job { place, folder: &folder, wanted, cores, gpus, software, checkpoints, stop: &STOP, remark: &remark };
    let worked = work(&job);
    if first && folder.plan().exists() {
        Manifest::write(&folder)?;
    }
    show(&folder, &job, worked?, out)
}

/// Rank 0 says how it was; another rank only what rank 0 cannot.
fn show(folder: &RunFolder, job: &Job, worked: Worked, out: &Output) -> Result<Exit, CliError> {
    let first = job.place.rank == 0;
    match worked.end {
        Launched::Interrupted => Ok(Exit::Interrupted),
        Launched::Failed(finding) if first || worked.alone => failed(folder, &job.wanted.config.model, finding, out),
        Launched::Failed(finding) => Ok(if finding.code.starts_with("hang-") { Exit::Hang } else { Exit::Fault }),
        Launched::Completed if first => {
            let plan: Plan = read_yaml(&folder.plan())?;
            let trial = &plan.trials[0];
            let away: Vec<String> = (0..trial.shares.len())
                .filter(|rank| !folder.rank(&trial.name, *rank).exists())
                .map(|rank| rank.to_string())
                .collect();
            if !away.is_empty() {
                out.remark(format!(
                    "the files of rank {} are not in {}: they lie on their hosts, in the same place of their own folders",
                    away.join(", "),
                    folder.trial(&trial.name).display()
                ));
            }
            completed(folder, &plan, Files::Some, out)
        }
        Launched::Completed => Ok(Exit::Pass),
    }
}

fn stoppable() -> Result<(), CliError> {
    let listening = ctrlc::set_handler(|| STOP.store(true, Ordering::Relaxed));
    listening.map_err(|error| CliError::Terminal {
        attempt: "listen for signals",
        source: io::Error::other(error.to_string()),
    })
}
