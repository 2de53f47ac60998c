//! Scores the prediction against published figures: `scripts/bench-predict` runs it and says how to read the table.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark prints, and fails where its data does")]

use std::collections::BTreeMap;
use std::time::Instant;

use rigscale::model::preset;
use rigscale::predict::{
    Alone, Board, BucketWork, Calibration, Chosen, Exchange, Framework, NcclVersion, Network, P2p, Ring, RingProblem,
    Training, Work, card, efficiency, forecast, phases, platform, ring,
};
use rigscale::record::{Interval, Precision};
use rigscale::stats::median;
use rigscale::units::{Bytes, BytesPerSecond, Seconds};

/// One row with more than one GPU, and its step alone.
struct Row {
    host: String,
    count: usize,
    alone: Seconds,
    work: Work,
    efficiency: f64,
}

/// The framework of the rows.
const FRAMEWORK: Framework = Framework::Apex;

impl Row {
    /// What `rigscale predict --framework apex --step …` prints.
    fn interval(&self, ring: &Ring, calibration: &Calibration) -> Interval {
        efficiency(&[(&self.work, self.alone); 3], ring, FRAMEWORK, calibration)
    }

    /// The estimate in it.
    fn estimate(&self, ring: &Ring) -> f64 {
        self.alone / self.work.step(ring, &FRAMEWORK.overlap()).step
    }

    /// The work of a model of so many parameters on a host's card. BERT is no preset: its buckets are taken to be equal
    /// and to fill at an even pace.
    fn work(host: &str, parameters: u64, element: u64, alone: Seconds) -> Work {
        let model = HOSTS.iter().find(|row| row.0 == host).unwrap().2;
        let solo = phases(alone, parameters, card(model).unwrap(), 1);
        let [_, bucket] = FRAMEWORK.buckets(Bytes(element));
        let count = (parameters * element).div_ceil(bucket.0);
        let bytes = Bytes(parameters * element / count);
        let buckets = (1..=count).map(|index| BucketWork { bytes, ready: index as f64 / count as f64 }).collect();
        Work { forward: solo.forward, backward: solo.backward, optimizer: solo.optimizer, accumulate: 1, buckets }
    }
}

/// Host group of the data, platform, card, what is known of it. NVLink pairs are suspected from rates above the line
/// rate at two GPUs: that was seen in the data, not on the machine.
const HOSTS: &[(&str, &str, &str, bool)] = &[
    // group, platform, card, staged
    ("3070", "supermicro-as-4124gs", "rtx-3070", true),
    ("3080", "asrock-trx40-creator", "rtx-3080", true),
    ("3090-MZ52", "gigabyte-mz52-g40", "rtx-3090", true),
    ("4090-WRX80", "asus-wrx80e-sage-se", "rtx-4090", true),
    ("A6000v1", "gigabyte-mz22-g20", "rtx-a6000", true),
    ("A6000-cloudVM", "cloud-vm-4gpu", "rtx-a6000", true),
    ("3090-TRX40", "asrock-trx40-creator", "rtx-3090", false),
    ("6000Ada-WRX80", "asus-wrx80e-sage-se", "rtx-6000-ada", false),
    ("A4000", "supermicro-as-4124gs", "rtx-a4000", false),
    ("A4500", "supermicro-as-4124gs", "rtx-a4500", false),
    ("A5500", "supermicro-as-4124gs", "rtx-a5500", false),
    ("A6000", "supermicro-as-4124gs-bridged", "rtx-a6000", false),
    ("A100PCIe", "supermicro-as-4124gs-bridged", "a100-pcie-40gb", false),
    ("H100PCIe-Gen5", "supermicro-x13deg-oa", "h100-pcie", false),
];

