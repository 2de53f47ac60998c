//! What to measure, and in which processes.

use std::collections::BTreeSet;
use std::fmt;

use crate::record::{Engine, LinkStage, Pattern, Place, SumArm};
use crate::topology::{PathClass, PciAddress, Topology};
use crate::units::{Bytes, Seconds};

use super::task::{Copies, Request, Sums, Work};

/// A GPU to measure, and the CPUs near it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkSite {
    /// Its PCI address.
    pub address: PciAddress,
    /// CPUs of its NUMA node (numbers of the kernel): whoever pins memory for it runs there.
    pub cpus: Vec<usize>,
}

/// What to measure.
#[derive(Debug, Clone, PartialEq)]
pub struct Wish {
    /// The GPUs. With `shared` one for each rank, all the same.
    pub sites: Vec<LinkSite>,
    /// Ranks share one GPU: only sums are measured.
    pub shared: bool,
    /// Less of everything.
    pub quick: bool,
    /// Bytes of one copy.
    pub copy_bytes: Bytes,
    /// Largest all-reduce; none leaves out sums.
    pub sum_bytes: Option<Bytes>,
    /// A step that says nothing for so long hangs.
    pub limit: Seconds,
    /// Thread blocks of a collective at most; none leaves it to NCCL.
    pub max_ctas: Option<u32>,
    /// What NCCL is told, one after the other; see [`sum_arms`].
    pub arms: Vec<SumArm>,
}

/// What NCCL can be told about these GPUs that may differ: its own choice, peer access as far as each kind of path between
/// them reaches, and through the host.
#[must_use]
pub fn sum_arms(topology: &Topology, gpus: &[PciAddress]) -> Vec<SumArm> {
    let among = topology.pairs.iter().filter(|pair| gpus.contains(&pair.a) && gpus.contains(&pair.b));
    let paths: BTreeSet<PathClass> = among.filter_map(|pair| pair.path.clone().ok()).collect();
    // a level that lets no pair in is P2P off, and one that lets all in is SYS
    let parts = |level: PathClass| paths.first().is_some_and(|near| *near <= level) && paths.last() > Some(&level);
    let mut arms = vec![SumArm::Default];
    if parts(PathClass::Pxb) {
        arms.push(SumArm::P2pPxb);
    }
    if paths.contains(&PathClass::Phb) && parts(PathClass::Phb) {
        arms.push(SumArm::P2pPhb);
    }
    arms.extend([SumArm::P2pSys, SumArm::P2pOff]);
    arms
}

/// One set of processes that measure together.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Stage {
    pub(super) what: LinkStage,
    pub(super) work: Work,
    /// A stage that says nothing for so long hangs.
    pub(super) limit: Seconds,
}

/// Smallest all-reduce.
const SUM_BYTES_MIN: Bytes = Bytes(4 << 10);

/// Largest all-reduce of a pair, which is only checked.
const PAIR_SUM_BYTES: Bytes = Bytes(16 << 20);

/// How long links are looked at while all GPUs copy.
const LOAD: Seconds = Seconds(1.5);
const LOAD_QUICK: Seconds = Seconds(0.6);

impl Wish {
    /// Everything that is to be measured, each pair of GPUs alone before all together.
    pub(super) fn stages(&self) -> Vec<Stage> {
        let mut stages = Vec::new();
        let gpus: Vec<PciAddress> = self.sites.iter().map(|site| site.address).collect();
        if !self.shared {
            stages.push(self.copies(
                LinkStage::Host { gpus: gpus.clone() },
                host(&self.sites, self.quick),
                &self.sites,
            ));
            for from in &self.sites {
                for to in self.sites.iter().filter(|to| to.address != from.address) {
                    let what = LinkStage::Pair { from: from.address, to: to.address };
                    stages.push(self.copies(what, pair(from, to, self.quick), &[from.clone(), to.clone()]));
                }
            }
            if 2 < self.sites.len() {
                stages.push(self.copies(LinkStage::Together { gpus }, together(&self.sites), &self.sites));
            }
        }
        let Some(largest) = self.sum_bytes.filter(|_| 1 < self.sites.len()) else { return stages };
        if 2 < self.sites.len() && !self.shared && !self.quick {
            for (index, a) in self.sites.iter().enumerate() {
                for b in &self.sites[index + 1..] {
                    let pair = [a.clone(), b.clone()];
                    // between two GPUs there is one path, which a level lets in or does not
                    let arms = self.arms.iter().filter(|arm| !matches!(arm, SumArm::P2pPxb | SumArm::P2pPhb));
                    stages.extend(arms.map(|arm| self.sums(&pair, *arm, PAIR_SUM_BYTES.min(largest))));
                }
            }
        }
        stages.extend(self.arms.iter().map(|arm| self.sums(&self.sites, *arm, largest)));
        stages
    }

