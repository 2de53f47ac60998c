//! `rigscale measure`: what the links between GPUs and the host really carry, and whether what they carry is right.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use clap::Args as ClapArgs;

use crate::device::cuda::{CudaError, Gpu, NcclLibrary, cuda_gpus};
use crate::launch::{LinkSite, Measured, Measurer, SHARED_CTAS, Wish, judge_links, sum_arms};
use crate::record::{
    Finding, Findings, LinkGpu, LinkLine, LinksHead, Origin, SCHEMA, Severity, SumArm, read_links, read_text,
    write_json,
};
use crate::topology::{PciAddress, Topology, YAML_BYTES_MAX, from_yaml};
use crate::units::{Bytes, Seconds};

use super::error::chain;
use super::links::Shown;
use super::look::Look;
use super::session::{chosen, interruptible};
use super::{CliError, Exit, Output};

/// Measures what the links between GPUs and the host carry, and checks what arrives
///
/// Copies between the host and each GPU, between GPUs one way and both ways, by copy engine and by kernel, alone and all
/// at once, and all-reduces over NCCL by size. Every destination reads its own memory: an access that the driver grants
/// and that does not arrive, wrong data, and a hang are three different findings. Each step runs in processes of its own
/// with a time limit.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  rigscale measure
  rigscale measure --quick -o reports/links
  rigscale measure --from reports/links
  rigscale measure --gpus 0000:41:00.0,0000:61:00.0 --sum-mib 4096
  scripts/one-gpu-lab 4 -- rigscale measure --share-gpu 4

Exit codes: 0 no fault, 4 a fault (wrong data, a failed copy or sum, a GPU that CUDA cannot use), 5 something hung,
2 usage, or a machine without an NVIDIA GPU")]
pub(super) struct Args {
    /// GPUs to measure: how many, or their PCI addresses separated by commas; all if not given
    #[arg(long, value_name = "COUNT|LIST", value_delimiter = ',')]
    gpus: Vec<String>,

    /// Fewer repeats, sizes and patterns
    #[arg(long)]
    quick: bool,

    /// Size of a copy
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u32).range(4..=4096))]
    copy_mib: u32,

    /// Largest all-reduce; 0 for none. 1024, or 256 with --quick, if not given, and less where a GPU has no memory for it
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(0..=16384))]
    sum_mib: Option<u32>,

    /// Thread blocks of a collective at most; NCCL chooses if not given
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=64))]
    max_ctas: Option<u32>,

    /// Only all-reduces, of so many ranks on the first GPU: a laboratory for a machine with one. Start it under
    /// scripts/one-gpu-lab
    #[arg(long, value_name = "RANKS", value_parser = clap::value_parser!(u32).range(2..=16))]
    share_gpu: Option<u32>,

    /// A step that says nothing for so long hangs
    #[arg(long, value_name = "DURATION", default_value = "45s", value_parser = parse_limit)]
    limit: Seconds,

    /// Keep links.jsonl, measure.json and what the probe found, at rest and under load, in this folder
    #[arg(long, short, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Judge links.jsonl and topology.yaml of this folder again; nothing is measured
    #[arg(long, value_name = "DIR", conflicts_with_all = ["gpus", "quick", "copy_mib", "sum_mib", "max_ctas", "share_gpu", "limit", "out"])]
    from: Option<PathBuf>,
}

/// What to measure, and how much of it.
#[derive(Debug, Clone)]
pub(super) struct Extent {
    /// So many ranks share the first GPU; none where each has its own.
    pub(super) shared: Option<u32>,
    /// Less of everything.
    pub(super) quick: bool,
    /// Bytes of one copy.
    pub(super) copy: Bytes,
    /// Largest all-reduce; none takes what is usual, and what fits.
    pub(super) sum: Option<Bytes>,
    /// Thread blocks of a collective at most.
    pub(super) max_ctas: Option<u32>,
    /// A step that says nothing for so long hangs.
    pub(super) limit: Seconds,
}

impl Extent {
    /// What `qualify` measures before it trains: about half a minute.
    pub(super) fn quick() -> Self {
        let copy = Bytes(256 << 20);
        Self { shared: None, quick: true, copy, sum: None, max_ctas: None, limit: Seconds(45.0) }
    }
}

/// What was measured, and what it means.
pub(super) struct Taken {
    pub(super) head: LinksHead,
    pub(super) lines: Vec<LinkLine>,
    pub(super) findings: Vec<Finding>,
    pub(super) interrupted: bool,
}

