//! The only place that prints results.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is where rigscale prints")]

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use serde::Serialize;

/// Where results and remarks go: results on stdout, remarks on stderr.
#[derive(Debug, Clone, Copy, Default)]
pub struct Output {
    /// Print the record instead of the text.
    pub json: bool,
    /// No remarks and no progress.
    pub quiet: bool,
}

impl Output {
    /// Prints one value: as text for people, or the same value as JSON.
    ///
    /// # Errors
    /// stdout could not be written. A reader that went away is no error.
    pub fn emit<T: Serialize + Display>(&self, value: &T) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        let written = if self.json {
            serde_json::to_writer_pretty(&mut stdout, value).map_err(io::Error::from).and_then(|()| writeln!(stdout))
        } else {
            write!(stdout, "{value}")
        };
        match written.and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    }

    /// A remark for the person at the terminal, on stderr.
    pub fn remark(&self, text: impl Display) {
        if !self.quiet {
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// An error, on stderr, also with `--quiet`.
    pub fn complain(text: &str) {
        let _ = writeln!(io::stderr(), "{text}");
    }

    /// True when stdout is a terminal that wants colour.
    #[must_use]
    pub fn colour(&self) -> bool {
        !self.json && io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
    }
}
