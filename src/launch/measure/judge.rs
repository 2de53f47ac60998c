//! What measurements say of a machine: ceilings beside rates, and findings. Nothing here touches hardware.

use std::collections::{BTreeMap, BTreeSet};

use crate::record::{
    Check, CopyLine, Engine, Finding, LinkLine, LinksHead, LoadLine, Pattern, Place, Severity, Spread, SumArm, SumLine,
};
use crate::topology::{PciAddress, PeerStatus, Topology};
use crate::units::{BytesPerSecond, Seconds};

use super::children::Ending;
use super::task::{Request, Work};
use super::wish::Stage;

/// A copy between pinned host memory and a GPU reaches 76 to 91 % of its link's payload on machines that are in order
/// (Gen4 x16 24 to 26 of 31.5 GB/s, Gen5 x16 53 to 57 of 63).
const HOST_SHARE: f64 = 0.70;

/// A direct copy between two GPUs reaches 80 to 90 % of its link; half of it means that something else is in the way.
const PEER_SHARE: f64 = 0.50;

/// Transfers that share nothing run at their own rates together; half of that is a collapse.
const TOGETHER_SHARE: f64 = 0.50;

/// What was seen so far.
pub(super) struct Evidence<'a> {
    head: &'a LinksHead,
    topology: &'a Topology,
    lines: Vec<LinkLine>,
    /// Stages that did not come to their end, in words, with how they ended.
    broken: Vec<(Stage, Ending)>,
}

impl<'a> Evidence<'a> {
    pub(super) fn new(head: &'a LinksHead, topology: &'a Topology) -> Self {
        Self { head, topology, lines: Vec::new(), broken: Vec::new() }
    }

    /// False for what can only repeat a failure, or says nothing here.
    pub(super) fn allows(&self, stage: &Stage) -> bool {
        match &stage.work {
            // NCCL across host bridges can differ from its choice only where GPUs reach each other
            Work::Sums(sums) if sums.arm == SumArm::P2pSys => {
                let among = |place: &Place| match place {
                    Place::Gpu(address) => sums.sites.iter().any(|(site, _)| site == address),
                    Place::Host => false,
                };
                let direct = |line: &CopyLine| line.direct == Some(true) && line.check.is_good();
                let mut peers = self.copies(Pattern::Peer).filter(|line| among(&line.transfers[0].from));
                peers.any(direct) && !self.default_is_direct(&sums.sites)
            }
            Work::Copies(copies) if matches!(first_pattern(&copies.requests), Some(Pattern::Ring)) => {
                self.broken.iter().all(|(stage, _)| matches!(stage.work, Work::Sums(_)))
            }
            _ => true,
        }
    }

    /// Whether NCCL's own choice among these GPUs was direct access.
    fn default_is_direct(&self, sites: &[(PciAddress, Vec<usize>)]) -> bool {
        let same = |line: &&SumLine| line.ranks.iter().eq(sites.iter().map(|(address, _)| address));
        let default = self.sums().filter(|line| line.arm == SumArm::Default).find(same);
        default.is_some_and(|line| !line.via.is_empty() && line.via.iter().all(|via| via.starts_with("P2P")))
    }

    /// Adds to lines what the child does not know: ceilings, and of sums the mean over ranks.
    pub(super) fn complete(&self, stage: &Stage, lines: &mut Vec<LinkLine>) {
        if let Work::Sums(sums) = &stage.work {
            *lines = over_ranks(lines, sums.sites.len());
        }
        for line in lines {
            if let LinkLine::Copy(copy) = line {
                copy.ceiling = self.ceiling(copy);
            }
        }
    }

    pub(super) fn add(&mut self, stage: &Stage, lines: Vec<LinkLine>, ending: Ending) {
        self.lines.extend(lines);
        if !matches!(ending, Ending::Done | Ending::Interrupted) {
            self.broken.push((stage.clone(), ending));
        }
    }

    pub(super) fn push(&mut self, line: LinkLine) {
        self.lines.push(line);
    }