/// Measures, or judges again what was measured.
///
/// # Errors
/// See [`CliError`].
pub(super) fn run(args: &Args, out: &Output) -> Result<Exit, CliError> {
    let taken = match &args.from {
        Some(folder) => again(folder)?,
        None => anew(args, out)?,
    };
    let shown = Shown { head: &taken.head, lines: &taken.lines, findings: &taken.findings, colour: out.colour() };
    out.emit(&shown).map_err(|source| CliError::Terminal { attempt: "print the links", source })?;
    if let Some(folder) = &args.out {
        out.remark(format!("written to {}", folder.display()));
    }
    let faults = || taken.findings.iter().filter(|finding| finding.severity == Severity::Fault);
    Ok(match (taken.interrupted, faults().any(|fault| fault.code.starts_with("hang-")), faults().count()) {
        (_, true, _) => Exit::Hang,
        (_, false, 1..) => Exit::Fault,
        (true, false, 0) => Exit::Interrupted,
        (false, false, 0) => Exit::Pass,
    })
}

/// Reads what was measured, and judges it.
fn again(folder: &Path) -> Result<Taken, CliError> {
    let (head, lines) = read_links(&folder.join("links.jsonl"))?;
    let place = folder.join("topology.yaml");
    let topology = from_yaml(&read_text(&place, YAML_BYTES_MAX as u64)?, &place.display().to_string())?;
    let findings = judge_links(&head, &lines, &topology);
    Ok(Taken { head, lines, findings, interrupted: false })
}

fn anew(args: &Args, out: &Output) -> Result<Taken, CliError> {
    let mut look = Look::live()?;
    let shown = cuda_gpus().map_err(|error| unusable(error, &look.topology))?;
    let gpus = chosen(&args.gpus, &shown)?;
    let extent = Extent {
        shared: args.share_gpu,
        quick: args.quick,
        copy: Bytes::mebi(args.copy_mib.into()),
        sum: args.sum_mib.map(|size| Bytes::mebi(size.into())),
        max_ctas: args.max_ctas,
        limit: args.limit,
    };
    let place = Folder::of(args.out.as_deref())?;
    measure_into(&place.path, &mut look, &gpus, &extent, (interruptible()?, out))
}

/// Where there is no NVIDIA GPU, nothing is broken: there is nothing to measure.
fn unusable(error: CudaError, topology: &Topology) -> CliError {
    if topology.has_nvidia_gpu() {
        return CliError::Unmeasurable(error);
    }
    CliError::Usage(format!(
        "this machine shows no NVIDIA GPU, and there are no other links to measure: {}",
        chain(&error)
    ))
}

/// Measures the links of `gpus` and writes links.jsonl, measure.json and what the machine is, with the links as they were
/// under load, into `folder`.
///
/// # Errors
/// A GPU cannot be used, what was asked for does not fit, or a file cannot be written.
pub(super) fn measure_into(
    folder: &Path,
    look: &mut Look,
    gpus: &[PciAddress],
    extent: &Extent,
    (stop, out): (&AtomicBool, &Output),
) -> Result<Taken, CliError> {
    look.write(folder)?;
    let (head, free) = head(gpus, extent, &look.topology)?;
    let gpus = extent.shared.map_or_else(|| gpus.to_vec(), |ranks| vec![gpus[0]; ranks as usize]);
    refuse_copies(extent, gpus.len(), free)?;
    let wish = Wish {
        sites: gpus.iter().map(|gpu| LinkSite { address: *gpu, cpus: cpus_near(*gpu, &look.topology) }).collect(),
        shared: extent.shared.is_some(),
        quick: extent.quick,
        copy_bytes: extent.copy,
        sum_bytes: sum_bytes(extent, free, out)?,
        limit: extent.limit,
        max_ctas: extent.max_ctas.or_else(|| extent.shared.map(|_| SHARED_CTAS)),
        arms: arms(extent, &look.topology, &gpus),
    };
    let progress = |index: usize, of: usize, what: &str| out.remark(format!("{} of {of}: {what}", index + 1));
    let measurer = Measurer { folder, stop, progress: &progress };
    let Measured { lines, interrupted } = measurer.measure(&wish, &head, &look.topology)?;
    let findings = judge_links(&head, &lines, &look.topology);
    let rigscale = env!("CARGO_PKG_VERSION").into();
    let record = Findings { schema: SCHEMA, rigscale, findings, unjudged: Vec::new() };
    write_json(&folder.join("measure.json"), &record)?;
    look.under_load(&lines);
    look.write(folder)?;
    Ok(Taken { head, lines, findings: record.findings, interrupted })
}

/// Ranks that share a GPU have no path between them.
fn arms(extent: &Extent, topology: &Topology, gpus: &[PciAddress]) -> Vec<SumArm> {
    match extent.shared {
        Some(_) if extent.quick => vec![SumArm::Default],
        Some(_) => vec![SumArm::Default, SumArm::P2pOff],
        None => sum_arms(topology, gpus),
    }
}

/// What NCCL, kernels and contexts take of a GPU beside the buffers, and then some.
const BESIDE: Bytes = Bytes(1 << 30);

/// Memory of a GPU that a rank may fill.
fn room(extent: &Extent, free: Bytes) -> Bytes {
    let ranks = u64::from(extent.shared.unwrap_or(1));
    Bytes((free.0 / ranks).saturating_sub(BESIDE.0))
}

