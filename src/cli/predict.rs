//! `rigscale predict`: what a machine should reach, and what would change it.

use std::fmt;
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;
use comfy_table::CellAlignment;
use serde::Serialize;

use crate::model::preset;
use crate::predict::{
    Board, Calibration, Exchange, Forecast, NcclVersion, Network, P2p, PredictError, Training, card, duration, edit,
    forecast, from_topology, parse_platform, platform, platform_names, rate,
};
use crate::record::read_text;
use crate::topology::{YAML_BYTES_MAX, from_yaml};
use crate::units::{Bytes, Seconds, grouped};

use super::probe::{plain_table, write_table};
use super::{CliError, Exit, Output};

/// More variants than this are refused: each is a row that nobody reads.
const VARIANTS_MAX: usize = 10_000;

/// Predicts the scaling efficiency of a machine, with an interval, and what a change would bring
///
/// The platform is a name from `--list`, a platform file, or the topology.yaml of a probed machine. Options that take a
/// list are swept: each combination is a row.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  rigscale predict --list
  rigscale predict asrock-romed8-2t --model llama-1b --gpus 2,4
  rigscale predict asrock-romed8-2t --gpus 4 --p2p auto,on --gpu rtx-4090,rtx-pro-6000
  rigscale predict reports/today/topology.yaml --gpus 4 --set 0000:41:00.0.width=8")]
pub(super) struct Args {
    /// Name of a platform, a platform file, or a topology.yaml
    #[arg(value_name = "PLATFORM", required_unless_present = "list")]
    platform: Option<String>,

    /// List the platforms
    #[arg(long)]
    list: bool,

    /// Model to train, as `rigscale models` lists them
    #[arg(long, value_name = "NAME", default_value = "llama-1b")]
    model: String,

    /// GPUs in each host; all that the platform holds if not given
    #[arg(long, value_name = "N,…", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=64))]
    gpus: Vec<u32>,

    /// Cards in place of the platform's own
    #[arg(long, value_name = "CARD,…", value_delimiter = ',')]
    gpu: Vec<String>,

    /// Sequences per GPU and micro-step
    #[arg(long, value_name = "SEQUENCES", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch: u32,

    /// Tokens per sequence
    #[arg(long, value_name = "TOKENS", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(2..=131_072))]
    context: u32,

    /// Micro-steps per optimizer step
    #[arg(long, value_name = "STEPS,…", value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    accumulate: Vec<u32>,

    /// Size of a gradient bucket
    #[arg(long, value_name = "MIB,…", value_delimiter = ',', default_value = "25", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    bucket_mib: Vec<u32>,

    /// Peer access: auto as NCCL decides, on (NCCL_P2P_LEVEL=SYS), off (NCCL_P2P_DISABLE=1)
    #[arg(long, value_name = "MODE,…", value_delimiter = ',', default_value = "auto")]
    p2p: Vec<P2p>,

    /// Edit the machine: NODE.width, NODE.gen or NODE.rate, such as slot.3.width=8
    #[arg(long, value_name = "EDIT")]
    set: Vec<String>,

    /// Step of one GPU alone, measured; from the catalogue if not given, and then the interval is wider
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    step: Option<Seconds>,

    /// Version of NCCL
    #[arg(long, value_name = "VERSION", default_value = "2.30.7")]
    nccl: NcclVersion,

    /// NCCL_MIN_CTAS, where it is set
    #[arg(long, value_name = "CTAS", value_parser = clap::value_parser!(u32).range(1..=64))]
    min_ctas: Option<u32>,

    /// Hosts like this one
    #[arg(long, value_name = "HOSTS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    hosts: u32,

    /// Network between the hosts: rate and latency, such as 25GB/s,10us
    #[arg(long, value_name = "RATE,LATENCY", value_parser = network)]
    network: Option<Network>,
}

fn network(text: &str) -> Result<Network, String> {
    let (speed, latency) = text.split_once(',').ok_or("expected rate and latency, such as 25GB/s,10us")?;
    Ok(Network { rate: rate(speed)?, latency: duration(latency)? })
}

#[derive(Serialize)]
struct Listing {
    platforms: Vec<Listed>,
}

#[derive(Serialize)]
struct Listed {
    name: &'static str,
    title: String,
    gpus: usize,
    card: String,
}

/// One row.
#[derive(Serialize)]
struct Variant {
    gpus: usize,
    card: String,
    p2p: P2p,
    bucket_mib: u32,
    accumulate: u32,
    #[serde(flatten)]
    forecast: Forecast,
}

