//! The grids of `nvidia-smi topo`: a column and a row for each GPU, and what lies between.

use crate::topology::{PciAddress, PeerStatus, WrongPlace};

use super::{GPUS_MAX, Source};

/// GPUs and network cards: no machine has more columns.
const COLUMNS_MAX: usize = 256;

/// What a cell says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cell<'a> {
    /// The GPU itself.
    Own,
    /// A word of the legend.
    Word(&'a str),
}

/// One grid.
#[derive(Debug)]
pub(super) struct Grid<'a> {
    /// Byte where it begins.
    pub(super) at: usize,
    /// The numbers of its GPUs, in order.
    pub(super) gpus: Vec<u8>,
    /// A row for each GPU, with a cell for each GPU.
    pub(super) rows: Vec<Row<'a>>,
}

/// The row of one GPU.
#[derive(Debug)]
pub(super) struct Row<'a> {
    /// Byte where it begins.
    pub(super) at: usize,
    /// Its cells for the GPUs, in order.
    pub(super) cells: Vec<Cell<'a>>,
    /// The words after its last cell.
    pub(super) rest: Vec<&'a str>,
}

/// What would be right.
pub(super) const HELP: &str = "give the whole of what nvidia-smi printed: a line `GPU0 GPU1 …`, then a line for each GPU \
                               with a cell for each column";

/// The words of `nvidia-smi topo -p2p` and what they stand for.
const GRANTS: [(&str, PeerStatus); 8] = [
    ("OK", PeerStatus::Ok),
    ("CNS", PeerStatus::ChipsetNotSupported),
    ("GNS", PeerStatus::GpuNotSupported),
    ("TNS", PeerStatus::TopologyNotSupported),
    ("DR", PeerStatus::DisabledByRegistry),
    ("NS", PeerStatus::NotSupported),
    ("U", PeerStatus::Unknown),
    ("N/A", PeerStatus::Unknown),
];

/// What a word of `nvidia-smi topo -p2p` stands for.
pub(super) fn grant(word: &str) -> Option<PeerStatus> {
    GRANTS.iter().find(|(known, _)| *known == word).map(|(_, status)| *status)
}

/// The number of `GPU7`.
fn number(word: &str) -> Option<u8> {
    let digits = word.strip_prefix("GPU").filter(|digits| digits.len() <= 2);
    digits.and_then(|digits| digits.parse().ok()).filter(|number| usize::from(*number) < GPUS_MAX)
}

/// The words of a line without the codes that underline the header on a terminal.
fn words(line: &str) -> Vec<&str> {
    let shown = line.split('\u{1b}').enumerate().map(|(index, part)| match (index, part.split_once('m')) {
        (0, _) | (_, None) => part,
        (_, Some((_, shown))) => shown,
    });
    shown.flat_map(str::split_whitespace).take(COLUMNS_MAX + 16).collect()
}

/// The names of the columns, where a line is the head of a grid: device names up to `CPU Affinity`.
fn head<'a>(words: &[&'a str]) -> Option<Vec<&'a str>> {
    let columns: Vec<&str> =
        words.iter().copied().take_while(|word| !["CPU", "NUMA", "GPU", "Affinity"].contains(word)).collect();
    let named = |word: &str| number(word).is_some() || is_network(word);
    let whole = columns.iter().all(|word| named(word)) && columns.len() <= COLUMNS_MAX;
    (whole && columns.first().is_some_and(|first| number(first).is_some())).then_some(columns)
}

/// Network cards are columns, too: `NIC0`, `mlx5_0`, `bnxt_re0`.
fn is_network(word: &str) -> bool {
    let digits_end = word.ends_with(|letter: char| letter.is_ascii_digit());
    digits_end && word.starts_with(|letter: char| letter.is_ascii_alphabetic()) && !word.starts_with("NV")
}

impl<'a> Grid<'a> {
    /// Whether a text holds a grid of paths, and whether it holds one of grants.
    pub(super) fn kinds(text: &'a str) -> (bool, bool) {
        let grids = Self::all(Source { text, file: "" }).unwrap_or_default();
        let grants = grids.iter().filter(|grid| grid.holds_grants()).count();
        match grids.is_empty() {
            // A grid that is cut short is one all the same: its reader says where.
            true => (text.lines().any(|line| head(&words(line)).is_some()), false),
            false => (grants < grids.len(), 0 < grants),
        }
    }

    /// Every grid of a text.
    ///
    /// # Errors
    /// A row lacks cells or is missing.
    pub(super) fn all(source: Source<'a>) -> Result<Vec<Self>, Box<WrongPlace>> {
        let mut grids: Vec<Self> = Vec::new();
        let mut lines = source.lines();
        while let Some((at, line)) = lines.next() {
            let Some(columns) = head(&words(line)) else { continue };
            let gpus: Vec<u8> = columns.iter().filter_map(|column| number(column)).collect();
            let ordered = gpus.iter().zip(0..).all(|(gpu, place): (&u8, u8)| *gpu == place);
            if !ordered {
                return Err(source.wrong(at, "the columns are not GPU0, GPU1, … in order", HELP));
            }
            let mut rows = Vec::new();
            for gpu in &gpus {
                let (at, line) = lines.next().unwrap_or((source.text.len(), ""));
                let words = words(line);
                if words.first().copied().and_then(number) != Some(*gpu) {
                    return Err(source.wrong(at, format!("the row of GPU{gpu} is missing"), HELP));
                }
                rows.push(row(source, at, &words, &columns, *gpu)?);
            }
            grids.push(Self { at, gpus, rows });
        }
        Ok(grids)
    }

    /// True for a grid of grants. A grid of one GPU has no word and counts as one of paths.
    pub(super) fn holds_grants(&self) -> bool {
        let words = self.rows.iter().flat_map(|row| &row.cells);
        words.into_iter().any(|cell| matches!(cell, Cell::Word(word) if grant(word).is_some()))
    }

    /// The address that stands for each GPU.
    pub(super) fn addresses(&self) -> Vec<PciAddress> {
        self.gpus.iter().map(|gpu| PciAddress::of_index(*gpu)).collect()
    }
}

fn row<'a>(
    source: Source<'a>,
    at: usize,
    words: &[&'a str],
    columns: &[&str],
    gpu: u8,
) -> Result<Row<'a>, Box<WrongPlace>> {
    let cells: Vec<&str> = words.iter().copied().skip(1).take(columns.len()).collect();
    if cells.len() < columns.len() {
        let problem = format!("the row of GPU{gpu} has {} of {} cells", cells.len(), columns.len());
        return Err(source.wrong(at, problem, HELP));
    }
    let own = columns.iter().position(|column| number(column) == Some(gpu));
    let of_gpus = cells.iter().zip(columns).enumerate().filter(|(_, (_, column))| number(column).is_some());
    let mut read = Vec::new();
    for (place, (word, _)) in of_gpus {
        match (*word == "X", own == Some(place)) {
            (true, true) => read.push(Cell::Own),
            (false, false) => read.push(Cell::Word(word)),
            (true, false) => return Err(source.wrong(at, format!("GPU{gpu} is itself in a column of another"), HELP)),
            (false, true) => return Err(source.wrong(at, format!("GPU{gpu} is not itself: `X` is expected"), HELP)),
        }
    }
    Ok(Row { at, cells: read, rest: words.iter().copied().skip(1 + columns.len()).collect() })
}
