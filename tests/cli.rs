//! The binary from outside: exit codes, what a person reads, and a whole qualification.

#![expect(clippy::unwrap_used, reason = "a test fails where its machine does")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Output;

use common::{rigscale, stderr, train};

/// What a finished command said on stdout.
fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs and returns exit code, stdout and stderr.
fn run(args: &[&str]) -> (i32, String, String) {
    let output = rigscale().args(args).output().unwrap();
    (output.status.code().unwrap(), stdout(&output), stderr(&output))
}

#[test]
fn bad_usage_is_answered_with_what_would_be_right() {
    let rows: &[(&[&str], i32, &[&str])] = &[
        (&["qualify", "--wordl", "2"], 2, &["--wordl", "--world"]),
        (&["train", "--model", "llama-900t"], 2, &["llama-900t", "llama-15m"]),
        (&["qualify", "--world", "0"], 2, &["--world", "between 1 and 64"]),
        (&["qualify", "--world", "1,10000"], 2, &["10000", "between 1 and 64"]),
        (&["qualify", "--batch", "0"], 2, &["--batch", "1..=65536"]),
        (&["qualify", "--target", "90"], 2, &["--target", "between 0.01 and 1"]),
        (&["qualify", "--budget", "soon"], 2, &["--budget", "20m"]),
        (&["train", "--token-bytes", "3"], 2, &["uint16"]),
        (&["analyze", "/nowhere"], 2, &["/nowhere", "not a run folder"]),
        (&["report"], 2, &["RUN"]),
        (&["probe", "--from", "/nowhere.jsonl"], 2, &["/nowhere.jsonl"]),
        (&["probe", "--expect", "/nowhere.yaml"], 2, &["/nowhere.yaml"]),
        (&["models", "--memory", "llama-15m"], 2, &["MODEL,BATCH,CONTEXT"]),
        (&["train", "--device", "cpu", "--world", "64"], 2, &["--world", "64 ranks need 64 cores"]),
        (&["train", "--learning-rate=-1"], 2, &["--learning-rate"]),
        (&["predict"], 2, &["PLATFORM"]),
        (&["predict", "no-such-board"], 2, &["no-such-board", "--list"]),
        (&["predict", "am5-x8x8", "--gpus", "3"], 2, &["am5-x8x8", "slots for 2"]),
        (&["predict", "am5-x8x8", "--gpu", "rtx-5091"], 2, &["rtx-5091", "rtx-5090"]),
        (&["predict", "am5-x8x8", "--set", "slot.1.width=3"], 2, &["slot.1.width=3", "1, 2, 4, 8"]),
        (&["predict", "am5-x8x8", "--hosts", "2"], 2, &["--network"]),
        (&["predict", "am5-x8x8", "--network", "25,10us"], 2, &["no unit"]),
        (&["train", "--device", "cpu", "--steps", "2", "-o", "/proc/nowhere"], 1, &["/proc/nowhere"]),
    ];
    for (args, code, words) in rows {
        let (got, _, said) = run(args);
        assert_eq!(got, *code, "{args:?}: {said}");
        for word in *words {
            assert!(said.contains(word), "{args:?} should mention {word}: {said}");
        }
        assert!(!said.contains("panicked"), "{said}");
    }
}

#[test]
fn help_shows_where_to_start() {
    let (code, text, _) = run(&["--help"]);
    assert_eq!(code, 0);
    assert!(text.contains("Start here") && text.contains("qualify --quick") && !text.contains("  rank"), "{text}");
    for command in
        ["qualify", "probe", "capture", "predict", "rules", "models", "train", "tune", "floor", "analyze", "report"]
    {
        let (code, help, _) = run(&[command, "--help"]);
        assert_eq!(code, 0);
        assert!(help.contains("Example") || command == "rules", "{command} shows no example: {help}");
    }
}

