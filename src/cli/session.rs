//! What every command that trains needs first: the machine look, a run folder, shares of the machine.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::device::cuda::cuda_gpus;
use crate::launch::{Fit, GpuPlace, Launcher, cpu_shares, gpu_shares};
use crate::record::{DataSource, Device, RecordError, RunFolder};
use crate::topology::{PciAddress, Topology};

use super::look::Look;
use super::workload::Workload;
use super::{CliError, Output};

/// Where run folders go if the user names none.
const REPORTS: &str = "reports";

/// Set by Ctrl-C, SIGTERM and SIGHUP.
static STOP: AtomicBool = AtomicBool::new(false);

/// A machine that was looked at, and its shares; nothing is written yet.
pub(super) struct Survey {
    /// What computes.
    pub(super) device: Device,
    /// Shares of the machine.
    pub(super) fit: Fit,
    /// The machine.
    pub(super) look: Look,
}

/// A look machine, a run folder that holds what was found, and shares of the machine.
pub(super) struct Session {
    /// Where everything goes.
    pub(super) folder: RunFolder,
    /// What computes.
    pub(super) device: Device,
    /// Shares of the machine.
    pub(super) fit: Fit,
    /// The machine.
    pub(super) look: Look,
}

impl Session {
    /// Probes the machine, creates the run folder and writes topology, findings and transcript into it.
    ///
    /// # Errors
    /// The device cannot be trained on, the folder not written, or the machine not look.
    pub(super) fn open(workload: &Workload, place: Option<&Path>, out: &Output) -> Result<Self, CliError> {
        let survey = Survey::of(workload, false, out)?;
        let folder = match place {
            Some(place) => RunFolder::create_at(place),
            None => new_folder(&survey.look.topology),
        }?;
        survey.look.write(folder.path())?;
        Ok(survey.settled(folder))
    }
}

impl Survey {
    /// Probes the machine and shares it out for the numbers of ranks that are asked for; with `every_gpu` also for as many
    /// as there are GPUs.
    ///
    /// # Errors
    /// The device cannot be trained on, nothing that was asked for fits, or the machine cannot be looked at.
    pub(super) fn of(workload: &Workload, every_gpu: bool, out: &Output) -> Result<Self, CliError> {
        let config = workload.config(Device::Cpu)?;
        if let DataSource::File { path, .. } = &config.data {
            File::open(path).map_err(|error| CliError::Usage(format!("--data {path}: {error}")))?;
        }
        out.remark("probing the machine");
        let look = Look::live()?;
        let nvidia = look.topology.has_nvidia_gpu();
        let device = workload.device.on(nvidia);
        let fit = match device {
            Device::Cpu => cpu_shares(&look.topology.cores(), &workload.world),
            Device::Cuda => {
                let gpus = chosen(&workload.gpus, &cuda_gpus()?)?;
                let all = (every_gpu && !workload.share_gpu).then_some(gpus.len());
                let worlds: Vec<usize> = workload.world.iter().copied().chain(all).collect();
                gpu_shares(&places(&gpus, &look.topology), &look.topology.cores(), &worlds, workload.share_gpu)
            }
        };
        if fit.worlds.is_empty() {
            let why: Vec<&str> = fit.skipped.iter().map(|skipped| skipped.why.as_str()).collect();
            return Err(CliError::Usage(format!("--world: nothing that was asked for fits: {}", why.join("; "))));
        }
        Ok(Self { device, fit, look })
    }

    /// The same with the folder that everything goes into; writes nothing into it.
    pub(super) fn settled(self, folder: RunFolder) -> Session {
        let Self { device, fit, look } = self;
        Session { folder, device, fit, look }
    }
}

/// A new folder under `reports`, named by time and machine.
///
/// # Errors
/// It cannot be created.
pub(super) fn new_folder(topology: &Topology) -> Result<RunFolder, RecordError> {
    RunFolder::create(Path::new(REPORTS), jiff::Timestamp::now(), &machine_name(topology))
}

