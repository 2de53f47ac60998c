//! Plans, and starting, watching and stopping the processes that carry them out.
//! Knows trials, ranks and limits; hides pipes, signals and pinning.
//! Never chooses anything while a plan runs, and never leaves a process behind.

mod error;
mod launcher;
mod measure;
mod message;
mod nccl_log;
mod plan;
mod rank;
mod ranks;
mod shares;
mod telemetry;
mod trial;

pub use error::LaunchError;
pub use launcher::{Launched, Launcher, Progress};
pub use measure::{LinkSite, Measured, Measurer, Wish, link_main};
pub use plan::{Wanted, extended, plan};
pub use rank::{SHARED_CTAS, rank_main};
pub use shares::{Fit, GpuPlace, cpu_shares, gpu_shares, shares_of};
