//! What NCCL will do on this machine: between each pair, and around the ring.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::predict::{Calibration, Exchange, NcclVersion, P2p, from_topology, ring};
use crate::probe::{Carrier, Predicted, nccl_setting, transports};
use crate::topology::{Topology, Version};

use super::{shown, wrapped};

/// More pairs take a page.
const PAIRS_LISTED: usize = 6;

/// The forecast of transports.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct Outlook {
    /// Each pair.
    pairs: Vec<Predicted>,
    /// The ring of NCCL's search; none with fewer than two GPUs.
    ring: Option<Search>,
}

/// What NCCL's search finds, or which fact is missing.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Search {
    Found { channels: u32, channel_gb_per_s: f64, fallback: bool },
    Unknown { unknown: String },
}

impl Outlook {
    /// Pure: from the topology, with the settings and the version of NCCL that it holds.
    pub(in crate::cli) fn of(topology: &Topology) -> Self {
        let pairs = transports(topology);
        let ring = (1 < topology.nvidia_gpus().count()).then(|| search(topology, &pairs));
        Self { pairs, ring }
    }

    /// Writes a line for each pair, or for each way that several pairs take, and one for the ring.
    pub(super) fn write(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |pair: &Predicted| pair.carrier.map_or_else(|| "unknown".to_owned(), |carrier| carrier.to_string());
        let label = format!("{:19}", "NCCL will use");
        if self.pairs.len() <= PAIRS_LISTED {
            for pair in &self.pairs {
                let text = format!("{} – {}: {} ({})", shown(pair.a), shown(pair.b), word(pair), pair.why);
                out.write_str(&wrapped(&label, &text))?;
            }
        } else {
            let mut ways: BTreeMap<(Option<Carrier>, &str), usize> = BTreeMap::new();
            for pair in &self.pairs {
                *ways.entry((pair.carrier, pair.why.as_str())).or_default() += 1;
            }
            for ((carrier, why), count) in ways {
                let carrier = carrier.map_or_else(|| "unknown".to_owned(), |carrier| carrier.to_string());
                out.write_str(&wrapped(&label, &format!("{carrier} for {count} pairs ({why})")))?;
            }
        }
        let text = match &self.ring {
            None => return Ok(()),
            Some(Search::Found { fallback: true, channels, .. }) => {
                format!("NCCL finds none and falls back to simple order with {} channels", 2 * channels)
            }
            Some(Search::Found { channels, channel_gb_per_s, .. }) => {
                format!(
                    "NCCL's search finds {channels} channels of {channel_gb_per_s} GB/s by its own estimate, and runs twice \
                     as many"
                )
            }
            Some(Search::Unknown { unknown }) => format!("not predicted: {unknown}"),
        };
        out.write_str(&wrapped(&format!("{:19}", "Ring"), &text))
    }
}

fn search(topology: &Topology, pairs: &[Predicted]) -> Search {
    let unknown = |error: &dyn fmt::Display| Search::Unknown { unknown: error.to_string() };
    let board = match from_topology(topology, "this machine") {
        Ok(board) => board,
        Err(error) => return unknown(&error),
    };
    let version = |version: &Version| NcclVersion(version.0, version.1, version.2);
    let nccl = topology.software.nccl.as_ref().map_or(NcclVersion::MODELLED, version);
    let all = |carrier| pairs.iter().all(|pair| pair.carrier == Some(carrier));
    let p2p = match (all(Carrier::Peer), all(Carrier::HostMemory)) {
        (true, _) => P2p::On,
        (_, true) => P2p::Off,
        _ => P2p::Auto,
    };
    let least = ["NCCL_MIN_CTAS", "NCCL_MIN_NCHANNELS"].into_iter().find_map(|name| nccl_setting(topology, name));
    let min_channels = least.and_then(|setting| setting.value.parse().ok());
    match ring(&board, &Exchange { nccl, p2p, min_channels, ..Exchange::default() }, &Calibration::default()) {
        Ok(ring) => Search::Found {
            channels: ring.graph.channels,
            channel_gb_per_s: ring.graph.bandwidth,
            fallback: ring.graph.fallback,
        },
        Err(error) => unknown(&error),
    }
}
