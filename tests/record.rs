//! Rank files and run folders: round trips, and what bad ones are answered with.
#![expect(clippy::unwrap_used, reason = "a test fails where its machine does")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;
use rigscale::model::preset;
use rigscale::record::*;
use rigscale::units::{Bytes, Seconds, Tokens};

fn head() -> RunHead {
    RunHead {
        schema: SCHEMA,
        rigscale: "0.1.0".into(),
        trial: "launch-1_ddp-2".into(),
        origin: Origin::Measured,
        device: Device::Cpu,
        arm: Arm::Ddp,
        launch: 1,
        world: 2,
        rank: 0,
        share: Share { index: 0, cpus: vec![0], numa_node: Some(0), gpu: None, threads: None },
        communicator: "shm".into(),
        started: "2026-11-23T08:09:10Z".parse().unwrap(),
        epoch_s: Seconds(12.5),
        config: config(),
        software: BTreeMap::from([("kernel".into(), "6.1.0".into())]),
        nccl: NcclSettings::default(),
        transport: None,
    }
}

fn config() -> TrainConfig {
    TrainConfig {
        model: "llama-tiny".into(),
        shape: preset("llama-tiny").unwrap().shape,
        batch: 2,
        context: 64,
        accumulate: 1,
        recompute: false,
        deterministic: false,
        steps: 3,
        precision: Precision::F32,
        data: DataSource::Synthetic,
        seed: 1,
        learning_rate: 1e-3,
        weight_decay: 0.1,
        clip_norm: None,
        bucket_bytes: Bytes::mebi(25.0),
        first_bucket_bytes: Bytes::mebi(1.0),
        reduce_dtype: None,
        zero: 0,
        bucket_events_every: 1,
        checksum_every: 0,
    }
}

fn step(index: usize) -> Step {
    Step {
        index,
        tokens: Tokens(128),
        start_s: Seconds(0.1 * index as f64),
        step_s: Seconds(0.1),
        forward_s: Seconds(0.03),
        backward_s: Seconds(0.05),
        exposed_s: Seconds(0.01),
        optimizer_s: Seconds(0.01),
        loss: 6.9 - index as f64 / 3.0,
        grad_norm: 1.0 / 3.0,
        checksum: None,
    }
}

fn bucket(step: usize) -> Bucket {
    Bucket {
        step,
        index: 0,
        bytes: Bytes(4096),
        ready_s: Seconds(0.01),
        start_s: Seconds(0.02),
        end_s: Seconds(0.03),
        collective: Collective::AllReduce,
    }
}

fn end(steps: usize) -> RunEnd {
    RunEnd {
        reason: EndReason::Completed,
        steps,
        parameters_sha256: Some("ab".repeat(32)),
        peak_memory_bytes: Bytes(1 << 20),
        stolen: Some(0.001),
    }
}

fn write(path: &Path) {
    let mut writer = RankWriter::create(path, &head()).unwrap();
    for index in 0..3 {
        writer.step(&step(index), &[bucket(index)]).unwrap();
    }
    writer.end(&end(3)).unwrap();
}

/// A good file in a folder of its own, and its lines.
fn good() -> (tempfile::TempDir, PathBuf, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rank-0.jsonl");
    write(&path);
    let lines = fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect();
    (folder, path, lines)
}

fn error_of(path: &Path, text: &str) -> String {
    fs::write(path, text).unwrap();
    read_rank_file(path).expect_err("this file should not read").to_string()
}

#[test]
fn a_rank_file_survives_a_round_trip_to_the_bit() {
    let (_folder, path, _) = good();
    let file = read_rank_file(&path).unwrap();
    assert_eq!(file.head, head());
    assert_eq!(file.steps, (0..3).map(step).collect::<Vec<_>>());
    assert_eq!(file.buckets, (0..3).map(bucket).collect::<Vec<_>>());
    assert_eq!(file.end, Some(end(3)));
}

#[test]
fn a_cut_file_keeps_its_complete_lines_and_has_no_end() {
    let (_folder, path, lines) = good();
    let cut = format!("{}\n{}\n{}", lines[0], lines[1], &lines[2][..lines[2].len() / 2]);
    fs::write(&path, cut).unwrap();
    let file = read_rank_file(&path).unwrap();
    assert_eq!((file.steps.len(), file.buckets.len(), file.end), (1, 0, None));
}

