//! Rates held against what they should be: against the link, against each other, and one setting of NCCL against another.

use std::collections::{BTreeMap, BTreeSet};

use crate::record::{CopyLine, Engine, Finding, LinkStage, Pattern, Place, Severity, SumArm, SumLine};
use crate::stats;
use crate::topology::PciAddress;
use crate::units::{Bytes, BytesPerSecond};

use super::evidence::Evidence;
use super::judge::{gpus, places, warning};

/// A copy between pinned host memory and a GPU reaches 76 to 91 % of its link's payload on machines that are in order
/// (Gen4 x16 24 to 26 of 31.5 GB/s, Gen5 x16 53 to 57 of 63).
const HOST_SHARE: f64 = 0.70;

/// A direct copy between two GPUs reaches 80 to 90 % of its link; half of it means that something else is in the way.
const PEER_SHARE: f64 = 0.50;

/// Transfers that share nothing run at their own rates together; half of that is a collapse.
const TOGETHER_SHARE: f64 = 0.50;

/// GPUs that reach the host over links of their own get nearly all of what each gets alone; two on one link get half.
const SHARED_SHARE: f64 = 0.75;

/// The two directions between two GPUs differ by a few percent on machines that are in order.
const ASYMMETRY: f64 = 0.80;

/// Equal GPUs in equal slots differ by a few percent.
const UNLIKE: f64 = 0.85;

/// A setting of NCCL that is this much faster is worth setting.
const FASTER: f64 = 1.10;

/// Below, latency decides and not the way.
const COMPARED_FROM: Bytes = Bytes(1 << 20);

/// Everything that comparing gives.
pub(super) fn findings(evidence: Evidence<'_>) -> Vec<Finding> {
    let slow: Vec<Finding> = evidence.all_copies().filter_map(slow_copy).collect();
    let mut findings = unlike_others(evidence, &slow);
    findings.extend(slow);
    findings.extend(asymmetric(evidence));
    findings.extend(collapse(evidence));
    findings.extend(far(evidence));
    findings.extend(faster_arm(evidence));
    findings
}

fn slow_copy(copy: &CopyLine) -> Option<Finding> {
    let ceiling = copy.ceiling.filter(|_| copy.check.is_good())?;
    let share = copy.rate.median / ceiling;
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
        let expected = format!("at least {:.0} % of {ceiling}", 100.0 * least);
        warning(code, places(copy), seen, &expected, remedy)
    })
}

/// Pairs of GPUs whose two directions differ.
fn asymmetric(evidence: Evidence<'_>) -> Vec<Finding> {
    let good = |copy: &&CopyLine| copy.direct == Some(true) && copy.check.is_good();
    let of = |engine: Engine| evidence.copies(Pattern::Peer).filter(move |copy| copy.engine == engine).filter(good);
    let slower = |engine: Engine| {
        of(engine).filter_map(move |copy| {
            let way = copy.transfers[0];
            let back = evidence.alone(copy, way.to, way.from)?;
            (copy.rate.median.0 < ASYMMETRY * back).then(|| {
                let seen = format!("{} ({engine}); the other way {}", copy.rate.median, BytesPerSecond(back));
                warning("peer-asymmetric", places(copy), seen, "both directions within a few percent", ASYMMETRIC)
            })
        })
    };
    [Engine::CopyEngine, Engine::Write].into_iter().flat_map(slower).collect()
}

/// GPUs of one product of which one copies slower than the rest, and is not known to be slow for its link already.
fn unlike_others(evidence: Evidence<'_>, slow: &[Finding]) -> Vec<Finding> {
    let mut found = Vec::new();
    for pattern in [Pattern::HostToDevice, Pattern::DeviceToHost, Pattern::Local] {
        let mut kinds: BTreeMap<&str, Vec<(PciAddress, f64)>> = BTreeMap::new();
        for copy in evidence.copies(pattern).filter(|copy| copy.engine == Engine::CopyEngine && copy.check.is_good()) {
            let ends = [copy.transfers[0].from, copy.transfers[0].to];
            let gpu = ends.into_iter().find_map(|place| if let Place::Gpu(gpu) = place { Some(gpu) } else { None });
            let known = gpu.and_then(|gpu| evidence.head.gpus.iter().find(|known| known.address == gpu));
            if let Some(known) = known {
                kinds.entry(&known.name).or_default().push((known.address, copy.rate.median.0));
            }
        }
        for rates in kinds.values() {
            for (gpu, rate) in rates {
                let others: Vec<f64> = rates.iter().filter(|(other, _)| other != gpu).map(|(_, rate)| *rate).collect();
                let known_slow = || slow.iter().any(|finding| finding.addresses == [gpu.to_string()]);
                if others.is_empty() || UNLIKE * stats::median(&others) <= *rate || known_slow() {
                    continue;
                }
                let link = evidence.lanes(*gpu).map_or_else(String::new, |lanes| format!(" over {lanes}"));
                let seen = format!("{pattern}: {}{link}", BytesPerSecond(*rate));
                let expected = format!("near {}, as equal GPUs reach here", BytesPerSecond(stats::median(&others)));
                found.push(warning("gpu-unlike-others", vec![gpu.to_string()], seen, &expected, UNLIKE_OTHERS));
            }
        }
    }
    found
}

