//! `rigscale predict`: what a machine should reach, and what would change it.

mod ask;
mod draw;
mod explain;
mod keep;
mod table;

use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;
use serde::Serialize;

use crate::predict::{
    Board, Calibration, Exchange, Forecast, Framework, NcclVersion, Network, P2p, PredictError, card, duration, edit,
    forecast, from_topology, parse_platform, platform, platform_names, rate,
};
use crate::record::read_text;
use crate::topology::{YAML_BYTES_MAX, from_yaml};
use crate::units::Bytes;

use self::ask::{Asked, StepFrom};
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
  rigscale predict reports/today/topology.yaml --gpus 4 --set 0000:41:00.0.width=8
  rigscale predict asrock-romed8-2t --gpus 1,2,4 --step reports/one-gpu -o reports/predicted
  rigscale predict --explain reports/today")]
pub(super) struct Args {
    /// Name of a platform, a platform file, or a topology.yaml; with --explain, that of the run if not given
    #[arg(value_name = "PLATFORM", required_unless_present_any = ["list", "explain"])]
    platform: Option<String>,

    /// List the platforms
    #[arg(long)]
    list: bool,

    /// Model to train, as `rigscale models` lists them [default: that of --step's run, or llama-1b]
    #[arg(long, value_name = "NAME")]
    model: Option<String>,

    /// GPUs in each host; all that the platform holds if not given
    #[arg(long, value_name = "N,…", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=64))]
    gpus: Vec<u32>,

    /// Cards in place of the platform's own
    #[arg(long, value_name = "CARD,…", value_delimiter = ',')]
    gpu: Vec<String>,

    /// Sequences per GPU and micro-step [default: that of --step's run, or 4]
    #[arg(long, value_name = "SEQUENCES", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch: Option<u32>,

    /// Tokens per sequence [default: that of --step's run, or 2048]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(2..=131_072))]
    context: Option<u32>,

    /// Micro-steps per optimizer step [default: that of --step's run, or 1]
    #[arg(long, value_name = "STEPS,…", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=65_536))]
    accumulate: Vec<u32>,

    /// Who trains: rigscale, whose buckets leave as they fill, or apex, the DDP of the published rows (2020 to 2022)
    #[arg(long, value_name = "NAME", default_value = "rigscale")]
    framework: Framework,

    /// Size of a gradient bucket [default: 25, with apex 19; that of --step's run]
    #[arg(long, value_name = "MIB,…", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=65_536))]
    bucket_mib: Vec<u32>,

    /// Peer access: auto as NCCL decides, on (NCCL_P2P_LEVEL=SYS), off (NCCL_P2P_DISABLE=1)
    /// [default: auto, or as the run of --explain was told]
    #[arg(long, value_name = "MODE,…", value_delimiter = ',')]
    p2p: Vec<P2p>,

    /// Edit the machine: NODE.width, NODE.gen or NODE.rate, such as slot.3.width=8
    #[arg(long, value_name = "EDIT")]
    set: Vec<String>,

    /// Step of one GPU alone, measured: a duration such as 420ms, or a run folder whose arm `solo` is taken, with its
    /// model, batch and context; from the catalogue if not given, and then the interval is wider
    #[arg(long, value_name = "DURATION|RUN")]
    step: Option<StepFrom>,

    /// Version of NCCL [default: 2.30.7, or that of --explain's run]
    #[arg(long, value_name = "VERSION")]
    nccl: Option<NcclVersion>,

    /// NCCL_MIN_CTAS, where it is set
    #[arg(long, value_name = "CTAS", value_parser = clap::value_parser!(u32).range(1..=64))]
    min_ctas: Option<u32>,

    /// Hosts like this one
    #[arg(long, value_name = "HOSTS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    hosts: u32,

    /// Network between the hosts: rate and latency, such as 25GB/s,10us
    #[arg(long, value_name = "RATE,LATENCY", value_parser = network)]
    network: Option<Network>,

    /// Explain a measured run: the gap to the prediction of its machine, cause by cause
    #[arg(long, value_name = "RUN", conflicts_with_all = ["list", "gpus", "gpu", "out", "chart"])]
    explain: Option<PathBuf>,

    /// Efficiency that is wanted
    #[arg(long, value_name = "EFFICIENCY", default_value_t = 0.9, value_parser = ask::target)]
    target: f64,

    /// Draw the variants with their intervals against the target: an .svg or .png file
    #[arg(long, value_name = "FILE")]
    chart: Option<PathBuf>,

