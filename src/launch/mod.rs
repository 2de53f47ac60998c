//! Plans, and starting, watching and stopping the processes that carry them out.
//! Knows trials, ranks and limits; hides pipes, signals and pinning.
//! Never chooses anything while a plan runs, and never leaves a process behind.

mod plan;
mod shares;

pub use plan::{Wanted, bucket_layout, extended, plan};
pub use shares::{Core, Fit, cpu_shares, shares_of};
