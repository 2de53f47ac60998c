//! `rigscale models`: the presets with parameters, floating-point operations and memory.

use std::fmt;

use clap::{Args as ClapArgs, ValueEnum};
use comfy_table::CellAlignment;
use serde::Serialize;

use crate::model::{MemoryDemand, MemoryPlan, PRESETS, Shape, preset};
use crate::units::in_words;

use super::probe::{plain_table, write_table};
use super::workload::ReduceDtype;
use super::{CliError, Exit, Output};

/// Lists the models that rigscale can train
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  rigscale models --memory llama-1b,4,2048
  rigscale models --memory llama-1b,4,2048 --zero 1 --world 4
  rigscale models --memory llama-15m,2,256 --device cpu")]
pub(super) struct Args {
    /// Prints what one rank keeps in memory for this model, batch and context
    #[arg(long, value_name = "MODEL,BATCH,CONTEXT")]
    memory: Option<String>,

    /// Whose memory: that of a GPU in bf16, or that of the host in f32
    #[arg(long, value_enum, default_value_t = Memories::Cuda)]
    device: Memories,

    /// With blocks that are computed again in the backward pass
    #[arg(long)]
    recompute: bool,

    /// With gradients that are summed in this type over ranks
    #[arg(long, value_enum)]
    reduce_dtype: Option<ReduceDtype>,

    /// With the optimizer's state of a part of the weights only: stage 1 of ZeRO over --world ranks
    #[arg(long, value_name = "0|1", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=1))]
    zero: u8,

    /// Ranks that share the optimizer's state with --zero 1
    #[arg(long, value_name = "RANKS", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    world: u16,
}

/// Whose memory is planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Memories {
    /// A GPU's, bf16
    Cuda,
    /// The host's, f32
    Cpu,
}

#[derive(Serialize)]
struct Listing {
    models: Vec<Listed>,
}

#[derive(Serialize)]
struct Listed {
    name: &'static str,
    purpose: &'static str,
    shape: Shape,
    parameters: u64,
    flops_per_token: f64,
}

/// Context at which the listing counts floating-point operations.
const LISTED_CONTEXT: usize = 1024;

#[derive(Serialize)]
#[serde(transparent)]
struct Memory(MemoryPlan);

/// Prints the presets, or the memory of one.
///
/// # Errors
/// An unknown model or a malformed `--memory`.
pub(super) fn run(args: &Args, out: &Output) -> Result<Exit, CliError> {
    let terminal = |source| CliError::Terminal { attempt: "print the models", source };
    match &args.memory {
        Some(text) => {
            let (shape, batch, context) = parse_memory(text)?;
            let widens = args.reduce_dtype == Some(ReduceDtype::F32);
            let sharers = if args.zero == 1 { usize::from(args.world) } else { 1 };
            let demand = MemoryDemand { batch, context, recompute: args.recompute, widens, sharers };
            let plan = match args.device {
                Memories::Cuda => MemoryPlan::on_cuda(&shape, demand),
                Memories::Cpu => MemoryPlan::on_cpu(&shape, demand),
            };
            out.emit(&Memory(plan)).map_err(terminal)?;
        }
        None => {
            let models = PRESETS
                .iter()
                .map(|preset| Listed {
                    name: preset.name,
                    purpose: preset.purpose,
                    shape: preset.shape,
                    parameters: preset.shape.parameter_count(),
                    flops_per_token: preset.shape.flops_per_token(LISTED_CONTEXT),
                })
                .collect();
            out.emit(&Listing { models }).map_err(terminal)?;
        }
    }
    Ok(Exit::Pass)
}

fn parse_memory(text: &str) -> Result<(Shape, usize, usize), CliError> {
    let usage = || {
        let form = "give MODEL,BATCH,CONTEXT, as in llama-15m,2,256, with numbers from 1 to 1048576";
        CliError::Usage(format!("--memory {text}: {form}"))
    };
    let parts: Vec<&str> = text.split(',').collect();
    let [name, batch, context] = parts[..] else { return Err(usage()) };
    let number = |text: &str| text.trim().parse().ok().filter(|number| (1..=1 << 20).contains(number));
    let shape = preset(name.trim())?.shape;
    Ok((shape, number(batch).ok_or_else(usage)?, number(context).ok_or_else(usage)?))
}

impl fmt::Display for Listing {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = plain_table();
        table.set_header(["model", "parameters", "shape", "H/K", "ffn", "vocab", "for"]);
        for model in &self.models {
            let shape = model.shape;
            table.add_row([
                model.name.to_owned(),
                in_words(model.parameters),
                format!("{} × {}", shape.layers, shape.width),
                format!("{}/{}", shape.heads, shape.kv_heads),
                shape.ffn.to_string(),
                shape.vocabulary.to_string(),
                model.purpose.to_owned(),
            ]);
        }
        write_table(out, &table)
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = plain_table();
        table.set_header(["one rank keeps", "memory"]);
        for part in &self.0.parts {
            table.add_row([part.name.clone(), part.bytes.to_string()]);
        }
        table.add_row(["total".to_owned(), self.0.total_bytes.to_string()]);
        if let Some(column) = table.column_mut(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        write_table(out, &table)
    }
}