/// Patterns whose transfers, together, fall far below what each reached alone, or what the links of their ends leave
/// each where they share one.
fn collapse(evidence: Evidence<'_>) -> Vec<Finding> {
    let patterns = [Pattern::Ring, Pattern::OneToAll, Pattern::AllToOne, Pattern::AllPairs];
    let lines = patterns.into_iter().flat_map(|pattern| evidence.copies(pattern));
    let collapsed = lines.filter(|line| line.check.is_good()).filter_map(|line| {
        let alone = |from: Place, to: Place| evidence.alone(line, from, to);
        let ways = || line.transfers.iter();
        let most = |rates: Option<Vec<f64>>| rates.map(|rates| rates.into_iter().fold(0.0, f64::max));
        let expected = ways().map(|way| {
            let out: Vec<_> = ways().filter(|other| other.from == way.from).collect();
            let back: Vec<_> = ways().filter(|other| other.to == way.to).collect();
            let can_send = most(out.iter().map(|other| alone(other.from, other.to)).collect())?;
            let can_take = most(back.iter().map(|other| alone(other.from, other.to)).collect())?;
            let own = alone(way.from, way.to)?;
            Some(own.min(can_send / out.len() as f64).min(can_take / back.len() as f64))
        });
        let expected = expected.collect::<Option<Vec<f64>>>()?;
        let (expected, together): (f64, f64) = match line.pattern {
            // a ring is as fast as its slowest hop
            Pattern::Ring => (expected.len() as f64 * expected.iter().copied().reduce(f64::min)?, line.rate.median.0),
            _ => (expected.iter().sum(), ways().map(|way| way.rate.0).sum()),
        };
        (together < TOGETHER_SHARE * expected).then(|| {
            let seen = format!("{} ({}): {} together", line.pattern, line.engine, BytesPerSecond(together));
            let expected = format!("near {}, by what the same copies reach one by one", BytesPerSecond(expected));
            warning("pattern-collapse", about(line), seen, &expected, COLLAPSE)
        })
    });
    collapsed.collect()
}

/// The GPUs of a pattern; of one that has a middle, the middle.
fn about(line: &CopyLine) -> Vec<String> {
    match (line.pattern, line.transfers.first()) {
        (Pattern::OneToAll, Some(way)) => vec![format!("{} → others", way.from)],
        (Pattern::AllToOne, Some(way)) => vec![format!("others → {}", way.to)],
        _ => gpus(line),
    }
}

/// GPUs that get far less from the host together than alone: those share a link, a switch or memory that is too slow.
fn far(evidence: Evidence<'_>) -> Vec<Finding> {
    let pairs = [(Pattern::HostToAll, Pattern::HostToDevice), (Pattern::AllToHost, Pattern::DeviceToHost)];
    let shared = pairs.into_iter().filter_map(|(all, one)| {
        let together = evidence.copies(all).find(|copy| copy.check.is_good())?;
        let single = |from: Place, to: Place| {
            let mut copies = evidence.copies(one).filter(|copy| copy.engine == together.engine);
            copies
                .find(|copy| (copy.transfers[0].from, copy.transfers[0].to) == (from, to))
                .map(|copy| copy.rate.median)
        };
        let fallen = together.transfers.iter().filter_map(|way| {
            let alone = single(way.from, way.to)?;
            let gpu = if way.from == Place::Host { way.to } else { way.from };
            (way.rate.0 < SHARED_SHARE * alone.0).then_some((gpu, way.rate, alone))
        });
        let fallen: Vec<_> = fallen.collect();
        let addresses = fallen.iter().map(|(gpu, ..)| gpu.to_string()).collect();
        (1 < fallen.len()).then(|| {
            let each = fallen.iter().map(|(gpu, now, alone)| format!("{gpu} {now} instead of {alone}"));
            let seen = format!("{}: {}", together.pattern, each.collect::<Vec<_>>().join(", "));
            let expected = format!("at least {:.0} % of what each reaches alone", 100.0 * SHARED_SHARE);
            Finding { severity: Severity::Note, ..warning("host-shared", addresses, seen, &expected, SHARED) }
        })
    });
    shared.collect()
}

