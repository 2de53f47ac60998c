//! Whether a configuration can be trained at all, said before anything is allocated.

use std::ops::RangeInclusive;

use crate::model::{MemoryPlan, Shape};
use crate::record::{DataSource, Precision, TrainConfig};
use crate::units::Bytes;

use super::data::DataShare;
use super::error::TrainError;

/// Longest sequence: scores of attention and rotary angles stay exact enough in f32.
const CONTEXT_MAX: usize = 1 << 17;
/// Tokens of one micro-step on one rank; keeps every size far from overflow.
const ROWS_MAX: usize = 1 << 24;
/// Micro-steps of one step.
const ACCUMULATE_MAX: usize = 1 << 16;
/// Smallest bucket: below this, a run is one exchange for each tensor anyway.
const BUCKET_MIN: Bytes = Bytes(1);
/// Largest width, inner width and number of heads.
const WIDTH_MAX: usize = 1 << 16;
/// Most decoder blocks.
const LAYERS_MAX: usize = 1 << 10;
/// Largest vocabulary.
const VOCABULARY_MAX: usize = 1 << 20;

/// Refuses what cannot be trained, naming the flag and what would be right. `memory` is what all ranks may use.
///
/// # Errors
/// [`TrainError::Setting`] or [`TrainError::Memory`].
pub fn check(config: &TrainConfig, share: DataShare, memory: Bytes) -> Result<(), TrainError> {
    shape(config)?;
    count("--batch", config.batch, 1..=ROWS_MAX, "sequences per rank")?;
    count("--context", config.context, 1..=CONTEXT_MAX, "tokens per sequence")?;
    count("--accumulate", config.accumulate, 1..=ACCUMULATE_MAX, "micro-steps per step")?;
    count("--steps", config.steps, 1..=usize::MAX, "steps")?;
    if config.batch * config.context > ROWS_MAX {
        let wanted = format!("with --context {} it is at most {}", config.context, ROWS_MAX / config.context);
        return Err(setting("--batch", config.batch, wanted));
    }
    number("--learning-rate", config.learning_rate, 0.0 < config.learning_rate, "above 0")?;
    number("--weight-decay", config.weight_decay, 0.0 <= config.weight_decay, "0 or above")?;
    if let Some(limit) = config.clip_norm {
        number("--clip-norm", limit, 0.0 < limit, "above 0")?;
    }
    for (flag, size) in [("--bucket-mib", config.bucket_bytes), ("--first-bucket-mib", config.first_bucket_bytes)] {
        if size < BUCKET_MIN {
            return Err(setting(flag, size, "a bucket holds at least one gradient".into()));
        }
    }
    if config.precision != Precision::F32 {
        return Err(setting("--precision", "bf16", "the CPU device computes in f32".into()));
    }
    if let DataSource::File { token_bytes, .. } = config.data
        && ![2, 4].contains(&token_bytes)
    {
        return Err(setting("--data", format!("with ids of {token_bytes} bytes"), "ids have 2 or 4 bytes".into()));
    }
    fits(config, share, memory)
}

fn setting(flag: &'static str, given: impl ToString, wanted: String) -> TrainError {
    TrainError::Setting { flag, given: given.to_string(), wanted }
}

fn count(flag: &'static str, given: usize, range: RangeInclusive<usize>, what: &str) -> Result<(), TrainError> {
    if range.contains(&given) {
        return Ok(());
    }
    Err(setting(flag, given, format!("between {} and {} {what} can", range.start(), range.end())))
}

fn number(flag: &'static str, given: f64, good: bool, wanted: &str) -> Result<(), TrainError> {
    if good && given.is_finite() { Ok(()) } else { Err(setting(flag, given, format!("it is a number {wanted}"))) }
}

/// A preset always passes; a record that was edited by hand may not.
fn shape(config: &TrainConfig) -> Result<(), TrainError> {
    let Shape { layers, width, heads, kv_heads, ffn, vocabulary } = config.shape;
    let bad = |wanted: &str| Err(setting("--model", &config.model, wanted.into()));
    let limits = [
        ("layers", layers, LAYERS_MAX),
        ("width", width, WIDTH_MAX),
        ("heads", heads, WIDTH_MAX),
        ("kv_heads", kv_heads, WIDTH_MAX),
        ("ffn", ffn, WIDTH_MAX),
        ("vocabulary", vocabulary, VOCABULARY_MAX),
    ];
    if let Some((name, _, max)) = limits.iter().find(|(_, size, max)| !(1..=*max).contains(size)) {
        return bad(&format!("its {name} must be between 1 and {max}"));
    }
    if width % heads != 0 || heads % kv_heads != 0 {
        return bad("its heads divide its width, and its key and value heads divide its heads");
    }
    if !config.shape.head_size().is_multiple_of(2) {
        return bad("rotary positions need an even head size");
    }
    if vocabulary < 2 {
        return bad("it needs a vocabulary of two tokens or more");
    }
    Ok(())
}

fn fits(config: &TrainConfig, share: DataShare, memory: Bytes) -> Result<(), TrainError> {
    let needed = MemoryPlan::on_cpu(&config.shape, config.batch, config.context).total_bytes;
    let available = Bytes(memory.0 / share.world.max(1) as u64);
    if needed <= available {
        return Ok(());
    }
    Err(TrainError::Memory { batch: config.batch, context: config.context, needed, available })
}
