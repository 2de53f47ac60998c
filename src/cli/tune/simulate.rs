//! A sweep over a machine that is known only by its model.

use std::path::Path;

use crate::cli::{CliError, Exit, Output};
use crate::predict::platform;
use crate::record::{Device, TuneWriter, read_tune_file, tune_trials};
use crate::tune::{Case, Landscape, Simulated};

use super::Args;

/// Writes `trials.jsonl` of a simulated sweep.
///
/// # Errors
/// The platform or the model is unknown, the noise cannot be read, or the folder not be written.
pub(super) fn run(args: &Args, name: &str, noise: &Path, out: &Output) -> Result<Exit, CliError> {
    let seats = platform(name)?.seats.len();
    let fits = args.workload.world.iter().copied().filter(|world| (2..=seats).contains(world)).max();
    let world = fits.ok_or_else(|| {
        CliError::Usage(format!("--world: {name} has slots for {seats} GPUs, and one exchanges nothing"))
    })?;
    let case = Case::new(name, world, args.workload.config(Device::Cuda)?)?;
    let spread = Landscape::of(&read_tune_file(noise)?).spread();
    let spread =
        spread.ok_or_else(|| CliError::Usage("--noise: the landscape holds no launch that succeeded".into()))?;
    let space = case.space(args.grid as usize, args.rounding);
    let head = case.head(&space, jiff::Timestamp::now());
    let file = Simulated::drawn(case.outlook(), case.config.seed).sweep(head, &space, spread, args.launches);
    let place = args.out.clone().unwrap_or_else(|| format!("landscape-{name}-{world}").into());
    std::fs::create_dir_all(&place).map_err(|source| CliError::Terminal { attempt: "create the folder", source })?;
    let path = tune_trials(&place);
    if path.exists() {
        let path = path.display();
        return Err(CliError::Usage(format!("{path} is there already, and nothing is overwritten: choose another -o")));
    }
    let mut log = TuneWriter::create(&path, &file.head)?;
    for trial in &file.trials {
        log.trial(trial)?;
    }
    out.remark(format!("{} settings, {} launches: {}", space.size(), file.trials.len(), path.display()));
    Ok(Exit::Pass)
}
