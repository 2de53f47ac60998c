//! The only unsafe code: shared memory between processes, and later CUDA and its libraries; NVML, affinity.
//! Knows raw handles and ordinals; hides them behind typed, checked calls.
//! Never decides what to measure, and never panics on what a driver answers.
#![allow(unsafe_code, reason = "this room is where unsafe code lives")]

mod clock;
mod floats;
mod host;
mod mapped;
mod product;
mod simd;

pub use clock::Clock;
pub use floats::Floats;
pub use host::{host_memory, keep_freed_memory};
pub use mapped::Mapped;
pub use product::{Matrix, MatrixMut, multiply};
pub use simd::vectorised;
