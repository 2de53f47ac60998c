//! The flags that shape a training, the same in every command that trains.

use clap::{Args, ValueEnum};

use crate::model::{UnknownModel, preset};
use crate::record::{DataSource, Device, NcclSettings, Plan, Precision, TrainConfig};
use crate::units::Bytes;

/// More ranks than this are no workstation.
const WORLD_MAX: usize = 64;

/// Numbers of ranks where none are asked for.
pub(super) const WORLDS: [usize; 3] = [1, 2, 4];

/// What to train, and with how many ranks.
#[derive(Debug, Clone, Args)]
pub(super) struct Workload {
    /// Numbers of ranks to train with, separated by commas; those that the machine cannot hold are listed and skipped
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,2,4", value_parser = parse_world)]
    pub(super) world: Vec<usize>,

    /// What computes: `auto` takes the CPU only where the PCI tree holds no NVIDIA GPU
    #[arg(long, value_enum, default_value_t = Compute::Auto)]
    pub(super) device: Compute,

    /// GPUs to use: how many, or their PCI addresses separated by commas; all if not given
    #[arg(long, value_name = "COUNT|LIST", value_delimiter = ',')]
    pub(super) gpus: Vec<String>,

    /// Put all ranks on the first GPU: a laboratory for a machine with one, never graded. Start it under
    /// scripts/one-gpu-lab, so that ranks run side by side instead of in turn
    #[arg(long)]
    pub(super) share_gpu: bool,

    /// What NCCL is told: a variable of its environment, or min-ctas, max-ctas, cga-cluster-size, cta-policy of its
    /// communicator; may be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_nccl)]
    nccl: Vec<(String, String)>,

    /// Model to train, as `rigscale models` lists them; llama-125m on GPUs and llama-15m on the CPU if not given
    #[arg(long, value_name = "NAME")]
    pub(super) model: Option<String>,

    /// Sequences per rank and micro-step; 8 on GPUs and 1 on the CPU if not given
    #[arg(long, value_name = "SEQUENCES", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(super) batch: Option<u32>,

    /// Tokens per sequence; 2048 on GPUs and 128 on the CPU if not given
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(2..=131_072))]
    pub(super) context: Option<u32>,

    /// Micro-steps per optimizer step; 1 is the canonical case
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4_096))]
    pub(super) accumulate: u32,

    /// Compute each block again in the backward pass instead of keeping what it saved: less memory, a third more
    /// arithmetic
    #[arg(long)]
    pub(super) recompute: bool,

    /// Take only operations that give the same bits for the same seed; on GPUs attention is slower then
    #[arg(long)]
    pub(super) deterministic: bool,

    /// Optimizer steps of each trial; chosen to fit the time budget if not given
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    pub(super) steps: Option<u32>,

    /// File of token ids (little-endian) to train on; the seeded synthetic language if not given
    #[arg(long, value_name = "FILE")]
    pub(super) data: Option<String>,

    /// Bytes per id in the token file
    #[arg(long, value_name = "2|4", default_value = "2", value_parser = parse_token_bytes)]
    pub(super) token_bytes: u8,

    /// Seed of weights and data
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub(super) seed: u64,

    /// AdamW's learning rate
    #[arg(long, value_name = "RATE", default_value_t = 1e-3, value_parser = parse_positive)]
    learning_rate: f64,

    /// AdamW's weight decay, on matrices only
    #[arg(long, value_name = "RATE", default_value_t = 0.1, value_parser = parse_not_negative)]
    weight_decay: f64,

    /// Gradient norm above which gradients are scaled down; 0 for never
    #[arg(long, value_name = "NORM", default_value_t = 1.0, value_parser = parse_not_negative)]
    clip_norm: f64,

    /// Size at which a gradient bucket is closed
    #[arg(long, value_name = "MIB", default_value_t = 25.0, value_parser = parse_mebi)]
    pub(super) bucket_mib: f64,

    /// The same for the first bucket to be filled
    #[arg(long, value_name = "MIB", default_value_t = 1.0, value_parser = parse_mebi)]
    pub(super) first_bucket_mib: f64,

    /// What gradients are summed in over ranks: on GPUs bf16, as they are kept, or f32, twice the bytes and rounded once; on
    /// the CPU f32
    #[arg(long, value_enum)]
    reduce_dtype: Option<ReduceDtype>,

    /// Stage of ZeRO: at 1 each rank keeps the optimizer's state of a part of the weights only, and ranks exchange weights
    /// too
    #[arg(long, value_name = "0|1", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=1))]
    zero: u8,

    /// Take a checksum of all weights every so many steps, so that ranks that drift apart are caught with the step; 0 for
    /// never
    #[arg(long, value_name = "STEPS", default_value_t = 50)]
    checksum_every: u32,

    /// A plan that says all this instead of flags.
    #[arg(skip)]
    given: Option<Box<Plan>>,
}

/// Flags that a plan says instead.
pub(super) const SAID_BY_PLAN: [&str; 21] = [
    "world",
    "device",
    "share_gpu",
    "nccl",
    "model",
    "batch",
    "context",
    "accumulate",
    "recompute",
    "deterministic",
    "data",
    "token_bytes",
    "seed",
    "learning_rate",
    "weight_decay",
    "clip_norm",
    "bucket_mib",
    "first_bucket_mib",
    "reduce_dtype",
    "zero",
    "checksum_every",
];

/// What gradients are summed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ReduceDtype {
    /// 2 bytes a gradient
    Bf16,
    /// 4 bytes a gradient
    F32,
}

