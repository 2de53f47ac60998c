//! The verdict: what the evidence allows to say.
//!
//! Pass needs every graded world size to reach the target. Each is tested with the full one-sided error, because all
//! must hold at once (intersection-union test: Berger, "Multiparameter hypothesis testing and acceptance sampling",
//! 1982). Fail needs only one, so that its error is shared among them (Holm, whose first step is Bonferroni's).

use crate::record::{
    Device, EndReason, Finding, Flag, Grade, Origin, Outcome, Plan, Point, RankFile, RunFiles, Severity, Verdict,
};
use crate::stats::{LogRatios, bonferroni, holm};

use super::flags::{NOT_SYNCHRONISED, rank_files};
use super::sample::{Cell, Sample};
use super::{confidence, point};

/// Fewer completed launches give no verdict, however small their scatter.
const LAUNCHES_MIN: usize = 3;

/// Fewer planned launches are no qualification to sign.
const LAUNCHES_SIGNED: u32 = 5;

/// More launches than this do not count as a way to settle a verdict.
const LAUNCHES_MAX: usize = 200;

/// What a verdict rests on.
pub(super) struct Evidence<'a> {
    pub(super) origin: Origin,
    pub(super) cells: &'a [Cell<'a>],
    /// The points of those cells that have launches.
    pub(super) points: &'a [Point],
    pub(super) flags: &'a [Flag],
}

/// One graded world size, judged.
struct Judged<'a> {
    world: usize,
    /// None without any complete launch.
    point: Option<&'a Point>,
    ratios: Option<LogRatios>,
    reaches: bool,
    /// Below the target, corrected for the number of world sizes.
    below: bool,
}

/// The verdict. Where several outcomes hold: hang, fault, interrupted, not graded, fail, inconclusive, pass.
pub(super) fn verdict(files: &RunFiles, evidence: &Evidence<'_>) -> Verdict {
    let plan = &files.plan;
    let judged = judge(plan, evidence);
    let (outcome, headline, mut reasons) = decide(files, evidence, &judged);
    reasons.extend(explain(plan, evidence, &judged));
    let blocked = evidence.flags.iter().any(|flag| flag.blocks);
    let settles = outcome == Outcome::Inconclusive && !blocked;
    let launches_needed = if settles { launches_needed(plan, &judged) } else { None };
    if settles && launches_needed.is_none() {
        reasons.push(format!("At the scatter seen, fewer than {LAUNCHES_MAX} launches would not settle it."));
    }
    Verdict { outcome, headline: titled(plan, &headline), reasons, launches_needed }
}

fn judge<'a>(plan: &Plan, evidence: &Evidence<'a>) -> Vec<Judged<'a>> {
    let mut points = evidence.points.iter();
    let mut judged: Vec<Judged<'a>> = Vec::new();
    for cell in evidence.cells {
        let point = if cell.samples.is_empty() { None } else { points.next() };
        if cell.world > 1 {
            let ratios = point.map(|_| point::ratios(&cell.samples, Sample::efficiency));
            let enough = cell.samples.len() >= LAUNCHES_MIN;
            let reaches = enough && point.is_some_and(|point| point.efficiency.low >= plan.target);
            judged.push(Judged { world: cell.world, point, ratios, reaches, below: false });
        }
    }
    let p_value = |judged: &Judged<'_>| {
        let enough = judged.ratios.filter(|ratios| ratios.count() >= LAUNCHES_MIN);
        enough.and_then(|ratios| ratios.p_at_least(plan.target)).unwrap_or(1.0)
    };
    let p_values: Vec<f64> = judged.iter().map(p_value).collect();
    for (judged, below) in judged.iter_mut().zip(holm(&p_values, one_sided(plan))) {
        judged.below = below;
    }
    judged
}

/// The error on one side at one look.
fn one_sided(plan: &Plan) -> f64 {
    (1.0 - confidence(plan.extension)) / 2.0
}

fn decide(files: &RunFiles, evidence: &Evidence<'_>, judged: &[Judged<'_>]) -> (Outcome, String, Vec<String>) {
    let plan = &files.plan;
    if let Some(accident) = accident(files, evidence) {
        return accident;
    }
    if let Some(why) = not_graded(plan, evidence.origin, judged) {
        return (Outcome::NotGraded, format!("not graded: {why}"), Vec::new());
    }
    let blocking: Vec<&Flag> = evidence.flags.iter().filter(|flag| flag.blocks).collect();
    if let Some(first) = blocking.first() {
        let reasons = blocking.iter().map(|flag| format!("No verdict: {} ({}).", flag.text, flag.code)).collect();
        return (Outcome::Inconclusive, format!("inconclusive: {}", first.text), reasons);
    }
    let target = plan.target;
    let below: Vec<&Judged<'_>> = judged.iter().filter(|judged| judged.below).collect();
    if !below.is_empty() {
        return (Outcome::Fail, format!("below {target}: {}", list(plan, &below)), Vec::new());
    }
    let open: Vec<&Judged<'_>> = judged.iter().filter(|judged| !judged.reaches).collect();
    if !open.is_empty() {
        return (Outcome::Inconclusive, format!("inconclusive: {}", list(plan, &open)), Vec::new());
    }
    let all: Vec<&Judged<'_>> = judged.iter().collect();
    (Outcome::Pass, format!("pass, at least {target}: {}", list(plan, &all)), Vec::new())
}