    fn copies(&self, pattern: Pattern) -> impl Iterator<Item = &CopyLine> {
        self.lines.iter().filter_map(move |line| match line {
            LinkLine::Copy(copy) if copy.pattern == pattern => Some(copy),
            _ => None,
        })
    }

    fn sums(&self) -> impl Iterator<Item = &SumLine> {
        self.lines.iter().filter_map(|line| if let LinkLine::Sum(sum) = line { Some(sum) } else { None })
    }

    fn link_rate(&self, place: Place) -> Option<BytesPerSecond> {
        let Place::Gpu(address) = place else { return Some(BytesPerSecond(f64::MAX)) };
        Some(self.head.gpus.iter().find(|gpu| gpu.address == address)?.lanes?.rate())
    }

    fn bridged(&self, from: Place, to: Place) -> bool {
        let (Place::Gpu(from), Place::Gpu(to)) = (from, to) else { return false };
        let pair = |one, other| (one, other) == (from, to) || (one, other) == (to, from);
        self.topology.peers.iter().any(|peer| pair(peer.from, peer.to) && peer.nvlink == Ok(PeerStatus::Ok))
    }

    /// What the PCIe links of a copy could carry: each transfer no more than the narrower of its ends, and no link more
    /// in one direction than it has.
    fn ceiling(&self, copy: &CopyLine) -> Option<BytesPerSecond> {
        if copy.pattern == Pattern::Local || copy.transfers.iter().any(|way| self.bridged(way.from, way.to)) {
            return None;
        }
        let mut out: BTreeMap<Place, usize> = BTreeMap::new();
        let mut back: BTreeMap<Place, usize> = BTreeMap::new();
        for way in &copy.transfers {
            *out.entry(way.from).or_default() += 1;
            *back.entry(way.to).or_default() += 1;
        }
        let shared = |place: Place, sharers: usize| Some(self.link_rate(place)?.0 / sharers as f64);
        let rates = copy.transfers.iter().map(|way| {
            let from = shared(way.from, if way.from == Place::Host { 1 } else { out[&way.from] })?;
            let to = shared(way.to, if way.to == Place::Host { 1 } else { back[&way.to] })?;
            Some(from.min(to))
        });
        rates.sum::<Option<f64>>().map(BytesPerSecond)
    }

    /// Everything, and what is wrong with it, gravest first.
    pub(super) fn judged(self) -> (Vec<LinkLine>, Vec<Finding>) {
        let mut findings: Vec<Finding> =
            self.broken.iter().map(|(stage, ending)| self.broken_stage(stage, ending)).collect();
        for line in &self.lines {
            match line {
                LinkLine::Copy(copy) => findings.extend(wrong_copy(copy).or_else(|| slow_copy(copy))),
                LinkLine::Sum(sum) => findings.extend(self.wrong_sum(sum)),
                LinkLine::Load(load) => findings.extend(self.load(load)),
                LinkLine::Head(_) | LinkLine::Latency(_) => {}
            }
        }
        findings.extend(self.collapse());
        findings.extend(self.far());
        findings.sort_by_key(|finding| finding.severity);
        let mut seen = BTreeSet::new();
        findings.retain(|finding| seen.insert((finding.code.clone(), finding.addresses.clone())));
        (self.lines, findings)
    }

    /// Whether the same sums went well through the host's memory.
    fn well_through_host(&self, ranks: &[PciAddress]) -> bool {
        self.sums().any(|sum| sum.arm == SumArm::P2pOff && sum.ranks == ranks && sum.check.is_good())
    }

