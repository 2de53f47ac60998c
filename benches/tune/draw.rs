//! Which simulated machines are kept as landscapes: a rule that knows the machines without their noise, and nothing of any
//! search. `tests/tune/README.md` says it in words.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs;
use std::path::Path;

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rigscale::predict::platform_names;
use rigscale::record::TuneWriter;
use rigscale::tune::{Case, Simulated, canonical};

/// Numbers of GPUs, where the platform has seats for them.
const WORLDS: [usize; 3] = [2, 4, 8];

/// Models with sequences per rank and tokens per sequence.
const WORKLOADS: [(&str, usize, usize); 7] = [
    ("llama-125m", 1, 1024),
    ("llama-125m", 8, 1024),
    ("llama-350m", 2, 1024),
    ("llama-350m", 8, 2048),
    ("llama-1b", 1, 2048),
    ("llama-1b", 4, 2048),
    ("llama-3b", 1, 2048),
];

/// Settings of a landscape, at least.
const SETTINGS: usize = 60;

/// Launches of each setting.
const LAUNCHES: u32 = 5;

/// Where the best setting beats the default by so much, settings matter; where by no more than the other, they do not.
const MATTERS: f64 = 0.03;
const FLAT: f64 = 0.01;

/// Landscapes drawn of either kind.
const WANTED: [usize; 2] = [8, 2];

/// The lot by which those of `tests/tune` were drawn.
pub(crate) const LOT: u64 = 1;

/// Launches scatter by 0.2 to 0.8 %, drawn for each landscape: believed of GPUs that do nothing else. No landscape of such
/// GPUs is recorded yet.
const SPREADS: (f64, f64) = (0.002, 0.008);

/// A machine with a training, and by how much longer the default's step is than the best one's.
struct Candidate {
    case: Case,
    gain: f64,
}

/// Writes the landscapes that the rule gives with a lot, in place of those that are there.
///
/// # Errors
/// A platform cannot be read, or a file not be written.
pub(crate) fn draw(folder: &Path, lot: u64) -> Result<(), Box<dyn Error>> {
    let all = candidates()?;
    let count = |holds: fn(f64) -> bool| all.iter().filter(|one| holds(one.gain)).count();
    println!(
        "{} machines with a training: on {} the default is within 1 %, on {} the best setting beats it by 3 % and more",
        all.len(),
        count(|gain| gain <= FLAT),
        count(|gain| MATTERS <= gain),
    );
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("simulated-")) {
            fs::remove_file(path)?;
        }
    }
    let mut random = ChaCha8Rng::seed_from_u64(lot);
    let mut platforms = BTreeSet::new();
    for (kind, wanted) in WANTED.into_iter().enumerate() {
        let mut lots: Vec<&Candidate> =
            all.iter().filter(|one| if kind == 0 { MATTERS <= one.gain } else { one.gain <= FLAT }).collect();
        lots.shuffle(&mut random);
        // no platform twice
        lots.retain(|one| {
            platforms.len() < WANTED[..=kind].iter().sum::<usize>() && platforms.insert(one.case.platform.clone())
        });
        if lots.len() < wanted {
            return Err(format!("{} landscapes of {wanted} could be drawn", lots.len()).into());
        }
        for one in lots {
            let share = f64::from(random.next_u32()) / f64::from(u32::MAX);
            write(folder, one, SPREADS.0 * (SPREADS.1 / SPREADS.0).powf(share))?;
        }
    }
    Ok(())
}

/// Every platform with every number of GPUs and every training that fits its cards and leaves enough settings, the
/// machine's differences from its model drawn by its place in this list.
fn candidates() -> Result<Vec<Candidate>, Box<dyn Error>> {
    let mut all = Vec::new();
    let mut seed = 0;
    for name in platform_names() {
        for (world, (model, batch, context)) in WORLDS.into_iter().flat_map(|world| WORKLOADS.map(|work| (world, work)))
        {
            seed += 1;
            let config = canonical(model, batch, context, seed).ok_or("a model is unknown")?;
            // a platform with fewer seats is no candidate
            let Ok(case) = Case::new(name, world, config) else { continue };
            let grid = case.space(SETTINGS, false).grid();
            if grid.len() < SETTINGS || !case.outlook().fits() {
                continue;
            }
            let machine = Simulated::drawn(case.outlook(), seed);
            let steps: Option<Vec<f64>> = grid.iter().map(|setting| Some(machine.truth(setting)?.0)).collect();
            let Some(steps) = steps else { continue };
            let best = steps.iter().copied().fold(f64::INFINITY, f64::min);
            // the default is the first of a grid
            all.push(Candidate { case, gain: steps[0] / best - 1.0 });
        }
    }
    Ok(all)
}

fn write(folder: &Path, one: &Candidate, spread: f64) -> Result<(), Box<dyn Error>> {
    let case = &one.case;
    let space = case.space(SETTINGS, false);
    // a machine that is simulated has no hour: what is drawn again is the same to the byte
    let head = case.head(&space, jiff::Timestamp::UNIX_EPOCH);
    let file = Simulated::drawn(case.outlook(), case.config.seed).sweep(head, &space, spread, LAUNCHES);
    let name = format!("simulated-{}-{}.jsonl", case.platform, case.board.seats.len());
    let mut log = TuneWriter::create(&folder.join(&name), &file.head)?;
    for trial in &file.trials {
        log.trial(trial)?;
    }
    println!(
        "{name}: {} with {} × {}, {} settings, the default {:.1} % behind, launches scatter by {:.2} %",
        case.config.model,
        case.config.batch,
        case.config.context,
        space.size(),
        one.gain * 100.0,
        spread * 100.0
    );
    Ok(())
}