/// Hang, fault or interruption: found by a launch, or seen in the files.
fn accident(files: &RunFiles, evidence: &Evidence<'_>) -> Option<(Outcome, String, Vec<String>)> {
    let all = |is: &dyn Fn(&Finding) -> bool| {
        let found: Vec<&Finding> = files.findings.iter().filter(|finding| is(finding)).collect();
        let said = found.iter().map(|finding| format!("{} ({}).", finding.seen, finding.code)).collect::<Vec<_>>();
        found.first().map(|first| (first.seen.clone(), said))
    };
    if let Some((first, reasons)) = all(&|finding| finding.code.starts_with("hang-")) {
        return Some((Outcome::Hang, format!("hang: {first}"), reasons));
    }
    if let Some((first, reasons)) = all(&|finding| finding.severity == Severity::Fault && finding.code != "interrupted")
    {
        return Some((Outcome::Fault, format!("fault: {first}"), reasons));
    }
    if let Some(flag) = evidence.flags.iter().find(|flag| flag.code == NOT_SYNCHRONISED) {
        return Some((Outcome::Fault, format!("fault: {}", flag.text), Vec::new()));
    }
    let ended = |reason| {
        let is_so = |file: &RankFile| file.end.as_ref().is_some_and(|end| end.reason == reason);
        rank_files(files).find(|(_, _, file)| is_so(file))
    };
    if let Some((trial, rank, _)) = ended(EndReason::Failed) {
        let reason = format!("Rank {rank} of {trial} wrote that it failed, and no launch said why.");
        return Some((Outcome::Fault, format!("fault: rank {rank} of {trial} failed"), vec![reason]));
    }
    if let Some((first, reasons)) = all(&|finding| finding.code == "interrupted") {
        return Some((Outcome::Interrupted, format!("interrupted: {first}"), reasons));
    }
    let (trial, ..) = ended(EndReason::Interrupted)?;
    Some((Outcome::Interrupted, format!("interrupted in {trial}"), Vec::new()))
}

fn not_graded(plan: &Plan, origin: Origin, judged: &[Judged<'_>]) -> Option<String> {
    match origin {
        Origin::Simulated => return Some("the numbers are predicted, not measured".into()),
        Origin::SharedGpu => return Some("several ranks shared one GPU".into()),
        Origin::Measured => {}
    }
    if plan.grade == Grade::Ungraded {
        return Some("this run is not a qualification".into());
    }
    let single = judged.is_empty();
    single.then(|| format!("only one {} was trained on, so that nothing can scale", noun(plan, 1)))
}

/// What ranks run on, for people.
fn noun(plan: &Plan, count: usize) -> &'static str {
    match (plan.device, count) {
        (Device::Cuda, 1) => "GPU",
        (Device::Cuda, _) => "GPUs",
        (Device::Cpu, 1) => "CPU rank",
        (Device::Cpu, _) => "CPU ranks",
    }
}

/// What a verdict of this plan may be called, whatever the plan calls it: CPU ranks never say anything about GPUs, and
/// a signed qualification has at least 5 launches.
pub(super) fn grade(plan: &Plan) -> Grade {
    match (plan.grade, plan.device) {
        (Grade::Ungraded, _) => Grade::Ungraded,
        (_, Device::Cpu) => Grade::CpuRanks,
        (Grade::Signed, Device::Cuda) if plan.launches < LAUNCHES_SIGNED => Grade::Provisional,
        (grade, Device::Cuda) => grade,
    }
}

/// The headline with what it may be called.
fn titled(plan: &Plan, headline: &str) -> String {
    match grade(plan) {
        Grade::Provisional => format!("Provisional: {headline}"),
        Grade::CpuRanks => format!("CPU ranks: says nothing about GPUs; {headline}"),
        Grade::Signed | Grade::Ungraded => headline.into(),
    }
}

/// `0.953 at 2 GPUs (0.941 to 0.965), …`
fn list(plan: &Plan, judged: &[&Judged<'_>]) -> String {
    let say = |judged: &&Judged<'_>| {
        let place = format!("at {} {}", judged.world, noun(plan, judged.world));
        match judged.point {
            None => format!("no complete launch {place}"),
            Some(point) => {
                let [estimate, low, high] = digits(point, plan.target);
                match point.efficiency.is_known() {
                    true => format!("{estimate} {place} ({low} to {high})"),
                    false => format!("{estimate} {place} (one launch, no interval)"),
                }
            }
        }
    };
    judged.iter().map(say).collect::<Vec<_>>().join(", ")
}