    fn broken_stage(&self, stage: &Stage, ending: &Ending) -> Finding {
        let hang = matches!(ending, Ending::Hang(_) | Ending::Unmet { .. });
        let how = match ending {
            Ending::Hang(limit) => format!("{stage}: nothing was heard for {limit}"),
            Ending::Failed { rank, text } | Ending::Unmet { rank, text } => format!("{stage}: process {rank}: {text}"),
            Ending::Done | Ending::Interrupted => String::new(),
        };
        match &stage.work {
            Work::Copies(copies) => {
                let pair = first_pattern(&copies.requests) == Some(Pattern::Peer);
                let code = match (hang, pair) {
                    (true, true) => "hang-peer",
                    (true, false) => "hang-link",
                    (false, true) => "peer-failed",
                    (false, false) => "link-failed",
                };
                let remedy = if pair { HANGS } else { FAILS };
                let gpus = copies.sites.iter().map(|(address, _)| address.to_string()).collect();
                fault(code, gpus, how, "every copy ends and is checked", remedy)
            }
            Work::Sums(sums) => {
                let ranks: Vec<PciAddress> = sums.sites.iter().map(|(address, _)| *address).collect();
                let peers = sums.arm != SumArm::P2pOff && self.well_through_host(&ranks);
                let remedy = if peers { SUM_WELL_WITHOUT_PEERS } else { FAILS };
                let code = if hang { "hang-sum" } else { "sum-failed" };
                let gpus = ranks.iter().map(ToString::to_string).collect();
                let finding = fault(code, gpus, how, "every all-reduce ends, with the right sum", remedy);
                // what NCCL does not choose by itself hurts nobody who leaves it alone
                let severity = if sums.arm == SumArm::P2pSys { Severity::Warning } else { Severity::Fault };
                let code = if sums.arm == SumArm::P2pSys { "sum-not-with-peers".into() } else { finding.code };
                Finding { severity, code, ..finding }
            }
        }
    }

    fn wrong_sum(&self, sum: &SumLine) -> Option<Finding> {
        if sum.check.is_good() {
            return None;
        }
        let peers = sum.arm != SumArm::P2pOff && self.well_through_host(&sum.ranks);
        let seen = format!("all-reduce of {} with {}: {}", sum.bytes, sum.arm, words(&sum.check));
        let remedy = if peers { SUM_WELL_WITHOUT_PEERS } else { FAILS };
        Some(fault("sum-wrong", sum.ranks.iter().map(ToString::to_string).collect(), seen, "the exact sum", remedy))
    }

    fn load(&self, load: &LoadLine) -> Option<Finding> {
        let at = vec![load.gpu.to_string()];
        if let Some(replays) = load.replays.filter(|replays| 0 < *replays) {
            let seen = format!("{replays} packets were sent again while copies ran (NVML's replay counter)");
            return Some(warning("link-replays", at, seen, "none: a link that is in order repeats nothing", REPLAYS));
        }
        let can = self.head.gpus.iter().find(|gpu| gpu.address == load.gpu)?.lanes?;
        let now = load.lanes?;
        (now.rate() < can.rate()).then(|| {
            let seen = format!("{now} was the most that NVML showed while copies ran");
            warning("link-narrow-under-load", at, seen, &format!("{can}, what both ends of every hop offer"), NARROW)
        })
    }

    /// Patterns whose transfers, together, fall far below what each reached alone.
    fn collapse(&self) -> Vec<Finding> {
        let alone = |engine: Engine, from: Place, to: Place| {
            let mut peers = self.copies(Pattern::Peer).filter(|line| line.engine == engine);
            peers.find(|line| (line.transfers[0].from, line.transfers[0].to) == (from, to)).map(|line| line.rate.median)
        };
        let rings = [Pattern::Ring].into_iter().flat_map(|pattern| self.copies(pattern));
        let collapsed = rings.filter_map(|line| {
            let expected = line.transfers.iter().map(|way| Some(alone(line.engine, way.from, way.to)?.0));
            let expected: f64 = expected.collect::<Option<Vec<_>>>()?.into_iter().sum();
            (line.rate.median.0 < TOGETHER_SHARE * expected).then(|| {
                let seen = format!("{} ({}): {} together", line.pattern, line.engine, line.rate.median);
                let alone = format!("near {}, what the same copies reach one by one", BytesPerSecond(expected));
                warning("pattern-collapse", places(line), seen, &alone, COLLAPSE)
            })
        });
        collapsed.collect()
    }

