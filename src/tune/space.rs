//! The space: one table of knobs, and what of it a machine and a training leave.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::predict::NcclVersion;
use crate::record::{Device, NcclSettings, Precision, Setting, TrainConfig, TuneKnob, TuneLeftOut};
use crate::units::Bytes;

/// Where a knob acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The environment of a rank's process: NCCL reads it once.
    Process,
    /// The configuration of a communicator (`ncclConfig_t`).
    Communicator,
    /// The training.
    Training,
    /// The ranks' place on the cores of the host.
    Host,
}

/// One row of the table.
#[derive(Debug)]
pub struct Knob {
    /// Its name.
    pub name: &'static str,
    /// Choices beside leaving it alone, each in the words that are set.
    pub choices: &'static [&'static str],
    /// Whether the choices are sizes in ascending order.
    pub ordered: bool,
    /// Where it acts.
    pub scope: Scope,
    /// What computes.
    pub device: Device,
    /// The first version of NCCL that knows it.
    pub since: NcclVersion,
    /// The first version that does not any more.
    pub until: Option<NcclVersion>,
    /// Whether it can matter here; else why not.
    pub applies: fn(&Host) -> Result<(), &'static str>,
    /// Whether one choice can be taken here; else why not.
    pub fits: fn(&Host, &str) -> Result<(), &'static str>,
    /// Why it might help.
    pub why: &'static str,
}

const fn always(_: &Host) -> Result<(), &'static str> {
    Ok(())
}

const fn any(_: &Host, _: &str) -> Result<(), &'static str> {
    Ok(())
}

const NO_NCCL: NcclVersion = NcclVersion(0, 0, 0);

/// A row without conditions, which those of the table name.
const ROW: Knob = Knob {
    name: "",
    choices: &[],
    ordered: false,
    scope: Scope::Process,
    device: Device::Cuda,
    since: NO_NCCL,
    until: None,
    applies: always,
    fits: any,
    why: "",
};

const BUCKETS: &[&str] = &[
    "bucket-mib=0.25",
    "bucket-mib=0.5",
    "bucket-mib=1",
    "bucket-mib=2",
    "bucket-mib=4",
    "bucket-mib=8",
    "bucket-mib=16",
    "bucket-mib=25",
    "bucket-mib=50",
    "bucket-mib=100",
    "bucket-mib=200",
];

const FIRST_BUCKETS: &[&str] =
    &["first-bucket-mib=0.25", "first-bucket-mib=1", "first-bucket-mib=4", "first-bucket-mib=25"];

