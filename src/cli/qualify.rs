//! `rigscale qualify`: probe, calibrate, plan, launch, analyze, report, in a row, keeping every file between them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use clap::Args as ClapArgs;

use crate::launch::{Fit, Launched, Wanted, extended, plan};
use crate::record::{
    Arm, Device, Field, Grade, Manifest, NcclSettings, Outcome, Plan, TuneConditions, Tuned, read_yaml, write_yaml,
};
use crate::topology::PciAddress;
use crate::tune::{apply, nccl_variables};
use crate::units::Seconds;

use super::measure::{Extent, measure_into};
use super::progress::launch;
use super::session::{Session, interruptible, once};
use super::tune::{identity, installed_nccl, placed};
use super::verdict::{Shown, analyze_folder, exit_of, write_report};
use super::workload::{SAID_BY_PLAN, Workload};
use super::{CliError, Exit, Output};

/// Says with evidence whether this machine scales data-parallel training
///
/// Probes the machine, measures what its links carry, trains a transformer with each number of ranks in three arms (alone, together without exchange,
/// together with gradients reduced), and judges the scaling efficiency against the target. Keeps every file in a run
/// folder.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  rigscale qualify --quick                     a first verdict in under 3 minutes
  rigscale qualify --world 1,2 --target 0.95   another target
  rigscale qualify --plan reports/tuned/plan.yaml     the settings that `rigscale tune` found
  rigscale qualify --field order=A1234 -o reports/A1234

Exit codes: 0 pass, 1 rigscale failed, 2 usage, 3 below target, 4 fault, 5 hang, 6 inconclusive or not gradable")]
pub(super) struct Args {
    #[command(flatten)]
    workload: Workload,

    /// Run folder to create; `reports/<UTC time>_<machine>` if not given
    #[arg(short, long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Train as this plan says, such as the plan.yaml of `rigscale tune`, instead of what flags say; launches, time and
    /// target stay those of this command
    #[arg(long, value_name = "FILE", conflicts_with_all = SAID_BY_PLAN)]
    plan: Option<PathBuf>,

    /// Efficiency that has to be reached
    #[arg(long, value_name = "SHARE", default_value_t = 0.9, value_parser = parse_target)]
    target: f64,

    /// 3 launches in under 3 minutes: a first look, not for signing
    #[arg(long)]
    quick: bool,

    /// Launches of each arm, fixed beforehand; 5, or 3 with --quick, if not given
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=100))]
    launches: Option<u32>,

    /// Launches that may be added once if the first look is inconclusive; the error is split over both looks
    #[arg(long, value_name = "COUNT", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100))]
    extend: u32,

    /// Time for all launches: 15m, or 2m with --quick, if not given
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    budget: Option<Seconds>,

    /// Do not measure the links before the training, which takes about half a minute; the sheet says so
    #[arg(long)]
    no_measure: bool,

    /// Line for the sheet: build number, operator, order; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_field)]
    field: Vec<Field>,
}

/// Runs the qualification.
///
/// # Errors
/// See [`CliError`]; a machine that does not scale is a verdict, not an error.
pub(super) fn run(args: &Args, out: &Output) -> Result<Exit, CliError> {
    let given = args.plan.as_deref().map(read_yaml::<Plan>).transpose()?;
    let workload = given.as_ref().map_or_else(|| args.workload.clone(), |plan| args.workload.of_plan(plan));
    let mut session = Session::open(&workload, args.out.as_deref(), out)?;
    session.announce(out);
    let mut wanted = wanted(args, &workload, session.device)?;
    let tuned = given.and_then(|plan| plan.tuned);
    if let Some(tuned) = &tuned {
        take_settings(tuned, &mut session, &mut wanted, out)?;
    }
    let stop = interruptible()?;
    let links = measure_links(args, wanted.share_gpu, &mut session, (stop, out))?;
    let remark = once(out);
    let launcher = session.launcher(stop, &remark);
    let now = jiff::Timestamp::now();
    let plan = |wanted: &Wanted, fit: &Fit, step| Plan { tuned: tuned.clone(), ..plan(wanted, fit, step, now) };
    let draft = plan(&wanted, &session.fit, Seconds(1.0));
    out.remark("timing a step, so that the plan fits its budget");
    let calibration = launcher.calibrate(&draft)?;
    // where the first steps fail, the draft stands in the folder for what would have been launched
    let mut plan = calibration.as_ref().map_or(draft, |step| plan(&wanted, &session.fit, *step));
    plan.why.extend(links);
    write_yaml(&session.folder.plan(), &plan)?;
    announce(&plan, out);
    let mut end = match calibration {
        Ok(_) => launch(&launcher, &plan, out)?,
        Err(end) => end,
    };
    if end == Launched::Completed && plan.extension > 0 {
        Manifest::write(&session.folder)?;
        let first_look = analyze_folder(&session.folder)?;
        if first_look.verdict.outcome == Outcome::Inconclusive {
            out.remark(format!("inconclusive so far: {} more launches, as announced", plan.extension));
            plan = extended(&plan);
            write_yaml(&session.folder.plan(), &plan)?;
            end = launch(&launcher, &plan, out)?;
        }
    }
    Manifest::write(&session.folder)?;
    if end == Launched::Interrupted {
        let place = session.folder.path().display();
        out.remark(format!("interrupted; what was measured is kept: rigscale analyze {place}"));
        return Ok(Exit::Interrupted);
    }
    let analysis = analyze_folder(&session.folder)?;
    write_report(&session.folder, &analysis)?;
    out.emit(&Shown { analysis: &analysis, colour: out.colour() })
        .map_err(|source| CliError::Terminal { attempt: "print the verdict", source })?;
    out.remark(format!("report: {}", session.folder.path().join("report.html").display()));
    Ok(exit_of(analysis.verdict.outcome))
}