    /// GPUs that reach the host together at less than half of what they reach one by one.
    fn far(&self) -> Vec<Finding> {
        let pairs = [(Pattern::HostToAll, Pattern::HostToDevice), (Pattern::AllToHost, Pattern::DeviceToHost)];
        let shared = pairs.into_iter().filter_map(|(all, one)| {
            let together = self.copies(all).next()?;
            let single = self.copies(one).filter(|line| line.engine == Engine::CopyEngine);
            let alone: f64 = single.map(|line| line.rate.median.0).sum();
            (together.rate.median.0 < TOGETHER_SHARE * alone).then(|| {
                let seen = format!("{}: {}", together.pattern, together.rate.median);
                let expected = format!("up to {}, the sum of what each reaches alone", BytesPerSecond(alone));
                Finding {
                    severity: Severity::Note,
                    ..warning("host-shared", places(together), seen, &expected, SHARED)
                }
            })
        });
        shared.collect()
    }
}

fn first_pattern(requests: &[Request]) -> Option<Pattern> {
    match requests.first()? {
        Request::Copy { pattern, .. } => Some(*pattern),
        Request::Latency { .. } => None,
    }
}

/// One line for each size: times are means over ranks, checks are sums.
fn over_ranks(lines: &[LinkLine], world: usize) -> Vec<LinkLine> {
    let sums = || lines.iter().filter_map(|line| if let LinkLine::Sum(sum) = line { Some(sum) } else { None });
    let sizes: BTreeSet<_> = sums().map(|sum| sum.bytes).collect();
    let merged = sizes.into_iter().filter_map(|size| {
        let of_size: Vec<&SumLine> = sums().filter(|sum| sum.bytes == size).collect();
        let first = (*of_size.first().filter(|_| of_size.len() == world)?).clone();
        let mean = |of: fn(&Spread<Seconds>) -> Seconds| {
            of_size.iter().map(|sum| of(&sum.time_s)).sum::<Seconds>() / world as f64
        };
        let time_s =
            Spread { median: mean(|time| time.median), low: mean(|time| time.low), high: mean(|time| time.high) };
        let total = |of: fn(&Check) -> u64| of_size.iter().map(|sum| of(&sum.check)).sum();
        let check = Check {
            words: total(|check| check.words),
            wrong: total(|check| check.wrong),
            untouched: total(|check| check.untouched),
        };
        let mut via: Vec<String> = of_size.iter().flat_map(|sum| sum.via.clone()).collect();
        via.sort_unstable();
        via.dedup();
        let bus_bandwidth = first.bus_bandwidth * (first.time_s.median / time_s.median);
        Some(LinkLine::Sum(SumLine { time_s, check, via, bus_bandwidth, ..first }))
    });
    merged.collect()
}

fn wrong_copy(copy: &CopyLine) -> Option<Finding> {
    if copy.check.is_good() {
        return None;
    }
    let peers = copy.direct.is_some();
    let nothing = copy.check.untouched == copy.check.wrong;
    let (code, remedy) = match (peers, nothing && copy.direct == Some(true)) {
        (false, _) => ("link-wrong-data", MEMORY),
        (true, true) => ("peer-false-grant", FALSE_GRANT),
        (true, false) => ("peer-wrong-data", WRONG_DATA),
    };
    let seen = format!("{} ({}): {}", copy.pattern, copy.engine, words(&copy.check));
    Some(fault(code, places(copy), seen, "what the source sent, read by the destination in its own memory", remedy))
}

fn slow_copy(copy: &CopyLine) -> Option<Finding> {
    let share = copy.rate.median / copy.ceiling?;
    let (code, least, remedy) = match copy.pattern {
        Pattern::HostToDevice | Pattern::DeviceToHost if copy.engine == Engine::CopyEngine => {
            ("link-slow", HOST_SHARE, SLOW)
        }
        Pattern::Peer if copy.engine == Engine::CopyEngine && copy.direct == Some(true) => {
            ("peer-slow", PEER_SHARE, SLOW_PEER)
        }
        _ => return None,
    };
    (share < least).then(|| {
        let seen = format!("{}: {}, {:.0} % of the link", copy.pattern, copy.rate.median, 100.0 * share);
        let expected = format!("at least {:.0} % of {}", 100.0 * least, copy.ceiling.unwrap_or_default());
        warning(code, places(copy), seen, &expected, remedy)
    })
}

