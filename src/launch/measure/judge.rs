//! What measurements say of a machine: what failed, what arrived wrong, what links and counters showed. Pure: the same
//! lines give the same findings, years later and anywhere.

use std::collections::{BTreeMap, BTreeSet};

use crate::record::{
    BrokenLine, Check, CopyLine, CounterLine, Engine, ErrorCounter, Finding, LinkLine, LinkStage, LinksHead, LoadLine,
    Pattern, Place, Severity, SumArm, SumLine, UplinkLine,
};
use crate::topology::{Lanes, PciAddress, ThrottleReasons, Topology};

use super::compare;
use super::evidence::Evidence;

/// Of a copy that did not arrive, no more than this is right: a few words may be by chance, or come late.
const NOTHING: f64 = 0.01;

/// What is wrong with the links of a machine by what was measured, gravest first. `topology` is the machine's, as it was
/// probed beside the measurement.
#[must_use]
pub fn judge_links(head: &LinksHead, lines: &[LinkLine], topology: &Topology) -> Vec<Finding> {
    let evidence = Evidence { head, topology, lines };
    let mut findings: Vec<Finding> = evidence.broken().map(|broken| broken_stage(evidence, broken)).collect();
    findings.extend(wrong_peers(evidence));
    findings.extend(evidence.all_copies().filter(|copy| !is_of_peers(copy)).filter_map(wrong_copy));
    findings.extend(evidence.sums().filter_map(|sum| wrong_sum(evidence, sum)));
    for line in lines {
        match line {
            LinkLine::Load(load) => {
                findings.extend(narrow(evidence, load).into_iter().chain(replays(load)).chain(throttled(load)));
            }
            LinkLine::Uplink(link) => findings.extend(narrow_above(evidence, link)),
            _ => {}
        }
    }
    findings.extend(errors(lines));
    findings.extend(compare::findings(evidence));
    // findings of one code stand together, in the order in which the first of each was found
    let order: Vec<String> = findings.iter().map(|finding| finding.code.clone()).collect();
    findings.sort_by_key(|finding| (finding.severity, order.iter().position(|code| *code == finding.code)));
    let mut seen = BTreeSet::new();
    findings.retain(|finding| seen.insert((finding.code.clone(), finding.addresses.clone())));
    findings
}

fn broken_stage(evidence: Evidence<'_>, broken: &BrokenLine) -> Finding {
    let BrokenLine { stage, ending } = broken;
    let seen = format!("{stage}: {ending}");
    let names = |gpus: &[PciAddress]| gpus.iter().map(ToString::to_string).collect();
    let copies = |code, gpus, remedy| fault(code, gpus, seen.clone(), "every copy ends and is checked", remedy);
    match (stage, ending.is_hang()) {
        (LinkStage::Pair { from, to }, true) => copies("hang-peer", names(&[*from, *to]), HANGS),
        (LinkStage::Pair { from, to }, false) => copies("peer-failed", names(&[*from, *to]), HANGS),
        (LinkStage::Host { gpus } | LinkStage::Together { gpus }, true) => copies("hang-link", names(gpus), FAILS),
        (LinkStage::Host { gpus } | LinkStage::Together { gpus }, false) => copies("link-failed", names(gpus), FAILS),
        (LinkStage::Sums { ranks, arm }, hang) => {
            let peers = *arm != SumArm::P2pOff && evidence.well_through_host(ranks);
            let remedy = if peers { SUM_WELL_WITHOUT_PEERS } else { FAILS };
            let code = if hang { "hang-sum" } else { "sum-failed" };
            let finding = fault(code, names(ranks), seen.clone(), "every all-reduce ends, with the right sum", remedy);
            if arm.forces_peers() { only_when_forced(finding) } else { finding }
        }
    }
}

/// What NCCL does not choose by itself hurts nobody who leaves it alone.
fn only_when_forced(finding: Finding) -> Finding {
    Finding { severity: Severity::Warning, code: "sum-not-with-peers".into(), ..finding }
}

fn wrong_sum(evidence: Evidence<'_>, sum: &SumLine) -> Option<Finding> {
    if sum.check.is_good() {
        return None;
    }
    let peers = sum.arm != SumArm::P2pOff && evidence.well_through_host(&sum.ranks);
    let seen = format!("all-reduce of {} with {}: {}", sum.bytes, sum.arm, words(&sum.check));
    let remedy = if peers { SUM_WELL_WITHOUT_PEERS } else { FAILS };
    let finding =
        fault("sum-wrong", sum.ranks.iter().map(ToString::to_string).collect(), seen, "the exact sum", remedy);
    Some(if sum.arm.forces_peers() { only_when_forced(finding) } else { finding })
}

/// True for what goes between GPUs, by whatever way.
fn is_of_peers(copy: &CopyLine) -> bool {
    copy.direct.is_some()
}