/// Every knob, in the order in which a search turns them: the way between GPUs first, then how wide it is, then what
/// travels on it. Versions and meaning: NCCL 2.30.7, `docs/userguide/source/env.rst`, `src/nccl.h.in` and the release
/// notes; LL128 is not among the protocols, as the atomicity of its 128-byte stores is not guaranteed over PCIe (env.rst,
/// NCCL_PROTO).
pub const KNOBS: &[Knob] = &[
    Knob {
        name: "pinning",
        choices: &["pinning=none"],
        scope: Scope::Host,
        device: Device::Cpu,
        applies: several_cores,
        why: "the scheduler may move ranks away from a busy core",
        ..ROW
    },
    Knob {
        name: "threads",
        choices: &["threads=1", "threads=2", "threads=4", "threads=8", "threads=16", "threads=32", "threads=64"],
        ordered: true,
        scope: Scope::Host,
        device: Device::Cpu,
        fits: threads_fit,
        why: "fewer threads leave a core to the exchange, more hide its waits",
        ..ROW
    },
    Knob {
        name: "transport",
        choices: &["NCCL_P2P_DISABLE=1", "NCCL_P2P_LEVEL=PHB", "NCCL_P2P_LEVEL=SYS"],
        since: NcclVersion(2, 3, 4),
        applies: several_ranks,
        fits: transport_fits,
        why: "since 2.23.4 NCCL takes host memory across host bridges even where peers work, and its cost model knows no \
              difference between the two",
        ..ROW
    },
    Knob {
        name: "channels",
        choices: &[
            "NCCL_MIN_NCHANNELS=2 NCCL_MAX_NCHANNELS=2",
            "NCCL_MIN_NCHANNELS=4 NCCL_MAX_NCHANNELS=4",
            "NCCL_MIN_NCHANNELS=8 NCCL_MAX_NCHANNELS=8",
            "NCCL_MIN_NCHANNELS=16 NCCL_MAX_NCHANNELS=16",
        ],
        ordered: true,
        since: NcclVersion(2, 5, 0),
        until: Some(NcclVersion(2, 17, 0)),
        applies: several_ranks,
        fits: ctas_fit,
        why: "more channels fill a link that one cannot, fewer leave thread blocks to the backward pass",
        ..ROW
    },
    Knob {
        name: "ctas",
        choices: &[
            "min-ctas=1 max-ctas=1",
            "min-ctas=2 max-ctas=2",
            "min-ctas=4 max-ctas=4",
            "min-ctas=8 max-ctas=8",
            "min-ctas=16 max-ctas=16",
            "min-ctas=32 max-ctas=32",
        ],
        ordered: true,
        scope: Scope::Communicator,
        since: NcclVersion(2, 17, 0),
        applies: several_ranks,
        fits: ctas_fit,
        why: "more thread blocks fill a link that one cannot, fewer leave them to the backward pass",
        ..ROW
    },
    Knob {
        name: "protocol",
        choices: &["NCCL_PROTO=Simple", "NCCL_PROTO=LL"],
        since: NcclVersion(2, 5, 0),
        applies: several_ranks,
        why: "NCCL's switch between the two follows its cost model, not this machine",
        ..ROW
    },
    Knob {
        name: "algorithm",
        choices: &["NCCL_ALGO=Ring", "NCCL_ALGO=Tree"],
        since: NcclVersion(2, 5, 0),
        applies: three_ranks,
        why: "a tree has fewer steps for small buckets",
        ..ROW
    },
    Knob {
        name: "buffer",
        choices: &["NCCL_BUFFSIZE=1048576", "NCCL_BUFFSIZE=8388608", "NCCL_BUFFSIZE=16777216"],
        ordered: true,
        since: NcclVersion(2, 0, 0),
        applies: several_ranks,
        why: "larger chunks cost fewer hand-overs, smaller ones fill the ring sooner; NCCL's default is 4 MiB",
        ..ROW
    },
    Knob {
        name: "threads-per-block",
        choices: &["NCCL_NTHREADS=128", "NCCL_NTHREADS=256", "NCCL_NTHREADS=512"],
        ordered: true,
        since: NcclVersion(2, 0, 0),
        applies: several_ranks,
        why: "NCCL takes 256 where it believes the ring slower than 12 GB/s, else 512",
        ..ROW
    },
    Knob {
        name: "cga",
        choices: &["cga-cluster-size=0", "cga-cluster-size=2"],
        scope: Scope::Communicator,
        since: NcclVersion(2, 17, 0),
        applies: has_clusters,
        why: "blocks that must start together wait for room beside the backward pass",
        ..ROW
    },
    Knob {
        name: "bucket",
        choices: BUCKETS,
        ordered: true,
        scope: Scope::Training,
        applies: several_ranks,
        why: "small buckets leave sooner, large ones cost fewer launches",
        ..ROW
    },
    Knob {
        name: "first-bucket",
        choices: FIRST_BUCKETS,
        ordered: true,
        scope: Scope::Training,
        applies: several_ranks,
        why: "the first bucket decides when the exchange begins",
        ..ROW
    },
    Knob {
        name: "bucket",
        choices: BUCKETS,
        ordered: true,
        scope: Scope::Training,
        device: Device::Cpu,
        applies: several_ranks,
        why: "small buckets leave sooner, large ones cost fewer meetings",
        ..ROW
    },
    Knob {
        name: "first-bucket",
        choices: FIRST_BUCKETS,
        ordered: true,
        scope: Scope::Training,
        device: Device::Cpu,
        applies: several_ranks,
        why: "the first bucket decides when the exchange begins",
        ..ROW
    },
    Knob {
        name: "gradients",
        choices: &["reduce-dtype=bf16"],
        scope: Scope::Training,
        applies: rounding_allowed,
        why: "sums in bf16 move half the bytes of f32",
        ..ROW
    },
];

