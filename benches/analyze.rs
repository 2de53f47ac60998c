//! How long `rigscale analyze` takes for a run folder with one ddp trial of 4 ranks and 10,000 steps, bucket events
//! among them. Prints one JSON line: {"seconds_median", "steps", "bytes"}.
#![expect(clippy::print_stdout, reason = "the output of a benchmark is its lines")]

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::process::Command;
use std::time::Instant;

use rigscale::model::preset;
use rigscale::record::*;
use rigscale::units::{Bytes, Seconds, Tokens};

const RANKS: usize = 4;
const STEPS: usize = 10_000;
const RUNS: usize = 7;

fn main() -> Result<(), Box<dyn Error>> {
    let base = tempfile::tempdir()?;
    let folder = RunFolder::create_at(&base.path().join("run"))?;
    let plan = plan()?;
    write_yaml(&folder.plan(), &plan)?;
    let trial = &plan.trials[0];
    fs::create_dir(folder.trial(&trial.name))?;
    let mut bytes = 0;
    for rank in 0..RANKS {
        write_rank(&folder, &plan, rank)?;
        bytes += fs::metadata(folder.rank(&trial.name, rank))?.len();
    }
    let mut times = Vec::new();
    for _ in 0..RUNS {
        let begun = Instant::now();
        let output =
            Command::new(env!("CARGO_BIN_EXE_rigscale")).args(["analyze", "--quiet"]).arg(folder.path()).output()?;
        times.push(begun.elapsed().as_secs_f64());
        // nothing is graded in a folder without the other arms
        if output.status.code() != Some(6) {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
        }
    }
    let median = rigscale::stats::median(&times);
    println!("{}", serde_json::json!({ "seconds_median": median, "steps": RANKS * STEPS, "bytes": bytes }));
    Ok(())
}

fn plan() -> Result<Plan, Box<dyn Error>> {
    let share = |index| Share { index, cpus: vec![index], numa_node: Some(0), gpu: None, threads: None };
    Ok(Plan {
        schema: SCHEMA,
        rigscale: env!("CARGO_PKG_VERSION").into(),
        created: "2026-11-23T08:09:10Z".parse()?,
        device: Device::Cpu,
        grade: Grade::CpuRanks,
        target: 0.9,
        worlds: vec![RANKS],
        skipped: Vec::new(),
        shares: (0..RANKS).map(share).collect(),
        config: TrainConfig {
            model: "llama-15m".into(),
            shape: preset("llama-15m")?.shape,
            batch: 2,
            context: 256,
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
            bucket_events_every: 4,
            checksum_every: 0,
        },
        why: Vec::new(),
        gradient_bytes: Bytes(61_361_664),
        flops_per_step: 4e10,
        step_estimate_s: Seconds(0.1),
        launches: 1,
        extension: 0,
        heating_steps: 50,
        order_seed: 1,
        trials: vec![Trial { name: "launch-1_ddp-4".into(), launch: 1, arm: Arm::Ddp, shares: (0..RANKS).collect() }],
        limits: Limits { meet_s: Seconds(60.0), step_s: Seconds(15.0), trial_s: Seconds(9e3), stop_s: Seconds(1.0) },
        nccl: NcclSettings::default(),
        share_gpu: false,
        fields: Vec::new(),
        tuned: None,
    })
}

fn write_rank(folder: &RunFolder, plan: &Plan, rank: usize) -> Result<(), Box<dyn Error>> {
    let trial = &plan.trials[0];
    let head = RunHead {
        schema: SCHEMA,
        rigscale: plan.rigscale.clone(),
        trial: trial.name.clone(),
        origin: Origin::Measured,
        device: plan.device,
        arm: trial.arm,
        launch: 1,
        world: RANKS,
        rank,
        share: plan.shares[rank].clone(),
        communicator: "shm".into(),
        started: plan.created,
        epoch_s: Seconds(0.0),
        config: plan.config.clone(),
        software: BTreeMap::new(),
        nccl: NcclSettings::default(),
        transport: None,
    };
    let mut writer = RankWriter::create(&folder.rank(&trial.name, rank), &head)?;
    let mut start = 0.0;
    for index in 0..STEPS {
        // a few per cent of scatter that repeats only after 7 · 11 · 13 steps
        let scatter = (index % 7) as f64 / 7.0 + (index % 11) as f64 / 11.0 + (index % 13) as f64 / 13.0;
        let step_s = 0.1 * (1.0 + 0.01 * scatter);
        let step = Step {
            index,
            tokens: Tokens(512),
            start_s: Seconds(start),
            step_s: Seconds(step_s),
            forward_s: Seconds(0.3 * step_s),
            backward_s: Seconds(0.6 * step_s),
            exposed_s: Seconds(0.04 * step_s),
            optimizer_s: Seconds(0.05 * step_s),
            loss: 8.7 / (1.0 + index as f64 / 1e3),
            grad_norm: 1.0 + scatter,
            checksum: None,
        };
        let moment = |share: f64| Seconds(start + share * step_s);
        let bucket = |number: usize| Bucket {
            step: index,
            index: number,
            bytes: Bytes(15_340_416),
            ready_s: moment(0.4 + 0.1 * number as f64),
            start_s: moment(0.41 + 0.1 * number as f64),
            end_s: moment(0.48 + 0.1 * number as f64),
            collective: Collective::AllReduce,
        };
        let sampled = index % plan.config.bucket_events_every == 0;
        let buckets: Vec<Bucket> = (0..4).filter(|_| sampled).map(bucket).collect();
        writer.step(&step, &buckets)?;
        start += step_s;
    }
    let end = RunEnd {
        reason: EndReason::Completed,
        steps: STEPS,
        parameters_sha256: Some("ab".repeat(32)),
        peak_memory_bytes: Bytes(1 << 30),
        stolen: Some(0.0),
    };
    Ok(writer.end(&end)?)
}
