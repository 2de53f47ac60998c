//! `topology.yaml` in and out: bounded, strict, with errors that point at the place.

use miette::Diagnostic;
use serde::de::DeserializeOwned;
use serde_saphyr::budget::Budget;
use serde_saphyr::options::DuplicateKeyPolicy;
use serde_saphyr::{Options, ser_options};

use super::{SCHEMA, Topology, WrongPlace, place_in};

/// A 256-core machine with 16 GPUs takes about 50 KB.
pub const YAML_BYTES_MAX: usize = 4 << 20;
/// `gpus`, GPU, `link`, reading, its parts: six levels; the rest is room for later ones.
const DEPTH_MAX: usize = 24;

/// A topology file that cannot be used.
#[derive(Debug, thiserror::Error, Diagnostic)]
pub enum TopologyError {
    /// It is longer than any machine needs.
    #[error("{file}: {bytes} bytes are too many for a topology: at most {YAML_BYTES_MAX}")]
    #[diagnostic(help("give the topology.yaml that `rigscale probe -o DIR` wrote"))]
    TooLarge {
        /// The file.
        file: String,
        /// Its size.
        bytes: usize,
    },
    /// A newer rigscale wrote it.
    #[error("{file}: schema {found} is newer than {SCHEMA}, which this version of rigscale reads")]
    #[diagnostic(help("use the rigscale that wrote it, or a newer one"))]
    Newer {
        /// The file.
        file: String,
        /// Its schema.
        found: u64,
    },
    /// It is no YAML, or not that of a topology.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Wrong(Box<WrongPlace>),
    /// A topology that cannot be spelled.
    #[error("the topology could not be written as YAML")]
    Write(#[source] serde_saphyr::SerializeError),
}

/// What to do about a topology file that is wrong.
const HELP: &str =
    "`rigscale probe -o DIR` writes a topology.yaml to start from; derived keys (`pairs`, `narrowest`) may be left out";

fn options() -> Options {
    let mut budget = Budget::default();
    budget.max_reader_input_bytes = Some(YAML_BYTES_MAX);
    budget.max_depth = DEPTH_MAX;
    budget.max_nodes = 400_000;
    budget.max_events = 1_000_000;
    budget.max_aliases = 0;
    budget.max_anchors = 0;
    budget.max_documents = 1;
    let mut options = Options::default();
    options.budget = Some(budget);
    options.duplicate_keys = DuplicateKeyPolicy::Error;
    options.strict_booleans = true;
    options.with_snippet = false;
    options
}

/// Reads a topology; `file` is the name for errors. Derived fields that the text leaves out are filled in.
///
/// # Errors
/// The text is too long, of a newer schema, no YAML, no topology, or contradicts itself: with line and column.
pub fn from_yaml(text: &str, file: &str) -> Result<Topology, TopologyError> {
    if YAML_BYTES_MAX < text.len() {
        return Err(TopologyError::TooLarge { file: file.to_owned(), bytes: text.len() });
    }
    if let Some(found) = schema_of(text).filter(|schema| u64::from(SCHEMA) < *schema) {
        return Err(TopologyError::Newer { file: file.to_owned(), found });
    }
    let read: Topology = parse_yaml(text, file, HELP).map_err(TopologyError::Wrong)?;
    if read.schema == 0 {
        let problem = format!("schema {} was never written", read.schema);
        return Err(wrong(text, file, find(text, "schema"), problem));
    }
    if let Some((about, problem)) = read.flaw() {
        return Err(wrong(text, file, find(text, &about), problem));
    }
    check_derived(text, file, &read)?;
    Ok(Topology { schema: SCHEMA, ..read }.derived())
}

/// Reads any YAML record within the same bounds of size, depth and repetition: what a stranger wrote costs neither
/// memory nor time. `help` says what to do about a file that is wrong.
///
/// # Errors
/// The place and what is wrong there.
pub fn parse_yaml<T: DeserializeOwned>(text: &str, file: &str, help: &'static str) -> Result<T, Box<WrongPlace>> {
    serde_saphyr::from_str_with_options(text, options()).map_err(|error| Box::new(misread(text, file, &error, help)))
}

/// Writes a topology; [`from_yaml`] reads back the same value.
///
/// # Errors
/// The value cannot be spelled.
pub fn to_yaml(topology: &Topology) -> Result<String, TopologyError> {
    let options = ser_options! { prefer_block_scalars: false };
    serde_saphyr::to_string_with_options(topology, options).map_err(TopologyError::Write)
}

/// The number after the key `schema` at the start of a line, so that a newer file is named as such whatever else it
/// holds.
fn schema_of(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("schema:")).and_then(|number| number.trim().parse().ok())
}

/// Derived fields must say what the tree says: an edit of one without the other would otherwise be dropped in silence.
fn check_derived(text: &str, file: &str, read: &Topology) -> Result<(), TopologyError> {
    let derived = read.clone().derived();
    if !read.pairs.is_empty() && read.pairs != derived.pairs {
        let problem = "the pairs do not follow from the bridges, GPUs and NUMA nodes".to_owned();
        return Err(wrong(text, file, find(text, "pairs:"), problem));
    }
    for (gpu, right) in read.gpus.iter().zip(&derived.gpus) {
        let given = !matches!(&gpu.narrowest, Err(missing) if missing.detail.is_empty());
        if given && gpu.narrowest != right.narrowest {
            let problem = format!("the narrowest hop of {} does not follow from the bridges above it", gpu.address);
            return Err(wrong(text, file, find(text, &gpu.address.to_string()), problem));
        }
    }
    Ok(())
}

/// Byte offset of the last line that names `what`: derived fields and GPUs come after what they are made of.
fn find(text: &str, what: &str) -> usize {
    text.rfind(what).unwrap_or(0)
}

fn misread(text: &str, file: &str, error: &serde_saphyr::Error, help: &'static str) -> WrongPlace {
    let place = error.location();
    let line = place.map_or(1, |place| place.line());
    let column = place.map_or(1, |place| place.column());
    let offset = offset_of(text, line, column);
    let rendered = error.without_snippet().to_string();
    let problem = rendered.split(" at line ").next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    place_in(text, file, offset, problem, help)
}

/// Byte offset of a line and column, both from 1; the end of the text where it is shorter.
fn offset_of(text: &str, line: u64, column: u64) -> usize {
    let lines_before = usize::try_from(line.saturating_sub(1)).unwrap_or(usize::MAX);
    let start: usize = text.split_inclusive('\n').take(lines_before).map(str::len).sum();
    let columns_before = usize::try_from(column.saturating_sub(1)).unwrap_or(usize::MAX);
    start + text[start..].chars().take(columns_before).map(char::len_utf8).sum::<usize>()
}

fn wrong(text: &str, file: &str, offset: usize, problem: String) -> TopologyError {
    TopologyError::Wrong(Box::new(place_in(text, file, offset, problem, HELP)))
}