#[test]
fn bad_lines_are_named_by_file_line_and_field() {
    let (_folder, path, lines) = good();
    let with = |number: usize, line: &str| {
        let mut lines = lines.clone();
        lines[number - 1] = line.into();
        lines.join("\n") + "\n"
    };
    let rows: &[(String, &str)] = &[
        (with(2, "{garbled"), ":2:"),
        (with(2, &lines[1].replace("0.05", "\"fast\"")), "field `backward_s`: invalid type"),
        (with(2, &lines[1].replace("0.05", "-0.05")), "field `backward_s` is -0.05"),
        (with(2, &lines[1].replace("\"tokens\":128", "\"tokens\":128,\"watts\":3")), "unknown field `watts`"),
        (with(2, &lines[1].replace("\"loss\":6.9,", "")), "missing field `loss`"),
        (with(2, &lines[1].replace("\"loss\":6.9", "\"loss\":NaN")), ":2:"),
        (with(2, &lines[3]), "the next step is 0"),
        (with(3, &lines[2].replace("\"step\":0", "\"step\":2")), "a bucket follows its own step"),
        (with(1, &lines[1]), "the first line should be a `run` line"),
        (with(8, &lines[7].replace("\"steps\":3", "\"steps\":4")), "field `steps` says 4, the file holds 3"),
        (with(1, &lines[0].replace("\"schema\":1", "\"schema\":99")), "has schema 99; this rigscale reads up to 1"),
        (with(1, &lines[0].replace("\"batch\":2", "\"batch\":true")), "field `config.batch`"),
        (lines.join("\n") + "\n" + &lines[6] + "\n", "a line follows the `end` line"),
        (String::new(), "the file is empty"),
    ];
    for (text, expected) in rows {
        let error = error_of(&path, text);
        assert!(error.contains(expected) && error.contains("rank-0.jsonl"), "{error}\n  should contain {expected}");
    }
}

#[test]
#[should_panic(expected = "steps are written in order")]
fn the_writer_asserts_the_order_of_steps() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = RankWriter::create(&folder.path().join("rank-0.jsonl"), &head()).unwrap();
    let _ = writer.step(&step(1), &[]);
}

#[test]
fn a_full_disk_is_an_error_that_names_the_file() {
    // a limit on file sizes refuses a write as a full disk does
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("machine.jsonl");
    let script = "trap '' XFSZ; ulimit -f 1; exec \"$0\" capture \"$1\"";
    let program = env!("CARGO_BIN_EXE_rigscale");
    let output = Command::new("sh").args(["-c", script, program]).arg(&path).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("could not write") && said.contains("machine.jsonl"), "{said}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "no partial file reads as whole");
}

#[test]
fn a_write_never_goes_through_a_link() {
    let folder = tempfile::tempdir().unwrap();
    let victim = folder.path().join("thesis.tex");
    fs::write(&victim, "work of years").unwrap();
    symlink(&victim, folder.path().join("analysis.json.part")).unwrap();
    write_json(&folder.path().join("analysis.json"), &end(1)).unwrap();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "work of years");
    assert_eq!(read_json::<RunEnd>(&folder.path().join("analysis.json")).unwrap(), end(1));
}

#[test]
fn our_own_files_stay_inside_the_run_folder() {
    let (base, folder) = folder();
    fs::create_dir(base.path().join("elsewhere")).unwrap();
    symlink(base.path().join("elsewhere"), folder.path().join("charts")).unwrap();
    assert!(folder.write("charts/phases.svg", b"<svg/>").is_err());
    assert_eq!(fs::read_dir(base.path().join("elsewhere")).unwrap().count(), 0);
    fs::remove_file(folder.path().join("charts")).unwrap();
    for _ in 0..2 {
        folder.write("charts/phases.svg", b"<svg/>").unwrap();
    }
    assert_eq!(fs::read(folder.path().join("charts/phases.svg")).unwrap(), b"<svg/>");
}

#[test]
fn a_number_that_is_not_finite_is_never_written() {
    let folder = tempfile::tempdir().unwrap();
    for wrong in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let path = folder.path().join("end.json");
        let error = write_json(&path, &RunEnd { stolen: Some(wrong), ..end(1) }).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(cause, "field `stolen` is not a finite number");
        assert!(write_yaml(&path, &Plan { target: wrong, ..plan() }).is_err() && !path.exists());
        let path = folder.path().join(format!("rank-{wrong}.jsonl"));
        let mut writer = RankWriter::create(&path, &head()).unwrap();
        writer.step(&Step { loss: wrong, ..step(0) }, &[]).expect_err("a loss that is no number");
        assert!(read_rank_file(&path).unwrap().steps.is_empty());
    }
}

