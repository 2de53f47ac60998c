//! Predictions as run folders: what the analysis makes of them, and what it may not say.

#[expect(dead_code, reason = "nothing is trained here")]
mod common;

use std::path::Path;

use rigscale::analyze::analyze;
use rigscale::model::preset;
use rigscale::predict::{
    Alone, Board, Calibration, Exchange, Forecast, Network, Overlap, Simulation, Training, card, forecast, platform,
};
use rigscale::record::{Analysis, Arm, Origin, Outcome, Precision, RunFiles, RunFolder};
use rigscale::units::{Bytes, BytesPerSecond, Seconds};

fn training(accumulate: usize) -> Training {
    Training {
        shape: preset("llama-1b").expect("a preset").shape,
        batch: 4,
        context: 2048,
        accumulate,
        bucket: Bytes::mebi(25.0),
        first_bucket: Bytes::mebi(1.0),
        precision: Precision::Bf16,
        alone: Alone::Catalogue,
    }
}

/// Forecasts of the first GPUs of a board, and the run that they make.
fn simulated(board: &Board, counts: &[usize], training: &Training, exchange: &Exchange) -> (Vec<Forecast>, RunFiles) {
    let calibration = Calibration::default();
    let world = |count: &usize| {
        let board = board.with_gpus(*count).expect("so many slots");
        let forecast = forecast(&board, training, exchange, &calibration).expect("a forecast");
        (board, forecast)
    };
    let worlds: Vec<(Board, Forecast)> = counts.iter().map(world).collect();
    let (overlap, created) = (Overlap::default(), jiff::Timestamp::UNIX_EPOCH);
    let run =
        Simulation { model: "llama-1b", training, exchange, worlds: &worlds, overlap, target: 0.9, created }.run();
    (worlds.into_iter().map(|(_, forecast)| forecast).collect(), run)
}

/// The analysis repeats each forecast: efficiency, step, rate, exposed communication, and how wide the doubt is.
fn repeats(forecasts: &[Forecast], analysis: &Analysis) {
    assert_eq!((analysis.origin, analysis.verdict.outcome), (Origin::Simulated, Outcome::NotGraded));
    assert_eq!(analysis.points.len(), forecasts.len());
    assert!(analysis.flags.is_empty(), "{:?}", analysis.flags);
    assert!(analysis.dropped.iter().all(|dropped| dropped.steps < 2), "{:?}", analysis.dropped);
    for (point, forecast) in analysis.points.iter().zip(forecasts) {
        let near = |one: f64, other: f64, relative: f64| (one / other - 1.0).abs() < relative;
        assert!(!point.graded && point.world == forecast.world && point.final_loss.is_none());
        let (ours, theirs) = (forecast.efficiency, point.efficiency);
        assert!(near(theirs.estimate, ours.estimate, 1e-9), "{theirs:?} and {ours:?}");
        assert!(near(point.step_s.0, forecast.time.step.0, 1e-9), "{} and {}", point.step_s, forecast.time.step);
        assert!(near(point.ddp_rate.0, forecast.rate.0, 1e-9));
        if forecast.world < 2 {
            continue;
        }
        let width = |low: f64, high: f64| (high / low).ln();
        let wanted = width(ours.low, ours.high) * 1.960 / 1.645;
        assert!(near(width(theirs.low, theirs.high), wanted, 1e-6), "{theirs:?} for {ours:?}");
        assert!(point.loss.remainder_share.abs() < 1e-3, "{:?}", point.loss);
        let bus = point.bus_bandwidth.expect("bucket events").0;
        assert!(0.3 < bus / forecast.ring.bus.0 && bus < forecast.ring.bus.0 * 1.5, "{bus} and {}", forecast.ring.bus);
        let overlap = point.overlap.expect("bucket events");
        assert!((0.0..=1.0).contains(&overlap), "{overlap}");
    }
}

#[test]
fn a_simulated_run_gives_back_its_forecast() {
    for (name, counts) in [
        ("am5-x8x8", &[1, 2][..]),
        ("asrock-romed8-2t", &[1, 2, 4]),
        ("turin2d24g-2l", &[2, 8]),
        ("tinybox-green", &[6]),
    ] {
        for accumulate in [1, 4] {
            let board = platform(name).expect("a platform");
            let (forecasts, run) = simulated(&board, counts, &training(accumulate), &Exchange::default());
            repeats(&forecasts, &analyze(&run).expect("an analysis"));
        }
    }
}

#[test]
fn hosts_and_unequal_cards_are_simulated_too() {
    let network = Some(Network { rate: BytesPerSecond(3e9), latency: Seconds(20e-6) });
    let board = platform("asrock-romed8-2t").expect("a platform");
    let exchange = Exchange { hosts: 2, network, ..Exchange::default() };
    let (forecasts, run) = simulated(&board, &[1, 4], &training(1), &exchange);
    assert_eq!(forecasts.iter().map(|forecast| forecast.world).collect::<Vec<_>>(), [2, 8]);
    let analysis = analyze(&run).expect("an analysis");
    assert!(analysis.shares.iter().any(|share| share.gpu.as_deref().is_some_and(|gpu| gpu.starts_with("host-1/"))));
    repeats(&forecasts, &analysis);

    let mut mixed = board.with_gpus(2).expect("2 slots");
    mixed.seats[1].card = card("rtx-3090").expect("a card").clone();
    let (forecasts, run) = simulated(&mixed, &[2], &training(1), &Exchange::default());
    let analysis = analyze(&run).expect("an analysis");
    let (point, forecast) = (&analysis.points[0], &forecasts[0]);
    assert!((point.efficiency.estimate / forecast.efficiency.estimate - 1.0).abs() < 1e-9);
    assert!(point.straggler.estimate < 0.9, "the fast card waits: {:?}", point.straggler);
}

