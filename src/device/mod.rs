//! The only unsafe code: shared memory between processes, and later CUDA and its libraries; NVML, affinity.
//! Knows raw handles and ordinals; hides them behind typed, checked calls.
//! Never decides what to measure, and never panics on what a driver answers.
#![allow(unsafe_code, reason = "this room is where unsafe code lives")]

mod floats;
mod nvml;

pub use floats::Floats;
pub use nvml::{DriverFact, GpuFact, Nvml};
