//! `manifest.json`: the hash of every file in a run folder, so that evidence cannot be swapped unnoticed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{RecordError, RunFolder, SCHEMA, read_json, write_json};

/// No run folder holds more files: 15 trials of 16 ranks and a report.
const FILES_MAX: usize = 100_000;

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
    /// A file cannot be read.
    pub fn of(folder: &RunFolder) -> Result<Self, RecordError> {
        let mut sha256 = BTreeMap::new();
        hash_below(folder.path(), folder.path(), &mut sha256)?;
        Ok(Self { schema: SCHEMA, rigscale: env!("CARGO_PKG_VERSION").into(), sha256 })
    }

    /// Writes the manifest of the folder as it is now.
    ///
    /// # Errors
    /// A file cannot be read, or the manifest not written.
    pub fn write(folder: &RunFolder) -> Result<(), RecordError> {
        write_json(&folder.manifest(), &Self::of(folder)?)
    }

    /// Names the files that differ from the folder's manifest: changed, missing or added. None where there is no
    /// manifest.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn differences(folder: &RunFolder) -> Result<Vec<String>, RecordError> {
        if !folder.manifest().exists() {
            return Ok(Vec::new());
        }
        let written: Self = read_json(&folder.manifest())?;
        let now = Self::of(folder)?;
        let mut differences = Vec::new();
        for (path, hash) in &written.sha256 {
            match now.sha256.get(path) {
                None => differences.push(format!("{path} is missing")),
                Some(other) if other != hash => differences.push(format!("{path} was changed")),
                Some(_) => {}
            }
        }
        let added = now.sha256.keys().filter(|path| !written.sha256.contains_key(*path));
        differences.extend(added.map(|path| format!("{path} was added")));
        Ok(differences)
    }
}

fn hash_below(root: &Path, folder: &Path, hashes: &mut BTreeMap<String, String>) -> Result<(), RecordError> {
    let fail = |path: &Path, source| RecordError::File { attempt: "read", path: path.into(), source };
    for entry in fs::read_dir(folder).map_err(|source| fail(folder, source))? {
        let path = entry.map_err(|source| fail(folder, source))?.path();
        let relative = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
        if path.is_dir() {
            hash_below(root, &path, hashes)?;
        } else if relative != "manifest.json" && hashes.len() < FILES_MAX {
            let bytes = fs::read(&path).map_err(|source| fail(&path, source))?;
            let hash = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            hashes.insert(relative, hash);
        }
    }
    Ok(())
}
