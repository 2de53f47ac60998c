//! Whether the evidence is the one that the plan asks for: on its machine, with its training, in full and unaltered.

use std::collections::BTreeSet;

use crate::record::{Arm, Device, Flag, Grade, Plan, RankFile, RunFiles, RunHead};

use super::flags::{and_more, flag, rank_files};

/// CPU time taken by a hypervisor beyond this share makes rates meaningless.
const STOLEN_MAX: f64 = 0.02;

/// So many altered files are named.
const ALTERED_NAMED: usize = 3;

/// What the host took from the ranks.
pub(super) fn host(files: &RunFiles, graded: &BTreeSet<&str>) -> Vec<Flag> {
    let quota = files.findings.iter().find(|finding| finding.code == "cpu-quota");
    // shares hold every CPU of their cores, and together all cores that the process may run on
    let quota = quota.filter(|_| files.plan.device == Device::Cpu);
    let quota =
        quota.map(|finding| flag("cpu-quota", true, format!("ranks were stopped by a quota: {}", finding.seen)));
    stolen_time(files, graded).into_iter().chain(stolen_unknown(files, graded)).chain(quota).collect()
}

fn stolen(file: &RankFile) -> Option<f64> {
    file.end.as_ref().and_then(|end| end.stolen).filter(|share| (0.0..=1.0).contains(share))
}

fn stolen_time(files: &RunFiles, graded: &BTreeSet<&str>) -> Option<Flag> {
    let above: Vec<(&str, f64)> = rank_files(files)
        .filter_map(|(trial, _, file)| Some((trial, stolen(file)?)))
        .filter(|(_, stolen)| *stolen > STOLEN_MAX)
        .collect();
    let (trial, most) = above.iter().max_by(|one, other| one.1.total_cmp(&other.1))?;
    let trials = above.iter().map(|(trial, _)| *trial).collect::<BTreeSet<_>>();
    let text = format!(
        "a hypervisor took up to {:.1} % of the CPU time ({trial}; {} of {} trials above {:.0} %)",
        most * 100.0,
        trials.len(),
        files.trials.len(),
        STOLEN_MAX * 100.0,
    );
    Some(flag("stolen-time", trials.iter().any(|trial| graded.contains(trial)), text))
}

/// What is unknown is not fine: where ranks run on CPUs, time that a hypervisor took is time that they lacked.
fn stolen_unknown(files: &RunFiles, graded: &BTreeSet<&str>) -> Option<Flag> {
    let lacks = |file: &RankFile| file.end.is_some() && stolen(file).is_none();
    let silent: BTreeSet<&str> =
        rank_files(files).filter(|(_, _, file)| lacks(file)).map(|(trial, ..)| trial).collect();
    let first = silent.first()?;
    let blocks = files.plan.device == Device::Cpu && silent.iter().any(|trial| graded.contains(trial));
    let text = format!("{}: whether a hypervisor took CPU time is not known", and_more(first, silent.len()));
    Some(flag("stolen-time-unknown", blocks, text))
}

