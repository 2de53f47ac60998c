//! NCCL's own view: which transport it takes, which ring it finds, how long it thinks an all-reduce takes.
//!
//! From NCCL 2.30.7 (commit 5067397c): `src/graph/{paths,search,tuning}.cc`. Its model knows no memory, no coupling of the
//! two directions and no difference between peer and staged transport: what a machine reaches is in [`super::ring()`].

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::units::{Bytes, BytesPerSecond, Seconds};

/// A version of NCCL, such as 2.30.7.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct NcclVersion(pub u32, pub u32, pub u32);

impl NcclVersion {
    /// The version whose sources this model follows.
    pub const MODELLED: Self = Self(2, 30, 7);
    /// The first one that takes host memory instead of peer access across host bridges (release notes of 2.23.4).
    pub const STAGES_ACROSS_BRIDGES: Self = Self(2, 23, 4);
    /// What the containers of 2020 to 2022 in the scaling data carried is older than this: NGC 20.10 has 2.7.8, NGC
    /// 22.10 has 2.15.5.
    pub const AFTER_CONTAINERS: Self = Self(2, 18, 0);
}

impl fmt::Display for NcclVersion {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(&format!("{}.{}.{}", self.0, self.1, self.2))
    }
}

impl FromStr for NcclVersion {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<u32> = text.split('.').map_while(|part| part.parse().ok()).collect();
        match parts[..] {
            [major @ 2..=9, minor, patch] if text.split('.').count() == 3 => Ok(Self(major, minor, patch)),
            _ => Err(format!("`{text}` is no version of NCCL: expected three numbers, such as 2.30.7")),
        }
    }
}

/// How one GPU hands data to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// Over an NVLink bridge.
    Nvlink,
    /// Straight into the other's memory, over PCIe.
    Peer,
    /// Through memory of the host: two crossings.
    Staged,
    /// Over a network to another host.
    Network,
}

impl fmt::Display for Transport {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::Nvlink => "NVLink",
            Self::Peer => "P2P",
            Self::Staged => "host memory",
            Self::Network => "network",
        })
    }
}

/// Speeds that the search tries, in GB/s, by compute capability (`search.cc`, l. 1036).
fn speeds(sm: u32) -> &'static [f64] {
    match sm {
        ..90 => &[40.0, 30.0, 20.0, 18.0, 15.0, 12.0, 10.0, 9.0, 7.0, 6.0, 5.0, 4.0, 3.0],
        90..100 => &[60.0, 50.0, 40.0, 30.0, 24.0, 20.0, 15.0, 12.0, 11.0, 6.0, 3.0],
        100.. => &[90.0, 80.0, 70.0, 60.0, 50.0, 45.0, 40.0, 30.0, 24.0, 20.0, 19.0, 18.0],
    }
}

/// What the search works on: links with NCCL's rates in GB/s, and the links that each hop of the ring takes, forwards
/// and backwards.
#[derive(Debug, Clone, PartialEq)]
pub struct RingProblem {
    /// Rate of each directed link.
    pub links: Vec<f64>,
    /// For each hop, the links and how often each is charged.
    pub forward: Vec<Vec<(usize, f64)>>,
    /// The same for the opposite ring.
    pub backward: Vec<Vec<(usize, f64)>>,
    /// Rate of the fastest link set of one GPU.
    pub total: f64,
    /// Lowest compute capability, times ten.
    pub sm: u32,
}

/// What the search found.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RingGraph {
    /// Channels of the search; NCCL runs twice as many.
    pub channels: u32,
    /// Rate of one channel, in GB/s, as NCCL counts.
    #[serde(rename = "channel_gb_per_s")]
    pub bandwidth: f64,
    /// True where no speed fits: `Could not find a path for pattern 4, falling back to simple order`.
    pub fallback: bool,
}

/// Channels that NCCL can have (`MAXCHANNELS`), before doubling.
const CHANNELS_MAX: u32 = 32;

impl RingProblem {
    /// Channels that fit at `speed`, at most [`CHANNELS_MAX`].
    fn fits(&self, speed: f64) -> u32 {
        let mut left = self.links.clone();
        let mut channels = 0;
        while channels < CHANNELS_MAX {
            let taken = [&self.forward, &self.backward].into_iter().find_map(|ring| {
                let mut after = left.clone();
                for (link, times) in ring.iter().flatten() {
                    after[*link] -= speed * times;
                }
                after.iter().all(|left| -1e-6 <= *left).then_some(after)
            });
            let Some(after) = taken else { break };
            left = after;
            channels += 1;
        }
        channels
    }