/// Settings of NCCL that beat its own choice, and what to set.
fn faster_arm(evidence: Evidence<'_>) -> Vec<Finding> {
    let groups: BTreeSet<&[PciAddress]> = evidence.sums().map(|sum| sum.ranks.as_slice()).collect();
    let largest = groups.iter().map(|ranks| ranks.len()).max().unwrap_or_default();
    // pairs are checked, not trained on, where all ranks were measured together
    let faster = groups.into_iter().filter(|ranks| ranks.len() == largest).filter_map(|ranks| {
        let of = |arm: SumArm| evidence.sums().filter(move |sum| sum.arm == arm && sum.ranks == ranks);
        let arms: BTreeSet<SumArm> = evidence.sums().filter(|sum| sum.ranks == ranks).map(|sum| sum.arm).collect();
        let sound = |arm: &SumArm| {
            let broken = |stage: &LinkStage| matches!(stage, LinkStage::Sums { arm: other, .. } if other == arm);
            let all_good = evidence.sums().filter(|sum| sum.arm == *arm).all(|sum| sum.check.is_good());
            all_good && !evidence.broken().any(|line| broken(&line.stage))
        };
        let candidates = arms.into_iter().filter(|arm| *arm != SumArm::Default).filter(sound);
        let gains = candidates.filter_map(|arm| Some((arm, gain(of(SumArm::Default), of(arm))?)));
        let (arm, (gain, was, is)) = gains.max_by(|(_, one), (_, other)| one.0.total_cmp(&other.0))?;
        let (name, value) = arm.setting().filter(|_| FASTER < gain)?;
        let seen = format!(
            "all-reduce of {}: {} by NCCL's choice, {} with {name}={value}; {:.0} % faster over sizes from {COMPARED_FROM}",
            was.bytes,
            was.bus_bandwidth,
            is.bus_bandwidth,
            100.0 * (gain - 1.0)
        );
        let expected = format!("NCCL's own choice within {:.0} % of the best", 100.0 * (FASTER - 1.0));
        let why = if arm == SumArm::P2pOff { HOST_FASTER } else { PEERS_FASTER };
        let remedy = format!("train with {name}={value} (rigscale train --nccl {name}={value}) and compare. {why}");
        Some(warning("arm-faster", ranks.iter().map(ToString::to_string).collect(), seen, &expected, &remedy))
    });
    faster.collect()
}

/// How much faster sums of one arm are than those of another, the median over the sizes that both have, with the two of the
/// largest size.
fn gain<'a>(
    default: impl Iterator<Item = &'a SumLine>,
    other: impl Iterator<Item = &'a SumLine>,
) -> Option<(f64, &'a SumLine, &'a SumLine)> {
    let other: Vec<&SumLine> = other.collect();
    let both = default.filter(|sum| COMPARED_FROM <= sum.bytes && sum.check.is_good());
    let both = both.filter_map(|sum| Some((sum, *other.iter().find(|other| other.bytes == sum.bytes)?)));
    let both: Vec<(&SumLine, &SumLine)> = both.collect();
    let gains: Vec<f64> = both.iter().map(|(was, is)| was.time_s.median / is.time_s.median).collect();
    let (was, is) = both.into_iter().max_by_key(|(was, _)| was.bytes)?;
    Some((stats::median(&gains), was, is))
}

const SLOW: &str = "see whether the link is narrow under load (above), whether the slot hangs on the chipset, whether memory \
     channels are empty, and whether the CPU's power saving (C-states, governor) is off";
const SLOW_PEER: &str = "see whether ACS redirection or a translating IOMMU sends peers through the root complex (rigscale \
     probe as root), and whether both cards share a narrow uplink";
const ASYMMETRIC: &str = "swap the two cards: if the slow direction stays with the slot, look at its riser, its switch and the \
     board's wiring; if it goes with the card, at the card. ACS redirection can concern one port only (rigscale probe as root)";
const UNLIKE_OTHERS: &str = "training waits for the slowest GPU: put it into a slot like the others' if it has fewer lanes or \
     hangs off the chipset; else swap it with another and see whether slot or card is slow";
const COLLAPSE: &str = "transfers of these GPUs disturb each other though each runs alone: cards behind one switch uplink \
     that write to several root ports do. Move a card to another switch or root port";
const SHARED: &str = "these GPUs share their way to the host's memory (a switch uplink, a chipset, a socket, too few memory \
     channels): host-staged all-reduce will be as slow";
const PEERS_FASTER: &str = "NCCL keeps these GPUs from reaching each other by default, and they reach each other well";
const HOST_FASTER: &str = "Here the way through the host's memory beats peer access: ACS redirection, a translating IOMMU or the \
     link between sockets is in the way of peers (rigscale probe as root)";