#[test]
fn a_prediction_holds_an_interval_for_each_world_and_reads_a_probed_machine() {
    let (code, json, said) = run(&["predict", "asrock-romed8-2t", "--gpus", "1,2,4", "--json"]);
    assert_eq!(code, 0, "{said}");
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    for (row, world) in value["variants"].as_array().unwrap().iter().zip([1, 2, 4]) {
        assert_eq!(row["world"], world);
        let of = |name: &str| row["efficiency"][name].as_f64().unwrap();
        assert!(of("low") <= of("estimate") && of("estimate") <= of("high"), "{row}");
    }
    let machine = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/machines/threadripper-4gpu/topology.yaml");
    let (code, text, said) = run(&["predict", machine, "--gpus", "4", "--model", "llama-350m"]);
    assert_eq!(code, 0, "{said}");
    assert!(text.contains("limit ") && text.contains("efficiency"), "{text}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("board.yaml");
    let text = include_str!("../topologies/am5-x8x8.yaml").replace("89.6 GB/s", "89.6");
    fs::write(&path, text).unwrap();
    let (code, _, said) = run(&["predict", path.to_str().unwrap()]);
    assert!(code == 2 && said.contains("board.yaml:5") && said.contains("no unit"), "{said}");
}

#[test]
fn models_are_listed_with_their_memory() {
    let (code, text, _) = run(&["models"]);
    assert_eq!(code, 0);
    assert!(text.contains("llama-15m") && text.contains("15.3 million"), "{text}");
    let (_, json, _) = run(&["models", "--memory", "llama-15m,2,256", "--json"]);
    let plan: serde_json::Value = serde_json::from_str(&json).unwrap();
    let sum: u64 = plan["parts"].as_array().unwrap().iter().map(|part| part["bytes"].as_u64().unwrap()).sum();
    assert_eq!(plan["total_bytes"].as_u64(), Some(sum));
}

#[test]
fn tokens_outside_the_vocabulary_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens.bin");
    let mut ids: Vec<u16> = (0..5000).map(|index| index % 1024).collect();
    ids[777] = 1024;
    fs::write(&tokens, ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>()).unwrap();
    let output = train(&folder.path().join("run"), 2).arg("--data").arg(&tokens).output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("tokens.bin") && said.contains("777") && said.contains("1024"), "{said}");
}

#[test]
fn training_learns_and_ranks_agree() {
    let folder = tempfile::tempdir().unwrap();
    let output = train(&folder.path().join("run"), 60).arg("--json").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let trained: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    let training = &trained["trainings"][0];
    assert_eq!(training["ranks_agree"], true);
    let loss = |name: &str| training[name].as_f64().unwrap();
    assert!(loss("last_loss") < loss("first_loss") - 0.3, "{trained}");
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            found.extend(files(&path).into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)));
        } else {
            found.insert(name, fs::read(&path).unwrap());
        }
    }
    found
}

#[test]
fn a_qualification_leaves_a_complete_folder_that_can_be_judged_again_to_the_byte() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let output = rigscale()
        .args(["qualify", "--quick", "--device", "cpu", "--model", "llama-tiny", "--batch", "1", "--context", "64"])
        .args(["--world", "1,2,64", "--budget", "12s", "--field", "order=A-1 <b>", "-o"])
        .arg(&out)
        .output()
        .unwrap();
    let (said, shown) = (stderr(&output), stdout(&output));
    let code = output.status.code().unwrap();
    assert!([0, 3, 6].contains(&code), "{code}: {said}");
    assert!(shown.contains("CPU ranks: says nothing about GPUs"), "{shown}");
    assert!(shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
    let before = files(&out);
    let expected = [
        "analysis.json",
        "charts/efficiency.png",
        "charts/efficiency.svg",
        "findings.json",
        "junit.xml",
        "launch.json",
        "machine.jsonl",
        "manifest.json",
        "plan.yaml",
        "report.html",
        "report.md",
        "topology.yaml",
        "runs/launch-1_ddp-2/rank-1.jsonl",
        "runs/launch-3_solo-share-1/rank-0.jsonl",
    ];
    for name in expected {
        assert!(before.contains_key(name), "{name} is missing; there are {:?}", before.keys());
    }
    let analysis: serde_json::Value = serde_json::from_slice(&before["analysis.json"]).unwrap();
    assert_eq!(analysis["skipped"][0]["world"], 64);
    for command in ["analyze", "report"] {
        let again = rigscale().args([command, "--quiet"]).arg(&out).output().unwrap();
        let expected = if command == "analyze" { code } else { 0 };
        assert_eq!(again.status.code(), Some(expected), "{}", stderr(&again));
    }
    let after = files(&out);
    let changed: Vec<&String> = before.keys().filter(|name| before.get(*name) != after.get(*name)).collect();
    assert!(changed.is_empty() && before.len() == after.len(), "changed: {changed:?}");
}
