//! Times training steps of one rank, to be set beside `scripts/peers/torch_cpu.py`: one JSON line for a case.
//!
//! `step MODEL BATCH CONTEXT THREADS STEPS`; pin it with `taskset`. The first quarter of the steps is warm-up.
#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]

use std::error::Error;

use rigscale::device::{Clock, Floats};
use rigscale::model::preset;
use rigscale::record::{DataSource, Precision, Step, TrainConfig};
use rigscale::train::{DataShare, Reducer, Trainer, exchanged_lengths};
use rigscale::units::{Bytes, Seconds};
use rustix::time::{ClockId, clock_gettime};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, batch, context, threads, steps] = arguments.as_slice() else {
        return Err("usage: step MODEL BATCH CONTEXT THREADS STEPS".into());
    };
    let threads = threads.parse()?;
    let config = TrainConfig {
        model: model.clone(),
        shape: preset(model)?.shape,
        batch: batch.parse()?,
        context: context.parse()?,
        accumulate: 1,
        recompute: false,
        deterministic: false,
        steps: steps.parse()?,
        precision: Precision::F32,
        data: DataSource::Synthetic,
        seed: 0,
        learning_rate: 3e-4,
        weight_decay: 0.1,
        clip_norm: None,
        bucket_bytes: Bytes::mebi(4.0),
        first_bucket_bytes: Bytes::mebi(1.0),
        reduce_dtype: None,
        zero: 0,
        bucket_events_every: 0,
        checksum_every: 0,
    };
    let buckets = exchanged_lengths(&config, 1)?.into_iter().map(Floats::zeros).collect();
    let mut trainer = Trainer::new(&config, DataShare { rank: 0, world: 1 }, threads, Reducer::none(), buckets)?;
    let clock = Clock::starting_now();
    let (mut records, mut cpu_s) = (Vec::new(), Vec::new());
    for _ in 0..config.steps {
        let begin = processor_time();
        records.push(trainer.step(&clock)?.step);
        cpu_s.push(processor_time() - begin);
    }
    let first_loss = records[0].loss;
    let timed = &records[config.steps / 4..];
    let median = |part: fn(&Step) -> Seconds| middle(timed.iter().map(|step| part(step).0).collect());
    let step_s = median(|step| step.step_s);
    let tokens = config.batch * config.context;
    let flops = config.shape.flops_per_token(config.context) * tokens as f64;
    let line = serde_json::json!({
        "case": format!("{model},{batch},{context}"), "threads": threads, "step_ms": step_s * 1e3,
        "cpu_ms": middle(cpu_s.split_off(config.steps / 4)) * 1e3,
        "forward_ms": median(|step| step.forward_s) * 1e3, "backward_ms": median(|step| step.backward_s) * 1e3,
        "optimizer_ms": median(|step| step.optimizer_s) * 1e3, "tokens_per_s": tokens as f64 / step_s,
        "gflops": flops / step_s * 1e-9, "first_loss": first_loss, "last_loss": timed[timed.len() - 1].loss,
    });
    println!("{line}");
    Ok(())
}

fn middle(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_unstable_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// Seconds that all threads of this process have run; tells more than wall time on a busy machine.
fn processor_time() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}
