//! From a folder of known efficiency to the exit code: what `rigscale analyze` says about evidence that it can trust,
//! and about evidence that it cannot.

#![expect(clippy::unwrap_used, reason = "a test fails where its machine does")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use rigscale::model::preset;
use rigscale::record::*;
use rigscale::units::{Bytes, Seconds, Tokens};

const LAUNCHES: u32 = 5;
const STEPS: usize = 40;
const SOLO_STEP_S: f64 = 0.1;

/// A machine with two CPU ranks.
#[derive(Clone, Copy)]
struct Machine {
    /// Efficiency of its launches on average, all of it lost to the exchange.
    efficiency: f64,
    /// By how much its launches differ, as a share.
    scatter: f64,
}

const GOOD: Machine = Machine { efficiency: 0.95, scatter: 0.002 };

/// What is wrong with the folder of a good machine.
type Spoil = fn(&RunFolder);

fn plan() -> Plan {
    let mut trials = Vec::new();
    for launch in 1..=LAUNCHES {
        let mut add = |name: &str, arm, shares: &[usize]| {
            trials.push(Trial { name: format!("launch-{launch}_{name}"), launch, arm, shares: shares.into() });
        };
        add("solo-share-0", Arm::Solo, &[0]);
        add("solo-share-1", Arm::Solo, &[1]);
        add("together-2", Arm::Together, &[0, 1]);
        add("ddp-2", Arm::Ddp, &[0, 1]);
    }
    let shape = preset("llama-tiny").unwrap().shape;
    Plan {
        schema: SCHEMA,
        rigscale: env!("CARGO_PKG_VERSION").into(),
        created: "2026-11-23T08:09:10Z".parse().unwrap(),
        device: Device::Cpu,
        grade: Grade::CpuRanks,
        target: 0.9,
        worlds: vec![2],
        skipped: Vec::new(),
        shares: (0..2)
            .map(|index| Share { index, cpus: vec![index], numa_node: Some(0), gpu: None, threads: None })
            .collect(),
        config: TrainConfig {
            model: "llama-tiny".into(),
            shape,
            batch: 2,
            context: 64,
            accumulate: 1,
            recompute: false,
            deterministic: false,
            steps: STEPS,
            precision: Precision::F32,
            data: DataSource::Synthetic,
            seed: 1,
            learning_rate: 1e-3,
            weight_decay: 0.1,
            clip_norm: Some(1.0),
            bucket_bytes: Bytes::mebi(25.0),
            first_bucket_bytes: Bytes::mebi(1.0),
            reduce_dtype: None,
            zero: 0,
            bucket_events_every: 0,
            checksum_every: 0,
        },
        why: Vec::new(),
        gradient_bytes: Bytes(4 << 20),
        flops_per_step: shape.flops_per_token(64) * 128.0,
        step_estimate_s: Seconds(SOLO_STEP_S),
        launches: LAUNCHES,
        extension: 0,
        heating_steps: 5,
        order_seed: 1,
        trials,
        limits: Limits { meet_s: Seconds(60.0), step_s: Seconds(15.0), trial_s: Seconds(90.0), stop_s: Seconds(1.0) },
        nccl: NcclSettings::default(),
        share_gpu: false,
        fields: Vec::new(),
        tuned: None,
    }
}

fn head(plan: &Plan, trial: &Trial, rank: usize) -> RunHead {
    RunHead {
        schema: SCHEMA,
        rigscale: plan.rigscale.clone(),
        trial: trial.name.clone(),
        origin: Origin::Measured,
        device: plan.device,
        arm: trial.arm,
        launch: trial.launch,
        world: trial.shares.len(),
        rank,
        share: plan.shares[trial.shares[rank]].clone(),
        communicator: if trial.arm == Arm::Ddp { "shm".into() } else { "none".into() },
        started: plan.created,
        epoch_s: Seconds(0.0),
        config: plan.config.clone(),
        software: BTreeMap::from([("kernel".into(), "6.12".into())]),
        nccl: NcclSettings::default(),
        transport: None,
    }
}

fn step(index: usize, start_s: f64, free_s: f64, step_s: f64) -> Step {
    Step {
        index,
        tokens: Tokens(128),
        start_s: Seconds(start_s),
        step_s: Seconds(step_s),
        forward_s: Seconds(0.3 * free_s),
        backward_s: Seconds(0.6 * free_s),
        exposed_s: Seconds(step_s - free_s),
        optimizer_s: Seconds(0.1 * free_s),
        loss: 7.0 / (1.0 + index as f64 / 100.0),
        grad_norm: 1.0,
        checksum: None,
    }
}

