//! The files of a tuner: `trials.jsonl`, one line for each launch, which is also the form of a landscape; and `tune.json`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::{Bytes, BytesPerSecond, Seconds};

use super::file::json;
use super::jsonl::{LineFile, Lines, check_schema, parse, wrong};
use super::{Arm, Device, Finding, Interval, Origin, Precision, RecordError, SCHEMA};

/// No log of trials is larger: a launch is a line of some 300 bytes.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// One setting: for each knob that is not left alone, what was chosen, in words that are also what is set:
/// `NCCL_P2P_DISABLE=1`, `bucket-mib=8`, `min-ctas=4 max-ctas=4`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Setting(pub BTreeMap<String, String>);

impl Setting {
    /// Everything left alone: NCCL's own choices, and the buckets that the training was asked with.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.0.is_empty()
    }

    /// The same with one knob set, or left alone where the choice is empty.
    #[must_use]
    pub fn with(&self, knob: &str, choice: &str) -> Self {
        let mut other = self.clone();
        match choice {
            "" => drop(other.0.remove(knob)),
            _ => drop(other.0.insert(knob.to_owned(), choice.to_owned())),
        }
        other
    }

    /// What a knob is set to; empty where it is left alone.
    #[must_use]
    pub fn of(&self, knob: &str) -> &str {
        self.0.get(knob).map_or("", String::as_str)
    }

    /// Each name with its value, in the order of knobs: `("min-ctas", "4")`, `("NCCL_PROTO", "Simple")`.
    pub fn assignments(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.values().flat_map(|choice| choice.split_whitespace()).filter_map(|one| one.split_once('='))
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<&str> = self.0.values().map(String::as_str).collect();
        out.pad(&if words.is_empty() { "default".to_owned() } else { words.join(", ") })
    }
}

/// What a result of the tuner is bound to: elsewhere it is only a guess.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TuneIdentity {
    /// Version of NCCL; none on CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nccl: Option<String>,
    /// Version of the NVIDIA driver; none on CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// SHA-256 over what of the machine decides how gradients travel: processor, cores, bridges, links, GPUs.
    pub topology_sha256: String,
    /// What computes.
    pub device: Device,
    /// The model.
    pub model: String,
    /// Ranks.
    pub world: usize,
    /// Sequences per rank and micro-step.
    pub batch: usize,
    /// Tokens per sequence.
    pub context: usize,
    /// Micro-steps per optimizer step.
    pub accumulate: usize,
    /// Whether the ranks share one GPU.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub share_gpu: bool,
    /// What else holds while it is so.
    #[serde(default, skip_serializing_if = "TuneConditions::are_plain")]
    pub conditions: TuneConditions,
}

/// Under what a result was found, beside versions and sizes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TuneConditions {
    /// PCI addresses of the GPUs, in the order of ranks; none on CPUs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<String>,
    /// What gradients are summed in with everything left alone; none where it is what they are kept in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reduce_dtype: Option<Precision>,
    /// Stage of ZeRO.
    #[serde(default)]
    pub zero: usize,
    /// Whether blocks were computed again in the backward pass.
    #[serde(default)]
    pub recompute: bool,
    /// NCCL's variables that were set already, by the environment or NCCL's conf files; none on CPUs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
}

impl TuneConditions {
    fn are_plain(&self) -> bool {
        *self == Self::default()
    }

    /// NCCL's variables as one text.
    #[must_use]
    pub fn variables(&self) -> String {
        let words: Vec<String> = self.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
        if words.is_empty() { "nothing".to_owned() } else { words.join(" ") }
    }
}

impl TuneIdentity {
    /// In what this one differs from another, in sentences; empty where a result of one holds for the other.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let word = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".to_owned());
        let short = |hash: &str| hash.chars().take(12).collect::<String>();
        let kept = |dtype: Option<Precision>| dtype.map_or("what they are kept in".to_owned(), |it| format!("{it:?}"));
        let rows = [
            ("NCCL", word(&self.nccl), word(&other.nccl)),
            ("driver", word(&self.driver), word(&other.driver)),
            ("topology", short(&self.topology_sha256), short(&other.topology_sha256)),
            ("device", format!("{:?}", self.device), format!("{:?}", other.device)),
            ("model", self.model.clone(), other.model.clone()),
            ("ranks", self.world.to_string(), other.world.to_string()),
            ("batch", self.batch.to_string(), other.batch.to_string()),
            ("context", self.context.to_string(), other.context.to_string()),
            ("accumulation", self.accumulate.to_string(), other.accumulate.to_string()),
            ("one GPU shared", self.share_gpu.to_string(), other.share_gpu.to_string()),
            ("GPUs", self.conditions.gpus.join(", "), other.conditions.gpus.join(", ")),
            ("gradients summed in", kept(self.conditions.reduce_dtype), kept(other.conditions.reduce_dtype)),
            ("ZeRO", self.conditions.zero.to_string(), other.conditions.zero.to_string()),
            ("recomputation", self.conditions.recompute.to_string(), other.conditions.recompute.to_string()),
            ("NCCL's environment and conf files", self.conditions.variables(), other.conditions.variables()),
        ];
        let differ = rows.into_iter().filter(|(_, here, there)| here != there);
        differ.map(|(what, here, there)| format!("{what}: tuned with {here}, used with {there}")).collect()
    }
}

