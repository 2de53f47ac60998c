//! The tuner from outside: real ranks on CPU cores, its files, interruption and resumption, sweeps and exit codes.

#![expect(clippy::unwrap_used, reason = "a test fails where its machine does")]

#[expect(dead_code, reason = "the trainings of other tests are not this one's")]
mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use common::{rigscale, stderr};
use rigscale::record::{TuneResult, read_json, read_tune_file, read_yaml, tune_trials};
use rigscale::tune::{Landscape, parse_conf};

/// A smallest search: two ranks, few steps, few settings.
fn tune(out: &Path, more: &[&str]) -> Command {
    let mut command = rigscale();
    command.args(["tune", "--quick", "--device", "cpu", "--world", "2", "--model", "llama-tiny", "--batch", "1"]);
    command.args(["--context", "32", "--steps", "6", "-o"]).arg(out).args(more);
    command
}

fn ended(mut command: Command) -> (i32, Output) {
    let output = command.output().unwrap();
    (output.status.code().unwrap(), output)
}

#[test]
fn a_search_on_cpu_ranks_keeps_its_answer_in_every_form_and_its_plan_qualifies() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("tuned");
    let (code, output) = ended(tune(&place, &["--settings", "4", "--json"]));
    assert_eq!(code, 0, "{}", stderr(&output));
    let result: TuneResult = read_json(&place.join("tune.json")).unwrap();
    let printed: TuneResult = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result, printed, "the screen and the file are one");
    assert!(result.tried <= 4 && result.default.step_s.0 > 0.0 && result.default.efficiency.is_some());
    assert!(result.left_out.iter().any(|it| it.why.contains("the same buckets as")));
    let log = read_tune_file(&tune_trials(&place)).unwrap();
    assert_eq!(log.trials.len(), result.launches);
    assert!(log.trials.iter().all(|trial| !trial.why.is_empty()), "every launch says why");
    assert_eq!(parse_conf(&fs::read_to_string(place.join("nccl.conf")).unwrap()), [], "CPU ranks use no NCCL");
    for name in ["tune.html", "settings.sh", "charts/trials.svg", "manifest.json"] {
        assert!(place.join(name).is_file(), "{name}");
    }
    assert!(!place.join("tuner.csv").exists() && stderr(&output).contains("no tuner.csv: CPU ranks use no NCCL"));
    assert!(result.sentences.iter().any(|said| said.contains("says nothing about GPUs")));
    assert!(fs::read_to_string(place.join("nccl.conf")).unwrap().contains("says nothing about GPUs"));
    let plan: rigscale::record::Plan = read_yaml(&place.join("plan.yaml")).unwrap();
    assert_eq!(plan.tuned.as_ref().unwrap().setting, result.best.setting);
    qualifies(folder.path(), &place.join("plan.yaml"));
}

/// The plan of a tuner is graded as it stands, and an edited identity is a warning.
fn qualifies(folder: &Path, plan: &Path) {
    let other = folder.join("elsewhere.yaml");
    let text = fs::read_to_string(plan).unwrap();
    assert!(text.contains("model: llama-tiny"));
    fs::write(&other, text.replace("topology_sha256: ", "topology_sha256: 0")).unwrap();
    let run = |plan: &Path, out: &str| {
        let mut command = rigscale();
        command
            .args(["qualify", "--launches", "2", "--steps", "12", "--plan"])
            .arg(plan)
            .arg("-o")
            .arg(folder.join(out));
        ended(command)
    };
    let (code, output) = run(plan, "here");
    assert!([3, 6].contains(&code), "a verdict on two CPU ranks: {code}: {}", stderr(&output));
    assert!(!stderr(&output).contains("warning: the plan was tuned elsewhere"), "{}", stderr(&output));
    let graded: rigscale::record::Plan = read_yaml(&folder.join("here/plan.yaml")).unwrap();
    assert_eq!((graded.config.model.as_str(), graded.config.context, graded.launches), ("llama-tiny", 32, 2));
    assert!(graded.tuned.is_some() && graded.fields.iter().any(|field| field.key == "Tuned"));
    let (_, output) = run(&other, "there");
    assert!(stderr(&output).contains("warning: the plan was tuned elsewhere: topology"), "{}", stderr(&output));
    let mut command = rigscale();
    command.args(["qualify", "--model", "llama-15m", "--plan"]).arg(plan);
    assert_eq!(ended(command).0, 2, "flags and a plan contradict each other");
}