/// A copy between host and GPU, or inside one, that did not arrive as it was sent.
fn wrong_copy(copy: &CopyLine) -> Option<Finding> {
    let seen = format!("{} ({}): {}", copy.pattern, copy.engine, words(&copy.check));
    let wrong = || fault("link-wrong-data", places(copy), seen, SENT, MEMORY);
    (!copy.check.is_good()).then(wrong)
}

/// True where the grant alone is wrong: nothing arrives. A destination that copies for itself finds in its memory what it
/// read, so that there nothing right is enough.
fn is_false_grant(copy: &CopyLine) -> bool {
    let Check { words, wrong, untouched } = copy.check;
    let nothing = |of: u64| (1.0 - NOTHING) * words as f64 <= of as f64;
    copy.direct == Some(true) && 0 < words && nothing(if copy.engine == Engine::Read { wrong } else { untouched })
}

/// Copies between GPUs that did not arrive: one finding for each pair of GPUs, whichever way and by whatever engine, as
/// they have one cause. What is wrong only where all copy at once stands for itself.
fn wrong_peers(evidence: Evidence<'_>) -> Vec<Finding> {
    let mut pairs: BTreeMap<Vec<String>, Vec<&CopyLine>> = BTreeMap::new();
    for copy in evidence.all_copies().filter(|copy| is_of_peers(copy) && !copy.check.is_good()) {
        pairs.entry(gpus(copy)).or_default().push(copy);
    }
    let known: Vec<Vec<String>> = pairs.keys().filter(|gpus| gpus.len() == 2).cloned().collect();
    let covered = |gpus: &[String]| known.iter().any(|pair| pair.iter().all(|gpu| gpus.contains(gpu)));
    pairs.retain(|gpus, _| gpus.len() == 2 || !covered(gpus));
    let finding = |(gpus, copies): (Vec<String>, Vec<&CopyLine>)| {
        let way = |copy: &CopyLine| match copy.transfers.as_slice() {
            [only] => format!("{} → {} ({})", only.from, only.to, copy.engine),
            _ => format!("{} ({})", copy.pattern, copy.engine),
        };
        let seen: Vec<String> = copies.iter().map(|copy| format!("{}: {}", way(copy), words(&copy.check))).collect();
        let false_grant = copies.iter().any(|copy| is_false_grant(copy));
        let (code, remedy) =
            if false_grant { ("peer-false-grant", FALSE_GRANT) } else { ("peer-wrong-data", WRONG_DATA) };
        fault(code, gpus, seen.join("; "), SENT, remedy)
    };
    pairs.into_iter().map(finding).collect()
}

/// A link that stays or falls below what it can do while its GPU copies. A speed is a fault, as it is for the probe, whose
/// rule reads the same samples from the topology; fewer lanes may be how the slot is wired.
fn narrow(evidence: Evidence<'_>, load: &LoadLine) -> Option<Finding> {
    let can = evidence.lanes(load.gpu)?;
    let under = below((load.least?, load.most?), can)?;
    let at_rest = load.at_rest.map_or_else(|| "unknown".into(), |lanes| lanes.to_string());
    let seen = format!("{under} in {} looks while the GPU copied; at rest {at_rest}", load.samples);
    let expected = format!("{can}, what both ends of every hop offer");
    let finding = fault("link-narrow-under-load", vec![load.gpu.to_string()], seen, &expected, NARROW);
    Some(Finding { severity: narrowed(load.least?, can), ..finding })
}

/// As [`narrow`], of a link between ports above GPUs: it should keep the lanes that it had at rest.
fn narrow_above(evidence: Evidence<'_>, link: &UplinkLine) -> Option<Finding> {
    let gpu = evidence.topology.gpu(*link.gpus.first()?)?;
    let max = evidence.topology.hops(gpu).into_iter().find(|hop| hop.lower == link.lower)?.max().ok()?;
    let can = Lanes { width: link.at_rest.map_or(max.width, |lanes| lanes.width), ..max };
    let under = below((link.least?, link.most?), can)?;
    let at_rest = link.at_rest.map_or_else(|| "unknown".into(), |lanes| lanes.to_string());
    let (upper, lower, looks) = (link.upper, link.lower, link.samples);
    let seen = format!(
        "the link between {upper} and {lower}: {under} in {looks} looks while GPUs below it copied; at rest {at_rest}"
    );
    let expected = format!("{can}, what both ports offer");
    let addresses = [upper, lower].iter().chain(&link.gpus).map(ToString::to_string).collect();
    let finding = fault("link-narrow-under-load", addresses, seen, &expected, NARROW_ABOVE);
    Some(Finding { severity: narrowed(link.least?, can), ..finding })
}

/// What was seen of a link, in words, where it was at some moment below what it can do.
fn below((least, most): (Lanes, Lanes), can: Lanes) -> Option<String> {
    let words = if least == most { format!("{least}") } else { format!("between {least} and {most}") };
    (least.rate() < can.rate()).then_some(words)
}