/// What a plan says of the tuner that wrote it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tuned {
    /// What the result is bound to.
    pub identity: TuneIdentity,
    /// The setting.
    pub setting: Setting,
    /// Share of the default's step time that it saves, with its interval of 95 %; none for the default itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gain: Option<Interval>,
}

/// One line of `trials.jsonl` or of a landscape: first the head, then launches in the order in which they ran.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "line", rename_all = "snake_case", deny_unknown_fields)]
pub enum TuneLine {
    /// First line: what was searched.
    Tune(Box<TuneHead>),
    /// One launch.
    Launch(Box<TuneTrial>),
}

/// What was searched, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TuneHead {
    /// Schema of the file.
    pub schema: u32,
    /// Version of rigscale that wrote it.
    pub rigscale: String,
    /// UTC time at which it began.
    #[schemars(with = "String")]
    pub started: jiff::Timestamp,
    /// Where the numbers come from.
    pub origin: Origin,
    /// What it is about, for people.
    pub title: String,
    /// What a result is bound to.
    pub identity: TuneIdentity,
    /// Knobs with the choices that a search may make, beside leaving each alone.
    pub knobs: Vec<TuneKnob>,
    /// What was left out of the space, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<TuneLeftOut>,
    /// Optimizer steps of a launch.
    pub steps: usize,
    /// Steps at its start that do not count.
    pub warm_up_steps: usize,
    /// Seed of every order that is drawn.
    pub seed: u64,
    /// Whether every setting was launched, instead of those that a search asked for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sweep: bool,
}

/// A knob of the space that was searched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TuneKnob {
    /// Its name.
    pub name: String,
    /// Choices beside leaving it alone, which is the empty text, in their own order.
    pub choices: Vec<String>,
    /// Whether the choices are sizes, so that neighbours are alike.
    pub ordered: bool,
}

/// A choice that was not offered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TuneLeftOut {
    /// The knob, or the choice of it.
    pub what: String,
    /// Why.
    pub why: String,
}

/// One launch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TuneTrial {
    /// From 0.
    pub index: usize,
    /// What was set.
    pub setting: Setting,
    /// `ddp` if not given, or `solo` where the shares ran alone, one after another.
    #[serde(default = "ddp", skip_serializing_if = "is_ddp")]
    pub arm: Arm,
    /// The stage of the search: `start`, the name of a knob, `confirm`; `sweep` if not given.
    #[serde(default = "sweep", skip_serializing_if = "is_sweep")]
    pub stage: String,
    /// Round within the stage, from 1: launches of one round are compared.
    pub round: u32,
    /// Why it was launched.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// Median over the counted steps of the mean step of all ranks; none where it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_s: Option<Seconds>,
    /// From the start of the first process to the end of the last.
    pub wall_s: Seconds,
    /// What went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finding: Option<Finding>,
}