/// What is never offered to GPUs, and why.
const NEVER: &[(&str, &str)] = &[
    ("NCCL_PROTO=LL128", "over PCIe its result may be wrong (NCCL documentation, NCCL_PROTO): never offered"),
    (
        "cta-policy",
        "it acts on all-gather and reduce-scatter of registered buffers over NVLS alone (NCCL 2.30.7, src/enqueue.cc): PCIe \
         has no NVLS",
    ),
    ("NCCL_SHM_LOCALITY", "not searched: it moves shared buffers between the NUMA nodes of sender and receiver"),
    ("NCCL_SHM_USE_CUDA_MEMCPY", "not searched: copies by engine instead of by kernel; NCCL 2.30.7 has it no more"),
    (
        "NCCL_P2P_USE_CUDA_MEMCPY",
        "not searched: copies by engine instead of by kernel, which NCCL's documents leave out",
    ),
    ("NCCL_CUMEM_HOST_ENABLE", "not searched: it says how host memory is allocated, not how fast it is"),
    ("NCCL_THREAD_THRESHOLDS", "not searched: it moves the sizes below which fewer channels run, far below a bucket's"),
    ("NCCL_CHUNK_SIZE", "not searched: NCCL derives it from the buffer, which is searched"),
    ("NCCL_IGNORE_CPU_AFFINITY", "not searched: it places NCCL's helper threads, and ranks keep to their own CPUs"),
];

/// The variables by which a name of a setting acts, and those that decide the same: what the environment says wins over what a
/// communicator is told (`envConfigOverride` in NCCL's src/init.cc), and a minimum of channels over one of blocks.
fn variables(name: &str) -> Vec<&str> {
    match name {
        "min-ctas" | "max-ctas" => {
            vec![
                "NCCL_MIN_CTAS",
                "NCCL_MAX_CTAS",
                "NCCL_MIN_NCHANNELS",
                "NCCL_MAX_NCHANNELS",
                "NCCL_MIN_NRINGS",
                "NCCL_MAX_NRINGS",
            ]
        }
        "cga-cluster-size" => vec!["NCCL_CGA_CLUSTER_SIZE"],
        _ if name.starts_with("NCCL_") => vec![name],
        _ => Vec::new(),
    }
}

/// What of a knob is set already, so that it is not the search's to turn.
fn set_already(host: &Host, knob: &Knob) -> Option<String> {
    let names = knob.choices.iter().flat_map(|choice| choice.split_whitespace()).filter_map(|one| one.split_once('='));
    let (name, value) = names.flat_map(|(name, _)| variables(name)).find_map(|name| host.set.get_key_value(name))?;
    Some(format!("{name}={value} is set already, and what you set stays"))
}

/// What the space depends on.
#[derive(Debug, Clone, PartialEq)]
pub struct Host {
    /// What computes.
    pub device: Device,
    /// The NCCL that is installed; none on CPUs.
    pub nccl: Option<NcclVersion>,
    /// Ranks that exchange.
    pub world: usize,
    /// Whether they share one GPU.
    pub share_gpu: bool,
    /// Whether the driver grants every pair of GPUs peer access; none where that is unknown.
    pub peers: Option<bool>,
    /// Lowest compute capability, times ten.
    pub capability: Option<u32>,
    /// CPUs of each rank.
    pub cpus: usize,
    /// CPUs of all ranks.
    pub all_cpus: usize,
    /// The training, with everything left alone.
    pub config: TrainConfig,
    /// NCCL's variables that are set already, by the environment, a conf file or the user's words.
    pub set: BTreeMap<String, String>,
    /// What carries data between each pair of GPUs with each choice of the transport, the empty one for none, by NCCL's own
    /// rule; no entry where a fact is missing that decides.
    pub ways: BTreeMap<String, Vec<String>>,
    /// Whether the user allows what rounds sums differently.
    pub rounding: bool,
}

fn several_ranks(host: &Host) -> Result<(), &'static str> {
    if host.world < 2 { Err("one rank exchanges nothing") } else { Ok(()) }
}