/// Makes a pipe that nobody writes to.
fn pipe(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn pipes_and_devices_are_refused_and_not_waited_for() {
    let (_base, folder) = folder();
    let rank = folder.rank("launch-1_ddp-2", 1);
    pipe(&rank);
    assert!(matches!(read_text(&rank, 100), Err(RecordError::NotAFile { .. })));
    assert!(matches!(read_rank_file(&rank), Err(RecordError::NotAFile { .. })));
    assert!(matches!(folder.read(), Err(RecordError::NotAFile { path }) if path == rank));
    assert!(matches!(Manifest::write(&folder), Err(RecordError::NotAFile { path }) if path == rank));
    fs::remove_file(&rank).unwrap();
    symlink("/dev/zero", &rank).unwrap();
    assert!(matches!(read_rank_file(&rank), Err(RecordError::NotAFile { .. })));
    fs::remove_file(&rank).unwrap();
    assert!(matches!(read_text(Path::new("/"), 100), Err(RecordError::NotAFile { .. })));
}

#[test]
fn evidence_that_cannot_be_looked_at_is_not_absent() {
    let (_base, folder) = folder();
    let rank = folder.rank("launch-1_ddp-2", 1);
    for target in ["rank-1.jsonl", "nowhere"] {
        symlink(target, &rank).unwrap();
        assert!(matches!(folder.read(), Err(RecordError::File { path, .. }) if path == rank), "{target}");
        fs::remove_file(&rank).unwrap();
    }
    assert!(folder.read().is_ok());
}

#[test]
fn a_trial_cannot_lie_outside_of_the_folder() {
    let (base, folder) = folder();
    let elsewhere = base.path().join("elsewhere").display().to_string();
    for name in ["../../elsewhere", elsewhere.as_str(), "..", "", "a/b", "a b"] {
        let trial = Trial { name: name.into(), ..plan().trials[0].clone() };
        write_yaml(&folder.plan(), &Plan { trials: vec![trial], ..plan() }).unwrap();
        let error = folder.read().unwrap_err();
        let text = error.to_string();
        assert!(text.contains("plan.yaml") && text.contains(&format!("{name:?}")) && error.is_input(), "{text}");
    }
}

fn plan() -> Plan {
    Plan {
        schema: SCHEMA,
        rigscale: "0.1.0".into(),
        created: "2026-11-23T08:09:10Z".parse().unwrap(),
        device: Device::Cpu,
        grade: Grade::CpuRanks,
        target: 0.9,
        worlds: vec![1, 2],
        skipped: vec![SkippedWorld { world: 4, why: "4 ranks need 4 cores".into() }],
        shares: vec![head().share, Share { index: 1, cpus: vec![1], ..head().share }],
        config: config(),
        why: vec!["a: sentence, with #punctuation".into()],
        gradient_bytes: Bytes(4096),
        flops_per_step: 1e9,
        step_estimate_s: Seconds(1.0 / 3.0),
        launches: 1,
        extension: 0,
        heating_steps: 1,
        order_seed: u64::MAX,
        trials: vec![Trial { name: "launch-1_ddp-2".into(), launch: 1, arm: Arm::Ddp, shares: vec![0, 1] }],
        limits: Limits { meet_s: Seconds(60.0), step_s: Seconds(15.0), trial_s: Seconds(100.0), stop_s: Seconds(1.0) },
        nccl: NcclSettings::default(),
        share_gpu: false,
        fields: vec![Field { key: "order".into(), value: "yes".into() }],
        tuned: None,
    }
}

/// A run folder with one trial of two ranks.
fn folder() -> (tempfile::TempDir, RunFolder) {
    let base = tempfile::tempdir().unwrap();
    let folder = RunFolder::create_at(&base.path().join("run")).unwrap();
    write_yaml(&folder.plan(), &plan()).unwrap();
    fs::create_dir(folder.trial("launch-1_ddp-2")).unwrap();
    write(&folder.rank("launch-1_ddp-2", 0));
    (base, folder)
}

#[test]
fn a_plan_survives_yaml_and_a_folder_reads_without_a_missing_rank() {
    let (_base, folder) = folder();
    let files = folder.read().unwrap();
    assert_eq!(files.plan, plan());
    assert!(!files.launch_recorded);
    assert_eq!(files.trials["launch-1_ddp-2"].keys().copied().collect::<Vec<_>>(), vec![0]);
}

#[test]
fn bad_plans_are_named_by_file_line_and_field() {
    let (_base, folder) = folder();
    let text = fs::read_to_string(folder.plan()).unwrap();
    let bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned()
        + &('b'..'j')
            .map(|name| {
                let last = (name as u8 - 1) as char;
                format!("{name}: &{name} [*{last}, *{last}, *{last}, *{last}, *{last}, *{last}, *{last}, *{last}]\n")
            })
            .collect::<String>();
    let rows: &[(String, &str)] = &[
        (text.replace("schema: 1", "schema: 2"), "has schema 2; this rigscale reads up to 1"),
        (text.replace("launches: 1", "launches: many"), "plan.yaml:"),
        (text.replace("extension:", "extention:"), "extention"),
        (text.replace("target: 0.9", "target: .nan"), "plan.yaml: field `target` is not a finite number"),
        (text.replace("meet_s: 60.0", "meet_s: -.inf"), "plan.yaml: field `limits.meet_s` is not a finite number"),
        (text.clone() + "\ttabs: 1\n", "plan.yaml:"),
        ("[".repeat(100_000), "plan.yaml:"),
        (bomb, "plan.yaml:"),
        (String::new(), "plan.yaml"),
    ];
    for (text, expected) in rows {
        fs::write(folder.plan(), text).unwrap();
        let error = folder.read().expect_err("this plan should not read").to_string();
        assert!(error.contains(expected), "{error}\n  should contain {expected}");
    }
    fs::write(folder.plan(), "x".repeat(5 << 20)).unwrap();
    assert!(matches!(folder.read(), Err(RecordError::TooLarge { .. })));
}

#[test]
fn evidence_that_nobody_weighs_is_refused() {
    let (_base, folder) = folder();
    fs::create_dir(folder.trial("launch-9_ddp-2")).unwrap();
    assert!(matches!(folder.read(), Err(RecordError::Stray { .. })));
}

#[test]
fn a_rank_file_in_the_wrong_place_is_refused() {
    let (_base, folder) = folder();
    fs::rename(folder.rank("launch-1_ddp-2", 0), folder.rank("launch-1_ddp-2", 1)).unwrap();
    let error = folder.read().unwrap_err().to_string();
    assert!(error.contains("field `rank` should be 1"), "{error}");
}

#[test]
fn telemetry_is_read_with_its_trial_and_belongs_to_the_evidence() {
    let (_base, folder) = folder();
    let trial = "launch-1_ddp-2";
    let head = |trial: &str| GpuHead {
        schema: SCHEMA,
        rigscale: "0.1.0".into(),
        trial: trial.into(),
        gpus: vec!["0000:41:00.0".into()],
        interval_s: Seconds(0.1),
        epoch_s: Seconds(12.5),
    };
    assert!(folder.read().unwrap().gpus.is_empty());
    GpuWriter::create(&folder.gpus(trial), &head(trial)).unwrap().end().unwrap();
    assert_eq!(folder.read().unwrap().gpus[trial].head, head(trial));
    Manifest::write(&folder).unwrap();
    fs::remove_file(folder.gpus(trial)).unwrap();
    assert_eq!(folder.read().unwrap().altered, ["runs/launch-1_ddp-2/gpu.jsonl is missing"]);
    GpuWriter::create(&folder.gpus(trial), &head("launch-2_ddp-2")).unwrap().end().unwrap();
    let error = folder.read().unwrap_err().to_string();
    assert!(error.contains("gpu.jsonl:1:") && error.contains("field `trial` should be"), "{error}");
}

#[test]
fn an_analysis_that_knows_nothing_of_telemetry_still_reads() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("reports/example/analysis.json");
    let text = fs::read_to_string(&path).unwrap();
    assert!(!text.contains("\"gpus\"") && !text.contains("tokens_per_joule"), "the example ran on CPUs");
    let analysis: Analysis = read_json(&path).unwrap();
    assert!(analysis.gpus.is_empty() && analysis.points.iter().all(|point| point.gpu_power_w.is_none()));
}

