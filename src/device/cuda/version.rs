//! Versions of CUDA's libraries: as their files are called, as Python's packages are, else as they say themselves.
//!
//! A name costs nothing; a library that is loaded runs its initialisers and stays until the process ends.

use std::fs;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::topology::{Missing, Reading, Why};

use super::cudnn::CUDNN;
use super::error::LibraryError;
use super::library::{Library, Wanted, find};
use super::nccl::NCCL;
use super::products::{CUBLASLT, CUBLASLT_12};

/// A library whose version may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LibraryFact {
    /// NCCL.
    Nccl,
    /// cuDNN 9.
    Cudnn,
    /// cuBLASLt of CUDA 13, else of CUDA 12.
    Cublas,
}

/// The version of a library where a program that asks for it finds it, `2.30.7`.
///
/// # Errors
/// Absent where it is nowhere; garbled where it is broken or does not tell.
pub fn library_version(which: LibraryFact) -> Reading<String> {
    match which {
        LibraryFact::Nccl => version(NCCL, &["nvidia_nccl"], "ncclGetVersion"),
        LibraryFact::Cudnn => version(CUDNN, &["nvidia_cudnn"], "cudnnGetVersion"),
        LibraryFact::Cublas => {
            let newest = version(CUBLASLT, &["nvidia_cublas"], "cublasLtGetVersion");
            newest
                .or_else(|missing| version(CUBLASLT_12, &["nvidia_cublas"], "cublasLtGetVersion").map_err(|_| missing))
        }
    }
}

fn version(wanted: Wanted, packages: &[&str], symbol: &'static str) -> Reading<String> {
    let found = find(&wanted);
    let named = found.as_deref().and_then(|path| from_file(path).or_else(|| from_package(path, packages)));
    named.map_or_else(|| asked(wanted, symbol), Ok)
}

/// `libnccl.so.2.30.7`, itself or behind a link: at least three numbers after `.so.`.
fn from_file(path: &Path) -> Option<String> {
    let path = fs::canonicalize(path).ok()?;
    let version = path.file_name()?.to_str()?.split_once(".so.")?.1.to_owned();
    let number = |part: &str| !part.is_empty() && part.bytes().all(|digit| digit.is_ascii_digit());
    (3 <= version.split('.').count() && version.split('.').all(number)).then_some(version)
}

/// `site-packages/nvidia_nccl_cu13-2.30.7.dist-info` beside `site-packages/nvidia/nccl/lib/libnccl.so.2`.
fn from_package(path: &Path, packages: &[&str]) -> Option<String> {
    let site = path.ancestors().nth(4)?;
    for entry in fs::read_dir(site).ok()?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((package, version)) = name.strip_suffix(".dist-info").and_then(|name| name.split_once('-')) else {
            continue;
        };
        if packages.iter().any(|known| package == *known || package.starts_with(&format!("{known}_cu"))) {
            return Some(version.to_owned());
        }
    }
    None
}

/// Loads the library and asks it.
fn asked(wanted: Wanted, symbol: &'static str) -> Reading<String> {
    let unusable = |error: LibraryError| match error {
        LibraryError::Missing { .. } => Missing::new(Why::Absent, wanted.file),
        LibraryError::Symbol { symbol, .. } => Missing::new(Why::Garbled, format!("{} has no {symbol}", wanted.file)),
        // the path stays out of the reason: it may name a user
        _ => Missing::new(Why::Garbled, format!("{} does not load", wanted.file)),
    };
    let library = Library::open(wanted).map_err(unusable)?;
    if symbol == "ncclGetVersion" {
        let mut number = 0_i32;
        // SAFETY: NCCL's header declares `ncclResult_t ncclGetVersion(int*)`
        let get = unsafe { library.symbol::<unsafe extern "C" fn(*mut i32) -> i32>(symbol) }.map_err(unusable)?;
        // SAFETY: it writes one int, which lives here
        let code = unsafe { get(&raw mut number) };
        return match code {
            0 => Ok(spelled(number.unsigned_abs() as usize)),
            code => Err(Missing::new(Why::Garbled, format!("{symbol}: error {code}"))),
        };
    }
    // SAFETY: cuDNN's and cuBLASLt's headers declare `size_t cudnnGetVersion(void)` and the same for `cublasLtGetVersion`
    let get = unsafe { library.symbol::<unsafe extern "C" fn() -> usize>(symbol) }.map_err(unusable)?;
    // SAFETY: it takes nothing and returns a number
    Ok(spelled(unsafe { get() }))
}

/// 23007 of NCCL, 91900 of cuDNN 9 and 130002 of cuBLASLt are 2.30.7, 9.19.0 and 13.0.2.
fn spelled(number: usize) -> String {
    format!("{}.{}.{}", number / 10_000, number / 100 % 100, number % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_and_packages_tell_versions() {
        let site = tempfile::tempdir().unwrap();
        let folder = site.path().join("nvidia/nccl/lib");
        fs::create_dir_all(&folder).unwrap();
        let plain = folder.join("libnccl.so.2");
        fs::write(&plain, "").unwrap();
        assert_eq!(from_file(&plain), None);
        assert_eq!(from_package(&plain, &["nvidia_nccl"]), None);
        for name in ["nvidia_nccl_cu13-2.30.7.dist-info", "nvidia_nvtx-13.0.1.dist-info"] {
            fs::create_dir(site.path().join(name)).unwrap();
        }
        assert_eq!(from_package(&plain, &["nvidia_nccl"]).as_deref(), Some("2.30.7"));
        let full = folder.join("libcublasLt.so.13.0.2.14");
        fs::write(&full, "").unwrap();
        std::os::unix::fs::symlink(&full, folder.join("libcublasLt.so.13")).unwrap();
        assert_eq!(from_file(&folder.join("libcublasLt.so.13")).as_deref(), Some("13.0.2.14"));
        assert_eq!((spelled(23_007), spelled(91_900)), ("2.30.7".to_owned(), "9.19.0".to_owned()));
    }
}
