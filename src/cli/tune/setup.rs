//! What a search needs before its first launch: the machine, the space, the length of a launch, and what is there already.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use crate::cli::look::nccl_in_force;
use crate::cli::session::{Session, Survey, once};
use crate::cli::train::{failed, wanted};
use crate::cli::workload::WORLDS;
use crate::cli::{CliError, Exit, Output};
use crate::device::cuda::NcclLibrary;
use crate::launch::{Fit, Launched, Wanted, plan};
use crate::predict::{Alone, NcclVersion, from_topology};
use crate::probe::transports;
use crate::record::{
    Arm, Device, Finding, FolderLock, NcclSettings, Origin, Plan, RecordError, RunFolder, Setting, Share,
    TuneConditions, TuneHead, TuneIdentity, TuneTrial, TuneWriter, read_rank_file, read_tune_file, tune_trials,
};
use crate::topology::{PciAddress, PeerStatus, Topology};
use crate::tune::{Applied, Host, KNOBS, Outlook, Space, apply, nccl_variables, topology_hash};
use crate::units::Seconds;

use super::Args;
use super::place::{self, Asked};

/// Counted steps of a launch: fewer say too little, more nothing new.
const COUNTED: (f64, f64) = (8.0, 400.0);

/// The fewest with `--quick`: a median of so many.
const COUNTED_QUICK: f64 = 4.0;

/// What all launches of a search have in common.
pub(super) struct Setup {
    /// The machine and the folder.
    pub(super) session: Session,
    /// The training with everything left alone, at the largest number of ranks.
    pub(super) base: Plan,
    /// What is searched.
    pub(super) head: TuneHead,
    /// Time for all launches.
    pub(super) budget: Seconds,
    /// The model of the machine, where there is one.
    pub(super) outlook: Option<Outlook>,
    /// Launches of an earlier call into this folder.
    pub(super) recorded: Vec<TuneTrial>,
    /// What is wrong with NCCL's settings that are there already.
    pub(super) warnings: Vec<Finding>,
    /// Keeps others out of the folder.
    _lock: FolderLock,
}

impl Setup {
    /// Looks at the machine, times a step, and begins the log; or finds what an earlier call has left and goes on with it.
    /// The exit code where not even a step could be timed.
    ///
    /// # Errors
    /// See [`CliError`]; the folder is of another search.
    pub(super) fn of(args: &Args, stop: &AtomicBool, out: &Output) -> Result<Result<Self, Exit>, CliError> {
        // where no numbers of ranks were named, all GPUs are tuned
        let survey = Survey::of(&args.workload, args.workload.world == WORLDS, out)?;
        let fit = largest(&survey.fit)?;
        let nccl = installed_nccl(survey.device)?;
        let place = place::take(args.out.as_deref(), &survey.look.topology)?;
        let session = survey.settled(place.folder);
        let mut wanted = wanted(&args.workload, session.device)?;
        let identity = identity(&wanted, &session, nccl.clone());
        inherited(&identity.conditions, out);
        let warnings = session.look.told(&wanted.nccl, session.device);
        warnings.iter().for_each(|it| out.remark(format!("{}: {} {}", it.severity, it.seen, it.remedy)));
        let host = host(args, &session, &wanted, nccl.as_deref());
        let mut space = Space::of(&host);
        if args.sweep {
            space = space.thinned(args.grid as usize);
        }
        let mut head = TuneHead {
            knobs: space.knobs,
            left_out: space.left_out,
            seed: wanted.order_seed,
            sweep: args.sweep,
            ..TuneHead::begun(origin(&wanted), title(&wanted, &session), identity, jiff::Timestamp::now())
        };
        let (base, recorded) = match place.before {
            Some(before) => {
                let (config, nccl, steps) = (&wanted.config, &wanted.nccl, args.workload.steps);
                let asked = Asked { head: &head, config, steps: steps.map(|steps| steps as usize), nccl, fit: &fit };
                place::same_search(session.folder.path(), &before, &asked)?;
                session.announce(out);
                head = before.file.head;
                (before.base, before.file.trials)
            }
            None => {
                session.look.write(session.folder.path())?;
                session.announce(out);
                match timed(args, &session, &mut wanted, &fit, stop, out)? {
                    Ok((base, warm_up)) => {
                        (head.steps, head.warm_up_steps) = (base.config.steps, warm_up);
                        begin(&session.folder, &base, &head)?;
                        (base, Vec::new())
                    }
                    Err(Some(finding)) => return Ok(Err(failed(&session.folder, &wanted.config.model, finding, out)?)),
                    Err(None) => return Ok(Err(interrupted(&session.folder, out))),
                }
            }
        };
        let outlook = outlook(&session, &base, nccl.as_deref());
        let budget = args.budget.unwrap_or(Seconds(if args.quick { 90.0 } else { 1200.0 }));
        Ok(Ok(Self { session, base, head, budget, outlook, recorded, warnings, _lock: place.lock }))
    }

