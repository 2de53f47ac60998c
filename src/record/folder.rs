//! A run folder: where each file lies, and the folder read whole.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::lines::read_rank_file;
use super::{
    Bucket, Field, Finding, Findings, GpuFile, Manifest, Plan, RankWriter, RecordError, RunEnd, RunHead, SCHEMA, Step,
    is_there, read_gpu_file, read_json, read_yaml, write_json, write_whole, write_yaml,
};

/// No run folder is tried under more names than this when its own is taken.
const SUFFIX_MAX: u32 = 100;

/// No trial has a longer name; file systems take 255 bytes.
const TRIAL_NAME_BYTES_MAX: usize = 200;

/// Telemetry of the GPUs of one trial, beside its rank files.
pub const GPU_FILE: &str = "gpu.jsonl";

/// The paths inside one run folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunFolder {
    path: PathBuf,
}

/// A folder that this process holds: a lock of the kernel (`flock`), which ends with the process whatever becomes of it.
#[derive(Debug)]
pub struct FolderLock {
    _folder: File,
}

/// What a run folder holds, checked line by line.
#[derive(Debug, Clone, PartialEq)]
pub struct RunFiles {
    /// Name of the folder, without its parents.
    pub name: String,
    /// The plan that was carried out.
    pub plan: Plan,
    /// Findings of the probe, of measured links and of the launches.
    pub findings: Vec<Finding>,
    /// Facts of machine and software for the sheet, from the topology.
    pub identity: Vec<Field>,
    /// Rank files by trial, by rank. A trial of the plan that never started is absent; a rank that left no
    /// file is absent.
    pub trials: BTreeMap<String, BTreeMap<usize, RankFile>>,
    /// Telemetry of the GPUs by trial; absent for trials on CPUs.
    pub gpus: BTreeMap<String, GpuFile>,
    /// Evidence that differs from `manifest.json`, in sentences: `plan.yaml was changed`. What rigscale makes of the
    /// evidence (analysis, report, charts) is no evidence.
    pub altered: Vec<String>,
    /// Whether `launch.json` is there: without it nobody knows how the launches ended.
    pub launch_recorded: bool,
}

/// One rank file.
#[derive(Debug, Clone, PartialEq)]
pub struct RankFile {
    /// First line.
    pub head: RunHead,
    /// Steps in order, indices without gaps from 0.
    pub steps: Vec<Step>,
    /// Bucket events of sampled steps.
    pub buckets: Vec<Bucket>,
    /// Last line; none if the rank did not finish.
    pub end: Option<RunEnd>,
}

impl RunFolder {
    /// Creates `<base>/<UTC time>_<machine>`, with a suffix if it exists.
    ///
    /// # Errors
    /// The folder cannot be created: not writable, no space.
    pub fn create(base: &Path, now: jiff::Timestamp, machine: &str) -> Result<Self, RecordError> {
        let stem = format!("{}_{}", now.strftime("%Y-%m-%dT%H-%M-%SZ"), slug(machine));
        fs::create_dir_all(base).map_err(|source| cannot_create(base, source))?;
        for suffix in 1..=SUFFIX_MAX {
            let name = if suffix == 1 { stem.clone() } else { format!("{stem}_{suffix}") };
            match Self::create_at(&base.join(name)) {
                Err(RecordError::Occupied { .. }) => {}
                other => return other,
            }
        }
        Err(RecordError::Occupied { path: base.join(stem) })
    }