fn words(check: &Check) -> String {
    if check.words == 0 {
        return "nothing was checked".into();
    }
    let Check { words, wrong, untouched } = check;
    format!("{wrong} of {words} words are wrong, {untouched} of them were never written")
}

fn places(copy: &CopyLine) -> Vec<String> {
    let ends = copy.transfers.iter().flat_map(|way| [way.from, way.to]);
    let gpus: BTreeSet<String> = ends.filter(|place| *place != Place::Host).map(|place| place.to_string()).collect();
    match copy.pattern {
        // which way it goes matters
        Pattern::Peer => copy.transfers.iter().map(|way| format!("{} → {}", way.from, way.to)).collect(),
        _ => gpus.into_iter().collect(),
    }
}

fn fault(code: &str, addresses: Vec<String>, seen: String, expected: &str, remedy: &str) -> Finding {
    let (expected, remedy) = (expected.into(), remedy.into());
    Finding { code: code.into(), severity: Severity::Fault, addresses, seen, expected, remedy }
}

fn warning(code: &str, addresses: Vec<String>, seen: String, expected: &str, remedy: &str) -> Finding {
    Finding { severity: Severity::Warning, ..fault(code, addresses, seen, expected, remedy) }
}

const FALSE_GRANT: &str = "the driver grants an access that does not arrive: train with NCCL_P2P_DISABLE=1 until it does. \
     Look at the IOMMU (translation on: boot with iommu=pt or off), at ACS redirection on the bridges (rigscale probe as \
     root), at a patched driver, at a hypervisor";
const WRONG_DATA: &str = "data between these GPUs arrive changed: use no result of this machine. Train with \
     NCCL_P2P_DISABLE=1, look for PCIe errors (rigscale probe, dmesg), at risers and ACS, and take the driver's stock version";
const HANGS: &str = "train with NCCL_P2P_DISABLE=1. Look into the kernel log for Xid and IOMMU messages of this time, at ACS \
     redirection (rigscale probe as root) and at the IOMMU; a GPU that no longer answers needs a reboot";
const FAILS: &str = "the words of the process say what failed; its log stands beside links.jsonl. Look into the kernel log \
     for Xid messages of this time";
const SUM_WELL_WITHOUT_PEERS: &str = "the same sums go well with NCCL_P2P_DISABLE=1: train with it, and mend peer access \
     (IOMMU, ACS redirection, driver) before you do without";
const MEMORY: &str = "data between the host and this GPU arrive changed: use no result of this machine. Test the host's \
     memory (memtest86+), the GPU's (its ECC counters), and reseat the card and its riser";
const REPLAYS: &str = "reseat the card, take out or replace the riser, clean the contacts; if it stays, lower the slot's \
     generation by one in the firmware and measure again";
const NARROW: &str = "reseat the card, check the slot's wiring in the board's manual and its generation in the firmware; a \
     riser of an older generation is the usual reason";
const SLOW: &str = "see whether the link is narrow under load (above), whether the slot hangs on the chipset, whether memory \
     channels are empty, and whether the CPU's power saving (C-states, governor) is off";
const SLOW_PEER: &str = "see whether ACS redirection sends peers through the root complex (rigscale probe as root), and \
     whether both cards share a narrow uplink";
const COLLAPSE: &str = "transfers of these GPUs disturb each other though each runs alone: cards behind one switch uplink \
     that write to several root ports do. Move a card to another switch or root port";
const SHARED: &str = "the GPUs share their way to the host's memory (a switch uplink, a socket, too few memory channels): \
     host-staged all-reduce will be as slow";
