//! Every file that passes between rooms: schema, version, reader, writer.
//! Knows what a run folder holds and how a line, a YAML key or a JSON field is spelled; hides serde, temporary
//! files and renames.
//! Never judges a number, and never drops a line without an error that names file, line and field.

mod analysis;
mod error;
mod file;
mod finding;
mod finite;
mod folder;
mod gpu;
mod gpu_lines;
mod jsonl;
mod lines;
mod link_state;
mod links;
mod load;
mod manifest;
mod plan;
mod run;
mod schema;
mod tune;

pub use analysis::*;
pub use error::RecordError;
pub use file::{is_there, read_json, read_text, read_yaml, write_json, write_whole, write_yaml};
pub use finding::*;
pub use folder::*;
pub use gpu::*;
pub use gpu_lines::{GpuFile, GpuWriter, read_gpu_file};
pub use lines::{RankWriter, read_rank_file};
pub use link_state::*;
pub use links::*;
pub use load::*;
pub use manifest::Manifest;
pub use plan::*;
pub use run::*;
pub use schema::schemas;
pub use tune::*;

/// The schema that this version writes in every file. Older ones are upgraded on reading, newer ones refused.
pub const SCHEMA: u32 = 1;