#[derive(Serialize)]
struct Prediction {
    platform: String,
    title: String,
    model: String,
    batch: u32,
    context: u32,
    notes: Vec<String>,
    variants: Vec<Variant>,
}

/// Prints the platforms, or a prediction.
///
/// # Errors
/// The platform, a card, the model or an edit cannot be used.
pub(super) fn run(args: &Args, out: &Output) -> Result<Exit, CliError> {
    let terminal = |source| CliError::Terminal { attempt: "print the prediction", source };
    match &args.platform {
        Some(name) if !args.list => out.emit(&predict(args, name)?).map_err(terminal)?,
        _ => out.emit(&list()?).map_err(terminal)?,
    }
    Ok(Exit::Pass)
}

fn list() -> Result<Listing, CliError> {
    let row = |name: &'static str| {
        let board = platform(name)?;
        Ok(Listed { name, gpus: board.seats.len(), card: board.seats[0].card.name.clone(), title: board.title })
    };
    Ok(Listing { platforms: platform_names().map(row).collect::<Result<_, PredictError>>()? })
}

fn board(name: &str) -> Result<Board, CliError> {
    let path = Path::new(name);
    if !path.is_file() {
        return Ok(platform(name)?);
    }
    let text = read_text(path, YAML_BYTES_MAX as u64)?;
    if text.lines().any(|line| line.starts_with("machine:")) {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        return Ok(from_topology(&from_yaml(&text, name)?, &stem)?);
    }
    Ok(parse_platform(&text, &PathBuf::from(name).display().to_string())?)
}

fn predict(args: &Args, name: &str) -> Result<Prediction, CliError> {
    let mut whole = board(name)?;
    for text in &args.set {
        edit(&mut whole, text)?;
    }
    let shape = preset(&args.model)?.shape;
    let gpus: Vec<usize> = match args.gpus.is_empty() {
        true => vec![whole.seats.len()],
        false => args.gpus.iter().map(|count| *count as usize).collect(),
    };
    let cards: Vec<Option<&str>> = match args.gpu.is_empty() {
        true => vec![None],
        false => args.gpu.iter().map(|card| Some(card.as_str())).collect(),
    };
    let count = gpus.len() * cards.len() * args.p2p.len() * args.bucket_mib.len() * args.accumulate.len();
    if VARIANTS_MAX < count {
        return Err(CliError::Usage(format!("{count} variants are too many: at most {VARIANTS_MAX}")));
    }
    let mut variants = Vec::new();
    for (card_name, count) in cards.iter().flat_map(|card| gpus.iter().map(move |count| (*card, *count))) {
        let too_many = |slots| PredictError::TooMany { asked: count, board: whole.name.clone(), slots };
        let mut board = whole.with_gpus(count).map_err(too_many)?;
        if let Some(name) = card_name {
            let card = card(name)?;
            board.seats.iter_mut().for_each(|seat| (seat.card, seat.peer) = (card.clone(), None));
        }
        for p2p in &args.p2p {
            for (bucket, accumulate) in
                args.bucket_mib.iter().flat_map(|bucket| args.accumulate.iter().map(move |steps| (*bucket, *steps)))
            {
                variants.push(variant(args, &board, shape, (*p2p, bucket, accumulate))?);
            }
        }
    }
    Ok(Prediction {
        platform: whole.name,
        title: whole.title,
        model: args.model.clone(),
        batch: args.batch,
        context: args.context,
        notes: whole.notes,
        variants,
    })
}

fn variant(
    args: &Args,
    board: &Board,
    shape: crate::model::Shape,
    (p2p, bucket_mib, accumulate): (P2p, u32, u32),
) -> Result<Variant, CliError> {
    let exchange = Exchange {
        nccl: args.nccl,
        p2p,
        min_channels: args.min_ctas,
        hosts: args.hosts as usize,
        network: args.network,
    };
    let training = Training {
        shape,
        batch: args.batch as usize,
        context: args.context as usize,
        accumulate: accumulate as usize,
        bucket: Bytes::mebi(f64::from(bucket_mib)),
        first_bucket: Bytes::mebi(1.0),
        measured_step: args.step,
    };
    let forecast = forecast(board, &training, &exchange, &Calibration::default())?;
    let (gpus, card) = (board.seats.len(), board.seats[0].card.name.clone());
    Ok(Variant { gpus, card, p2p, bucket_mib, accumulate, forecast })
}