fn three_ranks(host: &Host) -> Result<(), &'static str> {
    if host.world < 3 {
        Err("between two ranks tree and ring send the same bytes over the same link in as many steps, 2 (n - 1)")
    } else {
        Ok(())
    }
}

fn several_cores(host: &Host) -> Result<(), &'static str> {
    if host.all_cpus < 2 { Err("there is one CPU") } else { Ok(()) }
}

fn has_clusters(host: &Host) -> Result<(), &'static str> {
    several_ranks(host)?;
    match host.capability {
        Some(90..) => Ok(()),
        _ => Err("thread-block clusters came with compute capability 9.0"),
    }
}

fn rounding_allowed(host: &Host) -> Result<(), &'static str> {
    match (host.config.reduce_dtype, host.rounding) {
        (Some(Precision::F32), true) if host.config.precision == Precision::Bf16 => Ok(()),
        (Some(Precision::F32), false) => Err("it changes how sums are rounded; --rounding allows it"),
        _ => Err("gradients are summed in bf16 already"),
    }
}

fn transport_fits(host: &Host, choice: &str) -> Result<(), &'static str> {
    match (choice.starts_with("NCCL_P2P_LEVEL"), host.share_gpu, host.peers) {
        (true, true, _) => Err("ranks on one GPU are nearer to each other than any level"),
        (true, _, Some(false)) => Err("the driver grants no peer access between these GPUs"),
        (false, false, Some(false)) => Err("there is no peer access to switch off"),
        _ => Ok(()),
    }
}

/// Where ranks share a GPU, collectives of more than 4 thread blocks each were seen to hang: they do not all fit beside
/// the others' work, and each waits for all.
fn ctas_fit(host: &Host, choice: &str) -> Result<(), &'static str> {
    match number(choice) {
        Some(4) if host.share_gpu => Err("it is what ranks on one GPU take anyway"),
        Some(5..) if host.share_gpu => Err("ranks on one GPU hang with more than 4 thread blocks each"),
        _ => Ok(()),
    }
}

fn threads_fit(host: &Host, choice: &str) -> Result<(), &'static str> {
    match number(choice) {
        Some(count) if count as usize == host.cpus => Err("a rank has so many CPUs, and takes them all anyway"),
        Some(count) if 2 * host.cpus < count as usize => Err("more than twice the CPUs of a rank"),
        _ => Ok(()),
    }
}

/// The first number of a choice.
fn number(choice: &str) -> Option<u32> {
    choice.split(['=', ' ']).find_map(|word| word.parse().ok())
}

/// Knobs in the order of what they are known to change, for a part of the space.
const WEIGHTS: [&str; 8] =
    ["bucket", "transport", "ctas", "channels", "protocol", "pinning", "threads", "first-bucket"];

/// At most `count` of some choices, evenly spread.
fn spread(choices: &[String], count: usize) -> Vec<String> {
    let count = count.min(choices.len());
    (0..count).map(|at| choices[(2 * at + 1) * choices.len() / (2 * count)].clone()).collect()
}

/// How many settings so many choices of each knob span, the default among them.
fn settings(counts: &[usize]) -> usize {
    counts.iter().map(|count| count + 1).product()
}

/// Numbers of choices, 1 to `most` of each knob, that span the fewest settings from `size` on; of equals those with the most
/// choices of the first knobs. None where there are not so many.
fn smallest(most: &[usize], size: usize) -> Option<Vec<usize>> {
    let mut all = vec![Vec::new()];
    for &most in most {
        all = all.iter().flat_map(|base: &Vec<usize>| (1..=most).map(|count| [&base[..], &[count]].concat())).collect();
    }
    let enough = all.into_iter().filter(|counts| size <= settings(counts));
    enough.min_by(|one, other| settings(one).cmp(&settings(other)).then_with(|| other.cmp(one)))
}