#[test]
fn the_manifest_names_what_was_changed() {
    let (_base, folder) = folder();
    assert_eq!(folder.read().unwrap().altered, ["manifest.json is missing"]);
    Manifest::write(&folder).unwrap();
    assert_eq!(folder.read().unwrap().altered, Vec::<String>::new());
    fs::write(folder.rank("launch-1_ddp-2", 0), "better numbers").unwrap();
    fs::write(folder.path().join("extra.txt"), "?").unwrap();
    fs::rename(folder.plan(), folder.path().join("plan")).unwrap();
    symlink("plan", folder.plan()).unwrap();
    let expected = [
        "plan.yaml is no regular file",
        "runs/launch-1_ddp-2/rank-0.jsonl was changed",
        "extra.txt was added",
        "plan was added",
    ];
    assert_eq!(Manifest::altered(&folder).unwrap(), expected);
}

#[test]
fn our_own_files_may_change_and_the_evidence_never() {
    let (_base, folder) = folder();
    Manifest::write(&folder).unwrap();
    folder.write("analysis.json", b"{}").unwrap();
    folder.write("charts/phases.svg", b"<svg/>").unwrap();
    fs::write(folder.path().join("report.html.part"), "cut").unwrap();
    Manifest::renew(&folder, &["analysis.json", "charts/phases.svg"]).unwrap();
    assert_eq!(Manifest::altered(&folder).unwrap(), Vec::<String>::new());
    assert!(Manifest::vouches_for(&folder, "analysis.json").unwrap());
    fs::write(folder.analysis(), "{\"outcome\": \"pass\"}").unwrap();
    assert!(!Manifest::vouches_for(&folder, "analysis.json").unwrap());

    fs::write(folder.plan(), fs::read_to_string(folder.plan()).unwrap().replace("target: 0.9", "target: 0.1")).unwrap();
    for _ in 0..2 {
        assert_eq!(folder.read().unwrap().altered, ["plan.yaml was changed"]);
        Manifest::renew(&folder, &["analysis.json"]).unwrap();
    }
    fs::remove_file(folder.manifest()).unwrap();
    Manifest::renew(&folder, &["analysis.json"]).unwrap();
    assert_eq!(folder.read().unwrap().altered, ["manifest.json is missing"]);
}

