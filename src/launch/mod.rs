//! Plans, and starting, watching and stopping the processes that carry them out.
//! Knows trials, ranks and limits; hides pipes, signals and pinning.
//! Never chooses anything while a plan runs, and never leaves a process behind.

mod attend;
mod callers;
mod crew;
mod error;
mod host;
mod invitation;
mod invited;
mod launcher;
mod line;
mod measure;
mod meeting;
mod message;
mod mpi_start;
mod nccl_log;
mod place;
mod plan;
mod rank;
mod ranks;
mod shares;
mod task;
mod telemetry;
mod trial;
mod worker;

pub use error::LaunchError;
pub use invitation::TOKEN_VARIABLE;
pub use launcher::{Launched, Launcher, Progress};
pub use measure::{LinkSite, Measured, Measurer, Wish, judge_links, least_under_load, link_main, sum_arms, under_load};
pub use meeting::MeetError;
pub use place::{JobLauncher, JobPlace, MeetingPlace, PlaceError};
pub use plan::{Wanted, extended, plan};
pub use rank::{SHARED_CTAS, rank_main};
pub use shares::{Fit, GpuPlace, cpu_shares, gpu_shares};
pub use worker::{Job, Worked, can_work, work};
