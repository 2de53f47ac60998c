//! `rigscale floor`: the least time that a training step can take on a GPU, part by part, beside what it takes.

use std::fmt;

use clap::Args as ClapArgs;
use comfy_table::CellAlignment;
use serde::Serialize;

use crate::device::cuda::{CudaError, cuda_gpus};
use crate::launch::LaunchError;
use crate::model::preset;
use crate::record::{DataSource, Precision, TrainConfig};
use crate::topology::PciAddress;
use crate::train::{DataShare, Floor, Reducer, Trainer};
use crate::units::{Bytes, Seconds};

use super::probe::{plain_table, write_table};
use super::{CliError, Exit, Output};

/// Says how fast a training step could be on a GPU, part by part, and how fast it is
///
/// The floor is the time of the step's matrix products and of its attention, each held at the best rate that this GPU
/// reaches, and of its fewest bytes at the rate of a large copy. A trainer far from its floor makes communication look
/// cheap.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:\n  rigscale floor --model llama-1b --batch 4 --context 2048")]
pub(super) struct Args {
    /// Model to train, as `rigscale models` lists them
    #[arg(long, value_name = "NAME", default_value = "llama-125m")]
    model: String,

    /// Sequences of a step
    #[arg(long, value_name = "SEQUENCES", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch: u32,

    /// Tokens per sequence
    #[arg(long, value_name = "TOKENS", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(2..=131_072))]
    context: u32,

    /// PCI address of the GPU; the first that CUDA shows if not given
    #[arg(long, value_name = "ADDRESS")]
    gpu: Option<PciAddress>,

    /// For how long each matrix product is held at its best rate
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = parse_hold)]
    hold: Seconds,
}

/// What is printed.
#[derive(Serialize)]
struct Shown {
    gpu: PciAddress,
    name: String,
    model: String,
    batch: u32,
    context: u32,
    #[serde(flatten)]
    floor: Floor,
    /// Floor over measured.
    reached: f64,
}

/// Measures.
///
/// # Errors
/// See [`CliError`].
pub(super) fn run(args: &Args, out: &Output) -> Result<Exit, CliError> {
    let shown = cuda_gpus()?;
    let gpu = args.gpu.or_else(|| shown.first().copied()).ok_or(CliError::Cuda(CudaError::NoGpu))?;
    let config = config(args)?;
    let share = DataShare { rank: 0, world: 1 };
    out.remark(format!("about {} to hold 15 matrix products and attention for {} each", args.hold * 17.0, args.hold));
    let mut trainer =
        Trainer::on_gpu(&config, share, (gpu, 1, None), |_| Ok(Reducer::none())).map_err(LaunchError::Train)?;
    trainer.remarks().iter().for_each(|line| out.remark(line));
    trainer.cuda().attention_times().iter().for_each(|line| out.remark(line));
    let floor = trainer.floor(args.hold).map_err(LaunchError::Train)?;
    let name = trainer.cuda().gpu().name().to_owned();
    let reached = floor.floor_s.0 / floor.measured_s.0;
    let Args { model, batch, context, .. } = args;
    let shown = Shown { gpu, name, model: model.clone(), batch: *batch, context: *context, floor, reached };
    out.emit(&shown).map_err(|source| CliError::Terminal { attempt: "print the floor", source })?;
    Ok(Exit::Pass)
}

/// `0.5s`: shorter than any other duration here, and never minutes.
fn parse_hold(text: &str) -> Result<Seconds, String> {
    match text.strip_suffix('s').and_then(|seconds| seconds.trim().parse::<f64>().ok()) {
        Some(seconds) if (0.05..=60.0).contains(&seconds) => Ok(Seconds(seconds)),
        _ => Err("a product is held between 0.05s and 60s, as in --hold 2s".into()),
    }
}

fn config(args: &Args) -> Result<TrainConfig, CliError> {
    let preset = preset(&args.model)?;
    Ok(TrainConfig {
        model: preset.name.into(),
        shape: preset.shape,
        batch: args.batch as usize,
        context: args.context as usize,
        accumulate: 1,
        recompute: false,
        deterministic: false,
        steps: 1,
        precision: Precision::Bf16,
        data: DataSource::Synthetic,
        seed: 1,
        learning_rate: 3e-4,
        weight_decay: 0.1,
        clip_norm: None,
        bucket_bytes: Bytes::mebi(25.0),
        first_bucket_bytes: Bytes::mebi(1.0),
        reduce_dtype: None,
        zero: 0,
        bucket_events_every: 0,
        checksum_every: 0,
    })
}

impl fmt::Display for Shown {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = plain_table();
        table.set_header(["part of a step", "at least", "takes", "reached"]);
        let row = |name: String, floor: Seconds, takes: Seconds| {
            let reached = if floor.0 > 0.0 { format!("{:.0} %", 100.0 * floor.0 / takes.0) } else { String::new() };
            [name, floor.to_string(), takes.to_string(), reached]
        };
        for part in &self.floor.parts {
            table.add_row(row(format!("{:?}", part.part).to_lowercase(), part.floor_s, part.measured_s));
        }
        table.add_row(row("all".into(), self.floor.floor_s, self.floor.measured_s));
        for column in 1..4 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        write_table(out, &table)?;
        let Self { model, batch, context, name, gpu, floor, .. } = self;
        writeln!(out, "{model}, {batch} × {context} on {name} at {gpu}; a copy moves {}", floor.copy_rate)
    }
}
