//! Whether a configuration can be trained at all, said before anything is allocated.

use std::ops::RangeInclusive;

use crate::model::{MemoryPlan, Shape};
use crate::record::{DataSource, Device, Precision, TrainConfig};
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

/// Refuses what cannot be trained on `device`, naming the flag and what would be right.
///
/// # Errors
/// [`TrainError::Setting`].
pub fn check(config: &TrainConfig, device: Device) -> Result<(), TrainError> {
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
    if 1 < config.zero {
        return Err(setting(
            "--zero",
            config.zero,
            "1 shares the optimizer's state among ranks, and 0 does not".into(),
        ));
    }
    match (device, config.precision) {
        (Device::Cpu, Precision::F32) => {}
        (Device::Cuda, Precision::Bf16) => for_kernels(config)?,
        (Device::Cpu, _) => return Err(setting("--precision", "bf16", "the CPU device computes in f32".into())),
        (Device::Cuda, _) => return Err(setting("--precision", "f32", "GPUs compute in bf16".into())),
    }
    if (device, config.reduce_dtype) == (Device::Cpu, Some(Precision::Bf16)) {
        let wanted = "ranks on CPUs sum f32 where it lies, in memory that they share, and fewer bytes would not move";
        return Err(setting("--reduce-dtype", "bf16", wanted.into()));
    }
    if let DataSource::File { token_bytes, .. } = config.data
        && ![2, 4].contains(&token_bytes)
    {
        return Err(setting("--data", format!("with ids of {token_bytes} bytes"), "ids have 2 or 4 bytes".into()));
    }
    Ok(())
}

