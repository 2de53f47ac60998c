//! Exit codes: part of the interface.

use std::process::ExitCode;

/// How a command ended. The numbers are documented in the README and never change their meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Pass, or done where nothing is judged.
    Pass = 0,
    /// rigscale itself failed; a full disk too.
    Failed = 1,
    /// Wrong usage or unreadable input.
    Usage = 2,
    /// Below the target.
    BelowTarget = 3,
    /// A fault of the machine, or a rank that died or ran out of memory.
    Fault = 4,
    /// A hang or a time limit.
    Hang = 5,
    /// Inconclusive, or nothing could be graded.
    Inconclusive = 6,
    /// Interrupted by the user.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
