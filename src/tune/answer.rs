//! What a search found, as people and programs take it: sentences, `nccl.conf`, exports, the tuner plugin's table.

use sha2::{Digest, Sha256};

use crate::record::{
    Device, Finding, SCHEMA, Setting, TuneCell, TuneConfirmed, TuneHead, TuneNeed, TunePredicted, TuneResult,
    TuneStanding,
};
use crate::topology::{LinkEnd, Reading, Topology};
use crate::units::{Bytes, Seconds};

use super::forms::{Forms, bound};
use super::race::INDIFFERENT;
use super::search::{Confirmed, Ended, Found};
use super::space::{Applied, Space};

/// What an answer says beside what was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Binding<'a> {
    /// What was searched.
    pub head: &'a TuneHead,
    /// The training and NCCL's settings with the best setting applied.
    pub applied: &'a Applied,
    /// Efficiency that is wanted.
    pub target: f64,
    /// Size at which a bucket is closed by default.
    pub bucket_bytes: Bytes,
    /// Bandwidth that the target needs and that there is; not told of CPU ranks, between which no link lies.
    pub need: Option<TuneNeed>,
    /// Channels of collectives with the best setting, as NCCL's log told them; none where it did not.
    pub channels: Option<u32>,
    /// What is wrong with NCCL's settings that were there already.
    pub warnings: Vec<Finding>,
}

/// The answer in every form.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// `tune.json`.
    pub result: TuneResult,
    /// `nccl.conf`.
    pub nccl_conf: String,
    /// `tuner.csv`, for NCCL's example tuner plugin, or why no table does what was measured.
    pub tuner_csv: Result<String, String>,
    /// `settings.sh`.
    pub exports: String,
}

/// The answer to a search; none where the default was never launched to its end.
#[must_use]
pub fn answer(found: &Found, binding: &Binding<'_>) -> Option<Answer> {
    let [default_step, best_step] = found.steps()?;
    let efficiencies = found.efficiencies();
    let efficiency = |which: usize| efficiencies.as_ref().map(|both| both[which]);
    let standing = |setting: &Setting, step_s: Seconds, which: usize| TuneStanding {
        setting: setting.clone(),
        step_s,
        efficiency: efficiency(which),
    };
    let head = binding.head;
    let short = efficiency(1).is_some_and(|it| it.high < binding.target);
    let mut result = TuneResult {
        schema: SCHEMA,
        rigscale: env!("CARGO_PKG_VERSION").into(),
        origin: head.origin,
        identity: head.identity.clone(),
        sentences: Vec::new(),
        ended: ended(found, head),
        bucket_bytes: binding.bucket_bytes,
        default: standing(&Setting::default(), default_step, 0),
        best: standing(&found.best, best_step, 1),
        gain: found.confirmed.as_ref().filter(|it| it.accepted).map(|it| it.gain),
        confirmed: found.confirmed.as_ref().map(confirmed),
        target: binding.target,
        need: binding.need.filter(|_| short && head.identity.device == Device::Cuda),
        space: Space { knobs: head.knobs.clone(), left_out: Vec::new() }.size(),
        tried: found.ledger.tried(),
        launches: found.launches,
        wall_s: found.spent,
        cells: cells(found),
        knobs: head.knobs.clone(),
        left_out: head.left_out.clone(),
        hopeless: found.hopeless.iter().map(predicted).collect(),
        findings: found.ledger.faults().map(|(_, finding)| finding.clone()).collect(),
        warnings: binding.warnings.clone(),
    };
    result.sentences = sentences(found, &result);
    let forms = Forms { result: &result, applied: binding.applied, channels: binding.channels };
    let (nccl_conf, tuner_csv, exports) = (forms.conf(), forms.csv(), forms.exports());
    Some(Answer { result, nccl_conf, tuner_csv, exports })
}