#[test]
fn a_simulated_run_says_so_on_every_rank_and_reads_back_as_written() {
    let board = platform("am5-x8x8").expect("a platform");
    let (_, run) = simulated(&board, &[1, 2], &training(1), &Exchange::default());
    let base = tempfile::tempdir().expect("a folder");
    let folder = RunFolder::create_at(&base.path().join("run")).expect("a run folder");
    folder.keep(&run).expect("files");
    let read = folder.read().expect("a run");
    assert_eq!((&read.plan, &read.trials, &read.altered), (&run.plan, &run.trials, &Vec::new()));
    let files = || read.trials.values().flat_map(|ranks| ranks.values());
    assert!(files().all(|file| file.head.origin == Origin::Simulated && file.end.is_some()));
    let ddp = || files().filter(|file| file.head.arm == Arm::Ddp && file.head.world == 2);
    assert!(ddp().all(|file| !file.buckets.is_empty() && file.head.transport.is_some()));
}

fn predict(arguments: &[&str], out: &Path) -> std::process::Output {
    common::rigscale().arg("predict").args(arguments).arg("-o").arg(out).output().expect("the binary")
}

#[test]
fn the_binary_keeps_a_prediction_that_analyze_and_report_take() {
    let base = tempfile::tempdir().expect("a folder");
    let out = base.path().join("predicted");
    let kept = predict(&["asrock-romed8-2t", "--gpus", "1,2,4", "--gpu", "rtx-4090"], &out);
    assert!(kept.status.success(), "{}", common::stderr(&kept));
    let analyzed = common::rigscale().args(["analyze", "--json"]).arg(&out).output().expect("the binary");
    assert_eq!(analyzed.status.code(), Some(6), "nothing is graded: {}", common::stderr(&analyzed));
    let analysis: Analysis = serde_json::from_slice(&analyzed.stdout).expect("an analysis");
    assert!(analysis.verdict.headline.contains("predicted, not measured"), "{}", analysis.verdict.headline);
    let drawn = common::rigscale().arg("report").arg(&out).output().expect("the binary");
    assert!(drawn.status.success(), "{}", common::stderr(&drawn));
    let page = std::fs::read_to_string(out.join("report.html")).expect("a page");
    assert!(page.contains("simulated: no hardware took part") && page.contains("Not graded"));

    let again = predict(&["asrock-romed8-2t"], &out);
    assert_eq!(again.status.code(), Some(2), "a folder with a run in it is not taken");
    let swept = predict(&["asrock-romed8-2t", "--p2p", "auto,on"], &base.path().join("swept"));
    assert_eq!(swept.status.code(), Some(2));
    assert!(common::stderr(&swept).contains("each number of GPUs once"), "{}", common::stderr(&swept));
    let step = out.to_str().expect("a path");
    let output = common::rigscale().args(["predict", "am5-x8x8", "--step", step]).output().expect("the binary");
    assert_eq!(output.status.code(), Some(2), "a predicted step is no measured one");
    assert!(common::stderr(&output).contains("was predicted"), "{}", common::stderr(&output));
}

#[test]
fn the_step_of_a_run_is_taken_with_its_training() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/reports/example");
    let of = |more: &[&str]| {
        let mut command = common::rigscale();
        command.args(["predict", "am5-x8x8", "--json", "--step", example]).args(more).output().expect("the binary")
    };
    let output = of(&[]);
    assert!(output.status.success() && common::stderr(&output).contains("CPU cores"), "{}", common::stderr(&output));
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&said["model"], &said["context"]), (&"llama-15m".into(), &128.into()));
    let row = &said["variants"][0];
    assert_eq!((&row["catalogue"], &row["accumulate"]), (&false.into(), &1.into()));
    let files = RunFolder::open(Path::new(example)).and_then(|folder| folder.read()).expect("the example");
    let solo = files.trials.values().flat_map(|ranks| ranks.values()).filter(|file| file.head.arm == Arm::Solo);
    let steps: Vec<f64> = solo.flat_map(|file| &file.steps).map(|step| step.step_s.0).collect();
    let (least, most) = (steps.iter().copied().fold(f64::MAX, f64::min), steps.iter().copied().fold(0.0, f64::max));
    let alone = row["alone"].as_f64().expect("a step");
    assert!(least < alone && alone < most, "{least} {alone} {most}");
    assert_eq!(row["gradient_bytes"].as_u64(), Some(files.plan.gradient_bytes.0), "f32, as the run trained");
    let output = of(&["--model", "llama-1b"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(common::stderr(&output).contains("leave --model out"), "{}", common::stderr(&output));
    let output = common::rigscale().args(["predict", "am5-x8x8", "--step", "soon"]).output().expect("the binary");
    assert_eq!(output.status.code(), Some(2));
    assert!(common::stderr(&output).contains("no run folder, and no duration"), "{}", common::stderr(&output));
}
