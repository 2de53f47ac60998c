//! A prediction kept as a run folder of origin simulated.

use std::path::Path;

use crate::cli::CliError;
use crate::predict::{Board, Forecast, RANKS_MAX, Simulation};
use crate::record::{RunFolder, read_text, write_json, write_whole};
use crate::report::SKETCH_FILE;
use crate::topology::YAML_BYTES_MAX;

use super::ask::Asked;
use super::sketch::sketch;
use super::{Args, Prediction, exchange};

/// Writes the folder: plan, rank files of every trial, launch.json, manifest, and the topology of a probed machine as
/// it is, or a sketch of any other.
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
    let of = |row: &super::Variant| (row.board.clone(), row.forecast.clone());
    let mut worlds: Vec<(Board, Forecast)> = prediction.variants.iter().map(of).collect();
    worlds.sort_by_key(|(_, forecast)| forecast.world);
    if worlds.windows(2).any(|pair| pair[0].1.world == pair[1].1.world) {
        let text = "-o takes one card, edit, bucket, --p2p and --accumulate, and each number of GPUs once";
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
    let as_probed = args.set.is_empty() && args.gpu.is_empty() && args.slots.is_empty();
    let probed = match as_probed && topology.is_file() {
        true => Some(read_text(topology, YAML_BYTES_MAX as u64)?).filter(|text| super::is_topology(text)),
        false => None,
    };
    let (board, forecast) = &worlds[worlds.len() - 1];
    match probed {
        Some(text) => write_whole(&folder.topology(), text.as_bytes())?,
        None => write_json(&folder.path().join(SKETCH_FILE), &sketch(board, &forecast.ring))?,
    }
    Ok(folder.keep(&files.run())?)
}
