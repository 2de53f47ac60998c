//! `links.jsonl`: what links between GPUs and the host really carry, with what was checked of the data that arrived.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Div;
use std::path::Path;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::topology::{Lanes, PciAddress, as_text};
use crate::units::{Bytes, BytesPerSecond, Seconds};

use super::file::json;
use super::jsonl::{LineFile, Lines, check_schema, parse, wrong};
use super::{BrokenLine, CounterLine, LoadLine, Origin, RecordError, UplinkLine};

/// No file of links is larger: 16 GPUs have a few thousand lines.
const LINKS_BYTES_MAX: u64 = 64 << 20;

/// One line of the file; its first is a head.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "line", rename_all = "snake_case")]
pub enum LinkLine {
    /// What was measured, and on what.
    Head(Box<LinksHead>),
    /// Copies at once, one or several.
    Copy(CopyLine),
    /// Time of a load that waits for the one before.
    Latency(LatencyLine),
    /// Sums over ranks.
    Sum(SumLine),
    /// A link while copies ran over it.
    Load(LoadLine),
    /// A link between ports above GPUs while copies ran over it.
    Uplink(UplinkLine),
    /// A counter of errors before and after.
    Counter(CounterLine),
    /// A stage that did not come to its end.
    Broken(BrokenLine),
}

/// First line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LinksHead {
    /// Schema of the file.
    pub schema: u32,
    /// Version of rigscale that wrote it.
    pub rigscale: String,
    /// UTC time of the start.
    #[schemars(with = "String")]
    pub started: jiff::Timestamp,
    /// Where the numbers come from.
    pub origin: Origin,
    /// The GPUs that were measured.
    pub gpus: Vec<LinkGpu>,
    /// Versions of what took part.
    pub software: BTreeMap<String, String>,
}

/// A GPU and the link that limits it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LinkGpu {
    /// Where it is.
    pub address: PciAddress,
    /// Product name.
    pub name: String,
    /// The narrowest hop of its path once its links are awake, or the GPU's own end where no hop is visible; none where
    /// the machine does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lanes: Option<Lanes>,
}

/// One end of a transfer: written `host` or as a PCI address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// Pinned memory of the host, on the GPU's own NUMA node.
    Host,
    /// The memory of a GPU.
    Gpu(PciAddress),
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => out.pad("host"),
            Self::Gpu(address) => out.pad(&address.to_string()),
        }
    }
}

impl FromStr for Place {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "host" {
            return Ok(Self::Host);
        }
        text.parse().map(Self::Gpu).map_err(|_| format!("{text:?} is neither host nor a PCI address"))
    }
}

as_text!(Place, "^(host|[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\\.[0-7])$");

/// Which transfers ran at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Pattern {
    /// From the host to one GPU.
    HostToDevice,
    /// From one GPU to the host.
    DeviceToHost,
    /// Both.
    HostBothWays,
    /// From the host to every GPU.
    HostToAll,
    /// From every GPU to the host.
    AllToHost,
    /// Between the host and every GPU, both ways.
    HostAllBothWays,
    /// Inside one GPU: read and written.
    Local,
    /// From one GPU to another.
    Peer,
    /// Between two GPUs, both ways.
    PeerBothWays,
    /// From each GPU to the next.
    Ring,
    /// From one GPU to all others.
    OneToAll,
    /// From all others to one GPU.
    AllToOne,
    /// From each GPU to each other.
    AllPairs,
}

impl fmt::Display for Pattern {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::HostToDevice => "host to GPU",
            Self::DeviceToHost => "GPU to host",
            Self::HostBothWays => "host and GPU, both ways",
            Self::HostToAll => "host to all GPUs at once",
            Self::AllToHost => "all GPUs to host at once",
            Self::HostAllBothWays => "host and all GPUs, both ways",
            Self::Local => "inside the GPU",
            Self::Peer => "GPU to GPU",
            Self::PeerBothWays => "GPU and GPU, both ways",
            Self::Ring => "ring, all at once",
            Self::OneToAll => "one GPU to all others",
            Self::AllToOne => "all others to one GPU",
            Self::AllPairs => "all pairs at once",
        })
    }
}