impl Machine {
    /// The step of a trial: one solo step alone and together, longer by the efficiency where gradients are reduced.
    fn step_s(self, trial: &Trial) -> f64 {
        // the launches lie evenly about their mean, from -1 to 1
        let place = f64::from(trial.launch) * 2.0 / f64::from(LAUNCHES - 1) - 1.5;
        match trial.arm {
            Arm::Ddp => SOLO_STEP_S / (self.efficiency * (1.0 + self.scatter * place)),
            Arm::Solo | Arm::Together => SOLO_STEP_S,
        }
    }

    fn write_rank(self, folder: &RunFolder, plan: &Plan, trial: &Trial, rank: usize) {
        let mut writer = RankWriter::create(&folder.rank(&trial.name, rank), &head(plan, trial, rank)).unwrap();
        let mut start_s = 0.0;
        for index in 0..STEPS {
            // a few thousandths of jitter, the same on all ranks
            let jitter = 1.0 + 0.001 * (index * 7 % 11) as f64;
            let step_s = jitter * self.step_s(trial);
            writer.step(&step(index, start_s, jitter * SOLO_STEP_S, step_s), &[]).unwrap();
            start_s += step_s;
        }
        writer.end(&end(EndReason::Completed)).unwrap();
    }

    /// Plan, findings, launches and manifest, as a qualification leaves them.
    fn write(self, path: &Path) -> RunFolder {
        let folder = RunFolder::create_at(path).unwrap();
        let plan = plan();
        write_yaml(&folder.plan(), &plan).unwrap();
        for trial in &plan.trials {
            fs::create_dir(folder.trial(&trial.name)).unwrap();
            (0..trial.shares.len()).for_each(|rank| self.write_rank(&folder, &plan, trial, rank));
        }
        write_findings(&folder.findings(), Vec::new());
        write_findings(&folder.launch_findings(), Vec::new());
        folder
    }
}

fn end(reason: EndReason) -> RunEnd {
    RunEnd {
        reason,
        steps: STEPS,
        parameters_sha256: Some("ab".repeat(32)),
        peak_memory_bytes: Bytes(1 << 20),
        stolen: Some(0.0),
    }
}

fn write_findings(path: &Path, findings: Vec<Finding>) {
    let rigscale = env!("CARGO_PKG_VERSION").into();
    write_json(path, &Findings { schema: SCHEMA, rigscale, findings, unjudged: Vec::new() }).unwrap();
}

fn finding(code: &str, severity: Severity) -> Finding {
    let [seen, expected, remedy] = ["something was seen", "nothing of the kind", "look at it"].map(String::from);
    Finding { code: code.into(), severity, addresses: Vec::new(), seen, expected, remedy }
}

/// Replaces text in a file of the folder; it must be there.
fn replace(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{} does not say {from}", path.display());
    fs::write(path, text.replace(from, to)).unwrap();
}

/// Exit code, and the analysis; what the command said if it wrote none.
fn judge(folder: &RunFolder) -> (i32, Result<Analysis, String>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rigscale"));
    let output = command.args(["analyze", "--quiet"]).arg(folder.path()).output().unwrap();
    let analysis = read_json(&folder.analysis()).map_err(|_| String::from_utf8_lossy(&output.stderr).into_owned());
    (output.status.code().unwrap(), analysis)
}

/// Judges the folder of a machine that `spoil` changed before its manifest was written.
fn verdict(machine: Machine, spoil: Spoil) -> (i32, Result<Analysis, String>) {
    let base = tempfile::tempdir().unwrap();
    let folder = machine.write(&base.path().join("run"));
    spoil(&folder);
    Manifest::write(&folder).unwrap();
    judge(&folder)
}

#[test]
fn the_exit_code_follows_the_known_efficiency() {
    let rows = [
        (GOOD, 0, Outcome::Pass),
        (Machine { efficiency: 0.80, ..GOOD }, 3, Outcome::Fail),
        (Machine { efficiency: 0.90, scatter: 0.02 }, 6, Outcome::Inconclusive),
    ];
    for (machine, code, outcome) in rows {
        let (exit, analysis) = verdict(machine, |_| {});
        let analysis = analysis.unwrap();
        assert_eq!((exit, analysis.verdict.outcome), (code, outcome), "{:?}", analysis.verdict);
        assert_eq!(analysis.flags, Vec::new());
        let found = analysis.points[0].efficiency.estimate;
        assert!((found / machine.efficiency - 1.0).abs() < 1e-3, "{found} for {}", machine.efficiency);
    }
}

