//! `rigscale probe`: what a machine is, and what is wrong with it.

mod error;
mod findings;
mod from;
mod nccl;
mod peers;
mod tables;
mod tree;

use std::fmt;
use std::path::PathBuf;

use clap::Args as ClapArgs;
use serde::Serialize;

use crate::probe::{Acceptance, view_differences};
use crate::record::{Finding, Severity, Unjudged, write_whole};
use crate::report::machine_svg;
use crate::topology::{PciAddress, Topology, to_nccl_xml};

pub(super) use error::ProbeCommandError;
pub(super) use findings::list as list_findings;
pub(super) use tables::{plain_table, write as write_table};

use nccl::Outlook;

use super::look::Look;
use super::{Exit, Output};

/// Shows what this machine is: sockets, PCIe tree, GPUs, links, and what is wrong with them
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  rigscale probe
  rigscale probe --from machine.jsonl --json
  rigscale probe -o reports/today
  rigscale probe --long
  rigscale probe --expect golden/platform.yaml
  rigscale probe --from lspci.txt --from topo-m.txt --from smi-q.txt
  rigscale probe --from lspci.txt --nccl-xml topology.xml
  rigscale probe --from machine.jsonl --svg machine.svg

Exit codes: 0 no fault, 4 a fault was found, 2 the file given with --from or --expect cannot be read")]
pub(super) struct Args {
    /// Probe a file instead of this machine: a capture, a topology.yaml, NCCL topology XML, lstopo XML, or the text of
    /// lspci -vvvnn, nvidia-smi topo -m, nvidia-smi topo -p2p, nvidia-smi -q or collect_env. Given several times: texts
    /// about one machine, of which the first that tells a fact counts
    #[arg(long, value_name = "FILE")]
    from: Vec<PathBuf>,

    /// Also hold the machine against a platform: a platform.yaml, the topology.yaml of a unit that is known to be good, or
    /// a description like those in topologies/
    #[arg(long, value_name = "FILE")]
    expect: Option<PathBuf>,

    /// Also show windows to memory, ACS, ASPM, ECC, power limit and persistence of each GPU
    #[arg(long)]
    long: bool,

    /// Say where hwloc sees this machine differently: XML of `lstopo --of xml FILE`
    #[arg(long, value_name = "FILE")]
    hwloc: Option<PathBuf>,

    /// Write topology.yaml, platform.yaml, findings.json and machine.jsonl into this folder
    #[arg(long, short, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Write the topology as XML that NCCL reads with NCCL_TOPO_FILE
    #[arg(long, value_name = "FILE")]
    nccl_xml: Option<PathBuf>,

    /// Draw sockets, root ports, switches, GPUs and the links between them
    #[arg(long, value_name = "FILE.svg")]
    svg: Option<PathBuf>,
}

/// What is printed: text and JSON come from it.
#[derive(Serialize)]
struct Report<'a> {
    topology: &'a Topology,
    findings: &'a [Finding],
    unjudged: &'a [Unjudged],
    nccl: Outlook,
    #[serde(skip_serializing_if = "Option::is_none")]
    hwloc: Option<Vec<String>>,
    #[serde(skip)]
    long: bool,
    #[serde(skip)]
    colour: bool,
}

/// Probes this machine or a file, prints it and keeps it if asked.
///
/// # Errors
/// The file cannot be used, or the results not be written.
pub(super) fn run(args: &Args, out: &Output) -> Result<Exit, ProbeCommandError> {
    let platform = args.expect.as_deref().map(from::platform).transpose()?;
    let mut look = match args.from.is_empty() {
        false => from::files(&args.from, out)?,
        true => Look::live()?,
    };
    if let Some(platform) = platform {
        look.findings.extend(platform.differences(&look.topology));
        look.findings.sort_by_key(|finding| finding.severity);
    }
    let hwloc = args.hwloc.as_deref().map(from::hwloc).transpose()?;
    let hwloc = hwloc.map(|theirs| view_differences(&look.topology, &theirs));
    if let Some(path) = &args.out {
        std::fs::create_dir_all(path).map_err(|source| ProbeCommandError::Folder { path: path.into(), source })?;
        look.write(path)?;
        write_whole(&path.join("platform.yaml"), Acceptance::of(&look.topology).to_text().as_bytes())?;
    }
    if let Some(path) = &args.nccl_xml {
        write_whole(path, to_nccl_xml(&look.topology).as_bytes())?;
    }
    if let Some(path) = &args.svg {
        let svg = machine_svg(&look.topology)?.ok_or(ProbeCommandError::NothingToDraw)?;
        write_whole(path, svg.as_bytes())?;
    }
    let report = Report::of(&look, hwloc, args.long, out.colour());
    out.emit(&report).map_err(|source| ProbeCommandError::Print { source })?;
    if let Some(folder) = &args.out {
        out.remark(format!("written to {}", folder.display()));
    }
    for path in [&args.nccl_xml, &args.svg].into_iter().flatten() {
        out.remark(format!("written to {}", path.display()));
    }
    let fault = look.findings.iter().any(|finding| finding.severity == Severity::Fault);
    Ok(if fault { Exit::Fault } else { Exit::Pass })
}

