//! What can be wrong with a file between rooms.

use std::io;
use std::path::PathBuf;

use miette::Diagnostic;
use thiserror::Error;

use crate::topology::WrongPlace;

/// Why a record could not be read or written. Names file, line and field, and says what would be right.
#[derive(Debug, Error, Diagnostic)]
pub enum RecordError {
    /// The operating system refused.
    #[error("could not {attempt} {}", path.display())]
    File {
        /// "read", "write", "create the folder", …
        attempt: &'static str,
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Larger than any such file can be.
    #[error("{} is larger than {limit} bytes", path.display())]
    #[diagnostic(help("this does not look like a file that rigscale wrote"))]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// The limit.
        limit: u64,
    },
    /// A line of a rank file is longer than any that rigscale writes.
    #[error("{}:{line}: the line is longer than {limit} bytes", path.display())]
    #[diagnostic(help("this does not look like a file that rigscale wrote"))]
    LongLine {
        /// Which file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// The limit.
        limit: u64,
    },
    /// A rank has recorded as much as could be read back.
    #[error("{} would exceed {limit} bytes, which is more than rigscale reads back", path.display())]
    #[diagnostic(help("train fewer steps, or record bucket events less often"))]
    Full {
        /// Which file.
        path: PathBuf,
        /// The limit.
        limit: u64,
    },
    /// Not a regular file, where only such files belong: a folder, a pipe, a device; in a manifest, a link too.
    #[error("{} is no regular file", path.display())]
    NotAFile {
        /// Which.
        path: PathBuf,
    },
    /// More than any run folder holds.
    #[error("{} holds more than {limit} {what}", path.display())]
    #[diagnostic(help("this does not look like a run folder; nothing in it was left out in silence"))]
    TooMany {
        /// Which folder.
        path: PathBuf,
        /// "files", "levels of folders".
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// A number in a YAML file is NaN or infinite.
    #[error("{}: field `{field}` is not a finite number", path.display())]
    NotFinite {
        /// Which file.
        path: PathBuf,
        /// The path to the field: `config.learning_rate`.
        field: String,
    },
    /// A trial's name is no name of a folder.
    #[error("{}: trial {trial:?} cannot be the name of a folder under runs", path.display())]
    #[diagnostic(help("a trial's name has letters, digits, dots, dashes and underscores only, as in launch-1_ddp-2"))]
    TrialName {
        /// The plan.
        path: PathBuf,
        /// The name.
        trial: String,
    },
    /// A run was to go where something is already.
    #[error("{} exists and is not an empty folder", path.display())]
    #[diagnostic(help("nothing is overwritten: name another folder with -o, or leave -o out"))]
    Occupied {
        /// Where.
        path: PathBuf,
    },
    /// Another process writes there.
    #[error("another rigscale works in {}", path.display())]
    #[diagnostic(help("wait for it to end, or name another folder with -o"))]
    Busy {
        /// Where.
        path: PathBuf,
    },
    /// A file of ours was changed after rigscale wrote it.
    #[error("{} was changed after rigscale wrote it, as manifest.json shows", path.display())]
    #[diagnostic(help("`rigscale analyze` computes it again from the evidence"))]
    Altered {
        /// Which file.
        path: PathBuf,
    },
    /// Written by a newer rigscale.
    #[error("{} has schema {found}; this rigscale reads up to {ours}", path.display())]
    #[diagnostic(help("read it with the rigscale that wrote it, or a newer one"))]
    NewerSchema {
        /// Which file.
        path: PathBuf,
        /// Its schema.
        found: u64,
        /// The newest that is understood.
        ours: u32,
    },
    /// A line of a rank file, or a JSON file, does not hold what it should.
    #[error("{}:{line}:{column}: {problem}", path.display())]
    Json {
        /// Which file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1; 0 if the problem is the line as a whole.
        column: usize,
        /// What is wrong, with the field's name.
        problem: String,
    },
    /// A YAML file does not hold what it should.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Yaml(#[from] Box<WrongPlace>),
    /// The folder is not a run folder.
    #[error("{} holds no plan.yaml, so it is not a run folder", path.display())]
    #[diagnostic(help("give the folder that `rigscale qualify` or `rigscale train` named at its end"))]
    NotARun {
        /// Which folder.
        path: PathBuf,
    },
    /// A file in the folder belongs to no trial of the plan.
    #[error("{} belongs to no trial of plan.yaml", path.display())]
    Stray {
        /// Which file.
        path: PathBuf,
    },
}

impl RecordError {
    /// True when the fault lies with the input and not with the operating system or the disk.
    #[must_use]
    pub fn is_input(&self) -> bool {
        match self {
            Self::File { attempt, .. } => *attempt == "read",
            _ => true,
        }
    }
}
