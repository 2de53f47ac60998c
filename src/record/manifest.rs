//! `manifest.json`: the hash of every file in a run folder, so that evidence cannot be swapped unnoticed.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::file::open_regular;
use super::lines::RANK_FILE_BYTES_MAX;
use super::{RecordError, RunFolder, SCHEMA, is_there, read_json, write_json};

/// No run folder holds more files: 100 launches of 15 trials of 16 ranks and a report.
const FILES_MAX: usize = 100_000;

/// `runs/<trial>/` is two levels deep.
const LEVELS_MAX: usize = 8;

/// What is read of a file at once.
const PIECE_BYTES: usize = 64 << 10;

/// The hash of each file in a run folder, but for the manifest itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Schema of the file.
    pub schema: u32,
    /// Version of rigscale that wrote it.
    pub rigscale: String,
    /// SHA-256 in hexadecimal by path relative to the folder.
    pub sha256: BTreeMap<String, String>,
}

impl Manifest {
    /// Hashes every file of the folder.
    ///
    /// # Errors
    /// A file cannot be read or is no regular file, or there are more than any run folder holds.
    pub fn of(folder: &RunFolder) -> Result<Self, RecordError> {
        let mut sha256 = BTreeMap::new();
        for (name, path) in files_of(folder, |_| true)? {
            sha256.insert(name, hash_of(&path)?);
        }
        Ok(Self { schema: SCHEMA, rigscale: env!("CARGO_PKG_VERSION").into(), sha256 })
    }

    /// Writes the manifest of the folder as it is now. Only who has just made the evidence may vouch for it so.
    ///
    /// # Errors
    /// A file cannot be read, or the manifest not written.
    pub fn write(folder: &RunFolder) -> Result<(), RecordError> {
        write_json(&folder.manifest(), &Self::of(folder)?)
    }

    /// Takes the hashes of `outputs`, files of ours that were just written, into the manifest. Those of the evidence
    /// stay as they are, whatever has become of it since. A folder without a manifest gets none: it would vouch for
    /// files that nobody knows.
    ///
    /// # Errors
    /// A file cannot be read, or the manifest not written.
    ///
    /// # Panics
    /// If one of `outputs` is evidence: a bug of the caller.
    pub fn renew(folder: &RunFolder, outputs: &[&str]) -> Result<(), RecordError> {
        if !is_there(&folder.manifest())? {
            return Ok(());
        }
        let mut manifest: Self = read_json(&folder.manifest())?;
        for name in outputs {
            assert!(!is_evidence(name), "{name} is evidence, which is never vouched for twice");
            manifest.sha256.insert((*name).to_owned(), hash_of(&folder.path().join(name))?);
        }
        write_json(&folder.manifest(), &manifest)
    }

    /// Names the evidence that differs from the folder's manifest: changed, missing, added, or no regular file any
    /// more. A folder without a manifest differs in that.
    ///
    /// # Errors
    /// A file cannot be read, or there are more than any run folder holds.
    pub fn altered(folder: &RunFolder) -> Result<Vec<String>, RecordError> {
        if !is_there(&folder.manifest())? {
            return Ok(vec!["manifest.json is missing".into()]);
        }
        let written: Self = read_json(&folder.manifest())?;
        let now = files_of(folder, is_evidence)?;
        let mut altered = Vec::new();
        for (name, hash) in written.sha256.iter().filter(|(name, _)| is_evidence(name)) {
            match now.get(name).map(|path| hash_of(path)).transpose() {
                Ok(None) => altered.push(format!("{name} is missing")),
                Ok(Some(other)) if other != *hash => altered.push(format!("{name} was changed")),
                Ok(Some(_)) => {}
                Err(RecordError::NotAFile { .. }) => altered.push(format!("{name} is no regular file")),
                Err(error) => return Err(error),
            }
        }
        let added = now.keys().filter(|name| !written.sha256.contains_key(*name));
        altered.extend(added.map(|name| format!("{name} was added")));
        Ok(altered)
    }

