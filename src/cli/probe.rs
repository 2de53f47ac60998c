//! `rigscale probe`: what a machine is, and what is wrong with it.

mod error;
mod findings;
mod peers;
mod tables;
mod tree;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;
use serde::Serialize;

use crate::probe::import::{Kind, import, not_a_text};
use crate::probe::{CAPTURE_BYTES_MAX, Captured, differences, probe};
use crate::record::{Finding, RecordError, Severity, Unjudged, read_text, write_whole};
use crate::report::machine_svg;
use crate::topology::{PciAddress, Topology, YAML_BYTES_MAX, from_yaml, to_nccl_xml};

pub(super) use error::ProbeCommandError;
pub(super) use findings::list as list_findings;
pub(super) use tables::{plain_table, write as write_table};

use super::look::Look;
use super::{Exit, Output};

/// Shows what this machine is: sockets, PCIe tree, GPUs, links, and what is wrong with them
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  rigscale probe
  rigscale probe --from machine.jsonl --json
  rigscale probe -o reports/today
  rigscale probe --expect golden/topology.yaml
  rigscale probe --from lspci.txt --nccl-xml topology.xml
  rigscale probe --from machine.jsonl --svg machine.svg

Exit codes: 0 no fault, 4 a fault was found, 2 the file given with --from or --expect cannot be read")]
pub(super) struct Args {
    /// Probe a file instead of this machine: a capture, a topology.yaml, NCCL topology XML, lstopo XML, or the text of
    /// lspci -vvvnn, nvidia-smi topo -m, nvidia-smi topo -p2p or nvidia-smi -q
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,

    /// Also hold the machine against a platform: the topology.yaml of a unit that is known to be good
    #[arg(long, value_name = "FILE")]
    expect: Option<PathBuf>,

    /// Write topology.yaml, findings.json and machine.jsonl into this folder
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
    #[serde(skip)]
    colour: bool,
}

/// Probes this machine or a file, prints it and keeps it if asked.
///
/// # Errors
/// The file cannot be used, or the results not be written.
pub(super) fn run(args: &Args, out: &Output) -> Result<Exit, ProbeCommandError> {
    let platform = args.expect.as_deref().map(platform).transpose()?;
    let mut look = match &args.from {
        Some(path) => from_file(path)?,
        None => Look::live()?,
    };
    if let Some(platform) = platform {
        look.findings.extend(differences(&look.topology, &platform));
        look.findings.sort_by_key(|finding| finding.severity);
    }
    if let Some(path) = &args.out {
        std::fs::create_dir_all(path).map_err(|source| ProbeCommandError::Folder { path: path.into(), source })?;
        look.write(path)?;
    }
    if let Some(path) = &args.nccl_xml {
        write_whole(path, to_nccl_xml(&look.topology).as_bytes())?;
    }
    if let Some(path) = &args.svg {
        let svg = machine_svg(&look.topology)?.ok_or(ProbeCommandError::NothingToDraw)?;
        write_whole(path, svg.as_bytes())?;
    }
    let report =
        Report { topology: &look.topology, findings: &look.findings, unjudged: &look.unjudged, colour: out.colour() };
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

/// The topology of a unit that is known to be good.
fn platform(path: &Path) -> Result<Topology, ProbeCommandError> {
    let text = read_text(path, YAML_BYTES_MAX as u64)?;
    let name = path.display().to_string();
    from_yaml(&text, &name).map_err(|error| ProbeCommandError::Topology(Box::new(error)))
}

/// A capture begins with a brace; a topology holds a key at the start of a line that no tool prints there.
fn from_file(path: &Path) -> Result<Look, ProbeCommandError> {
    let name = path.display().to_string();
    let text = match read_text(path, CAPTURE_BYTES_MAX as u64) {
        Err(RecordError::File { source, .. }) if source.kind() == io::ErrorKind::InvalidData => {
            return Err(ProbeCommandError::Import(Box::new(not_a_text(&name))));
        }
        read => read?,
    };
    if !text.trim_start().starts_with('{') {
        let is_yaml = text.lines().any(|line| ["schema:", "machine:"].iter().any(|key| line.starts_with(key)));
        let topology = match is_yaml && Kind::of(&text).is_none() {
            true => from_yaml(&text, &name).map_err(|error| ProbeCommandError::Topology(Box::new(error)))?,
            false => import(&text, &name).map_err(|error| ProbeCommandError::Import(Box::new(error)))?,
        };
        return Ok(Look::of(topology, None));
    }
    let captured = Captured::parse(&text, &name).map_err(|error| ProbeCommandError::Capture(Box::new(error)))?;
    let topology = probe(&captured).map_err(|source| ProbeCommandError::Probe { file: name, source })?;
    Ok(Look::of(topology, Some(text)))
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        tables::identity(out, self.topology)?;
        writeln!(out)?;
        tree::draw(out, self.topology)?;
        tables::gpus(out, self.topology)?;
        tables::pairs(out, self.topology)?;
        peers::list(out, self.topology)?;
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
    use super::*;

    fn printed(name: &str) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/machines").join(name).join("machine.jsonl");
        let look = from_file(&path).unwrap();
        Report { topology: &look.topology, findings: &look.findings, unjudged: &look.unjudged, colour: false }
            .to_string()
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
    fn texts_wrap_and_cut_by_letters() {
        assert_eq!(cut("äöüß", 3), "äö…");
        let text = wrapped("  remedy    ", &"wörter ".repeat(30));
        assert!(text.lines().all(|line| line.chars().count() <= COLUMNS) && 3 <= text.lines().count());
        assert!(wrapped("", &"x".repeat(200)).lines().all(|line| line.len() <= COLUMNS));
    }
}
