//! The flags that shape a training, the same in every command that trains.

use clap::{Args, ValueEnum};

use crate::model::{UnknownModel, preset};
use crate::record::{DataSource, Device, Precision, TrainConfig};
use crate::units::Bytes;

/// More ranks than this are no workstation.
const WORLD_MAX: usize = 64;

/// What to train, and with how many ranks.
#[derive(Debug, Clone, Args)]
pub(super) struct Workload {
    /// Numbers of ranks to train with, separated by commas; those that the machine cannot hold are listed and skipped
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,2,4", value_parser = parse_world)]
    pub(super) world: Vec<usize>,

    /// What computes: `auto` takes the CPU only where the PCI tree holds no NVIDIA GPU
    #[arg(long, value_enum, default_value_t = Compute::Auto)]
    pub(super) device: Compute,

    /// Model to train; `rigscale models` lists them
    #[arg(long, value_name = "NAME", default_value = "llama-15m")]
    pub(super) model: String,

    /// Sequences per rank and micro-step
    #[arg(long, value_name = "SEQUENCES", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(super) batch: u32,

    /// Tokens per sequence
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = clap::value_parser!(u32).range(2..=131_072))]
    pub(super) context: u32,

    /// Micro-steps per optimizer step; 1 is the canonical case
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4_096))]
    pub(super) accumulate: u32,

    /// Compute each block again in the backward pass instead of keeping what it saved: less memory, a third more
    /// arithmetic
    #[arg(long)]
    pub(super) recompute: bool,

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
    /// The training that these flags ask for; `steps` is 0 where the plan shall choose.
    ///
    /// # Errors
    /// No preset has that name.
    pub(super) fn config(&self) -> Result<TrainConfig, UnknownModel> {
        let preset = preset(&self.model)?;
        let data = match &self.data {
            None => DataSource::Synthetic,
            Some(path) => DataSource::File { path: path.clone(), token_bytes: self.token_bytes },
        };
        Ok(TrainConfig {
            model: preset.name.into(),
            shape: preset.shape,
            batch: self.batch as usize,
            context: self.context as usize,
            accumulate: self.accumulate as usize,
            recompute: self.recompute,
            steps: self.steps.unwrap_or(0) as usize,
            precision: Precision::F32,
            data,
            seed: self.seed,
            learning_rate: self.learning_rate,
            weight_decay: self.weight_decay,
            clip_norm: Some(self.clip_norm).filter(|norm| *norm > 0.0),
            bucket_bytes: Bytes::mebi(self.bucket_mib),
            first_bucket_bytes: Bytes::mebi(self.first_bucket_mib),
            bucket_events_every: 4,
        })
    }
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