/// What a choice does, where that can be told beforehand: the elements of each bucket, which lie one behind another, so that
/// equal sizes are equal buckets; or what carries data between each pair of GPUs.
fn effect(host: &Host, knob: &Knob, choice: &str) -> Option<String> {
    match knob.name {
        "bucket" | "first-bucket" => {
            let setting = Setting::default().with(knob.name, choice);
            let applied = apply(&setting, &host.config, &NcclSettings::default()).ok()?;
            let buckets = applied.config.bucket_layout().buckets;
            Some(format!("{:?}", buckets.iter().map(|bucket| bucket.elements).collect::<Vec<_>>()))
        }
        "transport" => host.ways.get(choice).map(|ways| ways.join(", ")),
        _ => None,
    }
}

/// Why a choice is left out that does what another does; the empty one is leaving the knob alone.
fn same_as(knob: &Knob, twin: &str) -> String {
    match (knob.name, twin) {
        ("transport", "") => "it is what NCCL does by itself between these GPUs".to_owned(),
        ("transport", twin) => format!("between these GPUs it is the same as {twin}"),
        (_, "") => "the same buckets as what is asked for".to_owned(),
        (_, twin) => format!("the same buckets as {twin}"),
    }
}

/// Why the installed NCCL does not know a knob, if it does not.
fn unknown(host: &Host, knob: &Knob) -> Option<String> {
    let bound = knob.since != NO_NCCL || knob.until.is_some();
    match (host.nccl, knob.until) {
        (None, _) => bound.then(|| "the version of NCCL could not be read".to_owned()),
        (Some(nccl), Some(until)) if until <= nccl => Some(format!("NCCL {nccl} has other words for it since {until}")),
        (Some(nccl), _) if nccl < knob.since => {
            Some(format!("NCCL {nccl} does not know it: it came with {}", knob.since))
        }
        _ => None,
    }
}

/// What is left of the table on one machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Space {
    /// Knobs in the order in which a search turns them.
    pub knobs: Vec<TuneKnob>,
    /// What is not offered, and why.
    pub left_out: Vec<TuneLeftOut>,
}

impl Space {
    /// What `host` leaves of the table.
    #[must_use]
    pub fn of(host: &Host) -> Self {
        let mut space = Self::default();
        for knob in KNOBS.iter().filter(|knob| knob.device == host.device) {
            let applies = || (knob.applies)(host).err().map(str::to_owned);
            match unknown(host, knob).or_else(applies).or_else(|| set_already(host, knob)) {
                Some(why) => space.leave_out(knob.name, why),
                None => space.offer(host, knob),
            }
        }
        if host.device == Device::Cuda && 1 < host.world {
            NEVER.iter().for_each(|(what, why)| space.leave_out(what, (*why).to_owned()));
        }
        space
    }

    /// Offers the choices of a knob that fit; of those that do the same, each layout of buckets and each way between GPUs,
    /// the first.
    fn offer(&mut self, host: &Host, knob: &Knob) {
        let mut known: BTreeMap<String, &str> = BTreeMap::new();
        known.extend(effect(host, knob, "").map(|effect| (effect, "")));
        let mut choices = Vec::new();
        for choice in knob.choices {
            let effect = effect(host, knob, choice);
            let twin = effect.as_ref().and_then(|effect| known.get(effect));
            let fits = match twin {
                Some(twin) => Err(same_as(knob, twin)),
                None => (knob.fits)(host, choice).map_err(str::to_owned),
            };
            match fits {
                Ok(()) => {
                    choices.push((*choice).to_owned());
                    known.extend(effect.map(|effect| (effect, *choice)));
                }
                Err(why) => self.leave_out(choice, why),
            }
        }
        if !choices.is_empty() {
            self.knobs.push(TuneKnob { name: knob.name.into(), choices, ordered: knob.ordered });
        }
    }