    /// Write the prediction as a run folder, which `rigscale analyze` and `rigscale report` take
    #[arg(long, short, value_name = "DIR")]
    out: Option<PathBuf>,
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

const MEBI: f64 = 1_048_576.0;

/// What varies between rows: its name, and what stands in its column.
type Column = (&'static str, fn(&Variant) -> String);

/// Everything that may vary but the number of GPUs.
const COLUMNS: [Column; 4] = [
    ("card", |row| row.card.clone()),
    ("P2P", |row| format!("{:?}", row.p2p).to_lowercase()),
    ("bucket", |row| format!("{:.0} MiB", row.bucket_bytes.0 as f64 / MEBI)),
    ("accum", |row| row.accumulate.to_string()),
];

/// One row.
#[derive(Serialize)]
struct Variant {
    gpus: usize,
    card: String,
    p2p: P2p,
    bucket_bytes: Bytes,
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
    framework: Framework,
    target: f64,
    notes: Vec<String>,
    variants: Vec<Variant>,
}

/// Prints the platforms, or a prediction, which is kept if asked.
///
/// # Errors
/// The platform, a card, the model or an edit cannot be used, or the folder not be written.
pub(super) fn run(args: &Args, out: &Output) -> Result<Exit, CliError> {
    let terminal = |source| CliError::Terminal { attempt: "print the prediction", source };
    if let Some(run) = &args.explain {
        let explained = explain::explained(args, run)?;
        out.emit(&explained).map_err(terminal)?;
        return Ok(Exit::Pass);
    }
    let name = match &args.platform {
        Some(name) if !args.list => name,
        _ => {
            out.emit(&list()?).map_err(terminal)?;
            return Ok(Exit::Pass);
        }
    };
    let asked = Asked::of(args)?;
    if let Some(warning) = &asked.warning {
        out.remark(format!("warning: {warning}"));
    }
    let prediction = predict(args, &asked, name)?;
    if let Some(folder) = &args.out {
        keep::keep(args, &asked, name, &prediction, folder)?;
    }
    if let Some(path) = &args.chart {
        draw::draw(&prediction, path)?;
    }
    out.emit(&prediction).map_err(terminal)?;
    if let Some(path) = &args.chart {
        out.remark(format!("written to {}", path.display()));
    }
    if let Some(folder) = &args.out {
        let folder = folder.display();
        out.remark(format!("written to {folder}; `rigscale analyze {folder}` reads it"));
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
    if is_topology(&text) {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        return Ok(from_topology(&from_yaml(&text, name)?, &stem)?);
    }
    Ok(parse_platform(&text, &PathBuf::from(name).display().to_string())?)
}

/// True for what `probe` writes: a platform has no such key.
fn is_topology(text: &str) -> bool {
    text.lines().any(|line| line.starts_with("machine:"))
}

/// The platform with its edits.
fn edited(args: &Args, name: &str) -> Result<Board, CliError> {
    let mut board = board(name)?;
    for text in &args.set {
        edit(&mut board, text)?;
    }
    Ok(board)
}

/// The machine with so many GPUs, of another card if one is named.
fn filled(whole: &Board, count: usize, name: Option<&str>) -> Result<Board, CliError> {
    let too_many = |slots| PredictError::TooMany { asked: count, board: whole.name.clone(), slots };
    let mut board = whole.with_gpus(count).map_err(too_many)?;
    if let Some(name) = name {
        let card = card(name)?;
        board.seats.iter_mut().for_each(|seat| (seat.card, seat.peer) = (card.clone(), None));
    }
    Ok(board)
}

fn predict(args: &Args, asked: &Asked, name: &str) -> Result<Prediction, CliError> {
    let whole = edited(args, name)?;
    let gpus: Vec<usize> = match args.gpus.is_empty() {
        true => vec![whole.seats.len()],
        false => args.gpus.iter().map(|count| *count as usize).collect(),
    };
    let cards: Vec<Option<&str>> = match args.gpu.is_empty() {
        true => vec![None],
        false => args.gpu.iter().map(|card| Some(card.as_str())).collect(),
    };
    let modes = if args.p2p.is_empty() { vec![P2p::Auto] } else { args.p2p.clone() };
    let buckets = asked.bucket_sizes(args);
    let count = gpus.len() * cards.len() * modes.len() * buckets.len() * asked.accumulate.len();
    if VARIANTS_MAX < count {
        return Err(CliError::Usage(format!("{count} variants are too many: at most {VARIANTS_MAX}")));
    }
    let mut variants = Vec::new();
    for (card, count) in cards.iter().flat_map(|card| gpus.iter().map(move |count| (*card, *count))) {
        let board = filled(&whole, count, card)?;
        for p2p in &modes {
            let sizes = buckets.iter().flat_map(|size| asked.accumulate.iter().map(move |steps| (*size, *steps)));
            for (bucket, accumulate) in sizes {
                variants.push(variant(args, asked, &board, (*p2p, bucket, accumulate))?);
            }
        }
    }
    Ok(Prediction {
        platform: whole.name,
        title: whole.title,
        model: asked.model.clone(),
        batch: asked.batch,
        context: asked.context,
        framework: asked.framework,
        target: args.target,
        notes: whole.notes,
        variants,
    })
}

fn exchange(args: &Args, p2p: P2p) -> Exchange {
    let (hosts, network) = (args.hosts as usize, args.network);
    let nccl = args.nccl.unwrap_or(NcclVersion::MODELLED);
    Exchange { nccl, p2p, min_channels: args.min_ctas, hosts, network }
}

fn variant(
    args: &Args,
    asked: &Asked,
    board: &Board,
    (p2p, bucket_bytes, accumulate): (P2p, Bytes, u32),
) -> Result<Variant, CliError> {
    let training = asked.training(bucket_bytes, accumulate);
    let forecast = forecast(board, &training, &exchange(args, p2p), &Calibration::default())?;
    let (gpus, card) = (board.seats.len(), board.seats[0].card.name.clone());
    Ok(Variant { gpus, card, p2p, bucket_bytes, accumulate, forecast })
}

impl Prediction {
    /// Columns whose values differ between rows, or that do not.
    fn columns(&self, varying: bool) -> Vec<Column> {
        let varies = |of: fn(&Variant) -> String| self.variants.iter().any(|row| of(row) != of(&self.variants[0]));
        COLUMNS.into_iter().filter(|(_, of)| varies(*of) == varying).collect()
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
        let prediction = predict(&args, &Asked::of(&args).unwrap(), "asus-esc8000a-e13p").unwrap();
        assert_eq!(prediction.variants.len(), 4);
        let text = prediction.to_string();
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.contains("hazard") && text.contains("catalogue"), "{text}");
    }
}
