//! What is trained: from flags, or from the run whose step is taken.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::cli::CliError;
use crate::model::{Shape, preset};
use crate::predict::{Alone, Framework, PredictError, Solo, Training, duration};
use crate::record::{Device, Origin, Precision, RunFiles, RunFolder, TrainConfig};
use crate::units::{Bytes, Seconds};

use super::Args;

/// Where the step of one GPU alone comes from.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum StepFrom {
    /// From the command line.
    Duration(Seconds),
    /// From a run folder.
    Run(PathBuf),
}

impl StepFrom {
    /// True where the command line says how long it takes.
    pub(super) fn is_duration(&self) -> bool {
        matches!(self, Self::Duration(_))
    }
}

impl FromStr for StepFrom {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if Path::new(text).is_dir() {
            return Ok(Self::Run(text.into()));
        }
        duration(text).map(Self::Duration).map_err(|wrong| format!("no run folder, and no duration: {wrong}"))
    }
}

/// Reads `--batch`.
pub(super) fn batch(text: &str) -> Result<u32, String> {
    one(text, 1..=65_536)
}

/// Reads `--context`.
pub(super) fn context(text: &str) -> Result<u32, String> {
    one(text, 2..=131_072)
}

/// One number: what is trained is the same in every row of a sweep.
fn one(text: &str, range: RangeInclusive<u32>) -> Result<u32, String> {
    let (least, most) = (range.start(), range.end());
    let number: Option<u32> = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| match text.contains(',') {
        true => "one number is taken: run it again for another".to_owned(),
        false => format!("expected a whole number from {least} to {most}"),
    })
}

/// Reads `--target`.
pub(super) fn target(text: &str) -> Result<f64, String> {
    let value: Option<f64> = text.parse().ok().filter(|value| 0.0 < *value && *value < 2.0);
    value.ok_or_else(|| format!("`{text}` is no efficiency: it must lie between 0 and 2"))
}

/// What is trained, and what is known of it.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) model: String,
    shape: Shape,
    pub(super) batch: u32,
    pub(super) context: u32,
    pub(super) accumulate: Vec<u32>,
    precision: Precision,
    /// Sizes of the first bucket and of the others, where no flag says.
    buckets: [Bytes; 2],
    alone: Alone,
    pub(super) framework: Framework,
    reduced: Option<Precision>,
    recompute: bool,
    /// What a person should know of the run that the step is from.
    pub(super) warning: Option<String>,
}

impl Asked {
    /// What the flags ask for; the run of `--step` says what they leave open.
    ///
    /// # Errors
    /// No such model, a run that cannot be used, or a flag that contradicts it.
    pub(super) fn of(args: &Args) -> Result<Self, CliError> {
        match &args.step {
            Some(StepFrom::Run(path)) => {
                let files = RunFolder::open(path)?.read()?;
                if files
                    .trials
                    .values()
                    .flat_map(|ranks| ranks.values())
                    .any(|file| file.head.origin == Origin::Simulated)
                {
                    let problem = "its step was predicted; take one that was measured".to_owned();
                    return Err(PredictError::Run { run: files.name, problem }.into());
                }
                Self::like(args, &files, Alone::Phases(Solo::of(&files)?))
            }
            Some(StepFrom::Duration(step)) => Self::by_flags(args, Alone::Step(*step)),
            None => Self::by_flags(args, Alone::Catalogue),
        }
    }

    fn by_flags(args: &Args, alone: Alone) -> Result<Self, CliError> {
        let model = args.model.clone().unwrap_or_else(|| "llama-1b".to_owned());
        let precision = Precision::Bf16;
        Ok(Self {
            shape: preset(&model)?.shape,
            model,
            batch: args.batch.unwrap_or(4),
            context: args.context.unwrap_or(2048),
            accumulate: if args.accumulate.is_empty() { vec![1] } else { args.accumulate.clone() },
            precision,
            buckets: args.framework.buckets(precision.element_bytes()),
            alone,
            framework: args.framework,
            reduced: None,
            recompute: false,
            warning: None,
        })
    }

    /// The training of a run. Its step says nothing of another model, batch or context; micro-steps add up.
    ///
    /// # Errors
    /// A flag asks for another training.
    pub(super) fn like(args: &Args, files: &RunFiles, alone: Alone) -> Result<Self, CliError> {
        let config: &TrainConfig = &files.plan.config;
        let same = |flag: &str, given: Option<String>, own: String| match given.filter(|given| *given != own) {
            Some(given) => {
                let run = &files.name;
                Err(CliError::Usage(format!("--{flag} {given}: the run {run} trained with {own}; leave --{flag} out")))
            }
            None => Ok(()),
        };
        same("model", args.model.clone(), config.model.clone())?;
        same("batch", args.batch.map(|batch| batch.to_string()), config.batch.to_string())?;
        same("context", args.context.map(|context| context.to_string()), config.context.to_string())?;
        let whole = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let own = vec![whole(config.accumulate)];
        let on_cpu = files.plan.device == Device::Cpu;
        Ok(Self {
            model: config.model.clone(),
            shape: config.shape,
            batch: whole(config.batch),
            context: whole(config.context),
            accumulate: if args.accumulate.is_empty() { own } else { args.accumulate.clone() },
            precision: config.precision,
            buckets: match args.framework {
                Framework::Rigscale => [config.first_bucket_bytes, config.bucket_bytes],
                other => other.buckets(config.precision.element_bytes()),
            },
            alone,
            framework: args.framework,
            reduced: config.reduce_dtype,
            recompute: config.recompute,
            warning: on_cpu
                .then(|| format!("the ranks of {} are CPU cores: their step says nothing of a GPU's", files.name)),
        })
    }

    /// What is known of the step of one GPU alone.
    pub(super) fn alone(&self) -> Alone {
        self.alone
    }

    /// Sizes of buckets that are swept.
    pub(super) fn bucket_sizes(&self, args: &Args) -> Vec<Bytes> {
        match args.bucket_mib.is_empty() {
            true => vec![self.buckets[1]],
            false => args.bucket_mib.iter().map(|size| Bytes::mebi(f64::from(*size))).collect(),
        }
    }

    /// The training as the run had it.
    pub(super) fn as_run(&self) -> Training {
        self.training(self.buckets[1], self.accumulate[0])
    }

    /// The training with this bucket and so many micro-steps.
    pub(super) fn training(&self, bucket: Bytes, accumulate: u32) -> Training {
        Training {
            shape: self.shape,
            batch: self.batch as usize,
            context: self.context as usize,
            accumulate: accumulate as usize,
            bucket,
            first_bucket: self.buckets[0],
            precision: self.precision,
            alone: self.alone,
            framework: self.framework,
            reduced: self.reduced,
            recompute: self.recompute,
        }
    }
}
