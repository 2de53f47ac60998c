//! `rigscale predict`: what a machine should reach, and what would change it.

mod ask;
mod draw;
mod explain;
mod keep;
mod sketch;
mod table;
mod vary;

use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;
use serde::Serialize;

use crate::predict::{
    Board, Card, Exchange, Forecast, Framework, NcclVersion, Network, P2p, PredictError, duration, from_topology_with,
    parse_platform, platform, platform_names, rate,
};
use crate::record::{Interval, read_text, write_whole};
use crate::report::{printable_text, sketch_svg};
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
  rigscale predict asrock-romed8-2t --gpus 4 --set slot.3.width=4,8 --svg board.svg
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
    #[arg(long, value_name = "SEQUENCES", value_parser = ask::batch)]
    batch: Option<u32>,

    /// Tokens per sequence [default: that of --step's run, or 2048]
    #[arg(long, value_name = "TOKENS", value_parser = ask::context)]
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

    /// Slots to fill, such as slot-1,slot-4; if not given, the first of the platform, and a smaller number of GPUs spread
    /// over those of the largest, as the launcher does
    #[arg(long, value_name = "SLOT,…", value_delimiter = ',', conflicts_with = "explain")]
    slots: Vec<String>,

    /// Edit the machine: NODE.width, NODE.gen or NODE.rate, such as slot.3.width=8, or a sweep: slot.3.width=4,8; the
    /// machine as it is stays the first row
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
    #[arg(long, value_name = "RUN", conflicts_with_all = ["list", "gpus", "gpu", "out", "chart", "bucket_mib", "svg"])]
    explain: Option<PathBuf>,

    /// Efficiency that is wanted
    #[arg(long, value_name = "EFFICIENCY", default_value_t = 0.9, value_parser = ask::target)]
    target: f64,

    /// Draw the variants with their intervals against the target: an .svg or .png file
    #[arg(long, value_name = "FILE")]
    chart: Option<PathBuf>,

    /// Draw the machine with its slots and links, what limits it marked: an .svg file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,

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
const COLUMNS: [Column; 5] = [
    ("card", |row| row.card.clone()),
    ("P2P", |row| format!("{:?}", row.p2p).to_lowercase()),
    ("bucket", |row| format!("{:.0} MiB", row.bucket_bytes.0 as f64 / MEBI)),
    ("accum", |row| row.accumulate.to_string()),
    ("edit", |row| row.edit.clone().unwrap_or_else(|| "as it is".to_owned())),
];

/// One row.
#[derive(Serialize)]
struct Variant {
    gpus: usize,
    card: String,
    p2p: P2p,
    bucket_bytes: Bytes,
    accumulate: u32,
    /// What `--set` made of the machine; none: as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    edit: Option<String>,
    /// Whether the wanted efficiency is reached.
    reaches: Reaches,
    #[serde(skip)]
    board: Board,
    #[serde(flatten)]
    forecast: Forecast,
}

/// Whether an interval reaches the efficiency that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Reaches {
    /// All of it does.
    Yes,
    /// Part of it does.
    Perhaps,
    /// None of it does.
    No,
}