impl ReduceDtype {
    /// The precision of that name.
    #[must_use]
    pub(super) fn precision(self) -> Precision {
        match self {
            Self::Bf16 => Precision::Bf16,
            Self::F32 => Precision::F32,
        }
    }
}

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Compute {
    /// NVIDIA GPUs if the machine has any, else the CPU
    Auto,
    /// NVIDIA GPUs
    Cuda,
    /// Cores of the host
    Cpu,
}

impl Compute {
    /// The device, given whether the PCI tree holds an NVIDIA GPU.
    #[must_use]
    pub(super) fn on(self, nvidia_gpu: bool) -> Device {
        match (self, nvidia_gpu) {
            (Self::Cpu, _) | (Self::Auto, false) => Device::Cpu,
            (Self::Cuda, _) | (Self::Auto, true) => Device::Cuda,
        }
    }
}

impl Workload {
    /// The same training as a plan's, at its numbers of ranks; GPUs and steps stay as flags say.
    #[must_use]
    pub(super) fn of_plan(&self, plan: &Plan) -> Self {
        Self {
            world: plan.worlds.iter().copied().chain(plan.skipped.iter().map(|skipped| skipped.world)).collect(),
            device: match plan.device {
                Device::Cpu => Compute::Cpu,
                Device::Cuda => Compute::Cuda,
            },
            share_gpu: plan.share_gpu,
            given: Some(Box::new(plan.clone())),
            ..self.clone()
        }
    }

    /// What NCCL is told.
    pub(super) fn nccl(&self) -> NcclSettings {
        if let Some(plan) = &self.given {
            return plan.nccl.clone();
        }
        let mut settings = NcclSettings::default();
        for (name, value) in &self.nccl {
            match field(&mut settings, name) {
                Some(field) => *field = value.parse().ok(),
                None => drop(settings.environment.insert(name.clone(), value.clone())),
            }
        }
        settings
    }

    /// The training that these flags ask for on `device`; `steps` is 0 where the plan shall choose.
    ///
    /// # Errors
    /// No preset has that name.
    pub(super) fn config(&self, device: Device) -> Result<TrainConfig, UnknownModel> {
        if let Some(plan) = &self.given {
            return Ok(TrainConfig { steps: self.steps.unwrap_or(0) as usize, ..plan.config.clone() });
        }
        let (model, batch, context, precision) = match device {
            Device::Cpu => ("llama-15m", 1, 128, Precision::F32),
            Device::Cuda => ("llama-125m", 8, 2048, Precision::Bf16),
        };
        let preset = preset(self.model.as_deref().unwrap_or(model))?;
        let data = match &self.data {
            None => DataSource::Synthetic,
            Some(path) => DataSource::File { path: path.clone(), token_bytes: self.token_bytes },
        };
        Ok(TrainConfig {
            model: preset.name.into(),
            shape: preset.shape,
            batch: self.batch.unwrap_or(batch) as usize,
            context: self.context.unwrap_or(context) as usize,
            accumulate: self.accumulate as usize,
            recompute: self.recompute,
            deterministic: self.deterministic,
            steps: self.steps.unwrap_or(0) as usize,
            precision,
            data,
            seed: self.seed,
            learning_rate: self.learning_rate,
            weight_decay: self.weight_decay,
            clip_norm: Some(self.clip_norm).filter(|norm| *norm > 0.0),
            bucket_bytes: Bytes::mebi(self.bucket_mib),
            first_bucket_bytes: Bytes::mebi(self.first_bucket_mib),
            reduce_dtype: self.reduce_dtype.map(ReduceDtype::precision),
            zero: usize::from(self.zero),
            bucket_events_every: 4,
            checksum_every: self.checksum_every as usize,
        })
    }
}

/// The setting of a communicator that is called `name`.
fn field<'a>(settings: &'a mut NcclSettings, name: &str) -> Option<&'a mut Option<u32>> {
    match name {
        "min-ctas" => Some(&mut settings.min_ctas),
        "max-ctas" => Some(&mut settings.max_ctas),
        "cga-cluster-size" => Some(&mut settings.cga_cluster_size),
        "cta-policy" => Some(&mut settings.cta_policy),
        _ => None,
    }
}

fn parse_nccl(text: &str) -> Result<(String, String), String> {
    let wanted = "give a name and a value, as in --nccl NCCL_P2P_LEVEL=SYS or --nccl max-ctas=8";
    let (name, value) = text.split_once('=').ok_or(wanted)?;
    let is_field = field(&mut NcclSettings::default(), name).is_some();
    if is_field && value.parse::<u32>().is_err() {
        return Err(format!("{name} is a number, as in --nccl max-ctas=8"));
    }
    if !is_field && !name.starts_with("NCCL_") {
        return Err(format!("{name} is no setting of NCCL; {wanted}"));
    }
    Ok((name.into(), value.into()))
}

fn parse_world(text: &str) -> Result<usize, String> {
    match text.trim().parse() {
        Ok(world) if (1..=WORLD_MAX).contains(&world) => Ok(world),
        _ => Err(format!("a number of ranks is between 1 and {WORLD_MAX}, as in --world 1,2,4")),
    }
}

fn parse_token_bytes(text: &str) -> Result<u8, String> {
    match text {
        "2" => Ok(2),
        "4" => Ok(4),
        _ => Err("an id takes 2 bytes (uint16) or 4 (uint32)".into()),
    }
}

fn parse_positive(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if number > 0.0 && f64::is_finite(number) => Ok(number),
        _ => Err("give a number above 0".into()),
    }
}

fn parse_not_negative(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if number >= 0.0 && f64::is_finite(number) => Ok(number),
        _ => Err("give a number, 0 or above".into()),
    }
}

fn parse_mebi(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(size) if (0.01..=65_536.0).contains(&size) => Ok(size),
        _ => Err("a bucket is between 0.01 and 65536 MiB".into()),
    }
}