    /// A part of the space with at least `size` settings, where it has so many: of the fewest knobs, those that matter most,
    /// a few choices each, evenly spread. Of all such grids the smallest.
    #[must_use]
    pub fn thinned(&self, size: usize) -> Self {
        let by_weight = |knob: &&TuneKnob| WEIGHTS.iter().position(|name| *name == knob.name).unwrap_or(WEIGHTS.len());
        let mut heavy: Vec<&TuneKnob> = self.knobs.iter().collect();
        heavy.sort_by_key(by_weight);
        let most = |knob: &&TuneKnob| knob.choices.len().min(if knob.ordered { 4 } else { 2 });
        let few: Vec<usize> = heavy.iter().map(most).collect();
        let counts = (1..=few.len()).find_map(|knobs| smallest(&few[..knobs], size));
        // where a few choices of every knob are not enough, whole knobs are taken, heavy ones first
        let counts = counts.unwrap_or_else(|| {
            let mut counts = few;
            for (at, knob) in heavy.iter().enumerate() {
                if settings(&counts) < size {
                    counts[at] = knob.choices.len();
                }
            }
            counts
        });
        let few: BTreeMap<&str, Vec<String>> =
            heavy.iter().zip(counts).map(|(knob, count)| (knob.name.as_str(), spread(&knob.choices, count))).collect();
        let kept = |knob: &TuneKnob| Some(TuneKnob { choices: few.get(knob.name.as_str())?.clone(), ..knob.clone() });
        Self { knobs: self.knobs.iter().filter_map(kept).collect(), left_out: self.left_out.clone() }
    }

    fn leave_out(&mut self, what: &str, why: String) {
        self.left_out.push(TuneLeftOut { what: what.into(), why });
    }

    /// How many settings the knobs span.
    #[must_use]
    pub fn size(&self) -> usize {
        self.knobs.iter().map(|knob| knob.choices.len() + 1).product()
    }

    /// All of them, the default first.
    #[must_use]
    pub fn grid(&self) -> Vec<Setting> {
        let mut grid = vec![Setting::default()];
        for knob in &self.knobs {
            let choices = || std::iter::once("").chain(knob.choices.iter().map(String::as_str));
            grid = grid.iter().flat_map(|base| choices().map(|choice| base.with(&knob.name, choice))).collect();
        }
        grid.sort_by_key(|setting| !setting.is_default());
        grid
    }
}

/// A setting that no version of rigscale knows: from an edited file.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{name}={value} is no setting of the tuner")]
pub struct UnknownSetting {
    /// What should be set.
    pub name: String,
    /// To what.
    pub value: String,
}

/// What a setting makes of a training.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    /// The training.
    pub config: TrainConfig,
    /// What NCCL is told.
    pub nccl: NcclSettings,
    /// Threads of each rank; none: one for each of its CPUs.
    pub threads: Option<usize>,
    /// Whether each rank stays on its own CPUs.
    pub pinned: bool,
}

/// Applies a setting to a training with everything left alone.
///
/// # Errors
/// The setting holds something else than the table.
pub fn apply(setting: &Setting, config: &TrainConfig, nccl: &NcclSettings) -> Result<Applied, UnknownSetting> {
    let mut applied = Applied { config: config.clone(), nccl: nccl.clone(), threads: None, pinned: true };
    for (name, value) in setting.assignments() {
        let unknown = || UnknownSetting { name: name.into(), value: value.into() };
        let whole = || value.parse::<u32>().map_err(|_| unknown());
        let size = || {
            let mebi = value.parse::<f64>().ok().filter(|mebi| (0.01..=65_536.0).contains(mebi));
            mebi.map(Bytes::mebi).ok_or_else(unknown)
        };
        match name {
            "bucket-mib" => applied.config.bucket_bytes = size()?,
            "first-bucket-mib" => applied.config.first_bucket_bytes = size()?,
            "reduce-dtype" if value == "bf16" => applied.config.reduce_dtype = Some(Precision::Bf16),
            "min-ctas" => applied.nccl.min_ctas = Some(whole()?),
            "max-ctas" => applied.nccl.max_ctas = Some(whole()?),
            "cga-cluster-size" => applied.nccl.cga_cluster_size = Some(whole()?),
            "cta-policy" => applied.nccl.cta_policy = Some(whole()?),
            "threads" if (1..=1024).contains(&whole()?) => applied.threads = Some(whole()? as usize),
            "pinning" if value == "none" => applied.pinned = false,
            _ if name.starts_with("NCCL_") => {
                applied.nccl.environment.insert(name.into(), value.into());
            }
            _ => return Err(unknown()),
        }
    }
    Ok(applied)
}