/// Estimate and bounds with three decimals, or as many more (at most 6) as tell each of them from the target.
fn digits(point: &Point, target: f64) -> [String; 3] {
    [point.efficiency.estimate, point.efficiency.low, point.efficiency.high].map(|value| {
        let same = |places: &usize| format!("{value:.places$}") == format!("{target:.places$}");
        let places = (3..6).find(|places| !same(places)).unwrap_or(6);
        format!("{value:.places$}")
    })
}

/// The sentences about each world size, and about how the error is shared.
fn explain(plan: &Plan, evidence: &Evidence<'_>, judged: &[Judged<'_>]) -> Vec<String> {
    let mut reasons: Vec<String> = judged.iter().map(|judged| sentence(plan, judged, judged_count(evidence))).collect();
    reasons.extend(judged.iter().filter_map(|judged| judged.point).map(|point| split(plan, point)));
    if plan.extension > 0 {
        reasons.push(format!(
            "The plan announces one extension of {} launches, so that each look is made at {} % confidence.",
            plan.extension,
            percent(confidence(plan.extension)),
        ));
    }
    reasons
}

fn judged_count(evidence: &Evidence<'_>) -> usize {
    evidence.cells.iter().filter(|cell| cell.world > 1).count()
}

fn sentence(plan: &Plan, judged: &Judged<'_>, worlds: usize) -> String {
    let (target, place) = (plan.target, format!("At {} {}", judged.world, noun(plan, judged.world)));
    let (Some(point), Some(ratios)) = (judged.point, judged.ratios) else {
        return format!("{place} no launch has all three arms.");
    };
    let [estimate, low, high] = digits(point, target);
    let count = ratios.count();
    if count < 2 {
        return format!("{place} the efficiency is {estimate} in the only complete launch, which shows no scatter.");
    }
    let level = percent(confidence(plan.extension));
    let head =
        format!("{place} the efficiency is {estimate}, {level} % interval {low} to {high} over {count} launches");
    let wide = ratios.interval(1.0 - 2.0 * bonferroni(one_sided(plan), worlds));
    match (judged.reaches, judged.below) {
        _ if count < LAUNCHES_MIN => format!("{head}; fewer than {LAUNCHES_MIN} launches give no verdict."),
        (true, _) => format!("{head}: the lower bound reaches {target}."),
        (_, true) => {
            format!("{head}: the upper bound is below {target}, also when corrected for {worlds} world sizes.")
        }
        _ if point.efficiency.high < target => format!(
            "{head}: the upper bound is below {target}, but not when corrected for {worlds} world sizes ({:.4}).",
            wide.map_or(point.efficiency.high, |(_, high)| high),
        ),
        _ => format!("{head}: {target} lies inside."),
    }
    .replace(", also when corrected for 1 world sizes", "")
}

/// Where the efficiency goes. Of communication, what the rank that arrives last loses: the others wait longer, for it.
fn split(plan: &Plan, point: &Point) -> String {
    let loss = &point.loss;
    let factors = format!(
        "At {} {} {:.3} = silicon {:.3} × straggler {:.3} (jitter {:.3}) × communication {:.3}",
        point.world,
        noun(plan, point.world),
        point.efficiency.estimate,
        point.silicon.estimate,
        point.straggler.estimate,
        point.jitter.estimate,
        point.comm.estimate,
    );
    if loss.total_s.0 <= 0.0 {
        return format!("{factors}; communication costs nothing that stands out of the noise.");
    }
    format!(
        "{factors}; communication costs the rank that arrives last {} of a step of {}: {} exposed, {} in slower forward \
         and backward passes, {} in a slower optimizer, {} unexplained.",
        loss.total_s, point.step_s, loss.exposed_s, loss.slowdown_s, loss.optimizer_s, loss.remainder_s,
    )
}

fn percent(share: f64) -> f64 {
    (share * 1000.0).round() / 10.0
}

/// How many launches more would settle the verdict at the scatter seen: one world size clearly below the target, or
/// all of them clearly at it. None if some estimate is at the target, or more than 200 would be needed.
fn launches_needed(plan: &Plan, judged: &[Judged<'_>]) -> Option<u32> {
    let error = one_sided(plan);
    let count = |judged: &Judged<'_>, error: f64| {
        let count = judged.ratios?.count_that_excludes(plan.target, 1.0 - 2.0 * error, LAUNCHES_MAX)?;
        u32::try_from(count.max(LAUNCHES_MIN).saturating_sub(judged.ratios?.count())).ok()
    };
    let below: Vec<_> =
        judged.iter().filter(|judged| judged.ratios.is_some_and(|ratios| ratios.estimate() < plan.target)).collect();
    let launches = match below.is_empty() {
        true => judged.iter().map(|judged| count(judged, error)).collect::<Option<Vec<_>>>()?.into_iter().max(),
        false => below.iter().filter_map(|below| count(below, bonferroni(error, judged.len()))).min(),
    };
    launches.map(|count| count.max(1))
}