    fn copies(&self, what: LinkStage, requests: Vec<Request>, sites: &[LinkSite]) -> Stage {
        let samples = if self.quick { 3 } else { 5 };
        let sites = sites.iter().map(|site| (site.address, site.cpus.clone())).collect();
        let work = Work::Copies(Copies { sites, requests, bytes: self.copy_bytes, samples });
        Stage { what, work, limit: self.limit }
    }

    fn sums(&self, sites: &[LinkSite], arm: SumArm, largest: Bytes) -> Stage {
        let what = LinkStage::Sums { ranks: sites.iter().map(|site| site.address).collect(), arm };
        let sizes = self.sizes(largest);
        let sites = sites.iter().map(|site| (site.address, site.cpus.clone())).collect();
        let limit = self.limit;
        let work = Work::Sums(Sums { sites, arm, sizes, limit, max_ctas: self.max_ctas, shared: self.shared });
        Stage { what, work, limit: self.limit }
    }

    /// Sizes of all-reduces: powers of two, or of sixteen where it must be quick, and the largest itself.
    fn sizes(&self, largest: Bytes) -> Vec<Bytes> {
        let step = if self.quick { 4 } else { 1 };
        let powers = std::iter::successors(Some(SUM_BYTES_MIN), |size| Some(Bytes(size.0 << step)));
        powers.take_while(|size| *size < largest).chain([largest]).collect()
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.what.fmt(out)
    }
}

fn copy(pattern: Pattern, engine: Engine, transfers: Vec<(Place, Place)>) -> Request {
    Request::Copy { pattern, engine, transfers }
}

/// Each GPU and the host, alone and all at once.
fn host(sites: &[LinkSite], quick: bool) -> Vec<Request> {
    let gpus: Vec<Place> = sites.iter().map(|site| Place::Gpu(site.address)).collect();
    let mut requests = Vec::new();
    for (gpu, site) in gpus.iter().zip(sites) {
        let (there, back) = ((Place::Host, *gpu), (*gpu, Place::Host));
        requests.push(copy(Pattern::HostToDevice, Engine::CopyEngine, vec![there]));
        requests.push(copy(Pattern::DeviceToHost, Engine::CopyEngine, vec![back]));
        requests.push(copy(Pattern::HostBothWays, Engine::CopyEngine, vec![there, back]));
        requests.push(copy(Pattern::Local, Engine::CopyEngine, vec![(*gpu, *gpu)]));
        if !quick {
            requests.push(copy(Pattern::HostToDevice, Engine::Read, vec![there]));
            requests.push(copy(Pattern::DeviceToHost, Engine::Write, vec![back]));
        }
        requests.push(Request::Latency { of: Place::Host, by: site.address });
    }
    let both: Vec<_> = gpus.iter().flat_map(|gpu| [(Place::Host, *gpu), (*gpu, Place::Host)]).collect();
    if 1 < sites.len() {
        let there = gpus.iter().map(|gpu| (Place::Host, *gpu)).collect();
        let back = gpus.iter().map(|gpu| (*gpu, Place::Host)).collect();
        requests.push(copy(Pattern::HostToAll, Engine::CopyEngine, there));
        requests.push(copy(Pattern::AllToHost, Engine::CopyEngine, back));
        requests.push(copy(Pattern::HostAllBothWays, Engine::CopyEngine, both.clone()));
    }
    requests.push(Request::Load { transfers: both, lasts: if quick { LOAD_QUICK } else { LOAD } });
    requests
}