    /// Creates the folder at exactly this path; it must not exist or be empty.
    ///
    /// # Errors
    /// The folder cannot be created; [`RecordError::Occupied`] if something is there.
    pub fn create_at(path: &Path) -> Result<Self, RecordError> {
        let empty = || fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
        let create = |path: &Path| {
            fs::create_dir(path).map_err(|source| match source.kind() {
                io::ErrorKind::AlreadyExists => RecordError::Occupied { path: path.into() },
                _ => cannot_create(path, source),
            })
        };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|source| cannot_create(parent, source))?;
        }
        match create(path) {
            Err(RecordError::Occupied { .. }) if empty() => {}
            other => other?,
        }
        let folder = Self { path: path.into() };
        create(&folder.runs())?;
        Ok(folder)
    }

    /// The folder at this path, whatever is there: for a rank that rank 0's folder may not reach, and that makes what it
    /// needs itself.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        Self { path: path.into() }
    }

    /// Keeps other processes from writing here, for as long as the lock lives; where the file system knows no locks, nobody
    /// is kept away.
    ///
    /// # Errors
    /// [`RecordError::Busy`] where another process holds the folder; [`RecordError::File`] where it cannot be opened.
    pub fn lock(&self) -> Result<FolderLock, RecordError> {
        let fail = |source| RecordError::File { attempt: "read", path: self.path.clone(), source };
        let folder = File::open(&self.path).map_err(fail)?;
        match folder.try_lock() {
            Err(TryLockError::WouldBlock) => Err(RecordError::Busy { path: self.path.clone() }),
            Ok(()) | Err(TryLockError::Error(_)) => Ok(FolderLock { _folder: folder }),
        }
    }

    /// An existing run folder.
    ///
    /// # Errors
    /// [`RecordError::NotARun`] if it holds no plan.
    pub fn open(path: &Path) -> Result<Self, RecordError> {
        let folder = Self { path: path.into() };
        match folder.plan().try_exists() {
            Ok(true) => Ok(folder),
            Ok(false) => Err(RecordError::NotARun { path: path.into() }),
            Err(source) => Err(RecordError::File { attempt: "read", path: path.into(), source }),
        }
    }

    /// The folder itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its name, without its parents.
    #[must_use]
    pub fn name(&self) -> String {
        let whole = self.path.canonicalize().unwrap_or_else(|_| self.path.clone());
        whole.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// `plan.yaml`.
    #[must_use]
    pub fn plan(&self) -> PathBuf {
        self.path.join("plan.yaml")
    }

    /// `topology.yaml`.
    #[must_use]
    pub fn topology(&self) -> PathBuf {
        self.path.join("topology.yaml")
    }

    /// `findings.json`: of the probe.
    #[must_use]
    pub fn findings(&self) -> PathBuf {
        self.path.join("findings.json")
    }

    /// `links.jsonl`: what the links carried, where they were measured.
    #[must_use]
    pub fn links(&self) -> PathBuf {
        self.path.join("links.jsonl")
    }

    /// `measure.json`: findings of that.
    #[must_use]
    pub fn link_findings(&self) -> PathBuf {
        self.path.join("measure.json")
    }

    /// `launch.json`: findings of the launches.
    #[must_use]
    pub fn launch_findings(&self) -> PathBuf {
        self.path.join("launch.json")
    }

    /// `analysis.json`.
    #[must_use]
    pub fn analysis(&self) -> PathBuf {
        self.path.join("analysis.json")
    }

    /// `manifest.json`.
    #[must_use]
    pub fn manifest(&self) -> PathBuf {
        self.path.join("manifest.json")
    }

    /// `runs/`.
    #[must_use]
    pub fn runs(&self) -> PathBuf {
        self.path.join("runs")
    }

    /// `runs/<trial>/`.
    #[must_use]
    pub fn trial(&self, trial: &str) -> PathBuf {
        self.runs().join(trial)
    }

    /// `runs/<trial>/rank-<n>.jsonl`.
    #[must_use]
    pub fn rank(&self, trial: &str, rank: usize) -> PathBuf {
        self.trial(trial).join(format!("rank-{rank}.jsonl"))
    }

    /// `runs/<trial>/gpu.jsonl`.
    #[must_use]
    pub fn gpus(&self, trial: &str) -> PathBuf {
        self.trial(trial).join(GPU_FILE)
    }

    /// Writes one of our own files whole, by its path inside the folder: `report.html`, `charts/phases.svg`.
    ///
    /// # Errors
    /// [`RecordError::File`]; also where a link or a file stands in place of the file's folder, as what is written
    /// must not leave this one.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), RecordError> {
        let path = self.path.join(name);
        if let Some(parent) = path.parent().filter(|parent| *parent != self.path) {
            match fs::create_dir(parent) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    let metadata = fs::symlink_metadata(parent).map_err(|source| cannot_create(parent, source))?;
                    if !metadata.is_dir() {
                        return Err(cannot_create(parent, io::ErrorKind::NotADirectory.into()));
                    }
                }
                other => other.map_err(|source| cannot_create(parent, source))?,
            }
        }
        write_whole(&path, bytes)
    }

    /// Reads plan, findings, every rank file of the plan's trials and the telemetry of their GPUs, and holds all against
    /// the manifest. The facts of the machine come from `topology.yaml`, where there is one.
    ///
    /// # Errors
    /// Names file, line and field of the first problem.
    pub fn read(&self) -> Result<RunFiles, RecordError> {
        let plan: Plan = read_yaml(&self.plan())?;
        if let Some(trial) = plan.trials.iter().find(|trial| !is_folder_name(&trial.name)) {
            return Err(RecordError::TrialName { path: self.plan(), trial: trial.name.clone() });
        }
        let mut findings = Vec::new();
        for path in [self.findings(), self.link_findings(), self.launch_findings()] {
            if is_there(&path)? {
                findings.extend(read_json::<Findings>(&path)?.findings);
            }
        }
        let (mut trials, mut gpus) = (BTreeMap::new(), BTreeMap::new());
        for trial in &plan.trials {
            if !is_there(&self.trial(&trial.name))? {
                continue;
            }
            let mut ranks = BTreeMap::new();
            for rank in 0..trial.shares.len() {
                let path = self.rank(&trial.name, rank);
                if is_there(&path)? {
                    ranks.insert(rank, read_rank_of(&path, &trial.name, rank)?);
                }
            }
            trials.insert(trial.name.clone(), ranks);
            let path = self.gpus(&trial.name);
            if is_there(&path)? {
                gpus.insert(trial.name.clone(), read_gpus_of(&path, &trial.name)?);
            }
        }
        self.refuse_strays(&plan)?;
        Ok(RunFiles {
            name: self.name(),
            plan,
            findings,
            identity: Vec::new(),
            trials,
            gpus,
            altered: Manifest::altered(self)?,
            launch_recorded: is_there(&self.launch_findings())?,
        })
    }

    /// Writes plan, findings and rank files of a run that was not launched, into a folder just created, and vouches for
    /// them.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn keep(&self, files: &RunFiles) -> Result<(), RecordError> {
        write_yaml(&self.plan(), &files.plan)?;
        let rigscale = env!("CARGO_PKG_VERSION").to_owned();
        let findings = Findings { schema: SCHEMA, rigscale, findings: files.findings.clone(), unjudged: Vec::new() };
        write_json(&self.launch_findings(), &findings)?;
        for (trial, ranks) in &files.trials {
            let folder = self.trial(trial);
            fs::create_dir(&folder).map_err(|source| cannot_create(&folder, source))?;
            for (rank, file) in ranks {
                let mut writer = RankWriter::create(&self.rank(trial, *rank), &file.head)?;
                let mut buckets = &file.buckets[..];
                for step in &file.steps {
                    let (own, rest) = buckets.split_at(buckets.partition_point(|bucket| bucket.step <= step.index));
                    writer.step(step, own)?;
                    buckets = rest;
                }
                if let Some(end) = &file.end {
                    writer.end(end)?;
                }
            }
        }
        Manifest::write(self)
    }

    /// A folder under `runs/` that the plan does not name would be evidence that nobody weighs.
    fn refuse_strays(&self, plan: &Plan) -> Result<(), RecordError> {
        let fail = |source| RecordError::File { attempt: "read", path: self.runs(), source };
        if !is_there(&self.runs())? {
            return Ok(());
        }
        for entry in fs::read_dir(self.runs()).map_err(fail)? {
            let name = entry.map_err(fail)?.file_name();
            if !plan.trials.iter().any(|trial| name == trial.name.as_str()) {
                return Err(RecordError::Stray { path: self.runs().join(name) });
            }
        }
        Ok(())
    }
}

