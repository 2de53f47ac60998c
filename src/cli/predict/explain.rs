//! `rigscale predict --explain RUN`: why a run differs from the prediction of its machine.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::Serialize;

use crate::cli::CliError;
use crate::cli::probe::wrapped_at;
use crate::cli::verdict::judge_folder;
use crate::predict::{Alone, Board, Calibration, Exchange, Explanation, P2p, explain};
use crate::record::{Device, Origin, RunFiles, RunFolder};

use super::ask::Asked;
use super::vary::edited;
use super::{Args, exchange};

/// The gap at every world size of a run.
#[derive(Serialize)]
pub(super) struct Explained {
    run: String,
    platform: String,
    title: String,
    /// What a reader should know before trusting the causes.
    notes: Vec<String>,
    worlds: Vec<Explanation>,
}

/// Explains the run on the platform of the command line, or on the machine that it was measured on.
///
/// # Errors
/// The run or the platform cannot be read, or nothing in the run can be explained.
pub(super) fn explained(args: &Args, run: &Path) -> Result<Explained, CliError> {
    let folder = RunFolder::open(run)?;
    let analysis = judge_folder(&folder)?;
    let files = folder.read()?;
    one_setting(args, &files)?;
    let board = machine(args, &folder, &files)?;
    let alone = if args.step.is_some() { Asked::of(args)?.alone() } else { Alone::Catalogue };
    let training = Asked::like(args, &files, alone)?.as_run();
    let exchange = as_told(args, &files);
    let worlds = explain(&board, (&training, &exchange, &Calibration::default()), &files, &analysis.points)?;
    let mut notes = Vec::new();
    if analysis.device == Device::Cpu {
        let text = "ranks are CPU cores and the platform's are GPUs: the gap lies between two kinds of machine";
        notes.push(text.to_owned());
    }
    if analysis.origin == Origin::Simulated {
        notes.push("the run is itself a prediction".to_owned());
    }
    notes.extend(analysis.flags.iter().map(|flag| format!("{}: {}", flag.code, flag.text)));
    Ok(Explained { run: analysis.run, platform: board.name, title: board.title, notes, worlds })
}

/// Lists are for sweeps; a run was one setting.
fn one_setting(args: &Args, files: &RunFiles) -> Result<(), CliError> {
    if 1 < args.p2p.len() || 1 < args.accumulate.len() || args.set.iter().any(|edit| edit.contains(',')) {
        return Err(CliError::Usage("--explain takes one value each: a run was trained in one way".to_owned()));
    }
    let own = files.plan.config.accumulate;
    if let Some(other) = args.accumulate.first().filter(|other| **other as usize != own) {
        let text = format!("--accumulate {other}: the run was trained with {own}; leave --accumulate out");
        return Err(CliError::Usage(text));
    }
    let hosts = hosts(files);
    if args.hosts as usize != hosts {
        let text = format!("the run spans {hosts} hosts: give --hosts {hosts} and, from 2 on, --network 25GB/s,10us");
        return Err(CliError::Usage(text));
    }
    Ok(())
}

/// Hosts that a run spans: as often as one GPU's address is a share's, unless ranks share a GPU; a simulated run names
/// them.
fn hosts(files: &RunFiles) -> usize {
    let mut names: BTreeMap<&str, usize> = BTreeMap::new();
    for gpu in files.plan.shares.iter().filter_map(|share| share.gpu.as_deref()) {
        let slot = match gpu.split_once('/') {
            Some((host, slot)) if host.starts_with("host-") => slot,
            _ => gpu,
        };
        *names.entry(slot).or_default() += 1;
    }
    if files.plan.share_gpu { 1 } else { names.into_values().max().unwrap_or(1) }
}

/// The machine of the command line, or that of the run: its topology, or the platform that it was predicted on.
fn machine(args: &Args, folder: &RunFolder, files: &RunFiles) -> Result<Board, CliError> {
    let topology = folder.topology();
    let predicted = files.plan.fields.iter().find(|field| field.key == "platform").map(|field| field.value.clone());
    let own = match predicted.filter(|_| !topology.is_file()) {
        Some(name) => name,
        None => topology.display().to_string(),
    };
    let mut machines = edited(args, args.platform.as_deref().unwrap_or(&own), None)?;
    Ok(machines.swap_remove(0).1)
}

/// The exchange as NCCL was told in the run, where the command line does not say.
fn as_told(args: &Args, files: &RunFiles) -> Exchange {
    let heads = || files.trials.values().flat_map(|ranks| ranks.values()).map(|file| &file.head);
    let environments = heads().filter_map(|head| head.transport.as_ref()).map(|transport| &transport.environment);
    let told = |name: &str| {
        let found = environments.clone().chain([&files.plan.nccl.environment]).find_map(|all| all.get(name));
        found.map(String::as_str)
    };
    let p2p = match (args.p2p.first(), told("NCCL_P2P_DISABLE"), told("NCCL_P2P_LEVEL")) {
        (Some(p2p), ..) => *p2p,
        (None, Some("1"), _) => P2p::Off,
        (None, _, Some("SYS")) => P2p::On,
        _ => P2p::Auto,
    };
    let version = heads().find_map(|head| head.software.get("nccl")?.parse().ok());
    let asked = exchange(args, p2p);
    Exchange {
        nccl: args.nccl.or(version).unwrap_or(asked.nccl),
        min_channels: asked.min_channels.or(files.plan.nccl.min_ctas),
        ..asked
    }
}

impl fmt::Display for Explained {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{} on {}", self.run, self.title)?;
        for world in &self.worlds {
            writeln!(out)?;
            draw(out, world)?;
        }
        if !self.notes.is_empty() {
            writeln!(out)?;
        }
        self.notes.iter().try_for_each(|note| out.write_str(&wrapped_at("note    ", note)))
    }
}

/// One world size. Each printed figure is the difference of two rounded positions between prediction and measurement,
/// so that the printed figures sum as the exact ones do.
fn draw(out: &mut fmt::Formatter<'_>, world: &Explanation) -> fmt::Result {
    let (predicted, measured) = (world.predicted, world.measured);
    let hundredths = |value: f64| (value * 100.0).round() as i64;
    let row = |name: &str, step_s: f64, efficiency: f64| {
        let (ms, points) = (hundredths(step_s * 1e3) as f64 / 100.0, hundredths(efficiency * 1e2) as f64 / 100.0);
        format!("  {name:12}{ms:>10.2} ms {points:>7.2}")
    };
    writeln!(out, "{} ranks{:>18} {:>7}", world.world, "step", "efficiency in points")?;
    writeln!(out, "{}", row("predicted", predicted.step_s.0, predicted.efficiency))?;
    let (mut step_s, mut efficiency) = (predicted.step_s.0, predicted.efficiency);
    for part in &world.parts {
        let (to_s, to) = (step_s + part.step_s.0, efficiency + part.efficiency);
        let ms = hundredths(to_s * 1e3) - hundredths(step_s * 1e3);
        let points = hundredths(to * 1e2) - hundredths(efficiency * 1e2);
        let figures =
            format!("  {:12}{:>+10.2} ms {:>+7.2}  ", part.cause.name(), ms as f64 / 100.0, points as f64 / 100.0);
        out.write_str(&wrapped_at(&figures, &part.what))?;
        (step_s, efficiency) = (to_s, to);
    }
    writeln!(out, "{}", row("measured", measured.step_s.0, measured.efficiency))
}