fn rows() -> Vec<Row> {
    let text = include_str!("../tests/predict/scaling_rows.csv");
    let fields: Vec<Vec<String>> = text.lines().skip(1).map(split).collect();
    let key = |row: &[String]| (row[0].clone(), row[4].clone(), row[6].clone());
    let alone: BTreeMap<_, f64> =
        fields.iter().filter(|row| row[3] == "1").filter_map(|row| Some((key(row), row[8].parse().ok()?))).collect();
    let of = |row: &Vec<String>| {
        let efficiency = row[10].parse().ok()?;
        let alone = *alone.get(&key(row))?;
        let parameters: u64 = row[5].parse().ok()?;
        let element = if row[6] == "fp16-O2" { 2 } else { 4 };
        let alone = Seconds(alone / 1e3);
        let work = Row::work(&row[0], parameters, element, alone);
        Some(Row { host: row[0].clone(), count: row[3].parse().ok()?, alone, work, efficiency })
    };
    fields.iter().filter(|row| row[4].starts_with("BERT")).filter_map(of).collect()
}

/// Fields of a line of CSV; quotes hold commas.
fn split(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    for letter in line.chars() {
        match letter {
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            _ => fields.last_mut().unwrap().push(letter),
        }
    }
    fields
}

/// NCCL of the containers: any version before 2.18 counts the same.
fn exchange() -> Exchange {
    Exchange { nccl: NcclVersion(2, 15, 5), ..Exchange::default() }
}

fn board(host: &str) -> Board {
    let (_, name, model, staged) = HOSTS.iter().find(|row| row.0 == host).unwrap();
    let mut board = platform(name).unwrap();
    for seat in &mut board.seats {
        seat.card = card(model).unwrap().clone();
        seat.peer = Some(!staged);
    }
    if host == "3090-TRX40" {
        let (source, verified) = ("suspected".to_owned(), rigscale::predict::Verified::Memory);
        board.bridges.push(rigscale::predict::Bridged { a: 0, b: 1, source, verified });
    }
    board
}

fn ring_of(host: &str, count: usize, calibration: &Calibration) -> Ring {
    ring(&board(host).with_gpus(count).unwrap(), &exchange(), calibration).unwrap()
}

/// Mean, median, 90th percentile of absolute errors, in points.
fn summary(errors: &[f64]) -> [f64; 3] {
    let mut sizes: Vec<f64> = errors.iter().map(|error| error.abs() * 100.0).collect();
    sizes.sort_by(f64::total_cmp);
    let mean = sizes.iter().sum::<f64>() / sizes.len() as f64;
    let rank = (0.9 * sizes.len() as f64).ceil() as usize;
    [mean, median(&sizes), sizes[rank - 1]]
}

fn shown([mean, middle, high]: [f64; 3]) -> String {
    format!("{mean:6.2} {middle:6.2} {high:6.2}")
}

/// Bandwidths that are tried, evenly in the logarithm, 0.3 to 300 GB/s.
fn grid() -> Vec<f64> {
    (0..=240).map(|step| 0.3e9 * 1000_f64.powf(f64::from(step) / 240.0)).collect()
}

fn verdict(reached: bool) -> &'static str {
    if reached { "reached" } else { "MISSED" }
}

/// Stage 2: the bandwidth from the other rows of the same host and N.
fn stage_two(rows: &[Row], model: &dyn Fn(&Row, f64) -> f64, power: i32) -> Vec<f64> {
    let mut errors = Vec::new();
    for row in rows {
        let others: Vec<&Row> = rows
            .iter()
            .filter(|other| other.host == row.host && other.count == row.count && !std::ptr::eq(*other, row))
            .collect();
        if others.len() < 2 {
            continue;
        }
        let cost = |bus: f64| -> f64 {
            others.iter().map(|other| (model(other, bus) - other.efficiency).abs().powi(power)).sum()
        };
        let best = grid().into_iter().min_by(|a, b| cost(*a).total_cmp(&cost(*b))).unwrap();
        errors.push(model(row, best) - row.efficiency);
    }
    errors
}

/// A ring of which only the bandwidth counts.
fn bare(count: usize, bus: f64) -> Ring {
    let mut ring = ring_of("3070", count.min(8), &Calibration::default());
    (ring.latency, ring.ranks) = (Seconds(0.0), count);
    ring.at(BytesPerSecond(bus))
}

fn plain(row: &Row, bus: f64) -> f64 {
    let factor = 2.0 * (row.count as f64 - 1.0) / row.count as f64;
    row.alone.0 / (row.alone.0 + row.work.bytes().0 as f64 * factor / bus)
}

