//! `rigscale measure`: what the links between GPUs and the host really carry, and whether what they carry is right.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;
use comfy_table::CellAlignment;
use serde::Serialize;

use crate::device::cuda::{Gpu, NcclLibrary, cuda_gpus};
use crate::launch::{LinkSite, Measured, Measurer, SHARED_CTAS, Wish};
use crate::record::{
    CopyLine, Engine, Finding, Findings, LatencyLine, LinkGpu, LinkLine, LinksHead, LoadLine, Origin, Pattern, SCHEMA,
    Severity, SumArm, SumLine, write_json,
};
use crate::topology::{PciAddress, Topology};
use crate::units::{Bytes, Seconds};

use super::look::Look;
use super::probe::{list_findings, plain_table, write_table};
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
  rigscale measure --gpus 0000:41:00.0,0000:61:00.0 --sum-mib 1024
  scripts/one-gpu-lab 4 -- rigscale measure --share-gpu 4

Exit codes: 0 no fault, 4 a fault (wrong data, a failed copy or sum), 5 something hung, 2 no usable GPU was named")]
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

    /// Largest all-reduce; 0 for none
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u32).range(0..=4096))]
    sum_mib: u32,

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

    /// Keep links.jsonl, measure.json and what the probe found in this folder
    #[arg(long, short, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// What is printed.
#[derive(Serialize)]
struct Shown<'a> {
    head: &'a LinksHead,
    lines: &'a [LinkLine],
    findings: &'a [Finding],
    #[serde(skip)]
    colour: bool,
}

/// Measures.
///
/// # Errors
/// See [`CliError`].
pub(super) fn run(args: &Args, out: &Output) -> Result<Exit, CliError> {
    let look = Look::live()?;
    let mut gpus = chosen(&args.gpus, &cuda_gpus()?)?;
    if let Some(ranks) = args.share_gpu {
        gpus = vec![gpus[0]; ranks as usize];
    }
    let head = head(args, &gpus, &look.topology)?;
    let wish = Wish {
        sites: gpus.iter().map(|gpu| LinkSite { address: *gpu, cpus: cpus_near(*gpu, &look.topology) }).collect(),
        shared: args.share_gpu.is_some(),
        quick: args.quick,
        copy_bytes: Bytes::mebi(args.copy_mib.into()),
        sum_bytes: Some(Bytes::mebi(args.sum_mib.into())).filter(|bytes| 0 < bytes.0),
        limit: args.limit,
        max_ctas: args.max_ctas.or_else(|| args.share_gpu.map(|_| SHARED_CTAS)),
    };
    let stop = interruptible()?;
    let place = Folder::of(args.out.as_deref())?;
    if args.out.is_some() {
        look.write(&place.path)?;
    }
    let progress = |index: usize, of: usize, what: &str| out.remark(format!("{} of {of}: {what}", index + 1));
    let measurer = Measurer { folder: &place.path, stop, progress: &progress };
    let Measured { lines, findings, interrupted } = measurer.measure(&wish, &head, &look.topology)?;
    let record =
        Findings { schema: SCHEMA, rigscale: env!("CARGO_PKG_VERSION").into(), findings, unjudged: Vec::new() };
    write_json(&place.path.join("measure.json"), &record)?;
    let shown = Shown { head: &head, lines: &lines, findings: &record.findings, colour: out.colour() };
    out.emit(&shown).map_err(|source| CliError::Terminal { attempt: "print the links", source })?;
    if args.out.is_some() {
        out.remark(format!("written to {}", place.path.display()));
    }
    let faults = || record.findings.iter().filter(|finding| finding.severity == Severity::Fault);
    Ok(match (interrupted, faults().any(|fault| fault.code.starts_with("hang-")), faults().count()) {
        (_, true, _) => Exit::Hang,
        (_, false, 1..) => Exit::Fault,
        (true, false, 0) => Exit::Interrupted,
        (false, false, 0) => Exit::Pass,
    })
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

fn head(args: &Args, gpus: &[PciAddress], topology: &Topology) -> Result<LinksHead, CliError> {
    let mut software = BTreeMap::new();
    let mut told = Vec::new();
    let mut distinct = gpus.to_vec();
    distinct.dedup();
    for address in distinct {
        let gpu = Gpu::open(address)?;
        software.insert("cuda driver".to_owned(), gpu.cuda_version());
        // a virtual machine hides what is above the GPU
        let known = topology.gpu(address);
        let narrowest = known.and_then(|gpu| Some(gpu.narrowest.as_ref().ok()?.lanes()));
        let lanes = narrowest.or_else(|| known?.link.max().ok());
        told.push(LinkGpu { address, name: gpu.name().to_owned(), lanes });
    }
    if let Ok(library) = NcclLibrary::load() {
        software.insert("nccl".to_owned(), library.version());
    }
    if let Ok(kernel) = &topology.system.kernel {
        software.insert("kernel".to_owned(), kernel.clone());
    }
    Ok(LinksHead {
        schema: SCHEMA,
        rigscale: env!("CARGO_PKG_VERSION").into(),
        started: jiff::Timestamp::now(),
        origin: if args.share_gpu.is_some() { Origin::SharedGpu } else { Origin::Measured },
        gpus: told,
        software,
    })
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

impl fmt::Display for Shown<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for gpu in &self.head.gpus {
            let lanes = gpu.lanes.map_or_else(|| "link unknown".into(), |lanes| format!("{lanes}, {}", lanes.rate()));
            writeln!(out, "{}  {}, {lanes}", gpu.address, gpu.name)?;
        }
        let of = |line: &LinkLine| match line {
            LinkLine::Copy(_) | LinkLine::Head(_) => 0,
            LinkLine::Latency(_) => 1,
            LinkLine::Sum(_) => 2,
            LinkLine::Load(_) => 3,
        };
        let kind = |kind: usize| self.lines.iter().filter(move |line| of(line) == kind);
        copies(out, kind(0).filter_map(|line| if let LinkLine::Copy(copy) = line { Some(copy) } else { None }))?;
        latencies(out, kind(1).filter_map(|line| if let LinkLine::Latency(line) = line { Some(line) } else { None }))?;
        let of_sums: Vec<&SumLine> =
            kind(2).filter_map(|line| if let LinkLine::Sum(sum) = line { Some(sum) } else { None }).collect();
        sums(out, &of_sums)?;
        loads(out, kind(3).filter_map(|line| if let LinkLine::Load(load) = line { Some(load) } else { None }))?;
        writeln!(out)?;
        list_findings(out, self.findings, self.colour)
    }
}