impl<'a> Report<'a> {
    fn of(look: &'a Look, hwloc: Option<Vec<String>>, long: bool, colour: bool) -> Self {
        let (topology, findings, unjudged) = (&look.topology, look.findings.as_slice(), look.unjudged.as_slice());
        Self { topology, findings, unjudged, nccl: Outlook::of(topology), hwloc, long, colour }
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        tables::identity(out, self.topology)?;
        writeln!(out)?;
        tree::draw(out, self.topology)?;
        tables::gpus(out, self.topology)?;
        if self.long {
            tables::details(out, self.topology)?;
        }
        tables::pairs(out, self.topology)?;
        peers::list(out, self.topology)?;
        self.nccl.write(out)?;
        for difference in self.hwloc.iter().flatten() {
            out.write_str(&wrapped(&format!("{:19}", "hwloc differs"), difference))?;
        }
        if self.hwloc.as_ref().is_some_and(Vec::is_empty) {
            writeln!(out, "{:19}it sees the same NUMA nodes, CPUs and bridges", "hwloc")?;
        }
        writeln!(out)?;
        findings::list(out, self.findings, self.colour)?;
        findings::unjudged(out, self.unjudged)
    }
}

/// Everything printed fits this many columns.
const COLUMNS: usize = 80;

/// An address, or the index that it stands for.
fn shown(address: PciAddress) -> String {
    if address.is_index() { format!("GPU{}", address.bus) } else { address.to_string() }
}

/// `text`, cut to so many columns, with an ellipsis where something was cut.
fn cut(text: &str, columns: usize) -> String {
    match text.chars().count() <= columns {
        true => text.to_owned(),
        false => text.chars().take(columns.saturating_sub(1)).chain(['…']).collect(),
    }
}

/// [`wrapped`], for other commands.
pub(super) fn wrapped_at(first: &str, text: &str) -> String {
    wrapped(first, text)
}

/// `text` in lines of at most [`COLUMNS`], the first after `first`, the others as far in. Long words are cut apart.
fn wrapped(first: &str, text: &str) -> String {
    let indent = first.chars().count();
    let room = COLUMNS.saturating_sub(indent).max(20);
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let letters: Vec<char> = word.chars().collect();
        for part in letters.chunks(room) {
            let part: String = part.iter().collect();
            let used = lines.last().map_or(0, |line| line.chars().count());
            match lines.last_mut() {
                Some(line) if used == 0 => line.push_str(&part),
                Some(line) if used + 1 + part.chars().count() <= room => line.push_str(&format!(" {part}")),
                _ => lines.push(part),
            }
        }
    }
    format!("{first}{}\n", lines.join(&format!("\n{}", " ".repeat(indent))))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn printed(name: &str) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/machines").join(name).join("machine.jsonl");
        let look = from::files(&[path], &Output { json: false, quiet: true }).unwrap();
        Report::of(&look, Some(Vec::new()), true, false).to_string()
    }

    #[test]
    fn every_recorded_machine_fits_the_terminal() {
        let machines = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/machines");
        for entry in std::fs::read_dir(machines).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_dir()) {
            let name = entry.unwrap().file_name().into_string().unwrap();
            for line in printed(&name).lines() {
                assert!(line.chars().count() <= COLUMNS, "{name}: {line}");
                assert!(!line.contains('\u{1b}'), "{name}: {line}");
            }
        }
    }

    #[test]
    fn the_tree_shows_each_link_on_the_way_to_a_gpu() {
        let text = printed("server-8gpu");
        let tree = [
            "├─ socket 0 · 64 cores",
            "│  └─ NUMA node 0 · CPUs 0-63,128-191 · 756 GiB",
            "│     ├─ 0000:00:01.1 Zen 5 root port",
            "│     │  └─ 0000:01:00.0 PEX890xx Gen5 switch",
            "│     │     ├─ 0000:02:03.0 PEX890xx Gen5 switch",
        ];
        let lines: Vec<&str> = text.lines().collect();
        let start = lines.iter().position(|line| line.starts_with(tree[0])).unwrap();
        for (line, expected) in lines[start..].iter().zip(tree) {
            assert!(line.starts_with(expected), "{line}");
        }
        let gpu = lines.iter().find(|line| line.contains("─ 0000:06:00.0")).unwrap();
        assert!(gpu.ends_with("Gen1 x16 (max Gen5 x16)"), "{gpu}");
    }

    #[test]
    fn what_is_unknown_is_said_and_what_nccl_will_do() {
        let flat = |text: String| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let printed = |name: &str| flat(printed(name));
        let text = printed("answers-garbled");
        assert!(text.contains("P2P read 2 × unknown (garbled: NVML: an unknown error"), "{text}");
        assert!(text.contains("rules could not judge") && text.contains("p2p-refused"), "{text}");
        assert!(!printed("idle-gen1").contains("could not judge"));
        let text = printed("slow-under-load");
        assert!(text.contains("12 × granted") && text.contains("host memory (NODE is beyond PXB"), "{text}");
        let text = printed("server-8gpu");
        assert!(text.contains("Ring NCCL finds none and falls back to simple order"), "{text}");
        let text = printed("set-by-hand");
        assert!(text.contains("the driver answers DR"), "{text}");
        // Of a bridged pair no PCIe path is told, and its links are.
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/imports/topo-m-nvlink/input");
        let look = from::files(&[path], &Output { json: false, quiet: true }).unwrap();
        let text = flat(Report::of(&look, None, false, false).to_string());
        assert!(text.contains("NV4") && text.contains("NVLink (the GPUs are joined by NVLink)"), "{text}");
    }

    #[test]
    fn texts_wrap_and_cut_by_letters() {
        assert_eq!(cut("äöüß", 3), "äö…");
        let text = wrapped("  remedy    ", &"wörter ".repeat(30));
        assert!(text.lines().all(|line| line.chars().count() <= COLUMNS) && 3 <= text.lines().count());
        assert!(wrapped("", &"x".repeat(200)).lines().all(|line| line.len() <= COLUMNS));
    }
}