fn score_stage_two(rows: &[Row]) {
    println!("Stage 2, bus bandwidth to efficiency: bandwidth fitted on the other rows of the host and N");
    println!("  source: tests/predict/scaling_rows.csv, BERT rows; points: mean, median, p90\n");
    let baseline = stage_two(rows, &plain, 1);
    println!("  one bandwidth, no overlap            {}   ({} rows)", shown(summary(&baseline)), baseline.len());
    let rings: BTreeMap<usize, Ring> = [2, 4, 8].map(|count| (count, bare(count, 1e9))).into();
    let model = |row: &Row, bus: f64| row.estimate(&rings[&row.count].at(BytesPerSecond(bus)));
    let errors = stage_two(rows, &model, 2);
    let [mean, middle, high] = summary(&errors);
    println!("  the model                            {}", shown([mean, middle, high]));
    println!("  wanted: mean at most 1.8: {}; p90 at most 3.5: {}", verdict(mean <= 1.8), verdict(high <= 3.5));
    println!("  the model is `predict --framework apex --step`; its contention and the bandwidth at which its overlap");
    println!("  closes were chosen on these same rows, for all hosts at once: HINDSIGHT\n");
}

/// Constants that are fitted without the host that is scored.
type Field = (&'static str, fn(&mut Calibration) -> &mut f64);
const FITTED: &[Field] = &[
    ("peer_share_old", |c| &mut c.peer_share_old),
    ("staged_port", |c| &mut c.staged_port.0),
    ("staged_far", |c| &mut c.staged_far),
    ("nvlink_share", |c| &mut c.nvlink_share),
];

/// Fits by coordinates, from the same start for every host, the sum of absolute errors.
fn fit(rows: &[&Row]) -> Calibration {
    let boards: BTreeMap<(&str, usize), Board> = rows
        .iter()
        .map(|row| ((row.host.as_str(), row.count), board(&row.host).with_gpus(row.count).unwrap()))
        .collect();
    let cost = |calibration: &Calibration| -> f64 {
        let rings: BTreeMap<_, Ring> =
            boards.iter().map(|(key, board)| (*key, ring(board, &exchange(), calibration).unwrap())).collect();
        let error = |row: &&Row| {
            let ring = &rings[&(row.host.as_str(), row.count)];
            (row.estimate(ring) - row.efficiency).abs()
        };
        rows.iter().map(error).sum()
    };
    let mut best = Calibration {
        peer_share_old: 0.9,
        staged_port: BytesPerSecond(5e9),
        staged_far: 1.5,
        nvlink_share: 0.9,
        ..Calibration::default()
    };
    let mut least = cost(&best);
    for _ in 0..3 {
        for (_, field) in FITTED {
            let start = *field(&mut best.clone());
            for step in -20..=20 {
                let mut tried = best.clone();
                *field(&mut tried) = start * (f64::from(step) / 20.0).exp();
                let now = cost(&tried);
                if now < least - 1e-12 {
                    (least, best) = (now, tried);
                }
            }
        }
    }
    best
}

/// True for rows whose gradients go through host memory.
fn is_staged(row: &Row) -> bool {
    let staged = HOSTS.iter().any(|host| host.0 == row.host && host.3);
    staged && !(row.host == "A6000-cloudVM" && row.count == 2)
}

/// The class constant: without peers one bandwidth for each N from the other hosts, with peers the line rate.
fn class_constant(rows: &[Row], row: &Row) -> f64 {
    if !is_staged(row) {
        return plain(row, if row.host.starts_with("H100") { 40e9 } else { 20e9 });
    }
    let others: Vec<&Row> =
        rows.iter().filter(|other| is_staged(other) && other.host != row.host && other.count == row.count).collect();
    let cost = |bus: f64| -> f64 { others.iter().map(|other| (plain(other, bus) - other.efficiency).abs()).sum() };
    plain(row, grid().into_iter().min_by(|a, b| cost(*a).total_cmp(&cost(*b))).unwrap())
}

/// The bandwidth that fits all rows of a host and N best.
fn fitted_bus(rows: &[&Row], ring: &Ring) -> f64 {
    let cost = |bus: f64| -> f64 {
        let error = |row: &&Row| row.estimate(&ring.at(BytesPerSecond(bus))) - row.efficiency;
        rows.iter().map(|row| error(row).powi(2)).sum()
    };
    grid().into_iter().min_by(|a, b| cost(*a).total_cmp(&cost(*b))).unwrap()
}

/// A host misses where its mean error, in points, or its bandwidth, as a ratio, is further off than this.
const MISS: (f64, f64) = (5.0, 1.5);

/// Why a host is missed at so many GPUs, as far as it is known.
const REASONS: &[(&str, usize, &str)] = &[
    ("3070", 8, "crossing sockets: without this host only MZ52 shows what it costs"),
    ("3080", 2, "TRX40 stages faster than EPYC of the same generation, reason not found"),
    ("3090-MZ52", 4, "its switches are inferred (hindsight); one port for all four is the worst case"),
    ("A6000-cloudVM", 4, "virtual machine: its tree is hidden, the platform is a guess"),
    ("6000Ada-WRX80", 2, "NCCL may have staged, which the data do not tell; reason not found"),
    ("A100PCIe", 2, "NVLink: above some 40 GB/s the efficiency hardly tells the bandwidth"),
    ("H100PCIe-Gen5", 2, "NVLink: above some 40 GB/s the efficiency hardly tells the bandwidth"),
    ("H100PCIe-Gen5", 4, "above some 40 GB/s the efficiency hardly tells the bandwidth"),
];

/// The line below a host that is missed.
fn missed(host: &str, count: usize, mean: f64, ratio: f64) {
    let apart = ratio.max(1.0 / ratio);
    if mean <= MISS.0 && apart <= MISS.1 {
        return;
    }
    let known = REASONS.iter().find(|row| (row.0, row.1) == (host, count)).map(|row| row.2);
    let flat = "from 7 GB/s on, where overlap closes, the efficiency hardly tells the bandwidth";
    let reason = known.unwrap_or(if mean <= MISS.0 { flat } else { "reason not found" });
    println!("                      MISSED, {mean:.1} points, bandwidth by {apart:.1}: {reason}");
}

/// Board of a host: platforms that differ in bridges only are one.
fn board_of(host: &str) -> &'static str {
    let name = HOSTS.iter().find(|row| row.0 == host).unwrap().1;
    name.strip_suffix("-bridged").unwrap_or(name)
}