impl Reaches {
    fn of(efficiency: Interval, target: f64) -> Self {
        match efficiency {
            Interval { low, .. } if target <= low => Self::Yes,
            Interval { high, .. } if high < target => Self::No,
            _ => Self::Perhaps,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::Perhaps => "perhaps",
            Self::No => "no",
        }
    }
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
    #[serde(skip)]
    remarks: Vec<String>,
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
    let prediction = vary::predict(args, &asked, name)?;
    prediction.remarks.iter().for_each(|remark| out.remark(remark));
    if let Some(folder) = &args.out {
        keep::keep(args, &asked, name, &prediction, folder)?;
    }
    if let Some(path) = &args.chart {
        draw::draw(&prediction, path)?;
    }
    if let Some(path) = &args.svg {
        let row = &prediction.variants[0];
        write_whole(path, sketch_svg(&sketch::sketch(&row.board, &row.forecast.ring))?.as_bytes())?;
    }
    out.emit(&prediction).map_err(terminal)?;
    for path in args.chart.iter().chain(&args.svg) {
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

fn board(name: &str, stand_in: Option<&Card>) -> Result<Board, CliError> {
    let path = Path::new(name);
    if !path.is_file() {
        return Ok(platform(name)?);
    }
    let text = read_text(path, YAML_BYTES_MAX as u64)?;
    let mut board = if is_topology(&text) {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        from_topology_with(&from_yaml(&text, name)?, &stem, stand_in)?
    } else {
        parse_platform(&text, &PathBuf::from(name).display().to_string())?
    };
    // what a stranger's file says reaches the terminal
    board.title = printable_text(&board.title);
    board.notes.iter_mut().for_each(|note| *note = printable_text(note));
    board.nodes.iter_mut().for_each(|node| node.name = printable_text(&node.name));
    Ok(board)
}

/// True for what `probe` writes: a platform has no such key.
fn is_topology(text: &str) -> bool {
    text.lines().any(|line| line.starts_with("machine:"))
}

fn exchange(args: &Args, p2p: P2p) -> Exchange {
    let (hosts, network) = (args.hosts as usize, args.network);
    let nccl = args.nccl.unwrap_or(NcclVersion::MODELLED);
    Exchange { nccl, p2p, min_channels: args.min_ctas, hosts, network }
}

impl Prediction {
    /// Columns whose values differ between rows, or that do not.
    fn columns(&self, varying: bool) -> Vec<Column> {
        let varies = |of: fn(&Variant) -> String| self.variants.iter().any(|row| of(row) != of(&self.variants[0]));
        let edited = self.variants.iter().any(|row| row.edit.is_some());
        COLUMNS.into_iter().filter(|(name, of)| varies(*of) == varying && (edited || *name != "edit")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn predicted(words: &[&str]) -> Result<Prediction, CliError> {
        let args = <Line as clap::Parser>::try_parse_from([&["x"], words].concat()).unwrap().args;
        let name = args.platform.clone().unwrap();
        vary::predict(&args, &Asked::of(&args)?, &name)
    }

    /// No line is wider than 80 columns, and no cell of a table goes on in the next line.
    fn fits(text: &str, rows: usize) {
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert_eq!(text.lines().filter(|line| line.starts_with('│')).count(), rows + 1, "{text}");
    }

    #[test]
    fn the_list_and_sweeps_fit_80_columns() {
        let text = list().unwrap().to_string();
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        let words = ["asus-esc8000a-e13p", "--gpus", "1,8", "--gpu", "rtx-pro-6000-max-q", "--p2p", "auto,on"];
        let prediction = predicted(&words).unwrap();
        assert_eq!(prediction.variants.len(), 4);
        let text = prediction.to_string();
        fits(&text, 4);
        assert!(text.contains("hazard") && text.contains("catalogue"), "{text}");
        let more = ["--gpu", "rtx-pro-6000-max-q,rtx-5090", "--p2p", "auto,on", "--bucket-mib", "25,100"];
        let words = [&["asus-esc8000a-e13p", "--accumulate", "1,16"], &more[..]].concat();
        fits(&predicted(&words).unwrap().to_string(), 16);
    }

    #[test]
    fn an_edit_stands_below_the_machine_as_it_is_and_is_swept() {
        let words = ["asrock-romed8-2t", "--gpus", "4", "--set", "slot.3.width=4,8", "--set", "slot.1.gen=4"];
        let prediction = predicted(&words).unwrap();
        let edits: Vec<Option<&str>> = prediction.variants.iter().map(|row| row.edit.as_deref()).collect();
        assert_eq!(edits, [None, Some("slot.3.width=4 slot.1.gen=4"), Some("slot.3.width=8 slot.1.gen=4")]);
        let estimates: Vec<f64> = prediction.variants.iter().map(|row| row.forecast.efficiency.estimate).collect();
        assert!(estimates[1] < estimates[2] && estimates[2] < estimates[0], "{estimates:?}");
        fits(&prediction.to_string(), 3);
    }

    #[test]
    fn slots_are_chosen_by_name_and_a_smaller_world_spans_the_largest() {
        let of = |prediction: Prediction| -> Vec<Vec<String>> {
            let names = |board: &Board| board.seats.iter().map(|seat| board.nodes[seat.node].name.clone()).collect();
            prediction.variants.iter().map(|row| names(&row.board)).collect()
        };
        let slots = of(predicted(&["supermicro-as-4124gs", "--gpus", "2,4"]).unwrap());
        assert_eq!(slots[0], ["slot-1", "slot-4"]);
        assert_eq!(slots[1].len(), 4);
        let slots = of(predicted(&["supermicro-as-4124gs", "--slots", "slot-8,slot-1"]).unwrap());
        assert_eq!(slots, [["slot-1", "slot-8"]]);
        let error = predicted(&["supermicro-as-4124gs", "--slots", "slot-9"]).err().unwrap().to_string();
        assert!(error.contains("slot-9") && error.contains("slot-8"), "{error}");
    }

    #[test]
    fn what_would_be_ignored_is_refused() {
        let rows = [
            (&["am5-x8x8", "--step", "420ms", "--accumulate", "1,4"][..], "one --accumulate"),
            (&["am5-x8x8", "--step", "420ms", "--gpu", "rtx-4090,rtx-3090"], "one card"),
            (&["am5-x8x8", "--network", "25GB/s,10us"], "--hosts"),
            (&["asrock-romed8-2t", "--gpus", "2", "--set", "slot.6.width=8"], "no GPU"),
        ];
        for (words, said) in rows {
            let error = predicted(words).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(said), "{words:?}: {error}");
        }
    }

    #[test]
    fn a_training_that_does_not_fit_its_card_reaches_nothing() {
        let words = ["am5-x8x8", "--model", "llama-13b", "--gpu", "rtx-3070"];
        let row = predicted(&words).unwrap().variants.remove(0);
        assert!(row.reaches == Reaches::No && 0.9 < row.forecast.efficiency.estimate);
    }

    #[test]
    fn an_interval_reaches_a_target_or_does_not() {
        let of = |low, high| Reaches::of(Interval { estimate: f64::midpoint(low, high), low, high }, 0.9);
        assert_eq!((of(0.9, 0.95), of(0.8, 0.9), of(0.8, 0.89)), (Reaches::Yes, Reaches::Perhaps, Reaches::No));
    }
}