/// What the links of the GPUs carry, measured into the run folder before anything trains: what they show is part of the
/// evidence, a fault too. A sentence for the sheet; none on CPUs.
fn measure_links(
    args: &Args,
    share_gpu: bool,
    session: &mut Session,
    (stop, out): (&AtomicBool, &Output),
) -> Result<Option<String>, CliError> {
    let shares = session.fit.shares.iter();
    let gpus: Vec<PciAddress> = shares.filter_map(|share| share.gpu.as_ref()?.parse().ok()).collect();
    if gpus.is_empty() {
        return Ok(None);
    }
    if args.no_measure {
        return Ok(Some(
            "Links were not measured (--no-measure): nobody looked whether what GPUs send arrives.".into(),
        ));
    }
    if share_gpu {
        return Ok(Some("Links were not measured: the ranks share one GPU.".into()));
    }
    out.remark("measuring the links");
    let folder = session.folder.path().to_owned();
    let taken = measure_into(&folder, &mut session.look, &gpus, &Extent::quick(), (stop, out))?;
    let worst = taken.findings.iter().map(|finding| finding.severity).min();
    let found =
        worst.map_or_else(|| "nothing is wrong with them".into(), |worst| format!("the gravest finding is a {worst}"));
    out.remark(format!("  {found}"));
    Ok(Some(format!("Links were measured before the training (links.jsonl): {found}.")))
}

fn wanted(args: &Args, workload: &Workload, device: Device) -> Result<Wanted, CliError> {
    let launches = args.launches.unwrap_or(if args.quick { 3 } else { 5 });
    let budget = args.budget.unwrap_or(if args.quick { Seconds(120.0) } else { Seconds(900.0) });
    let config = workload.config(device)?;
    let order_seed = config.seed;
    Ok(Wanted {
        device,
        grade: grade(device, workload.share_gpu),
        config,
        arms: vec![Arm::Solo, Arm::Together, Arm::Ddp],
        target: args.target,
        launches,
        extension: args.extend,
        budget,
        nccl: workload.nccl(),
        share_gpu: workload.share_gpu,
        fields: args.field.clone(),
        order_seed,
    })
}

/// Places ranks as the tuner did, names its setting on the sheet, and warns where it was found elsewhere.
fn take_settings(tuned: &Tuned, session: &mut Session, wanted: &mut Wanted, out: &Output) -> Result<(), CliError> {
    let applied = apply(&tuned.setting, &wanted.config, &wanted.nccl);
    let applied = applied.map_err(|error| CliError::Usage(format!("--plan: {error}")))?;
    session.fit.shares = placed(&session.fit.shares, &applied);
    let setting = tuned.setting.to_string();
    out.remark(format!("settings of the plan: {setting}"));
    wanted.fields.push(Field { key: "Tuned".into(), value: setting });
    let mut here = identity(wanted, session, installed_nccl(session.device)?);
    own_conditions(tuned, &applied.nccl, &mut here.conditions);
    for difference in tuned.identity.differences(&here) {
        out.remark(format!("warning: the plan was tuned elsewhere: {difference}"));
        wanted.fields.push(Field { key: "Tuned elsewhere".into(), value: difference });
    }
    Ok(())
}

