//! What the files given on the command line hold: machines, and platforms to hold them against.

use std::io;
use std::path::{Path, PathBuf};

use crate::cli::Output;
use crate::cli::look::Look;
use crate::predict::{Board, parse_platform};
use crate::probe::import::{Kind, import_all, import_as, not_a_text};
use crate::probe::{
    ACCEPTANCE_SCHEMA, Acceptance, AcceptedGpu, CAPTURE_BYTES_MAX, Captured, accepted, differences, parse_acceptance,
    probe,
};
use crate::record::{Finding, RecordError, read_text};
use crate::topology::{Topology, YAML_BYTES_MAX, from_yaml};

use super::ProbeCommandError;

/// What a machine is held against.
pub(super) enum Platform {
    /// The topology of a unit that is known to be good.
    Unit(Box<Topology>),
    /// A description for acceptance.
    Written(Acceptance),
}

impl Platform {
    /// Where a machine differs from it.
    pub(super) fn differences(&self, topology: &Topology) -> Vec<Finding> {
        match self {
            Self::Unit(unit) => differences(topology, unit),
            Self::Written(acceptance) => accepted(topology, acceptance),
        }
    }
}

/// True for a YAML text that has this key at the start of a line.
fn has_key(text: &str, key: &str) -> bool {
    text.lines().any(|line| line.strip_prefix(key).is_some_and(|rest| rest.starts_with(':')))
}

/// Reads a platform: a topology tells the `machine`, a platform of the catalogue its `nodes`, one for acceptance neither.
pub(super) fn platform(path: &Path) -> Result<Platform, ProbeCommandError> {
    let text = read_text(path, YAML_BYTES_MAX as u64)?;
    let name = path.display().to_string();
    if has_key(&text, "machine") || !has_key(&text, "gpus") {
        let unit = from_yaml(&text, &name).map_err(|error| ProbeCommandError::Topology(Box::new(error)))?;
        return Ok(Platform::Unit(Box::new(unit)));
    }
    if has_key(&text, "nodes") {
        let board = parse_platform(&text, &name).map_err(|error| ProbeCommandError::Platform(Box::new(error)))?;
        return Ok(Platform::Written(of_board(&board)));
    }
    parse_acceptance(&text, &name).map(Platform::Written).map_err(ProbeCommandError::Acceptance)
}

/// What a board of the catalogue asks of a machine: its cards, and the narrowest link above each.
fn of_board(board: &Board) -> Acceptance {
    let gpus = board.seats.iter().map(|seat| {
        let chain = board.chain(seat.node).unwrap_or_default();
        let links = chain.into_iter().filter_map(|node| board.lanes(node));
        let narrowest = links.min_by(|a, b| a.rate().0.total_cmp(&b.rate().0));
        AcceptedGpu {
            model: Some(seat.card.title.clone()),
            generation: narrowest.map(|lanes| lanes.generation),
            width: narrowest.map(|lanes| lanes.width),
            ..AcceptedGpu::default()
        }
    });
    let (title, gpus) = (board.title.clone(), gpus.collect());
    Acceptance { schema: ACCEPTANCE_SCHEMA, title, gpus, farthest: None, carrier: None }
}

/// hwloc's view of a machine.
pub(super) fn hwloc(path: &Path) -> Result<Topology, ProbeCommandError> {
    let (text, name) = (text(path)?, path.display().to_string());
    import_as(Kind::Hwloc, &text, &name).map_err(|error| ProbeCommandError::Import(Box::new(error)))
}

fn text(path: &Path) -> Result<String, ProbeCommandError> {
    match read_text(path, CAPTURE_BYTES_MAX as u64) {
        Err(RecordError::File { source, .. }) if source.kind() == io::ErrorKind::InvalidData => {
            Err(ProbeCommandError::Import(Box::new(not_a_text(&path.display().to_string()))))
        }
        read => Ok(read?),
    }
}

/// One machine of all files; what was added or left out is remarked.
pub(super) fn files(paths: &[PathBuf], out: &Output) -> Result<Look, ProbeCommandError> {
    let mut whole: Option<(Topology, Option<String>)> = None;
    for path in paths {
        let (topology, transcript) = file(path, out)?;
        whole = Some(match whole {
            None => (topology, transcript),
            // The transcript of one file is not that of the machine that several tell of.
            Some((first, _)) => match first.merged(&topology) {
                Some(merged) => (merged, None),
                None => return Err(ProbeCommandError::Unlike { file: path.display().to_string() }),
            },
        });
    }
    let (topology, transcript) = whole.ok_or(ProbeCommandError::NothingGiven)?;
    Ok(Look::of(topology, transcript))
}

/// A capture begins with a brace; a topology holds a key at the start of a line that no tool prints there.
fn file(path: &Path, out: &Output) -> Result<(Topology, Option<String>), ProbeCommandError> {
    let (text, name) = (text(path)?, path.display().to_string());
    if !text.trim_start().starts_with('{') {
        let is_yaml = ["schema", "machine"].iter().any(|key| has_key(&text, key));
        if is_yaml && Kind::of(&text).is_none() {
            let read = from_yaml(&text, &name).map_err(|error| ProbeCommandError::Topology(Box::new(error)))?;
            return Ok((read, None));
        }
        let (read, remarks) = import_all(&text, &name).map_err(|error| ProbeCommandError::Import(Box::new(error)))?;
        remarks.iter().for_each(|remark| out.remark(remark));
        return Ok((read, None));
    }
    let captured = Captured::parse(&text, &name).map_err(|error| ProbeCommandError::Capture(Box::new(error)))?;
    let read = probe(&captured).map_err(|source| ProbeCommandError::Probe { file: name, source })?;
    Ok((read, Some(text)))
}
