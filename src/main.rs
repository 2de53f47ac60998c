//! Parses, dispatches, prints the error chain and returns the exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    rigscale::cli::main()
}
