//! Writes the tokens of a training on the synthetic language, for another trainer to train on the same.
//!
//! `batches MODEL BATCH CONTEXT STEPS SEED FILE` writes `tokens[STEPS, BATCH, CONTEXT + 1]` as little-endian u32, as
//! rank 0 of world 1 sees them: of each sequence all but the last token are inputs, all but the first are targets.
//! `scripts/peers/torch_golden.py` reads the file.

use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};

use rigscale::model::preset;
use rigscale::record::{DataSource, Precision, TrainConfig};
use rigscale::train::ops::Sequences;
use rigscale::train::{Batch, Data, DataShare};
use rigscale::units::Bytes;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, batch, context, steps, seed, file] = arguments.as_slice() else {
        return Err("usage: batches MODEL BATCH CONTEXT STEPS SEED FILE".into());
    };
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
        seed: seed.parse()?,
        learning_rate: 1e-3,
        weight_decay: 0.1,
        clip_norm: None,
        bucket_bytes: Bytes::mebi(25.0),
        first_bucket_bytes: Bytes::mebi(1.0),
        reduce_dtype: None,
        zero: 0,
        bucket_events_every: 0,
        checksum_every: 0,
    };
    if config.batch == 0 || config.context == 0 {
        return Err("a batch holds at least one sequence of at least one token".into());
    }
    let data = Data::open(&config, DataShare { rank: 0, world: 1 })?;
    let mut batch = Batch::new(Sequences { batch: config.batch, context: config.context });
    let mut out = BufWriter::new(File::create(file)?);
    for step in 0..config.steps {
        data.fill(step, 0, &mut batch)?;
        for (inputs, targets) in batch.inputs.chunks(config.context).zip(batch.targets.chunks(config.context)) {
            for id in inputs.iter().chain(targets.last()) {
                out.write_all(&id.to_le_bytes())?;
            }
        }
    }
    Ok(out.flush()?)
}
