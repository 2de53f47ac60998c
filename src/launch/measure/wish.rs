//! What to measure, and in which processes.

use std::fmt;

use crate::record::{Engine, Pattern, Place, SumArm};
use crate::topology::PciAddress;
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
}

/// One set of processes that measure together.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Stage {
    pub(super) work: Work,
    /// A stage that says nothing for so long hangs.
    pub(super) limit: Seconds,
}

/// Smallest all-reduce.
const SUM_BYTES_MIN: Bytes = Bytes(4 << 10);

/// Largest all-reduce of a pair, which is only checked.
const PAIR_SUM_BYTES: Bytes = Bytes(16 << 20);

impl Wish {
    /// Everything that is to be measured, each pair of GPUs alone before all together.
    pub(super) fn stages(&self) -> Vec<Stage> {
        let mut stages = Vec::new();
        if !self.shared {
            stages.push(self.copies(host(&self.sites, self.quick), &self.sites));
            for from in &self.sites {
                for to in self.sites.iter().filter(|to| to.address != from.address) {
                    stages.push(self.copies(pair(from, to, self.quick), &[from.clone(), to.clone()]));
                }
            }
            if 2 < self.sites.len() {
                stages.push(self.copies(together(&self.sites), &self.sites));
            }
        }
        let Some(largest) = self.sum_bytes.filter(|_| 1 < self.sites.len()) else { return stages };
        let arms: &[SumArm] = if self.shared && self.quick {
            &[SumArm::Default]
        } else if self.shared {
            &[SumArm::Default, SumArm::P2pOff]
        } else {
            &[SumArm::Default, SumArm::P2pSys, SumArm::P2pOff]
        };
        if 2 < self.sites.len() && !self.shared && !self.quick {
            for (index, a) in self.sites.iter().enumerate() {
                for b in &self.sites[index + 1..] {
                    let pair = [a.clone(), b.clone()];
                    stages.extend(arms.iter().map(|arm| self.sums(&pair, *arm, PAIR_SUM_BYTES)));
                }
            }
        }
        stages.extend(arms.iter().map(|arm| self.sums(&self.sites, *arm, largest)));
        stages
    }

    fn copies(&self, requests: Vec<Request>, sites: &[LinkSite]) -> Stage {
        let samples = if self.quick { 3 } else { 5 };
        let sites = sites.iter().map(|site| (site.address, site.cpus.clone())).collect();
        let work = Work::Copies(Copies { sites, requests, bytes: self.copy_bytes, samples });
        Stage { work, limit: self.limit }
    }

    fn sums(&self, sites: &[LinkSite], arm: SumArm, largest: Bytes) -> Stage {
        let step = if self.quick { 4 } else { 1 };
        let sizes = std::iter::successors(Some(SUM_BYTES_MIN), |size| Some(Bytes(size.0 << step)));
        let sizes = sizes.take_while(|size| *size <= largest).collect();
        let sites = sites.iter().map(|site| (site.address, site.cpus.clone())).collect();
        let limit = self.limit;
        let work = Work::Sums(Sums { sites, arm, sizes, limit, max_ctas: self.max_ctas, shared: self.shared });
        Stage { work, limit: self.limit }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.work {
            Work::Sums(sums) => write!(out, "all-reduce of {} ranks, {}", sums.sites.len(), sums.arm),
            Work::Copies(copies) => match copies.requests.first() {
                Some(Request::Copy { pattern: Pattern::Peer, transfers, .. }) => {
                    write!(out, "copies from {} to {}", transfers[0].0, transfers[0].1)
                }
                Some(Request::Copy { pattern: Pattern::HostToDevice, .. }) => {
                    out.write_str("copies to and from the host")
                }
                _ => out.write_str("copies between all GPUs at once"),
            },
        }
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
    if 1 < sites.len() {
        let there = gpus.iter().map(|gpu| (Place::Host, *gpu)).collect();
        let back = gpus.iter().map(|gpu| (*gpu, Place::Host)).collect();
        requests.push(copy(Pattern::HostToAll, Engine::CopyEngine, there));
        requests.push(copy(Pattern::AllToHost, Engine::CopyEngine, back));
    }
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
    let all = gpus.iter().flat_map(|gpu| others(gpu).into_iter().map(move |other| (*gpu, other))).collect();
    requests.push(copy(Pattern::AllPairs, Engine::Write, all));
    requests
}
