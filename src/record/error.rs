//! What can be wrong with a file between rooms.

use std::io;
use std::path::PathBuf;

use miette::Diagnostic;
use thiserror::Error;

use crate::topology::WrongYaml;

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
    Yaml(#[from] Box<WrongYaml>),
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