/// Who moves the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// A copy engine, asked by the source.
    CopyEngine,
    /// The multiprocessors of the source, which write.
    Write,
    /// The multiprocessors of the destination, which read.
    Read,
}

impl fmt::Display for Engine {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::CopyEngine => "copy engine",
            Self::Write => "kernel writes",
            Self::Read => "kernel reads",
        })
    }
}

/// Median, smallest and largest of several repeats.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Spread<T> {
    /// The middle one.
    pub median: T,
    /// The smallest.
    pub low: T,
    /// The largest.
    pub high: T,
}

impl<T: Copy + Div<T, Output = f64>> Spread<T> {
    /// The larger of the distances from the median to the smallest and the largest, over the median.
    #[must_use]
    pub fn scatter(&self) -> f64 {
        (self.high / self.median - 1.0).max(1.0 - self.low / self.median)
    }
}

/// What the destination found when it read its own memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// Words of 32 bits that were looked at.
    pub words: u64,
    /// Of them, those that are not what was sent.
    pub wrong: u64,
    /// Of the wrong ones, those that still are what stood there before.
    pub untouched: u64,
}

impl Check {
    /// True if something was looked at and all of it was right.
    #[must_use]
    pub fn is_good(&self) -> bool {
        0 < self.words && self.wrong == 0
    }
}

/// Copies that ran at once, several times.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CopyLine {
    /// Which.
    pub pattern: Pattern,
    /// Who moved the bytes.
    pub engine: Engine,
    /// True where the driver granted direct access; false where it staged the copy through the host. None without peers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct: Option<bool>,
    /// True where an NVLink joins the ends of a transfer: what was measured is then no PCIe link.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub nvlink: bool,
    /// Each transfer with the median of its own rate.
    pub transfers: Vec<TransferRate>,
    /// Bytes that each transfer moved in one repeat.
    pub bytes: Bytes,
    /// Repeats.
    pub samples: usize,
    /// All bytes of a repeat over the time of its slowest transfer.
    pub rate: Spread<BytesPerSecond>,
    /// What the links could carry, payload before packet headers; none where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ceiling: Option<BytesPerSecond>,
    /// What arrived.
    pub check: Check,
}

/// One transfer of several that run at once.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TransferRate {
    /// Whence.
    pub from: Place,
    /// Where to.
    pub to: Place,
    /// Median over the repeats.
    pub rate: BytesPerSecond,
}

/// Time of one load, where each waits for the one before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LatencyLine {
    /// Whose memory is read.
    pub of: Place,
    /// Which GPU reads.
    pub by: PciAddress,
    /// Loads of one repeat.
    pub loads: u32,
    /// Time of one.
    pub load_s: Spread<Seconds>,
}

/// Which ways NCCL was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SumArm {
    /// What it chooses.
    Default,
    /// Peer access across switches (`NCCL_P2P_LEVEL=PXB`), not beyond.
    P2pPxb,
    /// Peer access below one host bridge (`NCCL_P2P_LEVEL=PHB`), not beyond.
    P2pPhb,
    /// Peer access even across host bridges (`NCCL_P2P_LEVEL=SYS`), where its default keeps it from that.
    P2pSys,
    /// Through the host's memory (`NCCL_P2P_DISABLE=1`).
    P2pOff,
}

impl fmt::Display for SumArm {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::Default => "NCCL's choice",
            Self::P2pPxb => "NCCL_P2P_LEVEL=PXB",
            Self::P2pPhb => "NCCL_P2P_LEVEL=PHB",
            Self::P2pSys => "NCCL_P2P_LEVEL=SYS",
            Self::P2pOff => "NCCL_P2P_DISABLE=1",
        })
    }
}