/// Reads a rank file and holds its head against its place in the folder.
fn read_rank_of(path: &Path, trial: &str, rank: usize) -> Result<RankFile, RecordError> {
    let file = read_rank_file(path)?;
    if file.head.trial != trial {
        return Err(misplaced(path, "trial", &format!("{trial:?}")));
    }
    if file.head.rank != rank {
        return Err(misplaced(path, "rank", &rank.to_string()));
    }
    Ok(file)
}

/// Reads the telemetry of a trial and holds its head against its place in the folder.
fn read_gpus_of(path: &Path, trial: &str) -> Result<GpuFile, RecordError> {
    let file = read_gpu_file(path)?;
    match file.head.trial == trial {
        true => Ok(file),
        false => Err(misplaced(path, "trial", &format!("{trial:?}"))),
    }
}

fn misplaced(path: &Path, field: &str, expected: &str) -> RecordError {
    let problem = format!("field `{field}` should be {expected}, as the file's place says");
    RecordError::Json { path: path.into(), line: 1, column: 0, problem }
}

/// One component of a path, never a way out of the folder.
fn is_folder_name(name: &str) -> bool {
    let plain = |letter: u8| letter.is_ascii_alphanumeric() || b"._-".contains(&letter);
    name.len() <= TRIAL_NAME_BYTES_MAX && name.bytes().all(plain) && !["", ".", ".."].contains(&name)
}

