//! The folder of a search: a new one, one in which a search was only begun, or one that is gone on with; held by one
//! process at a time.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use crate::cli::CliError;
use crate::cli::session::new_folder;
use crate::launch::Fit;
use crate::record::{
    FolderLock, NcclSettings, Plan, RecordError, RunFolder, TrainConfig, TuneFile, TuneHead, read_tune_file, read_yaml,
    tune_trials, write_yaml,
};
use crate::topology::Topology;

/// The plan of which every launch of a search is a variation.
const BASE_PLAN: &str = "base-plan.yaml";

/// What stands in a folder before the first launch is logged: the look at the machine, the timing of a step, the plan.
const BEGUN: [&str; 7] =
    ["topology.yaml", "findings.json", "machine.jsonl", "calibration", "launch.json", "runs", BASE_PLAN];

/// The folder that a search has taken.
pub(super) struct Place {
    /// The folder.
    pub(super) folder: RunFolder,
    /// What an earlier call has launched, and from which plan.
    pub(super) before: Option<Before>,
    /// Held for as long as this process searches.
    pub(super) lock: FolderLock,
}

/// What an earlier call has left.
pub(super) struct Before {
    /// Its log.
    pub(super) file: TuneFile,
    /// The plan of which its launches are variations.
    pub(super) base: Plan,
}

/// Takes the folder that the user named, or a new one.
///
/// # Errors
/// Something else is there, another process searches there, or what is there cannot be read.
pub(super) fn take(asked: Option<&Path>, topology: &Topology) -> Result<Place, CliError> {
    let Some(path) = asked else {
        let folder = new_folder(topology)?;
        let lock = folder.lock()?;
        return Ok(Place { folder, before: None, lock });
    };
    if tune_trials(path).exists() {
        let folder = RunFolder::at(path);
        let lock = folder.lock()?;
        let before = Some(read_before(path)?);
        return Ok(Place { folder, before, lock });
    }
    if only_begun(path) {
        let folder = RunFolder::at(path);
        let lock = folder.lock()?;
        for left in ["calibration", "launch.json", BASE_PLAN] {
            remove(&path.join(left))?;
        }
        return Ok(Place { folder, before: None, lock });
    }
    let folder = RunFolder::create_at(path)?;
    let lock = folder.lock()?;
    Ok(Place { folder, before: None, lock })
}

/// Whether a folder holds the begin of a search and nothing else: a place for launches without any, and at most the look at
/// the machine and the timing of a step.
fn only_begun(path: &Path) -> bool {
    let names = |path: &Path| -> Option<BTreeSet<String>> {
        fs::read_dir(path).ok()?.map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
    };
    let begun = |names: BTreeSet<String>| names.iter().all(|name| BEGUN.contains(&name.as_str()));
    names(path).is_some_and(begun) && names(&path.join("runs")).is_some_and(|runs| runs.is_empty())
}

/// Removes a file or a folder, if it is there.
///
/// # Errors
/// It cannot be removed.
pub(super) fn remove(path: &Path) -> Result<(), RecordError> {
    let gone = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match gone {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(RecordError::File { attempt: "remove", path: path.into(), source })
        }
        _ => Ok(()),
    }
}

fn read_before(path: &Path) -> Result<Before, CliError> {
    let damaged = |advice: &'static str| move |source| CliError::Search { source, advice: advice.to_owned() };
    let file = read_tune_file(&tune_trials(path)).map_err(damaged(
        "take that line and all behind it out of trials.jsonl, and their launches are run again; or choose another -o",
    ))?;
    let base = read_yaml(&path.join(BASE_PLAN))
        .map_err(damaged("without the plan of its launches a search cannot go on: choose another -o"))?;
    Ok(Before { file, base })
}

/// Writes the plan of which all launches are variations.
///
/// # Errors
/// It cannot be written.
pub(super) fn write_base(folder: &RunFolder, base: &Plan) -> Result<(), RecordError> {
    write_yaml(&folder.path().join(BASE_PLAN), base)
}

