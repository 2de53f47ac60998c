//! `rigscale rules`: the table of what a probe judges.

use std::fmt;

use clap::Args as ClapArgs;
use serde::Serialize;

use crate::probe::{RULES, Rule};

use super::probe::{ProbeCommandError, plain_table, write_table};
use super::{Exit, Output};

/// Lists the rules that a probe judges by
#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:
  rigscale rules --json    with the remedy of each rule")]
pub(super) struct Args {}

#[derive(Serialize)]
struct Listing {
    rules: &'static [Rule],
}

/// Prints the table.
///
/// # Errors
/// stdout cannot be written.
pub(super) fn run(_: &Args, out: &Output) -> Result<Exit, ProbeCommandError> {
    out.emit(&Listing { rules: RULES }).map_err(|source| ProbeCommandError::Print { source })?;
    Ok(Exit::Pass)
}

impl fmt::Display for Listing {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = plain_table();
        table.set_header(["code", "severity", "question"]);
        for rule in self.rules {
            table.add_row([rule.code.to_owned(), rule.severity.to_string(), rule.question.to_owned()]);
        }
        write_table(out, &table)
    }
}
