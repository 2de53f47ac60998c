//! What the tests of the binary share.

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The binary with a smallest training: two ranks of llama-tiny.
pub(crate) fn train(out: &Path, steps: usize) -> Command {
    let mut command = rigscale();
    command.args(["train", "--device", "cpu", "--world", "2", "--model", "llama-tiny", "--batch", "1"]);
    command.args(["--context", "32", "--steps", &steps.to_string(), "-o"]).arg(out);
    command
}

/// The binary under test.
pub(crate) fn rigscale() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rigscale"));
    command.env("NO_COLOR", "1").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What a finished command said on stderr.
pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