fn cannot_create(path: &Path, source: io::Error) -> RecordError {
    RecordError::File { attempt: "create the folder", path: path.into(), source }
}

/// A name that any file system and any shell takes: lower-case letters, digits and dashes, at most 40.
fn slug(text: &str) -> String {
    let mut slug = String::new();
    for letter in text.chars().map(|letter| letter.to_ascii_lowercase()) {
        if letter.is_ascii_alphanumeric() {
            slug.push(letter);
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
    }
    slug.truncate(40);
    let slug = slug.trim_end_matches('-');
    if slug.is_empty() { "machine".into() } else { slug.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_folder_carries_time_and_model_and_never_overwrites() {
        let base = tempfile::tempdir().unwrap();
        let now: jiff::Timestamp = "2026-11-23T08:09:10Z".parse().unwrap();
        let first = RunFolder::create(base.path(), now, "ASUS Pro WS/WRX90E (rev. 1)").unwrap();
        let second = RunFolder::create(base.path(), now, "ASUS Pro WS/WRX90E (rev. 1)").unwrap();
        assert_eq!(first.name(), "2026-11-23T08-09-10Z_asus-pro-ws-wrx90e-rev-1");
        assert_eq!(second.name(), "2026-11-23T08-09-10Z_asus-pro-ws-wrx90e-rev-1_2");
    }

    #[test]
    fn a_folder_that_holds_something_is_not_taken() {
        let base = tempfile::tempdir().unwrap();
        fs::write(base.path().join("thesis.tex"), "work of years").unwrap();
        let error = RunFolder::create_at(base.path()).unwrap_err();
        assert!(error.is_input() && error.to_string().contains("exists and is not an empty folder"), "{error}");
        let error = RunFolder::create_at(&base.path().join("thesis.tex")).unwrap_err();
        assert!(error.is_input(), "{error}");
    }

    #[test]
    fn a_folder_is_held_by_one_at_a_time() {
        let base = tempfile::tempdir().unwrap();
        let folder = RunFolder::at(base.path());
        let held = folder.lock().unwrap();
        let error = folder.lock().unwrap_err();
        assert!(error.is_input() && error.to_string().contains("another rigscale"), "{error}");
        drop(held);
        folder.lock().unwrap();
    }

    #[test]
    fn a_name_of_a_trial_is_one_component_of_a_path() {
        for name in ["launch-1_ddp-2", "a", "...", "A.b"] {
            assert!(is_folder_name(name), "{name}");
        }
        for name in ["", ".", "..", "../x", "/x", "a/b", "a b", "é", "a\0", "a\n", "x".repeat(201).as_str()] {
            assert!(!is_folder_name(name), "{name}");
        }
    }

    #[test]
    fn a_folder_without_a_plan_is_no_run() {
        let base = tempfile::tempdir().unwrap();
        assert!(matches!(RunFolder::open(base.path()), Err(RecordError::NotARun { .. })));
    }
}
