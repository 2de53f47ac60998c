//! Imported texts: what other tools print about a machine, made a topology.
//!
//! Each kind of text has a file. It fills in what that kind says and leaves the rest missing, with the reason; so rules
//! stay quiet about what such a text cannot hold. A text is untrusted: at most [`IMPORT_BYTES_MAX`], and whatever is in
//! it, the end is a topology or an error with its place.

mod env_report;
mod grid;
mod hwloc;
mod lspci;
mod smi_query;
mod topo_m;
mod topo_p2p;

use std::fmt;

use miette::Diagnostic;

use crate::topology::{Missing, PciAddress, Topology, WrongPlace, from_nccl_xml, place_in};

use grid::Grid;

/// The longest texts are `nvidia-smi -q` and `lspci -vvv` of large servers: about 1 MB.
pub const IMPORT_BYTES_MAX: usize = 16 << 20;
/// The largest PCIe boxes hold 20 GPUs.
const GPUS_MAX: usize = 64;

/// A kind of text that can be imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// NCCL's topology XML, as `NCCL_TOPO_DUMP_FILE` writes it.
    NcclXml,
    /// XML of lstopo, hwloc 2 or 3.
    Hwloc,
    /// `lspci -vvv`, better with `-nn`, better as root.
    Lspci,
    /// `nvidia-smi topo -m`.
    TopoMatrix,
    /// `nvidia-smi topo -p2p r`, and its other letters.
    TopoP2p,
    /// `nvidia-smi -q`.
    SmiQuery,
    /// `python -m torch.utils.collect_env`.
    EnvReport,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 7] =
        [Self::NcclXml, Self::Hwloc, Self::Lspci, Self::TopoMatrix, Self::TopoP2p, Self::SmiQuery, Self::EnvReport];

    /// The kind of a text, as its own words show it.
    #[must_use]
    pub fn of(text: &str) -> Option<Self> {
        Self::all_of(text).into_iter().next()
    }

    /// Every kind that a text holds: a bug report holds several, one after the other.
    #[must_use]
    pub fn all_of(text: &str) -> Vec<Self> {
        let start = text.trim_start_matches('\u{feff}').trim_start();
        if start.starts_with('<') {
            let named = |tag: &str| start.split('<').any(|part| part.strip_prefix(tag).is_some_and(ends_tag));
            return match (named("system"), named("topology")) {
                (true, false) => vec![Self::NcclXml],
                (_, true) => vec![Self::Hwloc],
                _ => Vec::new(),
            };
        }
        let (paths, grants) = Grid::kinds(text);
        let held = [
            (smi_query::is_one(text), Self::SmiQuery),
            (lspci::is_one(text), Self::Lspci),
            (paths, Self::TopoMatrix),
            (grants && !paths, Self::TopoP2p),
            (env_report::is_one(text), Self::EnvReport),
        ];
        held.into_iter().filter(|(held, _)| *held).map(|(_, kind)| kind).collect()
    }
}

/// True where the name of a tag ends at the start of `rest`.
fn ends_tag(rest: &str) -> bool {
    rest.starts_with(|letter: char| letter.is_whitespace() || letter == '>' || letter == '/')
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::NcclXml => "NCCL topology XML",
            Self::Hwloc => "lstopo XML",
            Self::Lspci => "lspci -vvv",
            Self::TopoMatrix => "nvidia-smi topo -m",
            Self::TopoP2p => "nvidia-smi topo -p2p",
            Self::SmiQuery => "nvidia-smi -q",
            Self::EnvReport => "collect_env",
        })
    }
}

/// A text that cannot be imported.
#[derive(Debug, thiserror::Error, Diagnostic)]
pub enum ImportError {
    /// It is longer than any tool prints.
    #[error("{file}: {bytes} bytes are too many for a description of a machine: at most {IMPORT_BYTES_MAX}")]
    #[diagnostic(help("{KINDS_HELP}"))]
    TooLarge {
        /// The file.
        file: String,
        /// Its size.
        bytes: usize,
    },
    /// It is nothing that is known.
    #[error("{file}: {what}")]
    #[diagnostic(help("{KINDS_HELP}"))]
    Unknown {
        /// The file.
        file: String,
        /// What it is, as far as it shows.
        what: &'static str,
    },
    /// A place makes no sense.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Wrong(#[from] Box<WrongPlace>),
}