    /// The space that is searched.
    pub(super) fn space(&self) -> Space {
        Space { knobs: self.head.knobs.clone(), left_out: self.head.left_out.clone() }
    }

    /// The training with a setting.
    ///
    /// # Errors
    /// The setting is none of this version's.
    pub(super) fn applied(&self, setting: &Setting) -> Result<Applied, CliError> {
        apply(setting, &self.base.config, &self.base.nccl).map_err(|error| CliError::Usage(error.to_string()))
    }

    /// Channels that NCCL ran with a setting, as the last launch of it tells; none on CPUs, or where the log did not say.
    ///
    /// # Errors
    /// The log of launches cannot be read.
    pub(super) fn channels(&self, setting: &Setting) -> Result<Option<u32>, CliError> {
        let file = read_tune_file(&tune_trials(self.session.folder.path()))?;
        let of_setting = |it: &&TuneTrial| it.setting == *setting && it.arm == Arm::Ddp && it.step_s.is_some();
        let read = |trial: &TuneTrial| {
            let name = format!("{:04}_{}_ddp", trial.index, trial.stage);
            read_rank_file(&self.session.folder.rank(&name, 0)).ok()?.head.transport?.channels
        };
        Ok(file.trials.iter().rev().filter(of_setting).find_map(read))
    }

    /// The base plan with what a setting makes of it.
    pub(super) fn plan_with(&self, applied: &Applied) -> Plan {
        Plan {
            config: applied.config.clone(),
            nccl: applied.nccl.clone(),
            shares: placed(&self.base.shares, applied),
            ..self.base.clone()
        }
    }
}

/// Writes what a search begins with: the plan of its launches, and a log without any.
///
/// # Errors
/// A file cannot be written.
fn begin(folder: &RunFolder, base: &Plan, head: &TuneHead) -> Result<(), RecordError> {
    place::write_base(folder, base)?;
    TuneWriter::create(&tune_trials(folder.path()), head).map(drop)
}

/// Says how to go on after an interruption.
pub(super) fn interrupted(folder: &RunFolder, out: &Output) -> Exit {
    out.remark(format!("interrupted; the same command with -o {} goes on", folder.path().display()));
    Exit::Interrupted
}

/// The shares with the threads and the freedom that a setting gives them.
pub(in crate::cli) fn placed(shares: &[Share], applied: &Applied) -> Vec<Share> {
    let mut all: Vec<usize> = shares.iter().flat_map(|share| share.cpus.iter().copied()).collect();
    all.sort_unstable();
    all.dedup();
    let place = |share: &Share| match applied.pinned {
        true => Share { threads: applied.threads, ..share.clone() },
        false => Share { threads: applied.threads.or(Some(share.cpus.len())), cpus: all.clone(), ..share.clone() },
    };
    shares.iter().map(place).collect()
}

/// The largest world alone: what is tuned.
fn largest(fit: &Fit) -> Result<Fit, CliError> {
    match fit.worlds.last() {
        Some(world @ 2..) => Ok(Fit { shares: fit.shares.clone(), worlds: vec![*world], skipped: Vec::new() }),
        _ => Err(CliError::Usage("--world: one rank exchanges nothing; tuning takes at least 2".into())),
    }
}

