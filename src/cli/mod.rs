//! Flags, help and progress; one small file per command.
//! Knows what a person types and reads; hides nothing else.
//! Never computes: it reads files, calls one function and writes files.

mod exit;
mod output;

pub use exit::Exit;
pub use output::Output;

use std::process::ExitCode;

/// Parses the command line, runs the command and returns its exit code.
#[must_use]
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