#[test]
fn neither_analyze_nor_report_vouch_for_evidence_that_was_changed() {
    let (_base, folder) = folder();
    Manifest::write(&folder).unwrap();
    fs::write(folder.plan(), fs::read_to_string(folder.plan()).unwrap().replace("target: 0.9", "target: 0.1")).unwrap();
    let run = |command: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_rigscale")).arg(command).arg(folder.path()).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for _ in 0..2 {
        let (code, said) = run("analyze");
        assert!(folder.analysis().exists() && code != 2, "{code}: {said}");
        let (code, said) = run("report");
        assert!(code == 0 && said.contains("plan.yaml was changed"), "{code}: {said}");
        assert_eq!(folder.read().unwrap().altered, ["plan.yaml was changed"]);
    }
    let analysis = fs::read_to_string(folder.analysis()).unwrap();
    fs::write(folder.analysis(), analysis + "\n").unwrap();
    let (code, said) = run("report");
    assert!(code == 2 && said.contains("analysis.json was changed") && said.contains("rigscale analyze"), "{said}");
}

#[test]
fn a_verdict_that_cannot_be_kept_is_still_given() {
    let (_base, folder) = folder();
    Manifest::write(&folder).unwrap();
    let program = env!("CARGO_BIN_EXE_rigscale");
    let kept = Command::new(program).arg("analyze").arg(folder.path()).output().unwrap();
    fs::remove_file(folder.analysis()).unwrap();
    // a folder that cannot be removed stands where the file would be written; root may write anywhere else
    fs::create_dir_all(folder.path().join("analysis.json.part")).unwrap();
    let output = Command::new(program).arg("analyze").arg(folder.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), &output.stdout), (kept.status.code(), &kept.stdout), "{said}");
    assert!(said.contains("the analysis is not kept") && said.contains("analysis.json"), "{said}");
    assert!(!folder.analysis().exists());
}

proptest! {
    #[test]
    fn no_bytes_make_the_readers_panic(noise in prop::collection::vec(any::<u8>(), 0..300), cut in 0_usize..2000) {
        let (_folder, path, lines) = good();
        let mut bytes = lines.join("\n").into_bytes();
        bytes.truncate(cut);
        bytes.extend(noise);
        fs::write(&path, bytes).unwrap();
        let _ = read_rank_file(&path);
        let _ = read_yaml::<Plan>(&path);
        let _ = read_json::<Analysis>(&path);
    }

    #[test]
    fn floats_survive(step_s in 1e-9_f64..1e6, loss in -1e300_f64..1e300) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rank-0.jsonl");
        let step = Step { step_s: Seconds(step_s), loss, ..step(0) };
        let mut writer = RankWriter::create(&path, &head()).unwrap();
        writer.step(&step, &[]).unwrap();
        prop_assert_eq!(&read_rank_file(&path).unwrap().steps[0], &step);
    }
}
