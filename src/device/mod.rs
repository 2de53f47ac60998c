//! The only unsafe code: shared memory between processes, CUDA and its libraries, NVML, affinity.
//! Knows raw handles and ordinals; hides them behind typed, checked calls.
//! Never decides what to measure, and never panics on what a driver answers.
#![allow(unsafe_code, reason = "this room is where unsafe code lives")]

mod affinity;
mod clock;
pub mod cuda;
mod error;
mod floats;
mod gpu_sample;
mod host;
mod layout;
mod mapped;
#[cfg(feature = "mpi")]
mod mpi;
mod nvml;
mod process;
mod product;
mod rank_group;
mod shared_memory;
mod simd;

pub use affinity::{allowed_cpus, pin_to};
pub use clock::Clock;
pub use error::DeviceError;
pub use floats::Floats;
pub use gpu_sample::{GpuSample, LinkSample};
pub use host::{host_memory, keep_freed_memory};
pub use mapped::Mapped;
#[cfg(feature = "mpi")]
pub use mpi::{MpiError, MpiGroup, MpiSession};
pub use nvml::{DriverFact, GpuFact, Nvml, PeerFact};
pub use process::{CpuTimes, end_with_parent, is_stopped, outlive_parent, peak_resident, set_environment};
pub use product::{Matrix, MatrixMut, multiply};
pub use rank_group::chunk;
pub(crate) use rank_group::{Fault, RankGroup};
pub use shared_memory::SharedMemory;
pub use simd::vectorised;
