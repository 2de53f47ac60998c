//! Every file that passes between rooms: schema, version, reader, writer.
//! Knows what a run folder holds and how a line, a YAML key or a JSON field is spelled; hides serde, temporary
//! files and renames.
//! Never judges a number, and never drops a line without an error that names file, line and field.

mod analysis;
mod finding;
mod folder;
mod plan;
mod run;

pub use analysis::*;
pub use finding::*;
pub use folder::*;
pub use plan::*;
pub use run::*;

/// The schema that this version writes in every file. Older ones are upgraded on reading, newer ones refused.
pub const SCHEMA: u32 = 1;