    /// Whether `output`, a file of ours, is as it was written. True also where no manifest knows it.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn vouches_for(folder: &RunFolder, output: &str) -> Result<bool, RecordError> {
        if !is_there(&folder.manifest())? {
            return Ok(true);
        }
        let written: Self = read_json(&folder.manifest())?;
        match written.sha256.get(output) {
            Some(hash) => Ok(hash_of(&folder.path().join(output))? == *hash),
            None => Ok(true),
        }
    }
}

/// False for what rigscale makes of the evidence, and for what a write of it may have left behind.
fn is_evidence(name: &str) -> bool {
    let name = name.strip_suffix(".part").unwrap_or(name);
    !["analysis.json", "manifest.json", "report.html", "report.md", "junit.xml"].contains(&name)
        && !name.starts_with("charts/")
}

/// Path of each file of the folder that is `wanted`, by its path relative to the folder; links are not followed.
fn files_of(folder: &RunFolder, wanted: fn(&str) -> bool) -> Result<BTreeMap<String, PathBuf>, RecordError> {
    let mut files = BTreeMap::new();
    let mut folders = vec![(folder.path().to_owned(), 1)];
    while let Some((within, level)) = folders.pop() {
        let fail = |source| RecordError::File { attempt: "read", path: within.clone(), source };
        let too_many = |what, limit| Err(RecordError::TooMany { path: folder.path().into(), what, limit });
        for entry in fs::read_dir(&within).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let path = entry.path();
            let name = path.strip_prefix(folder.path()).unwrap_or(&path).to_string_lossy().into_owned();
            if entry.file_type().map_err(fail)?.is_dir() {
                if level == LEVELS_MAX {
                    return too_many("levels of folders", LEVELS_MAX);
                }
                folders.push((path, level + 1));
            } else if name != "manifest.json" && wanted(&name) {
                files.insert(name, path);
            }
            if FILES_MAX < files.len() + folders.len() {
                return too_many("files", FILES_MAX);
            }
        }
    }
    Ok(files)
}

/// SHA-256 of a regular file, in hexadecimal.
fn hash_of(path: &Path) -> Result<String, RecordError> {
    let fail = |source| RecordError::File { attempt: "read", path: path.into(), source };
    if fs::symlink_metadata(path).map_err(fail)?.is_symlink() {
        return Err(RecordError::NotAFile { path: path.into() });
    }
    let mut file = open_regular(path)?.take(RANK_FILE_BYTES_MAX + 1);
    let mut hash = Sha256::new();
    let mut piece = vec![0; PIECE_BYTES];
    let mut total = 0;
    loop {
        let len = file.read(&mut piece).map_err(fail)?;
        if len == 0 {
            break;
        }
        total += len as u64;
        hash.update(&piece[..len]);
    }
    if RANK_FILE_BYTES_MAX < total {
        return Err(RecordError::TooLarge { path: path.into(), limit: RANK_FILE_BYTES_MAX });
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_a_run_folder_holds_is_an_error_and_not_left_out() {
        let base = tempfile::tempdir().unwrap();
        let folder = RunFolder::create_at(&base.path().join("run")).unwrap();
        let deep = (0..LEVELS_MAX).fold(folder.path().to_owned(), |path, _| path.join("deeper"));
        fs::create_dir_all(deep).unwrap();
        assert!(matches!(Manifest::of(&folder), Err(RecordError::TooMany { limit: LEVELS_MAX, .. })));
    }

    #[test]
    fn what_is_made_of_the_evidence_is_none() {
        for name in ["analysis.json", "analysis.json.part", "charts/phases.svg", "report.md", "manifest.json.part"] {
            assert!(!is_evidence(name), "{name}");
        }
        for name in ["plan.yaml", "runs/analysis.json", "runs/launch-1_ddp-2/rank-0.jsonl", "charts.svg", "x.part"] {
            assert!(is_evidence(name), "{name}");
        }
    }
}