/// What a command asks for, beside what is searched.
pub(super) struct Asked<'a> {
    /// The head of the log that it would begin.
    pub(super) head: &'a TuneHead,
    /// The training; no steps where the search shall choose them.
    pub(super) config: &'a TrainConfig,
    /// Steps that were asked for.
    pub(super) steps: Option<usize>,
    /// What NCCL is told.
    pub(super) nccl: &'a NcclSettings,
    /// The ranks' places.
    pub(super) fit: &'a Fit,
}

/// Refuses to go on with the log of another search, and names in what it differs.
///
/// # Errors
/// The folder is of another search.
pub(super) fn same_search(path: &Path, before: &Before, asked: &Asked<'_>) -> Result<(), CliError> {
    let mut differ = before.file.head.identity.differences(&asked.head.identity);
    let config = TrainConfig { steps: asked.steps.unwrap_or(before.base.config.steps), ..asked.config.clone() };
    differ.extend(fields_that_differ("", &before.base.config, &config));
    differ.extend(fields_that_differ("nccl ", &before.base.nccl, asked.nccl));
    if before.base.shares != asked.fit.shares {
        differ.push("the ranks would run on other GPUs or CPUs".to_owned());
    }
    if before.file.head.sweep != asked.head.sweep {
        differ.push(if asked.head.sweep { "it is no --sweep" } else { "it is a --sweep" }.to_owned());
    } else if differ.is_empty() && before.file.head.knobs != asked.head.knobs {
        differ.push("it searches another space (--rounding, --grid, or another version of rigscale)".to_owned());
    }
    match differ.is_empty() {
        true => Ok(()),
        false => Err(CliError::Usage(format!(
            "{} holds another search ({}): choose another -o",
            path.display(),
            differ.join("; ")
        ))),
    }
}

/// The fields of two records of one kind that differ: `learning_rate: 0.001 there, 0.01 asked for`.
fn fields_that_differ<T: Serialize>(prefix: &str, there: &T, asked: &T) -> Vec<String> {
    let fields = |record: &T| match serde_json::to_value(record) {
        Ok(Value::Object(fields)) => fields,
        // records are objects; what is none has no fields that could differ
        _ => serde_json::Map::new(),
    };
    let (there, asked) = (fields(there), fields(asked));
    let names: BTreeSet<&String> = there.keys().chain(asked.keys()).collect();
    let word = |value: Option<&Value>| value.map_or_else(|| "nothing".to_owned(), Value::to_string);
    let differ = names.into_iter().filter(|name| there.get(*name) != asked.get(*name));
    differ
        .map(|name| format!("{prefix}{name}: {} there, {} asked for", word(there.get(name)), word(asked.get(name))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_the_begin_of_a_search_is_taken_and_no_other() {
        let base = tempfile::tempdir().unwrap();
        let at = |name: &str, files: &[&str]| {
            let path = base.path().join(name);
            fs::create_dir_all(path.join("runs")).unwrap();
            files.iter().for_each(|file| fs::write(path.join(file), "x").unwrap());
            path
        };
        let begun = at("begun", &["machine.jsonl", "topology.yaml", "findings.json", BASE_PLAN]);
        fs::create_dir(begun.join("calibration")).unwrap();
        assert!(only_begun(&begun));
        assert!(!only_begun(&at("thesis", &["machine.jsonl", "thesis.tex"])));
        assert!(only_begun(&at("bare", &[])), "as it is before the machine was looked at");
        let trained = at("trained", &["machine.jsonl", BASE_PLAN]);
        fs::create_dir(trained.join("runs/0000_start_ddp")).unwrap();
        assert!(!only_begun(&trained) && !only_begun(&base.path().join("nowhere")));
    }

    #[test]
    fn fields_that_differ_are_named_with_both_values() {
        let none = NcclSettings::default();
        let some = NcclSettings { max_ctas: Some(4), ..NcclSettings::default() };
        assert_eq!(fields_that_differ("nccl ", &none, &some), ["nccl max_ctas: nothing there, 4 asked for"]);
        assert!(fields_that_differ("", &some, &some).is_empty());
    }
}