/// What stage one makes of the rows of one host and N.
struct Scored<'a> {
    rows: Vec<&'a Row>,
    ring: Ring,
    errors: Vec<f64>,
    inside: usize,
}

/// Scores each host and N with constants fitted on the rows that `kept` leaves for a host.
fn folds<'a>(rows: &'a [Row], kept: &dyn Fn(&str, &Row) -> bool) -> Vec<Scored<'a>> {
    let mut scored = Vec::new();
    for (host, ..) in HOSTS {
        let others: Vec<&Row> = rows.iter().filter(|row| kept(host, row)).collect();
        let calibration = fit(&others);
        for count in [2, 4, 8] {
            let own: Vec<&Row> = rows.iter().filter(|row| row.host == *host && row.count == count).collect();
            if own.is_empty() {
                continue;
            }
            let ring = ring_of(host, count, &calibration);
            let errors = own.iter().map(|row| row.estimate(&ring) - row.efficiency).collect();
            let holds = |row: &&&Row| {
                let Interval { low, high, .. } = row.interval(&ring, &calibration);
                (low..=high).contains(&row.efficiency)
            };
            let inside = own.iter().filter(holds).count();
            scored.push(Scored { rows: own, ring, errors, inside });
        }
    }
    scored
}

fn all_errors(scored: &[Scored<'_>], which: impl Fn(&Row) -> bool) -> Vec<f64> {
    let pairs = scored.iter().flat_map(|one| one.rows.iter().zip(&one.errors));
    pairs.filter(|(row, _)| which(row)).map(|(_, error)| *error).collect()
}

/// Share of rows that the printed interval holds.
fn coverage(scored: &[Scored<'_>]) -> f64 {
    let rows: usize = scored.iter().map(|one| one.rows.len()).sum();
    scored.iter().map(|one| one.inside).sum::<usize>() as f64 / rows as f64
}

fn score_stage_one(rows: &[Row]) {
    println!("Stage 1, topology to efficiency: each host with constants fitted on the others");
    println!("  host            N   bus GB/s  fitted    mean median    p90   limit");
    let scored = folds(rows, &|host, row| row.host != host);
    let mut ratios = Vec::new();
    for one in &scored {
        let (host, count, bus) = (&one.rows[0].host, one.rows[0].count, fitted_bus(&one.rows, &one.ring));
        ratios.push((one.ring.bus.0 / bus).ln().abs());
        let (own, fitted, errors) = (one.ring.bus.0 / 1e9, bus / 1e9, summary(&one.errors));
        println!("  {host:15} {count}   {own:8.2} {fitted:7.2}  {}   {}", shown(errors), one.ring.limit);
        missed(host, count, errors[0], one.ring.bus.0 / bus);
    }
    println!("\n  points: mean, median, p90");
    let (all, staged) = (all_errors(&scored, |_| true), all_errors(&scored, is_staged));
    let class: Vec<f64> = rows.iter().map(|row| class_constant(rows, row) - row.efficiency).collect();
    let without = || rows.iter().filter(|row| is_staged(row));
    let class_staged: Vec<f64> = without().map(|row| class_constant(rows, row) - row.efficiency).collect();
    let line: Vec<f64> = without().map(|row| plain(row, 20e9) - row.efficiency).collect();
    println!("  all hosts, the model                 {}   ({} rows)", shown(summary(&all)), all.len());
    println!("  all hosts, class constant            {}", shown(summary(&class)));
    println!("  without peers, the model             {}   ({} rows)", shown(summary(&staged)), staged.len());
    println!("  without peers, class constant        {}", shown(summary(&class_staged)));
    println!("  without peers, line rate             {}", shown(summary(&line)));
    let boards = folds(rows, &|host, row| board_of(&row.host) != board_of(host));
    println!("  all hosts, whole boards left out     {}", shown(summary(&all_errors(&boards, |_| true))));
    println!("  without peers, the same              {}", shown(summary(&all_errors(&boards, is_staged))));
    println!("  bus bandwidth, median ratio error    {:.0} %", (median(&ratios).exp() - 1.0) * 100.0);
    let (ours, theirs) = (summary(&staged)[0], summary(&class_staged)[0]);
    println!(
        "  wanted: a third below the class constant ({theirs:.1}) and below 6.0: {}",
        verdict(ours <= (theirs * 2.0 / 3.0).min(6.0))
    );
    println!("  wanted: median over all at most 2: {}", verdict(summary(&all)[1] <= 2.0));
    println!(
        "  wanted: the 90 % interval that predict prints holds 85 to 95 % of rows, it holds {:.0} %: {} ({:.0} % with \
         whole boards left out)",
        coverage(&scored) * 100.0,
        verdict((0.85..=0.95).contains(&coverage(&scored))),
        coverage(&boards) * 100.0
    );
    println!(
        "  hindsight: NVLink pairs and the switches of MZ52 and MZ22 were inferred from these rates, not seen; the"
    );
    println!("  spreads of the interval were chosen on these rows");
    println!("  a host is marked MISSED from {} points of mean error or a bandwidth off by {} on\n", MISS.0, MISS.1);
}

/// A curve: name, platform, card, GPUs, exchange, sizes in MiB with time in µs, plateau in GB/s, source.
struct Curve {
    name: &'static str,
    platform: &'static str,
    card: &'static str,
    count: usize,
    exchange: Exchange,
    points: &'static [(f64, f64)],
    plateau: Option<f64>,
    source: &'static str,
}

fn curves() -> Vec<Curve> {
    let peers = |channels| Exchange { p2p: P2p::On, min_channels: channels, ..Exchange::default() };
    let staged = Exchange { p2p: P2p::Off, ..Exchange::default() };
    let curve = |name, platform, card, count, exchange, points, plateau, source| Curve {
        name,
        platform,
        card,
        count,
        exchange,
        points,
        plateau,
        source,
    };
    vec![
        curve(
            "A1",
            "turin2d24g-2l",
            "rtx-5090",
            8,
            peers(Some(8)),
            &[(2.0, 104.5), (4.0, 176.9), (8.0, 326.0), (16.0, 646.0), (32.0, 1285.0), (64.0, 2586.0), (128.0, 5355.0)],
            None,
            "aikitoria/open-gpu-kernel-modules README",
        ),
        curve("A2", "wrx90-two-switches", "rtx-pro-6000", 8, peers(None), &[(4.0, 182.0)], Some(46.0), "rtx6kpro"),
        curve(
            "A3 8 channels",
            "turin2d24g-2l",
            "rtx-pro-6000",
            8,
            peers(Some(8)),
            &[],
            Some(37.6),
            "rtx6kpro nccl-tuning.md",
        ),
        curve(
            "A3 default",
            "turin2d24g-2l",
            "rtx-pro-6000",
            8,
            peers(None),
            &[],
            Some(22.2),
            "rtx6kpro nccl-tuning.md",
        ),
        curve(
            "A4",
            "asus-esc8000a-e13p",
            "rtx-pro-6000",
            4,
            staged,
            &[(32.0, 1628.0)],
            None,
            "rtx6kpro; staged is assumed",
        ),
        curve(
            "A5",
            "asus-esc8000a-e13p",
            "rtx-pro-6000",
            8,
            peers(Some(8)),
            &[(32.0, 2715.0)],
            None,
            "rtx6kpro; posted-write collapse",
        ),
        curve(
            "A7",
            "asrock-romed8-2t",
            "rtx-4090",
            4,
            staged,
            &[(4.0, 511.0), (16.0, 1993.0)],
            Some(12.7),
            "tinygrad PR 22; mode unclear, staged is assumed",
        ),
        curve("A8", "asrock-romed8-2t", "rtx-4090", 4, peers(None), &[(32.0, 2037.0)], None, "tinygrad issue 17"),
        curve("A10", "cloud-vm-2gpu", "rtx-4090", 2, staged, &[], Some(2.2), "Kalavai cloud"),
        curve("A12", "cloud-vm-2gpu", "rtx-4090", 4, staged, &[], Some(2.58), "Kalavai cloud"),
        curve(
            "A14 4 GPUs",
            "xeon-8480-direct",
            "rtx-5090",
            4,
            Exchange { min_channels: Some(8), ..staged },
            &[],
            Some(35.0),
            "NVIDIA/nccl 1639",
        ),
        curve(
            "A14 8 GPUs",
            "xeon-8480-direct",
            "rtx-5090",
            8,
            Exchange { min_channels: Some(8), ..staged },
            &[],
            Some(28.0),
            "NVIDIA/nccl 1639",
        ),
    ]
}

/// Curves whose machine or setting is not described well enough to be predicted, with the reason.
const UNSCORED: &[(&str, &str)] = &[
    ("A5", "scored beside the others, not counted: one of two known collapses of posted writes, a hazard"),
    ("A6", "effect of an XML file on latency below 1 MiB"),
    ("A9", "four unnamed GPUs"),
    ("A10-A12", "virtual machine: its tree, pinning and NCCL are not told; not counted"),
    ("A13", "container with two channels: pinning not told"),
    ("A15", "no figure"),
    ("A16", "Gen3, cards and NCCL not told"),
    ("A17", "a remark on the last copy at N = 2"),
    ("A18", "one direction only"),
    ("A19", "all-to-all, no figure"),
];

/// A curve misses where its farthest figure is off by more than this ratio; and why, as far as it is known.
const CURVE_MISS: f64 = 1.15;
const CURVE_REASONS: &[(&str, &str)] = &[
    ("A3 8 channels", "nothing known limits it so low"),
    ("A4", "two cards are taken to share an uplink, and one for each fits"),
    ("A5", "posted-write collapse, a hazard that is not interpolated"),
    ("A10", "virtual machine: its tree and pinning are hidden"),
    ("A12", "virtual machine: its tree and pinning are hidden"),
    ("A14 4 GPUs", "exceeds what both directions carried in other copies"),
];

/// Constants that were chosen with this curve in view.
fn gave(curve: &str) -> Vec<&'static str> {
    let saw = |chosen: Chosen| matches!(chosen, Chosen::InView(seen) if seen.contains(&curve));
    Calibration::table().iter().filter(|row| saw(row.chosen)).map(|row| row.name).collect()
}

fn score_curves() {
    println!("All-reduce curves above 1 MiB: predicted over measured");
    let calibration = Calibration::default();
    let (mut ratios, mut unseen) = (Vec::new(), Vec::new());
    for curve in curves() {
        let mut board = platform(curve.platform).unwrap().with_gpus(curve.count).unwrap();
        board.seats.iter_mut().for_each(|seat| seat.card = card(curve.card).unwrap().clone());
        let ring = ring(&board, &curve.exchange, &calibration).unwrap();
        let times = curve.points.iter().map(|(mebi, us)| (*us * 1e-6) / ring.time(Bytes::mebi(*mebi)).0);
        let plateau = curve.plateau.map(|plateau| ring.bus.0 / 1e9 / plateau);
        let own: Vec<f64> = times.chain(plateau).collect();
        let counted = !["A5", "A10", "A12"].contains(&curve.name);
        let text: Vec<String> = own.iter().map(|ratio| format!("{ratio:.2}")).collect();
        println!(
            "  {:14} {}{}  ({})",
            curve.name,
            text.join(" "),
            if counted { "" } else { " not counted" },
            curve.source
        );
        let own_gave = gave(curve.name);
        if !own_gave.is_empty() {
            println!("                 hindsight: {} chosen with it in view", own_gave.join(", "));
        }
        let farthest = own.iter().map(|ratio| ratio.ln().abs().exp()).fold(1.0, f64::max);
        if CURVE_MISS < farthest {
            let known = CURVE_REASONS.iter().find(|row| row.0 == curve.name);
            println!("                 MISSED by {farthest:.2}: {}", known.map_or("reason not found", |row| row.1));
        }
        if counted {
            let errors = own.iter().map(|ratio| ratio.ln().abs().exp() - 1.0);
            if own_gave.is_empty() {
                unseen.extend(errors.clone());
            }
            ratios.extend(errors);
        }
    }
    for (name, why) in UNSCORED {
        println!("  {name:14} {why}");
    }
    let middle = median(&ratios) * 100.0;
    println!(
        "  median ratio error {middle:.0} % of {} figures; wanted at most 15 %: {}",
        ratios.len(),
        verdict(middle <= 15.0)
    );
    let middle = median(&unseen) * 100.0;
    println!("  of the {} figures with which no constant was chosen: {middle:.0} %\n", unseen.len());
}

/// GPUs at an NVSwitch: each has its own links there and back.
fn star(ranks: usize, link: f64, sm: u32) -> RingProblem {
    let hop = |from: usize, to: usize| vec![(2 * from, 1.0), (2 * to + 1, 1.0)];
    RingProblem {
        links: vec![link; 2 * ranks],
        forward: (0..ranks).map(|rank| hop(rank, (rank + 1) % ranks)).collect(),
        backward: (0..ranks).map(|rank| hop((rank + 1) % ranks, rank)).collect(),
        total: link,
        sm,
    }
}

/// Lines of NCCL's log that are published with the machine they are from, and what is published of none.
fn score_lines() {
    println!("Published GRAPH and TUNING lines of NCCL");
    let on = |name: &str, count: usize, exchange: &Exchange| {
        ring(&platform(name).unwrap().with_gpus(count).unwrap(), exchange, &Calibration::default()).unwrap().graph
    };
    let usual = Exchange::default();
    let peers = Exchange { p2p: P2p::On, ..usual };
    let rows = [
        ("NVIDIA/nccl 1197: H100 with NVSwitch, nChannels 12, bw 30", star(8, 18.0 * 20.6, 90).search(), (12, 30.0)),
        ("A100 HGX, 12 channels of 20", star(8, 12.0 * 20.0, 80).search(), (12, 20.0)),
        ("nccl-tests 307: 8 RTX 4090, nChannels 1, bw 5", on("dual-xeon-8x4090-switches", 8, &usual), (1, 5.0)),
        ("rtx6kpro: Turin, 8 cards, 0.1 GB/s, simple order", on("turin2d24g-2l", 8, &peers), (1, 0.1)),
    ];
    for (name, found, published) in rows {
        let found = (found.channels, found.bandwidth);
        let word = if found == published { "reproduced" } else { "NOT REPRODUCED" };
        println!("  {name:60} {} channels of {}: {word}", found.0, found.1);
    }
    for (name, why) in UNREPRODUCED {
        println!("  {name:60} not reproduced: {why}");
    }
    println!();
}

/// Published lines that the model does not compute.
const UNREPRODUCED: &[(&str, &str)] = &[
    ("ROCm/rccl 1210", "RCCL on AMD GPUs, another search"),
    ("DGX Spark: maxBw 12.0, totalBw 3.0, bw 3.0", "an Arm host whose sysfs tells a wrong link speed; no platform"),
    (
        "TUNING table: lat/bw by function, algorithm, protocol",
        "none is published for a machine on PCIe that is described",
    ),
    ("type SYS/PIX, crossNic, sameChannels of GRAPH lines", "path types between hops are not part of the model"),
    ("trees, LL128, NVLS, CollNet", "not modelled: rings are what two to eight ranks on one PCIe host take"),
];

fn score_constants_and_speed() {
    println!("Constants");
    for row in Calibration::table() {
        let how = match row.chosen {
            Chosen::Refitted => "fitted, again without each host".to_owned(),
            Chosen::InView(seen) => format!("HINDSIGHT, chosen with {} in view", seen.join(" and ")),
            Chosen::Elsewhere => "from elsewhere".to_owned(),
        };
        println!("  {:18} {:36} {how}: {}", row.name, row.belongs_to, row.source);
    }
    let fitted = Calibration::table().iter().filter(|row| row.chosen == Chosen::Refitted).count();
    let seen = Calibration::table().iter().filter(|row| matches!(row.chosen, Chosen::InView(_))).count();
    println!(
        "  {} constants of bandwidth, {fitted} of them fitted on rows, {seen} chosen with scored curves in view; 4 of \
         apex's overlap and 4 of spread, chosen on the scored rows: HINDSIGHT; none of a board\n",
        Calibration::table().len()
    );
    let board = platform("turin2d24g-2l").unwrap();
    let calibration = Calibration::default();
    let training = Training {
        shape: preset("llama-1b").unwrap().shape,
        batch: 4,
        context: 2048,
        accumulate: 1,
        bucket: Bytes::mebi(25.0),
        first_bucket: Bytes::mebi(1.0),
        precision: Precision::Bf16,
        alone: Alone::Catalogue,
        framework: Framework::Rigscale,
        reduced: None,
        recompute: false,
    };
    let start = Instant::now();
    let mut sum = 0.0;
    for variant in 0..10_000 {
        let network = Network { rate: BytesPerSecond(1e9 + f64::from(variant)), latency: Seconds(1e-5) };
        let exchange = Exchange { hosts: 2, network: Some(network), ..Exchange::default() };
        sum += forecast(&board, &training, &exchange, &calibration).unwrap().time.step.0;
    }
    let took = start.elapsed().as_secs_f64();
    assert!(sum.is_finite());
    println!(
        "Speed: 10,000 forecasts of a step of llama-1b on 2 hosts of {} GPUs in {took:.2} s on one core; {:.3} ms each",
        board.seats.len(),
        took / 10.0
    );
    println!("  wanted: under 1 ms, and 10,000 under 10 s: {}", verdict(took < 10.0));
}

fn main() {
    let rows = rows();
    assert_eq!(rows.len(), 116, "the data changed");
    score_stage_two(&rows);
    score_stage_one(&rows);
    score_curves();
    score_lines();
    score_constants_and_speed();
}
