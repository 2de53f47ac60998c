//! What a search needs before its first launch: the machine, the space, the length of a launch, and what is there already.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use crate::cli::look::nccl_variables;
use crate::cli::session::{Session, once};
use crate::cli::train::{failed, wanted};
use crate::cli::{CliError, Exit, Output};
use crate::device::cuda::NcclLibrary;
use crate::launch::{Fit, Launched, Wanted, plan};
use crate::predict::{Alone, NcclVersion, from_topology};
use crate::record::{
    Arm, Device, Finding, Origin, Plan, RunFolder, Share, TuneHead, TuneIdentity, TuneTrial, TuneWriter,
    read_tune_file, read_yaml, tune_trials, write_yaml,
};
use crate::topology::{PeerStatus, Topology};
use crate::tune::{Applied, Host, Outlook, Space, apply, topology_hash};
use crate::units::Seconds;

use super::Args;

/// The plan of which every launch of a search is a variation.
const BASE_PLAN: &str = "base-plan.yaml";

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
}

impl Setup {
    /// Looks at the machine, times a step, and begins the log; or finds what an earlier call has left and goes on with it.
    /// The exit code where not even a step could be timed.
    ///
    /// # Errors
    /// See [`CliError`]; the folder is of another search.
    pub(super) fn of(args: &Args, stop: &AtomicBool, out: &Output) -> Result<Result<Self, Exit>, CliError> {
        let before = args.out.as_deref().filter(|place| tune_trials(place).exists());
        let session = match before {
            Some(place) => Session::reopen(&args.workload, place, out)?,
            None => Session::open(&args.workload, args.out.as_deref(), out)?,
        };
        session.announce(out);
        let nccl = installed_nccl(session.device)?;
        inherited(session.device, out);
        let mut wanted = wanted(&args.workload, session.device)?;
        let fit = largest(&session.fit)?;
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
            ..TuneHead::begun(
                origin(&wanted),
                title(&wanted, &session),
                identity(&wanted, &session, nccl),
                jiff::Timestamp::now(),
            )
        };
        let (base, recorded) = match before {
            Some(place) => {
                let file = read_tune_file(&tune_trials(place))?;
                same_search(place, &file.head, &head)?;
                head = file.head;
                (read_yaml(&place.join(BASE_PLAN))?, file.trials)
            }
            None => match timed(args, &session, &mut wanted, &fit, stop, out)? {
                Ok((base, warm_up)) => {
                    (head.steps, head.warm_up_steps) = (base.config.steps, warm_up);
                    write_yaml(&session.folder.path().join(BASE_PLAN), &base)?;
                    drop(TuneWriter::create(&tune_trials(session.folder.path()), &head)?);
                    (base, Vec::new())
                }
                Err(None) => return Ok(Err(Exit::Interrupted)),
                Err(Some(finding)) => return Ok(Err(failed(&session.folder, &wanted.config.model, finding, out)?)),
            },
        };
        let outlook = outlook(&session, &base);
        let budget = args.budget.unwrap_or(Seconds(if args.quick { 90.0 } else { 1200.0 }));
        Ok(Ok(Self { session, base, head, budget, outlook, recorded }))
    }

    /// The space that is searched.
    pub(super) fn space(&self) -> Space {
        Space { knobs: self.head.knobs.clone(), left_out: self.head.left_out.clone() }
    }

    /// The training with a setting.
    ///
    /// # Errors
    /// The setting is none of this version's.
    pub(super) fn applied(&self, setting: &crate::record::Setting) -> Result<Applied, CliError> {
        apply(setting, &self.base.config, &self.base.nccl).map_err(|error| CliError::Usage(error.to_string()))
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
        rounding: args.rounding,
    }
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
fn inherited(device: Device, out: &Output) {
    let variables = nccl_variables();
    if device == Device::Cuda && !variables.is_empty() {
        let names: Vec<String> = variables.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        out.remark(format!("the environment sets {}: the default is not NCCL's own", names.join(", ")));
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

fn outlook(session: &Session, base: &Plan) -> Option<Outlook> {
    if session.device == Device::Cpu || base.share_gpu {
        return None;
    }
    let board = from_topology(&session.look.topology, "this machine").ok()?.with_gpus(base.shares.len()).ok()?;
    Some(Outlook::new(board, base.config.clone(), Alone::Step(base.step_estimate_s), NcclVersion::MODELLED))
}

/// Refuses to go on with the log of another search.
fn same_search(place: &Path, found: &TuneHead, wanted: &TuneHead) -> Result<(), CliError> {
    let mut differ = found.identity.differences(&wanted.identity);
    if differ.is_empty() && (found.knobs != wanted.knobs || found.sweep != wanted.sweep) {
        differ.push("it searches another space".to_owned());
    }
    match differ.is_empty() {
        true => Ok(()),
        false => Err(CliError::Usage(format!(
            "{} holds another search ({}): choose another -o",
            place.display(),
            differ.join("; ")
        ))),
    }
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