fn right(table: &mut comfy_table::Table, columns: impl IntoIterator<Item = usize>) {
    for column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// Addresses without what all of a workstation's share: the domain, and the function of a card's first.
fn short(place: impl fmt::Display) -> String {
    let text = place.to_string();
    let text = text.strip_prefix("0000:").unwrap_or(&text);
    text.strip_suffix(".0").unwrap_or(text).to_owned()
}

fn copies<'a>(out: &mut fmt::Formatter<'_>, lines: impl Iterator<Item = &'a CopyLine>) -> fmt::Result {
    let mut table = plain_table();
    table.set_header(["copies", "way", "by", "rate", "of link", "data"]);
    let mut any = false;
    for copy in lines {
        any = true;
        let way = match copy.transfers.as_slice() {
            [only] => format!("{} → {}", short(only.from), short(only.to)),
            [one, ..] if copy.transfers.len() == 2 => format!("{} ⇄ {}", short(one.from), short(one.to)),
            all => format!("{} transfers", all.len()),
        };
        let pattern = match copy.pattern {
            Pattern::HostBothWays | Pattern::PeerBothWays => "both ways".into(),
            other => other.to_string(),
        };
        let by = match copy.engine {
            Engine::CopyEngine => "engine",
            Engine::Write => "writing",
            Engine::Read => "reading",
        };
        let share =
            copy.ceiling.map_or_else(String::new, |ceiling| format!("{:.0} %", 100.0 * (copy.rate.median / ceiling)));
        let staged = if copy.direct == Some(false) { "staged" } else { "right" };
        let data = if copy.check.is_good() { staged } else { "WRONG" };
        table.add_row([pattern, way, by.to_owned(), copy.rate.median.to_string(), share, data.to_owned()]);
    }
    right(&mut table, [3, 4]);
    if any { write_table(out, &table) } else { Ok(()) }
}

fn latencies<'a>(out: &mut fmt::Formatter<'_>, lines: impl Iterator<Item = &'a LatencyLine>) -> fmt::Result {
    let words = lines.map(|line| format!("{} reads {} in {}", short(line.by), short(line.of), line.load_s.median));
    for words in words {
        writeln!(out, "one load: {words}")?;
    }
    Ok(())
}

/// A table for each set of ranks: sizes downwards, what NCCL was told across.
fn sums(out: &mut fmt::Formatter<'_>, lines: &[&SumLine]) -> fmt::Result {
    let groups: BTreeSet<&[PciAddress]> = lines.iter().map(|sum| sum.ranks.as_slice()).collect();
    for ranks in groups {
        let of = || lines.iter().filter(|sum| sum.ranks == ranks);
        let arms: BTreeSet<SumArm> = of().map(|sum| sum.arm).collect();
        let sizes: BTreeSet<Bytes> = of().map(|sum| sum.bytes).collect();
        let gpus: Vec<String> = ranks.iter().map(short).collect();
        writeln!(out, "all-reduce of {}: time and bus bandwidth", gpus.join(", "))?;
        let mut table = plain_table();
        let name = |arm: &SumArm| match arm {
            SumArm::Default => "NCCL's choice",
            SumArm::P2pSys => "P2P_LEVEL=SYS",
            SumArm::P2pOff => "P2P_DISABLE=1",
        };
        table.set_header(std::iter::once("size").chain(arms.iter().map(name)));
        for size in sizes {
            let cell = |arm: &SumArm| {
                let sum = of().find(|sum| sum.bytes == size && sum.arm == *arm);
                sum.map_or_else(String::new, |sum| {
                    let wrong = if sum.check.is_good() { "" } else { " WRONG" };
                    format!("{} {:>10}{wrong}", sum.time_s.median, sum.bus_bandwidth.to_string())
                })
            };
            table.add_row(std::iter::once(size.to_string()).chain(arms.iter().map(cell)));
        }
        right(&mut table, 0..=arms.len());
        write_table(out, &table)?;
        for arm in &arms {
            let ways: BTreeSet<&str> =
                of().filter(|sum| sum.arm == *arm).flat_map(|sum| &sum.via).map(String::as_str).collect();
            let ways =
                if ways.is_empty() { "not told".into() } else { ways.into_iter().collect::<Vec<_>>().join(", ") };
            writeln!(out, "  {}: {ways}", name(arm))?;
        }
    }
    Ok(())
}

fn loads<'a>(out: &mut fmt::Formatter<'_>, lines: impl Iterator<Item = &'a LoadLine>) -> fmt::Result {
    for load in lines {
        let lanes = load.lanes.map_or_else(|| "link unknown".into(), |lanes| lanes.to_string());
        let replays = load.replays.map_or_else(|| "unknown".into(), |replays| replays.to_string());
        writeln!(out, "under load: {} {lanes}, packets sent again: {replays}", short(load.gpu))?;
    }
    Ok(())
}
