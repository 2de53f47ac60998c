//! `rigscale rules`: the table of what a probe judges.

use std::fmt;

use clap::Args as ClapArgs;
use serde::Serialize;

use crate::probe::{RULES, Rule};

use super::probe::{ProbeCommandError, plain_table, wrapped_at, write_table};
use super::{Exit, Output};

/// Lists the rules that a probe judges by, or shows one
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  rigscale rules
  rigscale rules acs-redirect
  rigscale rules --json    with the remedy of each rule")]
pub(super) struct Args {
    /// Show this rule with its source and its remedy
    code: Option<String>,
}

/// One rule.
#[derive(Serialize)]
#[serde(transparent)]
struct One(&'static Rule);

#[derive(Serialize)]
struct Listing {
    rules: &'static [Rule],
}

/// Prints the table.
///
/// # Errors
/// No rule has the code, or stdout cannot be written.
pub(super) fn run(args: &Args, out: &Output) -> Result<Exit, ProbeCommandError> {
    let printed = match &args.code {
        None => out.emit(&Listing { rules: RULES }),
        Some(code) => {
            let rule = RULES.iter().find(|rule| rule.code == code);
            out.emit(&One(rule.ok_or_else(|| ProbeCommandError::NoRule { code: code.clone() })?))
        }
    };
    printed.map_err(|source| ProbeCommandError::Print { source })?;
    Ok(Exit::Pass)
}

impl fmt::Display for One {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(rule) = self;
        writeln!(out, "{}  {}", rule.severity, rule.code)?;
        for (label, text) in [("asks", rule.question), ("remedy", rule.remedy), ("source", rule.source)] {
            out.write_str(&wrapped_at(&format!("  {label:10}"), text))?;
        }
        Ok(())
    }
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
