//! Finding and loading the shared libraries of CUDA at run time: in the loader's path, in the usual folders, and in the
//! `nvidia/*` packages of Python.
//!
//! Functions are looked up once, when the library is loaded, and return their codes as plain integers: a code that this
//! program does not know is a number, not undefined behaviour.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use super::error::LibraryError;

/// Folders that come first, separated by colons, for whoever wants a certain version.
const OVERRIDE: &str = "RIGSCALE_LIBRARY_PATH";

/// A library that rigscale can use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// Its name, for people.
    pub(super) name: &'static str,
    /// Its file: the name that carries its major version.
    pub(super) file: &'static str,
    /// How files begin that it loads by name while it works; empty where there are none. A folder that the loader does
    /// not search holds them too.
    pub(super) companions: &'static str,
    /// Its folder inside Python's `nvidia` packages; empty where there is none.
    pub(super) packages: &'static [&'static str],
    /// How to get it.
    pub(super) install: &'static str,
}

/// A loaded library. It stays loaded until the process ends: CUDA's libraries register handlers that outlive them.
#[derive(Debug)]
pub(super) struct Library {
    wanted: Wanted,
    path: PathBuf,
    inner: &'static libloading::Library,
}

impl Library {
    /// Loads it from the first place that has it.
    ///
    /// # Errors
    /// It is nowhere, or the first file found does not load.
    pub(super) fn open(wanted: Wanted) -> Result<Self, LibraryError> {
        let folders = folders(wanted.packages);
        let chosen = overrides();
        let there = |folders: &[PathBuf]| present(folders, wanted.file);
        let candidates = there(&chosen).into_iter().chain([PathBuf::from(wanted.file)]).chain(there(&folders));
        let mut broken = None;
        for path in candidates {
            match load(&path) {
                Ok(inner) => {
                    load_companions(&path, wanted.companions);
                    return Ok(Self { wanted, path: resident(&path), inner: Box::leak(Box::new(inner)) });
                }
                // a bare name that the loader does not know is no broken file
                Err(reason) if path.is_absolute() || !reason.contains("No such file") => {
                    let Wanted { name: library, install, .. } = wanted;
                    broken.get_or_insert(LibraryError::Broken { library, path, reason, install });
                }
                Err(_) => {}
            }
        }
        let Wanted { name: library, file, install, .. } = wanted;
        let searched = searched(&chosen, &folders);
        Err(broken.unwrap_or(LibraryError::Missing { library, file: file.into(), searched, install }))
    }

    /// The address of a function, as the type that the caller gives it.
    ///
    /// # Errors
    /// The library has no such function.
    ///
    /// # Safety
    /// `F` must be the type of that function.
    pub(super) unsafe fn symbol<F: Copy + 'static>(&self, symbol: &'static str) -> Result<F, LibraryError> {
        // SAFETY: the caller vouches for the type; the library is never unloaded, so the address stays good
        let found = unsafe { self.inner.get::<F>(symbol.as_bytes()) };
        found.map(|function| *function).map_err(|_| {
            let Wanted { name: library, install, .. } = self.wanted;
            LibraryError::Symbol { library, path: self.path.clone(), symbol, install }
        })
    }

    /// Its name, for people.
    pub(super) fn name(&self) -> &'static str {
        self.wanted.name
    }

    /// Where it was found; the bare name where the loader knew it and the kernel does not say.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The error of a version that is not the wanted one.
    pub(super) fn version_error(&self, version: String, wanted: &'static str) -> LibraryError {
        let Wanted { name: library, install, .. } = self.wanted;
        LibraryError::Version { library, path: self.path.clone(), version, wanted, install }
    }
}

fn load(path: &Path) -> Result<libloading::Library, String> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: initialisers of NVIDIA's libraries run; they expect nothing of the program. Symbols are global, as cuDNN
    // finds those of its parts by name
    let loaded = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
    loaded.map(Into::into).map_err(|error| {
        let reason = std::error::Error::source(&error).map(ToString::to_string);
        reason.unwrap_or_else(|| error.to_string())
    })
}

/// Loads what stands beside a library that was found by its path, so that the loader knows it by name.
fn load_companions(path: &Path, companions: &str) {
    let folder = path.parent().filter(|_| path.is_absolute() && !companions.is_empty());
    let Some(Ok(entries)) = folder.map(fs::read_dir) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(companions) && !name.contains(".alt.") {
            // one that does not load is missed when it is needed, with the library's own words
            let _resident = load(&entry.path()).map(|library| Box::leak(Box::new(library)));
        }
    }
}

/// The file behind a name that the loader resolved, from the kernel's list of this process's mappings.
fn resident(path: &Path) -> PathBuf {
    if path.is_absolute() {
        return path.to_owned();
    }
    let name = path.to_string_lossy();
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let mapped = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..]));
    // a mapped file carries its full version: libcudnn.so.9.19.0 behind libcudnn.so.9
    let found = mapped
        .into_iter()
        .find(|file| Path::new(file).file_name().is_some_and(|file| file.to_string_lossy().starts_with(&*name)));
    found.map_or_else(|| path.to_owned(), PathBuf::from)
}

/// The files of this name in folders, in order.
fn present(folders: &[PathBuf], file: &str) -> Vec<PathBuf> {
    folders.iter().map(|folder| folder.join(file)).filter(|path| path.exists()).collect()
}

