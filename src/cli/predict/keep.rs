//! A prediction kept as a run folder of origin simulated.

use std::path::Path;

use crate::cli::CliError;
use crate::predict::{Board, Forecast, RANKS_MAX, Simulation};
use crate::record::{RunFolder, read_text, write_whole};
use crate::topology::YAML_BYTES_MAX;

use super::ask::Asked;
use super::{Args, Prediction, edited, exchange, filled};

/// Writes the folder: plan, rank files of every trial, launch.json, manifest, and the topology where the platform is one.
///
/// # Errors
/// A sweep of anything but the number of GPUs, too many ranks, or the folder cannot be written.
pub(super) fn keep(
    args: &Args,
    asked: &Asked,
    name: &str,
    prediction: &Prediction,
    path: &Path,
) -> Result<(), CliError> {
    let mut worlds: Vec<(Board, Forecast)> = Vec::new();
    let whole = edited(args, name)?;
    for variant in &prediction.variants {
        let board = filled(&whole, variant.gpus, args.gpu.first().map(String::as_str))?;
        worlds.push((board, variant.forecast.clone()));
    }
    worlds.sort_by_key(|(_, forecast)| forecast.world);
    if worlds.windows(2).any(|pair| pair[0].1.world == pair[1].1.world) {
        let text = "-o takes one card, bucket, --p2p and --accumulate, and each number of GPUs once";
        return Err(CliError::Usage(text.to_owned()));
    }
    let (first, ranks) = (&prediction.variants[0], worlds.last().map_or(0, |(_, forecast)| forecast.world));
    if RANKS_MAX < ranks {
        return Err(CliError::Usage(format!("-o takes at most {RANKS_MAX} ranks over all hosts, not {ranks}")));
    }
    let files = Simulation {
        model: &asked.model,
        training: &asked.training(first.bucket_bytes, first.accumulate),
        exchange: &exchange(args, first.p2p),
        worlds: &worlds,
        overlap: asked.framework.overlap(),
        target: args.target,
        created: jiff::Timestamp::now(),
    };
    let folder = RunFolder::create_at(path)?;
    let topology = Path::new(name);
    if topology.is_file() {
        let text = read_text(topology, YAML_BYTES_MAX as u64)?;
        if super::is_topology(&text) && args.set.is_empty() {
            write_whole(&folder.topology(), text.as_bytes())?;
        }
    }
    Ok(folder.keep(&files.run())?)
}