/// What happened to the files after they were written.
pub(super) fn evidence(files: &RunFiles) -> Vec<Flag> {
    let mut flags = Vec::new();
    if !files.altered.is_empty() {
        let named = files.altered.iter().take(ALTERED_NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = match files.altered.len().saturating_sub(ALTERED_NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let text = format!("files are not as the run left them, the manifest says: {named}{more}");
        flags.push(flag("altered", true, text));
    }
    if !files.launch_recorded {
        let text = "launch.json is missing, so that nobody says how the launches ended";
        flags.push(flag("launch-unrecorded", true, text.into()));
    }
    flags
}

/// Ranks must run the same software, and device, shares, training and exchange that the plan says.
pub(super) fn training(files: &RunFiles) -> Vec<Flag> {
    let plan = &files.plan;
    let heads: Vec<&RunHead> = rank_files(files).map(|(_, _, file)| &file.head).collect();
    let mut flags = unequal_software(&heads);
    let mut first = |code: &str, does: &str, is: &dyn Fn(&RunHead) -> bool| {
        let found: Vec<&&RunHead> = heads.iter().filter(|head| is(head)).collect();
        if let Some(head) = found.first() {
            let who = format!("rank {} of {}", head.rank, head.trial);
            flags.push(flag(code, true, format!("{}: {does}", and_more(&who, found.len()))));
        }
    };
    first("unequal-device", "ran on another device than the plan says", &|head| head.device != plan.device);
    first("unequal-training", "trained something else than the plan says", &|head| head.config != plan.config);
    let shares = |head: &RunHead| {
        let trial = plan.trials.iter().find(|trial| trial.name == head.trial)?;
        plan.shares.get(*trial.shares.get(head.rank)?)
    };
    first("unequal-shares", "did not run on the share that the plan gave it", &|head| {
        shares(head).is_some_and(|share| *share != head.share)
    });
    first("no-exchange", "exchanged no gradients in an arm that must", &|head| must_exchange(head) && is_alone(head));
    first("undue-exchange", "exchanged gradients in an arm that must not", &|head| {
        head.arm != Arm::Ddp && !is_alone(head)
    });
    flags
}

fn must_exchange(head: &RunHead) -> bool {
    head.arm == Arm::Ddp && head.world > 1
}

fn is_alone(head: &RunHead) -> bool {
    match head.arm {
        Arm::Ddp => ["", "none", "solo"].contains(&head.communicator.as_str()),
        Arm::Solo | Arm::Together => head.communicator == "none",
    }
}

fn unequal_software(heads: &[&RunHead]) -> Vec<Flag> {
    let mut flags = Vec::new();
    let mut equal = |key: &str, values: BTreeSet<&str>| {
        if values.len() > 1 {
            let list = values.into_iter().collect::<Vec<_>>().join(", ");
            flags.push(flag("unequal-hosts", true, format!("{key} is not the same on all ranks and trials: {list}")));
        }
    };
    let keys: BTreeSet<&str> = heads.iter().flat_map(|head| head.software.keys().map(String::as_str)).collect();
    for key in keys {
        // only who exchanges over NCCL loads it
        let concerned = heads.iter().filter(|head| key != "nccl" || head.communicator == "nccl");
        equal(key, concerned.map(|head| head.software.get(key).map_or("not named", String::as_str)).collect());
    }
    equal("rigscale", heads.iter().map(|head| head.rigscale.as_str()).collect());
    let exchanging = heads.iter().filter(|head| must_exchange(head));
    equal("the exchange", exchanging.map(|head| head.communicator.as_str()).collect());
    flags
}

/// A plan that judges must hold every launch that it announces, each with all arms of every world size.
pub(super) fn plan(plan: &Plan) -> Option<Flag> {
    let lacking = || launches_lacking(plan).or_else(|| worlds_lacking(plan)).or_else(|| arms_lacking(plan));
    let text = if plan.grade == Grade::Ungraded { None } else { lacking() };
    text.map(|text| flag("plan-incomplete", true, text))
}

/// All launches from 1, without or with the extension.
fn launches_lacking(plan: &Plan) -> Option<String> {
    let launches: BTreeSet<u32> = plan.trials.iter().map(|trial| trial.launch).collect();
    let are_all = |count: u32| {
        launches.len() == count as usize && launches.first() == Some(&1) && launches.last() == Some(&count)
    };
    let announced = [Some(plan.launches), plan.launches.checked_add(plan.extension)];
    if announced.into_iter().flatten().any(are_all) {
        return None;
    }
    let list: Vec<String> = launches.iter().take(10).map(u32::to_string).collect();
    Some(format!(
        "the plan announces {} launches and an extension of {}, and holds trials of the launches {}{}",
        plan.launches,
        plan.extension,
        list.join(", "),
        if launches.len() > list.len() { ", …" } else { "" },
    ))
}

fn ddp_shares(plan: &Plan) -> BTreeSet<BTreeSet<usize>> {
    let ddp = plan.trials.iter().filter(|trial| trial.arm == Arm::Ddp);
    ddp.map(|trial| trial.shares.iter().copied().collect()).collect()
}

fn worlds_lacking(plan: &Plan) -> Option<String> {
    let announced: BTreeSet<usize> = plan.worlds.iter().copied().collect();
    let held: BTreeSet<usize> = ddp_shares(plan).iter().map(BTreeSet::len).collect();
    let differing: Vec<String> = announced.symmetric_difference(&held).map(usize::to_string).collect();
    (!differing.is_empty()).then(|| {
        format!("the plan's world sizes and its ddp trials disagree about N = {}", differing.join(" and N = "))
    })
}

fn arms_lacking(plan: &Plan) -> Option<String> {
    let launches: BTreeSet<u32> = plan.trials.iter().map(|trial| trial.launch).collect();
    let held: BTreeSet<(u32, Arm, BTreeSet<usize>)> =
        plan.trials.iter().map(|trial| (trial.launch, trial.arm, trial.shares.iter().copied().collect())).collect();
    let lacks = |launch: u32, arm, shares: &BTreeSet<usize>| !held.contains(&(launch, arm, shares.clone()));
    for shares in &ddp_shares(plan) {
        for launch in &launches {
            let solo = shares.iter().any(|share| lacks(*launch, Arm::Solo, &BTreeSet::from([*share])));
            let together = shares.len() > 1 && lacks(*launch, Arm::Together, shares);
            if lacks(*launch, Arm::Ddp, shares) || solo || together {
                return Some(format!("the plan's launch {launch} lacks an arm at N = {}", shares.len()));
            }
        }
    }
    None
}