/// Refuses sizes that the kernels do not take: they read 8 numbers at a time.
fn for_kernels(config: &TrainConfig) -> Result<(), TrainError> {
    let Shape { width, ffn, vocabulary, .. } = config.shape;
    if ![64, 128].contains(&config.shape.head_size()) {
        let wanted = "GPUs train heads of 64 and of 128 elements".into();
        return Err(setting("--model", &config.model, wanted));
    }
    for (name, size) in [("width", width), ("ffn", ffn), ("vocabulary", vocabulary)] {
        if !size.is_multiple_of(8) {
            return Err(setting("--model", &config.model, format!("on a GPU its {name} is a multiple of 8")));
        }
    }
    Ok(())
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

/// Refuses what needs more than this rank's part of the host's `memory`, where `world` ranks exchange gradients.
///
/// # Errors
/// [`TrainError::Memory`].
pub(super) fn fits_host(config: &TrainConfig, share: DataShare, world: usize, memory: Bytes) -> Result<(), TrainError> {
    let needed = MemoryPlan::on_cpu(&config.shape, config.memory_demand(world)).total_bytes;
    let available = Bytes(memory.0 / share.world.max(1) as u64);
    if needed <= available {
        return Ok(());
    }
    Err(TrainError::Memory { batch: config.batch, context: config.context, needed, available })
}

/// Left for the code of CUDA's libraries, which is loaded when it is first used, and for graphs.
const LIBRARIES: Bytes = Bytes(512 << 20);

/// Refuses what needs more than a GPU has `free` beside CUDA's libraries, and says what would fit, where `world` ranks
/// exchange gradients.
///
/// # Errors
/// [`TrainError::GpuMemory`].
pub(super) fn fits_gpu(config: &TrainConfig, world: usize, free: Bytes) -> Result<(), TrainError> {
    let demand = config.memory_demand(world);
    let TrainConfig { shape, batch, context, .. } = *config;
    let needed = MemoryPlan::on_cuda(&shape, demand).total_bytes;
    let free = Bytes(free.0.saturating_sub(LIBRARIES.0));
    if needed <= free {
        return Ok(());
    }
    let largest = MemoryPlan::largest_batch(&shape, demand, free);
    Err(TrainError::GpuMemory { batch, context, needed, free, largest })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::MemoryDemand;
    use crate::train::testing::tiny;

    const ALONE: DataShare = DataShare { rank: 0, world: 1 };

    #[test]
    fn what_cannot_be_trained_is_refused_with_its_flag_and_what_would_be_right() {
        let file = |token_bytes| DataSource::File { path: "x".into(), token_bytes };
        let rows: Vec<(TrainConfig, &[&str])> = vec![
            (TrainConfig { batch: 0, ..tiny() }, &["--batch 0", "between 1"]),
            (TrainConfig { context: 0, ..tiny() }, &["--context 0", "between 1 and 131072"]),
            (TrainConfig { context: 131_073, ..tiny() }, &["--context 131073", "131072"]),
            (TrainConfig { batch: 1000, context: 131_072, ..tiny() }, &["--batch 1000", "at most 128"]),
            (TrainConfig { batch: usize::MAX, ..tiny() }, &["--batch"]),
            (TrainConfig { accumulate: 0, ..tiny() }, &["--accumulate 0"]),
            (TrainConfig { steps: 0, ..tiny() }, &["--steps 0"]),
            (TrainConfig { learning_rate: f64::NAN, ..tiny() }, &["--learning-rate NaN", "above 0"]),
            (TrainConfig { weight_decay: -0.1, ..tiny() }, &["--weight-decay -0.1"]),
            (TrainConfig { clip_norm: Some(0.0), ..tiny() }, &["--clip-norm 0"]),
            (TrainConfig { bucket_bytes: Bytes(0), ..tiny() }, &["--bucket-mib 0 B"]),
            (TrainConfig { first_bucket_bytes: Bytes(0), ..tiny() }, &["--first-bucket-mib"]),
            (TrainConfig { precision: Precision::Bf16, ..tiny() }, &["--precision bf16", "f32"]),
            (TrainConfig { reduce_dtype: Some(Precision::Bf16), ..tiny() }, &["--reduce-dtype bf16", "f32"]),
            (TrainConfig { zero: 2, ..tiny() }, &["--zero 2", "1 shares"]),
            (TrainConfig { data: file(3), ..tiny() }, &["--data", "2 or 4"]),
            (TrainConfig { shape: Shape { heads: 5, ..tiny().shape }, ..tiny() }, &["--model test", "heads"]),
            (TrainConfig { shape: Shape { width: 4, ..tiny().shape }, ..tiny() }, &["even head size"]),
            (TrainConfig { shape: Shape { layers: 0, ..tiny().shape }, ..tiny() }, &["layers", "1024"]),
            (TrainConfig { shape: Shape { vocabulary: 1 << 40, ..tiny().shape }, ..tiny() }, &["vocabulary"]),
        ];
        for (config, words) in rows {
            let error = check(&config, Device::Cpu).unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{error} lacks {words:?}");
        }
        check(&TrainConfig { reduce_dtype: Some(Precision::F32), ..tiny() }, Device::Cpu).unwrap();
    }

    /// A preset as GPUs train it.
    fn on_gpu(model: &str, batch: usize, context: usize) -> TrainConfig {
        let shape = crate::model::preset(model).unwrap().shape;
        TrainConfig { model: model.into(), shape, batch, context, precision: Precision::Bf16, ..tiny() }
    }

    #[test]
    fn every_preset_has_sizes_that_the_kernels_take_and_odd_ones_are_refused() {
        for preset in crate::model::PRESETS {
            check(&on_gpu(preset.name, 1, 16_384), Device::Cuda).unwrap();
        }
        let odd = [
            (Shape { ffn: 1021, ..on_gpu("llama-15m", 1, 1).shape }, "ffn"),
            (Shape { vocabulary: 6145, ..on_gpu("llama-15m", 1, 1).shape }, "vocabulary"),
            (Shape { heads: 12, kv_heads: 12, ..on_gpu("llama-15m", 1, 1).shape }, "64 and of 128"),
        ];
        for (shape, word) in odd {
            let config = TrainConfig { shape, ..on_gpu("llama-15m", 1, 128) };
            let error = check(&config, Device::Cuda).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        let error = check(&TrainConfig { precision: Precision::F32, ..on_gpu("llama-15m", 1, 8) }, Device::Cuda);
        assert!(error.unwrap_err().to_string().contains("bf16"));
    }

    #[test]
    fn a_gpu_that_is_too_small_is_told_the_largest_batch() {
        let config = on_gpu("llama-125m", 16, 2048);
        let demand = |batch| MemoryDemand { batch, ..config.memory_demand(1) };
        let plan = |batch| MemoryPlan::on_cuda(&config.shape, demand(batch)).total_bytes;
        fits_gpu(&config, 1, Bytes(plan(16).0 + LIBRARIES.0)).unwrap();
        let error = fits_gpu(&config, 1, Bytes(plan(11).0 + LIBRARIES.0 + 1000)).unwrap_err();
        assert!(matches!(error, TrainError::GpuMemory { largest: 11, .. }), "{error}");
        assert!(error.to_string().contains("--batch 11 is the largest"), "{error}");
        let error = fits_gpu(&config, 1, Bytes(1 << 30)).unwrap_err().to_string();
        assert!(error.contains("not even one sequence"), "{error}");
    }

    #[test]
    fn a_training_larger_than_its_part_of_memory_is_refused() {
        let needed = MemoryPlan::on_cpu(&tiny().shape, tiny().memory_demand(1)).total_bytes;
        fits_host(&tiny(), ALONE, 1, needed).unwrap();
        let error = fits_host(&tiny(), DataShare { rank: 1, world: 2 }, 1, needed).unwrap_err();
        assert!(error.to_string().contains("--batch 2 with --context 13 needs"), "{error}");
    }

    #[test]
    fn the_largest_shape_that_passes_does_not_overflow() {
        let shape = Shape { layers: 1024, width: 65_536, heads: 512, kv_heads: 512, ffn: 65_536, vocabulary: 1 << 20 };
        let config = TrainConfig { shape, batch: 128, context: 131_072, ..tiny() };
        check(&config, Device::Cpu).unwrap();
        let error = fits_host(&config, ALONE, 1, Bytes(1 << 40)).unwrap_err();
        assert!(matches!(error, TrainError::Memory { .. }), "{error}");
        let error = fits_gpu(&config, 1, Bytes(1 << 40)).unwrap_err();
        assert!(matches!(error, TrainError::GpuMemory { largest: 0, .. }), "{error}");
    }
}
