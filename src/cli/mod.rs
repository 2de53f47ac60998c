//! Flags, help and progress; one small file per command.
//! Knows what a person types and reads; hides nothing else.
//! Never computes: it reads files, calls one function and writes files.

mod analyze;
mod capture;
mod error;
mod exit;
mod floor;
mod links;
mod look;
mod measure;
mod models;
mod output;
mod predict;
mod probe;
mod progress;
mod qualify;
mod report;
mod rules;
mod session;
mod train;
mod tune;
mod verdict;
mod worker;
mod workload;

use error::CliError;
pub use exit::Exit;
pub use output::Output;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Says whether a machine with several GPUs on PCIe scales data-parallel training, and if not, why and what to change
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100, subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = "\
Start here:
  rigscale probe              what this machine is
  rigscale qualify --quick    whether it scales, in under 3 minutes

Exit codes: 0 pass, 1 rigscale failed, 2 usage, 3 below target, 4 fault, 5 hang, 6 inconclusive, 130 interrupted")]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Print results as JSON
    #[arg(long, global = true)]
    json: bool,

    /// No remarks and no progress
    #[arg(long, short, global = true)]
    quiet: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Qualify(qualify::Args),
    Probe(probe::Args),
    Capture(capture::Args),
    Predict(predict::Args),
    Rules(rules::Args),
    Models(models::Args),
    Measure(measure::Args),
    Train(train::Args),
    Tune(Box<tune::Args>),
    Worker(worker::Args),
    Floor(floor::Args),
    Analyze(analyze::Args),
    Report(report::Args),
    /// One rank of a trial; started by the launcher, which speaks to it over its stdin and stdout
    #[command(hide = true)]
    Rank {
        /// Join MPI first, as a worker of several hosts wants it
        #[arg(long)]
        mpi: bool,
    },
    /// One process of a measurement; started by `rigscale measure`
    #[command(hide = true)]
    Link,
}

/// Parses the command line, runs the command and returns its exit code.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // help and version are no errors; clap knows which stream each belongs to
            let code = if error.use_stderr() { Exit::Usage } else { Exit::Pass };
            let _ = error.print();
            return code.into();
        }
    };
    let out = Output { json: cli.json, quiet: cli.quiet };
    let result = match &cli.command {
        Command::Qualify(args) => qualify::run(args, &out),
        Command::Probe(args) => probe::run(args, &out).map_err(CliError::from),
        Command::Capture(args) => capture::run(args, &out).map_err(CliError::from),
        Command::Predict(args) => predict::run(args, &out),
        Command::Rules(args) => rules::run(args, &out).map_err(CliError::from),
        Command::Models(args) => models::run(args, &out),
        Command::Measure(args) => measure::run(args, &out),
        Command::Train(args) => train::run(args, &out),
        Command::Tune(args) => tune::run(args, &out),
        Command::Worker(args) => worker::run(args, &out),
        Command::Floor(args) => floor::run(args, &out),
        Command::Analyze(args) => analyze::run(args, &out),
        Command::Report(args) => report::run(args, &out),
        Command::Rank { mpi } => return crate::launch::rank_main(*mpi),
        Command::Link => return crate::launch::link_main(),
    };
    match result {
        Ok(exit) => exit.into(),
        Err(error) => {
            let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            Output::complain(&error.render(colour));
            error.exit().into()
        }
    }
}