#[test]
fn an_interrupted_search_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("tuned");
    let mut child = tune(&place, &["--settings", "3"]).spawn().unwrap();
    let launches = || fs::read_to_string(tune_trials(&place)).map_or(0, |text| text.lines().count().saturating_sub(1));
    let begun = Instant::now();
    while launches() < 3 {
        assert!(begun.elapsed() < Duration::from_secs(120), "no launch was kept");
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be interrupted");
        std::thread::sleep(Duration::from_millis(20));
    }
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let before = read_tune_file(&tune_trials(&place)).unwrap();
    let (code, output) = ended(tune(&place, &["--settings", "3"]));
    assert_eq!(code, 0, "{}", stderr(&output));
    let after = read_tune_file(&tune_trials(&place)).unwrap();
    assert_eq!(after.trials[..before.trials.len()], before.trials[..], "what was launched is not launched again");
    assert!(before.trials.len() < after.trials.len());
    // a third time there is nothing left to launch, and the answer is the same
    let first = fs::read_to_string(place.join("tune.json")).unwrap();
    let (code, output) = ended(tune(&place, &["--settings", "3"]));
    assert_eq!(code, 0, "{}", stderr(&output));
    assert_eq!(fs::read_to_string(place.join("tune.json")).unwrap(), first);
    assert_eq!(read_tune_file(&tune_trials(&place)).unwrap().trials, after.trials);
    assert!(stderr(&output).contains("going on with a search of"), "{}", stderr(&output));
    let rows: [(&[&str], &str); 8] = [
        (&["--weight-decay", "0.2"], "weight_decay"),
        (&["--zero", "1"], "ZeRO"),
        (&["--recompute"], "recompute"),
        (&["--deterministic"], "deterministic"),
        (&["--nccl", "NCCL_NTHREADS=128"], "nccl environment"),
        (&["--learning-rate", "0.01"], "learning_rate"),
        (&["--bucket-mib", "1"], "bucket_bytes"),
        (&["--seed", "9"], "seed"),
    ];
    let files = ["machine.jsonl", "topology.yaml", "tune.json", "plan.yaml"];
    let held = || files.map(|name| fs::read(place.join(name)).unwrap());
    let before = held();
    for (more, word) in rows {
        let (code, output) = ended(tune(&place, more));
        let said = stderr(&output);
        assert!(code == 2 && said.contains("holds another search") && said.contains(word), "{more:?} {code}: {said}");
    }
    assert_eq!(held(), before, "what is there stays as it was");
    let mut command = rigscale();
    command.args(["tune", "--quick", "--device", "cpu", "--world", "2", "--model", "llama-15m", "-o"]).arg(&place);
    let (code, output) = ended(command);
    assert!(code == 2 && stderr(&output).contains("another -o"), "{code}: {}", stderr(&output));
}

#[test]
fn a_search_whose_time_was_over_goes_on_with_more_and_with_a_cleared_folder() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("tuned");
    let (code, output) = ended(tune(&place, &["--budget", "1s"]));
    assert_eq!(code, 0, "{}", stderr(&output));
    let short = read_tune_file(&tune_trials(&place)).unwrap();
    let (code, output) = ended(tune(&place, &["--budget", "60s", "--settings", "3"]));
    assert_eq!(code, 0, "{}", stderr(&output));
    let long = read_tune_file(&tune_trials(&place)).unwrap();
    assert_eq!(long.trials[..short.trials.len()], short.trials[..], "the log is what was launched");
    assert!(short.trials.len() < long.trials.len());
    let result: TuneResult = read_json(&place.join("tune.json")).unwrap();
    assert!(1 < result.tried, "{}", result.ended);
    // with the rank files gone, the default is launched again before anything is compared with it
    fs::remove_dir_all(place.join("runs")).unwrap();
    fs::create_dir(place.join("runs")).unwrap();
    let (code, output) = ended(tune(&place, &["--budget", "60s", "--settings", "5"]));
    assert_eq!(code, 0, "{}", stderr(&output));
    let more = read_tune_file(&tune_trials(&place)).unwrap();
    let again = &more.trials[long.trials.len()];
    assert!(again.stage == "reference" && again.setting.is_default(), "{again:?}");
}