fn narrowed(least: Lanes, can: Lanes) -> Severity {
    if least.generation < can.generation { Severity::Fault } else { Severity::Warning }
}

fn replays(load: &LoadLine) -> Option<Finding> {
    let replays = load.replays.filter(|replays| 0 < *replays)?;
    let seen = format!("{replays} packets were sent again while copies ran (NVML's replay counter)");
    let expected = "none: a link that is in order repeats nothing";
    Some(warning("link-replays", vec![load.gpu.to_string()], seen, expected, REPLAYS))
}

fn throttled(load: &LoadLine) -> Option<Finding> {
    let held = load.throttle?.slowdown();
    // this one alone also shows for a moment when clocks change
    if held.is_none() || held == ThrottleReasons::HARDWARE_SLOWDOWN {
        return None;
    }
    let seen = format!("while it copied, its clocks were held by: {}", held.names().join(", "));
    let expected = "no heat and no power brake: copies take little power";
    Some(warning("gpu-throttled", vec![load.gpu.to_string()], seen, expected, THROTTLED))
}

/// Errors that were counted during the measurement: of each device one finding for its links and one for its memory.
fn errors(lines: &[LinkLine]) -> Vec<Finding> {
    let mut grown: BTreeMap<(PciAddress, bool), Vec<(&CounterLine, u64)>> = BTreeMap::new();
    for line in lines {
        if let LinkLine::Counter(counter) = line
            && let Some(counted) = counter.counted().filter(|counted| 0 < *counted)
        {
            let memory = counter.counter == ErrorCounter::EccUncorrected;
            grown.entry((counter.at, memory)).or_default().push((counter, counted));
        }
    }
    let finding = |((at, memory), counters): ((PciAddress, bool), Vec<(&CounterLine, u64)>)| {
        let each = counters.iter().map(|(line, counted)| {
            format!("{counted} {} ({} before)", line.counter, line.before.clone().unwrap_or_default())
        });
        let seen = format!("counted while copies and sums ran: {}", each.collect::<Vec<_>>().join(", "));
        let mended = counters.iter().all(|(line, _)| line.counter == ErrorCounter::AerCorrectable);
        match (memory, mended) {
            (true, _) => fault("gpu-memory-errors", vec![at.to_string()], seen, "none", MEMORY_ERRORS),
            (false, true) => warning("link-errors", vec![at.to_string()], seen, "none", REPLAYS),
            (false, false) => fault("link-errors", vec![at.to_string()], seen, "none", REPLAYS),
        }
    };
    grown.into_iter().map(finding).collect()
}

fn words(check: &Check) -> String {
    if check.words == 0 {
        return "nothing was checked".into();
    }
    let Check { words, wrong, untouched } = check;
    format!("{wrong} of {words} words are wrong, {untouched} of them were never written")
}

/// The GPUs of a copy, each once.
pub(super) fn gpus(copy: &CopyLine) -> Vec<String> {
    let ends = copy.transfers.iter().flat_map(|way| [way.from, way.to]);
    let gpus: BTreeSet<Place> = ends.filter(|place| *place != Place::Host).collect();
    gpus.iter().map(ToString::to_string).collect()
}

/// What a finding about a copy is about: which way it goes matters between two GPUs.
pub(super) fn places(copy: &CopyLine) -> Vec<String> {
    match copy.pattern {
        Pattern::Peer => copy.transfers.iter().map(|way| format!("{} → {}", way.from, way.to)).collect(),
        _ => gpus(copy),
    }
}

pub(super) fn fault(code: &str, addresses: Vec<String>, seen: String, expected: &str, remedy: &str) -> Finding {
    let (expected, remedy) = (expected.into(), remedy.into());
    Finding { code: code.into(), severity: Severity::Fault, addresses, seen, expected, remedy }
}

pub(super) fn warning(code: &str, addresses: Vec<String>, seen: String, expected: &str, remedy: &str) -> Finding {
    Finding { severity: Severity::Warning, ..fault(code, addresses, seen, expected, remedy) }
}

const SENT: &str = "what the source sent, read by the destination in its own memory";
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
const MEMORY_ERRORS: &str = "use no result of this GPU. Reset it or restart, which replaces memory rows that failed; if errors \
     come again, have the card replaced";
const REPLAYS: &str = "reseat the card, take out or replace the riser, clean the contacts; if it stays, lower the slot's \
     generation by one in the firmware and measure again";
const NARROW: &str = "reseat the card, check the slot's wiring in the board's manual and its generation in the firmware; a \
     riser of an older generation is the usual reason";
const NARROW_ABOVE: &str = "every GPU below it is held back: look for errors of these ports (rigscale probe), reseat the switch's \
     card and cables, check the slot's generation in the firmware and the switch's own firmware; then measure again";
const THROTTLED: &str = "see that the card's fans turn and air reaches it, that the power connectors are seated, and that the \
     supply is large enough; then measure again, as these figures were taken with clocks held down";