impl fmt::Display for Listing {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for row in &self.platforms {
            writeln!(out, "{:29} {} × {}", row.name, row.gpus, row.card)?;
            out.write_str(&super::probe::wrapped_at("    ", &row.title))?;
        }
        Ok(())
    }
}

/// A column that is shown where it varies: its name, and what stands in it.
type Column = (&'static str, fn(&Variant) -> String);

impl fmt::Display for Prediction {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{}", self.title)?;
        writeln!(out, "{}, batch {}, context {}", self.model, self.batch, self.context)?;
        // what does not vary is said once, so that a row fits
        let varies = |of: fn(&Variant) -> String| self.variants.iter().any(|row| of(row) != of(&self.variants[0]));
        let columns: [Column; 4] = [
            ("card", |row| row.card.clone()),
            ("P2P", |row| format!("{:?}", row.p2p).to_lowercase()),
            ("bucket", |row| format!("{} MiB", row.bucket_mib)),
            ("accum", |row| row.accumulate.to_string()),
        ];
        for (name, of) in columns.iter().filter(|(_, of)| !varies(*of)) {
            writeln!(out, "{name:11} {}", of(&self.variants[0]))?;
        }
        let shown: Vec<_> = columns.iter().filter(|(_, of)| varies(*of)).collect();
        let mut table = plain_table();
        let names = shown.iter().map(|(name, _)| *name);
        table.set_header(["GPUs"].into_iter().chain(names).chain(["efficiency", "90 %", "tokens/s", "GB/s", "by"]));
        for row in &self.variants {
            let (cast, efficiency) = (&row.forecast, row.forecast.efficiency);
            let mut hops: Vec<String> = cast.ring.transports.iter().map(ToString::to_string).collect();
            hops.sort();
            hops.dedup();
            let (bus, hops) = match cast.world {
                1 => ("–".to_owned(), "–".to_owned()),
                _ => (grouped(cast.ring.bus.0 / 1e9), hops.join("+").replace("host memory", "host")),
            };
            let cells = shown.iter().map(|(_, of)| of(row));
            let results = [
                format!("{:.2}", efficiency.estimate),
                format!("{:.2}–{:.2}", efficiency.low, efficiency.high),
                grouped(cast.rate.0),
                bus,
                hops,
            ];
            table.add_row([cast.world.to_string()].into_iter().chain(cells).chain(results));
        }
        let rates = table.column_count().saturating_sub(3);
        if let Some(column) = table.column_mut(rates) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        write_table(out, &table)?;
        self.reasons(out)
    }
}

impl Prediction {
    /// What limits, where a lone row is asked for where the step goes, hazards once each, and what was assumed.
    fn reasons(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out)?;
        if let [row] = &self.variants[..] {
            let time = &row.forecast.time;
            writeln!(out, "step {}: alone {}, exposed {}", time.step, time.alone, time.exposed)?;
            writeln!(out, "  beside buckets slower by {}, slowest rank {}", time.slowdown, time.straggler)?;
            writeln!(out, "limit: {}\n", row.forecast.ring.limit)?;
        }
        let mut said = Vec::new();
        for hazard in self.variants.iter().flat_map(|row| &row.forecast.hazards) {
            if !said.contains(&hazard.code) {
                said.push(hazard.code);
                out.write_str(&super::probe::wrapped_at("hazard  ", &format!("{}: {}", hazard.code, hazard.text)))?;
                out.write_str(&super::probe::wrapped_at("        ", hazard.remedy))?;
            }
        }
        for note in &self.notes {
            out.write_str(&super::probe::wrapped_at("note    ", note))?;
        }
        if self.variants.iter().any(|row| row.forecast.catalogue) {
            out.write_str(&super::probe::wrapped_at(
                "note    ",
                "the step of one GPU is from the catalogue: --step with a measured one narrows the interval",
            ))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_and_a_sweep_fit_80_columns() {
        let text = list().unwrap().to_string();
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: Args,
        }
        let words = ["x", "asus-esc8000a-e13p", "--gpus", "1,8", "--gpu", "rtx-pro-6000-max-q", "--p2p", "auto,on"];
        let args = <Line as clap::Parser>::try_parse_from(words).unwrap().args;
        let prediction = predict(&args, "asus-esc8000a-e13p").unwrap();
        assert_eq!(prediction.variants.len(), 4);
        let text = prediction.to_string();
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.contains("hazard") && text.contains("catalogue"), "{text}");
    }
}