fn ddp() -> Arm {
    Arm::Ddp
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_ddp(arm: &Arm) -> bool {
    *arm == Arm::Ddp
}

fn sweep() -> String {
    "sweep".into()
}

fn is_sweep(stage: &str) -> bool {
    stage == "sweep"
}

/// A log of trials, read whole.
#[derive(Debug, Clone, PartialEq)]
pub struct TuneFile {
    /// First line.
    pub head: TuneHead,
    /// Launches in order.
    pub trials: Vec<TuneTrial>,
}

/// A log of trials that grows.
#[derive(Debug)]
pub struct TuneWriter(LineFile);

impl TuneWriter {
    /// Begins a log at `path`, where none is yet.
    ///
    /// # Errors
    /// [`RecordError::File`].
    pub fn create(path: &Path, head: &TuneHead) -> Result<Self, RecordError> {
        let mut file = LineFile::create(path, FILE_BYTES_MAX)?;
        file.write(&TuneLine::Tune(Box::new(head.clone())))?;
        Ok(Self(file))
    }

    /// Goes on with a log; a line that an interruption has cut is taken away.
    ///
    /// # Errors
    /// [`RecordError::File`].
    pub fn go_on(path: &Path) -> Result<Self, RecordError> {
        LineFile::go_on(path, FILE_BYTES_MAX).map(Self)
    }

    /// Writes a launch.
    ///
    /// # Errors
    /// [`RecordError::File`], also when a number is not finite.
    ///
    /// # Panics
    /// The launch has neither a step time nor a finding: a bug.
    pub fn trial(&mut self, trial: &TuneTrial) -> Result<(), RecordError> {
        assert!(trial.step_s.is_some() != trial.finding.is_some(), "a launch has a step time or a finding");
        self.0.write(&TuneLine::Launch(Box::new(trial.clone())))
    }
}

/// Reads a log of trials or a landscape. A last line that an interruption has cut does not count.
///
/// # Errors
/// Names file, line and field of the first problem.
pub fn read_tune_file(path: &Path) -> Result<TuneFile, RecordError> {
    let mut lines = Lines::open(path, FILE_BYTES_MAX)?;
    let Some((_, first)) = lines.next()? else {
        return Err(wrong(path, 1, "the file is empty: it should begin with a `tune` line"));
    };
    check_schema(path, first)?;
    let head = match parse(path, 1, first, named)? {
        TuneLine::Tune(head) => *head,
        TuneLine::Launch(_) => return Err(wrong(path, 1, "the first line should be a `tune` line")),
    };
    let mut file = TuneFile { head, trials: Vec::new() };
    while let Some((number, line)) = lines.next()? {
        match parse(path, number, line, named)? {
            TuneLine::Tune(_) => return Err(wrong(path, number, "a second `tune` line")),
            TuneLine::Launch(trial) => {
                check_trial(&trial, file.trials.len()).map_err(|problem| wrong(path, number, &problem))?;
                file.trials.push(*trial);
            }
        }
    }
    Ok(file)
}

fn named(path: &Path, number: usize, kind: &str, rest: &str) -> Result<TuneLine, RecordError> {
    match kind {
        "tune" => json(path, rest, number).map(TuneLine::Tune),
        "launch" => json(path, rest, number).map(TuneLine::Launch),
        _ => Err(wrong(path, number, "field `line` should be tune or launch")),
    }
}

fn check_trial(trial: &TuneTrial, expected: usize) -> Result<(), String> {
    if trial.index != expected {
        return Err(format!("field `index` is {}, the next launch is {expected}", trial.index));
    }
    if trial.step_s.is_some() == trial.finding.is_some() {
        return Err("a launch has either `step_s` or `finding`".into());
    }
    if trial.step_s.is_some_and(|step| !step.is_finite() || step.0 <= 0.0) {
        return Err("field `step_s` should be finite and above 0".into());
    }
    if !trial.wall_s.is_finite() || trial.wall_s.0 < 0.0 {
        return Err("field `wall_s` should be finite and not negative".into());
    }
    Ok(())
}

/// `tune.json`: what a search found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TuneResult {
    /// Schema of the file.
    pub schema: u32,
    /// Version of rigscale that wrote it.
    pub rigscale: String,
    /// Where the numbers come from.
    pub origin: Origin,
    /// What it is bound to.
    pub identity: TuneIdentity,
    /// The answer in sentences.
    pub sentences: Vec<String>,
    /// How the search ended, in words.
    pub ended: String,
    /// Size at which a bucket is closed by default.
    pub bucket_bytes: Bytes,
    /// What everything is compared with.
    pub default: TuneStanding,
    /// The setting to use; the default where nothing beats it.
    pub best: TuneStanding,
    /// Share of the default's step time that the best saves, with its interval; none where the best is the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gain: Option<Interval>,
    /// The second look at what won the search, whether it was confirmed or not; none where nothing looked better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed: Option<TuneConfirmed>,
    /// Efficiency that is wanted.
    pub target: f64,
    /// What the exchange of gradients would have to carry for it, and what it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub need: Option<TuneNeed>,
    /// Settings in the space.
    pub space: usize,
    /// Settings that were launched.
    pub tried: usize,
    /// Launches, those that failed included.
    pub launches: usize,
    /// Time that they took.
    pub wall_s: Seconds,
    /// Every setting that was launched, in the order of its first launch.
    pub cells: Vec<TuneCell>,
    /// Knobs of the space.
    pub knobs: Vec<TuneKnob>,
    /// What was left out of it, and why.
    pub left_out: Vec<TuneLeftOut>,
    /// Settings that were not launched, as the model of the machine holds them for far slower than others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hopeless: Vec<TunePredicted>,
    /// What went wrong in launches.
    pub findings: Vec<Finding>,
    /// What is wrong with NCCL's settings that were there already, by what the probe knows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<Finding>,
}