impl Session {
    /// Says on what will be trained.
    pub(super) fn announce(&self, out: &Output) {
        let cores = self.fit.shares.first().map_or(0, |share| share.cpus.len());
        let gpus: Vec<&str> = self.fit.shares.iter().filter_map(|share| share.gpu.as_deref()).collect();
        if gpus.is_empty() {
            out.remark(format!(
                "no NVIDIA GPU will take part: ranks run on {cores} CPU{} each, which says nothing about GPUs",
                if cores == 1 { "" } else { "s" }
            ));
        } else {
            out.remark(format!("ranks run on the GPU at {}", gpus.join(", ")));
        }
        out.remark(format!("run folder: {}", self.folder.path().display()));
    }

    /// A launcher into the session's folder; `remark` hears what ranks have to say about their start.
    pub(super) fn launcher<'a>(&'a self, stop: &'a AtomicBool, remark: &'a dyn Fn(&str)) -> Launcher<'a> {
        Launcher { folder: &self.folder, stop, software: self.software(), remark, checkpoints: false }
    }

    fn software(&self) -> BTreeMap<String, String> {
        let mut software = BTreeMap::new();
        if let Ok(kernel) = &self.look.topology.system.kernel {
            software.insert("kernel".into(), kernel.clone());
        }
        software
    }
}

/// Says each remark of the ranks once: every trial starts anew.
pub(super) fn once(out: &Output) -> impl Fn(&str) + '_ {
    let said = RefCell::new(BTreeSet::new());
    move |text: &str| {
        if said.borrow_mut().insert(text.to_owned()) {
            out.remark(format!("  {text}"));
        }
    }
}

/// The GPUs that the user named among those that CUDA shows: addresses, a number of them, or all.
pub(super) fn chosen(asked: &[String], shown: &[PciAddress]) -> Result<Vec<PciAddress>, CliError> {
    if let [count] = asked
        && let Ok(count) = count.parse::<usize>()
    {
        if (1..=shown.len()).contains(&count) {
            return Ok(shown[..count].to_vec());
        }
        return Err(CliError::Usage(format!("--gpus {count}: CUDA shows {} to this process", shown.len())));
    }
    if asked.is_empty() {
        return Ok(shown.to_vec());
    }
    let list = || shown.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let find = |text: &String| {
        let address = text.parse().ok().filter(|address| shown.contains(address));
        address.ok_or_else(|| CliError::Usage(format!("--gpus {text}: CUDA shows {} to this process", list())))
    };
    asked.iter().map(find).collect()
}

/// Where GPUs are, by what was probed.
pub(super) fn places(gpus: &[PciAddress], topology: &Topology) -> Vec<GpuPlace> {
    let node = |address: &PciAddress| topology.gpus.iter().find(|gpu| gpu.address == *address)?.numa_node.clone().ok();
    gpus.iter().map(|address| GpuPlace { address: *address, numa_node: node(address) }).collect()
}

/// A flag that Ctrl-C sets. A second Ctrl-C ends the process at once; its ranks die with it.
///
/// # Errors
/// The handler cannot be installed.
pub(super) fn interruptible() -> Result<&'static AtomicBool, CliError> {
    ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(super::Exit::Interrupted as i32);
        }
    })
    .map_err(|error| CliError::Terminal {
        attempt: "listen for Ctrl-C",
        source: std::io::Error::other(error.to_string()),
    })?;
    Ok(&STOP)
}

/// What the machine is called in the name of its run folder: its product, else its mainboard, else its processor.
fn machine_name(topology: &Topology) -> String {
    let machine = &topology.machine;
    let vendor = machine.vendor.clone().unwrap_or_default();
    match (&machine.product, &machine.board, &topology.cpu.model) {
        (Ok(product), _, _) => format!("{vendor} {product}"),
        (_, Ok(board), _) => board.clone(),
        (_, _, Ok(cpu)) => cpu.clone(),
        _ => "machine".into(),
    }
}
