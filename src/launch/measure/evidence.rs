//! What was measured, by kind, beside what is known of the machine. Nothing here touches hardware.

use std::collections::BTreeMap;

use crate::record::{BrokenLine, CopyLine, LinkLine, LinkStage, LinksHead, Pattern, Place, SumArm, SumLine};
use crate::topology::{Lanes, PciAddress, PeerStatus, Topology};
use crate::units::BytesPerSecond;

use super::wish::Stage;

/// The lines of one measurement, whole or so far.
#[derive(Clone, Copy)]
pub(super) struct Evidence<'a> {
    pub(super) head: &'a LinksHead,
    pub(super) topology: &'a Topology,
    pub(super) lines: &'a [LinkLine],
}

impl<'a> Evidence<'a> {
    pub(super) fn all_copies(self) -> impl Iterator<Item = &'a CopyLine> {
        self.lines.iter().filter_map(|line| if let LinkLine::Copy(copy) = line { Some(copy) } else { None })
    }

    pub(super) fn copies(self, pattern: Pattern) -> impl Iterator<Item = &'a CopyLine> {
        self.all_copies().filter(move |copy| copy.pattern == pattern)
    }

    pub(super) fn sums(self) -> impl Iterator<Item = &'a SumLine> {
        self.lines.iter().filter_map(|line| if let LinkLine::Sum(sum) = line { Some(sum) } else { None })
    }

    pub(super) fn broken(self) -> impl Iterator<Item = &'a BrokenLine> {
        self.lines.iter().filter_map(|line| if let LinkLine::Broken(broken) = line { Some(broken) } else { None })
    }

    /// The link that limits a GPU.
    pub(super) fn lanes(self, gpu: PciAddress) -> Option<Lanes> {
        self.head.gpus.iter().find(|known| known.address == gpu)?.lanes
    }

    /// False for what can only repeat a failure, or says nothing here.
    pub(super) fn allows(self, stage: &Stage) -> bool {
        match &stage.what {
            LinkStage::Sums { ranks, arm } if arm.forces_peers() => {
                let among = |place: Place| matches!(place, Place::Gpu(address) if ranks.contains(&address));
                let direct = |line: &CopyLine| line.direct == Some(true) && line.check.is_good();
                let mut peers = self.copies(Pattern::Peer).filter(|line| among(line.transfers[0].from));
                // where NCCL reaches all by itself, to reach all is nothing new; to reach fewer is
                peers.any(direct) && !(*arm == SumArm::P2pSys && self.default_is_direct(ranks))
            }
            LinkStage::Together { .. } => self.broken().all(|broken| matches!(broken.stage, LinkStage::Sums { .. })),
            _ => true,
        }
    }

    /// Whether NCCL's own choice among these GPUs was direct access.
    fn default_is_direct(self, ranks: &[PciAddress]) -> bool {
        let default = self.sums().find(|line| line.arm == SumArm::Default && line.ranks == ranks);
        default.is_some_and(|line| !line.via.is_empty() && line.via.iter().all(|via| via.starts_with("P2P")))
    }

    /// True if an NVLink joins the two: then PCIe is not in the way.
    pub(super) fn bridged(self, from: Place, to: Place) -> bool {
        let (Place::Gpu(from), Place::Gpu(to)) = (from, to) else { return false };
        let pair = |one, other| (one, other) == (from, to) || (one, other) == (to, from);
        self.topology.peers.iter().any(|peer| pair(peer.from, peer.to) && peer.nvlink == Ok(PeerStatus::Ok))
    }

    /// What the PCIe links of a copy could carry: each transfer no more than the narrower of its ends, and no link more
    /// in one direction than it has.
    pub(super) fn ceiling(self, copy: &CopyLine) -> Option<BytesPerSecond> {
        if copy.pattern == Pattern::Local || copy.transfers.iter().any(|way| self.bridged(way.from, way.to)) {
            return None;
        }
        let mut out: BTreeMap<Place, usize> = BTreeMap::new();
        let mut back: BTreeMap<Place, usize> = BTreeMap::new();
        for way in &copy.transfers {
            *out.entry(way.from).or_default() += 1;
            *back.entry(way.to).or_default() += 1;
        }
        let shared = |place: Place, sharers: usize| match place {
            Place::Host => Some(f64::MAX),
            Place::Gpu(gpu) => Some(self.lanes(gpu)?.rate().0 / sharers as f64),
        };
        let rates = copy.transfers.iter().map(|way| {
            let (from, to) = (shared(way.from, out[&way.from])?, shared(way.to, back[&way.to])?);
            Some(from.min(to))
        });
        rates.sum::<Option<f64>>().map(BytesPerSecond)
    }

    /// Whether the same sums went well through the host's memory.
    pub(super) fn well_through_host(self, ranks: &[PciAddress]) -> bool {
        self.sums().any(|sum| sum.arm == SumArm::P2pOff && sum.ranks == ranks && sum.check.is_good())
    }

    /// The rate that a copy from `from` to `to` reached alone.
    pub(super) fn alone(self, like: &CopyLine, from: Place, to: Place) -> Option<f64> {
        let peers = self.copies(Pattern::Peer).filter(|line| line.engine == like.engine);
        let mut same = peers.filter(|line| (line.transfers[0].from, line.transfers[0].to) == (from, to));
        same.next().map(|line| line.rate.median.0)
    }
}