/// Where [`Library::open`] finds the file without the loader's help, folders of the loader's own variable included.
pub(super) fn find(wanted: &Wanted) -> Option<PathBuf> {
    let loader = env::var_os("LD_LIBRARY_PATH").map(|folders| env::split_paths(&folders).collect::<Vec<_>>());
    let folders = [overrides(), loader.unwrap_or_default(), folders(wanted.packages)].concat();
    present(&folders, wanted.file).into_iter().next()
}

fn overrides() -> Vec<PathBuf> {
    env::var_os(OVERRIDE).map(|folders| env::split_paths(&folders).collect()).unwrap_or_default()
}

/// The usual folders of CUDA, then Python's packages.
fn folders(packages: &[&str]) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = ["CUDA_HOME", "CUDA_PATH"]
        .iter()
        .filter_map(env::var_os)
        .flat_map(|home| [Path::new(&home).join("lib64"), Path::new(&home).join("lib")])
        .collect();
    folders.extend(["/usr/local/cuda/lib64", "/usr/local/cuda-13/lib64", "/opt/cuda/lib64"].map(PathBuf::from));
    folders.extend(["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/local/nvidia/lib64"].map(PathBuf::from));
    for site in python_sites() {
        folders.extend(packages.iter().map(|package| site.join("nvidia").join(package).join("lib")));
    }
    folders
}

/// The `site-packages` of the Pythons in `PATH`, of the active environment, and of the user.
fn python_sites() -> Vec<PathBuf> {
    let bins = env::var_os("PATH").map(|path| env::split_paths(&path).collect::<Vec<_>>()).unwrap_or_default();
    let with_python = bins.into_iter().filter(|bin| bin.join("python3").exists());
    let mut roots: Vec<PathBuf> =
        ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().filter_map(env::var_os).map(PathBuf::from).collect();
    roots.extend(with_python.filter_map(|bin| bin.parent().map(Path::to_owned)));
    roots.extend(env::var_os("HOME").map(|home| Path::new(&home).join(".local")));
    // where pip puts what root installs on Debian
    roots.push(PathBuf::from("/usr/local"));
    let mut sites = Vec::new();
    for root in roots {
        let Ok(entries) = fs::read_dir(root.join("lib")) else { continue };
        let mut versions: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        versions.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python3")));
        versions.sort();
        sites.extend(
            versions.iter().rev().flat_map(|path| ["site-packages", "dist-packages"].map(|site| path.join(site))),
        );
    }
    sites.retain(|site| site.join("nvidia").is_dir());
    sites.dedup();
    sites
}

/// Where a library was looked for, in words.
fn searched(chosen: &[PathBuf], folders: &[PathBuf]) -> String {
    let mut places = vec!["the loader's path".to_owned()];
    let known = chosen.iter().chain(folders).filter(|folder| folder.is_dir());
    places.extend(known.map(|folder| folder.display().to_string()));
    places.join(", ")
}

/// A table of a library's functions, all found when it is loaded.
macro_rules! functions {
    ($(#[$about:meta])* $table:ident { $(fn $function:ident($($type:ty),* $(,)?) -> $result:ty;)* }) => {
        $(#[$about])*
        #[expect(non_snake_case, reason = "functions keep the names that their documentation gives them")]
        pub(super) struct $table {
            pub(super) library: crate::device::cuda::library::Library,
            $(pub(super) $function: unsafe extern "C" fn($($type),*) -> $result,)*
        }

        impl $table {
            /// Loads the library and finds every function.
            ///
            /// # Errors
            /// The library is missing, broken, or lacks a function.
            pub(super) fn load(
                wanted: crate::device::cuda::library::Wanted,
            ) -> Result<Self, crate::device::cuda::error::LibraryError> {
                let library = crate::device::cuda::library::Library::open(wanted)?;
                Ok(Self {
                    // SAFETY: the types are those of the library's header
                    $($function: unsafe { library.symbol(stringify!($function)) }?,)*
                    library,
                })
            }
        }

        impl std::fmt::Debug for $table {
            fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(out, "{}({})", stringify!($table), self.library.path().display())
            }
        }
    };
}

pub(super) use functions;

#[cfg(test)]
mod tests {
    use super::*;

    const NOWHERE: Wanted = Wanted {
        name: "Nothing",
        file: "libnothing-at-all.so.1",
        companions: "",
        packages: &["nothing"],
        install: "there is none",
    };

    #[test]
    fn a_missing_library_says_what_was_searched_and_what_to_install() {
        let text = Library::open(NOWHERE).unwrap_err().to_string();
        assert!(text.contains("libnothing-at-all.so.1") && text.contains("loader's path"), "{text}");
        assert!(text.contains("there is none"), "{text}");
    }

    #[test]
    fn a_library_without_the_function_says_which() {
        let libc =
            Wanted { name: "C", file: "libc.so.6", companions: "", packages: &[], install: "it comes with the system" };
        let library = Library::open(libc).unwrap();
        assert!(library.path().is_absolute(), "{}", library.path().display());
        // SAFETY: the function is not there, so its type does not matter
        let missing = unsafe { library.symbol::<unsafe extern "C" fn()>("cuNothing") };
        assert!(missing.unwrap_err().to_string().contains("cuNothing"));
    }

    #[test]
    fn a_file_that_is_no_library_is_broken_not_missing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("libbroken.so.1");
        fs::write(&path, "no ELF").unwrap();
        assert!(load(&path).unwrap_err().contains("libbroken"));
    }
}