/// What can be given.
const KINDS_HELP: &str = "give a capture of `rigscale capture`, a topology.yaml of `rigscale probe -o DIR`, NCCL topology \
                          XML (NCCL_TOPO_DUMP_FILE), XML of lstopo (`lstopo --of xml`), or the text of `lspci -vvvnn`, \
                          `nvidia-smi topo -m`, `nvidia-smi topo -p2p r`, `nvidia-smi -q` or PyTorch's `collect_env`";

/// Makes a topology of a text of any [`Kind`]; `file` is the name for errors.
///
/// # Errors
/// The text is too long, of no known kind, or makes no sense: with its place.
pub fn import(text: &str, file: &str) -> Result<Topology, ImportError> {
    if IMPORT_BYTES_MAX < text.len() {
        return Err(ImportError::TooLarge { file: file.to_owned(), bytes: text.len() });
    }
    let unknown = |what| ImportError::Unknown { file: file.to_owned(), what };
    match Kind::of(text) {
        Some(kind) => import_as(kind, text, file),
        None if text.trim().is_empty() => Err(unknown("the file is empty")),
        None if text.contains('\0') => Err(unknown("this is no text")),
        None => Err(unknown("this describes no machine in any form that rigscale reads")),
    }
}

/// Makes one topology of everything that a text holds, the kind that tells most first; and says of each further kind
/// whether it was added.
///
/// # Errors
/// As [`import`], of the first kind.
pub fn import_all(text: &str, file: &str) -> Result<(Topology, Vec<String>), ImportError> {
    let mut topology = import(text, file)?;
    let mut remarks = Vec::new();
    for kind in Kind::all_of(text).into_iter().skip(1) {
        let added = match import_as(kind, text, file) {
            Ok(other) => topology.merged(&other).ok_or_else(|| "its GPUs are not those above".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        match added {
            Ok(merged) => {
                topology = merged;
                remarks.push(format!("{file} also holds the text of {kind}, which was added"));
            }
            Err(why) => remarks.push(format!("{file} also holds the text of {kind}, which was left out: {why}")),
        }
    }
    Ok((topology, remarks))
}

/// The error for bytes that are no text.
#[must_use]
pub fn not_a_text(file: &str) -> ImportError {
    ImportError::Unknown { file: file.to_owned(), what: "this is no text" }
}

/// Makes a topology of a text of this kind.
///
/// # Errors
/// As [`import`].
pub fn import_as(kind: Kind, text: &str, file: &str) -> Result<Topology, ImportError> {
    if IMPORT_BYTES_MAX < text.len() {
        return Err(ImportError::TooLarge { file: file.to_owned(), bytes: text.len() });
    }
    let source = Source { text, file };
    let topology = match kind {
        Kind::NcclXml => return Ok(from_nccl_xml(text, file)?),
        Kind::Hwloc => hwloc::read(text, file)?,
        Kind::Lspci => lspci::read(source)?,
        Kind::TopoMatrix => topo_m::read(source)?,
        Kind::TopoP2p => topo_p2p::read(source)?,
        Kind::SmiQuery => smi_query::read(source)?,
        Kind::EnvReport => env_report::read(source)?,
    };
    match topology.flaw() {
        Some((about, problem)) => Err(source.wrong(text.rfind(&about).unwrap_or(0), problem, KINDS_HELP).into()),
        None => Ok(topology.derived()),
    }
}

/// A text and its name.
#[derive(Debug, Clone, Copy)]
struct Source<'a> {
    text: &'a str,
    file: &'a str,
}

impl<'a> Source<'a> {
    /// Each line with the byte where it begins, without its end.
    fn lines(self) -> impl Iterator<Item = (usize, &'a str)> {
        let start = self.text.as_ptr().addr();
        self.text.lines().map(move |line| (line.as_ptr().addr() - start, line))
    }

    fn wrong(self, offset: usize, problem: impl Into<String>, help: &'static str) -> Box<WrongPlace> {
        Box::new(place_in(self.text, self.file, offset, problem.into(), help))
    }
}

/// What a text of this kind does not hold.
fn untold(kind: Kind) -> Missing {
    Missing::untold(&kind.to_string())
}

/// An address as the tools print it: `00000000:01:00.0` of nvidia-smi, `01:00.0` of lspci.
fn address(text: &str) -> Option<PciAddress> {
    match text.matches(':').count() {
        1 => format!("0000:{text}").parse().ok(),
        _ => text.parse().ok(),
    }
}