impl SumArm {
    /// The variable that NCCL is told, and its value; none for its own choice.
    #[must_use]
    pub fn setting(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Default => None,
            Self::P2pPxb => Some(("NCCL_P2P_LEVEL", "PXB")),
            Self::P2pPhb => Some(("NCCL_P2P_LEVEL", "PHB")),
            Self::P2pSys => Some(("NCCL_P2P_LEVEL", "SYS")),
            Self::P2pOff => Some(("NCCL_P2P_DISABLE", "1")),
        }
    }

    /// True where NCCL is told to use peers where it would not by itself.
    #[must_use]
    pub fn forces_peers(self) -> bool {
        matches!(self, Self::P2pPxb | Self::P2pPhb | Self::P2pSys)
    }
}

/// All-reduces of one size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SumLine {
    /// The GPU of each rank.
    pub ranks: Vec<PciAddress>,
    /// What NCCL was told.
    pub arm: SumArm,
    /// Bytes that each rank brings.
    pub bytes: Bytes,
    /// Time of one all-reduce among many in a row, mean over ranks.
    pub time_s: Spread<Seconds>,
    /// Bus bandwidth: 2(N − 1)/N · bytes over the median time.
    pub bus_bandwidth: BytesPerSecond,
    /// What arrived, on all ranks together.
    pub check: Check,
    /// How ranks sent, in the words of NCCL's log; empty where it does not say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub via: Vec<String>,
}

/// Writes the file, line by line.
#[derive(Debug)]
pub struct LinksWriter(LineFile);

impl LinksWriter {
    /// Creates the file, which must not exist, and writes the head.
    ///
    /// # Errors
    /// [`RecordError::File`].
    pub fn create(path: &Path, head: &LinksHead) -> Result<Self, RecordError> {
        let mut writer = Self(LineFile::create(path, LINKS_BYTES_MAX)?);
        writer.write(&LinkLine::Head(Box::new(head.clone())))?;
        Ok(writer)
    }

    /// Writes one line.
    ///
    /// # Errors
    /// [`RecordError::File`], also for a number that is not finite.
    pub fn write(&mut self, line: &LinkLine) -> Result<(), RecordError> {
        self.0.write(line)
    }

    /// Waits until all lines are on the disk.
    ///
    /// # Errors
    /// [`RecordError::File`].
    pub fn end(self) -> Result<(), RecordError> {
        self.0.end()
    }
}

/// Reads such a file.
///
/// # Errors
/// It cannot be read, or a line is not what it should be; file, line and field are named.
pub fn read_links(path: &Path) -> Result<(LinksHead, Vec<LinkLine>), RecordError> {
    let mut lines = Lines::open(path, LINKS_BYTES_MAX)?;
    let Some((_, first)) = lines.next()? else {
        return Err(wrong(path, 1, "the file is empty: it should begin with a `head` line"));
    };
    check_schema(path, first)?;
    let LinkLine::Head(head) = parse(path, 1, first, named)? else {
        return Err(wrong(path, 1, "the first line should be a `head` line"));
    };
    let mut rest = Vec::new();
    while let Some((number, line)) = lines.next()? {
        match parse(path, number, line, named)? {
            LinkLine::Head(_) => return Err(wrong(path, number, "a second `head` line")),
            line => rest.push(line),
        }
    }
    Ok((*head, rest))
}

/// A line of this `kind`, with the field named that is wrong.
fn named(path: &Path, number: usize, kind: &str, rest: &str) -> Result<LinkLine, RecordError> {
    match kind {
        "head" => json(path, rest, number).map(LinkLine::Head),
        "copy" => json(path, rest, number).map(LinkLine::Copy),
        "latency" => json(path, rest, number).map(LinkLine::Latency),
        "sum" => json(path, rest, number).map(LinkLine::Sum),
        "load" => json(path, rest, number).map(LinkLine::Load),
        "uplink" => json(path, rest, number).map(LinkLine::Uplink),
        "counter" => json(path, rest, number).map(LinkLine::Counter),
        "broken" => json(path, rest, number).map(LinkLine::Broken),
        _ => {
            Err(wrong(path, number, "field `line` should be head, copy, latency, sum, load, uplink, counter or broken"))
        }
    }
}