fn confirmed(it: &Confirmed) -> TuneConfirmed {
    TuneConfirmed { setting: it.setting.clone(), pairs: it.pairs.clone(), gain: it.gain, accepted: it.accepted }
}

fn ended(found: &Found, head: &TuneHead) -> String {
    let tried = found.ledger.tried();
    match found.ended {
        Ended::Settled => format!("no knob promised more after {tried} settings{}", unturned(found, head)),
        Ended::Settings => {
            format!("{tried} settings were launched, as many as allowed{}", unturned(found, head))
        }
        Ended::Time => format!(
            "the time was over after {tried} settings{}; the same folder with more time goes on",
            unturned(found, head)
        ),
        Ended::DefaultFailed => format!("{} could not be launched with everything left alone", head.identity.model),
    }
}

/// The knobs that no launch has turned, in words; nothing where each was.
fn unturned(found: &Found, head: &TuneHead) -> String {
    let turned = |knob: &str| found.ledger.cells().any(|(setting, _)| !setting.of(knob).is_empty());
    let names: Vec<&str> = head.knobs.iter().map(|knob| knob.name.as_str()).filter(|knob| !turned(knob)).collect();
    if names.is_empty() { String::new() } else { format!(", without turning {}", names.join(", ")) }
}

fn cells(found: &Found) -> Vec<TuneCell> {
    let cell = |(setting, cell): (&Setting, &super::ledger::Cell)| TuneCell {
        setting: setting.clone(),
        stage: cell.stage.clone(),
        steps_s: cell.logs.iter().map(|log| Seconds(log.exp())).collect(),
        fate: if cell.fate.is_empty() { "what all else was compared with".to_owned() } else { cell.fate.clone() },
    };
    found.ledger.cells().map(cell).collect()
}

fn predicted((setting, step): &(Setting, Seconds)) -> TunePredicted {
    TunePredicted { setting: setting.clone(), step_s: *step }
}