    /// The ring that NCCL takes (`ncclTopoCompute`).
    #[must_use]
    pub fn search(&self) -> RingGraph {
        let speeds = speeds(self.sm);
        let first = speeds.iter().position(|speed| *speed <= self.total).unwrap_or(speeds.len());
        let mut best: Option<(u32, usize)> = None;
        for at in first..speeds.len() {
            let channels = self.fits(speeds[at]);
            let rate = |(channels, at): (u32, usize)| f64::from(channels) * speeds[at];
            if 0 < channels && best.is_none_or(|best| rate(best) < rate((channels, at))) {
                best = Some((channels, at));
            }
            let close = |best: (u32, usize)| speeds.get(at + 1).is_some_and(|next| 0.49 < next / speeds[best.1]);
            if best.is_some_and(|best| self.total <= rate(best) || !close(best)) {
                break;
            }
        }
        let Some((mut channels, at)) = best else {
            return RingGraph { channels: 1, bandwidth: 0.1, fallback: true };
        };
        let mut bandwidth = speeds[at];
        // ncclTopoDupChannels
        if 25.0 <= bandwidth && !(80 < self.sm && bandwidth < 50.0 && 4 < channels) {
            let more = (channels * 2).min(CHANNELS_MAX);
            bandwidth *= f64::from(channels) / f64::from(more);
            channels = more;
        }
        // second pass: a higher speed at the same number of channels
        let higher = speeds.iter().copied().filter(|speed| bandwidth < *speed && channels <= self.fits(*speed));
        bandwidth = higher.fold(bandwidth, f64::max);
        RingGraph { channels, bandwidth, fallback: false }
    }
}

/// The protocols that NCCL chooses from on PCIe; LL128 is off there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Protocol {
    /// Eight bytes at a time, four of them a flag: half the rate, little latency.
    LL,
    /// Large chunks with a memory fence.
    Simple,
}

/// Base latency of a ring (`tuning.cc`, l. 148), LL and Simple.
const BASE_US: [f64; 2] = [6.6, 8.4];
/// Latency of one hop over PCIe, LL and Simple.
const PCI_HOP_US: [f64; 2] = [1.0, 5.7];
/// The same over a network.
const NET_HOP_US: [f64; 2] = [2.7, 14.0];

/// Latency of a ring all-reduce of `ranks` over `hosts`: what it takes without a byte.
#[must_use]
pub fn ring_latency(protocol: Protocol, ranks: usize, hosts: usize) -> Seconds {
    let at = protocol as usize;
    let steps = 2.0 * (ranks as f64 - 1.0);
    let between = if hosts < 2 { 0.0 } else { 2.0 * (hosts as f64 - 1.0) };
    Seconds((BASE_US[at] + (steps - between).max(0.0) * PCI_HOP_US[at] + between * NET_HOP_US[at]) * 1e-6)
}

/// The most that LL gives on one host (`llMaxBws`), GB/s by compute capability.
fn ll_max(sm: u32) -> f64 {
    match sm {
        ..80 => 39.0,
        80..90 => 87.7,
        90..100 => 141.0,
        100.. => 282.0,
    }
}

impl RingGraph {
    /// Rate of all channels, GB/s.
    #[must_use]
    pub fn bus(&self) -> BytesPerSecond {
        BytesPerSecond(f64::from(self.channels) * self.bandwidth * 1e9)
    }

    /// Threads of a block: fewer on a slow ring (`tuning.cc`, l. 244).
    #[must_use]
    pub fn threads(&self) -> u32 {
        if self.bandwidth * f64::from(self.channels) <= 12.0 { 256 } else { 512 }
    }

    /// What NCCL believes an all-reduce of `bytes` takes with a ring and this protocol.
    #[must_use]
    pub fn believes(&self, protocol: Protocol, bytes: Bytes, ranks: usize, sm: u32) -> Seconds {
        let bus = self.bus().0;
        let bus = match protocol {
            Protocol::LL => (bus * 0.5).min(ll_max(sm) * 1e9),
            Protocol::Simple => bus,
        };
        let ranks_f = ranks as f64;
        let rate = bus * ranks_f / (2.0 * (ranks_f - 1.0));
        ring_latency(protocol, ranks, 1) + Seconds(bytes.0 as f64 / rate)
    }

