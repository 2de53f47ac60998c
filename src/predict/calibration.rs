//! The constants of the model that are measured, not derived: each belongs to a generation of processors, of links, or to
//! a version of NCCL or of a framework; none to a board.

use crate::units::{BytesPerSecond, Seconds};

use super::cpu::CpuGeneration;
use super::nccl::NcclVersion;

/// The constants. [`Calibration::default`] holds those that `scripts/bench-predict` scores; its table says where each is
/// from, see [`Calibration::table`].
#[derive(Debug, Clone, PartialEq)]
pub struct Calibration {
    /// Share of NCCL's link rate that a peer ring reaches, NCCL before 2.18.
    pub peer_share_old: f64,
    /// The same, NCCL 2.18 and later.
    pub peer_share: f64,
    /// What all GPUs below one root port together read of host memory, NCCL before 2.18, on Zen 2 and 3.
    pub staged_port: BytesPerSecond,
    /// What a staged hop between sockets takes of that port, in hops within one.
    pub staged_far: f64,
    /// NCCL 2.18 and later: what both directions of a link carry together, staged, over what one carries alone.
    pub staged_coupling: f64,
    /// What a virtual machine or a translating IOMMU leaves of staged rates.
    pub translated_share: f64,
    /// Peer rate of a pair across sockets, Zen 2 and 3.
    pub across_zen23: BytesPerSecond,
    /// The same, Zen 4.
    pub across_zen4: BytesPerSecond,
    /// The same, Zen 5.
    pub across_zen5: BytesPerSecond,
    /// The same, Intel, over what NCCL takes for the link.
    pub across_intel: f64,
    /// Share of an NVLink bridge that a ring reaches.
    pub nvlink_share: f64,
    /// Share of a network's rate that a ring reaches.
    pub network_share: f64,
    /// Share of a socket's memory rate that streams of devices reach.
    pub memory_share: f64,
    /// What one channel gives in NCCL's fallback (256 threads).
    pub fallback_channel: BytesPerSecond,
    /// Latency of one peer hop, LL.
    pub peer_hop: Seconds,
    /// Latency of one staged hop, LL.
    pub staged_hop: Seconds,
    /// Spread of the bus bandwidth, as the standard deviation of its logarithm: peer rings.
    pub spread_peer: f64,
    /// The same, staged.
    pub spread_staged: f64,
    /// The same, in a virtual machine or in NCCL's fallback.
    pub spread_odd: f64,
    /// Standard deviation of a predicted efficiency where the bandwidth is right.
    pub spread_step: f64,
}

impl Default for Calibration {
    fn default() -> Self {
        Self {
            peer_share_old: 0.875,
            peer_share: 0.97,
            staged_port: BytesPerSecond(3.9e9),
            staged_far: 2.3,
            staged_coupling: 1.0,
            translated_share: 0.85,
            across_zen23: BytesPerSecond(16e9),
            across_zen4: BytesPerSecond(39e9),
            across_zen5: BytesPerSecond(51e9),
            across_intel: 1.0,
            nvlink_share: 0.9,
            network_share: 0.92,
            memory_share: 0.8,
            fallback_channel: BytesPerSecond(11.1e9),
            peer_hop: Seconds(1.25e-6),
            staged_hop: Seconds(2.0e-6),
            spread_peer: 0.25,
            spread_staged: 0.35,
            spread_odd: 0.6,
            spread_step: 0.012,
        }
    }
}

/// One constant, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Constant {
    /// Name of the field.
    pub name: &'static str,
    /// What it belongs to.
    pub belongs_to: &'static str,
    /// Where its value is from.
    pub source: &'static str,
    /// What its value owes to the figures that `scripts/bench-predict` scores.
    pub chosen: Chosen,
}

/// What a constant owes to the figures that it is scored on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chosen {
    /// Fitted to scored rows, and again without the host that is scored.
    Refitted,
    /// Chosen with these scored figures in view, and not again without them: hindsight.
    InView(&'static [&'static str]),
    /// From elsewhere.
    Elsewhere,
}

const fn constant(name: &'static str, belongs_to: &'static str, source: &'static str, chosen: Chosen) -> Constant {
    Constant { name, belongs_to, source, chosen }
}

impl Calibration {
    /// Every constant with its owner and source.
    #[must_use]
    pub fn table() -> &'static [Constant] {
        const ROWS: &[Constant] = &[
            constant("peer_share_old", "NCCL before 2.18", "scaling rows of 2020 to 2022", Chosen::Refitted),
            constant(
                "staged_port",
                "Zen 2 and 3 with NCCL before 2.18",
                "scaling rows without peer access",
                Chosen::Refitted,
            ),
            constant("staged_far", "Zen 2 and 3 with NCCL before 2.18", "scaling rows at 8 GPUs", Chosen::Refitted),
            constant("nvlink_share", "NVLink bridges", "scaling rows at 2 GPUs", Chosen::Refitted),
            constant("peer_share", "NCCL from 2.18 on", "curves A1, A8", Chosen::InView(&["A1", "A8"])),
            constant("staged_coupling", "NCCL from 2.18 on", "copies B1, B5, B7 in both directions", Chosen::Elsewhere),
            constant("translated_share", "IOMMU", "report on translated mode, minus 15 %", Chosen::Elsewhere),
            constant("across_zen23", "Zen 2 and 3", "NCCL, topo.h AMD_BW", Chosen::Elsewhere),
            constant("across_zen4", "Zen 4", "copy B3", Chosen::Elsewhere),
            constant("across_zen5", "Zen 5", "copy B2", Chosen::Elsewhere),
            constant("across_intel", "Intel", "NCCL, topo.h", Chosen::Elsewhere),
            constant("network_share", "networks", "headers; not checked", Chosen::Elsewhere),
            constant("memory_share", "DDR4 and DDR5", "rule of thumb; never the limit in the rows", Chosen::Elsewhere),
            constant("fallback_channel", "NCCL from 2.18 on", "curve A3, 2 channels", Chosen::InView(&["A3 default"])),
            constant("peer_hop", "NCCL", "curves A1, A4", Chosen::InView(&["A1", "A4"])),
            constant("staged_hop", "NCCL", "curves A10, A12", Chosen::InView(&["A10", "A12"])),
        ];
        ROWS
    }

    /// Share of NCCL's link rate that a peer ring reaches.
    #[must_use]
    pub fn peer(&self, nccl: NcclVersion) -> f64 {
        if nccl < NcclVersion::AFTER_CONTAINERS { self.peer_share_old } else { self.peer_share }
    }

    /// Peer rate of a pair of GPUs at two sockets.
    #[must_use]
    pub fn across(&self, cpu: CpuGeneration) -> BytesPerSecond {
        match cpu {
            CpuGeneration::Zen2 | CpuGeneration::Zen3 => self.across_zen23,
            CpuGeneration::Zen4 => self.across_zen4,
            CpuGeneration::Zen5 => self.across_zen5,
            _ => cpu.nccl_inter_socket() * self.across_intel,
        }
    }
}