/// Times a step, and plans launches of the length that the search wants; or what went wrong, nothing where the user
/// interrupted.
fn timed(
    args: &Args,
    session: &Session,
    wanted: &mut Wanted,
    fit: &Fit,
    stop: &AtomicBool,
    out: &Output,
) -> Result<Result<(Plan, usize), Option<Finding>>, CliError> {
    let now = jiff::Timestamp::now();
    let remark = once(out);
    out.remark("timing a step, so that launches are as long as they must be");
    let draft = plan(wanted, fit, Seconds(1.0), now);
    let step = match session.launcher(stop, &remark).calibrate(&draft)? {
        Ok(step) => step,
        Err(Launched::Failed(finding)) => return Ok(Err(Some(finding))),
        Err(_) => return Ok(Err(None)),
    };
    let seconds = if args.quick || args.sweep { 0.4 } else { 1.0 };
    let least = if args.quick { COUNTED_QUICK } else { COUNTED.0 };
    let counted = (seconds / step.0).clamp(least, COUNTED.1) as usize;
    let steps = args.workload.steps.map_or(counted + counted.div_ceil(4), |steps| steps as usize);
    wanted.config.steps = steps;
    Ok(Ok((plan(wanted, fit, step, now), (steps / 5).max(1))))
}

fn host(args: &Args, session: &Session, wanted: &Wanted, nccl: Option<&str>) -> Host {
    let shares = &session.fit.shares;
    let capability = |text: &String| text.replace('.', "").parse::<u32>().ok();
    let gpus = session.look.topology.nvidia_gpus().filter(|gpu| {
        let address = gpu.address.to_string();
        shares.iter().any(|share| share.gpu.as_ref() == Some(&address))
    });
    let capabilities = gpus.filter_map(|gpu| capability(gpu.nvml.as_ref()?.compute_capability.as_ref().ok()?));
    Host {
        device: session.device,
        nccl: nccl.and_then(|version| version.parse::<NcclVersion>().ok()),
        world: shares.len(),
        share_gpu: wanted.share_gpu,
        peers: peers(&session.look.topology, shares),
        capability: capabilities.min(),
        cpus: shares.iter().map(|share| share.cpus.len()).min().unwrap_or(1),
        all_cpus: shares.iter().map(|share| share.cpus.len()).sum(),
        config: wanted.config.clone(),
        set: match session.device {
            Device::Cuda => nccl_variables(&wanted.nccl, &nccl_in_force(&session.look.topology, session.device))
                .into_iter()
                .collect(),
            Device::Cpu => BTreeMap::new(),
        },
        ways: ways(&session.look.topology, shares),
        rounding: args.rounding,
    }
}

/// What carries data between each pair of these GPUs with each choice of the transport, by NCCL's rule; a choice is not there
/// where a fact is missing that decides.
fn ways(topology: &Topology, shares: &[Share]) -> BTreeMap<String, Vec<String>> {
    let own = |address: PciAddress| shares.iter().any(|share| share.gpu.as_ref() == Some(&address.to_string()));
    let mut among = topology.clone();
    among.gpus.retain(|gpu| own(gpu.address));
    among.pairs.retain(|pair| own(pair.a) && own(pair.b));
    let transport = KNOBS.iter().filter(|knob| knob.name == "transport").flat_map(|knob| knob.choices);
    let of = |choice: &str| -> Option<(String, Vec<String>)> {
        let mut told = among.clone();
        let set = choice.split_whitespace().map(str::to_owned);
        told.software.nccl_environment =
            Ok(set.chain(topology.software.nccl_environment.iter().flatten().cloned()).collect());
        let pairs = transports(&told);
        let carried: Option<Vec<String>> = pairs.iter().map(|pair| Some(pair.carrier?.to_string())).collect();
        Some((choice.to_owned(), carried.filter(|carried| !carried.is_empty())?))
    };
    std::iter::once("").chain(transport.copied()).filter_map(of).collect()
}

/// Whether the driver grants every pair of these GPUs peer access; none where it does not say.
fn peers(topology: &Topology, shares: &[Share]) -> Option<bool> {
    let own = |address: String| shares.iter().any(|share| share.gpu.as_ref() == Some(&address));
    let mut pairs =
        topology.peers.iter().filter(|peer| own(peer.from.to_string()) && own(peer.to.to_string())).peekable();
    pairs.peek()?;
    let mut all = Some(true);
    for peer in pairs {
        match (&peer.read, &peer.write) {
            (Ok(PeerStatus::Ok), Ok(PeerStatus::Ok)) => {}
            (Ok(_), Ok(_)) => return Some(false),
            _ => all = None,
        }
    }
    all
}