/// Words with an end.
fn sentence(words: &str) -> String {
    format!("{}.", words.trim_end_matches('.'))
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn sentences(found: &Found, result: &TuneResult) -> Vec<String> {
    let ranks = result.identity.world;
    let mut said = Vec::new();
    said.push(verdict(found, result));
    for setting in &found.failed_again {
        said.push(format!("{setting} had looked best, but failed when it was launched again, and is out."));
    }
    if let (Some(default), Some(best)) = (result.default.efficiency, result.best.efficiency) {
        let text = |it: crate::record::Interval| format!("{:.3} ({:.3} to {:.3})", it.estimate, it.low, it.high);
        said.push(match result.gain {
            Some(_) => format!("Efficiency at {ranks} ranks: {} instead of {}.", text(best), text(default)),
            None => format!("Efficiency at {ranks} ranks: {}.", text(default)),
        });
    }
    said.extend(short_of(result));
    let failed: Vec<String> =
        found.ledger.faults().map(|(setting, finding)| format!("{setting} ({})", finding.code)).collect();
    if !failed.is_empty() {
        let launches = if failed.len() == 1 { "launch" } else { "launches" };
        said.push(format!("{} {launches} failed: {}.", failed.len(), failed.join("; ")));
    }
    for warning in &result.warnings {
        said.push(format!("Set already: {} {}", sentence(&warning.seen), warning.remedy));
    }
    if result.identity.device == Device::Cpu {
        said.push("CPU ranks: this says nothing about GPUs.".to_owned());
    }
    said.push(format!("The result holds for {}.", bound(result)));
    said
}

/// What was found, in one sentence that claims no more than was seen.
fn verdict(found: &Found, result: &TuneResult) -> String {
    match (&found.confirmed, &result.gain) {
        (Some(_), Some(gain)) => format!(
            "{} saves {} of the default's step ({} to {}, 95 % interval on fresh launches): {} instead of {}.",
            result.best.setting,
            percent(gain.estimate),
            percent(gain.low),
            percent(gain.high),
            result.best.step_s,
            result.default.step_s,
        ),
        (Some(other), None) => {
            let seen = format!(
                "{} looked best, and saved {} on {} pairs of fresh launches (95 % interval {} to {})",
                other.setting,
                percent(other.gain.estimate),
                other.pairs.len(),
                percent(other.gain.low),
                percent(other.gain.high),
            );
            let unseen = other.gain.high.max(0.0);
            match (unseen < INDIFFERENT, other.cut_short) {
                (true, _) => format!("Nothing beats the default: {seen}."),
                (false, true) => format!(
                    "Whether anything beats the default could not be told in the time: {seen}, so that a gain of up to {} \
                     would go unseen; --budget gives more.",
                    percent(unseen)
                ),
                (false, false) => format!(
                    "Nothing is known to beat the default: {seen}, which is not above noise; a gain of up to {} would go \
                     unseen.",
                    percent(unseen)
                ),
            }
        }
        _ if result.tried < 2 => {
            "The time was over before any other setting was launched: give more with --budget.".to_owned()
        }
        _ => format!(
            "Nothing is known to beat the default: of {} settings launched none was faster than it by more than noise ({} \
             from launch to launch).",
            result.tried,
            percent(found.ledger.scatter().deviation),
        ),
    }
}

/// What is said where no setting reached the target.
fn short_of(result: &TuneResult) -> Option<String> {
    let target = result.target;
    if result.identity.device == Device::Cpu {
        let short = result.best.efficiency.is_some_and(|efficiency| efficiency.high < target);
        return short.then(|| {
            format!(
                "No setting reached {target}: ranks on CPU cores share memory and cores, and no link lies between them whose \
                 bandwidth could be missing."
            )
        });
    }
    let need = result.need?;
    Some(match need.needed {
        Some(needed) => format!(
            "No setting reached {target}: it needs {needed} of bus bandwidth, the link gives {} (if the exchange alone is \
             to blame).",
            need.given
        ),
        None => format!("No setting reached {target}, and no bandwidth would: the ranks lose time elsewhere."),
    })
}

/// SHA-256 over what of a machine decides how gradients travel, in hexadecimal: processor, cores, bridges, the most that
/// each end of a link offers, what sends peers a way about (ACS), GPUs and the peer access between them. What changes from minute to minute (clocks, a link asleep) takes no part.
#[must_use]
pub fn topology_hash(topology: &Topology) -> String {
    fn known<T: std::fmt::Debug>(fact: &Reading<T>) -> String {
        fact.as_ref().map_or_else(|_| "?".to_owned(), |fact| format!("{fact:?}"))
    }
    let end = |link: &LinkEnd| format!("{} {}", known(&link.gen_max), known(&link.width_max));
    let mut lines = vec![
        format!("cpu {} {}", known(&topology.cpu.model), known(&topology.cpu.online)),
        format!("iommu {}", known(&topology.iommu.mode)),
    ];
    lines.extend(topology.numa.iter().flatten().map(|node| format!("node {} {}", node.node, known(&node.cpus))));
    let above = |parent: &Option<crate::topology::PciAddress>| parent.map(|at| at.to_string()).unwrap_or_default();
    let bridge = |it: &crate::topology::Bridge| {
        format!("bridge {} {} {} acs {}", it.address, above(&it.parent), end(&it.link), known(&it.pcie.acs))
    };
    lines.extend(topology.bridges.iter().map(bridge));
    let peers = topology.peers.iter();
    lines.extend(peers.map(|it| format!("peer {} {} {} {}", it.from, it.to, known(&it.read), known(&it.write))));
    lines.extend(
        topology
            .nvidia_gpus()
            .map(|gpu| format!("gpu {} {} {} {}", gpu.address, above(&gpu.parent), known(&gpu.id), end(&gpu.link))),
    );
    Sha256::digest(lines.join("\n")).iter().map(|byte| format!("{byte:02x}")).collect()
}
