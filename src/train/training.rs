//! A training on whichever device it runs.

use std::collections::BTreeMap;
use std::path::Path;

use crate::device::{Clock, peak_resident};
use crate::units::Bytes;

use super::cpu::Cpu;
use super::cuda::Cuda;
use super::error::TrainError;
use super::trainer::{StepRecord, Trainer};

/// A training on whichever device it runs.
#[derive(Debug)]
pub enum Training {
    /// On cores of the host.
    Cpu(Box<Trainer<Cpu>>),
    /// On one GPU.
    Cuda(Box<Trainer<Cuda>>),
}

impl Training {
    /// Asks for one more step; gives the record of the last one that is finished. See [`Trainer::advance`].
    ///
    /// # Errors
    /// As [`Trainer::advance`].
    pub fn advance(&mut self, clock: &Clock) -> Result<Option<StepRecord>, TrainError> {
        match self {
            Self::Cpu(trainer) => trainer.step(clock).map(Some),
            Self::Cuda(trainer) => trainer.advance(clock),
        }
    }

    /// The record of the oldest step of which none was given yet. See [`Trainer::finish`].
    ///
    /// # Errors
    /// As [`Trainer::finish`].
    pub fn finish(&mut self) -> Result<Option<StepRecord>, TrainError> {
        match self {
            Self::Cpu(trainer) => trainer.finish(),
            Self::Cuda(trainer) => trainer.finish(),
        }
    }

    /// Gathers what other ranks keep of the weights, after the last step. See [`Trainer::complete`].
    ///
    /// # Errors
    /// As [`Trainer::complete`].
    pub fn complete(&mut self) -> Result<(), TrainError> {
        match self {
            Self::Cpu(trainer) => trainer.complete(),
            Self::Cuda(trainer) => trainer.complete(),
        }
    }

    /// A hash of all weights. See [`Trainer::parameters_sha256`].
    ///
    /// # Errors
    /// The device failed.
    pub fn parameters_sha256(&mut self) -> Result<String, TrainError> {
        match self {
            Self::Cpu(trainer) => trainer.parameters_sha256(),
            Self::Cuda(trainer) => trainer.parameters_sha256(),
        }
    }

    /// Writes all weights as safetensors; `alive` is called before each. See [`Trainer::write_checkpoint`].
    ///
    /// # Errors
    /// The device failed, or the file could not be written.
    pub fn write_checkpoint(&mut self, path: &Path, alive: &dyn Fn()) -> Result<(), TrainError> {
        match self {
            Self::Cpu(trainer) => trainer.write_checkpoint(path, alive),
            Self::Cuda(trainer) => trainer.write_checkpoint(path, alive),
        }
    }

    /// Versions of what computes beside this program, for the records.
    #[must_use]
    pub fn software(&self) -> BTreeMap<String, String> {
        match self {
            Self::Cpu(_) => BTreeMap::new(),
            Self::Cuda(trainer) => trainer.cuda().software().clone(),
        }
    }

    /// What people should know about the start; empty after the call.
    pub fn remarks(&mut self) -> Vec<String> {
        match self {
            Self::Cpu(_) => Vec::new(),
            Self::Cuda(trainer) => trainer.remarks(),
        }
    }

    /// The most memory that the training has held: of the process on a CPU, of the GPU on a GPU.
    #[must_use]
    pub fn peak_memory(&self) -> Bytes {
        match self {
            Self::Cpu(_) => peak_resident().unwrap_or(Bytes(0)),
            Self::Cuda(trainer) => trainer.cuda().memory(),
        }
    }
}