/// A setting with the step that the model predicts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TunePredicted {
    /// The setting.
    pub setting: Setting,
    /// Predicted step.
    pub step_s: Seconds,
}

/// A setting held against the default in pairs of fresh launches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TuneConfirmed {
    /// What was held against the default.
    pub setting: Setting,
    /// Steps of the default and of the setting, pair by pair.
    pub pairs: Vec<(Seconds, Seconds)>,
    /// Share of the default's step that it saves, with its interval over all looks.
    pub gain: Interval,
    /// Whether that is taken for a gain.
    pub accepted: bool,
}

/// How a setting stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TuneStanding {
    /// The setting.
    pub setting: Setting,
    /// Median of its step times over launches of the confirmation, or of all where there was none.
    pub step_s: Seconds,
    /// Efficiency, with its interval over launches, where shares also ran alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub efficiency: Option<Interval>,
}

/// Bus bandwidth that is needed and given.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TuneNeed {
    /// What the target needs with these buckets; none where no bandwidth is enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needed: Option<BytesPerSecond>,
    /// What explains the best step that was measured.
    pub given: BytesPerSecond,
}

/// A setting with what became of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TuneCell {
    /// The setting.
    pub setting: Setting,
    /// Stage of its first launch.
    pub stage: String,
    /// Step of each launch that succeeded.
    pub steps_s: Vec<Seconds>,
    /// What became of it, in words.
    pub fate: String,
}

/// Files of a tuner inside its folder.
#[must_use]
pub fn tune_trials(folder: &Path) -> PathBuf {
    folder.join("trials.jsonl")
}

/// The head of a log that begins now.
impl TuneHead {
    /// A head with nothing in its space yet.
    #[must_use]
    pub fn begun(origin: Origin, title: String, identity: TuneIdentity, now: jiff::Timestamp) -> Self {
        Self {
            schema: SCHEMA,
            rigscale: env!("CARGO_PKG_VERSION").into(),
            started: now,
            origin,
            title,
            identity,
            knobs: Vec::new(),
            left_out: Vec::new(),
            steps: 0,
            warm_up_steps: 0,
            seed: 0,
            sweep: false,
        }
    }

    /// Settings of the grid that the knobs span.
    #[must_use]
    pub fn grid_size(&self) -> usize {
        self.knobs.iter().map(|knob| knob.choices.len() + 1).product()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::record::Severity;

    fn head() -> TuneHead {
        let identity = TuneIdentity {
            nccl: None,
            driver: None,
            topology_sha256: "ab".repeat(32),
            device: Device::Cpu,
            model: "llama-tiny".into(),
            world: 2,
            batch: 1,
            context: 64,
            accumulate: 1,
            share_gpu: false,
            conditions: TuneConditions::default(),
        };
        let knob = TuneKnob { name: "bucket".into(), choices: vec!["bucket-mib=1".into()], ordered: true };
        let begun = TuneHead::begun(Origin::Measured, "t".into(), identity, jiff::Timestamp::UNIX_EPOCH);
        TuneHead { knobs: vec![knob], steps: 20, warm_up_steps: 4, ..begun }
    }

    fn trial(index: usize) -> TuneTrial {
        TuneTrial {
            index,
            setting: Setting::default().with("bucket", "bucket-mib=1"),
            arm: Arm::Ddp,
            stage: "bucket".into(),
            round: 1,
            why: "it might leave sooner".into(),
            step_s: Some(Seconds(0.017)),
            wall_s: Seconds(0.5),
            finding: None,
        }
    }

    fn failed(index: usize) -> TuneTrial {
        let finding = Finding {
            code: "hang-meet".into(),
            severity: Severity::Fault,
            addresses: vec!["0001_bucket_ddp".into()],
            seen: "rank 1 did not meet".into(),
            expected: "it meets".into(),
            remedy: "leave it".into(),
        };
        TuneTrial { step_s: None, finding: Some(finding), ..trial(index) }
    }

    #[test]
    fn a_log_is_read_as_it_was_written_and_goes_on_behind_a_cut_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = tune_trials(folder.path());
        let mut log = TuneWriter::create(&path, &head()).unwrap();
        log.trial(&trial(0)).unwrap();
        log.trial(&failed(1)).unwrap();
        drop(log);
        let whole = read_tune_file(&path).unwrap();
        assert_eq!((&whole.head, &whole.trials[..]), (&head(), &[trial(0), failed(1)][..]));
        let mut text = fs::read_to_string(&path).unwrap();
        text.push_str("{\"line\":\"launch\",\"index\":2,\"set");
        fs::write(&path, &text).unwrap();
        assert_eq!(read_tune_file(&path).unwrap(), whole, "a cut line does not count");
        TuneWriter::go_on(&path).unwrap().trial(&trial(2)).unwrap();
        assert_eq!(read_tune_file(&path).unwrap().trials, [trial(0), failed(1), trial(2)]);
        assert!(TuneWriter::create(&path, &head()).is_err(), "a log is never begun over another");
    }

