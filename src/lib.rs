//! rigscale says whether a machine with several GPUs on PCIe scales data-parallel training, and if not, why and
//! what to change.
//!
//! ```text
//!  machine ──capture──▶ machine.jsonl ──probe──▶ topology.yaml + findings.json
//!                                                   │
//!                                                   ▼
//!                                              plan.yaml ──launch──▶ runs/<trial>/rank-<n>.jsonl
//!                                                                        │
//!                                  report.html, charts, junit.xml ◀── analysis.json ◀──analyze
//! ```
//!
//! Each arrow is one command that reads files, calls one function and writes files. Probing a transcript, planning
//! and analyzing are pure; only capturing and training touch hardware.
//!
//! The rooms, in reading order; `ARCHITECTURE.md` has the table of who may use whom, and `tests/tidy.rs` holds it:
//!
//! - [`units`], [`stats`]: quantities and numbers, used everywhere.
//! - [`topology`]: what a machine is.
//! - [`model`]: what is trained.
//! - [`record`]: every file between rooms.
//! - [`predict`]: what a machine should reach, and what would change it.
//! - [`tune`]: settings that shorten the step, searched for and confirmed.
//! - [`device`]: the only unsafe code; shared memory, affinity, CUDA and its kernels, NVML.
//! - [`probe`]: asks a machine, makes a topology, judges it.
//! - [`comm`]: how buffers move between ranks.
//! - [`train`]: the transformer and one step of its training.
//! - [`launch`]: plans, and starting, watching and stopping ranks.
//! - [`analyze`]: efficiency, its split, the verdict.
//! - [`report`]: charts and pages.
//! - [`cli`]: flags, help, progress; the only room that prints.

pub mod analyze;
pub mod cli;
pub mod comm;
pub mod device;
pub mod launch;
pub mod model;
pub mod predict;
pub mod probe;
pub mod record;
pub mod report;
pub mod stats;
pub mod topology;
pub mod train;
pub mod tune;
pub mod units;
