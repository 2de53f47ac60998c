//! The transformer and its training: operations, data, optimizer, one step.
//! Knows a Llama-class decoder and the order in which its gradients become ready; hides kernels behind `Ops`.
//! Never knows what a PCIe bus, a process or a run folder is.

mod buckets;
mod check;
mod checkpoint;
mod cpu;
mod cuda;
mod data;
mod decoder;
mod error;
pub mod ops;
mod optimizer;
mod reducer;
#[cfg(test)]
mod reference;
mod seed;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod trainer;
mod training;

pub use buckets::{Gradients, Pass, Places, Weights};
pub use check::check;
pub use cpu::Cpu;
pub use cuda::{Cuda, Floor, NcclQueue, Part, PartTime};
pub use data::{Batch, Data, DataShare};
pub use decoder::Decoder;
pub use error::{DataError, ExchangeError, TrainError};
pub use ops::Ops;
pub use optimizer::AdamW;
pub use reducer::{Moments, Reducer};
pub use trainer::{StepRecord, Trainer, exchanged_lengths};
pub use training::Training;