    #[test]
    fn a_line_of_a_sweep_says_only_what_differs_and_one_that_says_all_is_read() {
        let swept = TuneTrial { stage: "sweep".into(), why: String::new(), ..trial(0) };
        let line = serde_json::to_string(&swept).unwrap();
        assert!(!line.contains("arm") && !line.contains("stage"), "{line}");
        assert_eq!(serde_json::from_str::<TuneTrial>(&line).unwrap(), swept);
        let whole = line.replace("\"round\"", "\"arm\":\"ddp\",\"stage\":\"sweep\",\"round\"");
        assert_eq!(serde_json::from_str::<TuneTrial>(&whole).unwrap(), swept);
        assert!(serde_json::to_string(&trial(0)).unwrap().contains("\"stage\":\"bucket\""));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = tune_trials(folder.path());
        let mut log = TuneWriter::create(&path, &head()).unwrap();
        log.trial(&trial(0)).unwrap();
        let good = fs::read_to_string(&path).unwrap();
        let rows = [
            ("\"index\":0", "\"index\":3", "field `index` is 3"),
            ("\"step_s\":0.017", "\"step_s\":-1.0", "field `step_s`"),
            ("\"step_s\":0.017,", "", "either `step_s` or `finding`"),
            ("\"round\":1", "\"round\":\"x\"", "field `round`"),
            ("\"line\":\"launch\"", "\"line\":\"lunch\"", "field `line`"),
            ("\"line\":\"launch\"", "\"more\":1,\"line\":\"launch\"", "more"),
            ("\"schema\":1", "\"schema\":99", "99"),
        ];
        for (old, new, word) in rows {
            assert!(good.contains(old), "{old}");
            fs::write(&path, good.replacen(old, new, 1)).unwrap();
            let error = read_tune_file(&path).unwrap_err();
            assert!(error.to_string().contains(word), "{new}: {error}");
        }
        fs::write(&path, "").unwrap();
        assert!(read_tune_file(&path).is_err());
        let endless = TuneTrial { step_s: Some(Seconds(f64::INFINITY)), ..trial(1) };
        fs::write(&path, &good).unwrap();
        assert!(TuneWriter::go_on(&path).unwrap().trial(&endless).is_err(), "what is not finite is not written");
        assert_eq!(fs::read_to_string(&path).unwrap(), good);
    }

    #[test]
    fn a_setting_is_told_in_the_words_that_are_set() {
        let setting = Setting::default().with("ctas", "min-ctas=4 max-ctas=4").with("bucket", "bucket-mib=8");
        assert_eq!(setting.to_string(), "bucket-mib=8, min-ctas=4 max-ctas=4");
        assert_eq!(
            setting.assignments().collect::<Vec<_>>(),
            [("bucket-mib", "8"), ("min-ctas", "4"), ("max-ctas", "4")]
        );
        assert!(setting.with("ctas", "").with("bucket", "").is_default());
        assert_eq!(Setting::default().to_string(), "default");
        let identity = head().identity;
        let other = TuneIdentity { driver: Some("580".into()), world: 4, ..identity.clone() };
        assert_eq!(identity.differences(&other).len(), 2);
        let conditions = TuneConditions {
            zero: 1,
            recompute: true,
            gpus: vec!["0000:41:00.0".into()],
            reduce_dtype: Some(Precision::Bf16),
            environment: BTreeMap::from([("NCCL_MAX_CTAS".into(), "4".into())]),
        };
        let differ = identity.differences(&TuneIdentity { conditions, ..identity.clone() });
        assert_eq!(differ.len(), 5, "{differ:?}");
        assert!(differ[4].contains("tuned with nothing, used with NCCL_MAX_CTAS=4"), "{differ:?}");
        assert!(identity.differences(&identity).is_empty());
    }
}
