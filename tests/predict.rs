//! Predictions as run folders: what the analysis makes of them, and what it may not say.

#[expect(dead_code, reason = "nothing is trained here")]
mod common;

use std::path::Path;

use rigscale::analyze::analyze;
use rigscale::model::preset;
use rigscale::predict::{
    Alone, Board, Calibration, Cause, Exchange, Explanation, Forecast, Framework, Network, Overlap, P2p, Simulation,
    Training, card, edit, explain, forecast, platform,
};
use rigscale::record::{Analysis, Arm, Interval, Origin, Outcome, Point, Precision, RunFiles, RunFolder, Step};
use rigscale::topology::shares_of;
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
        framework: Framework::Rigscale,
        reduced: None,
        recompute: false,
    }
}

/// Forecasts of the first GPUs of a board, and the run that they make.
fn simulated(board: &Board, counts: &[usize], training: &Training, exchange: &Exchange) -> (Vec<Forecast>, RunFiles) {
    let calibration = Calibration::default();
    let world = |count: &usize| {
        let largest = counts.iter().copied().max().expect("a count");
        let board = board.with_gpus(largest).expect("so many slots").with_seats(&shares_of(*count, largest));
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
    let hazard = analysis.findings.iter().find(|finding| finding.code == "nodes-per-socket");
    assert!(hazard.is_some_and(|finding| finding.remedy.contains("NPS4")), "{:?}", analysis.findings);
    let drawn = common::rigscale().arg("report").arg(&out).output().expect("the binary");
    assert!(drawn.status.success(), "{}", common::stderr(&drawn));
    let page = std::fs::read_to_string(out.join("report.html")).expect("a page");
    assert!(page.contains("simulated: no hardware took part") && page.contains("Not graded"));
    assert!(page.contains("<figure id=\"machine\">") && page.contains("the limit"), "the picture of the platform");
    let explained = common::rigscale().args(["predict", "--explain"]).arg(&out).output().expect("the binary");
    assert!(explained.status.success(), "on its own platform: {}", common::stderr(&explained));

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
    let alone = row["alone_s"].as_f64().expect("a step");
    assert!(least < alone && alone < most, "{least} {alone} {most}");
    assert_eq!(row["gradient_bytes"].as_u64(), Some(files.plan.gradient_bytes.0), "f32, as the run trained");
    let output = of(&["--model", "llama-1b"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(common::stderr(&output).contains("leave --model out"), "{}", common::stderr(&output));
    let output = common::rigscale().args(["predict", "am5-x8x8", "--step", "soon"]).output().expect("the binary");
    assert_eq!(output.status.code(), Some(2));
    assert!(common::stderr(&output).contains("no run folder, and no duration"), "{}", common::stderr(&output));
}

#[test]
fn a_probed_machine_is_pictured_in_the_report_of_its_prediction_and_by_probe() {
    let base = tempfile::tempdir().expect("a folder");
    let machines = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/machines");
    let out = base.path().join("run");
    let kept = predict(&[&format!("{machines}/narrow-link/topology.yaml"), "--gpus", "2,4"], &out);
    assert!(kept.status.success(), "{}", common::stderr(&kept));
    for command in ["analyze", "report"] {
        common::rigscale().arg(command).arg(&out).output().expect("the binary");
    }
    let page = std::fs::read_to_string(out.join("report.html")).expect("a page");
    assert!(page.contains("<figure id=\"machine\">") && page.contains("! Gen4 x8"), "the picture and its short link");
    assert!(out.join("charts/machine.png").is_file());

    let other = base.path().join("other");
    let machine = format!("{machines}/narrow-link/topology.yaml");
    assert!(predict(&[&machine, "--gpus", "2", "--gpu", "rtx-4090"], &other).status.success());
    let sketch = std::fs::read_to_string(other.join("machine.json")).expect("a sketch");
    assert!(sketch.contains("RTX 4090") && !other.join("topology.yaml").exists(), "the cards that were asked for");

    let svg = base.path().join("machine.svg");
    let output =
        common::rigscale().args(["predict", "asrock-romed8-2t", "--svg"]).arg(&svg).output().expect("the binary");
    assert!(output.status.success(), "{}", common::stderr(&output));
    let text = std::fs::read_to_string(&svg).expect("a picture");
    assert!(text.starts_with("<svg ") && text.contains("slot-7"), "{text}");
    let probed = |name: &str| {
        let capture = format!("{machines}/{name}/machine.jsonl");
        common::rigscale().args(["probe", "--from", &capture, "--svg"]).arg(&svg).output().expect("the binary")
    };
    assert!(probed("server-8gpu").status.success());
    let text = std::fs::read_to_string(&svg).expect("a picture");
    assert!(text.starts_with("<svg ") && text.matches("63.0 GB/s").count() == 12, "8 GPUs and 4 uplinks");
    let nothing = base.path().join("lspci.txt");
    std::fs::write(&nothing, "00:00.0 Host bridge [0600]: Advanced Micro Devices, Inc. [AMD] Device [1022:14d8]\n")
        .expect("a file");
    let mut command = common::rigscale();
    let output = command.args(["probe", "--svg"]).arg(&svg).arg("--from").arg(&nothing).output().expect("the binary");
    assert_eq!(output.status.code(), Some(2), "{}", common::stderr(&output));
}

#[test]
fn a_sweep_is_drawn_as_svg_and_png() {
    let base = tempfile::tempdir().expect("a folder");
    let drawn = |file: &str, more: &[&str]| {
        let path = base.path().join(file);
        let mut command = common::rigscale();
        command.args(["predict", "asrock-romed8-2t", "--chart"]).arg(&path).args(more);
        (command.output().expect("the binary"), std::fs::read(&path).unwrap_or_default())
    };
    let (output, svg) = drawn("a.svg", &["--p2p", "auto,on", "--gpus", "2,4"]);
    assert!(output.status.success(), "{}", common::stderr(&output));
    let svg = String::from_utf8(svg).expect("UTF-8");
    assert!(svg.contains("target 0.90") && svg.contains("4 GPUs, P2P on"), "{svg}");
    assert!(drawn("a.png", &[]).1.starts_with(b"\x89PNG"));
    let (output, _) = drawn("a.pdf", &[]);
    assert_eq!(output.status.code(), Some(2));
    let sizes = (1..=50).map(|size| size.to_string()).collect::<Vec<_>>().join(",");
    let (output, _) = drawn("b.svg", &["--bucket-mib", &sizes]);
    assert!(output.status.code() == Some(2) && common::stderr(&output).contains("at most 40"));
}

/// A run of 4 GPUs whose launches hardly differ.
fn certain(board: &Board, training: &Training, exchange: &Exchange, overlap: Overlap) -> RunFiles {
    let board = board.with_gpus(4).expect("4 slots");
    let mut own = forecast(&board, training, exchange, &Calibration::default()).expect("a forecast");
    own.time = own.work.step(&own.ring, &overlap);
    let estimate = own.ideal / own.time.step;
    own.efficiency = Interval { estimate, low: estimate * 0.9999, high: estimate * 1.0001 };
    let (worlds, created) = ([(board, own)], jiff::Timestamp::UNIX_EPOCH);
    Simulation { model: "llama-1b", training, exchange, worlds: &worlds, overlap, target: 0.9, created }.run()
}

/// The gap between the usual prediction of 4 RTX 4090 on this board and a run.
fn explained(board: &Board, exchange: &Exchange, run: &RunFiles, points: &[Point]) -> Explanation {
    let known = (&training(1), exchange, &Calibration::default());
    let mut worlds = explain(board, known, run, points).expect("an explanation");
    assert_eq!(worlds.len(), 1);
    sums(&worlds[0]);
    worlds.remove(0)
}

/// The causes sum to the gap, in time and in efficiency, and the remainder is the last of them.
fn sums(it: &Explanation) {
    let step: f64 = it.parts.iter().map(|part| part.step_s.0).sum();
    let efficiency: f64 = it.parts.iter().map(|part| part.efficiency).sum();
    let scale = it.measured.step_s.0.max(it.predicted.step_s.0);
    assert!((it.predicted.step_s.0 + step - it.measured.step_s.0).abs() <= 1e-12 * scale, "{it:?}");
    assert!((it.predicted.efficiency + efficiency - it.measured.efficiency).abs() <= 1e-12, "{it:?}");
    assert_eq!(it.parts.last().map(|part| part.cause), Some(Cause::Unexplained));
    assert_eq!(it.parts.len(), 8);
}

fn part(it: &Explanation, cause: Cause) -> f64 {
    it.parts.iter().find(|part| part.cause == cause).expect("every cause").step_s / it.predicted.step_s
}

/// Of all causes this one is charged, with about `share` of the predicted step, and none else with more than 1 %.
fn charged(it: &Explanation, cause: Cause, share: std::ops::Range<f64>) {
    assert!(share.contains(&part(it, cause)), "{cause:?} {} {it:#?}", part(it, cause));
    let others = it.parts.iter().filter(|part| part.cause != cause);
    others.for_each(|other| assert!(part(it, other.cause).abs() < 0.01, "{:?} beside {cause:?}: {it:#?}", other.cause));
}

/// Changes every step by its arm and rank, and moves the later ones.
fn changed(mut run: RunFiles, change: impl Fn(Arm, usize, &mut Step)) -> RunFiles {
    for file in run.trials.values_mut().flat_map(|ranks| ranks.values_mut()) {
        let mut late = Seconds(0.0);
        for step in &mut file.steps {
            let before = step.step_s;
            change(file.head.arm, file.head.rank, step);
            step.start_s += late;
            for bucket in file.buckets.iter_mut().filter(|bucket| bucket.step == step.index) {
                for moment in [&mut bucket.ready_s, &mut bucket.start_s, &mut bucket.end_s] {
                    *moment += late;
                }
            }
            late += step.step_s - before;
        }
    }
    run
}

#[test]
fn each_cause_of_a_gap_is_charged_where_it_stands() {
    let board = platform("asrock-romed8-2t").expect("a platform");
    let (usual, overlap) = (Exchange::default(), Overlap::default());
    let of = |run: &RunFiles, exchange: &Exchange| {
        explained(&board, exchange, run, &analyze(run).expect("an analysis").points)
    };
    let plain = certain(&board, &training(1), &usual, overlap);
    let same = of(&plain, &usual);
    same.parts.iter().for_each(|part| assert!((part.step_s / same.predicted.step_s).abs() < 1e-3, "{same:#?}"));

    let mut narrow = board.clone();
    edit(&mut narrow, &format!("{}.width=4", board.nodes[board.seats[2].node].name)).expect("a slot");
    charged(&of(&certain(&narrow, &training(1), &usual, overlap), &usual), Cause::Bandwidth, 0.2..3.0);

    let peers = Exchange { p2p: P2p::On, ..usual };
    charged(&of(&plain, &peers), Cause::Staging, 0.02..1.0);

    let rough = Overlap { contention: 0.8, ..overlap };
    let contended = of(&certain(&board, &training(1), &usual, rough), &usual);
    charged(&contended, Cause::Contention, 0.02..1.0);

    let slow =
        of(&certain(&board, &Training { alone: Alone::Step(Seconds(2.0)), ..training(1) }, &usual, overlap), &usual);
    charged(&slow, Cause::Compute, 0.5..5.0);

    let hot = changed(plain.clone(), |arm, _, step| {
        if arm != Arm::Solo {
            let busy = step.forward_s + step.backward_s + step.optimizer_s;
            step.forward_s += busy * 0.1;
            step.step_s += busy * 0.1;
        }
    });
    assert!((0.03..0.2).contains(&part(&of(&hot, &usual), Cause::Silicon)), "{:#?}", of(&hot, &usual));
    let late = changed(plain, |arm, rank, step| {
        let more = Seconds(0.05);
        match (arm, rank) {
            (Arm::Solo, _) => return,
            (_, 1) => step.forward_s += more,
            (Arm::Ddp, _) => step.exposed_s += more,
            (Arm::Together, _) => return,
        }
        step.step_s += more;
    });
    let late = of(&late, &usual);
    let most = late.parts.iter().max_by(|one, other| one.step_s.0.total_cmp(&other.step_s.0)).expect("parts");
    assert_eq!(most.cause, Cause::Stragglers, "{late:#?}");
}

#[test]
fn a_slow_network_is_told_apart_by_bandwidth_and_latency() {
    let board = platform("asrock-romed8-2t").expect("a platform");
    let over = |rate: f64, latency: f64| {
        let network = Some(Network { rate: BytesPerSecond(rate), latency: Seconds(latency) });
        Exchange { hosts: 2, network, ..Exchange::default() }
    };
    let said = over(5e9, 10e-6);
    let of = |real: &Exchange| {
        let run = certain(&board, &training(1), real, Overlap::default());
        explained(&board, &said, &run, &analyze(&run).expect("an analysis").points)
    };
    charged(&of(&over(5e9, 2e-3)), Cause::Latency, 0.01..5.0);
    charged(&of(&over(2e9, 10e-6)), Cause::Bandwidth, 0.1..5.0);
}

#[test]
fn the_recorded_example_is_explained_by_the_binary() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/reports/example");
    let explain = |more: &[&str]| {
        let mut command = common::rigscale();
        command.args(["predict", "am5-x8x8", "--explain", example]).args(more).output().expect("the binary")
    };
    let output = explain(&["--json"]);
    assert!(output.status.success(), "{}", common::stderr(&output));
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let world = &said["worlds"][0];
    let number = |value: &serde_json::Value| value.as_f64().expect("a number");
    let sum: f64 = world["parts"].as_array().expect("parts").iter().map(|part| number(&part["step_s"])).sum();
    let gap = number(&world["measured"]["step_s"]) - number(&world["predicted"]["step_s"]);
    assert!((sum - gap).abs() < 1e-12 && world["parts"][7]["cause"] == "unexplained");
    assert!(said["notes"][0].as_str().is_some_and(|note| note.contains("two kinds of machine")));

    let output = explain(&[]);
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    // what is printed sums, too: in hundredths of a millisecond and of a point
    let figures = |name: &str| -> [i64; 2] {
        let line = text.lines().find(|line| line.starts_with(&format!("  {name}"))).expect("a row");
        let words: Vec<&str> = line.split_whitespace().collect();
        [words[1], words[3]].map(|word| (word.parse::<f64>().expect("a figure") * 100.0).round() as i64)
    };
    let causes = ["compute", "silicon", "stragglers", "staging", "bandwidth", "latency", "contention", "unexplained"]
        .map(figures);
    for at in 0..2 {
        let sum: i64 = causes.iter().map(|row| row[at]).sum();
        assert_eq!(figures("predicted")[at] + sum, figures("measured")[at], "{text}");
    }
    let output = common::rigscale().args(["predict", "--explain", example]).output().expect("the binary");
    assert_eq!(output.status.code(), Some(2), "its own machine is not known well enough");
    assert!(common::stderr(&output).contains("the prediction needs it"), "{}", common::stderr(&output));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 48, ..Default::default() })]

    /// Whatever a run says, nothing of the gap is lost.
    #[test]
    fn causes_sum_to_the_gap(factors in proptest::collection::vec(0.2_f64..3.0, 9), events in proptest::bool::ANY) {
        let board = platform("asrock-romed8-2t").expect("a platform");
        let run = certain(&board, &training(1), &Exchange::default(), Overlap::default());
        let mut points = analyze(&run).expect("an analysis").points;
        let point = &mut points[0];
        let rates = [&mut point.solo_rate, &mut point.together_rate, &mut point.free_rate, &mut point.ddp_rate];
        rates.into_iter().zip(&factors).for_each(|(rate, factor)| rate.0 *= factor);
        point.step_s = Seconds(point.step_s.0 / factors[3]);
        point.loss.slowdown_s = point.loss.slowdown_s * (factors[4] - 1.0);
        point.loss.optimizer_s = point.step_s * ((factors[5] - 1.0) * 0.1);
        point.bus_bandwidth = point.bus_bandwidth.filter(|_| events).map(|bus| bus * factors[6]);
        let peers = Exchange { p2p: if factors[7] < 1.0 { P2p::On } else { P2p::Auto }, ..Exchange::default() };
        explained(&board, &peers, &run, &points);
    }
}