/// Takes out of what holds here what the plan itself has brought: its setting, which may also stand in a conf file by now.
fn own_conditions(tuned: &Tuned, told: &NcclSettings, here: &mut TuneConditions) {
    let own = nccl_variables(told, &BTreeMap::new());
    here.environment
        .retain(|name, value| tuned.identity.conditions.environment.contains_key(name) || own.get(name) != Some(value));
    if !tuned.setting.of("gradients").is_empty() {
        here.reduce_dtype = tuned.identity.conditions.reduce_dtype;
    }
}

/// What a verdict may be called.
pub(super) fn grade(device: Device, share_gpu: bool) -> Grade {
    match device {
        Device::Cpu => Grade::CpuRanks,
        Device::Cuda if share_gpu => Grade::Ungraded,
        Device::Cuda => Grade::Provisional,
    }
}

fn announce(plan: &Plan, out: &Output) {
    for line in &plan.why {
        out.remark(format!("  {line}"));
    }
    for skipped in &plan.skipped {
        out.remark(format!("  skipped: {}", skipped.why));
    }
}

pub(super) fn parse_target(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(target) if (0.01..=1.0).contains(&target) => Ok(target),
        _ => Err("an efficiency is between 0.01 and 1, as in --target 0.9".into()),
    }
}

fn parse_field(text: &str) -> Result<Field, String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => {
            Ok(Field { key: key.trim().into(), value: value.trim().into() })
        }
        _ => Err("give a name and a text, as in --field order=A1234".into()),
    }
}

/// `90s`, `15m` or `2h`: without a unit nobody knows which was meant.
pub(super) fn parse_duration(text: &str) -> Result<Seconds, String> {
    let digits = text.strip_suffix(['s', 'm', 'h']).unwrap_or_default();
    let factor = match &text[digits.len()..] {
        "h" => 3600.0,
        "m" => 60.0,
        _ => 1.0,
    };
    match digits.trim().parse::<f64>() {
        Ok(count) if (1.0..=86_400.0).contains(&(count * factor)) => Ok(Seconds(count * factor)),
        _ => Err("a duration is between 1s and 24h, as in --budget 20m".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Precision, Setting, TuneIdentity};

    #[test]
    fn what_the_plan_itself_sets_is_no_other_condition() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let identity = TuneIdentity {
            nccl: None,
            driver: None,
            topology_sha256: String::new(),
            device: Device::Cuda,
            model: String::new(),
            world: 2,
            batch: 1,
            context: 1,
            accumulate: 1,
            share_gpu: false,
            conditions: TuneConditions { reduce_dtype: Some(Precision::F32), ..TuneConditions::default() },
        };
        let setting = Setting::default().with("gradients", "reduce-dtype=bf16");
        let tuned = Tuned { identity, setting, gain: None };
        let told = NcclSettings { max_ctas: Some(4), ..NcclSettings::default() };
        let environment = BTreeMap::from([pair("NCCL_MAX_CTAS", "4"), pair("NCCL_NTHREADS", "128")]);
        let reduce_dtype = Some(Precision::Bf16);
        let mut here = TuneConditions { environment, reduce_dtype, ..TuneConditions::default() };
        own_conditions(&tuned, &told, &mut here);
        assert_eq!(here.environment, BTreeMap::from([pair("NCCL_NTHREADS", "128")]));
        assert_eq!(here.reduce_dtype, Some(Precision::F32));
    }

    #[test]
    fn durations_and_fields_are_read_as_people_write_them() {
        assert_eq!(parse_duration("15m"), Ok(Seconds(900.0)));
        assert_eq!(parse_duration("90s"), Ok(Seconds(90.0)));
        assert!(parse_duration("15").is_err(), "minutes or seconds?");
        assert_eq!(parse_duration("1.5h"), Ok(Seconds(5400.0)));
        assert!(parse_duration("m").is_err() && parse_duration("-3s").is_err() && parse_duration("99h").is_err());
        assert!(parse_duration("5µ").is_err());
        assert!(parse_field("order=A=1").is_ok_and(|field| field.value == "A=1"));
        assert!(parse_field("=x").is_err() && parse_field("order").is_err());
        assert!(parse_target("0").is_err() && parse_target("NaN").is_err() && parse_target("0.95").is_ok());
    }
}