/// The version of NCCL that ranks will load; none on CPUs.
///
/// # Errors
/// There is none.
pub(in crate::cli) fn installed_nccl(device: Device) -> Result<Option<String>, CliError> {
    match device {
        Device::Cuda => Ok(Some(NcclLibrary::load()?.version())),
        Device::Cpu => Ok(None),
    }
}

/// Says what of NCCL's settings the default already holds.
fn inherited(conditions: &TuneConditions, out: &Output) {
    if !conditions.environment.is_empty() {
        let words = conditions.variables();
        out.remark(format!("the environment or NCCL's conf files set {words}: the default is not NCCL's own"));
    }
}

/// What a result for this training on this machine is bound to.
pub(in crate::cli) fn identity(wanted: &Wanted, session: &Session, nccl: Option<String>) -> TuneIdentity {
    let driver = session.look.topology.nvidia.version.clone().ok();
    TuneIdentity {
        driver: driver.filter(|_| session.device == Device::Cuda),
        nccl,
        topology_sha256: topology_hash(&session.look.topology),
        device: session.device,
        model: wanted.config.model.clone(),
        world: session.fit.shares.len(),
        batch: wanted.config.batch,
        context: wanted.config.context,
        accumulate: wanted.config.accumulate,
        share_gpu: wanted.share_gpu,
        conditions: TuneConditions {
            gpus: session.fit.shares.iter().filter_map(|share| share.gpu.clone()).collect(),
            reduce_dtype: wanted.config.reduce_dtype,
            zero: wanted.config.zero,
            recompute: wanted.config.recompute,
            environment: nccl_in_force(&session.look.topology, session.device),
        },
    }
}

fn origin(wanted: &Wanted) -> Origin {
    if wanted.share_gpu { Origin::SharedGpu } else { Origin::Measured }
}

fn title(wanted: &Wanted, session: &Session) -> String {
    let ranks = session.fit.shares.len();
    let on = match (session.device, wanted.share_gpu) {
        (Device::Cpu, _) => "ranks on CPU cores",
        (Device::Cuda, true) => "ranks on one GPU",
        (Device::Cuda, false) => "GPUs",
    };
    format!("{} on {ranks} {on}", wanted.config.model)
}

fn outlook(session: &Session, base: &Plan, nccl: Option<&str>) -> Option<Outlook> {
    if session.device == Device::Cpu || base.share_gpu {
        return None;
    }
    let board = from_topology(&session.look.topology, "this machine").ok()?.with_gpus(base.shares.len()).ok()?;
    let nccl = nccl.and_then(|version| version.parse().ok()).unwrap_or(NcclVersion::MODELLED);
    let environment = nccl_variables(&base.nccl, &nccl_in_force(&session.look.topology, session.device));
    let told = NcclSettings { environment, ..base.nccl.clone() };
    Some(Outlook::new(board, base.config.clone(), Alone::Step(base.step_estimate_s), nccl).told(told))
}

/// What qualifies with a setting: all arms, at every number of ranks that was asked for.
pub(super) fn qualifying(setup: &Setup, args_target: f64, applied: &Applied) -> Plan {
    let session = &setup.session;
    let config = crate::record::TrainConfig { steps: 0, ..applied.config.clone() };
    let fit = Fit { shares: placed(&session.fit.shares, applied), ..session.fit.clone() };
    let wanted = Wanted {
        device: session.device,
        grade: crate::cli::qualify::grade(session.device, setup.base.share_gpu),
        order_seed: config.seed,
        config,
        arms: vec![Arm::Solo, Arm::Together, Arm::Ddp],
        target: args_target,
        launches: 5,
        extension: 0,
        budget: Seconds(900.0),
        nccl: applied.nccl.clone(),
        share_gpu: setup.base.share_gpu,
        fields: Vec::new(),
    };
    plan(&wanted, &fit, setup.base.step_estimate_s, jiff::Timestamp::now())
}

/// The folder of a session, for writing.
pub(super) fn folder(setup: &Setup) -> &RunFolder {
    &setup.session.folder
}
