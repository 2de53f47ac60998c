//! A sweep over a machine that is known only by its model.

use std::path::Path;

use crate::cli::{CliError, Exit, Output};
use crate::predict::{Alone, NcclVersion, platform};
use crate::record::{Device, Origin, TuneHead, TuneIdentity, TuneWriter, read_tune_file, tune_trials};
use crate::tune::{Host, Landscape, Outlook, Simulated, Space};

use super::Args;

/// Writes `trials.jsonl` of a simulated sweep.
///
/// # Errors
/// The platform or the model is unknown, the noise cannot be read, or the folder not be written.
pub(super) fn run(args: &Args, name: &str, noise: &Path, out: &Output) -> Result<Exit, CliError> {
    let whole = platform(name)?;
    let seats = whole.seats.len();
    let fits = args.workload.world.iter().copied().filter(|world| (2..=seats).contains(world)).max();
    let world = fits.ok_or_else(|| {
        CliError::Usage(format!("--world: {name} has slots for {seats} GPUs, and one exchanges nothing"))
    })?;
    let board = whole.with_gpus(world).map_err(|_| CliError::Usage(format!("--world: {name} has {seats} slots")))?;
    let config = args.workload.config(Device::Cuda)?;
    let spread = Landscape::of(&read_tune_file(noise)?).spread();
    let spread =
        spread.ok_or_else(|| CliError::Usage("--noise: the landscape holds no launch that succeeded".into()))?;
    let nccl = NcclVersion::MODELLED;
    let host = Host {
        device: Device::Cuda,
        nccl: Some(nccl),
        world,
        share_gpu: false,
        peers: Some(board.seats.iter().all(|seat| seat.peer.unwrap_or(seat.card.peer)) && !board.virtual_machine),
        capability: board.seats.iter().map(|seat| seat.card.sm).min(),
        cpus: 1,
        all_cpus: world,
        config: config.clone(),
        rounding: args.rounding,
    };
    let space = Space::of(&host).thinned(args.grid as usize);
    let identity = TuneIdentity {
        nccl: Some(nccl.to_string()),
        driver: None,
        topology_sha256: format!("simulated: {name}, seed {}", config.seed),
        device: Device::Cuda,
        model: config.model.clone(),
        world,
        batch: config.batch,
        context: config.context,
        accumulate: config.accumulate,
        share_gpu: false,
    };
    let title = format!("{} on {world} GPUs of {name}, simulated", config.model);
    let seed = config.seed;
    let outlook = Outlook::new(board, config, Alone::Catalogue, nccl);
    let head = TuneHead { seed, ..TuneHead::begun(Origin::Simulated, title, identity, jiff::Timestamp::now()) };
    let file = Simulated::drawn(outlook, spread, seed).sweep(head, &space, args.launches);
    let place = args.out.clone().unwrap_or_else(|| format!("landscape-{name}-{world}").into());
    std::fs::create_dir_all(&place).map_err(|source| CliError::Terminal { attempt: "create the folder", source })?;
    let path = tune_trials(&place);
    let mut log = TuneWriter::create(&path, &file.head)?;
    for trial in &file.trials {
        log.trial(trial)?;
    }
    out.remark(format!("{} settings, {} launches: {}", space.size(), file.trials.len(), path.display()));
    Ok(Exit::Pass)
}
