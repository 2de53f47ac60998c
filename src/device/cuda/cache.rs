//! Files that save time at the next start: compiled kernels, and which matrix product was the fastest.
//!
//! A file that is missing, damaged or of another version is made again; a folder that cannot be written to costs time
//! and nothing else. Both are said once, through [`Cache::remarks`].

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Names another folder than the user's.
const OVERRIDE: &str = "RIGSCALE_CACHE";

/// A file that is larger is no cache of ours.
const BYTES_MAX: u64 = 64 << 20;

/// A folder of files that are checked when they are read.
#[derive(Debug)]
pub struct Cache {
    folder: Option<PathBuf>,
    remarks: Vec<String>,
}

impl Cache {
    /// The user's: `$RIGSCALE_CACHE`, or `rigscale` in `$XDG_CACHE_HOME` or `~/.cache`.
    #[must_use]
    pub fn of_user() -> Self {
        let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let folder = set(OVERRIDE)
            .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("rigscale")))
            .or_else(|| set("HOME").map(|home| home.join(".cache/rigscale")));
        Self { folder, remarks: Vec::new() }
    }

    /// A certain folder.
    #[must_use]
    pub fn at(folder: &Path) -> Self {
        Self { folder: Some(folder.to_owned()), remarks: Vec::new() }
    }

    /// What went wrong, for people; empty after the call.
    pub fn remarks(&mut self) -> Vec<String> {
        std::mem::take(&mut self.remarks)
    }

    /// What `name` holds; none where it was never written, or is damaged.
    pub fn read(&mut self, name: &str) -> Option<Vec<u8>> {
        let path = self.folder.as_ref()?.join(name);
        let size = fs::metadata(&path).ok()?.len();
        let read = if size <= BYTES_MAX { fs::read(&path).ok() } else { None };
        let (hash, content) = read.as_ref().and_then(|bytes| bytes.split_at_checked(32)).unwrap_or_default();
        if hash == Sha256::digest(content).as_slice() {
            return Some(content.to_owned());
        }
        self.remark(format!("{} is damaged and is made again", path.display()));
        None
    }

    /// Keeps `content` as `name`. Processes that write at the same time do not mix: each file appears whole.
    pub fn write(&mut self, name: &str, content: &[u8]) {
        let Some(folder) = self.folder.clone() else { return };
        if let Err(error) = write(&folder, name, content) {
            let folder = folder.display();
            self.remark(format!("{folder} cannot be written ({error}): the next start will be as slow as this one"));
        }
    }

    fn remark(&mut self, text: String) {
        if !self.remarks.contains(&text) {
            self.remarks.push(text);
        }
    }
}

fn write(folder: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let partial = folder.join(format!("{name}.{}", std::process::id()));
    let hash = Sha256::digest(content);
    let written = fs::write(&partial, [hash.as_slice(), content].concat());
    let moved = written.and_then(|()| fs::rename(&partial, folder.join(name)));
    if moved.is_err() {
        let _leftover = fs::remove_file(&partial);
    }
    moved
}

/// The name of a file of a kind, made from all that shapes its content.
#[must_use]
pub fn cache_key(kind: &str, parts: &[&str]) -> String {
    format!("{kind}-{}", key(parts))
}

/// A hash of all that shapes a file's content.
#[must_use]
pub(super) fn key(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_damage_is_noticed_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut cache = Cache::at(folder.path());
        assert_eq!(cache.read("a"), None);
        cache.write("a", b"kernel");
        assert_eq!(cache.read("a").as_deref(), Some(&b"kernel"[..]));
        let mut bytes = fs::read(folder.path().join("a")).unwrap();
        bytes[34] ^= 1;
        fs::write(folder.path().join("a"), bytes).unwrap();
        assert_eq!((cache.read("a"), cache.read("a")), (None, None));
        assert_eq!(cache.remarks().len(), 1);
        fs::write(folder.path().join("a"), b"short").unwrap();
        assert_eq!(cache.read("a"), None);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left behind");
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_said_once_and_costs_nothing_else() {
        let mut cache = Cache::at(Path::new("/proc/rigscale"));
        cache.write("a", b"kernel");
        cache.write("b", b"kernel");
        let remarks = cache.remarks();
        assert_eq!(remarks.len(), 1);
        assert!(remarks[0].contains("/proc/rigscale"), "{remarks:?}");
    }

    #[test]
    fn keys_differ_where_any_part_does() {
        assert_ne!(key(&["ab", "c"]), key(&["a", "bc"]));
        assert_eq!(key(&["ab", "c"]), key(&["ab", "c"]));
    }
}