    /// The size up to which NCCL takes LL.
    #[must_use]
    pub fn ll_up_to(&self, ranks: usize, sm: u32) -> Bytes {
        let difference = |bytes: f64| {
            let time = |protocol| self.believes(protocol, Bytes(bytes as u64), ranks, sm).0;
            time(Protocol::LL) - time(Protocol::Simple)
        };
        let (mut low, mut high) = (1.0_f64, 1e12_f64);
        for _ in 0..80 {
            let middle = (low * high).sqrt();
            if difference(middle) < 0.0 { low = middle } else { high = middle }
        }
        Bytes(low as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// GPUs around one point: each link up and down, and a pair of links crossed by half of the ring.
    fn star(ranks: usize, link: f64, crossing: Option<f64>, overhead: f64, sm: u32) -> RingProblem {
        let mut links = vec![link; 2 * ranks];
        links.extend([crossing.unwrap_or(f64::INFINITY); 2]);
        let hop = |from: usize, to: usize| {
            let side = |rank: usize| usize::from(ranks / 2 <= rank);
            let mut uses = vec![(2 * from, overhead), (2 * to + 1, overhead)];
            if crossing.is_some() && side(from) != side(to) {
                uses.push((2 * ranks + side(to), 1.0));
            }
            uses
        };
        let forward = (0..ranks).map(|rank| hop(rank, (rank + 1) % ranks)).collect();
        let backward = (0..ranks).map(|rank| hop((rank + 1) % ranks, rank)).collect();
        RingProblem { links, forward, backward, total: link, sm }
    }

    #[test]
    fn the_search_and_the_model_give_what_the_emulation_of_2_30_7_gave() {
        // ranks, link, crossing, Intel, sm: channels × speed, KB up to which LL is taken, busbw and time at 25 MiB
        type Row = (usize, f64, Option<f64>, bool, u32, (u32, f64), f64, f64, f64);
        let rows: &[Row] = &[
            (2, 24.0, None, false, 89, (2, 12.0), 269.0, 23.6, 1.11),
            (2, 24.0, None, true, 89, (1, 20.0), 225.0, 19.7, 1.33),
            (2, 12.0, None, false, 89, (1, 12.0), 135.0, 11.9, 2.20),
            (2, 12.0, None, true, 89, (1, 10.0), 113.0, 9.9, 2.64),
            (4, 24.0, None, false, 89, (2, 12.0), 488.0, 23.4, 1.68),
            (4, 24.0, Some(16.0), false, 89, (1, 15.0), 303.0, 14.8, 2.66),
            (4, 24.0, Some(10.0), true, 89, (1, 10.0), 200.0, 9.9, 3.97),
            (2, 48.0, None, false, 120, (2, 24.0), 539.0, 46.3, 0.57),
            (2, 48.0, None, true, 120, (2, 20.0), 451.0, 38.8, 0.68),
            (2, 24.0, None, false, 120, (1, 24.0), 269.0, 23.6, 1.11),
            (2, 24.0, None, true, 120, (1, 20.0), 225.0, 19.7, 1.33),
            (4, 48.0, None, false, 120, (2, 24.0), 976.0, 45.6, 0.86),
            (4, 48.0, Some(22.0), true, 120, (1, 20.0), 400.0, 19.6, 2.01),
        ];
        for (ranks, link, crossing, intel, sm, found, ll_kb, busbw, ms) in rows {
            let problem = star(*ranks, *link, *crossing, if *intel { 1.2 } else { 1.0 }, *sm);
            let graph = problem.search();
            assert_eq!((graph.channels, graph.bandwidth, graph.fallback), (found.0, found.1, false), "{problem:?}");
            let near = |value: f64, expected: f64, unit: f64| (value - expected).abs() <= 0.51 * unit;
            let ll = graph.ll_up_to(*ranks, *sm).0 as f64 / 1e3;
            assert!((ll - ll_kb).abs() / ll_kb < 0.02, "{ranks} × {link}: LL up to {ll} KB, expected {ll_kb}");
            let time = graph.believes(Protocol::Simple, Bytes(25 << 20), *ranks, *sm);
            assert!(near(time.0 * 1e3, *ms, 0.01), "{ranks} × {link}: {time}, expected {ms} ms");
            let bus = (25 << 20) as f64 / time.0 * 2.0 * (*ranks as f64 - 1.0) / *ranks as f64 / 1e9;
            assert!(near(bus, *busbw, 0.1), "{ranks} × {link}: {bus}, expected {busbw}");
        }
    }

    #[test]
    fn blackwell_falls_back_below_18_gbs() {
        for problem in [star(2, 12.0, None, 1.0, 120), star(4, 48.0, Some(16.0), 1.0, 120)] {
            assert_eq!(problem.search(), RingGraph { channels: 1, bandwidth: 0.1, fallback: true });
        }
        assert!(!star(2, 12.0, None, 1.0, 89).search().fallback);
    }

    #[test]
    fn published_lines_of_machines_with_nvlink_are_found() {
        // NVIDIA/nccl 1197, H100 with NVSwitch, 18 links of 20.6: `Pattern 4, … nChannels 12, bw 30`
        let h100 = star(8, 18.0 * 20.6, None, 1.0, 90).search();
        assert_eq!((h100.channels, h100.bandwidth), (12, 30.0));
        // A100 with NVSwitch, 12 links of 20: 12 channels of 20
        let a100 = star(8, 12.0 * 20.0, None, 1.0, 80).search();
        assert_eq!((a100.channels, a100.bandwidth), (12, 20.0));
    }

    #[test]
    fn threads_and_versions_read() {
        assert_eq!(RingGraph { channels: 1, bandwidth: 12.0, fallback: false }.threads(), 256);
        assert_eq!(RingGraph { channels: 2, bandwidth: 12.0, fallback: false }.threads(), 512);
        assert_eq!("2.30.7".parse(), Ok(NcclVersion::MODELLED));
        assert!("2.30".parse::<NcclVersion>().is_err() && "x.1.2".parse::<NcclVersion>().is_err());
    }
}