#[test]
fn a_folder_is_refused_with_advice_while_it_is_held_or_where_its_log_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("tuned");
    let mut child = tune(&place, &["--settings", "3"]).spawn().unwrap();
    let begun = Instant::now();
    while !place.exists() {
        assert!(begun.elapsed() < Duration::from_secs(60), "no folder");
        std::thread::sleep(Duration::from_millis(5));
    }
    let (code, output) = ended(tune(&place, &[]));
    assert!(code == 2 && stderr(&output).contains("another rigscale works in"), "{code}: {}", stderr(&output));
    // the first is still timing a step, or just past it: what it leaves is gone on with
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let (code, output) = ended(tune(&place, &["--settings", "2", "--budget", "1s"]));
    assert_eq!(code, 0, "{}", stderr(&output));
    let log = tune_trials(&place);
    let good = fs::read_to_string(&log).unwrap();
    fs::write(&log, good.replacen("\"round\":1", "\"round\":\"x\"", 1)).unwrap();
    let (code, output) = ended(tune(&place, &[]));
    assert!(code == 2 && stderr(&output).contains("take that line and all behind it out"), "{}", stderr(&output));
    fs::write(&log, good).unwrap();
    fs::remove_file(place.join("base-plan.yaml")).unwrap();
    let (code, output) = ended(tune(&place, &[]));
    assert!(code == 2 && stderr(&output).contains("choose another -o"), "{}", stderr(&output));
}

#[test]
fn a_sweep_launches_every_setting_once_a_round_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("landscape");
    let (code, output) = ended(tune(&place, &["--sweep", "--grid", "4", "--launches", "1", "--json"]));
    assert_eq!(code, 0, "{}", stderr(&output));
    let said: std::collections::BTreeMap<String, serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert!(said["launches"].as_u64() > Some(4) && said.contains_key("landscape"), "{said:?}");
    let once = read_tune_file(&tune_trials(&place)).unwrap();
    let cells = once.head.grid_size();
    assert!(4 <= cells && once.head.sweep);
    assert_eq!(once.trials.len(), cells + 1, "each setting, and one launch that fills caches");
    let (code, output) = ended(tune(&place, &["--sweep", "--grid", "4", "--launches", "2"]));
    assert_eq!(code, 0, "{}", stderr(&output));
    let twice = read_tune_file(&tune_trials(&place)).unwrap();
    assert_eq!(twice.trials[..once.trials.len()], once.trials[..]);
    let landscape = Landscape::of(&twice);
    assert_eq!(landscape.cells.len(), cells);
    assert!(landscape.cells.values().all(|steps| steps.len() == 2));
    // what real launches scatter by is what simulated ones do
    let out = folder.path().join("simulated");
    let mut command = rigscale();
    command.args(["tune", "--sweep", "--simulate", "am5-x8x8", "--world", "2", "--launches", "3", "-o"]).arg(&out);
    command.arg("--noise").arg(tune_trials(&place));
    let (code, output) = ended(command);
    assert_eq!(code, 0, "{}", stderr(&output));
    let simulated = read_tune_file(&tune_trials(&out)).unwrap();
    assert!(60 <= simulated.head.grid_size() && simulated.head.origin == rigscale::record::Origin::Simulated);
}

#[test]
fn a_default_that_fails_is_a_fault_and_no_answer() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("tuned");
    let (code, output) = ended(tune(&place, &["--learning-rate", "1e30", "--clip-norm", "0"]));
    assert_eq!(code, 4, "{}", stderr(&output));
    assert!(stderr(&output).contains("fault rank-failed"), "{}", stderr(&output));
    assert!(!place.join("tune.json").exists() && !place.join("nccl.conf").exists());
}

#[test]
fn bad_usage_is_answered_with_what_would_be_right() {
    let rows: &[(&[&str], &[&str])] = &[
        (&["tune", "--device", "cpu", "--world", "1"], &["--world", "at least 2"]),
        (&["tune", "--budget", "soon"], &["--budget", "20m"]),
        (&["tune", "--simulate", "am5-x8x8"], &["--sweep", "--noise"]),
        (&["tune", "--launches", "5"], &["--sweep"]),
        (&["tune", "--sweep", "--budget", "5s"], &["--budget", "--sweep"]),
        (&["tune", "--sweep", "--settings", "5"], &["--settings", "--sweep"]),
        (&["tune", "--settings", "1"], &["--settings", "2..=10000"]),
        (&["qualify", "--plan", "/nowhere.yaml"], &["/nowhere.yaml"]),
    ];
    let empty = tempfile::tempdir().unwrap();
    for (args, words) in rows {
        let mut command = rigscale();
        command.args(*args).current_dir(empty.path());
        let (code, output) = ended(command);
        assert_eq!(code, 2, "{args:?}: {}", stderr(&output));
        for word in *words {
            assert!(stderr(&output).contains(word), "{args:?} should mention {word}: {}", stderr(&output));
        }
    }
    assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0, "a refusal leaves nothing behind");
}