/// The largest all-reduce: what was asked for, refused if it does not fit; else the usual, as much of it as fits.
fn sum_bytes(extent: &Extent, free: Bytes, out: &Output) -> Result<Option<Bytes>, CliError> {
    let room = room(extent, free);
    let usual = if extent.quick { Bytes(256 << 20) } else { Bytes(1 << 30) };
    match extent.sum {
        Some(Bytes(0)) => Ok(None),
        Some(asked) if asked <= room => Ok(Some(asked)),
        Some(asked) => Err(CliError::Usage(format!(
            "--sum-mib: {asked} do not fit: a rank has room for {room} beside NCCL's own buffers"
        ))),
        None => {
            let halves = std::iter::successors(Some(usual), |size| Some(Bytes(size.0 / 2)));
            let fits = halves.take_while(|size| 4096 <= size.0).find(|size| *size <= room);
            if fits != Some(usual) {
                let to = fits.map_or_else(|| "none".into(), |fits| fits.to_string());
                out.remark(format!("largest all-reduce: {to} instead of {usual}, as a rank has room for {room}"));
            }
            Ok(fits)
        }
    }
}

/// Copies of all pairs at once need room for what arrives from each other GPU.
fn refuse_copies(extent: &Extent, gpus: usize, free: Bytes) -> Result<(), CliError> {
    let needed = Bytes(extent.copy.0 * gpus.max(2) as u64);
    let room = room(extent, free);
    match extent.shared.is_some() || needed <= room {
        true => Ok(()),
        false => Err(CliError::Usage(format!(
            "--copy-mib: a GPU needs {needed} for copies of all pairs and has room for {room}"
        ))),
    }
}

/// `45s`: never below what NCCL takes to meet on a slow machine, unless somebody insists.
fn parse_limit(text: &str) -> Result<Seconds, String> {
    match text.strip_suffix('s').and_then(|seconds| seconds.trim().parse::<f64>().ok()) {
        Some(seconds) if (1.0..=3600.0).contains(&seconds) => Ok(Seconds(seconds)),
        _ => Err("a limit is between 1s and 3600s, as in --limit 45s".into()),
    }
}

/// The folder of the user, or one that is gone afterwards.
struct Folder {
    path: PathBuf,
    keep: bool,
}

impl Folder {
    fn of(named: Option<&Path>) -> Result<Self, CliError> {
        let passing = || std::env::temp_dir().join(format!("rigscale-links-{}", std::process::id()));
        let path = named.map_or_else(passing, Path::to_owned);
        // in the system's folder others may have put something in the way
        let created = if named.is_some() { fs::create_dir_all(&path) } else { fs::create_dir(&path) };
        created.map_err(|source| CliError::Usage(format!("could not create {}: {source}", path.display())))?;
        Ok(Self { path, keep: named.is_some() })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.keep {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// The first line of the file, and the least free memory of a GPU.
fn head(gpus: &[PciAddress], extent: &Extent, topology: &Topology) -> Result<(LinksHead, Bytes), CliError> {
    let mut software = BTreeMap::new();
    let mut told = Vec::new();
    let mut least = Bytes(u64::MAX);
    for address in if extent.shared.is_some() { &gpus[..1] } else { gpus } {
        let gpu = Gpu::open(*address).map_err(CliError::Unmeasurable)?;
        let (free, _) = gpu.memory().map_err(CliError::Unmeasurable)?;
        least = least.min(free);
        software.insert("cuda driver".to_owned(), gpu.cuda_version());
        // a virtual machine hides what is above the GPU
        let known = topology.gpu(*address);
        let narrowest = known.and_then(|gpu| Some(gpu.narrowest.as_ref().ok()?.lanes()));
        let lanes = narrowest.or_else(|| known?.link.max().ok());
        told.push(LinkGpu { address: *address, name: gpu.name().to_owned(), lanes });
    }
    if let Ok(library) = NcclLibrary::load() {
        software.insert("nccl".to_owned(), library.version());
    }
    if let Ok(kernel) = &topology.system.kernel {
        software.insert("kernel".to_owned(), kernel.clone());
    }
    let head = LinksHead {
        schema: SCHEMA,
        rigscale: env!("CARGO_PKG_VERSION").into(),
        started: jiff::Timestamp::now(),
        origin: if extent.shared.is_some() { Origin::SharedGpu } else { Origin::Measured },
        gpus: told,
        software,
    };
    Ok((head, least))
}

/// CPUs of the GPU's NUMA node that this process may use; all where it has none.
fn cpus_near(gpu: PciAddress, topology: &Topology) -> Vec<usize> {
    let cores = topology.cores();
    let node = topology.gpu(gpu).and_then(|gpu| gpu.numa_node.clone().ok());
    let cpus = |near: bool| -> Vec<usize> {
        let here = cores.iter().filter(|core| !near || core.numa_node == node);
        here.flat_map(|core| core.cpus.iter().copied()).collect()
    };
    let near = cpus(node.is_some());
    if near.is_empty() { cpus(false) } else { near }
}