#[test]
fn accidents_have_their_own_exit_codes() {
    let rows: &[(Spoil, i32, Outcome)] = &[
        (
            |folder| {
                let said = serde_json::to_string(&EndReason::Completed).unwrap();
                let failed = serde_json::to_string(&EndReason::Failed).unwrap();
                replace(&folder.rank("launch-3_ddp-2", 1), &said, &failed);
            },
            4,
            Outcome::Fault,
        ),
        (
            |folder| write_findings(&folder.launch_findings(), vec![finding("rank-died", Severity::Fault)]),
            4,
            Outcome::Fault,
        ),
        (
            |folder| write_findings(&folder.launch_findings(), vec![finding("hang-in-step", Severity::Fault)]),
            5,
            Outcome::Hang,
        ),
    ];
    for (spoil, code, outcome) in rows {
        let (exit, analysis) = verdict(GOOD, *spoil);
        assert_eq!((exit, analysis.unwrap().verdict.outcome), (*code, *outcome));
    }
}

#[test]
fn evidence_that_is_not_the_planned_one_gives_no_verdict() {
    let rows: &[(Spoil, &str)] = &[
        (
            |folder| {
                replace(&folder.plan(), "device: cpu", "device: cuda");
                replace(&folder.plan(), "grade: cpu_ranks", "grade: signed");
            },
            "unequal-device",
        ),
        (|folder| replace(&folder.plan(), "launches: 5", "launches: 7"), "plan-incomplete"),
        (|folder| replace(&folder.plan(), "  steps: 40", "  steps: 80"), "steps-missing"),
        (|folder| replace(&folder.rank("launch-1_ddp-2", 0), "\"shm\"", "\"none\""), "no-exchange"),
        (|folder| replace(&folder.rank("launch-1_ddp-2", 0), "0.001,", "0.002,"), "unequal-training"),
        (
            |folder| replace(&folder.rank("launch-1_ddp-2", 0), "\"stolen\":0.0", "\"stolen\":null"),
            "stolen-time-unknown",
        ),
        (|folder| write_findings(&folder.findings(), vec![finding("cpu-quota", Severity::Warning)]), "cpu-quota"),
    ];
    for (spoil, code) in rows {
        let (exit, analysis) = verdict(GOOD, *spoil);
        let analysis = analysis.unwrap_or_else(|said| panic!("{code}: {said}"));
        let flag = analysis.flags.iter().find(|flag| flag.code == *code);
        assert!(flag.is_some_and(|flag| flag.blocks), "{code} is not among {:?}", analysis.flags);
        assert_eq!((exit, analysis.verdict.outcome), (6, Outcome::Inconclusive), "{code}");
    }
}

#[test]
fn numbers_that_make_no_sense_are_refused_by_name() {
    let rows: &[(Spoil, &str)] = &[
        (|folder| replace(&folder.plan(), "heating_steps: 5", "heating_steps: 18446744073709551615"), "heating_steps"),
        (|folder| replace(&folder.plan(), "batch: 2", "batch: 18446744073709551615"), "config.batch"),
        (|folder| replace(&folder.plan(), "  stop_s: 1", "  stop_s: -1"), "limits.stop_s"),
        (
            |folder| replace(&folder.rank("launch-1_ddp-2", 1), "\"tokens\":128", "\"tokens\":9223372036854775808"),
            "tokens",
        ),
    ];
    for (spoil, field) in rows {
        let (exit, analysis) = verdict(GOOD, *spoil);
        let said = analysis.unwrap_err();
        assert_eq!(exit, 2, "{field}: {said}");
        assert!(said.contains(field) && !said.contains("panicked"), "{field}: {said}");
    }
}

#[test]
fn files_that_changed_after_the_run_give_no_verdict() {
    let base = tempfile::tempdir().unwrap();
    let folder = Machine { efficiency: 0.80, ..GOOD }.write(&base.path().join("run"));
    Manifest::write(&folder).unwrap();
    // steps of a machine that passes, in place of those that were measured
    for trial in plan().trials.iter().filter(|trial| trial.arm == Arm::Ddp) {
        for rank in 0..2 {
            fs::remove_file(folder.rank(&trial.name, rank)).unwrap();
            GOOD.write_rank(&folder, &plan(), trial, rank);
        }
    }
    let (exit, analysis) = judge(&folder);
    let analysis = analysis.unwrap();
    assert!(analysis.flags.iter().any(|flag| flag.code == "altered" && flag.blocks), "{:?}", analysis.flags);
    assert_eq!((exit, analysis.verdict.outcome), (6, Outcome::Inconclusive));
}