/// One ordered pair of GPUs; what goes both ways is measured once.
fn pair(from: &LinkSite, to: &LinkSite, quick: bool) -> Vec<Request> {
    let way = (Place::Gpu(from.address), Place::Gpu(to.address));
    let mut requests = vec![
        copy(Pattern::Peer, Engine::CopyEngine, vec![way]),
        copy(Pattern::Peer, Engine::Write, vec![way]),
        copy(Pattern::Peer, Engine::Read, vec![way]),
        Request::Latency { of: way.1, by: from.address },
    ];
    if from.address < to.address {
        let engines: &[Engine] = if quick { &[Engine::CopyEngine] } else { &[Engine::CopyEngine, Engine::Write] };
        let both = |engine: &Engine| copy(Pattern::PeerBothWays, *engine, vec![way, (way.1, way.0)]);
        requests.extend(engines.iter().map(both));
    }
    requests
}

/// What hides from pairs: transfers that share a link, a switch or the host's memory.
fn together(sites: &[LinkSite]) -> Vec<Request> {
    let gpus: Vec<Place> = sites.iter().map(|site| Place::Gpu(site.address)).collect();
    let others = |gpu: &Place| gpus.iter().copied().filter(move |other| other != gpu).collect::<Vec<_>>();
    let next = |index: usize| gpus[(index + 1) % gpus.len()];
    let ring: Vec<_> = gpus.iter().enumerate().map(|(index, gpu)| (*gpu, next(index))).collect();
    let mut requests: Vec<Request> =
        [Engine::CopyEngine, Engine::Write].map(|engine| copy(Pattern::Ring, engine, ring.clone())).into();
    for gpu in &gpus {
        let out: Vec<_> = others(gpu).into_iter().map(|other| (*gpu, other)).collect();
        let back: Vec<_> = others(gpu).into_iter().map(|other| (other, *gpu)).collect();
        requests.push(copy(Pattern::OneToAll, Engine::CopyEngine, out));
        requests.push(copy(Pattern::AllToOne, Engine::CopyEngine, back));
    }
    let all: Vec<_> = gpus.iter().flat_map(|gpu| others(gpu).into_iter().map(move |other| (*gpu, other))).collect();
    requests.extend([Engine::CopyEngine, Engine::Write].map(|engine| copy(Pattern::AllPairs, engine, all.clone())));
    requests
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(count: u8, quick: bool) -> Wish {
        let site = |index: u8| LinkSite { address: format!("0000:{index:02x}:00.0").parse().unwrap(), cpus: vec![0] };
        let arms = vec![SumArm::Default, SumArm::P2pSys, SumArm::P2pOff];
        let sum_bytes = Some(Bytes(100 << 20));
        let copy_bytes = Bytes(1 << 20);
        let sites = (1..=count).map(site).collect();
        Wish { sites, shared: false, quick, copy_bytes, sum_bytes, limit: Seconds(45.0), max_ctas: None, arms }
    }

    #[test]
    fn the_largest_sum_is_what_was_asked_for() {
        for quick in [false, true] {
            let sizes = wish(2, quick).sizes(Bytes(100 << 20));
            assert_eq!((sizes.first(), sizes.last()), (Some(&SUM_BYTES_MIN), Some(&Bytes(100 << 20))));
            assert!(sizes.is_sorted_by(|a, b| a < b), "{sizes:?}");
            assert_eq!(wish(2, quick).sizes(SUM_BYTES_MIN), [SUM_BYTES_MIN]);
        }
    }

    #[test]
    fn each_pair_is_measured_both_ways_before_all_together() {
        let stages: Vec<LinkStage> = wish(3, false).stages().into_iter().map(|stage| stage.what).collect();
        let count = |is: fn(&&LinkStage) -> bool| stages.iter().filter(is).count();
        assert_eq!(count(|stage| matches!(stage, LinkStage::Pair { .. })), 6);
        assert_eq!(count(|stage| matches!(stage, LinkStage::Together { .. })), 1);
        assert_eq!(count(|stage| matches!(stage, LinkStage::Sums { .. })), 3 * 3 + 3, "three pairs, and all");
        let pairs = wish(2, false).stages();
        assert!(!pairs.iter().any(|stage| matches!(stage.what, LinkStage::Together { .. })));
    }
}
